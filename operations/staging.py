"""The staged lines of an import, until all of them have been checked."""

from __future__ import annotations

import gc
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count, islice, pairwise, repeat, starmap
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import peewee

from ledger.rows import Line
from operations.reader import Assigned, Read
from storage.scratch import scratch

CHUNK = 1_000  # lines that are checked at once

STORED = 10_000  # lines that are stored at once

PARTS = 256  # into which all hashes are split; one of them at a time is in memory

Row = TypeVar("Row")


class CheckedLine(NamedTuple):
    """A line, with the first line of its user and the first one with its key.

    The first lines are left out, as None, where this is the only one.
    """

    number: int
    user_id: str
    variant: str
    metric: str | None
    value: str | None
    occurred_at: int | None
    key: str | None
    first_variant: str | None
    key_number: int | None
    key_user: str | None
    key_metric: str | None
    key_value: str | None
    key_occurred_at: int | None


TABLES = (
    """
    CREATE TABLE lines (
        line INTEGER PRIMARY KEY, user_id TEXT NOT NULL, variant TEXT NOT NULL,
        assigned_at INTEGER NOT NULL, covariate TEXT NOT NULL
    )
    """,
    """
    CREATE TABLE events (
        line INTEGER PRIMARY KEY, metric TEXT NOT NULL, value TEXT NOT NULL,
        occurred_at INTEGER NOT NULL, key TEXT NOT NULL, is_numbered INTEGER NOT NULL
    )
    """,
    "CREATE TABLE hashes (kind TEXT NOT NULL, part INTEGER NOT NULL, hashes BLOB)",
    "CREATE INDEX hashes_of_part ON hashes (kind, part)",
    # The lines that may have their user or their key in common with others.
    """
    CREATE TABLE user_lines (
        user_id TEXT, line INTEGER, assigned_at INTEGER NOT NULL,
        PRIMARY KEY (user_id, line)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE key_lines (
        key TEXT, line INTEGER, PRIMARY KEY (key, line)
    ) WITHOUT ROWID
    """,
    # What several lines have in common: few rows, so that all lines can look here.
    """
    CREATE TABLE users (
        user_id TEXT PRIMARY KEY, earliest INTEGER NOT NULL, first INTEGER NOT NULL
    ) WITHOUT ROWID
    """,
    "CREATE TABLE keys (key TEXT PRIMARY KEY, first INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE places (line INTEGER PRIMARY KEY, place INTEGER NOT NULL)",
)

# Tables are walked in the order of their keys: what is sorted would stand in memory.
COMPARE_USERS = (
    """
    INSERT INTO user_lines SELECT user_id, line, assigned_at FROM lines
    WHERE hash(user_id) IN (SELECT hash FROM repeated)
    """,
    """
    INSERT INTO users SELECT user_id, MIN(assigned_at), MIN(line) FROM user_lines
    GROUP BY user_id HAVING COUNT(*) > 1
    """,
)

COMPARE_KEYS = (
    """
    INSERT INTO key_lines SELECT key, line FROM events
    WHERE hash(key) IN (SELECT hash FROM repeated)
    """,
    """
    INSERT INTO keys
    SELECT key, MIN(line) FROM key_lines GROUP BY key HAVING COUNT(*) > 1
    """,
    """
    INSERT INTO places
    SELECT line, ROW_NUMBER() OVER (PARTITION BY key ORDER BY line) FROM key_lines
    WHERE key IN (SELECT key FROM keys)
    """,
)

WRITTEN = """
SELECT
    lines.user_id, lines.variant, COALESCE(earliest, lines.assigned_at), covariate,
    metric, value, occurred_at, key,
    CASE WHEN is_numbered THEN COALESCE(place, 1) END
FROM lines
LEFT JOIN users USING (user_id)
LEFT JOIN events USING (line)
LEFT JOIN places USING (line)
ORDER BY lines.line
"""

# The same, three times as fast, if no user is in two lines and there is no conversion.
IS_ALONE = """
SELECT NOT EXISTS (SELECT 1 FROM users) AND NOT EXISTS (SELECT 1 FROM events)
"""

WRITTEN_ALONE = """
SELECT user_id, variant, assigned_at, covariate FROM lines ORDER BY line
"""

CHECKED = """
SELECT
    lines.line, lines.user_id, lines.variant,
    events.metric, events.value, events.occurred_at, events.key,
    first.variant, keys.first,
    other.user_id, same.metric, same.value, same.occurred_at
FROM lines
LEFT JOIN users USING (user_id)
LEFT JOIN lines AS first ON first.line = users.first
LEFT JOIN events USING (line)
LEFT JOIN keys USING (key)
LEFT JOIN lines AS other ON other.line = keys.first
LEFT JOIN events AS same ON same.line = keys.first
{condition} ORDER BY lines.line
"""

DIFFERS = """
WHERE first.variant <> lines.variant OR other.user_id <> lines.user_id
    OR same.metric <> events.metric OR same.value <> events.value
    OR same.occurred_at <> events.occurred_at
"""


class Hashes:
    """The hashes of many texts, to find those that are equal, in bounded memory.

    An index of the texts would take most of the time of a line. Equal texts have equal
    hashes, so that only few lines have to be compared, and mostly none.
    """

    EDGES = tuple(range(-(2**63), 2**63, 2**64 // PARTS))

    def __init__(self, database: peewee.SqliteDatabase, kind: str) -> None:
        self._database, self._kind = database, kind

    def add(self, texts: Iterable[str]) -> None:
        """Add the hashes of these texts."""
        hashes = array("q", sorted(map(hash, texts)))
        places = [bisect_left(hashes, edge) for edge in self.EDGES]
        pieces = pairwise([*places, len(hashes)])
        self._database.connection().executemany(
            "INSERT INTO hashes VALUES (?,?,?)",
            [
                (self._kind, part, hashes[slice(*piece)])
                for part, piece in enumerate(pieces)
            ],
        )

    def repeated(self) -> Iterator[int]:
        """Yield each hash that was added more than once."""
        query = "SELECT hashes FROM hashes WHERE kind = ? AND part = ?"
        for part in range(PARTS):
            hashes = array("q")
            for (piece,) in self._database.execute_sql(query, (self._kind, part)):
                hashes.frombytes(piece)
            if len(set(hashes)) < len(hashes):
                yield from (one for one, times in Counter(hashes).items() if times > 1)


class Staging:
    """Lines in a database file of their own, which blocks no other writer."""

    def __init__(self, database: peewee.SqliteDatabase) -> None:
        self._database = database
        # The driver looks for an adapter of each null, which takes longer than to
        # store it. So lines and events have tables without nulls.
        self._lines: list[tuple[Any, ...]] = []
        self._events: list[tuple[Any, ...]] = []
        self.count = 0
        """How many lines there are."""
        for statement in TABLES:
            database.execute_sql(statement)
        database.register_function(hash, "hash", 1)
        self._users = Hashes(database, "user")
        self._keys = Hashes(database, "key")

    def add(self, number: int, read: Read) -> None:
        """Store a line; lines come in their order."""
        self.count += 1
        self._lines.append((number, *read[:4]))
        if read.event:
            self._events.append((number, *read.event))
        if len(self._lines) >= STORED:
            self._flush()

    def add_assigned(self, number: int, lines: Assigned) -> None:
        """Store lines that follow each other, of which the first has this number."""
        self.count += len(lines.user_ids)
        self._lines.extend(zip(count(number), *lines, repeat("")))
        if len(self._lines) >= STORED:
            self._flush()

    def _flush(self) -> None:
        connection = self._database.connection()
        with self._database.atomic():
            connection.executemany("INSERT INTO lines VALUES (?,?,?,?,?)", self._lines)
            connection.executemany(
                "INSERT INTO events VALUES (?,?,?,?,?,?)", self._events
            )
            self._users.add(map(itemgetter(1), self._lines))
            self._keys.add(map(itemgetter(4), self._events))
        self._lines.clear()
        self._events.clear()

    def compare(self) -> None:
        """Compare all lines with each other, after the last one was added."""
        self._flush()
        self._compare(self._users, COMPARE_USERS)
        self._compare(self._keys, COMPARE_KEYS)

    def _compare(self, hashes: Hashes, statements: Iterable[str]) -> None:
        """Compare the lines whose hashes are repeated; mostly there are none."""
        execute: Any = self._database.execute_sql
        with self._database.atomic():  # else each hash would be written by itself
            execute("CREATE TABLE repeated (hash INTEGER PRIMARY KEY)")
            found = ((one,) for one in hashes.repeated())
            self._database.connection().executemany(
                "INSERT INTO repeated VALUES (?)", found
            )
            if execute("SELECT 1 FROM repeated LIMIT 1").fetchone():
                for statement in statements:
                    execute(statement)
            execute("DROP TABLE repeated")

    def chunks(self, size: int) -> Iterator[list[Line]]:
        """Yield all lines as they are booked, in their order, a chunk at a time."""
        (is_alone,) = self._database.execute_sql(IS_ALONE).fetchone()
        return self._chunks(WRITTEN_ALONE if is_alone else WRITTEN, Line, size)

    def checked(self) -> Iterator[list[CheckedLine]]:
        """Yield all lines, in their order, a chunk at a time, to be checked."""
        return self._chunks(CHECKED.format(condition=""), CheckedLine, CHUNK)

    def differing(self) -> Iterator[list[CheckedLine]]:
        """Yield the lines that may contradict other lines, a chunk at a time."""
        return self._chunks(CHECKED.format(condition=DIFFERS), CheckedLine, CHUNK)

    def _chunks(
        self, query: str, kind: Callable[..., Row], size: int
    ) -> Iterator[list[Row]]:
        rows = starmap(kind, self._database.execute_sql(query))
        while chunk := list(islice(rows, size)):
            yield chunk


@contextmanager
def staging(beside: Path | None) -> Iterator[Staging]:
    """Yield a place for lines on the disk of this file, and drop it."""
    with scratch(beside and beside.resolve().parent) as database:
        # Lines refer to nothing that refers back, so that few collections are enough.
        # The errors of a bad line do, so that there must be some.
        usual = gc.get_threshold()
        gc.freeze()
        gc.set_threshold(20_000)
        try:
            yield Staging(database)
        finally:
            gc.set_threshold(*usual)
            gc.unfreeze()
