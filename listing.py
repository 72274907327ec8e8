"""The list of the experiments: a page of it, and how many there are."""

from __future__ import annotations

import json
from datetime import datetime
from functools import cache
from math import inf
from typing import Any, NamedTuple

from peewee import SQL, Case, fn

from models import Change, Experiment, Variant
from storage.columns import Utc, utcnow
from storage.engine import database
from storage.paging import Fence, Listing, Page
from storage.schema import Identity
from storage.table import Statement
from targeting.decision import RUNNING, STOPPED

MOST_DATABASES = 100  # whose numbers of experiments a process remembers

TIME = Utc()


def experiments_page(page: Page, status: str | None, archived: bool) -> Listing:
    """Return a page of experiments, newest first.

    A walk by cursor shows the experiments that matched the filters when the walk
    began, each with its present values.
    """

    def query(fence: Fence | None) -> Any:
        rows = Experiment.select()
        if fence:
            rows = rows.where(~_was_made_after(fence))
        if status:
            rows = rows.where(_status_as_of(fence) == status)
        if not archived:
            archived_at = _column_as_of(fence, Experiment.archived_at)
            rows = rows.where(archived_at.is_null())
        return rows

    now = utcnow()

    def total() -> int:
        return population(now).number(status, archived)

    def first(most: int, offset: int) -> list[Experiment]:
        state = (RUNNING, TIME.db_value(now), STOPPED, status) if status else ()
        listed = LISTED[bool(status), archived]
        return listed.rows(Experiment, *state, most, offset)

    order = (Experiment.created_at, Experiment.id)
    filters = ("experiments", status, archived)
    listing = page.of(query, order, filters, Change.fence, total, first)
    variants: dict[str, list[Variant]] = {row.id: [] for row in listing.rows}
    rows: list[Any] = _variants_of(len(variants)).rows(Variant, *variants)
    for variant in rows:
        variants[variant.experiment_id].append(variant)
    for row in listing.rows:
        row._variants = variants[row.id]
    return listing


def _was_made_after(fence: Fence) -> Any:
    """Return the condition that an experiment's history begins after the fence.

    `created_at` cannot decide this: two experiments that are created at once may be
    written in the other order, and a clock may be set back.
    """
    return fn.EXISTS(
        Change.select(SQL("1")).where(
            Change.experiment == Experiment.id,
            Change.id > fence.change,
            Change.action.in_(["create", "duplicate"]),
        )
    )


def _column_as_of(fence: Fence | None, column: Any) -> Any:
    """Return a column's value at the fence, from the history; or now without one.

    The first change after the fence holds the value before it.
    """
    if fence is None:
        return column
    path = f"$.{column.name}"
    changed = (
        Change.select(fn.json_extract(Change.settings, path))
        .where(
            Change.experiment == Experiment.id,
            Change.id > fence.change,
            fn.json_type(Change.settings, path).is_null(False),
        )
        .order_by(Change.id)
        .limit(1)
    )
    # A pair (before, after), or a single value if nothing has changed.
    return fn.json_extract(fn.COALESCE(changed, fn.json_array(column)), "$[0]")


def _status_as_of(fence: Fence | None) -> Case:
    if fence is None:
        return Experiment._status_at(utcnow())
    status = _column_as_of(fence, Experiment.status)
    end_date = _column_as_of(fence, Experiment.end_date)
    over = (status == RUNNING) & (end_date <= fence.microseconds)
    return Case(None, [(over, STOPPED)], status)


# ----------------------------------------------------------------------------
# What is composed once
# ----------------------------------------------------------------------------


def _listed(has_status: bool, archived: bool) -> Statement:
    """Return the statement for a part of the experiments, newest first."""

    def query(mark: Any) -> Any:
        rows = Experiment.select()
        if has_status:
            over = (Experiment.status == mark) & (Experiment.end_date <= mark)
            state = Case(None, [(over, mark)], Experiment.status)
            rows = rows.where(state == mark)
        if not archived:
            rows = rows.where(Experiment.archived_at.is_null())
        order = (Experiment.created_at.desc(), Experiment.id)
        return rows.order_by(*order).limit(mark).offset(mark)

    return Statement(query)


LISTED = {
    (has_status, archived): _listed(has_status, archived)
    for has_status in (False, True)
    for archived in (False, True)
}
"""The lists, by whether one status is wanted, and whether archived ones are."""


@cache
def _variants_of(number: int) -> Statement:
    """Return the statement for the variants of so many experiments."""
    return Statement(lambda mark: Variant.of([mark] * number))


# ----------------------------------------------------------------------------
# How many there are
# ----------------------------------------------------------------------------


class Population(NamedTuple):
    """How many experiments there are, as of a revision of a database and a time."""

    identity: str
    revision: int
    begins: int
    ends: float
    """When the next end date passes, which changes a state without a write."""
    numbers: dict[tuple[str, bool], int]
    """By state, and by whether they are archived."""

    def number(self, status: str | None, archived: bool) -> int:
        """Return how many experiments a list with these filters has."""
        return sum(
            number
            for (state, is_archived), number in self.numbers.items()
            if status in (None, state) and (archived or not is_archived)
        )


def _numbers(mark: Any) -> Any:
    """Return the query of the revision, and of the numbers unless it is the known one.

    The database counts only where what is remembered does not hold.
    """
    groups = Experiment.select(
        Experiment.status.alias("status"),
        Experiment.archived_at.is_null(False).alias("archived"),
        fn.COALESCE(Experiment.end_date <= mark, SQL("0")).alias("over"),
        fn.COUNT(SQL("*")).alias("number"),
        fn.MIN(Experiment.end_date).alias("first"),
    ).group_by(SQL("1"), SQL("2"), SQL("3"))
    names = ("status", "archived", "over", "number", "first")
    group = fn.json_array(*(getattr(groups.c, name) for name in names))
    counted = groups.select_from(fn.json_group_array(group))
    is_known = (Identity.id == mark) & (Identity.revision == mark)
    numbers = Case(None, [(is_known, SQL("NULL"))], counted)
    return Identity.select(Identity.id, Identity.revision, numbers)


NUMBERS = Statement(_numbers)

_known: dict[Any, Population] = {}


def population(now: datetime) -> Population:
    """Return how many experiments there are now, counted once for each revision.

    In the transaction of the list, it is the number of the list's own moment.
    """
    # A restored backup is another file, and may have the same revision.
    place, moment = database.obj.opened(), TIME.db_value(now) or 0
    known = _known.get(place)
    holds = known is not None and known.begins <= moment < known.ends
    remembered = known[:2] if known and holds else (None, None)
    ((identity, revision, counted),) = NUMBERS(*remembered, moment)
    if known and counted is None:
        return known
    if len(_known) >= MOST_DATABASES:
        _known.clear()
    made = _known[place] = _counted(identity, revision, moment, json.loads(counted))
    return made


def _counted(identity: str, revision: int, moment: int, groups: Any) -> Population:
    numbers: dict[tuple[str, bool], int] = {}
    ends = inf
    for status, is_archived, is_over, number, first_end in groups:
        is_running = status == RUNNING
        state = STOPPED if is_running and is_over else status
        key = state, bool(is_archived)
        numbers[key] = numbers.get(key, 0) + number
        if is_running and not is_over and first_end is not None:
            ends = min(ends, first_end)
    return Population(identity, revision, moment, ends, numbers)
