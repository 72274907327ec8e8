"""The connection: where the database is, whose turn it is to write, what went wrong."""

from __future__ import annotations

import fcntl
import os
import re
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import peewee
from playhouse import db_url

Row = TypeVar("Row")


class NotReady(Exception):
    """The database cannot be served as it is; the message says what to do."""


# ----------------------------------------------------------------------------
# Which database
# ----------------------------------------------------------------------------


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


# ----------------------------------------------------------------------------
# The engine
# ----------------------------------------------------------------------------


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


class Traffic:
    """How many quick requests this process is answering now.

    Work that takes seconds lets them go first. They share one interpreter with it,
    and would wait for it at each of the twenty times that a write gives it up.
    """

    PAUSE = 0.001  # seconds; about three times as long as the work between two pauses

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.quick = 0

    def enter(self) -> None:
        """Count a quick request in."""
        with self._lock:
            self.quick += 1

    def leave(self) -> None:
        """Count it out: it was answered, or turned out to take seconds."""
        with self._lock:
            self.quick -= 1

    def pause(self) -> None:
        """Pause once if quick requests are being answered: never for long."""
        if self.quick > 0:
            time.sleep(self.PAUSE)


traffic = Traffic()  # of the process, as its interpreter is


def giving_way(rows: Iterable[Row], every: int) -> Iterator[Row]:
    """Yield the rows, and before each *every* of them let quick requests go first."""
    for number, row in enumerate(rows):
        if number % every == 0:
            traffic.pause()
        yield row


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


def connect() -> None:
    """Open the database, anew where the open file is no longer the one at its path."""
    database.obj.open()


def identity() -> tuple[int, int] | None:
    """Return what tells the file at the database's path from any other."""
    return database.obj.identity()


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


# ----------------------------------------------------------------------------
# The schema
# ----------------------------------------------------------------------------

Shape = dict[str, set[str]]  # the facts of each thing in a schema, as words
# Tables of Litestream, which replicates the file; nothing of ours refers to them.
REPLICATION = ("_litestream_lock", "_litestream_seq")
COMMENT = re.compile(r"--[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)
TOKEN = re.compile(
    rf"""{COMMENT.pattern}|'(?:[^']|'')*'|"(?:[^"]|"")*"|\w+|[^\w\s]""", re.DOTALL
)


def shape() -> Shape:
    """Return what the schema has: each table with its facts, and all else by name.

    The text of a migrated schema differs from that of a new one, so columns and
    rules stand in no order here, and spaces do not count. What SQLite keeps for
    itself, such as its statistics, is left out.
    """
    found: Shape = {}
    texts: dict[str, str] = {}
    master = "SELECT type, name, tbl_name, sql FROM main.sqlite_master"
    for kind, name, table, text in database.execute_sql(master).fetchall():
        texts[name] = text or ""
        if kind == "trigger":
            found[f"trigger {name!r} of {table!r}"] = set()
    for schema, name, kind, _, rowless, strict in _pragma("table_list"):
        # A virtual table stands for its shadows.
        if schema != "main" or name.startswith("sqlite_") or kind == "shadow":
            continue
        facts: set[str] = set()
        if kind == "table":
            if name in REPLICATION and not _foreign_keys(name):
                continue
            facts = _columns(name) | _indexes(name, texts) | _foreign_keys(name)
            facts |= _rules(texts[name])
            facts |= {"option WITHOUT ROWID"} if rowless else set()
            facts |= {"option STRICT"} if strict else set()
        kind = "virtual table" if kind == "virtual" else kind
        found[f"{kind} {name!r}"] = facts
    return found


def _pragma(name: str, *arguments: str) -> list[Any]:
    places = ", ".join("?" * len(arguments))
    query = f"SELECT * FROM pragma_{name}({places})"  # noqa: S608  # names of ours
    return list(database.execute_sql(query, arguments).fetchall())


def _columns(table: str) -> set[str]:
    return {
        f"column {name!r} {kind}"
        + (" NOT NULL" if required else "")
        + ("" if default is None else f" DEFAULT {default}")
        + (f" PRIMARY KEY {key}" if key else "")
        + (" GENERATED" if hidden else "")
        for _, name, kind, required, default, key, hidden in _pragma(
            "table_xinfo", table, "main"
        )
    }


def _indexes(table: str, texts: dict[str, str]) -> set[str]:
    found = set()
    for _, index, is_unique, origin, is_partial in _pragma("index_list", table, "main"):
        columns = [
            f"{name!r}"
            + (" DESC" if is_descending else "")
            + ("" if collation == "BINARY" else f" COLLATE {collation}")
            for _, _, name, is_descending, collation, is_key in _pragma(
                "index_xinfo", index, "main"
            )
            if is_key
        ]
        fact = f"({', '.join(columns)})"
        if origin == "c":  # else SQLite made it, under a name of its own
            fact = f"index {index!r} {fact}"
        if is_partial or "None" in columns:  # a condition, or an expression
            fact += f": {' '.join(_tokens(texts[index]))}"
        found.add(f"{'unique ' if is_unique else ''}{fact}")
    return found


def _foreign_keys(table: str) -> set[str]:
    keys: dict[int, list[Any]] = {}
    for key, *told in _pragma("foreign_key_list", table, "main"):
        keys.setdefault(key, []).append(told)
    found = set()
    for parts in keys.values():
        columns = ", ".join(
            f"{ours!r} = {theirs!r}" for _, _, ours, theirs, *_ in parts
        )
        _, other, _, _, *actions = parts[0]
        found.add(f"foreign key to {other!r} ({columns}) {' / '.join(actions)}")
    return found


def _tokens(text: str) -> list[str]:
    """Return the words and signs of SQL; only what is quoted keeps its case."""
    return [
        token if token[0] in "'\"" else token.lower()
        for token in TOKEN.findall(text)
        if not COMMENT.fullmatch(token)
    ]


def _rules(text: str) -> set[str]:
    """Return the checks of a table, and the clauses that no pragma tells."""
    words = _tokens(text)
    rules: list[str] = []
    place = 0
    while place < len(words):
        word, start = words[place], place
        place += 1
        if word == "check":
            depth = 0
            while place < len(words):
                depth += {"(": 1, ")": -1}.get(words[place], 0)
                place += 1
                if depth == 0:
                    break
            rules.append(" ".join(words[start:place]))
        elif word in ("collate", "conflict", "initially"):
            rules.append(" ".join(words[start : start + 2]))
        elif word in ("deferrable", "autoincrement"):
            is_denied = words[start - 1] == "not"
            rules.append(f"not {word}" if is_denied else word)
    return {
        f"rule {rule}" + (f", {times} times" if times > 1 else "")
        for rule, times in Counter(rules).items()
    }


def differences(wanted: Shape, found: Shape) -> Iterator[str]:
    """Yield the differences between two schemas, in words."""
    for name in sorted(found.keys() - wanted.keys()):
        yield f"there is a {name}"
    for name in sorted(wanted.keys() - found.keys()):
        yield f"there is no {name}"
    for name in sorted(wanted.keys() & found.keys()):
        for fact in sorted(wanted[name] - found[name]):
            yield f"{name} has no {fact}"
        for fact in sorted(found[name] - wanted[name]):
            yield f"{name} has a {fact}"


def refuse_affected(version: tuple[int, ...]) -> None:
    """Raise NotReady where this version of SQLite can lose a commit."""
    mended = any(version[:2] == fix[:2] and version >= fix for fix in SQLITE_MENDED)
    if version < SQLITE_FIXED and not mended:
        told = ".".join(map(str, version))
        raise NotReady(f"SQLite {told} can lose commits; install pysqlite3 0.6.1.")
