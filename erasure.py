"""A person erased everywhere, and no result moved by it."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any, NamedTuple

from peewee import fn

import audience
from engine import clean
from models import (
    Assignment,
    Audience,
    Change,
    Conversion,
    Experiment,
    Override,
    database,
    utcnow,
)
from reports import counts


class Erased(NamedTuple):
    """What one experiment counted before a person was erased, and after."""

    experiment_id: str
    before: dict[str, int]
    after: dict[str, int]


class Erasure(NamedTuple):
    """What was done, and if the file, and its log, hold no copy of the id."""

    before: dict[str, int]
    after: dict[str, int]
    experiments: list[Erased]
    file_rewritten: bool
    log_emptied: bool


def erase(user_id: str, by: str) -> Erasure:
    """Put a tombstone in the place of a user id, everywhere, in one transaction.

    Rows and tallies stay as they are, so nothing that was counted changes. Their
    idempotency keys go with the person, who may be named in them, and so do
    overrides. Erasing twice, or somebody unknown, erases nothing more, and empties
    the write-ahead log again.
    """
    tombstone = f"erased_{secrets.token_hex(10)}"
    with database.atomic():
        rows: list[Any] = [
            *Assignment.select().where(Assignment.user_id == user_id),
            *Override.select().where(Override.user_id == user_id),
        ]
        named = _erase_rules(user_id, tombstone)
        mine = sorted({row.experiment_id for row in rows} | named)
        before = _counted(mine)
        _erase_rows(user_id, tombstone)
        if by == user_id:
            by = tombstone
        for experiment in before:
            experiment.write_down_end(utcnow())
            Change.note(experiment, by, "erase", {}, {})
        after = _counted(mine)
    pairs = zip(before.items(), after.values(), strict=True)
    erased = [Erased(one.id, then, now) for (one, then), now in pairs]
    sums = _sum(before.values()), _sum(after.values())
    return Erasure(*sums, erased, *clean())


def _erase_rows(user_id: str, tombstone: str) -> None:
    seats = Assignment.select(Assignment.id).where(Assignment.user_id == user_id)
    Conversion.update(idempotency_key=None).where(
        Conversion.assignment.in_(seats)
    ).execute()
    Assignment.update(user_id=tombstone).where(Assignment.user_id == user_id).execute()
    Override.delete().where(Override.user_id == user_id).execute()
    for column in (Change.user_id, Change.actor):
        Change.update({column: tombstone}).where(column == user_id).execute()


def _erase_rules(user_id: str, tombstone: str) -> set[str]:
    """Take a user id out of the rules that name it; return the experiments that did."""
    experiments = set()
    for table, column in (
        (Audience, Audience.rule_tree),
        (Experiment, Experiment.audience_rules),
    ):
        # The rules are kept as text; only those that have the id in it are read.
        named = table.select().where(fn.INSTR(column, _quoted(user_id)) > 0)
        for row in named:
            before = getattr(row, column.name)
            rules = audience.without(before, user_id, tombstone)
            if rules is before:
                continue
            table.update({column: rules}).where(table.id == row.id).execute()
            if table is Experiment:
                experiments.add(row.id)
    return experiments


def _quoted(user_id: str) -> Any:
    return Experiment.audience_rules.db_value(user_id)


COUNTS = ("participants", "conversions", "events")


def _sum(counted: Iterable[dict[str, int]]) -> dict[str, int]:
    rows = list(counted)
    return {name: sum(row[name] for row in rows) for name in COUNTS}


def _counted(experiment_ids: Iterable[str]) -> dict[Experiment, dict[str, int]]:
    """Return what each experiment counts, from its tallies and rows."""
    told = {}
    for id in experiment_ids:
        its = counts(Experiment.get_by_id(id))
        tallies = its.tallies.values()
        figures = (
            sum(its.participants.values()),
            sum(tally.users for tally in tallies),
            sum(tally.events for tally in tallies),
        )
        told[its.experiment] = dict(zip(COUNTS, figures, strict=True))
    return told
