"""What one user gets in every experiment that has started, read without a write."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple

from peewee import chunked

from ledger import enrolment, single
from ledger.single import REVISION, TIME, size
from models import Assignment, Experiment, GroupShare, Override, Variant
from storage.columns import utcnow
from storage.engine import database
from storage.table import CHUNK, Statement, one_of
from targeting.decision import (
    DRAFT,
    EXCLUDED,
    EXISTING,
    NEW,
    OVERRIDE,
    Decision,
    Definition,
    User,
    decide,
)

TOGETHER = 100  # experiments that a user is enrolled in by one transaction

LARGEST = 32 * 1024 * 1024  # characters of configs and rules that are remembered


class Started(NamedTuple):
    """An experiment that has started and is not archived."""

    definition: Definition
    rivals: frozenset[str]
    """The other experiments that hold a share of its exclusion group."""
    has_overrides: bool
    derived: dict[Any, Any]
    """What callers derive from the definition, to be forgotten with it."""


class Remembered(NamedTuple):
    """All experiments that have started, as of a revision of the database."""

    revision: int
    experiments: list[Started]


_remembered: dict[Any, Remembered] = {}

Standing = list[tuple[Started, Decision]]
"""The decision of each experiment for a user, oldest experiment first."""


def standing(user: User) -> Standing:
    """Return what the user gets in each experiment, as if they were enrolled.

    Nothing is written. Drafts and archived experiments are left out.
    """
    experiments, now = started(), utcnow()
    rows = {id: (variant, time) for id, variant, time in ROWS(user.user_id)}
    some = [one.definition.id for one in experiments if one.has_overrides]
    forced = _forced(some, user.user_id)
    return [(one, _decision(one, user, rows, forced, now)) for one in experiments]


def enrolled_everywhere(user: User) -> Standing:
    """Enrol the user in each experiment that takes them; return what they get."""
    found = standing(user)
    new = [one for one, decision in found if decision.reason == NEW]
    simple = [one for one in new if not (one.definition.group or one.has_overrides)]
    others = [one for one in new if one.definition.group or one.has_overrides]
    enrolled = {
        decision.experiment_id: decision
        for kind in (simple, others)
        for some in chunked((one.definition.id for one in kind), TOGETHER)
        for decision in _enrolled_in(some, user)
    }
    return [(one, enrolled.get(one.definition.id, was)) for one, was in found]


def _enrolled_in(experiment_ids: list[str], user: User) -> list[Decision]:
    decided = single.enrol(experiment_ids, user)
    if decided is None:
        return enrolment.enrol_in(experiment_ids, user)
    return [decision for _, decision in decided]


# The index of the table has the user first.
ROWS = Statement(
    lambda mark: Assignment.select(
        Assignment.experiment, Assignment.variant, Assignment.assigned_at
    ).where(Assignment.user_id == mark)
)

Rows = dict[str, tuple[str, int]]
"""The variant of a user, and since when, by the experiment."""


def _forced(experiment_ids: list[str], user_id: str) -> dict[str, str]:
    """Return the user's forced variant in each of these experiments that has one."""
    forced: dict[str, str] = {}
    for some in chunked(experiment_ids, CHUNK):
        rows: Any = Override.select(Override.experiment, Override.variant).where(
            one_of(Override.experiment, some), Override.user_id == user_id
        )
        forced |= dict(rows.tuples())
    return forced


def _decision(
    one: Started, user: User, rows: Rows, forced: dict[str, str], now: datetime
) -> Decision:
    definition, user_id = one.definition, user.user_id
    id = definition.id
    if id in forced:
        return Decision(id, user_id, OVERRIDE, definition.variant(forced[id]))
    if id in rows and not definition.winner:
        variant, time = rows[id]
        at = TIME.python_value(time)
        return Decision(id, user_id, EXISTING, definition.variant(variant), at)
    decision = decide(definition, user, now)
    if decision.reason == NEW and not one.rivals.isdisjoint(rows):
        return Decision(id, user_id, EXCLUDED)
    return decision


def started() -> list[Started]:
    """Return the experiments that have started, read now or remembered."""
    # A restored backup is another file, and may have the same revision.
    place = database.obj.opened()
    # Read first: if an experiment changes meanwhile, all are read again.
    ((revision,),) = REVISION()
    known = _remembered.get(place)
    if known is None or known.revision != revision:
        known = Remembered(revision, list(_read()))
        _remembered.clear()
        if sum(size(one.definition) for one in known.experiments) <= LARGEST:
            _remembered[place] = known
    return known.experiments


def _read() -> Iterable[Started]:
    query = Experiment.select().where(
        Experiment.status != DRAFT, Experiment.archived_at.is_null()
    )
    rows: list[Any] = list(query.order_by(Experiment.created_at, Experiment.id))
    variants = _variants([row.id for row in rows])
    held: dict[str, set[str]] = defaultdict(set)
    for share in GroupShare.select().where(GroupShare.held.is_null(False)):
        held[str(share.held)].add(share.experiment_id)
    with_overrides: Any = Override.select(Override.experiment).distinct().tuples()
    overridden = {id for (id,) in with_overrides}
    for row in rows:
        row._variants = variants[row.id]
        group = row.exclusion_group
        rivals = frozenset(held[group] - {row.id}) if group else frozenset()
        yield Started(row.definition, rivals, row.id in overridden, {})


def _variants(experiment_ids: list[str]) -> dict[str, list[Variant]]:
    """Return the variants of each of these experiments, in their order."""
    variants: dict[str, list[Variant]] = {id: [] for id in experiment_ids}
    for some in chunked(experiment_ids, CHUNK):
        rows: Any = Variant.select().where(one_of(Variant.experiment, some))
        for row in rows.order_by(Variant.experiment, Variant.position):
            variants[row.experiment_id].append(row)
    return variants
