"""What was counted: from the tallies, or replayed from the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import date, datetime
from decimal import Decimal
from itertools import groupby
from typing import Any, NamedTuple

from peewee import fn

from ledger.tallies import Total, count, exact
from models import Assignment, Conversion, Experiment, Refusal, RefusalTally, Tally
from storage.columns import utcnow
from storage.engine import database
from storage.traffic import giving_way

FEW = 20  # rows, which take about a third of a millisecond to read


class Day(NamedTuple):
    """What one variant gained in one metric on one day of occurrence, in UTC.

    A user counts on the day of the first conversion, so that the days of a metric
    sum to its total.
    """

    users: int = 0
    events: int = 0
    value_users: int = 0
    value_sum: Decimal = Decimal(0)


class Counts(NamedTuple):
    """What an experiment has counted, all of one moment."""

    experiment: Experiment
    participants: dict[str, int]
    tallies: dict[tuple[str, str], Tally]
    refusals: dict[str, int]
    enrolled_on: dict[tuple[str, date], int] | None = None
    """New participants of a variant on a day; None where no days were asked for."""
    days: dict[tuple[str, date, str], Day] | None = None
    as_of: datetime | None = None

    @property
    def metrics(self) -> list[str]:
        """The metrics that somebody converted in, the primary one first."""
        primary = self.experiment.primary_metric
        found = {metric for _, metric in self.tallies}
        return sorted(found, key=lambda metric: (metric != primary, metric))

    def has_values(self, metric: str) -> bool:
        """Tell whether anybody's conversion in the metric had a value."""
        return any(
            tally.value_users
            for tally in self.tallies.values()
            if tally.metric == metric
        )


def counted(experiment: Experiment) -> Counts:
    """Return an experiment's tallies: as many rows at 10 users as at 10 million."""
    with database.transaction("DEFERRED"):  # one snapshot, and no lock on writers
        current = Experiment.get_by_id(experiment.id)
        participants = {one.key: one.participants for one in current.variants}
        tallies = {
            (row.variant, row.metric): row
            for row in Tally.select().where(Tally.experiment == current.id)
        }
        refused = RefusalTally.select().where(RefusalTally.experiment == current.id)
        refusals = {row.reason: row.count for row in refused}
    return Counts(current, participants, tallies, refusals)


def replayed(experiment: Experiment, as_of: datetime | None = None) -> Counts:
    """Return the counts of what had been received by *as_of*, day by day.

    Every row is read, where `counted` reads a tally.
    """
    until = as_of or utcnow()
    tallies: dict[tuple[str, str], Tally] = {}
    days: dict[tuple[str, date, str], Day] = {}
    with database.transaction("DEFERRED"):
        current = Experiment.get_by_id(experiment.id)
        enrolled = Assignment.select(Assignment.variant, Assignment.assigned_at).where(
            Assignment.experiment == current.id, Assignment.received_at <= until
        )
        enrolled_on = Counter(
            (variant, moment.date())
            for variant, moment in giving_way(enrolled.tuples().iterator(), FEW)
        )
        participants = {variant.key: 0 for variant in current.variants}
        for (variant, _), number in enrolled_on.items():
            participants[variant] += number
        rows = _conversions(
            Conversion.experiment == current.id, Conversion.received_at <= until
        )
        rows = giving_way(rows, FEW)
        for _, mine in groupby(rows, key=lambda row: row.assignment_id):
            totals: dict[tuple[int, str], Total] = {}
            for row in mine:
                before = totals.get((row.assignment_id, row.metric))
                key = row.variant, row.occurred_at.date(), row.metric
                days[key] = _grown(days.get(key, Day()), row, before)
                count(row, totals, tallies)
        refused: Any = Refusal.select(Refusal.reason, fn.COUNT(Refusal.id)).where(
            Refusal.experiment == current.id, Refusal.received_at <= until
        )
        refusals = dict(refused.group_by(Refusal.reason).tuples())
    return Counts(current, participants, tallies, refusals, enrolled_on, days, as_of)


def at(experiment: Experiment, as_of: datetime | None) -> Counts:
    """Return the counts of a moment: of now from the tallies, else from the rows."""
    return counted(experiment) if as_of is None else replayed(experiment, as_of)


def _grown(day: Day, row: Any, before: Total | None) -> Day:
    """Return the day with one more conversion; *before* is its user's total so far."""
    if row.value is None:
        return day._replace(users=day.users + (before is None), events=day.events + 1)
    return Day(
        day.users + (before is None),
        day.events + 1,
        day.value_users + (before is None or before.total is None),
        exact.add(day.value_sum, row.value),
    )


def _conversions(*conditions: Any) -> Iterator[Any]:
    """Yield conversions with their variants, one participant's after another's."""
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
    yield from query.namedtuples().iterator()
