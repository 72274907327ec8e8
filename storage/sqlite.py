"""SQLite: its locks, its files, its names for what goes wrong."""

from __future__ import annotations

import fcntl
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import peewee
from playhouse import db_url

from storage.engine import NotReady, database

SQLITE: dict[str, Any] = {
    "timeout": 5,
    "lock_type": "IMMEDIATE",  # writers queue; a deferred one fails at once
    "pragmas": {
        "synchronous": "full",  # what was acknowledged survives a power cut
        "foreign_keys": 1,
        "journal_size_limit": 64 * 1024 * 1024,
        "secure_delete": 1,
    },
}

# Below, two processes that write to one WAL file can lose a commit (the WAL-reset
# bug, https://sqlite.org/wal.html#walresetbug); these branches have the mend.
SQLITE_FIXED = (3, 51, 3)

SQLITE_MENDED = ((3, 44, 6), (3, 50, 7))

# Troubles that may pass while the service runs: it serves what it can meanwhile.
PASSING = (
    *("SQLITE_BUSY", "SQLITE_FULL", "SQLITE_READONLY"),
    *("SQLITE_CANTOPEN", "SQLITE_IOERR", "SQLITE_PROTOCOL"),
)


class Refused(peewee.OperationalError):
    """A write that was not tried; it has the engine's name of the reason."""

    def __init__(self, name: str, message: str) -> None:
        self.sqlite_errorname = name
        super().__init__(message)


def trouble(error: BaseException | None) -> str | None:
    """Return the engine's own name of what went wrong, such as SQLITE_FULL.

    The last error may be one of tidying up, and SQLITE_ERROR says nothing; then
    the one before it is asked.
    """
    name = None
    while error is not None:
        told = getattr(getattr(error, "orig", error), "sqlite_errorname", None)
        if told not in (None, "SQLITE_ERROR"):
            return str(told)
        name, error = told or name, error.__context__
    return name


class Turns:
    """Whose turn it is to write, of this process's threads: who came first.

    The first in the line has the turn. At most *most* stand in it: the threads
    that are left always find the time to read, and to say that they live.
    """

    def __init__(self) -> None:
        self.most: float = float("inf")
        self._lock = threading.Lock()
        self._line: deque[tuple[int, threading.Lock]] = deque()

    def take(self, seconds: float) -> None:
        """Wait for the turn; raise Refused where that takes too long."""
        turn = threading.Lock()
        turn.acquire()
        place = threading.get_ident(), turn
        with self._lock:
            if len(self._line) >= self.most:
                raise Refused("SQLITE_BUSY", "Too many writers wait already.")
            self._line.append(place)
            if len(self._line) == 1:
                return
        if turn.acquire(timeout=seconds):
            return
        with self._lock:
            if self._line[0] is not place:  # else it came at the last moment
                self._line.remove(place)
                raise Refused("SQLITE_BUSY", "The other writers took too long.")

    def give(self) -> None:
        """Let the next one write, if this thread has the turn."""
        with self._lock:
            if self._line and self._line[0][0] == threading.get_ident():
                self._line.popleft()
                if self._line:
                    self._line[0][1].release()


class Sqlite(peewee.SqliteDatabase):
    """SQLite with a line before its write lock.

    SQLite's own wait is a poll that slows down, and under load the unlucky wait
    for seconds. Here threads take turns, and the one whose turn it is asks every
    millisecond, for as long as busy_timeout says from when it came.
    """

    def __init__(self, file: Path | None, options: str, **settings: Any) -> None:
        self.file = file
        self.turns = Turns()
        self.probe, self.damaged = Probe(), False
        self._opened = threading.local()  # which file this thread's handle is of
        # The file is opened as a URI, whose options are SQLite's.
        path = ":memory:" if file is None else f"file:{quote(str(file))}?{options}"
        super().__init__(path, uri=True, **settings)
        _databases.add(self)

    def identity(self) -> tuple[int, int] | None:
        """Return what tells the file at the database's path from any other."""
        if self.file is None:
            return None
        try:
            found = self.file.stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def open(self) -> None:
        """Open it, anew where the open file is no longer the one at its path."""
        if not self.is_closed() and self.identity() != self._opened_file():
            self.close()
        if self.connect(reuse_if_open=True):
            self._opened.file = self.identity()

    def _opened_file(self) -> tuple[int, int] | None:
        return getattr(self._opened, "file", None)

    def begin(self, lock_type: str | None = None) -> None:
        if lock_type == "DEFERRED":  # who only reads waits for nobody
            super().begin(lock_type)
            return
        if self.damaged:
            raise Refused("SQLITE_CORRUPT", "The database was found damaged.")
        patience = int(self.pragma("busy_timeout"))
        deadline = time.monotonic() + patience / 1000
        self.turns.take(patience / 1000)
        try:
            self.pragma("busy_timeout", 0)
            try:
                while not self._begun(deadline):
                    time.sleep(0.001)
            finally:
                self.pragma("busy_timeout", patience)
        except BaseException:
            self.turns.give()
            raise

    def _begun(self, deadline: float) -> bool:
        try:
            super().begin()
        except peewee.OperationalError as error:
            if trouble(error) != "SQLITE_BUSY" or time.monotonic() > deadline:
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


class Probe:
    """Whether a write gets through: tried for real, at most once a second."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next, self._failure = 0.0, ""

    def __call__(self, write: Callable[[], Any]) -> None:
        """Raise Refused where the last try failed, by whichever thread made it."""
        if self._lock.acquire(blocking=False):
            try:
                if time.monotonic() >= self._next:
                    self._failure = self._tried(write)
                    self._next = time.monotonic() + 1
            finally:
                self._lock.release()
        if self._failure:
            raise Refused(self._failure, "A write was tried, and failed.")

    def _tried(self, write: Callable[[], Any]) -> str:
        try:
            with database.atomic():
                write()
        except peewee.DatabaseError as error:
            return trouble(error) or "SQLITE_ERROR"
        return ""


class Source(NamedTuple):
    """Where the database is: its URL, and the file if it is SQLite's."""

    url: str
    file: Path | None


def source(url: str) -> Source:
    """Return what a URL of playhouse.db_url names; raise NotReady if it is none."""
    scheme = url.partition(":")[0]
    if scheme != "sqlite":
        raise NotReady(f"DATABASE_URL starts with {scheme!r}; it must be sqlite:///….")
    path = db_url.parse(url)["database"]
    return Source(url, None if path == ":memory:" else Path(path).absolute())


def database_at(url: str) -> Sqlite:
    """Return the database at this URL; nothing is opened before it is used."""
    # mode=rw: a missing database is an error, never a new and empty one.
    return Sqlite(source(url).file, "mode=rw", **SQLITE)


def can_be_written() -> bool:
    """Tell whether the file system lets this process write the database now.

    SQLite never writes through handles that were opened when it could not be.
    """
    file = database.obj.file
    file = file and file.resolve()  # its log lies beside the file, not beside a link
    files = [file.parent, *file.parent.glob(f"{file.name}*")] if file else []
    return all(os.access(one, os.W_OK) for one in files)


_databases: weakref.WeakSet[Sqlite] = weakref.WeakSet()


def _close_before_fork() -> None:
    """Close what this thread has open of any database, also where one cannot be."""
    with ExitStack() as closing:
        for one in tuple(_databases):
            if not one.is_closed():
                closing.callback(one.close)


# SQLite's locks do not survive a fork: a handle that is open in the parent makes
# the child lose what it was told is written. So none ever is.
os.register_at_fork(before=_close_before_fork)


@contextmanager
def alone(file: Path | None) -> Iterator[None]:
    """Hold the directory's lock: of several that create at once, one does."""
    if file is None:
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    directory = os.open(file.parent, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def empty_log() -> bool:
    """Move the write-ahead log into the database and empty it; say if that worked.

    Pages of the past stand in it until then. A reader can be in the way; it is not
    waited for long, because writers wait meanwhile.
    """
    database.pragma("busy_timeout", 500)
    try:
        busy, *_ = database.execute_sql("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        database.pragma("busy_timeout", SQLITE["timeout"] * 1000)
    return not busy


SMALL = 32 * 1024 * 1024  # bytes that are written anew well within a second


def clean() -> tuple[bool, bool]:
    """Leave no copy of what was overwritten; say if the file, and the log, has none.

    A file that is large is left to `write_anew` at a better time.
    """
    size = database.pragma("page_count") * database.pragma("page_size")
    return size <= SMALL and write_anew(), empty_log()


def write_anew() -> bool:
    """Write every page anew; say if it worked, or was too busy for it.

    When SQLite moves rows from a page to another it may leave copies in the part of
    the page that is not in use, which secure_delete does not reach. New pages have
    none. Writers wait meanwhile, and memory holds the database once.
    """
    try:
        database.execute_sql("VACUUM")
    except peewee.OperationalError as error:
        if trouble(error) == "SQLITE_BUSY":
            return False
        raise
    return True


def examine(check: str) -> None:
    """Raise NotReady where SQLite finds the file damaged; every page is read.

    *check* is quick_check, or integrity_check, which also compares indexes with
    rows. A damaged page is noticed by nothing else before somebody needs it.
    """
    try:
        found = database.pragma(check)
    except peewee.DatabaseError as error:
        found = str(error)
    if found != "ok":
        told = str(found).replace("\n", " ")
        raise NotReady(f"The database is damaged ({told}); restore a backup.")


def refuse_affected(version: tuple[int, ...]) -> None:
    """Raise NotReady where this version of SQLite can lose a commit."""
    mended = any(version[:2] == fix[:2] and version >= fix for fix in SQLITE_MENDED)
    if version < SQLITE_FIXED and not mended:
        told = ".".join(map(str, version))
        raise NotReady(f"SQLite {told} can lose commits; install pysqlite3 0.6.1.")
