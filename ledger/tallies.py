"""Conversions written together with the totals that count them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from peewee import EXCLUDED, chunked, fn

from ledger.sums import ZERO, Tallied, Total, write_gained
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
    metrics = Metrics(experiment, [row.metric for row in rows])
    for row in rows:
        if not metrics.admit(row.metric):
            raise TooManyMetrics(row.metric)
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
    if ADD_CONVERSIONS.of((*row[:2], *row[3:8]) for row in rows) < len(rows):
        raise Overtaken
    increases: dict[tuple[str, str, str], Increase] = {}
    sums: dict[str, Tallied] = {}
    for some, new, after in _add_to_totals(rows):
        one = some[0]  # the others differ in values, times and keys alone
        key = one.experiment_id, one.variant, one.metric
        increase = Increase.of(some, new, after)
        increases[key] = increases[key].plus(increase) if key in increases else increase
        if one.settings:
            own = sums.setdefault(one.experiment_id, Tallied.empty())
            own.gain(one.settings, one, after.minus(new), after)
    slot = database.obj.slot
    ADD_TALLIES.of((*key, slot, *increases[key]) for key in sorted(increases))
    if sums:
        write_gained(sums)


def _add_to_totals(
    rows: Iterable[Booking],
) -> Iterator[tuple[list[Booking], Total, Total]]:
    """Add to the totals of participants.

    Yield the events of each in one metric, with their total and the one after them.
    """
    events: dict[tuple[int, str], list[Booking]] = {}
    for row in rows:
        events.setdefault((row.assignment_id, row.metric), []).append(row)
    added = {
        key: Total.of([row.value for row in events[key]]) for key in sorted(events)
    }
    # In one order, so that no two transactions wait for each other.
    after = ADD_OUTCOMES.returned([(*key, *one) for key, one in added.items()])
    number_of = Outcome.total.python_value
    for id, metric, events_after, total, valued in after:
        whole = Total(events_after, number_of(total), valued)
        yield events[id, metric], added[id, metric], whole


class Increase(NamedTuple):
    """What events add to the tally of their variant in their metric."""

    users: int
    events: int
    value_users: int
    value_sum: Decimal
    value_sum_squares: Decimal
    first_at: datetime
    last_at: datetime

    @classmethod
    def of(cls, rows: Sequence[Booking], new: Total, after: Total) -> Increase:
        """Return that of a participant's events, from their total and the one after."""
        rise, end = new.total or ZERO, after.total or ZERO
        times = [row.occurred_at for row in rows]
        return cls(
            int(new.events == after.events),
            new.events,
            int(0 < new.valued == after.valued),
            rise,
            # The square of the end less that of the start, which is end - rise.
            EXACT.multiply(rise, EXACT.subtract(EXACT.add(end, end), rise)),
            min(times),
            max(times),
        )

    def plus(self, other: Increase) -> Increase:
        """Return what both add together."""
        return Increase(
            self.users + other.users,
            self.events + other.events,
            self.value_users + other.value_users,
            EXACT.add(self.value_sum, other.value_sum),
            EXACT.add(self.value_sum_squares, other.value_sum_squares),
            min(self.first_at, other.first_at),
            max(self.last_at, other.last_at),
        )


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
