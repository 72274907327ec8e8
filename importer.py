"""Assignments and conversions made elsewhere, read from a file."""

from __future__ import annotations

import csv
import gzip
import io
import re
import tempfile
import zlib
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from marshmallow import ValidationError
from peewee import JOIN, IntegerField, ModelSelect, TextField, fn

import ledger
import tables
from engine import database
from models import (
    EPOCH,
    MICROSECOND,
    Assignment,
    Conversion,
    Exact,
    Experiment,
    Table,
    Utc,
)
from schemas import ImportLineSchema, InvalidJson, flattened, loads

CHUNK = 1_000
LINE = ImportLineSchema()
REQUIRED = [name for name, field in LINE.fields.items() if field.required]
NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")  # JSON's
UNREADABLE = (csv.Error, UnicodeError, EOFError, zlib.error)


class Staged(Table):
    """A line that has been read: it stands in a file of its own, see ``_attach``."""

    line = IntegerField(primary_key=True)
    user_id = TextField(index=True)
    variant = TextField()
    assigned_at = Utc()
    metric = TextField(null=True)
    value = Exact(null=True)
    occurred_at = Utc(null=True)
    key = TextField(null=True, index=True)
    content = TextField(null=True)
    number = IntegerField()
    """How many lines with this key there are up to this one."""

    class Meta:
        schema = "aside"
        indexes = ((("user_id", "assigned_at"), False),)


def _attach() -> None:
    """Make an empty file beside the database for what is staged.

    A temporary table would stand in memory, as the driver is compiled. The file has
    no name from the start, so that it goes with the connection, however that ends.
    """
    listed = database.execute_sql("PRAGMA database_list").fetchall()
    files = {name: file for _, name, file in listed}
    if "aside" in files:
        database.execute_sql("DETACH aside")
    beside = Path(files["main"]).parent if files["main"] else None
    with tempfile.NamedTemporaryFile(dir=beside) as file:  # mode 0600
        database.execute_sql("ATTACH ? AS aside", (file.name,))
    database.pragma("journal_mode", "off", schema="aside")
    database.pragma("synchronous", "off", schema="aside")
    Staged.create_table()


# One statement a line: each sees the lines before it. The last of a key is found by
# its index, however many there are.
STAGE = """
INSERT INTO aside.staged VALUES (
    :line, :user_id, :variant, :assigned_at, :metric, :value, :occurred_at, :key,
    :content,
    1 + COALESCE((SELECT number FROM aside.staged WHERE key = :key
                  ORDER BY line DESC LIMIT 1), 0)
)
"""


def _stage(rows: list[dict[str, Any]]) -> None:
    """Write lines aside, in their order. Nobody who writes elsewhere waits for it."""
    columns = Staged._meta.fields
    cells = [
        {name: columns[name].db_value(value) for name, value in row.items()}
        for row in rows
    ]
    with database.transaction("DEFERRED"):
        database.connection().executemany(STAGE, cells)
    rows.clear()


def _least(name: str, same: str) -> ModelSelect[Staged]:
    """Return the least *name* of the lines that have a line's *same*.

    It walks an index line by line. A GROUP BY that is joined would be built in
    memory whole, and so would be what is sorted: all here is in the order of lines.
    """
    Other = Staged.alias()
    return Other.select(fn.MIN(getattr(Other, name))).where(
        getattr(Other, same) == getattr(Staged, same)
    )


def stage(experiment: Experiment, file: Path) -> Iterator[str]:
    """Read the whole file aside and yield a sentence for each bad line.

    Nothing is written to the experiment; memory does not grow with the file.
    """
    _attach()
    variants = {variant.name: variant.key for variant in experiment.variants}
    variants |= {variant.key: variant.key for variant in experiment.variants}
    good: list[dict[str, Any]] = []
    number = 0
    try:
        for number, row in _rows(file):
            try:
                good.append({"line": number, **_read(experiment, row, variants)})
            except (ValidationError, InvalidJson) as error:
                yield f"line {number}: {_told(error)}"
            if len(good) == CHUNK // 2:
                _stage(good)
    except UNREADABLE as error:
        yield f"line {number + 1}: from here on it cannot be read: {error}"
    _stage(good)
    yield from _contradictions(experiment)


def write(experiment: Experiment) -> tuple[int, int, int]:
    """Write what was staged; return lines, users enrolled, conversions counted.

    A chunk a transaction: a run that is cut off is completed by the next one.
    """
    lines = enrolled = counted = 0
    for some in _chunks():
        users, conversions = ledger.book(experiment, [_line(row) for row in some])
        lines, enrolled, counted = (
            lines + len(some),
            enrolled + users,
            counted + conversions,
        )
    return lines, enrolled, counted


def _chunks() -> Iterator[list[dict[str, Any]]]:
    """Yield what was staged, in its order.

    A query a chunk: one that stayed open between the transactions would keep the
    write-ahead log from ever being emptied.
    """
    first = _least("assigned_at", "user_id").alias("first")
    rows: Any = Staged.select(Staged, first).order_by(Staged.line).limit(CHUNK).dicts()
    some = list(rows)
    while some:
        yield some
        some = list(rows.where(Staged.line > some[-1]["line"]))


def _line(row: dict[str, Any]) -> ledger.Line:
    event = number = None
    if row["occurred_at"] is not None:
        event = ledger.Event(
            row["user_id"], row["metric"], row["value"], row["occurred_at"], row["key"]
        )
        # A line without a key is keyed by its content, see _read.
        number = row["number"] if row["key"] == row["content"] else None
    first = EPOCH + row["first"] * MICROSECOND  # MIN() answers what is stored
    return ledger.Line(row["user_id"], row["variant"], first, event, number)


def _rows(file: Path) -> Iterator[tuple[int, Any]]:
    """Yield each line's number with its fields: a dict, or the text to parse."""
    opened = gzip.open if _is_gzip(file) else open
    with opened(file, "rb") as raw:
        if ".ndjson" in file.suffixes or ".jsonl" in file.suffixes:
            for number, line in enumerate(raw, 1):
                if line.strip():
                    yield number, bytes(line)
            return
        text = io.TextIOWrapper(raw, "utf-8-sig", newline="")
        reader = csv.DictReader(text, restkey="more", strict=True)
        if not set(REQUIRED) <= set(reader.fieldnames or ()):
            raise csv.Error(f"the header is missing; it names {', '.join(REQUIRED)}")
        for row in reader:
            yield (
                reader.line_num,
                {
                    name: cell if name == "more" else tables.unguarded(cell)
                    for name, cell in row.items()
                    if cell
                },
            )


def _is_gzip(file: Path) -> bool:
    with file.open("rb") as raw:
        return raw.read(2) == b"\x1f\x8b"


def _read(experiment: Experiment, row: Any, variants: dict[str, str]) -> dict[str, Any]:
    """Return what a line says, as Staged holds it; raise where it is bad."""
    if isinstance(row, bytes):
        row = loads(row)
    elif "value" in row:
        row["value"] = _number(row["value"])
    line: dict[str, Any] = LINE.load(row)
    if line["variant"] not in variants:
        raise ValidationError({"variant": f"There is no variant {line['variant']!r}."})
    staged = {
        "user_id": line["user_id"],
        "variant": variants[line["variant"]],
        "assigned_at": line["timestamp"],
        "occurred_at": line["converted_at"],
        "metric": None,
        "value": None,
        "key": None,
        "content": None,
    }
    if line["converted_at"] is not None:
        staged["metric"] = line["metric"] or experiment.primary_metric
        staged["value"] = line["value"]
        said = (
            *(staged["user_id"], staged["metric"]),
            *(staged["occurred_at"], staged["value"]),
        )
        staged["content"] = ledger.content_key(*said)
        # A line without a key is keyed by its content, and by how many such lines
        # stand before it. So was one that a version before exported with that key.
        key = line["idempotency_key"]
        if key is None or ledger.is_content_key(key, *said):
            key = staged["content"]
        staged["key"] = key
    return staged


def _number(text: str) -> Decimal:
    """Return the number that a cell says, as JSON would; Decimal takes more."""
    try:
        if NUMBER.fullmatch(text):
            return Decimal(text)
    except InvalidOperation:  # an exponent beyond all bounds
        pass
    raise ValidationError({"value": "Not a number."})


def _told(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(
        f"{one['path']}: {one['message']}" for one in flattened(error.messages)
    )


def _contradictions(experiment: Experiment) -> Iterator[str]:
    """Yield a sentence for each line that another line, or the database, denies."""
    First = Staged.alias()
    moved = (
        Staged.select(Staged.line, Staged.variant, First.variant.alias("before"))
        .join(First, on=(First.line == _least("line", "user_id")))
        .where(Staged.variant != First.variant)
        .order_by(Staged.line)
    )
    for line, variant, before in moved.tuples().iterator():
        yield f"line {line}: variant {variant}, but the file has the user in {before}"
    enrolled = (
        Staged.select(
            Staged.line,
            Staged.variant,
            Assignment.variant,
            Staged.occurred_at < Assignment.assigned_at,
        )
        .join(Assignment, JOIN.CROSS)  # SQLite's way to say: line by line
        .where(
            Assignment.user_id == Staged.user_id,
            Assignment.experiment == experiment.id,
            (Assignment.variant != Staged.variant)
            | (Staged.occurred_at < Assignment.assigned_at),
        )
        .order_by(Staged.line)
    )
    for line, variant, before, early in enrolled.tuples().iterator():
        if variant != before:
            yield f"line {line}: variant {variant}, but the user is in {before}"
        elif early:
            yield f"line {line}: converted_at is before the user's enrolment"
    yield from _reused_keys(experiment)


def _reused_keys(experiment: Experiment) -> Iterator[str]:
    """Yield a sentence for each idempotency key that stands for two bodies."""
    First = Staged.alias()
    twice = (
        Staged.select(Staged.line, First.line)
        .join(First, on=(First.line == _least("line", "key")))
        .where(First.content != Staged.content)
        .order_by(Staged.line)
    )
    for line, before in twice.tuples().iterator():
        yield f"line {line}: the idempotency_key of line {before}, with another body"
    stored = (
        Staged.select(
            Staged.line,
            Staged.content,
            Assignment.user_id,
            Conversion.metric,
            Conversion.occurred_at,
            Conversion.value,
        )
        .join(Conversion, JOIN.CROSS)
        .join(Assignment, JOIN.CROSS)
        .where(
            Conversion.idempotency_key == Staged.key,
            Conversion.experiment == experiment.id,
            Assignment.id == Conversion.assignment,
        )
        .order_by(Staged.line)
    )
    for line, content, *there in stored.tuples().iterator():
        if content != ledger.content_key(*there):
            yield (
                f"line {line}: the idempotency_key of a conversion that is stored, "
                "with another body"
            )
