"""Copies of the database that prove themselves, made and put back."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import peewee

from ledger import proof
from models import TABLES
from storage import columns, engine, schema, shape, sqlite
from storage.engine import database
from storage.schema import SCHEMA_VERSION, Identity

driver: Any = peewee.sqlite3  # type: ignore[attr-defined]  # the only one, ever

Counts = dict[str, int]

# Where SQLite's connections hold their shared locks (https://sqlite.org/fileformat2.html
# #the_lock_byte_page): 510 bytes behind the first two of the page at 1 GiB. In WAL mode
# a connection holds one for as long as it is open.
SHARED_FIRST, SHARED_SIZE = 2**30 + 2, 510

IN_USE = "{} is open: stop the service, and what copies it."


class NotProved(Exception):
    """A file is not a whole database of ours; the message says what is wrong."""


class InUse(Exception):
    """Somebody has the database open."""


def counts() -> Counts:
    """Return how many rows each table has."""
    return {table._meta.table_name: table.select().count() for table in TABLES}


def back_up(file: Path) -> Counts:
    """Copy the database to *file* while it is served, and return what the copy holds.

    The source is counted and copied in one read transaction, so that the copy must
    have just these rows, whatever is written meanwhile. The name appears when all
    is proved; what has the name already stays, and raises FileExistsError.
    """
    if file.exists():
        raise FileExistsError(f"{file} is there already.")
    with _draft(file) as draft:
        with database.transaction("DEFERRED"):
            held = counts()
            with closing(driver.connect(str(draft))) as copy:
                database.connection().backup(copy)
        found = prove(draft)
        if found != held:
            raise NotProved(f"The copy has {found}, the database {held}.")
        os.link(draft, file)  # unlike a rename, never onto what is there
    _settle(file.parent)
    return held


def prove(file: Path) -> Counts:
    """Return what a copy holds; raise NotProved unless it is whole and its counts true.

    The file is read as it lies there, without any log beside it.
    """
    real = file.resolve()  # a log lies beside the file, not beside a link to it
    if real.with_name(f"{real.name}-wal").exists():
        told = "it is a live database, and no copy of one"
        raise NotProved(f"{file} has a write-ahead log beside it: {told}.")
    with _reading(file):
        held = _whole()
        for sentence in proof.discrepancies():
            raise NotProved(f"{file}: {sentence}.")
    return held


def _whole() -> Counts:
    """Return what the open file holds; raise NotProved unless it is whole and ours."""
    # Before anything of a table is read: it could be a view that never ends.
    odd = [name for name in shape.shape() if not name.startswith("table ")]
    if odd:
        raise NotProved(f"The file has what Abacus never makes: a {odd[0]}.")
    found = Identity.select().first()
    version = found and found.schema_version
    if version != SCHEMA_VERSION:
        raise NotProved(
            f"The file has schema {version}, this program {SCHEMA_VERSION}."
        )
    if altered := schema.alterations(TABLES):
        raise NotProved(f"The file's schema was altered: {schema.sentence(altered)}.")
    for pragma in ("integrity_check", "foreign_key_check"):
        wrong = list(database.execute_sql(f"PRAGMA {pragma}"))
        if wrong and wrong != [("ok",)]:
            raise NotProved(f"The file is damaged: {pragma} says {wrong[0]}.")
    return counts()


def restore(file: Path, target: Path) -> tuple[Counts, Path | None]:
    """Put a proved copy in the database's place; return what it holds.

    And where the database is now that was there, if there was one. Raise InUse,
    and change nothing, while anybody has that one open.
    """
    database.close()  # or a handle of ours would stay on the file that is replaced
    target = target.resolve()
    if target.exists() and is_open(target):  # told before the work, and asked again
        raise InUse(IN_USE.format(target))
    with sqlite.alone(target), _draft(target) as draft:
        held = prove(file)
        with _reading(file), closing(driver.connect(str(draft))) as copy:
            database.connection().backup(copy)
            copy.execute("PRAGMA journal_mode = wal")
        with _reading(draft):
            if (found := _whole()) != held:
                raise NotProved(f"The copy has {found}, {file} {held}.")
        if not target.exists():
            _set_aside_log(target, _aside(target))
            os.link(draft, target)
            _settle(target.parent)
            return held, None
        with suppress(driver.Error):  # a broken one stays as it is
            for mode in ("ro", "rw"):  # the last to close it folds its log into it
                with closing(_opened(target, mode)) as connection:
                    connection.execute("SELECT * FROM identity").fetchall()
        with alone_with(target):
            aside = _aside(target)
            os.link(target, aside)  # the name is never without a database
            _set_aside_log(target, aside)
            draft.replace(target)
        _settle(target.parent)
    return held, aside


@contextmanager
def alone_with(file: Path) -> Iterator[None]:
    """Keep everybody else from opening the database; raise InUse where one has."""
    handle = os.open(file, os.O_RDWR)
    how = fcntl.LOCK_EX | fcntl.LOCK_NB
    try:
        try:
            fcntl.lockf(handle, how, SHARED_SIZE, SHARED_FIRST)
        except OSError as error:
            raise InUse(IN_USE.format(file)) from error
        yield
    finally:
        os.close(handle)


def is_open(file: Path) -> bool:
    """Tell whether anybody has the database open."""
    try:
        with alone_with(file):
            return False
    except InUse:
        return True


@contextmanager
def _draft(file: Path) -> Iterator[Path]:
    """Yield a new file in the same folder, which only its owner reads, and drop it."""
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        for suffix in ("", "-journal", "-wal", "-shm"):
            Path(name + suffix).unlink(missing_ok=True)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Use a file that nobody changes as the database, inside the block."""
    # A file from elsewhere runs no function from within its schema.
    copy = sqlite.Sqlite(
        file.absolute(), "mode=ro&immutable=1", pragmas={"trusted_schema": 0}
    )
    try:
        with engine.using(copy):
            copy.connect()
            yield
    except peewee.DatabaseError as error:
        raise NotProved(f"{file} cannot be read: {error}.") from error
    finally:
        copy.close()


def _opened(file: Path, mode: str) -> Any:
    uri = f"file:{quote(str(file.absolute()))}?mode={mode}"
    return driver.connect(uri, uri=True, timeout=0)


def _aside(target: Path) -> Path:
    """Return the name for the database that is replaced now."""
    return target.with_name(f"{target.name}.{columns.utcnow():%Y%m%dT%H%M%S%fZ}")


def _set_aside_log(target: Path, aside: Path) -> None:
    """Move a log away: beside another database, it would be folded into that."""
    for suffix in ("-wal", "-shm"):
        log = target.with_name(target.name + suffix)
        if log.exists():
            log.rename(aside.with_name(aside.name + suffix))


def _settle(folder: Path) -> None:
    """Make the folder's names survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
