"""Copies of the database that prove themselves, made and put back."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import peewee

from ledger import proof
from models import TABLES
from storage import columns, engine, factory, files, schema
from storage.engine import database
from storage.schema import SCHEMA_VERSION, Identity

Counts = dict[str, int]


class NotProved(Exception):
    """A file is not a whole database of ours; the message says what is wrong."""


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
            database.obj.copy_into(draft)
        copied = prove(draft)
        if copied != held:
            raise NotProved(f"The copy has {copied}, the database {held}.")
        os.link(draft, file)  # unlike a rename, never onto what is there
    files.settle(file.parent)
    return held


def prove(file: Path) -> Counts:
    """Return what a copy holds; raise NotProved unless it is whole and its counts true.

    The file is read as it lies there, without any log beside it.
    """
    if files.log_of(file).exists():
        reason = "it is a live database, and no copy of one"
        raise NotProved(f"{file} has a write-ahead log beside it: {reason}.")
    with _reading(file):
        held = _whole()
        for sentence in proof.discrepancies():
            raise NotProved(f"{file}: {sentence}.")
    return held


def _whole() -> Counts:
    """Return what the open file holds; raise NotProved unless it is whole and ours."""
    # Before anything of a table is read: it could be a view that never ends.
    odd = [name for name in database.obj.shape() if not name.startswith("table ")]
    if odd:
        raise NotProved(f"The file has what Abacus never makes: a {odd[0]}.")
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


def restore(file: Path, target: Path) -> tuple[Counts, Path | None]:
    """Put a proved copy in the database's place; return what it holds.

    And where the database is now that was there, if there was one. Raise files.InUse,
    and change nothing, while anybody has that one open.
    """
    database.close()  # or a handle of ours would stay on the file that is replaced
    target = target.resolve()
    if target.exists():
        files.refuse_open(target)  # before the work; it is asked again below
    with files.alone(target), _draft(target) as draft:
        held = prove(file)
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
            os.link(target, aside)  # the name is never without a database
            files.set_aside_log(target, aside)
            draft.replace(target)
        files.settle(target.parent)
    return held, aside


@contextmanager
def _draft(file: Path) -> Iterator[Path]:
    """Yield a new file in the same folder, which only its owner reads, and drop it."""
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        files.remove(Path(name))


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Use a file that nobody changes as the database, inside the block."""
    copy = factory.copy_at(file)
    try:
        with engine.using(copy):
            copy.connect()
            yield
    except peewee.DatabaseError as error:
        raise NotProved(f"{file} cannot be read: {error}.") from error
    finally:
        copy.close()


def _aside(target: Path) -> Path:
    """Return the name for the database that is replaced now."""
    return target.with_name(f"{target.name}.{columns.utcnow():%Y%m%dT%H%M%S%fZ}")
