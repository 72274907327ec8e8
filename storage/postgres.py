"""The PostgreSQL engine: connections, locks, errors.

Writers share one lock of the database. Whoever changes settings has it alone, which is
what SQLite gives to every writer: nothing else is written meanwhile. Enrolments and
events have it beside each other: they insert rows under unique indexes, and they add to
sums. So a stop waits for the enrolments that have begun, and those that begin later see
it. It is an advisory lock, held for a transaction, because that writes nothing, and
because PgBouncer gives each transaction another connection.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import peewee
import psycopg
from peewee import SQL, fn
from peewee import __exception_wrapper__ as translating
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus

from storage import migrations
from storage.catalog import shape
from storage.columns import Utc, utcnow
from storage.engine import (
    RESERVED,
    Engine,
    Item,
    NotReady,
    Overtaken,
    Refused,
    Shape,
    Trouble,
    Unsettled,
    Value,
)
from storage.pool import Pool
from storage.turns import Group, Turns

PATIENCE = 5  # seconds that a thread waits for a connection, a statement for others

CONNECTIONS = 4  # of a process

SLOTS = 16

OLDEST = 14  # the oldest version that is supported

LOCK = 0x616261637573  # "abacus": the number of the writers' lock

BATCH = 2_000  # rows of a stream that are fetched at once

LONGEST = 30  # seconds of a writer's statement, and of its silence: others wait

_LIMITS = (
    f"SET LOCAL lock_timeout = '{PATIENCE}s'; "
    f"SET LOCAL statement_timeout = '{LONGEST}s'; "
    f"SET LOCAL idle_in_transaction_session_timeout = '{LONGEST}s'; "
)
_TIME = "SELECT (EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::bigint"

# Each statement sees what was committed before it, whatever the server's default is.
_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"

BESIDE, ALONE, SNAPSHOT, PLAIN = "beside", "alone", "snapshot", "plain"

BEGIN = {
    BESIDE: f"{_BEGIN}; {_LIMITS}SELECT pg_advisory_xact_lock_shared({LOCK}); {_TIME}",
    ALONE: f"{_BEGIN}; {_LIMITS}SELECT pg_advisory_xact_lock({LOCK}); {_TIME}",
    SNAPSHOT: "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
    PLAIN: "BEGIN",
}
"""What begins each kind of transaction. A writer's time is read under its lock."""

TROUBLES = {
    "08": Trouble.GONE,
    "57P": Trouble.GONE,
    "57014": Trouble.BUSY,  # a statement took too long
    "55P03": Trouble.BUSY,  # a lock was not to be had in time
    "40": Trouble.BUSY,
    "53100": Trouble.FULL,
    "53300": Trouble.BUSY,
    "25006": Trouble.READ_ONLY,
    "58030": Trouble.IO,
    "XX001": Trouble.DAMAGED,
    "XX002": Trouble.DAMAGED,
}
"""The beginnings of PostgreSQL's codes of errors.

https://www.postgresql.org/docs/current/errcodes-appendix.html
"""

UNDONE = ("40001", "40P01")  # for another writer: not serializable, a deadlock

AGAIN = (*UNDONE, "23505")  # another writer was in the way


def _source(error: BaseException | None) -> psycopg.Error | None:
    """Return the server's error that this one is, or came from."""
    while error is not None:
        source = getattr(error, "orig", error)
        if isinstance(source, psycopg.Error) and source.sqlstate:
            return source
        error = error.__context__
    return None


def _code(error: BaseException | None) -> str | None:
    """Return PostgreSQL's code of an error, or None if no server has answered."""
    source = _source(error)
    return None if source is None else source.sqlstate


class Postgres(Engine, peewee.PostgresqlDatabase):
    """PostgreSQL, with a connection borrowed for each statement or transaction."""

    migrations = migrations.POSTGRES
    file = None
    field_types = {
        **peewee.PostgresqlDatabase.field_types,
        "EXACT": "NUMERIC",
        # Bytes are compared, as SQLite does, whatever the server's locale is.
        "TEXT": 'TEXT COLLATE "C"',
    }

    def __init__(self, url: str) -> None:
        self.url = url
        self._number = next(_numbers)
        self.patience: float = PATIENCE
        self._turns = Turns()
        self.pool = Pool(self._connect, CONNECTIONS, self._turns)
        self._group = Group(self._turns)
        given = conninfo_to_dict(url)
        self._settings = {
            name: value for name, value in DEFAULTS.items() if name not in given
        }
        hosts = str(given.get("host") or "").split(",")
        ports = str(given.get("port") or "").split(",")
        ports = ports if len(ports) == len(hosts) else ports * len(hosts)
        self._servers = list(zip(hosts, ports, strict=True))
        self._thread = _Thread()
        super().__init__(url, prefer_psycopg3=True)
        _databases.add(self)

    # Connections.

    def _connect(self) -> Any:
        """Return a connection to the first server of the URL that can be written.

        Each one is asked. libpq itself, told `target_session_attrs=read-write`, trusts
        what the server says when it greets, and PgBouncer repeats there what was true
        of its server some time ago.
        """
        error: peewee.DatabaseError | None = None
        for host, port in self._servers:
            try:
                with translating:
                    return _writable(self.url, host=host, port=port, **self._settings)
            except peewee.DatabaseError as failure:
                error = failure
        raise error or NotReady("The URL of the database names no server.")

    def connect(self, reuse_if_open: bool = False) -> bool:
        if not self._state.closed:
            if reuse_if_open:
                return False
            raise peewee.OperationalError("A connection is open already.")
        connection = self.pool.take(self.patience)
        self._state.reset()
        self._state.set_connection(connection)
        return True

    def close(self) -> bool:
        """Give the connection of this thread back, if it has one."""
        is_lost, self._thread.is_lost = self._thread.is_lost, False
        if self._state.closed:
            return False
        connection = self._state.conn
        self._state.reset()
        is_idle = connection.info.transaction_status == TransactionStatus.IDLE
        self.pool.give(connection, is_idle and not is_lost)
        return True

    def shut(self) -> None:
        self.close()
        self.pool.empty()

    def open(self) -> None:
        pass  # whoever needs a connection borrows one

    def lend(self) -> None:
        pass  # and gives it back after each statement

    def identity(self) -> tuple[int, int] | None:
        return self._number, self.pool.generation

    def opened(self) -> tuple[int, int] | None:
        return self.identity()

    def execute_sql(self, sql: str, params: Any = None) -> Any:
        run = super().execute_sql
        return self._lent(sql, lambda: run(sql, params))

    def run(self, text: str, values: Sequence[Any]) -> Any:
        return self._lent(text, lambda: self.connection().execute(text, values))

    def _lent(self, text: str, run: Callable[[], Any]) -> Any:
        """Return what *run* does with a connection that is lent for a statement.

        In a transaction it is that of the transaction. An idle connection may have
        died, so that a query is tried again on a new one.
        """
        if self.in_transaction():
            return self._noticing(run)
        try:
            return self._noticing(run)
        except peewee.DatabaseError:
            is_lost = self._thread.is_lost
            self.close()
            if not is_lost or not text.startswith(("SELECT", "SHOW")):
                raise
            return self._noticing(run)
        finally:
            self.close()

    def _noticing(self, run: Callable[[], Any]) -> Any:
        """Return what *run* does; note whether it has lost the connection."""
        try:
            with translating:
                return run()
        except BaseException as error:
            code = _code(error) or ""
            is_broken = not self._state.closed and self._state.conn.closed
            if is_broken or code == "25006" or code.startswith(("08", "57P")):
                self._thread.is_lost = True
            raise

    # Transactions.

    def begin(self, kind: str | None = None) -> None:
        kind = kind or ALONE  # what is not known to be safe beside others
        if self.damaged and kind in (ALONE, BESIDE):
            raise Refused("DAMAGED", "The database was found damaged.")
        cursor = self._begun(BEGIN[kind])
        while cursor.nextset():
            pass
        if kind in (ALONE, BESIDE):
            self._thread.began = Utc().python_value(cursor.fetchone()[0])

    def _begun(self, text: str) -> Any:
        def run() -> Any:
            return self.connection().execute(text)

        try:
            return self._noticing(run)
        except BaseException:
            is_lost = self._thread.is_lost
            self.rollback()
            if not is_lost:
                raise
        try:  # an idle connection had died, and nothing was done yet
            return self._noticing(run)
        except BaseException:
            self.rollback()
            raise

    def commit(self) -> None:
        try:
            self._noticing(lambda: self.connection().execute("COMMIT"))
        except peewee.DatabaseError as error:
            if self._thread.is_lost:
                raise Unsettled(
                    "The connection was lost while a transaction was committed; "
                    "nobody knows whether it was."
                ) from error
            raise
        self._end()

    def rollback(self) -> None:
        if self._state.closed:
            return
        with suppress(psycopg.Error):  # a connection that is lost is rolled back
            self._state.conn.execute("ROLLBACK")
        self._end()

    def _end(self) -> None:
        self._thread.began = None
        self.close()

    @contextmanager
    def closed_to_writers(self) -> Iterator[None]:
        with self.atomic():
            self.execute_sql("SET LOCAL statement_timeout = 0")
            self.execute_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
            yield

    def snapshot(self) -> AbstractContextManager[Any]:
        transaction: AbstractContextManager[Any] = self.transaction(SNAPSHOT)
        return transaction

    def stillness(self) -> AbstractContextManager[Any]:
        transaction: AbstractContextManager[Any] = self.transaction(ALONE)
        return transaction

    def beside(self, work: Callable[[], Value]) -> Value:
        if self.in_transaction():
            return work()
        try:
            with self.atomic(BESIDE):
                return work()
        except (Overtaken, peewee.DatabaseError) as error:
            if isinstance(error, peewee.DatabaseError) and _code(error) not in AGAIN:
                raise
        return self.alone(work)

    def write(self, work: Callable[[list[Item]], Sequence[Value]], item: Item) -> Value:
        deadline = time.monotonic() + PATIENCE
        job = self._group.join(work, item, None, deadline)
        if job.leads:
            self._group.lead(job, lambda: self._beside_until(job.deadline))
        try:
            outcome: Value = job.outcome()
        except peewee.DatabaseError as error:
            if _code(error) in UNDONE:
                raise Overtaken from error
            raise
        return outcome

    @contextmanager
    def _beside_until(self, deadline: float) -> Iterator[None]:
        if time.monotonic() > deadline:  # while others tried to reach the server
            raise Refused("BUSY", "The other writers took too long.")
        with self.atomic(BESIDE):
            yield

    def now(self) -> datetime:
        return self._thread.began or utcnow()

    @property
    def slot(self) -> int:
        return os.getpid() % SLOTS

    def new_ids(self, table: type[peewee.Model], number: int) -> Sequence[int]:
        rows = self.execute_sql(
            "SELECT nextval(%s::regclass) FROM generate_series(1, %s)",
            (f"{table._meta.table_name}_id_seq", number),
        )
        return sorted(id for (id,) in rows.fetchall())

    def follow_ids(self, table: type[peewee.Model]) -> None:
        last = table.select(fn.MAX(table._meta.primary_key)).scalar() or 0
        self.execute_sql(
            "SELECT setval(%s::regclass, %s, false)",
            (f"{table._meta.table_name}_id_seq", last + 1),
        )

    def serve(self, threads: int) -> None:
        # Others use the connections.
        self._turns.most = max(1, threads - RESERVED - CONNECTIONS)

    def stream(self, query: Any) -> Iterator[Any]:
        self._thread.is_streaming = True
        try:
            rows = query.iterator()
        finally:
            self._thread.is_streaming = False
        yield from rows

    def cursor(self, named_cursor: Any = None) -> Any:
        if self._thread.is_streaming:
            return _Stream(self.connection())
        return super().cursor(named_cursor)

    # Troubles.

    def error_name(self, error: BaseException | None) -> str | None:
        if isinstance(error, Refused):
            return error.error_name
        source = _source(error)
        if source is not None:
            return type(source).__name__
        if isinstance(error, peewee.OperationalError | peewee.InterfaceError):
            return "ConnectionLost"
        return None

    def trouble(self, error: BaseException | None) -> Trouble | None:
        name = self.error_name(error)
        if name is None:
            return None
        if isinstance(error, Refused):
            return Trouble.__members__.get(name, Trouble.ERROR)
        code = _code(error) or "08"  # without a code it is libpq's: no server answers
        kinds = [kind for start, kind in TROUBLES.items() if code.startswith(start)]
        return kinds[0] if kinds else Trouble.ERROR

    def can_be_written(self) -> bool:
        return False  # a new connection is made anyway

    # A database made and verified.

    def creating(self) -> AbstractContextManager[None]:
        return self.closed_to_writers()

    def prepare(self) -> None:
        pass

    def migrating(self) -> AbstractContextManager[None]:
        return self.closed_to_writers()

    def refuse_unsafe_version(self) -> None:
        version = self._version()
        if version < OLDEST:
            raise NotReady(f"PostgreSQL {version} is too old; {OLDEST} is needed.")

    def _version(self) -> int:
        ((number,),) = self.execute_sql("SHOW server_version_num").fetchall()
        return int(number) // 10_000

    def unsafe_setting(self) -> str | None:
        for name, safe in SAFE.items():
            ((value,),) = self.execute_sql(f"SHOW {name}").fetchall()
            if value not in safe:
                return f"{name} of the PostgreSQL server is {value}."
        return None

    def shape(self) -> Shape:
        return shape(self)

    def shape_of_new(self, tables: Sequence[type[peewee.Model]]) -> Shape:
        key = self._version(), tuple(tables)
        if key not in _new:
            # Temporary tables, which nobody else sees, and which are rolled back.
            with suppress(_Undone), self.atomic(PLAIN):
                self.execute_sql("SET LOCAL search_path = pg_temp")
                self.create_tables(tables)
                _new[key] = shape(self)
                raise _Undone
        return _new[key]

    def examine_pages(self) -> None:
        pass  # the server's work: data_checksums, pg_amcheck

    def examine(self) -> None:
        pass

    def damage(self) -> str | None:
        return None

    def sizes(self) -> tuple[int, int]:
        with suppress(peewee.DatabaseError):  # a server that does not answer has none
            query = "SELECT pg_database_size(current_database())"
            return int(self.execute_sql(query).fetchone()[0]), 0
        return 0, 0

    def copy_into(self, file: Path) -> None:
        raise NotReady("PostgreSQL is backed up with pg_dump: see docs/postgresql.md.")

    def empty_log(self) -> bool:
        return False  # the log of a server has old content until it is recycled

    def write_anew(self, progress: Callable[[int], object] | None = None) -> bool:
        raise NotReady("PostgreSQL reuses its space by itself: see docs/postgresql.md.")

    def clean(self) -> tuple[bool, bool]:
        return False, False

    # Expressions.

    def contains(self, column: peewee.Field, text: str) -> peewee.Expression:
        return fn.STRPOS(column, text) > 0

    def among(self, column: peewee.Field, texts: Sequence[str]) -> Any:
        return peewee.NodeList((column, SQL("= ANY(%s)", [texts])))

    def plus(self, left: Any, right: Any) -> Any:
        return peewee.Expression(left, peewee.OP.ADD, right)

    def earlier(self, left: Any, right: Any) -> Any:
        return fn.LEAST(left, right)

    def later(self, left: Any, right: Any) -> Any:
        return fn.GREATEST(left, right)

    def first_of_pair(self, column: peewee.Field, name: str) -> Any:
        return fn.json_extract_path_text(column.cast("JSON"), name, "0")

    def has_pair(self, column: peewee.Field, name: str) -> Any:
        return fn.json_extract_path(column.cast("JSON"), name).is_null(False)


SAFE = {
    "server_encoding": ("UTF8",),
    "fsync": ("on",),
    "full_page_writes": ("on",),
    "synchronous_commit": ("on", "local", "remote_write", "remote_apply"),
}
"""What the server must be set to, so that a commit survives a power cut."""


_new: dict[Any, Shape] = {}
"""The schema of a new database, by the server's version and the tables."""


DEFAULTS: dict[str, Any] = {
    "application_name": "abacus",
    "connect_timeout": 2,
    "tcp_user_timeout": 1_000
    * PATIENCE,  # milliseconds that a dead server is waited for
}
"""The parameters of a connection that the URL does not give."""


def _writable(url: str, **settings: Any) -> Any:
    """Return a new connection; raise ReadOnlySqlTransaction if it is to a standby."""
    # Nothing is prepared: PgBouncer gives each transaction another connection.
    connection = psycopg.connect(
        url,
        autocommit=True,
        prepare_threshold=None,
        target_session_attrs="any",
        **settings,
    )
    try:
        ((is_read_only,),) = connection.execute("SHOW transaction_read_only").fetchall()
    except BaseException:
        connection.close()
        raise
    if is_read_only == "on":
        connection.close()
        raise psycopg.errors.ReadOnlySqlTransaction("The server is a standby.")
    return connection


class _Undone(Exception):
    """Rolls back what was done only to look at it."""


_numbers = itertools.count(1)


class _Thread(threading.local):
    """What is to be known of the present transaction of a thread."""

    began: datetime | None = None
    is_lost = False
    is_streaming = False


class _Stream:
    """A cursor on the server, whose rows are fetched by the batch."""

    def __init__(self, connection: Any) -> None:
        self._cursor = connection.cursor(name=f"stream_{next(_numbers)}")
        self._rows: Iterator[Any] = iter(())

    def execute(self, text: str, values: Any) -> None:
        self._cursor.execute(text, values)

    @property
    def description(self) -> Any:
        return self._cursor.description

    def fetchone(self) -> Any:
        row = next(self._rows, None)
        if row is None:
            self._rows = iter(self._cursor.fetchmany(BATCH))
            row = next(self._rows, None)
        return row

    def close(self) -> None:
        self._cursor.close()


_databases: weakref.WeakSet[Postgres] = weakref.WeakSet()


def _close_before_fork() -> None:
    """Close the idle connections: a child must not speak on those of its parent."""
    for one in tuple(_databases):
        one.pool.empty()


os.register_at_fork(before=_close_before_fork)
