"""The base of every table, with inserts of many rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar

import peewee
from peewee import EXCLUDED, SQL, Model

from storage.columns import Exact, Json, Utc
from storage.engine import database

CHUNK = 500  # rows a statement: far below any engine's limit of parameters

# How many rows a statement has. The driver keeps each statement that it has met, with
# about 200 bytes a row, in each connection; of every size, that would be megabytes.
SIZES = (CHUNK, 250, 125, 64, 32, *range(16, 0, -1))

MANY = 50  # rows from which a value that all have in common is bound once

Row = TypeVar("Row", bound="Table")
Item = TypeVar("Item")


def pieces(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """Yield the items, in order, in pieces of few different sizes."""
    start = 0
    for size in SIZES:
        while len(items) - start >= size:
            yield items[start : start + size]
            start += size


class Table(Model):
    class Meta:
        database = database
        legacy_table_names = False

    @classmethod
    def insert_many(cls, rows: Iterable[Mapping[str, Any]], fields: Any = None) -> Any:
        """Return the insert of these rows; raise ValueError if their columns differ.

        peewee takes the columns from the first row. Other columns of a later row would
        silently be stored as null.
        """
        rows = list(rows)
        for row in rows[1:]:
            if row.keys() != rows[0].keys():
                differing = sorted(map(str, row.keys() ^ rows[0].keys()))
                raise ValueError(f"Not every row has the columns {differing}.")
        return super().insert_many(rows, fields)

    @classmethod
    def read(cls: type[Row], stored: Sequence[Any]) -> Row:
        """Return the object of a whole row, whose values are as they are stored."""
        row: Row = cls(__no_default__=True)
        fields = cls._meta.sorted_fields
        row.__data__ = {
            field.name: field.python_value(value)
            for field, value in zip(fields, stored, strict=True)
        }
        return row

    @classmethod
    def named(cls: type[Row], name: str) -> Row | None:
        """Return the row with this id, if there is one."""
        row: Row | None = cls.get_or_none(id=name)
        return row


def one_of(field: peewee.Field, values: Sequence[str] | Sequence[int]) -> Any:
    """Return the condition that a field has one of these values, as stored.

    It equals field.in_() without a node for each value. Those would take longer than
    the query, and a batch looks up its users under the write lock.
    """
    marks = ",".join([database.param] * len(values))
    return peewee.NodeList((field, SQL(f"IN ({marks})", values)))


class Statement:
    """A query that is composed once, and then run with the values of its marks.

    peewee composes the text of a query anew for each run, which takes longer than
    SQLite needs to run it. *query* is given the mark, and returns the query with marks
    where the values will be, in the order in which its text has them. Values and rows
    are those of the columns, as they are stored.
    """

    def __init__(self, query: Callable[[Any], Any]) -> None:
        self._query = query
        self._texts: dict[tuple[type, int], str] = {}

    def __call__(self, *values: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a run with these values, as they are stored."""
        here = database.obj
        with peewee.__exception_wrapper__:
            rows: list[tuple[Any, ...]] = here.run(self._text(here), values).fetchall()
            return rows

    def rows(self, table: type[Row], *values: Any) -> list[Row]:
        """Return the rows of a run with these values, as objects of their table.

        The query selects whole rows. peewee would look up its columns in each run.
        """
        return [table.read(row) for row in self(*values)]

    def each(self, runs: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
        """Return the rows of a few runs with these lists of values, in any order.

        They are one statement, which takes half the time of a statement for each.
        """
        here, rows = database.obj, []
        with peewee.__exception_wrapper__:
            for some in pieces(runs):
                text = self._text(here, len(some))
                rows += here.run(text, list(chain.from_iterable(some))).fetchall()
        return rows

    def _text(self, here: Any, number: int = 1) -> str:
        """Return the text of so many runs, composed once for each kind of engine."""
        text = self._texts.get((type(here), number))
        if text is None:
            text, values = self._query(SQL(here.param)).bind(here).sql()
            if values:
                raise ValueError(f"Not every value is a mark: {text}")
            text = " UNION ALL ".join([text] * number)
            self._texts[type(here), number] = text
        return text


class Insert(Statement):
    """An insert that is composed once, and then run with the values of many rows.

    A statement has many rows. It takes half the time of a statement for each row, and
    other threads of the process interrupt it once and not once a row.
    """

    def __init__(
        self,
        fields: Sequence[peewee.Field],
        complete: Callable[[Any], Any] = lambda insert: insert,
    ) -> None:
        """*complete* is given the insert, and returns it with what is to follow."""
        self._fields = fields
        # All other columns store values as they are.
        self._converted = [
            (place, field.db_value)
            for place, field in enumerate(fields)
            if isinstance(field, Exact | Json | Utc)
        ]

        def query(mark: Any) -> Any:
            table: Any = fields[0].model
            return complete(table.insert(dict.fromkeys(fields, mark)).returning())

        super().__init__(query)

    def of(self, rows: Iterable[Sequence[Any]]) -> int:
        """Insert these rows, with the values of Python; return how many were new."""
        return self.stored([self._row(row) for row in rows])

    def _row(self, row: Sequence[Any]) -> list[Any]:
        stored = list(row)
        for place, converted in self._converted:
            stored[place] = converted(stored[place])
        return stored

    def stored(self, rows: Sequence[Sequence[Any]]) -> int:
        """Do the same with values as columns store them."""
        return sum([cursor.rowcount for cursor in self._cursors(rows)])

    def returned(self, rows: Iterable[Sequence[Any]]) -> list[tuple[Any, ...]]:
        """Insert these rows, with the values of Python; return what the insert does."""
        cursors = self._cursors([self._row(row) for row in rows])
        return [row for cursor in cursors for row in cursor.fetchall()]

    def _cursors(self, rows: Sequence[Sequence[Any]]) -> list[Any]:
        here = database.obj
        text = self._text(here)
        with peewee.__exception_wrapper__:
            if len(rows) == 1:
                return [here.run(text, rows[0])]
            head, _, tail = text.partition("VALUES")
            row, end, tail = tail.partition(")")
            cursors = []
            for some in pieces(rows):
                if len(some) < MANY:
                    middle = f"VALUES{','.join([row + end] * len(some))}"
                    values = list(chain.from_iterable(some))
                else:
                    middle, values = self._select(here, some)
                cursors.append(here.run(head + middle + tail, values))
            return cursors

    def _select(
        self, here: Any, rows: Sequence[Sequence[Any]]
    ) -> tuple[str, list[Any]]:
        """Return a SELECT of many rows, and its values.

        A value that all rows have in common is bound once: to bind six values for each
        row takes as long as to insert it.
        """
        columns = list(zip(*rows, strict=True))
        varied = [column.count(column[0]) < len(rows) for column in columns]
        varied[0] = varied[0] or not any(varied)  # VALUES need a column
        selected, shared, own = [], [], []
        for field, column, varies in zip(self._fields, columns, varied, strict=True):
            if not varies:
                selected.append(here.param)
                shared.append(column[0])
                continue
            own.append(column)
            name = f"own.column{len(own)}"
            if isinstance(field, Exact):  # PostgreSQL would take it for a text
                name = f"CAST({name} AS {here.field_types['EXACT']})"
            selected.append(name)
        marks = ",".join([f"({','.join([here.param] * len(own))})"] * len(rows))
        text = ("SELECT ", ",".join(selected), f" FROM (VALUES {marks}) own WHERE true")
        return "".join(text), [*shared, *chain.from_iterable(zip(*own, strict=True))]


def added(fields: Iterable[Any]) -> dict[Any, Any]:
    """Return the update that adds a new row to the one that it is in conflict with."""
    return {field: field + getattr(EXCLUDED, field.column_name) for field in fields}


def stored_rows(
    table: type[Table], after: Sequence[Any] | None = None
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a table in the order of its key, from behind the key *after*.

    The values are as columns store them, a decimal as a text, which every engine
    accepts. All engines have the same order: a text is compared by its bytes. Call it
    in a transaction.
    """
    name, keys = _plain(table)
    fields = table._meta.sorted_fields
    query = name.select(*[name.c[field.column_name] for field in fields])
    if after is not None:
        query = query.where(peewee.Tuple(*keys) > peewee.Tuple(*after))
    query = query.order_by(*keys).tuples().bind(database.obj)
    decimals = [
        (place, field) for place, field in enumerate(fields) if isinstance(field, Exact)
    ]
    for row in database.obj.stream(query):
        if decimals:
            row = list(row)
            for place, field in decimals:
                row[place] = field.db_value(field.python_value(row[place]))
        yield tuple(row)


def last_key(table: type[Table]) -> tuple[Any, ...] | None:
    """Return the largest key of a table, as it is stored, or None without a row."""
    name, keys = _plain(table)
    query = name.select(*keys).order_by(*[key.desc() for key in keys]).limit(1)
    rows = list(query.tuples().bind(database.obj))
    return tuple(rows[0]) if rows else None


def _plain(table: type[Table]) -> tuple[Any, list[Any]]:
    """Return a table whose columns convert no value, and the columns of its key."""
    name = peewee.Table(table._meta.table_name)
    keys = [name.c[field.column_name] for field in table._meta.get_primary_keys()]
    return name, keys
