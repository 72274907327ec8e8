"""The counts of an experiment: from the tallies, or replayed from the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import date, datetime
from decimal import Decimal
from itertools import groupby
from typing import Any, NamedTuple

from peewee import fn

from ledger.sums import Gained, Joined, Tallied, Total, add_to, day_of, stored
from ledger.tallies import count, merged
from models import (
    Assignment,
    Conversion,
    Experiment,
    Refusal,
    RefusalTally,
    Tally,
    Variant,
)
from stats import GUARDRAIL, MetricSettings
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
    own: Tallied = Tallied({}, {})
    """What is added up for the metrics with settings."""
    own_days: dict[tuple[str, str, date], Gained] | None = None
    """The same by the day of occurrence; None without days."""

    @property
    def users(self) -> int:
        """The users of all variants."""
        return sum(self.participants.values())

    @property
    def rows(self) -> int:
        """The rows that a replay reads: a user each, and a counted event each."""
        return self.users + sum(tally.events for tally in self.tallies.values())

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
    """Return the present counts of one metric; the primary one has the others beside.

    If nothing was counted of it, or of a guardrail, return the counts of all metrics,
    which say what was received.
    """
    with database.obj.snapshot():
        current = _current(experiment)
        wanted = current.metric_settings
        if metric not in (None, current.primary_metric):
            wanted = {metric: MetricSettings(metric)}
        tallies = [
            row
            for one in wanted
            for row in TALLIES_OF_METRIC.rows(Tally, current.id, current.id, one)
        ]
        found = {row.metric for row in tallies}
        asked = metric or current.primary_metric
        if any(
            one.name not in found
            for one in wanted.values()
            if one.name == asked or one.role == GUARDRAIL
        ):
            tallies = TALLIES.rows(Tally, current.id)
        return _counts(current, tallies)


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
        own=stored(current.id) if current.own_sums else Tallied.empty(),
    )


def replayed(experiment: Experiment, as_of: datetime | None = None) -> Counts:
    """Return the counts of everything received by *as_of*, day by day.

    This reads every row, while `counted` reads tallies.
    """
    with database.obj.stillness():  # what was received by now has been committed
        until = as_of or database.obj.now()
    with database.obj.snapshot():
        current = Experiment.get_by_id(experiment.id)
        replay = Replay(current)
        until_then = Assignment.received_at <= until
        for row in giving_way(enrolled(current.id, until_then), FEW):
            replay.enrol(*row)
        rows = conversions(
            Conversion.experiment == current.id, Conversion.received_at <= until
        )
        for _, mine in groupby(
            giving_way(rows, FEW), key=lambda row: row.assignment_id
        ):
            replay.book(mine)
        refused: Any = Refusal.select(Refusal.reason, fn.COUNT(Refusal.id)).where(
            Refusal.experiment == current.id, Refusal.received_at <= until
        )
        refusals = dict(refused.group_by(Refusal.reason).tuples())
    return replay.counts(refusals)._replace(as_of=as_of)


def enrolled(experiment_id: str, *conditions: Any) -> Iterator[Any]:
    """Yield the variant, the time and the covariate of each user who is enrolled."""
    query = Assignment.select(
        Assignment.variant, Assignment.assigned_at, Assignment.covariate
    ).where(Assignment.experiment == experiment_id, *conditions)
    yield from database.obj.stream(query.tuples())


class Replay:
    """The counts of an experiment, counted from its rows."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment, self._own_sums = experiment, experiment.own_sums
        self._enrolled_on: Counter[tuple[str, date]] = Counter()
        self._tallies: dict[tuple[str, str], Tally] = {}
        self._days: dict[tuple[str, date, str], DayTally] = {}
        self._own = Tallied.empty()
        self._own_days: dict[tuple[str, str, date], Gained] = {}

    def enrol(
        self, variant: str, assigned_at: datetime, covariate: Decimal | None
    ) -> None:
        """Count a user."""
        self._enrolled_on[variant, assigned_at.date()] += 1
        if self._own_sums:
            self._own.join(variant, day_of(assigned_at), Joined.one(covariate))

    def book(self, rows: Iterable[Any]) -> None:
        """Count all conversions of a user."""
        totals: dict[tuple[int, str], Total] = {}
        for row in rows:
            before, after = count(row, totals, self._tallies)
            key = row.variant, row.occurred_at.date(), row.metric
            self._days[key] = _grown(self._days.get(key, DayTally()), row, before)
            settings = self._own_sums.get(row.metric)
            if settings:
                gained = self._own.gain(settings, row, before, after)
                own_day = row.variant, row.metric, row.occurred_at.date()
                add_to(self._own_days, own_day, gained)

    def counts(self, refusals: dict[str, int]) -> Counts:
        """Return all that was counted."""
        variants = self._experiment.variants
        participants = {variant.key: 0 for variant in variants}
        for (variant, _), number in self._enrolled_on.items():
            participants[variant] += number
        return Counts(
            self._experiment,
            variants,
            participants,
            self._tallies,
            refusals,
            self._enrolled_on,
            self._days,
            own=self._own,
            own_days=self._own_days,
        )


def at(experiment: Experiment, as_of: datetime | None, metric: str | None) -> Counts:
    """Return the counts of a metric now, from tallies, or at a moment, from rows."""
    if as_of is None:
        return counted_in(experiment, metric)
    return replayed(experiment, as_of)


def _grown(day: DayTally, row: Any, before: Total) -> DayTally:
    """Return the day with one more conversion; *before* is its user's earlier total."""
    is_first = before.events == 0
    if row.value is None:
        return day._replace(users=day.users + is_first, events=day.events + 1)
    return DayTally(
        day.users + is_first,
        day.events + 1,
        day.value_users + (before.total is None),
        EXACT.add(day.value_sum, row.value),
    )


def conversions(*conditions: Any) -> Iterator[Any]:
    """Yield conversions with their variants, grouped by participant."""
    query = (
        Conversion.select(
            Conversion.experiment.alias("experiment_id"),
            Conversion.assignment.alias("assignment_id"),
            Assignment.variant,
            Assignment.assigned_at,
            Assignment.covariate,
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
