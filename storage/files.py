"""The files of an SQLite database: locks, write-ahead log, replacement."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from stat import S_ISREG
from typing import Any
from urllib.parse import quote

import peewee

driver: Any = peewee.sqlite3  # type: ignore[attr-defined]  # the only one, ever

DriverError: type[Exception] = driver.Error

HEADER = b"SQLite format 3\0"

# Where SQLite's connections hold their shared locks (https://sqlite.org/fileformat2.html
# #the_lock_byte_page): 510 bytes behind the first two of the page at 1 GiB. In WAL mode
# a connection holds one for as long as it is open.
SHARED_FIRST, SHARED_SIZE = 2**30 + 2, 510


class InUse(Exception):
    """A process has the database open."""


def is_database(file: Path) -> bool:
    """Tell whether this is an SQLite file; only regular files are opened."""
    if not S_ISREG(file.lstat().st_mode):
        return False
    handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return os.read(handle, len(HEADER)) == HEADER
    finally:
        os.close(handle)


@contextmanager
def alone(file: Path | None) -> Iterator[None]:
    """Hold the folder's lock, so that only one process at a time creates files."""
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


@contextmanager
def alone_with(file: Path) -> Iterator[None]:
    """Keep others from opening the database; raise InUse if one has it open."""
    handle = os.open(file, os.O_RDWR)
    how = fcntl.LOCK_EX | fcntl.LOCK_NB
    try:
        try:
            fcntl.lockf(handle, how, SHARED_SIZE, SHARED_FIRST)
        except OSError as error:
            message = f"{file} is open: stop the service, and what copies it."
            raise InUse(message) from error
        yield
    finally:
        os.close(handle)


def refuse_open(file: Path) -> None:
    """Raise InUse if any process has the database open."""
    with alone_with(file):
        pass


def is_open(file: Path) -> bool:
    """Tell whether any process has the database open."""
    try:
        refuse_open(file)
    except InUse:
        return True
    return False


def log_of(file: Path) -> Path:
    """Return where the write-ahead log of a database is, if it has one."""
    real = file.resolve()  # a log lies beside the file, not beside a link to it
    return real.with_name(f"{real.name}-wal")


def keep_log(file: Path) -> None:
    """Switch the database to write-ahead logging."""
    with closing(driver.connect(str(file))) as connection:
        connection.execute("PRAGMA journal_mode = wal")


def fold_log(file: Path) -> None:
    """Move the log's content into the database, unless it cannot be opened."""
    with suppress(DriverError):
        for mode in ("ro", "rw"):  # the last to close it folds its log into it
            uri = f"file:{quote(str(file.absolute()))}?mode={mode}"
            with closing(driver.connect(uri, uri=True, timeout=0)) as connection:
                connection.execute("SELECT * FROM identity").fetchall()


def set_aside_log(file: Path, aside: Path) -> None:
    """Move a log away, because it would be applied to a new database of the name."""
    for suffix in ("-wal", "-shm"):
        log = file.with_name(file.name + suffix)
        if log.exists():
            log.rename(aside.with_name(aside.name + suffix))


def remove(file: Path) -> None:
    """Remove a database that is not in use, with its log."""
    for suffix in ("", "-journal", "-wal", "-shm"):
        file.with_name(file.name + suffix).unlink(missing_ok=True)


def settle(folder: Path) -> None:
    """Flush the folder, so that its names survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
