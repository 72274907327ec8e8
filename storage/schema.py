"""Creating, migrating and verifying a database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import peewee
from peewee import SQL, BigIntegerField, IntegerField, TextField

from storage.columns import Utc, new_id, utcnow
from storage.engine import (
    Engine,
    NotReady,
    Shape,
    Trouble,
    connect,
    database,
    using,
)
from storage.migrations import SCHEMA_VERSION
from storage.table import Table

COPYING = 0
"""The schema version of a database into which another one is being copied.

No program serves or migrates it, and its id is that of the other one."""

# They may pass while the service runs, which serves what it can meanwhile.
PASSING = {Trouble.BUSY, Trouble.FULL, Trouble.READ_ONLY, Trouble.GONE, Trouble.IO}


class Identity(Table):
    """One row that identifies a database of Abacus, with its schema version."""

    id = TextField(primary_key=True, default=new_id("abacus"))
    schema_version = IntegerField()
    created_at = Utc(default=utcnow)
    probed_at = Utc(null=True)
    revision = BigIntegerField(default=0, constraints=[SQL("DEFAULT 0")])
    """Grows with every change of an experiment or an override, so that whoever
    remembers one can tell from this number whether it still holds."""


def create(made: Engine, tables: Sequence[type[Table]]) -> str:
    """Create these tables, or bring a database to this schema; return which: `made`,
    `migrated`, or `there` where nothing was to be done.

    Safe when several start at once. Raise NotReady where the file is something
    else, or of a version that this program does not know.
    """
    with made.creating(), using(made):
        try:
            connect()
            if database.get_tables():
                did = "migrated" if _migrate() else "there"
                verify()
                refuse_altered(tables)
                made.examine_pages()
                return did
            made.prepare()
            with database.atomic():
                database.create_tables(tables)
                Identity.create(schema_version=SCHEMA_VERSION)
            return "made"
        finally:
            if made.file is not None:  # one in memory lives as long as it is open
                database.close()


def _found_version() -> int | None:
    """Return the schema version of the open database, or None if it is not ours."""
    # Only that column, because another version may have other ones.
    if not Identity.table_exists():
        return None
    version: int | None = Identity.select(Identity.schema_version).scalar()
    return version


def copied_id() -> str | None:
    """Return the id of the database that is being copied into this one, if one is."""
    if not Identity.table_exists():
        return None
    query = Identity.select(Identity.id).where(Identity.schema_version == COPYING)
    id: str | None = query.scalar()
    return id


def _migrate() -> bool:
    """Migrate the database in one transaction; tell whether that was necessary."""
    scripts = database.obj.migrations
    if _found_version() not in scripts:
        return False
    with database.obj.migrating():
        version = _found_version()
        if version is None or version not in scripts:  # another process was quicker
            return False
        for number in range(version, SCHEMA_VERSION):
            for statement in scripts[number].split(";"):
                database.execute_sql(statement)
        Identity.update(schema_version=SCHEMA_VERSION).execute()
    return True


def probe() -> None:
    """Raise Refused if writes do not work now."""
    database.obj.probe(lambda: Identity.update(probed_at=utcnow()).execute())


def alterations(tables: Sequence[type[Table]]) -> list[str]:
    """Return how the schema differs from that of a new database, in words.

    Foreign objects (a trigger, a view, another table) come first.
    """
    here = database.obj
    wanted = here.shape_of_new(tables)
    return list(_differences(wanted, here.shape()))


def _differences(wanted: Shape, actual: Shape) -> Iterator[str]:
    for name in sorted(actual.keys() - wanted.keys()):
        yield f"there is a {name}"
    for name in sorted(wanted.keys() - actual.keys()):
        yield f"there is no {name}"
    for name in sorted(wanted.keys() & actual.keys()):
        for fact in sorted(wanted[name] - actual[name]):
            yield f"{name} has no {fact}"
        for fact in sorted(actual[name] - wanted[name]):
            yield f"{name} has a {fact}"


def refuse_altered(tables: Sequence[type[Table]]) -> None:
    """Raise NotReady if the schema is not that of a new database.

    A trigger would run with every write, and a missing constraint would not hold;
    neither shows in the rows.
    """
    if altered := alterations(tables):
        raise NotReady(
            f"The schema was altered: {sentence(altered)}. "
            "Undo that, or restore a backup."
        )


def sentence(differences: list[str]) -> str:
    """Return the first three of these, and how many more there are."""
    more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
    return "; ".join(differences[:3]) + more


def verify() -> None:
    """Raise NotReady unless this is a database of ours that is safe to write."""
    here = database.obj
    here.refuse_unsafe_version()
    try:
        connect()
        version = _found_version()
        unsafe = here.unsafe_setting()
    except peewee.DatabaseError as error:
        if here.trouble(error) in PASSING and here.identity():
            raise
        raise NotReady(
            f"{here.title} cannot be read: {error}. Create it with "
            "`flask --app wsgi init`, or restore a backup."
        ) from error
    if version is None:
        raise NotReady(
            f"{here.title} is not one of Abacus, or was never created: run "
            "`flask --app wsgi init`, or correct DATABASE_URL."
        )
    if version == COPYING:
        raise NotReady(
            "The database is an interrupted copy of another one: run "
            "`flask --app wsgi copy` again, which completes it."
        )
    if version != SCHEMA_VERSION:
        raise NotReady(
            f"The database has schema {version}, this program "
            f"{SCHEMA_VERSION}: run `flask --app wsgi init` of the right version."
        )
    if unsafe:
        raise NotReady(unsafe)
