"""What was counted, read back: the tallies, replays from the rows, and the proof."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import date, datetime
from decimal import Decimal
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

from peewee import JOIN, fn

import ledger
from engine import giving_way
from models import (
    MOST_METRICS,
    Assignment,
    Conversion,
    Experiment,
    Metric,
    Outcome,
    Refusal,
    RefusalTally,
    Tally,
    Variant,
    database,
    utcnow,
)

FEW = 20  # rows, which take about a third of a millisecond to read

# ----------------------------------------------------------------------------
# Counts
# ----------------------------------------------------------------------------


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


def counts(experiment: Experiment) -> Counts:
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

    Every row is read, where `counts` reads a tally.
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
            totals: dict[tuple[int, str], ledger.Total] = {}
            for row in mine:
                before = totals.get((row.assignment_id, row.metric))
                key = row.variant, row.occurred_at.date(), row.metric
                days[key] = _grown(days.get(key, Day()), row, before)
                ledger.count(row, totals, tallies)
        refused: Any = Refusal.select(Refusal.reason, fn.COUNT(Refusal.id)).where(
            Refusal.experiment == current.id, Refusal.received_at <= until
        )
        refusals = dict(refused.group_by(Refusal.reason).tuples())
    return Counts(current, participants, tallies, refusals, enrolled_on, days, as_of)


def at(experiment: Experiment, as_of: datetime | None) -> Counts:
    """Return the counts of a moment: of now from the tallies, else from the rows."""
    return counts(experiment) if as_of is None else replayed(experiment, as_of)


def _grown(day: Day, row: Any, before: ledger.Total | None) -> Day:
    """Return the day with one more conversion; *before* is its user's total so far."""
    if row.value is None:
        return day._replace(users=day.users + (before is None), events=day.events + 1)
    return Day(
        day.users + (before is None),
        day.events + 1,
        day.value_users + (before is None or before.total is None),
        ledger.exact.add(day.value_sum, row.value),
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


# ----------------------------------------------------------------------------
# The rows
# ----------------------------------------------------------------------------

PAGE = 2_000
EXPORTED = (
    *("user_id", "variant", "timestamp"),
    *("converted_at", "metric", "value", "idempotency_key"),
)

SAID = ("user_id", "metric", "converted_at", "value")


def exported(experiment: Experiment) -> Iterator[dict[str, Any]]:
    """Yield a row for each conversion, and one for each participant without any.

    The rows are those of one moment, oldest enrolment first, as an import takes
    them, whatever is written meanwhile: rows are only ever added, and those that
    came later are left out. They are read a page at a time, so neither memory nor
    the write-ahead log grows with them. The keys that an import made are left out: the
    next import makes them again.
    """
    with database.transaction("DEFERRED"):
        last_seat = Assignment.select(fn.MAX(Assignment.id)).scalar() or 0
        last_conversion = Conversion.select(fn.MAX(Conversion.id)).scalar() or 0
    number = fn.COALESCE(Conversion.id, 0)
    query = (
        Assignment.select(
            Assignment.id,
            number,
            Assignment.user_id,
            Assignment.variant,
            Assignment.assigned_at,
            Conversion.occurred_at,
            Conversion.metric,
            Conversion.value,
            Conversion.idempotency_key,
        )
        .join(
            Conversion,
            JOIN.LEFT_OUTER,
            on=(Conversion.assignment == Assignment.id)
            & (Conversion.id <= last_conversion),
        )
        .where(Assignment.experiment == experiment.id, Assignment.id <= last_seat)
        .order_by(Assignment.id, Conversion.id)
        .limit(PAGE)
    )
    seat = conversion = 0
    while True:
        page = query.where(
            Assignment.id >= seat, (Assignment.id > seat) | (number > conversion)
        )
        rows: list[Any] = list(page.tuples())
        for _, _, *cells in giving_way(rows, FEW):
            row = dict(zip(EXPORTED, cells, strict=True))
            said = [row[name] for name in SAID]
            if row["metric"] and ledger.is_content_key(row["idempotency_key"], *said):
                row["idempotency_key"] = None
            yield row
        if len(rows) < PAGE:
            return
        seat, conversion, *_ = rows[-1]


# ----------------------------------------------------------------------------
# The proof
# ----------------------------------------------------------------------------


def discrepancies() -> Iterator[str]:
    """Yield a sentence for each tally or total that its rows do not prove.

    All of one moment, whatever is written meanwhile, and in bounded memory.
    """
    with database.transaction("DEFERRED"):
        yield from _differences(
            "participants",
            {
                (row.experiment_id, row.key): row.participants
                for row in Variant.select().where(Variant.participants != 0)
            },
            _grouped(Assignment, Assignment.variant),
        )
        yield from _differences(
            "refusals",
            {
                (row.experiment_id, row.reason): row.count
                for row in RefusalTally.select()
            },
            _grouped(Refusal, Refusal.reason),
        )
        tallies: dict[str, dict[tuple[str, str], Tally]] = {}
        for id, conversions, outcomes in _by_participant():
            counted: dict[tuple[int, str], ledger.Total] = {}
            for row in conversions:
                its = tallies.setdefault(row.experiment_id, {})
                ledger.count(row, counted, its)
            stored = {row._pk: ledger.Total(row.events, row.total) for row in outcomes}
            yield from _differences("total", {id: stored}, {id: counted})
        yield from _differences(
            "tally",
            _figures(Tally.select()),
            _figures(row for its in tallies.values() for row in its.values()),
        )
        yield from _differences(
            "metrics",
            *_metrics(
                {id: {metric for _, metric in its} for id, its in tallies.items()}
            ),
        )


def _metrics(
    counted: dict[str, set[str]],
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return each experiment's metrics, those stored and those counted, to compare.

    A database of schema 2 may have counted more metrics than an experiment may have:
    then only those that are stored are compared.
    """
    stored: dict[str, set[str]] = {}
    rows: Any = Metric.select(Metric.experiment, Metric.name).tuples()
    for id, name in rows:
        stored.setdefault(id, set()).add(name)
    for id, names in stored.items():
        if len(names) >= MOST_METRICS and id in counted:
            counted[id] &= names
    return (
        {id: sorted(names) for id, names in stored.items()},
        {id: sorted(names) for id, names in counted.items()},
    )


def _by_participant() -> Iterator[tuple[int, list[Any], list[Outcome]]]:
    """Yield each participant's conversions and stored totals, from one pass of each."""
    stored = Outcome.select().order_by(Outcome.assignment).iterator()
    both = heapq.merge(_conversions(), stored, key=attrgetter("assignment_id"))
    for id, rows in groupby(both, key=attrgetter("assignment_id")):
        mine: tuple[list[Any], list[Outcome]] = [], []
        for row in rows:
            mine[isinstance(row, Outcome)].append(row)
        yield id, *mine


def _grouped(table: Any, field: Any) -> dict[tuple[str, str], int]:
    query = table.select(table.experiment, field, fn.COUNT(table.id))
    return {
        (experiment, value): number
        for experiment, value, number in query.group_by(
            table.experiment, field
        ).tuples()
    }


def _figures(rows: Iterable[Any]) -> dict[Any, dict[str, Any]]:
    return {row._pk: dict(row.__data__) for row in rows}


def _differences(
    what: str, stored: dict[Any, Any], counted: dict[Any, Any]
) -> Iterator[str]:
    for key in sorted(stored.keys() | counted.keys(), key=str):
        if stored.get(key) != counted.get(key):
            yield f"{what} {key}: {stored.get(key)} stored, {counted.get(key)} counted"
