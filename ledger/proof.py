"""The proof that every tally agrees with its rows."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

from peewee import fn

from ledger.counts import conversions, enrolled
from ledger.sums import Joined, Tallied, Total, day_of, gathered
from ledger.tallies import count, merged
from models import (
    MOST_METRICS,
    Assignment,
    Cohort,
    Conversion,
    Crossing,
    Experiment,
    Metric,
    Outcome,
    ParticipantTally,
    Refusal,
    RefusalTally,
    Sums,
    Tally,
    Variant,
)
from stats import MetricSettings
from storage.engine import database

STEP = 10_000  # rows between two reports of the progress


def rows() -> int:
    """Return how many rows the proof reads one by one."""
    number: int = Conversion.select().count() + Outcome.select().count()
    return number


def discrepancies(progress: Callable[[int], object] | None = None) -> Iterator[str]:
    """Yield a sentence for each tally or total that does not agree with its rows.

    All of it is read at one moment, whatever is written meanwhile, in bounded memory.
    *progress* is called with the number of rows that were read since its last call.
    """
    with database.obj.snapshot():
        yield from _differences(
            "participants",
            _participants(),
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
        own = dict(_with_own_sums())
        yield from _wrong_totals(tallies, own, progress)
        counted = (row for each in tallies.values() for row in each.values())
        figures = _figures(_stored())
        yield from _differences("tally", figures, _figures(counted))
        yield from _impossible_crossings(figures)
        metrics = {id: {name for _, name in each} for id, each in tallies.items()}
        yield from _differences("metrics", *_metrics(metrics))
        for id, mine in own.items():
            for variant, assigned_at, covariate in enrolled(id):
                day = day_of(assigned_at)
                mine.counted.join(variant, day, Joined.one(covariate))
        yield from _wrong_sums({id: one.counted for id, one in own.items()})


class Own(NamedTuple):
    """The settings of an experiment's metrics, and what is counted for them."""

    settings: dict[str, MetricSettings]
    counted: Tallied


def _with_own_sums() -> Iterator[tuple[str, Own]]:
    """Yield the experiments whose metrics need more than everyone's counts."""
    for row in Experiment.select().where(Experiment.metrics.is_null(False)):
        if row.own_sums:
            yield row.id, Own(row.own_sums, Tallied.empty())


def _wrong_sums(counted: dict[str, Tallied]) -> Iterator[str]:
    """Yield the sums and cohorts that do not agree with the rows."""
    cohorts: dict[str, list[Cohort]] = {}
    for row in Cohort.select():
        cohorts.setdefault(row.experiment_id, []).append(row)
    sums: dict[str, list[Sums]] = {}
    for each in Sums.select():
        sums.setdefault(each.experiment_id, []).append(each)
    for id in sorted(cohorts.keys() | sums.keys() | counted.keys()):
        ours = gathered(cohorts.get(id, ()), sums.get(id, ()))
        rows = counted.get(id, Tallied.empty())
        yield from _differences(f"cohort of {id}", ours.joined, rows.joined)
        yield from _differences(f"sums of {id}", ours.gained, rows.gained)


def _wrong_totals(
    tallies: dict[str, dict[tuple[str, str], Tally]],
    own: dict[str, Own],
    progress: Callable[[int], object] | None,
) -> Iterator[str]:
    """Yield the wrong totals of participants.

    Count all conversions in *tallies*, and in the sums of metrics with settings.
    """
    read = 0
    for id, conversions_of, outcomes in _by_participant():
        read += len(conversions_of) + len(outcomes)
        if progress and read >= STEP:
            progress(read)
            read = 0
        counted: dict[tuple[int, str], Total] = {}
        for row in conversions_of:
            moved = count(row, counted, tallies.setdefault(row.experiment_id, {}))
            mine = own.get(row.experiment_id)
            if mine and row.metric in mine.settings:
                mine.counted.gain(mine.settings[row.metric], row, *moved)
        stored = {row._pk: Total(row.events, row.total, row.valued) for row in outcomes}
        yield from _differences("total", {id: stored}, {id: counted})
    if progress:
        progress(read)


def _metrics(
    counted: dict[str, set[str]],
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return each experiment's stored metrics and counted metrics, for comparison.

    A database of schema 2 may have counted more metrics than an experiment may have
    now. Then only the stored ones are compared.
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
    """Yield each participant's conversions and stored totals, in one pass of both."""
    stored = database.obj.stream(Outcome.select().order_by(Outcome.assignment))
    both = heapq.merge(conversions(), stored, key=attrgetter("assignment_id"))
    for id, rows in groupby(both, key=attrgetter("assignment_id")):
        parts: tuple[list[Any], list[Outcome]] = [], []
        for row in rows:
            parts[isinstance(row, Outcome)].append(row)
        yield id, *parts


def _participants() -> dict[tuple[str, str], int]:
    """Return how many users each variant has, from the tallies of all slots."""
    numbers: Counter[tuple[str, str]] = Counter()
    for row in ParticipantTally.select():
        numbers[row.experiment_id, row.variant] += row.participants
    return dict(numbers)


def _stored() -> Iterator[Tally]:
    """Yield the stored tally of each variant in each metric."""
    rows = Tally.select().order_by(Tally.experiment)
    for _, each in groupby(rows, key=attrgetter("experiment_id")):
        yield from merged(each).values()


def _impossible_crossings(
    figures: dict[tuple[str, str, str], dict[str, Any]],
) -> Iterator[str]:
    """Yield the stored looks at more users than there are today; no count ever falls.

    They are not counted again as of their time. A look locks nothing, so an event may
    have been booked between its counts and its time.
    """
    crossings = list(Crossing.select().order_by(Crossing.experiment, Crossing.variant))
    if not crossings:
        return
    users, all_users = _participants(), Counter[str]()
    for (id, _), number in users.items():
        all_users[id] += number
    rows: Any = Experiment.select(Experiment.id, Experiment.primary_metric).tuples()
    metrics = dict(rows)
    rows = Variant.select(Variant.experiment, Variant.key).where(Variant.position == 0)
    controls = dict(rows.tuples())
    for row in crossings:
        id = row.experiment_id
        today = [all_users[id]]
        for variant in (controls[id], row.variant):
            tally = figures.get((id, variant, metrics[id]), {})
            today += [users.get((id, variant), 0), tally.get("users", 0)]
        then = [
            *(row.users, row.control_sample_size, row.control_conversions),
            *(row.sample_size, row.conversions),
        ]
        if any(one > other for one, other in zip(then, today, strict=True)):
            yield f"crossing {(id, row.variant)}: {then} stored, {today} today"


def _grouped(table: Any, field: Any) -> dict[tuple[str, str], int]:
    query = table.select(table.experiment, field, fn.COUNT(table.id))
    return {
        (experiment, value): number
        for experiment, value, number in query.group_by(
            table.experiment, field
        ).tuples()
    }


def _figures(rows: Iterable[Any]) -> dict[Any, dict[str, Any]]:
    return {
        (row.experiment_id, row.variant, row.metric): {**row.__data__, "slot": None}
        for row in rows
    }


def _differences(
    what: str, stored: dict[Any, Any], counted: dict[Any, Any]
) -> Iterator[str]:
    for key in sorted(stored.keys() | counted.keys(), key=str):
        if stored.get(key) != counted.get(key):
            yield f"{what} {key}: {stored.get(key)} stored, {counted.get(key)} counted"
