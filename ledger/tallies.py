"""Conversions written together with the totals that count them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from peewee import EXCLUDED, chunked, fn

from ledger.sums import Tallied, Total, write_gained
from models import (
    MOST_METRICS,
    Conflict,
    Conversion,
    Experiment,
    Metric,
    Outcome,
    Tally,
)
from stats import MetricSettings
from storage.columns import EXACT
from storage.engine import Overtaken, database
from storage.table import CHUNK, Insert, added, one_of


class TooManyMetrics(Conflict):
    """The experiment has the largest number of metrics already."""

    code = "TOO_MANY_METRICS"

    def __init__(self, metric: str) -> None:
        super().__init__(
            f"The experiment has {MOST_METRICS:,} metrics already, and {metric!r} is "
            "none of them.",
            metric,
        )


class Booking(NamedTuple):
    """One conversion as it is written and counted."""

    experiment_id: str
    assignment_id: int
    variant: str
    metric: str
    value: Decimal | None
    occurred_at: datetime
    received_at: datetime
    idempotency_key: str | None
    assigned_at: datetime | None = None
    covariate: Decimal | None = None
    settings: MetricSettings | None = None
    """Those of its metric, if that needs sums of its own, as the two before."""


class Metrics:
    """The metrics of an experiment, and whether it has room for more.

    Use it within a transaction.
    """

    def __init__(self, experiment: Experiment, names: Iterable[str]) -> None:
        """Look up *names*; `admit` takes only these."""
        self._experiment = experiment
        self._admitted = _metrics_among(experiment.id, dict.fromkeys(names))
        self._taken: int | None = None
        self._numbers: dict[str, int] = {}

    def admit(self, name: str) -> bool:
        """Return whether the experiment has this metric, or has room for it.

        The primary metric is always admitted: a thousand other metrics must not make
        a verdict impossible.
        """
        if name in self._admitted:
            return True
        if self._taken is None:
            self._taken = _numbers_taken(self._experiment.id)
        if self._taken < MOST_METRICS:
            self._taken += 1
            self._numbers[name] = self._taken
        elif name == self._experiment.primary_metric:
            self._numbers[name] = 0
        else:
            return False
        self._admitted.add(name)
        return True

    def write(self) -> None:
        """Write the metrics that were admitted now."""
        ADD_METRICS.of((self._experiment.id, *new) for new in self._numbers.items())


def _metrics_among(experiment_id: str, names: Iterable[str]) -> set[str]:
    """Return those of these metrics that the experiment has."""
    present: set[str] = set()
    for some in chunked(names, CHUNK):
        rows: Any = Metric.select(Metric.name).where(
            Metric.experiment == experiment_id, one_of(Metric.name, some)
        )
        present.update(name for (name,) in rows.tuples())
    return present


def metrics_of(experiment_id: str) -> list[str]:
    """Return every metric of the experiment: MOST_METRICS and one at most."""
    rows: Any = Metric.select(Metric.name).where(Metric.experiment == experiment_id)
    return [name for (name,) in rows.tuples()]


def _numbers_taken(experiment_id: str) -> int:
    """Return how many numbers are taken, without counting them."""
    last = Metric.select(fn.MAX(Metric.number)).where(
        Metric.experiment == experiment_id
    )
    return last.scalar() or 0


def write_conversions(experiment: Experiment, rows: Sequence[Booking]) -> None:
    """Write conversions with the totals and the tallies that count them.

    Call it within a transaction, with rows whose keys are new. Raise TooManyMetrics,
    having written nothing, if the experiment has no room for one of their metrics.
    """
    names = dict.fromkeys(row.metric for row in rows)
    metrics = Metrics(experiment, names)
    for metric in names:
        if not metrics.admit(metric):
            raise TooManyMetrics(metric)
    metrics.write()
    write_bookings(rows)


ADD_METRICS = Insert([Metric.experiment, Metric.name, Metric.number])

ADD_CONVERSIONS = Insert(
    [
        Conversion.experiment,
        Conversion.assignment,
        Conversion.metric,
        Conversion.value,
        Conversion.occurred_at,
        Conversion.received_at,
        Conversion.idempotency_key,
    ],
    lambda insert: insert.on_conflict(
        action="NOTHING",
        conflict_target=[Conversion.experiment, Conversion.idempotency_key],
    ),
)


ADD_OUTCOMES = Insert(
    [
        Outcome.assignment,
        Outcome.metric,
        Outcome.events,
        Outcome.total,
        Outcome.valued,
    ],
    lambda insert: insert.on_conflict(
        conflict_target=[Outcome.assignment, Outcome.metric],
        update={
            **added([Outcome.events, Outcome.valued]),
            Outcome.total: fn.COALESCE(  # their sum is null if one of them is
                database.obj.plus(Outcome.total, EXCLUDED.total),
                Outcome.total,
                EXCLUDED.total,
            ),
        },
    ).returning(
        Outcome.assignment,
        Outcome.metric,
        Outcome.events,
        Outcome.total,
        Outcome.valued,
    ),
)

TALLY_KEY: list[Any] = [Tally.experiment, Tally.variant, Tally.metric, Tally.slot]

COUNTED: list[Any] = [Tally.users, Tally.events, Tally.value_users]

SUMMED: list[Any] = [Tally.value_sum, Tally.value_sum_squares]

ADDED = [*COUNTED, *SUMMED, Tally.first_at, Tally.last_at]

ADD_TALLIES = Insert(
    [*TALLY_KEY, *ADDED],
    lambda insert: insert.on_conflict(
        conflict_target=TALLY_KEY,
        update={
            **added(COUNTED),
            Tally.value_sum: database.obj.plus(Tally.value_sum, EXCLUDED.value_sum),
            Tally.value_sum_squares: database.obj.plus(
                Tally.value_sum_squares, EXCLUDED.value_sum_squares
            ),
            Tally.first_at: database.obj.earlier(Tally.first_at, EXCLUDED.first_at),
            Tally.last_at: database.obj.later(Tally.last_at, EXCLUDED.last_at),
        },
    ),
)


def write_bookings(rows: Sequence[Booking]) -> None:
    """Write conversions whose metrics exist, with the totals and tallies they add to.

    All is added, and nothing is set to a sum that was read before: other processes may
    add to the same rows meanwhile. Call it within a transaction. Raise Overtaken if
    another process has used one of the idempotency keys meanwhile.
    """
    stored = [
        (id, assignment, metric, VALUE(value), TIME(occurred), TIME(received), key)
        for id, assignment, _, metric, value, occurred, received, key, *_ in rows
    ]
    if ADD_CONVERSIONS.stored(stored) < len(rows):
        raise Overtaken
    moves = _add_to_totals(rows)
    ADD_TALLIES.of(_tallied(rows, moves))
    sums: dict[str, Tallied] = {}
    totals: dict[Place, Total] = {}
    for row in rows:
        if row.settings:
            place = row.assignment_id, row.metric
            before = totals.get(place) or moves[place][0]
            after = totals[place] = before.plus(row.value)
            mine = sums.setdefault(row.experiment_id, Tallied.empty())
            mine.gain(row.settings, row, before, after)
    write_gained(sums)


VALUE, TIME = Conversion.value.db_value, Conversion.occurred_at.db_value

Place = tuple[int, str]
"""An assignment's id and a metric: where there is one total."""

Move = tuple[Total, Total]
"""The total of a place before some events, and after them."""


def _add_to_totals(rows: Iterable[Booking]) -> dict[Place, Move]:
    """Add to the totals of participants; return what they were, and what they are."""
    added: dict[Place, Total] = {}
    for row in rows:
        place = row.assignment_id, row.metric
        added[place] = (added.get(place) or NOTHING).plus(row.value)
    # In one order, so that no two transactions wait for each other.
    written = ADD_OUTCOMES.returned_stored(
        [
            (*place, one.events, VALUE(one.total), one.valued)
            for place, one in sorted(added.items())
        ]
    )
    moves = {}
    for id, metric, events, total, valued in written:
        after = one = added[id, metric]
        before = NOTHING
        if events > one.events:  # else the row is new, and is what was added
            after = Total(events, Outcome.total.python_value(total), valued)
            before = after.minus(one)
        moves[id, metric] = before, after
    return moves


NOTHING = Total()


def _tallied(
    rows: Iterable[Booking], moves: Mapping[Place, Move]
) -> Iterator[tuple[Any, ...]]:
    """Yield what these conversions add to each tally, in one order.

    Only the totals are walked: what each event adds would add up to the same.
    """
    times: dict[tuple[str, str, str], list[datetime]] = defaultdict(list)
    places: dict[tuple[str, str, str], set[Place]] = defaultdict(set)
    for row in rows:
        key = row.experiment_id, row.variant, row.metric
        times[key].append(row.occurred_at)
        places[key].add((row.assignment_id, row.metric))
    slot = database.obj.slot
    for key, moments in sorted(times.items()):
        users = value_users = 0
        total = squares = Decimal(0)
        for before, after in map(moves.__getitem__, places[key]):
            users += before.events == 0
            if after.total is not None:
                start = before.total or Decimal(0)
                value_users += before.valued == 0
                total = EXACT.add(total, EXACT.subtract(after.total, start))
                grown = EXACT.subtract(
                    EXACT.multiply(after.total, after.total),
                    EXACT.multiply(start, start),
                )
                squares = EXACT.add(squares, grown)
        counted = users, len(moments), value_users
        yield *key, slot, *counted, total, squares, min(moments), max(moments)


def merged(rows: Iterable[Tally]) -> dict[tuple[str, str], Tally]:
    """Return the tally of each variant in each metric, summed over the slots.

    The rows are of one experiment.
    """
    whole: dict[tuple[str, str], Tally] = {}
    for row in rows:
        key = row.variant, row.metric
        whole[key] = _sum(whole[key], row) if key in whole else row
    return whole


def _sum(one: Tally, other: Tally) -> Tally:
    one.users += other.users
    one.events += other.events
    one.value_users += other.value_users
    one.value_sum = EXACT.add(one.value_sum, other.value_sum)
    one.value_sum_squares = EXACT.add(one.value_sum_squares, other.value_sum_squares)
    one.first_at = min(one.first_at, other.first_at)
    one.last_at = max(one.last_at, other.last_at)
    return one


def count(
    row: Any,
    totals: dict[tuple[int, str], Total],
    tallies: dict[tuple[str, str], Tally],
) -> tuple[Total, Total]:
    """Add one conversion to its participant's total and to its variant's tally.

    Return the total before it and after it. The order in which conversions are added
    changes nothing.
    """
    before = totals.get((row.assignment_id, row.metric), Total())
    tally = tallies.get((row.variant, row.metric))
    if tally is None:
        tally = tallies[row.variant, row.metric] = _empty_tally(row)
    tally.events += 1
    tally.users += before.events == 0
    tally.first_at = min(tally.first_at, row.occurred_at)
    tally.last_at = max(tally.last_at, row.occurred_at)
    after = totals[row.assignment_id, row.metric] = before.plus(row.value)
    if row.value is not None and after.total is not None:
        start = before.total or Decimal(0)
        tally.value_users += before.valued == 0
        tally.value_sum = EXACT.add(tally.value_sum, row.value)
        grown = EXACT.subtract(
            EXACT.multiply(after.total, after.total), EXACT.multiply(start, start)
        )
        tally.value_sum_squares = EXACT.add(tally.value_sum_squares, grown)
    return before, after


def _empty_tally(row: Any) -> Tally:
    """Return an empty tally of the conversion's variant and metric."""
    return Tally(
        experiment=row.experiment_id,
        variant=row.variant,
        metric=row.metric,
        slot=0,
        users=0,
        events=0,
        value_users=0,
        value_sum=Decimal(0),
        value_sum_squares=Decimal(0),
        first_at=row.occurred_at,
        last_at=row.occurred_at,
    )
