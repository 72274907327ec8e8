"""The SQLite engine: locks, errors, settings, maintenance."""

from __future__ import annotations

import json
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from datetime import datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import peewee
from peewee import SQL, fn

from storage import migrations
from storage.columns import EXACT, utcnow
from storage.engine import (
    RESERVED,
    Engine,
    Item,
    NotReady,
    Refused,
    Shape,
    Trouble,
    Value,
    using,
)
from storage.files import alone, driver, log_of
from storage.shape import shape
from storage.turns import Group, Turns

PATIENCE = 5  # seconds that a statement waits for others

IDLE = 10  # seconds after which a connection that nobody used is closed

SETTINGS: dict[str, Any] = {
    "timeout": PATIENCE,
    "lock_type": "IMMEDIATE",  # writers queue; a deferred one fails at once
    "pragmas": {
        "synchronous": "full",  # what was acknowledged survives a power cut
        "foreign_keys": 1,
        "journal_size_limit": 64 * 1024 * 1024,
        "secure_delete": 1,
    },
}

# Seconds until a lock is tried again. Most are held for a few times that.
RETRY = 0.0003

STEPS = 100_000  # instructions of SQLite between two reports of a progress

SMALL = 32 * 1024 * 1024  # bytes that are written anew well within a second

# Below, two processes that write to one WAL file can lose a commit (the WAL-reset
# bug, https://sqlite.org/wal.html#walresetbug); these branches have the mend.
FIXED = (3, 51, 3)

MENDED = ((3, 44, 6), (3, 50, 7))

TROUBLES = {
    "BUSY": Trouble.BUSY,
    "PROTOCOL": Trouble.BUSY,
    "FULL": Trouble.FULL,
    "READONLY": Trouble.READ_ONLY,
    "IOERR": Trouble.IO,
    "CORRUPT": Trouble.DAMAGED,
    "NOTADB": Trouble.DAMAGED,
    "CANTOPEN": Trouble.GONE,
}
"""SQLite's names of errors, without SQLITE_ before and details behind."""


def error_name(error: BaseException | None) -> str | None:
    """Return SQLite's name of an error, such as SQLITE_FULL.

    The last error may come from a rollback, and SQLITE_ERROR is unspecific; then the
    error before it is used.
    """
    name = None
    while error is not None:
        refusal = error.error_name if isinstance(error, Refused) else None
        source = getattr(error, "orig", error)
        latest = refusal or getattr(source, "sqlite_errorname", None)
        if latest not in (None, "SQLITE_ERROR"):
            return str(latest)
        name, error = latest or name, error.__context__
    return name


def exact_sum(left: str | None, right: str | None) -> str | None:
    """Return the sum of two decimals, all as they are stored; null if one is null."""
    if left is None or right is None:
        return None
    return format(EXACT.add(Decimal(left), Decimal(right)), "f")


class Spare(NamedTuple):
    """A connection that no thread uses, the file that it is of, and since when."""

    connection: Any
    file: tuple[int, int] | None
    since: float


class Sqlite(Engine, peewee.SqliteDatabase):
    """SQLite with a queue before its write lock.

    SQLite's own wait polls more and more slowly, so that under load some writers wait
    for seconds. Here threads take turns, and the first one tries again and again until
    its time is over.
    """

    migrations = migrations.SQLITE
    field_types = {**peewee.SqliteDatabase.field_types, "EXACT": "TEXT"}

    def __init__(self, file: Path | None, options: str, **settings: Any) -> None:
        self.file = file
        self._path = file and str(file)
        self.turns = Turns()
        self._group = Group(self.turns)
        self.patience: float = PATIENCE
        self._opened = threading.local()  # which file this thread's handle is of
        self._spare: deque[Spare] = deque()
        self._spare_lock = threading.Lock()
        # The file is opened as a URI, whose options are SQLite's.
        path = ":memory:" if file is None else f"file:{quote(str(file))}?{options}"
        # A connection goes from thread to thread; one at a time uses it.
        super().__init__(path, uri=True, check_same_thread=False, **settings)
        self.register_function(exact_sum, "exact_sum", 2)
        _databases.add(self)

    @classmethod
    def at(cls, file: Path | None) -> Sqlite:
        """Return the database in this file, or in memory."""
        # mode=rw: a missing database is an error, never a new and empty one.
        return cls(file, "mode=rw", **SETTINGS)

    @classmethod
    def copy_at(cls, file: Path) -> Sqlite:
        """Return the database in a file that does not change, for reading."""
        # A file from elsewhere runs no function from within its schema.
        unsafe = {"trusted_schema": 0}
        return cls(file.absolute(), "mode=ro&immutable=1", pragmas=unsafe)

    def identity(self) -> tuple[int, int] | None:
        if self._path is None:
            return None
        try:
            status = os.stat(self._path)  # noqa: PTH116 - a Path costs twice as much
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino

    def shut(self) -> None:
        self.close()
        while spare := self._unspare():
            spare.connection.close()

    def open(self) -> None:
        # Asked before: if the file is replaced meanwhile, the next call notices it.
        try:
            file = self.identity()
        except OSError:  # SQLite says why it cannot be opened
            file = None
        if not self._state.closed:
            if file == self.opened():
                return
            self.close()
        while spare := self._unspare():
            if file is not None and spare.file == file:
                self._state.set_connection(spare.connection)
                break
            spare.connection.close()
        else:
            self.connect()
        self._opened.file = file

    def lend(self) -> None:
        """Leave this thread's connection to the next thread that opens the database.

        Each one keeps prepared statements and pages, up to 3 MiB. The one that was used
        last is used next, and those that no request needed are closed. If every thread
        kept its own, the memory of a process would grow for hours.
        """
        if self._state.closed or self.file is None:  # in memory, it is the database
            return
        connection, now = self._state.conn, time.monotonic()
        if self.in_transaction() or connection.in_transaction:
            return  # this thread has still to end it
        self._state.reset()
        with self._spare_lock:
            self._spare.append(Spare(connection, self.opened(), now))
            is_idle = self._spare[0].since < now - IDLE
            idle = self._spare.popleft() if is_idle else None
        if idle:
            idle.connection.close()

    def _unspare(self) -> Spare | None:
        with self._spare_lock:
            return self._spare.pop() if self._spare else None

    def opened(self) -> tuple[int, int] | None:
        return getattr(self._opened, "file", None)

    # Transactions.

    def serve(self, threads: int) -> None:
        self.turns.most = max(1, threads - RESERVED)

    def begin(self, lock_type: str | None = None) -> None:
        if lock_type == "DEFERRED":  # who only reads waits for nobody
            super().begin(lock_type)
            return
        if self.damaged:
            raise Refused("CORRUPT", "The database was found damaged.")
        connection = self.connection()
        deadline = self._deadline()
        self.turns.take(deadline - time.monotonic())
        try:
            # A call of the driver: a PRAGMA would be a statement in each transaction.
            connection.set_busy_timeout(0)
            try:
                while not self._begun(deadline):
                    time.sleep(RETRY)
            finally:
                connection.set_busy_timeout(PATIENCE)
        except BaseException:
            self.turns.give()
            raise

    def _deadline(self) -> float:
        """Return until when this thread waits for a transaction to begin."""
        known: float | None = getattr(self._opened, "deadline", None)
        return known or time.monotonic() + self.patience

    def _begun(self, deadline: float) -> bool:
        try:
            super().begin()
        except peewee.OperationalError as error:
            if error_name(error) != "SQLITE_BUSY" or time.monotonic() > deadline:
                raise
            return False
        return True

    def commit(self) -> None:
        super().commit()  # where it fails, peewee rolls back
        self.turns.give()

    def rollback(self) -> None:
        try:
            # After some errors SQLite has done so itself; a second time would
            # raise, and hide what had happened.
            if self.connection().in_transaction:
                super().rollback()
        finally:
            self.turns.give()

    def write(self, work: Callable[[list[Item]], Sequence[Value]], item: Item) -> Value:
        if self.file is None:  # in memory, each thread has a database of its own
            with self.atomic():
                return work([item])[0]
        deadline = time.monotonic() + self.patience
        job = self._group.join(work, item, self.opened(), deadline)
        if job.leads:
            self._opened.deadline = job.deadline
            try:
                self._group.lead(job, self.atomic)
            finally:
                self._opened.deadline = None
        outcome: Value = job.outcome()
        return outcome

    def beside(self, work: Callable[[], Value]) -> Value:
        return self.alone(work)  # there is one writer at a time

    def closed_to_writers(self) -> AbstractContextManager[Any]:
        transaction: AbstractContextManager[Any] = self.atomic()
        return transaction

    def snapshot(self) -> AbstractContextManager[Any]:
        transaction: AbstractContextManager[Any] = self.transaction("DEFERRED")
        return transaction

    def stillness(self) -> AbstractContextManager[Any]:
        return self.snapshot()  # times and ids are in the order of the commits

    def now(self) -> datetime:
        return utcnow()

    @property
    def slot(self) -> int:
        return 0

    def new_ids(self, table: type[peewee.Model], number: int) -> Sequence[int]:
        last = table.select(fn.MAX(table._meta.primary_key)).scalar() or 0
        return range(last + 1, last + 1 + number)

    def follow_ids(self, table: type[peewee.Model]) -> None:
        pass  # `new_ids` looks at the largest one itself

    def run(self, text: str, values: Sequence[Any]) -> Any:
        return self.connection().execute(text, values)

    def stream(self, query: Any) -> Iterator[Any]:
        return iter(query.iterator())

    # Troubles.

    def error_name(self, error: BaseException | None) -> str | None:
        return error_name(error)

    def trouble(self, error: BaseException | None) -> Trouble | None:
        name = error_name(error)
        if name is None:
            return None
        kind = name.removeprefix("SQLITE_").partition("_")[0]
        return TROUBLES.get(kind, Trouble.ERROR)

    def can_be_written(self) -> bool:
        # SQLite never writes through handles that were opened when it could not be.
        if self.file is None:
            return True
        real = self.file.resolve()  # its log lies beside the file, not beside a link
        files = [real.parent, *real.parent.glob(f"{real.name}*")]
        return all(os.access(file, os.W_OK) for file in files)

    # A database made and verified.

    @contextmanager
    def creating(self) -> Iterator[None]:
        with alone(self.file):
            if self.file is not None and not self.file.exists():
                self.file.touch(mode=0o600)
            yield

    def prepare(self) -> None:
        self.pragma("journal_mode", "wal")

    @contextmanager
    def migrating(self) -> Iterator[None]:
        # A table that others refer to is replaced by dropping the old one.
        self.pragma("foreign_keys", 0)
        try:
            with self.atomic():
                yield
                if wrong := self.execute_sql("PRAGMA foreign_key_check").fetchall():
                    raise NotReady(f"foreign_key_check says {wrong[0]}.")
        finally:
            self.pragma("foreign_keys", 1)

    def refuse_unsafe_version(self) -> None:
        refuse_affected(driver.sqlite_version_info)

    def unsafe_setting(self) -> str | None:
        mode, synchronous = self.pragma("journal_mode"), self.pragma("synchronous")
        if mode in ("wal", "memory") and synchronous == 2:
            return None
        return f"journal_mode is {mode}, synchronous {synchronous}."

    def shape(self) -> Shape:
        return shape(self)

    def shape_of_new(self, tables: Sequence[type[peewee.Model]]) -> Shape:
        return _shape_of_new(tuple(tables))

    def examine_pages(self) -> None:
        self._examine("quick_check")

    def examine(self) -> None:
        self._examine("integrity_check")

    def _examine(self, check: str) -> None:
        try:
            answer = self.pragma(check)
        except peewee.DatabaseError as error:
            answer = str(error)
        if answer != "ok":
            line = str(answer).replace("\n", " ")
            raise NotReady(f"The database is damaged ({line}); restore a backup.")

    def damage(self) -> str | None:
        for check in ("integrity_check", "foreign_key_check"):
            rows = list(self.execute_sql(f"PRAGMA {check}"))
            if rows and rows != [("ok",)]:
                return f"{check} says {rows[0]}"
        return None

    def sizes(self) -> tuple[int, int]:
        if self.file is None:
            return 0, 0
        files = self.file, log_of(self.file)
        database, log = (one.stat().st_size if one.exists() else 0 for one in files)
        return database, log

    # The file: copied, and written anew.

    def copy_into(self, file: Path) -> None:
        with closing(driver.connect(str(file))) as copy:
            self.connection().backup(copy)

    def empty_log(self) -> bool:
        """Move the write-ahead log into the database and empty it; tell if that worked.

        Until then it contains old pages. A reader can prevent it, and is not waited for
        long, because writers wait meanwhile.
        """
        self.pragma("busy_timeout", 500)
        try:
            busy, *_ = self.execute_sql("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            self.connection().set_busy_timeout(PATIENCE)
        return not busy

    def write_anew(self, progress: Callable[[int], object] | None = None) -> bool:
        """Rewrite every page; tell if it worked or the database was too busy.

        When SQLite moves rows between pages, it may leave copies in unused parts of a
        page, which secure_delete does not overwrite. New pages have none. Writers wait
        meanwhile, and memory must hold the database once.
        """
        if progress:
            # What the handler returns would end the statement, unless it is 0.
            self.connection().set_progress_handler(lambda: progress(1) and 0, STEPS)
        try:
            self.execute_sql("VACUUM")
        except peewee.OperationalError as error:
            if error_name(error) == "SQLITE_BUSY":
                return False
            raise
        finally:
            self.connection().set_progress_handler(None, 0)
        return True

    def clean(self) -> tuple[bool, bool]:
        """Remove copies of overwritten content; tell if file and log have none left.

        A large file is left to `write_anew` at a better time.
        """
        size = self.pragma("page_count") * self.pragma("page_size")
        return size <= SMALL and self.write_anew(), self.empty_log()

    # Expressions.

    def contains(self, column: peewee.Field, text: str) -> peewee.Expression:
        return fn.INSTR(column, text) > 0

    def among(self, column: peewee.Field, texts: Sequence[str]) -> Any:
        listed = SQL("IN (SELECT value FROM json_each(?))", [json.dumps(texts)])
        return peewee.NodeList((column, listed))

    def plus(self, left: Any, right: Any) -> Any:
        return fn.exact_sum(left, right)

    def earlier(self, left: Any, right: Any) -> Any:
        return fn.MIN(left, right)

    def later(self, left: Any, right: Any) -> Any:
        return fn.MAX(left, right)

    def first_of_pair(self, column: peewee.Field, name: str) -> Any:
        return fn.json_extract(column, f"$.{name}[0]").cast("TEXT")

    def has_pair(self, column: peewee.Field, name: str) -> Any:
        return fn.json_type(column, f"$.{name}").is_null(False)


@cache
def _shape_of_new(tables: tuple[type[peewee.Model], ...]) -> Shape:
    with using(Sqlite(None, "")) as new:
        new.create_tables(tables)
        made = new.shape()
        new.close()
    return made


_databases: weakref.WeakSet[Sqlite] = weakref.WeakSet()


def _close_before_fork() -> None:
    """Close what this thread has open and what is spare, even if one close fails."""
    with ExitStack() as stack:
        for one in tuple(_databases):
            stack.callback(one.shut)


# SQLite's locks do not survive a fork: a handle that is open in the parent makes
# the child lose what it was told is written. So none ever is.
os.register_at_fork(before=_close_before_fork)


def refuse_affected(version: tuple[int, ...]) -> None:
    """Raise NotReady if this version of SQLite can lose a commit."""
    mended = any(version[:2] == fix[:2] and version >= fix for fix in MENDED)
    if version < FIXED and not mended:
        number = ".".join(map(str, version))
        raise NotReady(f"SQLite {number} can lose commits; install pysqlite3 0.6.1.")
