"""Conversions written together with the totals that count them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Context, Decimal, Inexact
from typing import Any, NamedTuple

from peewee import chunked, fn

from models import (
    MOST_METRICS,
    Conflict,
    Conversion,
    Experiment,
    Metric,
    Outcome,
    Tally,
)
from storage.table import CHUNK, one_of

# Enough digits for the square of any total; a result that does not fit raises.
exact = Context(prec=1_000, traps=[Inexact])


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


class Total(NamedTuple):
    """One participant's events in one metric; *total* is None without any value."""

    events: int = 0
    total: Decimal | None = None


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
        Metric.write_rows(
            [Metric.experiment, Metric.name, Metric.number],
            [(self._experiment.id, *new) for new in self._numbers.items()],
        )


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
    write_bookings(experiment, rows)


def write_bookings(experiment: Experiment, rows: Sequence[Booking]) -> None:
    """Write conversions whose metrics exist, with their totals and tallies.

    Only the totals and tallies that these rows change are read and written.
    """
    Conversion.write_rows(
        [
            Conversion.experiment,
            Conversion.assignment,
            Conversion.metric,
            Conversion.value,
            Conversion.occurred_at,
            Conversion.received_at,
            Conversion.idempotency_key,
        ],
        [(row.experiment_id, row.assignment_id, *row[3:]) for row in rows],
    )
    totals, tallies = _totals(rows), _tallies(experiment, rows)
    for row in rows:
        count(row, totals, tallies)
    Outcome.write_rows(
        [Outcome.assignment, Outcome.metric, Outcome.events, Outcome.total],
        [(*key, *total) for key, total in totals.items()],
        over=[Outcome.assignment, Outcome.metric],
    )
    Tally.write_rows(
        list(Tally._meta.sorted_fields),
        [
            [row.__data__[field.name] for field in Tally._meta.sorted_fields]
            for row in tallies.values()
        ],
        over=[Tally.experiment, Tally.variant, Tally.metric],
    )


def _totals(rows: Iterable[Booking]) -> dict[tuple[int, str], Total]:
    """Return the present totals of these rows' participants in their metrics."""
    participants: dict[str, set[int]] = {}
    for row in rows:
        participants.setdefault(row.metric, set()).add(row.assignment_id)
    present = {}
    for metric, ids in participants.items():
        for some in chunked(ids, CHUNK):
            stored: Any = Outcome.select(
                Outcome.assignment, Outcome.events, Outcome.total
            ).where(one_of(Outcome.assignment, some), Outcome.metric == metric)
            for id, *total in stored.tuples():
                present[id, metric] = Total(*total)
    return present


def _tallies(
    experiment: Experiment, rows: Iterable[Booking]
) -> dict[tuple[str, str], Tally]:
    """Return the present tallies of these rows' variants in their metrics."""
    variants = {row.variant for row in rows}
    present = {}
    for some in chunked({row.metric for row in rows}, CHUNK):
        for tally in Tally.select().where(
            Tally.experiment == experiment.id,
            Tally.variant.in_(variants),
            one_of(Tally.metric, some),
        ):
            present[tally.variant, tally.metric] = tally
    return present


def count(
    row: Any,
    totals: dict[tuple[int, str], Total],
    tallies: dict[tuple[str, str], Tally],
) -> None:
    """Add one conversion to its participant's total and to its variant's tally.

    The order in which conversions are added changes nothing.
    """
    before = totals.get((row.assignment_id, row.metric), Total())
    tally = tallies.get((row.variant, row.metric))
    if tally is None:
        tally = tallies[row.variant, row.metric] = _empty_tally(row)
    tally.events += 1
    tally.users += before.events == 0
    tally.first_at = min(tally.first_at, row.occurred_at)
    tally.last_at = max(tally.last_at, row.occurred_at)
    total = before.total
    if row.value is not None:
        start = before.total or Decimal(0)
        total = exact.add(start, row.value)
        tally.value_users += before.total is None
        tally.value_sum = exact.add(tally.value_sum, row.value)
        grown = exact.subtract(
            exact.multiply(total, total), exact.multiply(start, start)
        )
        tally.value_sum_squares = exact.add(tally.value_sum_squares, grown)
    totals[row.assignment_id, row.metric] = Total(before.events + 1, total)


def _empty_tally(row: Any) -> Tally:
    """Return an empty tally of the conversion's variant and metric."""
    return Tally(
        experiment=row.experiment_id,
        variant=row.variant,
        metric=row.metric,
        users=0,
        events=0,
        value_users=0,
        value_sum=Decimal(0),
        value_sum_squares=Decimal(0),
        first_at=row.occurred_at,
        last_at=row.occurred_at,
    )
