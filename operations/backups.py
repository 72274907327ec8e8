"""Backups and their restoration, verified both ways."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import peewee

from ledger import proof
from models import TABLES
from storage import columns, engine, factory, files, schema
from storage.engine import database
from storage.migrations import SCHEMA_VERSION
from storage.schema import Identity

Counts = dict[str, int]


class NotProved(Exception):
    """A copy is not a complete database of Abacus; the message says why."""


def counts() -> Counts:
    """Return how many rows each table has."""
    return {table._meta.table_name: table.select().count() for table in TABLES}


def back_up(file: Path, progress: Callable[[int], object] | None = None) -> Counts:
    """Copy the database to *file* while it is in use; return the copy's row counts.

    The source is counted and copied in one read transaction, so the copy must have
    exactly these rows, whatever is written meanwhile. The file appears when it has been
    verified. An existing file stays, and raises FileExistsError. *progress* is that of
    the verification, which takes most of the time.
    """
    if file.exists() or file.is_symlink():
        raise FileExistsError(f"{file} is there already: name a new file.")
    with _draft(file) as draft:
        with database.obj.snapshot():
            held = counts()
            try:
                database.obj.copy_into(draft)
            except files.DriverError as error:
                raise NotProved(
                    f"{file} cannot be written ({error}): free some space, or name a "
                    "file on another disk."
                ) from error
        copied = prove(draft, progress)
        if copied != held:
            raise NotProved(f"The copy has {copied}, the database {held}.")
        os.link(draft, file)  # unlike a rename, it never replaces a file
    files.settle(file.parent)
    return held


def prove(file: Path, progress: Callable[[int], object] | None = None) -> Counts:
    """Return a copy's row counts; raise NotProved unless it is complete and correct.

    The file is read by itself, without a log beside it.
    """
    if file.is_dir():
        raise _unreadable(file, "it is a directory")
    if not file.exists():
        raise _unreadable(file, "it does not exist")
    if files.log_of(file).exists():
        reason = "it is a live database, and no copy of one"
        raise NotProved(f"{file} has a write-ahead log beside it: {reason}.")
    with _reading(file):
        held = _whole()
        for sentence in proof.discrepancies(progress):
            raise NotProved(f"{file}: {sentence}.")
    return held


def _whole() -> Counts:
    """Return the open file's row counts; raise NotProved unless it is complete."""
    # Checked before a table is read, which could be a view that never ends.
    foreign = [name for name in database.obj.shape() if not name.startswith("table ")]
    if foreign:
        raise NotProved(f"The file has what Abacus never makes: a {foreign[0]}.")
    identity = Identity.select().first()
    version = identity and identity.schema_version
    if version != SCHEMA_VERSION:
        raise NotProved(
            f"The file has schema {version}, this program {SCHEMA_VERSION}."
        )
    if altered := schema.alterations(TABLES):
        raise NotProved(f"The file's schema was altered: {schema.sentence(altered)}.")
    if damage := database.obj.damage():
        raise NotProved(f"The file is damaged: {damage}.")
    return counts()


def restore(
    file: Path, target: Path, progress: Callable[[int], object] | None = None
) -> tuple[Counts, Path | None]:
    """Replace the database by a verified copy; return the copy's row counts.

    Also return where the replaced database is, if there was one. Raise files.InUse, and
    change nothing, while any process has the database open. *progress* is that of the
    verification.
    """
    database.close()  # or our handle would stay on the replaced file
    target = target.resolve()
    if target.exists():
        files.refuse_open(target)  # an early check; it is repeated below
    with files.alone(target), _draft(target) as draft:
        held = prove(file, progress)
        with _reading(file):
            database.obj.copy_into(draft)
        files.keep_log(draft)
        with _reading(draft):
            if (copied := _whole()) != held:
                raise NotProved(f"The copy has {copied}, {file} {held}.")
        if not target.exists():
            files.set_aside_log(target, _aside(target))
            os.link(draft, target)
            files.settle(target.parent)
            return held, None
        files.fold_log(target)
        with files.alone_with(target):
            aside = _aside(target)
            os.link(target, aside)  # so that the name always has a database
            files.set_aside_log(target, aside)
            draft.replace(target)
        files.settle(target.parent)
    return held, aside


@contextmanager
def _draft(file: Path) -> Iterator[Path]:
    """Yield a new private file in the same folder, and remove it afterwards."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    except OSError as error:  # which names the draft, that nobody has asked for
        raise OSError(error.errno, error.strerror, str(file)) from error
    os.close(handle)
    try:
        yield Path(name)
    finally:
        files.remove(Path(name))


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Use a file that does not change as the database, inside the block."""
    copy = factory.copy_at(file)
    try:
        with engine.using(copy):
            copy.connect()
            yield
    except peewee.DatabaseError as error:
        raise _unreadable(file, error) from error
    finally:
        copy.close()


def _unreadable(file: Path, reason: object) -> NotProved:
    return NotProved(
        f"{file} cannot be read ({reason}): name a file that "
        "`flask --app wsgi backup` wrote."
    )


def _aside(target: Path) -> Path:
    """Return the new name of the database that is being replaced."""
    return target.with_name(f"{target.name}.{columns.utcnow():%Y%m%dT%H%M%S%fZ}")
