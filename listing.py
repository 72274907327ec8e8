"""The list of the experiments: a page of it, and how many there are."""

from __future__ import annotations

from collections.abc import Iterator
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

MOST_TOTALS = 1_000  # that a process remembers; a database has at most ten

LONGEST_PAGE = 100

TIME = Utc()


def experiments_page(
    page: Page, status: str | None, archived: bool, search: str | None = None
) -> Listing:
    """Return a page of experiments, newest first.

    A search matches a part of the key or the name, in any case.

    A walk by cursor shows the experiments that matched the filters when the walk
    began, each with its present values.
    """

    @cache
    def found(fence: Fence | None) -> list[str]:
        return _found(search or "", fence)

    def query(fence: Fence | None) -> Any:
        rows = _matching(fence, status, archived)
        if search:
            rows = rows.where(database.obj.among(Experiment.id, found(fence)))
        return rows

    now = utcnow()

    def number() -> int:
        return total(status, archived, now)

    def first(most: int, offset: int) -> list[Experiment]:
        state = _state(status, TIME.db_value(now) or 0)
        listed = LISTED[bool(status), archived]
        return listed.rows(Experiment, *state, most, offset)

    order = (Experiment.created_at, Experiment.id)
    filters = ("experiments", status, archived, search)
    # What is composed once knows no search.
    quick = (None, None) if search else (number, first)
    listing = page.of(query, order, filters, Change.fence, *quick)
    _read_variants(listing.rows)
    return listing


def _matching(fence: Fence | None, status: str | None, archived: bool) -> Any:
    """Return the query of the experiments that the filters let through at a fence."""
    rows = Experiment.select()
    if fence:
        rows = rows.where(~_was_made_after(fence))
    if status:
        rows = rows.where(_status_as_of(fence) == status)
    if not archived:
        archived_at = _column_as_of(fence, Experiment.archived_at)
        rows = rows.where(archived_at.is_null())
    return rows


def _read_variants(experiments: list[Any]) -> None:
    """Give the experiments their variants, in one statement for all of them."""
    variants: dict[str, list[Variant]] = {row.id: [] for row in experiments}
    rows: list[Any] = _variants_of(len(variants)).rows(Variant, *variants)
    for variant in rows:
        variants[variant.experiment_id].append(variant)
    for row in experiments:
        row._variants = variants[row.id]


def _found(search: str, fence: Fence | None) -> list[str]:
    """Return the ids of the experiments that a search matched at the fence, or now.

    Python compares, because neither engine folds the case of all letters by itself.
    """
    wanted = search.casefold()
    columns = Experiment.key, Experiment.name
    rows: Any = Experiment.select(
        Experiment.id, *(_column_as_of(fence, column) for column in columns)
    ).tuples()
    if fence:  # what was made later had no name then
        rows = rows.where(~_was_made_after(fence))
    return [row[0] for row in rows if any(wanted in one.casefold() for one in row[1:])]


def all_of(status: str | None, archived: bool) -> Iterator[Experiment]:
    """Yield the experiments of all pages, newest first."""
    page: Page | None = Page(limit=LONGEST_PAGE)
    while page:
        read = experiments_page(page, status, archived)
        yield from read.rows
        page = Page(limit=LONGEST_PAGE, cursor=read.next) if read.next else None


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
    here = database.obj
    changed = Change.select().where(
        Change.experiment == Experiment.id,
        Change.id > fence.change,
        here.has_pair(Change.settings, column.name),
    )
    value = here.first_of_pair(Change.settings, column.name)
    if isinstance(column, Utc):
        value = value.cast("BIGINT")
    before = changed.select(value).order_by(Change.id).limit(1)
    return Case(None, [(fn.EXISTS(changed), before)], column)


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


def _part(mark: Any, has_status: bool, archived: bool, *columns: Any) -> Any:
    """Return the query of columns of the experiments that the filters let through."""
    rows = Experiment.select(*columns)
    if has_status:
        over = (Experiment.status == mark) & (Experiment.end_date <= mark)
        state = Case(None, [(over, mark)], Experiment.status)
        rows = rows.where(state == mark)
    if not archived:
        rows = rows.where(Experiment.archived_at.is_null())
    return rows


def _listed(has_status: bool, archived: bool) -> Statement:
    """Return the statement for a part of the experiments, newest first."""

    def query(mark: Any) -> Any:
        rows = _part(mark, has_status, archived)
        order = (Experiment.created_at.desc(), Experiment.id)
        return rows.order_by(*order).limit(mark).offset(mark)

    return Statement(query)


def _counted(has_status: bool, archived: bool) -> Statement:
    """Return the statement for the revision, the number, and the next end date.

    The last two are null where the revision is the known one: the database counts only
    where what is remembered does not hold.
    """

    def query(mark: Any) -> Any:
        def unless_known(value: Any) -> Case:
            is_known = (Identity.id == mark) & (Identity.revision == mark)
            return Case(None, [(is_known, SQL("NULL"))], value)

        next_end: Any = SQL("NULL")
        number = _part(mark, has_status, archived, fn.COUNT(SQL("*")))
        if has_status:
            next_end = Experiment.select(fn.MIN(Experiment.end_date)).where(
                Experiment.status == mark, Experiment.end_date > mark
            )
        return Identity.select(
            Identity.id, Identity.revision, unless_known(number), unless_known(next_end)
        )

    return Statement(query)


KINDS = [(status, archived) for status in (False, True) for archived in (False, True)]
"""Of a list: whether one status is wanted, and whether archived ones are."""

LISTED = {kind: _listed(*kind) for kind in KINDS}

COUNTED = {kind: _counted(*kind) for kind in KINDS}


@cache
def _variants_of(number: int) -> Statement:
    """Return the statement for the variants of so many experiments."""
    return Statement(lambda mark: Variant.of([mark] * number))


# ----------------------------------------------------------------------------
# How many there are
# ----------------------------------------------------------------------------


class Total(NamedTuple):
    """How many experiments a list has, as of a revision of a database and a time."""

    identity: str
    revision: int
    begins: int
    ends: float
    """When the next end date passes, which changes a state without a write."""
    number: int


_known: dict[Any, Total] = {}


def total(status: str | None, archived: bool, now: datetime) -> int:
    """Return how many experiments there are, counted once for each revision.

    In the transaction of the list, it is the number of the list's own moment.
    """
    moment = TIME.db_value(now) or 0
    # A restored backup is another file, and may have the same revision.
    place = database.obj.opened(), status, archived
    known = _known.get(place)
    holds = known is not None and known.begins <= moment < known.ends
    remembered = known[:2] if known and holds else (None, None)
    values = (*remembered, *_state(status, moment), *remembered)
    if status:
        values = (*values, RUNNING, moment)
    ((identity, revision, number, end),) = COUNTED[bool(status), archived](*values)
    if known and number is None:
        return known.number
    if len(_known) >= MOST_TOTALS:
        _known.clear()
    _known[place] = Total(
        identity, revision, moment, inf if end is None else end, number
    )
    return int(number)


def _state(status: str | None, moment: int) -> tuple[Any, ...]:
    """Return the values of the condition that an experiment has this status now."""
    return (RUNNING, moment, STOPPED, status) if status else ()
