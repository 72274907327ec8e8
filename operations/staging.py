"""The staged lines of an import, until all of them have been checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import peewee

from storage.columns import Exact, Utc
from storage.scratch import scratch

CHUNK = 1_000


class FileLine(NamedTuple):
    """The content of a line of the file."""

    number: int
    user_id: str
    variant: str
    assigned_at: datetime
    metric: str | None = None
    value: Decimal | None = None
    occurred_at: datetime | None = None
    key: str | None = None
    content: str | None = None
    """The key that is made of what the conversion says."""


MOMENT: peewee.Field = Utc()
# The columns of a FileLine, in its order.
FIELDS: tuple[peewee.Field, ...] = (
    *(peewee.IntegerField(), peewee.TextField(), peewee.TextField(), MOMENT),
    *(peewee.TextField(), Exact(), MOMENT, peewee.TextField(), peewee.TextField()),
)


class StagedLine(NamedTuple):
    """A line, with what other lines of the file say about its user and its key."""

    line: FileLine
    repetition: int
    """How many lines with this key there are up to this one."""
    earliest: datetime
    """The earliest assignment of its user."""
    first_variant: str
    """The variant in the first line of its user."""
    key_number: int | None
    """The number of the first line with its key."""
    key_content: str | None
    """What that line says."""


TABLES = (
    """
    CREATE TABLE staged (
        line INTEGER PRIMARY KEY, user_id TEXT NOT NULL, variant TEXT NOT NULL,
        assigned_at INTEGER NOT NULL, metric TEXT, value TEXT, occurred_at INTEGER,
        key TEXT, content TEXT, repetition INTEGER NOT NULL
    )
    """,
    "CREATE INDEX staged_user_id ON staged (user_id)",
    "CREATE INDEX staged_user_id_assigned_at ON staged (user_id, assigned_at)",
    "CREATE INDEX staged_key ON staged (key)",
)

# One statement a line: each sees the lines before it. The last of a key is found by
# its index, however many there are.
STAGE = """
INSERT INTO staged VALUES (
    ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9,
    1 + COALESCE((SELECT repetition FROM staged WHERE key = ?8
                  ORDER BY line DESC LIMIT 1), 0)
)
"""

# Indexes are walked line by line: what is grouped or sorted would stand in memory.
READ = """
SELECT
    line, user_id, variant, assigned_at, metric, value, occurred_at, key, content,
    repetition,
    (SELECT MIN(assigned_at) FROM staged AS other WHERE other.user_id = here.user_id),
    (SELECT variant FROM staged AS other WHERE other.user_id = here.user_id
     ORDER BY line LIMIT 1),
    (SELECT line FROM staged AS other WHERE other.key = here.key
     ORDER BY line LIMIT 1),
    (SELECT content FROM staged AS other WHERE other.key = here.key
     ORDER BY line LIMIT 1)
FROM staged AS here WHERE line > ? ORDER BY line LIMIT ?
"""


class Staging:
    """Lines in a database file of their own, which blocks no other writer."""

    def __init__(self, database: peewee.SqliteDatabase) -> None:
        self._database = database
        for statement in TABLES:
            database.execute_sql(statement)

    def add(self, lines: Iterable[FileLine]) -> None:
        """Store lines, in their order."""
        rows = [
            [field.db_value(cell) for field, cell in zip(FIELDS, line, strict=True)]
            for line in lines
        ]
        with self._database.atomic():
            self._database.connection().executemany(STAGE, rows)

    def chunks(self) -> Iterator[list[StagedLine]]:
        """Yield all lines, in their order, a chunk at a time."""
        last = 0
        while rows := self._database.execute_sql(READ, (last, CHUNK)).fetchall():
            yield [_staged(row) for row in rows]
            last = rows[-1][0]


def _staged(row: Sequence[Any]) -> StagedLine:
    cells, (repetition, earliest, *others) = row[: len(FIELDS)], row[len(FIELDS) :]
    line = FileLine(
        *[field.python_value(cell) for field, cell in zip(FIELDS, cells, strict=True)]
    )
    return StagedLine(line, repetition, MOMENT.python_value(earliest), *others)


@contextmanager
def staging(beside: Path | None) -> Iterator[Staging]:
    """Yield a place for lines on the disk of this file, and drop it."""
    with scratch(beside and beside.resolve().parent) as database:
        yield Staging(database)
