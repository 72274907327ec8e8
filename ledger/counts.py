"""The counts of an experiment: from the tallies, or replayed from the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import date, datetime
from decimal import Decimal
from itertools import groupby
from typing import Any, NamedTuple

from peewee import fn

from ledger.tallies import Total, count, merged
from models import (
    Assignment,
    Conversion,
    Experiment,
    Refusal,
    RefusalTally,
    Tally,
    Variant,
)
from storage.columns import EXACT
from storage.engine import database
from storage.table import Statement
from storage.traffic import giving_way

FEW = 20  # rows; reading them takes about a third of a millisecond


class DayTally(NamedTuple):
    """The counts of one variant in one metric on one day of occurrence, in UTC.

    A user counts on the day of the first conversion, so that the days of a metric
    sum to its total.
    """

    users: int = 0
    events: int = 0
    value_users: int = 0
    value_sum: Decimal = Decimal(0)


class Counts(NamedTuple):
    """The counts of an experiment at one moment."""

    experiment: Experiment
    variants: list[Variant]
    participants: dict[str, int]
    tallies: dict[tuple[str, str], Tally]
    refusals: dict[str, int]
    enrolled_on: dict[tuple[str, date], int] | None = None
    """New participants of a variant on a day; None without days."""
    days: dict[tuple[str, date, str], DayTally] | None = None
    as_of: datetime | None = None

    @property
    def users(self) -> int:
        """The users of all variants."""
        return sum(self.participants.values())

    @property
    def metrics(self) -> list[str]:
        """The metrics that have conversions, the primary one first."""
        primary = self.experiment.primary_metric
        metrics = {metric for _, metric in self.tallies}
        return sorted(metrics, key=lambda metric: (metric != primary, metric))

    def has_values(self, metric: str) -> bool:
        """Tell whether any conversion in the metric has a value."""
        return any(
            tally.value_users
            for tally in self.tallies.values()
            if tally.metric == metric
        )


EXPERIMENT = Statement(lambda mark: Experiment.select().where(Experiment.id == mark))
REFUSED = Statement(
    lambda mark: RefusalTally.select().where(RefusalTally.experiment == mark)
)
TALLIES = Statement(lambda mark: Tally.select().where(Tally.experiment == mark))
# The names of the variants make it a search by the primary key, which costs the same
# for any number of metrics.
TALLIES_OF_METRIC = Statement(
    lambda mark: Tally.select().where(
        Tally.experiment == mark,
        Tally.variant.in_(
            Variant.select(Variant.key).where(Variant.experiment == mark)
        ),
        Tally.metric == mark,
    )
)


def counted(experiment: Experiment) -> Counts:
    """Return the present counts, at the same cost for any number of users."""
    with database.obj.snapshot():
        current = _current(experiment)
        return _counts(current, TALLIES.rows(Tally, current.id))


def counted_in(experiment: Experiment, metric: str | None) -> Counts:
    """Return the present counts of one metric, of the primary one by default.

    If it has none, return the counts of all metrics, which say what was received.
    """
    with database.obj.snapshot():
        current = _current(experiment)
        wanted = metric or current.primary_metric
        tallies = TALLIES_OF_METRIC.rows(Tally, current.id, current.id, wanted)
        return _counts(current, tallies or TALLIES.rows(Tally, current.id))


def _current(experiment: Experiment) -> Experiment:
    """Return the experiment as this transaction sees it."""
    (current,) = EXPERIMENT.rows(Experiment, experiment.id)
    return current


def _counts(current: Experiment, tallies: list[Tally]) -> Counts:
    variants = current.variants
    return Counts(
        current,
        variants,
        {one.key: one.participants for one in variants},
        merged(tallies),
        {row.reason: row.count for row in REFUSED.rows(RefusalTally, current.id)},
    )


def replayed(experiment: Experiment, as_of: datetime | None = None) -> Counts:
    """Return the counts of everything received by *as_of*, day by day.

    This reads every row, while `counted` reads tallies.
    """
    with database.obj.stillness():  # what was received by now has been committed
        until = as_of or database.obj.now()
    tallies: dict[tuple[str, str], Tally] = {}
    days: dict[tuple[str, date, str], DayTally] = {}
    with database.obj.snapshot():
        current = Experiment.get_by_id(experiment.id)
        enrolled = Assignment.select(Assignment.variant, Assignment.assigned_at).where(
            Assignment.experiment == current.id, Assignment.received_at <= until
        )
        rows = database.obj.stream(enrolled.tuples())
        enrolled_on = Counter(
            (variant, moment.date()) for variant, moment in giving_way(rows, FEW)
        )
        participants = {variant.key: 0 for variant in current.variants}
        for (variant, _), number in enrolled_on.items():
            participants[variant] += number
        rows = conversions(
            Conversion.experiment == current.id, Conversion.received_at <= until
        )
        rows = giving_way(rows, FEW)
        for _, mine in groupby(rows, key=lambda row: row.assignment_id):
            totals: dict[tuple[int, str], Total] = {}
            for row in mine:
                before = totals.get((row.assignment_id, row.metric))
                key = row.variant, row.occurred_at.date(), row.metric
                days[key] = _grown(days.get(key, DayTally()), row, before)
                count(row, totals, tallies)
        refused: Any = Refusal.select(Refusal.reason, fn.COUNT(Refusal.id)).where(
            Refusal.experiment == current.id, Refusal.received_at <= until
        )
        refusals = dict(refused.group_by(Refusal.reason).tuples())
    counts = Counts(current, current.variants, participants, tallies, refusals)
    return counts._replace(enrolled_on=enrolled_on, days=days, as_of=as_of)


def at(experiment: Experiment, as_of: datetime | None, metric: str | None) -> Counts:
    """Return the counts of a metric now, from tallies, or at a moment, from rows."""
    if as_of is None:
        return counted_in(experiment, metric)
    return replayed(experiment, as_of)


def _grown(day: DayTally, row: Any, before: Total | None) -> DayTally:
    """Return the day with one more conversion; *before* is its user's earlier total."""
    if row.value is None:
        return day._replace(users=day.users + (before is None), events=day.events + 1)
    return DayTally(
        day.users + (before is None),
        day.events + 1,
        day.value_users + (before is None or before.total is None),
        EXACT.add(day.value_sum, row.value),
    )


def conversions(*conditions: Any) -> Iterator[Any]:
    """Yield conversions with their variants, grouped by participant."""
    query = (
        Conversion.select(
            Conversion.experiment.alias("experiment_id"),
            Conversion.assignment.alias("assignment_id"),
            Assignment.variant,
            Conversion.metric,
            Conversion.value,
            Conversion.occurred_at,
        )
        .join(Assignment)
        .order_by(Conversion.assignment, Conversion.occurred_at, Conversion.id)
    )
    if conditions:
        query = query.where(*conditions)
    yield from database.obj.stream(query.namedtuples())
