"""The interface of a database engine, and the database of the present thread."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import peewee

RESERVED = 4  # threads of a worker process that never wait to write

Row = TypeVar("Row")
Item = TypeVar("Item")
Value = TypeVar("Value")
Shape = dict[str, set[str]]
"""A schema: the facts of each table, index, view or trigger, as words."""


class NotReady(Exception):
    """The database cannot be served as it is; the message says what to do."""


class Trouble(Enum):
    """What kind of failure an error of the engine is."""

    BUSY = "other writers hold the database"
    FULL = "the disk is full"
    READ_ONLY = "the database cannot be written"
    IO = "the disk failed"
    DAMAGED = "the content cannot be trusted"
    GONE = "the database cannot be opened"
    ERROR = "any other error"


NEXT_STEPS = {
    Trouble.BUSY: "Another process writes to it: run the command again.",
    Trouble.FULL: "Free some space on its disk, and run the command again.",
    Trouble.READ_ONLY: "Let this user write the file and its folder.",
    Trouble.IO: "Examine its disk, or use another one.",
    Trouble.DAMAGED: "Name a database of Abacus, or restore a backup.",
    Trouble.GONE: "Check that it is there, and that this user may open it.",
}


class Overtaken(Exception):
    """Another writer came first; the work has to be done again."""


class Refused(peewee.OperationalError):
    """A write that was not tried, with the engine's own name of the reason."""

    def __init__(self, error_name: str, message: str) -> None:
        self.error_name = error_name
        super().__init__(message)


class Engine(peewee.Database, ABC):
    """A database of one engine. Nothing above `storage` knows which engine it is."""

    file: Path | None
    """The file that the database is, None where it is no file."""
    migrations: Mapping[int, str]
    """The SQL that leads from each schema version to the next one."""
    damaged = False
    """Whether damage was noticed; then nothing is written any more."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self._probe = Probe()
        super().__init__(*arguments, **settings)

    @abstractmethod
    def shut(self) -> None:
        """Close every connection that this thread may close."""

    @abstractmethod
    def open(self) -> None:
        """Open it, or reopen it if another one is at its address now."""

    @abstractmethod
    def lend(self) -> None:
        """Let another thread use this thread's connection, after a request."""

    @abstractmethod
    def identity(self) -> tuple[int, int] | None:
        """Return what distinguishes the database at this address from any other."""

    @abstractmethod
    def opened(self) -> tuple[int, int] | None:
        """Return the identity of the database that this thread has open."""

    @abstractmethod
    def write(self, work: Callable[[list[Item]], Sequence[Value]], item: Item) -> Value:
        """Return what *work* returns for an item, once it has been committed.

        *work* writes a list of items and returns a result for each. It may be given the
        items of other threads too, in any of these threads, and a second time if it
        fails. Raise Overtaken, having written nothing, if another process was in the
        way.
        """

    def alone(self, work: Callable[[], Value]) -> Value:
        """Return what *work* returns, done while nobody else writes."""
        with self.atomic():
            return work()

    @abstractmethod
    def beside(self, work: Callable[[], Value]) -> Value:
        """Return what *work* returns, done in a transaction beside those of others.

        Only rows of users and sums may be written so. If another one was in the way
        (*work* raised Overtaken, or a unique value was taken), it is done again, alone.
        """

    @abstractmethod
    def closed_to_writers(self) -> AbstractContextManager[Any]:
        """Hold a transaction beside which nobody writes, however long it takes."""

    @abstractmethod
    def snapshot(self) -> AbstractContextManager[Any]:
        """Read the database as it is at one moment; this waits for no writer."""

    @abstractmethod
    def stillness(self) -> AbstractContextManager[Any]:
        """Read the database while nobody writes.

        All rows that are written later have later times and larger ids than those
        that are there.
        """

    @abstractmethod
    def now(self) -> datetime:
        """Return the time of what the present transaction writes.

        It is one clock for all who write to the database.
        """

    @property
    @abstractmethod
    def slot(self) -> int:
        """The number under which this process adds to sums.

        A sum is stored as several rows, so that processes do not wait for each other.
        """

    @abstractmethod
    def new_ids(self, table: type[peewee.Model], number: int) -> Sequence[int]:
        """Return so many ids for new rows, in ascending order."""

    @abstractmethod
    def follow_ids(self, table: type[peewee.Model]) -> None:
        """Let the next new id follow the largest one, after rows came with their ids.

        Call it while nobody else writes.
        """

    @abstractmethod
    def run(self, text: str, values: Sequence[Any]) -> Any:
        """Return the cursor of a statement, whose values are as they are stored."""

    @abstractmethod
    def stream(self, query: Any) -> Iterator[Any]:
        """Yield the rows of a query, which need not fit into memory.

        Call it in a snapshot.
        """

    @abstractmethod
    def serve(self, threads: int) -> None:
        """Prepare for so many threads of this process, before they open anything.

        RESERVED of them never wait to write, so that they can answer everything else.
        """

    @abstractmethod
    def can_be_written(self) -> bool:
        """Tell whether this process could write the database after reopening it."""

    @abstractmethod
    def error_name(self, error: BaseException | None) -> str | None:
        """Return the engine's own name of an error, or None for any other error."""

    @abstractmethod
    def trouble(self, error: BaseException | None) -> Trouble | None:
        """Return the kind of an error of the engine, or None for any other error."""

    @property
    def title(self) -> str:
        """What a message calls it: the database, with its file if it is one."""
        return f"The database {self.file}" if self.file else "The database"

    def explained(self, error: BaseException) -> str:
        """Return an error of the engine as a line that says what to do."""
        text = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        step = NEXT_STEPS.get(self.trouble(error) or Trouble.ERROR, "")
        return f"{self.title} answers: {text}. {step}".rstrip()

    def probe(self, write: Callable[[], object]) -> None:
        """Raise Refused if writes do not work; this is tried once a second."""
        self._probe(self, write)

    @abstractmethod
    def creating(self) -> AbstractContextManager[None]:
        """Hold the lock of the one process that may create the database."""

    @abstractmethod
    def prepare(self) -> None:
        """Set the properties that a new database keeps for ever."""

    @abstractmethod
    def migrating(self) -> AbstractContextManager[None]:
        """Hold a transaction in which tables may be replaced, while nobody writes."""

    @abstractmethod
    def refuse_unsafe_version(self) -> None:
        """Raise NotReady if this version of the engine can lose a commit."""

    @abstractmethod
    def unsafe_setting(self) -> str | None:
        """Return a setting that can lose a commit, or None."""

    @abstractmethod
    def shape(self) -> Shape:
        """Return the schema of the database."""

    @abstractmethod
    def shape_of_new(self, tables: Sequence[type[peewee.Model]]) -> Shape:
        """Return the schema of a new database with these tables."""

    @abstractmethod
    def examine_pages(self) -> None:
        """Read every page; raise NotReady if one is damaged."""

    @abstractmethod
    def examine(self) -> None:
        """Read every page and compare indexes with rows; raise NotReady if damaged."""

    @abstractmethod
    def damage(self) -> str | None:
        """Return what is wrong with pages, indexes or foreign keys, or None."""

    @abstractmethod
    def sizes(self) -> tuple[int, int]:
        """Return the bytes of the database, and those of its write-ahead log.

        0 for what is not known.
        """

    @abstractmethod
    def copy_into(self, file: Path) -> None:
        """Write a copy of the database, as this transaction sees it, to a file."""

    @abstractmethod
    def empty_log(self) -> bool:
        """Remove old content from the write-ahead log; tell whether that worked."""

    @abstractmethod
    def write_anew(self, progress: Callable[[int], object] | None = None) -> bool:
        """Rewrite all content without deleted rows; tell whether that worked.

        *progress* is called with 1 again and again, where the engine allows it.
        """

    @abstractmethod
    def clean(self) -> tuple[bool, bool]:
        """Do both, `write_anew` only if it is quick; tell whether each worked."""

    @abstractmethod
    def contains(self, column: peewee.Field, text: str) -> peewee.Expression:
        """Return the condition that a column contains a text, case-sensitively."""

    @abstractmethod
    def among(self, column: peewee.Field, texts: Sequence[str]) -> Any:
        """Return the condition that a column has one of any number of texts."""

    @abstractmethod
    def plus(self, left: Any, right: Any) -> Any:
        """Return the exact sum of two columns of decimals; null if one is null."""

    @abstractmethod
    def earlier(self, left: Any, right: Any) -> Any:
        """Return the smaller one of two columns."""

    @abstractmethod
    def later(self, left: Any, right: Any) -> Any:
        """Return the larger one of two columns."""

    @abstractmethod
    def first_of_pair(self, column: peewee.Field, name: str) -> Any:
        """Return the first value, as a text, of a pair in a column with a JSON object.

        Null if the object has no pair of this name.
        """

    @abstractmethod
    def has_pair(self, column: peewee.Field, name: str) -> Any:
        """Return the condition that a column with a JSON object has this pair."""


class Probe:
    """A test whether writes work, which writes at most once a second."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next, self._failure = 0.0, ""

    def __call__(self, tried: Engine, write: Callable[[], object]) -> None:
        """Raise Refused if the last try failed, in whatever thread."""
        if self._lock.acquire(blocking=False):
            try:
                if time.monotonic() >= self._next:
                    self._failure = self._failure_of(tried, write)
                    self._next = time.monotonic() + 1
            finally:
                self._lock.release()
        if self._failure:
            raise Refused(self._failure, "A write was tried, and failed.")

    def _failure_of(self, tried: Engine, write: Callable[[], object]) -> str:
        try:
            tried.beside(write)
        except peewee.DatabaseError as error:
            return tried.error_name(error) or type(error).__name__
        return ""


class Unsettled(peewee.OperationalError):
    """A commit of which nobody knows whether it holds; it is not tried again."""


class Entered(NamedTuple):
    """A database that was entered, and the one that was entered before it."""

    database: Engine
    before: Entered | None


_entered: ContextVar[Entered | None] = ContextVar("_entered", default=None)


def enter(entered: Engine) -> None:
    """Make every query of this thread go to this database, until `leave`."""
    _entered.set(Entered(entered, _entered.get()))


def leave() -> None:
    """Go back to the database that was used before the last `enter`."""
    last = _entered.get()
    _entered.set(last and last.before)


@contextmanager
def using(entered: Engine) -> Iterator[Engine]:
    """Make every query inside the block go to this database.

    This holds only for this thread; another thread enters the database itself.
    """
    enter(entered)
    try:
        yield entered
    finally:
        leave()


class Current(peewee.DatabaseProxy):
    """The database that was entered last; an app context enters the app's own.

    All tables use it, so two apps in one process have two databases.
    """

    def __init__(self) -> None:
        self._callbacks: list[Callable[[Any], Any]] = []

    @property
    def obj(self) -> Engine:
        last = _entered.get()
        if last is None:
            raise RuntimeError(
                "No database was entered. Each app has its own: work inside "
                "`with app.app_context():`."
            )
        return last.database


database = Current()


def streamed(rows: Iterator[Row]) -> Iterator[Row]:
    """Return *rows* so that each one is read from the database that is current now.

    A streamed answer is read after its request's context has ended.
    """
    here = database.obj
    end: Any = object()

    def following() -> Row:
        with using(here):
            return next(rows, end)

    return iter(following, end)


def connect() -> None:
    """Open the database, or reopen it if another one is at its address now."""
    database.obj.open()
