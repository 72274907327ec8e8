"""The proof that every tally is what its rows say."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import attrgetter
from typing import Any

from peewee import fn

from ledger.counts import _conversions
from ledger.tallies import Total, count
from models import (
    MOST_METRICS,
    Assignment,
    Metric,
    Outcome,
    Refusal,
    RefusalTally,
    Tally,
    Variant,
)
from storage.engine import database


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
            counted: dict[tuple[int, str], Total] = {}
            for row in conversions:
                its = tallies.setdefault(row.experiment_id, {})
                count(row, counted, its)
            stored = {row._pk: Total(row.events, row.total) for row in outcomes}
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
