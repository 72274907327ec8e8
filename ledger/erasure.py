"""A person erased everywhere, and no result moved by it."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import lifecycle
from ledger.counts import counted
from models import (
    SERVICE,
    Assignment,
    Audience,
    Change,
    Conversion,
    Experiment,
    Override,
    Tally,
    Variant,
)
from storage.columns import Json, utcnow
from storage.engine import database
from targeting import audience


class Erased(NamedTuple):
    """What one experiment counted before a person was erased, and after."""

    experiment_id: str
    before: dict[str, int]
    after: dict[str, int]


class Mention(NamedTuple):
    """A text that somebody wrote, and in which the id still stands."""

    resource: str
    id: str
    field: str


class Erasure(NamedTuple):
    """What was done, and if the file, and its log, hold no copy of the id."""

    before: dict[str, int]
    after: dict[str, int]
    experiments: list[Erased]
    mentions: list[Mention]
    file_rewritten: bool
    log_emptied: bool


def erase(user_id: str, by: str) -> Erasure:
    """Put a tombstone in the place of a user id, everywhere, in one transaction.

    Rows and tallies stay as they are, so nothing that was counted changes. Their
    idempotency keys go with the person, who may be named in them, and so do
    overrides. Texts that somebody wrote stay as they are, and are named. Erasing
    twice, or somebody unknown, erases nothing more, and empties the write-ahead log
    again.
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
            lifecycle.write_down_end(experiment, utcnow())
            Change.note(experiment, by, "erase", {}, {})
        after = _counted(mine)
        left = list(islice(_mentions(user_id), MENTIONS))
    pairs = zip(before.items(), after.values(), strict=True)
    erased = [Erased(one.id, then, now) for (one, then), now in pairs]
    sums = _sum(before.values()), _sum(after.values())
    return Erasure(*sums, erased, left, *database.obj.clean())


def _erase_rows(user_id: str, tombstone: str) -> None:
    seats = Assignment.select(Assignment.id).where(Assignment.user_id == user_id)
    Conversion.update(idempotency_key=None).where(
        Conversion.assignment.in_(seats)
    ).execute()
    Assignment.update(user_id=tombstone).where(Assignment.user_id == user_id).execute()
    Override.delete().where(Override.user_id == user_id).execute()
    Change.update(user_id=tombstone).where(Change.user_id == user_id).execute()
    if user_id != SERVICE:
        Change.update(actor=tombstone).where(Change.actor == user_id).execute()


def _erase_rules(user_id: str, tombstone: str) -> set[str]:
    """Take a user id out of the rules that name it; return the experiments that did."""
    experiments = set()
    for table, column in (
        (Audience, Audience.rule_tree),
        (Experiment, Experiment.audience_rules),
    ):
        # The rules are kept as text; only those that have the id in it are read.
        named = table.select().where(database.obj.contains(column, _quoted(user_id)))
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


MENTIONS = 100

# Where people write what they like: the column, and its name on the wire.
WRITTEN: list[tuple[str, Any, Any, str]] = [
    ("audience", Audience.id, Audience.id, "id"),
    ("audience", Audience.id, Audience.name, "name"),
    ("audience", Audience.id, Audience.description, "description"),
    ("audience", Audience.id, Audience.rule_tree, "ruleTree"),
    ("experiment", Experiment.id, Experiment.key, "key"),
    ("experiment", Experiment.id, Experiment.name, "name"),
    ("experiment", Experiment.id, Experiment.description, "description"),
    ("experiment", Experiment.id, Experiment.hypothesis, "hypothesis"),
    ("experiment", Experiment.id, Experiment.note, "note"),
    ("experiment", Experiment.id, Experiment.audience_id, "audienceId"),
    ("experiment", Experiment.id, Experiment.audience_rules, "rules"),
    ("experiment", Experiment.id, Experiment.exclusion_group, "exclusionGroup"),
    ("experiment", Experiment.id, Experiment.primary_metric, "primaryMetric"),
    ("experiment", Variant.experiment, Variant.name, "variants.name"),
    ("experiment", Variant.experiment, Variant.flow_id, "variants.flowId"),
    ("experiment", Variant.experiment, Variant.config, "variants.config"),
    ("experiment", Tally.experiment, Tally.metric, "metric"),
    ("experiment", Change.experiment, Change.settings, "history"),
]


def _mentions(user_id: str) -> Iterator[Mention]:
    """Yield where the id still stands in a text that somebody wrote.

    Other users' idempotency keys are not searched: that would read every conversion.
    """
    for resource, id, column, field in WRITTEN:
        # JSON is kept as text, in which some letters are escaped.
        wanted = _quoted(user_id)[1:-1] if isinstance(column, Json) else user_id
        query: Any = column.model.select(id).where(
            database.obj.contains(column, wanted)
        )
        for (row,) in query.distinct().order_by(id).limit(MENTIONS).tuples():
            yield Mention(resource, row, field)


COUNTS = ("participants", "conversions", "events")


def _sum(counted: Iterable[dict[str, int]]) -> dict[str, int]:
    rows = list(counted)
    return {name: sum(row[name] for row in rows) for name in COUNTS}


def _counted(experiment_ids: Iterable[str]) -> dict[Experiment, dict[str, int]]:
    """Return what each experiment counts, from its tallies and rows."""
    told = {}
    for id in experiment_ids:
        its = counted(Experiment.get_by_id(id))
        tallies = its.tallies.values()
        figures = (
            sum(its.participants.values()),
            sum(tally.users for tally in tallies),
            sum(tally.events for tally in tallies),
        )
        told[its.experiment] = dict(zip(COUNTS, figures, strict=True))
    return told
