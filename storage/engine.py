"""The database that the present thread works with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import peewee

if TYPE_CHECKING:
    from storage.sqlite import Sqlite

Row = TypeVar("Row")


class NotReady(Exception):
    """The database cannot be served as it is; the message says what to do."""


class Entered(NamedTuple):
    """A database that was entered, and what had been entered before it."""

    database: Sqlite
    before: Entered | None


_entered: ContextVar[Entered | None] = ContextVar("_entered", default=None)


def enter(entered: Sqlite) -> None:
    """Make every query of this thread go to this database, until `leave`."""
    _entered.set(Entered(entered, _entered.get()))


def leave() -> None:
    """Go back to the database that was used before the last `enter`."""
    last = _entered.get()
    _entered.set(last and last.before)


@contextmanager
def using(entered: Sqlite) -> Iterator[Sqlite]:
    """Make every query inside the block go to this database.

    It holds for this thread alone: another one enters the database itself.
    """
    enter(entered)
    try:
        yield entered
    finally:
        leave()


class Current(peewee.DatabaseProxy):
    """The database that was entered last: an app enters its own with its context.

    The tables belong to it, so that two apps in one process have two databases.
    """

    def __init__(self) -> None:
        self._callbacks: list[Callable[[Any], Any]] = []

    @property
    def obj(self) -> Sqlite:
        last = _entered.get()
        if last is None:
            raise RuntimeError(
                "No database was entered. Each app has its own: work inside "
                "`with app.app_context():`."
            )
        return last.database


database = Current()


def streamed(rows: Iterator[Row]) -> Iterator[Row]:
    """Return *rows* so that each is read from the database that is current now.

    A streamed answer is read after its request's context has ended.
    """
    here = database.obj
    end: Any = object()

    def following() -> Row:
        with using(here):
            return next(rows, end)

    return iter(following, end)


def connect() -> None:
    """Open the database, anew where the open file is no longer the one at its path."""
    database.obj.open()


def identity() -> tuple[int, int] | None:
    """Return what tells the file at the database's path from any other."""
    return database.obj.identity()
