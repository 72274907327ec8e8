"""The erasure of a person, which changes no result."""

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


class Totals(NamedTuple):
    """The counts of an experiment, or of several, over all metrics."""

    participants: int
    conversions: int
    events: int


class Erased(NamedTuple):
    """The totals of one experiment before a person was erased, and after."""

    experiment_id: str
    before: Totals
    after: Totals


class Mention(NamedTuple):
    """A text that somebody wrote and that still contains the id."""

    resource: str
    id: str
    field: str


class Erasure(NamedTuple):
    """The result of an erasure, and whether the file and its log are clean."""

    before: Totals
    after: Totals
    experiments: list[Erased]
    mentions: list[Mention]
    file_rewritten: bool
    log_emptied: bool


def erase(user_id: str, by: str) -> Erasure:
    """Replace a user id by a tombstone everywhere, in one transaction.

    Rows and tallies stay, so no count changes. Their idempotency keys are removed,
    because they may contain the id, and so are overrides. Texts that somebody wrote
    stay as they are, and the answer lists them. Erasing again, or an unknown user,
    changes nothing and empties the write-ahead log again.
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
    """Remove a user id from all rules; return the experiments whose rules had it."""
    experiments = set()
    for table, column in (
        (Audience, Audience.rule_tree),
        (Experiment, Experiment.audience_rules),
    ):
        # Rules are stored as text; only those that contain the id are read.
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

# Free texts: the resource, its id, the column, and the name on the wire.
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
    """Yield the texts that somebody wrote and that still contain the id.

    The idempotency keys of other users are not searched, because that would read every
    conversion.
    """
    for resource, id, column, field in WRITTEN:
        # JSON is stored as text, in which some letters are escaped.
        wanted = _quoted(user_id)[1:-1] if isinstance(column, Json) else user_id
        query: Any = column.model.select(id).where(
            database.obj.contains(column, wanted)
        )
        for (row,) in query.distinct().order_by(id).limit(MENTIONS).tuples():
            yield Mention(resource, row, field)


def _sum(totals: Iterable[Totals]) -> Totals:
    rows = list(totals)
    return Totals(
        sum(row.participants for row in rows),
        sum(row.conversions for row in rows),
        sum(row.events for row in rows),
    )


def _counted(experiment_ids: Iterable[str]) -> dict[Experiment, Totals]:
    """Return the totals of each experiment, from its tallies."""
    totals = {}
    for id in experiment_ids:
        counts = counted(Experiment.get_by_id(id))
        tallies = counts.tallies.values()
        totals[counts.experiment] = Totals(
            sum(counts.participants.values()),
            sum(tally.users for tally in tallies),
            sum(tally.events for tally in tallies),
        )
    return totals
