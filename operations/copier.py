"""The copy of a whole database into another one, of whatever engines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from itertools import zip_longest
from typing import Any

import peewee
from peewee import chunked

from ledger import proof
from models import TABLES
from operations.backups import Counts, NotProved, counts
from operations.importer import Progress, unseen
from storage import schema
from storage.columns import Exact
from storage.engine import Engine, NotReady, connect, streamed, using
from storage.files import DriverError
from storage.schema import COPYING, Identity
from storage.table import Insert, Table, last_key, stored_rows

WRITTEN = 10_000  # rows of a transaction

Rows = list[tuple[Any, ...]]


@contextmanager
def copying(source: Engine, target: Engine) -> Iterator[Copy]:
    """Yield the copy of a database, to be filled and then proved.

    Nobody writes to the source inside the block: what was acknowledged before it is
    copied, and nothing is acknowledged during it. The target is created, or it is
    empty, or it is an interrupted copy of this source, which is continued. For anything
    else, and for a source that is not ready, raise NotReady and change nothing.
    """
    try:
        with using(source), _told("source", source):
            schema.verify()
            schema.refuse_altered(TABLES)
        with source.closed_to_writers():
            with using(source):
                copy = Copy(source, target, Identity.get().id, sum(counts().values()))
            with using(target), _told("target", target):
                copy.begin()
            yield copy
    finally:
        source.shut()
        target.shut()


@contextmanager
def _told(which: str, used: Engine) -> Iterator[None]:
    """Say which of the two databases an error is about."""
    try:
        yield
    except NotReady as error:
        raise NotReady(f"The {which}: {error}") from error
    except (peewee.DatabaseError, DriverError) as error:
        message = f"The {which} cannot be used. {used.explained(error)}"
        raise NotReady(message) from error


class Copy:
    """A copy that is being made.

    The target has the id of the source and the schema version COPYING until all of it
    is proved, so that an interrupted copy is recognised, and nothing serves it. Each
    table is copied in the order of its key. What has been copied is therefore known
    from the largest key, and only the proof compares it again with the source.
    """

    def __init__(self, source: Engine, target: Engine, id: str, rows: int) -> None:
        self._source, self._target, self._id = source, target, id
        self.rows = rows
        """How many rows the source has."""

    def begin(self) -> None:
        """Mark the target as a copy in progress; raise NotReady if it may not be one.

        The target is the current database.
        """
        if self._is_nothing():
            schema.create(self._target, TABLES)
        connect()
        begun = schema.copied_id()
        if begun is None:
            schema.verify()
        schema.refuse_altered(TABLES)
        if begun is None:
            # Before it is locked: the source is locked already.
            if Identity.get().id == self._id:
                raise NotReady("It is the source itself, or a complete copy of it.")
            with self._target.atomic():
                self._mark()
        elif begun != self._id:
            raise NotReady("It is an interrupted copy of another database.")

    def _is_nothing(self) -> bool:
        """Tell whether the target does not exist, or has not even a table."""
        if self._target.identity() is None:
            return True
        connect()
        return not self._target.shape()

    def _mark(self) -> None:
        """Mark the target as a copy in progress; raise NotReady unless it is empty."""
        for name, number in counts().items():
            if number and name != Identity._meta.table_name:
                raise NotReady(f"It is not empty: its table {name} has rows.")
        Identity.update(id=self._id, schema_version=COPYING).execute()

    def fill(self, progress: Progress = unseen) -> None:
        """Copy all rows that the target does not have yet, some in each transaction."""
        progress(1)  # the identity, which is written when all is proved
        for table in TABLES:
            if table is Identity:
                continue
            with using(self._target), _told("target", self._target):
                progress(table.select().count())
                after = last_key(table)
            insert = Insert(table._meta.sorted_fields)
            for rows in self._rows_of(self._source, table, after):
                here = self._target
                with using(here), _told("target", here), here.atomic():
                    insert.stored(rows)
                progress(len(rows))

    def prove(self, progress: Progress = unseen) -> Counts:
        """Complete the copy; return its row counts.

        Raise NotProved, and leave the copy incomplete, unless every row of every table
        is the same in both databases and every count is what its rows say.
        """
        with using(self._target):
            with self._target.closed_to_writers():
                self._identify()
                held = {
                    table._meta.table_name: self._compared(table, progress)
                    for table in TABLES
                }
                for sentence in proof.discrepancies():
                    raise NotProved(f"The counts of the source are wrong: {sentence}.")
            self._target.shut()
            schema.verify()
            schema.refuse_altered(TABLES)
        return held

    def _identify(self) -> None:
        """Give the target the identity of the source, and its next ids."""
        Identity.delete().execute()
        insert = Insert(Identity._meta.sorted_fields)
        for rows in self._rows_of(self._source, Identity):
            insert.stored(rows)
        for table in TABLES:
            if table._meta.auto_increment:
                self._target.follow_ids(table)

    def _compared(self, table: type[Table], progress: Progress) -> int:
        """Return how many rows a table has; raise NotProved unless both are equal."""
        number = 0
        pairs: Iterator[tuple[Rows, Rows]] = zip_longest(
            self._rows_of(self._source, table),
            self._rows_of(self._target, table),
            fillvalue=[],
        )
        for ours, theirs in pairs:
            if not _are_equal(table, ours, theirs):
                raise NotProved(
                    f"The table {table._meta.table_name} of the target differs from "
                    "that of the source, which was written since this copy was begun. "
                    "Remove the target, stop the service, and copy again."
                )
            number += len(ours)
            progress(len(ours))
        return number

    def _rows_of(
        self, engine: Engine, table: type[Table], after: Any = None
    ) -> Iterator[Rows]:
        """Yield a table's rows as they are stored, many at a time, in order."""
        with using(engine):
            return streamed(chunked(stored_rows(table, after), WRITTEN))


def _are_equal(table: type[Table], ours: Rows, theirs: Rows) -> bool:
    """Tell whether these are the same rows, to the last digit."""
    return ours == theirs or _unsigned(table, ours) == _unsigned(table, theirs)


def _unsigned(table: type[Table], rows: Rows) -> Rows:
    """Return rows whose zeros have no sign, because not every engine keeps it."""
    fields = table._meta.sorted_fields

    def plain(field: Any, value: Any) -> Any:
        is_zero = isinstance(field, Exact) and value is not None and not Decimal(value)
        return value.removeprefix("-") if is_zero else value

    return [tuple(map(plain, fields, row)) for row in rows]
