"""A database that tests use in turn, and that each one finds as new.

To copy the template takes 30 ms, and a new connection reads the catalog during its
first statements, which takes 50 ms more. To empty a database takes 3 ms.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import peewee
import psycopg
from psycopg import sql

import models
from storage import columns, engine, factory
from storage.postgres import Postgres

ALONE = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""

# Experiments are referred to, so they come last. To delete a few rows is 30 times
# quicker than TRUNCATE, which makes new files for the tables and all their indexes.
EMPTY = "; ".join(f"DELETE FROM {one._meta.table_name}" for one in models.TABLES[::-1])

FIRST = """
SELECT setval(seqrelid::regclass, seqstart, false) FROM pg_sequence
WHERE pg_sequence_last_value(seqrelid) IS NOT NULL
"""

# Whatever alters a schema or a setting writes a new version of a row of one of these
# catalogs; to write rows of tables, or to analyse them, does not.
CATALOGS = {
    "pg_attribute": "attrelid",
    "pg_class": "oid",
    "pg_constraint": "oid",
    "pg_db_role_setting": "setdatabase",
    "pg_index": "indexrelid",
    "pg_namespace": "oid",
    "pg_proc": "oid",
    "pg_trigger": "oid",
}
CATALOG = "SELECT sum(hashtext(version)), count(*) FROM ({}) AS versions".format(
    " UNION ALL ".join(
        f"SELECT concat(ctid, xmin) AS version FROM {name} WHERE {id} >= 16384"
        for name, id in CATALOGS.items()
    )
)

# Deleted rows stay on the disk for a while, where queries pass them.
SMALL = "SELECT sum(pg_relation_size(oid)) < 3e6 FROM pg_class WHERE oid >= 16384"


def clear(url: str) -> None:
    """Delete what is in a database, which a service may use.

    Whatever the service remembers holds for a revision, and this is a new one.
    """
    with engine.using(factory.database_at(url)) as database:
        with database.atomic():
            for table in models.TABLES[::-1]:
                if table is not models.Identity:
                    table.delete().execute()
            changed = {models.Identity.revision: models.Identity.revision + 1}
            models.Identity.update(changed).execute()
        database.shut()


class Reused:
    """A database and its one connection; both are made anew after any alteration."""

    def __init__(self, made: Callable[[], AbstractContextManager[str]]) -> None:
        """*made* has the URL of a new database, while it is used."""
        self._made = made
        self._used = ExitStack()
        self._url = ""
        self._connection: Any = None

    def url(self) -> str:
        """Return the URL of the database, which is empty and which nobody else uses."""
        if not (self._url and self._is_emptied()):
            self.drop()
            self._url = self._used.enter_context(self._made())
            self._connect()
            execute = self._connection.execute
            self._catalog = execute(CATALOG).fetchone()
            self._identity = execute("SELECT * FROM identity").fetchone()
            assert self._is_emptied()
        return self._url

    def _connect(self) -> None:
        self._connection = factory.database_at(self._url).pool.take(5)

    def _is_emptied(self) -> bool:
        """Empty the database; tell whether it is like a new one then."""
        new = columns.new_id("abacus")(), *self._identity[1:]
        values = sql.SQL(", ").join(map(sql.Literal, new))
        identity = sql.SQL("INSERT INTO identity VALUES ({})").format(values)
        try:
            if self._connection is None:
                self._connect()
            execute = self._connection.execute
            execute("DISCARD ALL")
            execute(ALONE)
            if execute(SMALL).fetchone() != (True,):
                return False
            for statement in (EMPTY, FIRST, identity):
                execute(statement)
            return bool(execute(CATALOG).fetchone() == self._catalog)
        except (peewee.DatabaseError, psycopg.Error):
            return False  # the connection is lost, or a table

    def lend(self, database: Any) -> None:
        """Let this object of the database begin with the connection."""
        if self._connection and self._is_at(database):
            database.pool._idle.append(self._connection)
            self._connection = None

    def take_back(self, database: Any) -> None:
        """Keep the connection that was used last, before the others are closed."""
        if self._is_at(database) and database.pool._idle:
            self._connection = database.pool._idle.pop()

    def _is_at(self, database: Any) -> bool:
        return isinstance(database, Postgres) and database.url == self._url

    def drop(self) -> None:
        if self._connection:
            self._connection.close()
        self._connection = None
        self._used.close()
