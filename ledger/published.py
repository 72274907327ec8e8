"""What clients need to decide by themselves: the definitions, and the overrides."""

from __future__ import annotations

from hashlib import sha256
from typing import Any, NamedTuple

from ledger import standing
from ledger.standing import Started
from models import Change, Identity, Override
from storage.table import Statement
from targeting.decision import RUNNING

MOST = 1_000  # experiments in one answer

PLACE = Statement(lambda _: Identity.select(Identity.id, Identity.revision))

LATEST = Statement(
    lambda mark: (
        Change.select(Change.id, Change.at).order_by(Change.id.desc()).limit(mark)
    )
)


class Published(NamedTuple):
    """The experiments that clients are told of, and how many are left out."""

    experiments: list[Started]
    omitted: int


def revision() -> str:
    """Return a text that is another one after each change of what is published.

    A database that was restored from a backup may come to a number that it had before.
    The last entry of the history tells the two apart.
    """
    read = [*PLACE(), *LATEST(1)]
    return sha256(repr(read).encode()).hexdigest()[:32]


def published() -> Published:
    """Return the experiments that have started, at most 1,000 of them.

    Those that decide for new users come first, and among them the newest. So the
    oldest of those that enrol nobody are the first to be left out.
    """
    newest_first = list(reversed(standing.started()))
    newest_first.sort(key=lambda one: not _decides(one))
    return Published(newest_first[:MOST], max(0, len(newest_first) - MOST))


def _decides(one: Started) -> bool:
    return bool(one.definition.winner) or one.definition.status == RUNNING


def overrides_of(one: Started) -> list[tuple[str, str]]:
    """Return each user with an override in the experiment, and the forced variant."""
    if not one.has_overrides:
        return []
    rows: Any = Override.select(Override.user_id, Override.variant).where(
        Override.experiment == one.definition.id
    )
    return list(rows.tuples())
