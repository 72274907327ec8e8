"""Paged lists: by page number for people, by cursor for programs."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from hashlib import sha256
from itertools import takewhile
from typing import Any, NamedTuple

from peewee import Field, Value

LARGEST = 2**63 - 1  # what an integer of the database holds


class BadCursor(Exception):
    """The cursor does not belong to this list with these filters."""


class Fence(NamedTuple):
    """The moment when a walk began; later writes are beyond it."""

    change: int = 0
    """The id of the last entry in the history, which has an order of its own."""
    microseconds: int = 0
    """The time, since 1970."""


class Cursor(NamedTuple):
    """The position of a walk. Only integers, because cursors are in URLs and logs."""

    fence: Fence
    place: int
    """The value, in the ordering column, of the last row that was shown."""
    ties: int
    """How many rows of that value were shown, where more of them are to come."""
    shown: int
    total: int

    def text(self, listed: Sequence[Any]) -> str:
        """Return the cursor as a client gets it, bound to its list and filters."""
        numbers = [*self.fence, *self[1:]]
        bound = json.dumps([*listed, numbers]).encode()
        content = {"check": sha256(bound).hexdigest()[:16], "walk": numbers}
        written = json.dumps(content, separators=(",", ":")).encode()
        return urlsafe_b64encode(written).decode().rstrip("=")

    @classmethod
    def read(cls, text: str, listed: Sequence[Any]) -> Cursor:
        """Return the cursor that a client sent; raise BadCursor if it is not valid.

        It must be exactly what `text` writes for this list.
        """
        try:
            padded = text.encode("ascii") + b"=" * (-len(text) % 4)
            change, microseconds, *rest = json.loads(urlsafe_b64decode(padded))["walk"]
            cursor = cls(Fence(change, microseconds), *rest)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise BadCursor("This is not a cursor.") from error
        numbers = (*cursor.fence, *cursor[1:])
        if not all(type(n) is int and 0 <= n <= LARGEST for n in numbers):
            raise BadCursor("This is not a cursor.")
        if cursor.text(listed) != text:
            raise BadCursor("The cursor is of another list, or of other filters.")
        return cursor


class Listing(NamedTuple):
    """A page of a list, and its position."""

    rows: list[Any]
    total: int
    number: int
    limit: int
    next: str | None
    """The cursor of the rows that follow; None where there are none."""

    @property
    def pages(self) -> int:
        return -(-self.total // self.limit)


class Page(NamedTuple):
    """The requested part of a list."""

    number: int = 1
    limit: int = 20
    cursor: str | None = None

    def of(
        self,
        query: Callable[[Fence | None], Any],
        order: tuple[Field, ...],
        listed: tuple[Any, ...],
        fence: Callable[[], Fence] = Fence,
        total: Callable[[], int] | None = None,
        first: Callable[[int, int], list[Any]] | None = None,
        moment: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> Listing:
        """Return these rows of a list.

        *query* returns the list as it is now, or as it was at a fence. *order* is
        the column that says what is newest, an integer in the database, and what
        breaks its ties. *listed* names the list and its filters. *fence* returns
        the present moment, and *total* how many rows there are now, where that is
        known without counting them. *first* returns so many rows of them, from an
        offset on, where that is quicker than to compose *query*. *moment* begins a
        first page, where rows with smaller ids may be committed after a snapshot.

        A page by cursor costs the same however deep it is: it begins after the row of
        the cursor, and the first page has counted the rows.
        """
        newest = order[0]
        snapshot = newest.model._meta.database.obj.snapshot
        # The rows, their number, and the fence are of one moment.
        with (moment if moment and self.cursor is None else snapshot)():
            start = self._start(query, listed, total)
            if self.cursor is None and first:
                read = first(self.limit + 1, start.shown)
            else:
                read = list(self._rows(query, order, start).limit(self.limit + 1))
            shown, following = read[: self.limit], None
            if len(read) > len(shown):
                if self.cursor is None:  # a walk may begin here
                    start = start._replace(fence=fence())
                following = self._after(shown, read[-1], newest, start, query)
        cursor = following and following.text(listed)
        number = start.shown // self.limit + 1
        return Listing(shown, start.total, number, self.limit, cursor)

    def _start(
        self,
        query: Callable[[Fence | None], Any],
        listed: tuple[Any, ...],
        total: Callable[[], int] | None,
    ) -> Cursor:
        """Return where this page begins."""
        if self.cursor is not None:
            return Cursor.read(self.cursor, listed)
        count = total() if total else query(None).count()
        return Cursor(Fence(), 0, 0, (self.number - 1) * self.limit, count)

    def _rows(
        self,
        query: Callable[[Fence | None], Any],
        order: tuple[Field, ...],
        start: Cursor,
    ) -> Any:
        """Return the query of the rows from the start of this page on."""
        newest, *ties = order
        ordered = newest.desc(), *ties
        if self.cursor is None:
            return query(None).order_by(*ordered).offset(start.shown)
        place = Value(start.place, converter=False)
        later = newest <= place if start.ties else newest < place
        rows = query(start.fence).where(later)
        return rows.order_by(*ordered).offset(start.ties)

    def _after(
        self,
        shown: list[Any],
        following: Any,
        newest: Field,
        start: Cursor,
        query: Callable[[Fence | None], Any],
    ) -> Cursor:
        """Return the cursor after the rows that are shown."""

        def place(row: Any) -> int:
            return int(newest.db_value(getattr(row, newest.name)))

        last, ties = place(shown[-1]), 0
        if place(following) == last:
            equal = takewhile(lambda row: place(row) == last, reversed(shown))
            ties = len(list(equal))
            if ties == len(shown) and start.place == last:
                ties += start.ties
            elif ties == len(shown) and self.cursor is None:
                newer = query(None).where(newest > Value(last, converter=False))
                ties += start.shown - newer.count()
        return Cursor(start.fence, last, ties, start.shown + len(shown), start.total)
