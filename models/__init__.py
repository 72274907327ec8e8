"""The tables: their columns, their constraints, and the queries of one table."""

from __future__ import annotations

from models.audiences import Audience
from models.bookings import (
    MOST_METRICS,
    Assignment,
    Cohort,
    Conversion,
    Crossing,
    Metric,
    Outcome,
    Refusal,
    RefusalTally,
    Sums,
    Tally,
)
from models.errors import ARCHIVED, Conflict, Invalid, InvalidState
from models.experiments import (
    CONCLUSIONS,
    FULL,
    ID_PREFIX,
    NOT_IDS,
    Experiment,
    GroupShare,
    Override,
    ParticipantTally,
    Variant,
    next_moment,
)
from models.history import SERVICE, Change
from storage.schema import Identity

__all__ = [
    "ARCHIVED",
    "CONCLUSIONS",
    "FULL",
    "ID_PREFIX",
    "MOST_METRICS",
    "NOT_IDS",
    "SERVICE",
    "TABLES",
    "Assignment",
    "Audience",
    "Change",
    "Cohort",
    "Conflict",
    "Conversion",
    "Crossing",
    "Experiment",
    "GroupShare",
    "Identity",
    "Invalid",
    "InvalidState",
    "Metric",
    "Outcome",
    "Override",
    "ParticipantTally",
    "Refusal",
    "RefusalTally",
    "Sums",
    "Tally",
    "Variant",
    "next_moment",
]

TABLES = [
    Identity,
    Experiment,
    Variant,
    Audience,
    Override,
    GroupShare,
    Change,
    Assignment,
    Conversion,
    Outcome,
    ParticipantTally,
    Tally,
    Cohort,
    Sums,
    Crossing,
    Metric,
    Refusal,
    RefusalTally,
]
