"""Assignments and conversions made elsewhere, read from a file."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal, InvalidOperation
from hashlib import sha256
from pathlib import Path
from typing import Any

from marshmallow import ValidationError
from peewee import IntegerField, TextField, chunked, fn

import ledger
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
UNREADABLE = (csv.Error, UnicodeError, EOFError, zlib.error)


class Staged(Table):
    """A line that has been read: a temporary table, on disk where it is large."""

    line = IntegerField(primary_key=True)
    user_id = TextField(index=True)
    variant = TextField()
    assigned_at = Utc()
    metric = TextField(null=True)
    value = Exact(null=True)
    occurred_at = Utc(null=True)
    key = TextField(null=True, index=True)
    content = TextField(null=True)

    class Meta:
        temporary = True


def stage(experiment: Experiment, file: Path) -> Iterator[str]:
    """Read the whole file aside and yield a sentence for each bad line.

    Nothing is written to the experiment; memory does not grow with the file.
    """
    Staged.drop_table(safe=True)
    Staged.create_table()
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
                Staged.insert_many(good).execute()
                good.clear()
    except UNREADABLE as error:
        yield f"line {number + 1}: from here on it cannot be read: {error}"
    if good:
        Staged.insert_many(good).execute()
    yield from _contradictions(experiment)


def write(experiment: Experiment) -> tuple[int, int, int]:
    """Write what was staged; return lines, users enrolled, conversions counted.

    A chunk a transaction: a run that is cut off is completed by the next one.
    """
    first = Staged.select(
        Staged.user_id, fn.MIN(Staged.assigned_at).alias("first")
    ).group_by(Staged.user_id)
    rows = (
        Staged.select(Staged, first.c.first)
        .join(first, on=(Staged.user_id == first.c.user_id))
        .order_by(Staged.line)
        .dicts()
    )
    lines = enrolled = counted = 0
    for some in chunked(rows.iterator(), CHUNK):
        users, conversions = ledger.book(experiment, [_line(row) for row in some])
        lines, enrolled, counted = (
            lines + len(some),
            enrolled + users,
            counted + conversions,
        )
    return lines, enrolled, counted


def _line(row: dict[str, Any]) -> ledger.Line:
    event = None
    if row["occurred_at"] is not None:
        event = ledger.Event(
            row["user_id"], row["metric"], row["value"], row["occurred_at"], row["key"]
        )
    first = EPOCH + row["first"] * MICROSECOND  # MIN() answers what is stored
    return ledger.Line(row["user_id"], row["variant"], first, event)


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
        for row in reader:
            yield reader.line_num, {name: cell for name, cell in row.items() if cell}


def _is_gzip(file: Path) -> bool:
    with file.open("rb") as raw:
        return raw.read(2) == b"\x1f\x8b"


def _read(experiment: Experiment, row: Any, variants: dict[str, str]) -> dict[str, Any]:
    """Return what a line says, as Staged holds it; raise where it is bad."""
    if isinstance(row, bytes):
        row = loads(row)
    elif "value" in row:
        try:
            row["value"] = Decimal(row["value"])
        except InvalidOperation as error:
            raise ValidationError({"value": "Not a number."}) from error
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
        staged["content"] = _content(
            staged["user_id"], staged["metric"], staged["occurred_at"], staged["value"]
        )
        # A line without a key is keyed by its content: the same line counts once.
        own = line["idempotency_key"]
        staged["key"] = own if own is not None else f"import:{staged['content']}"
    return staged


def _content(
    user_id: str, metric: str, occurred_at: datetime, value: Decimal | None
) -> str:
    """Return a digest of what a conversion says."""
    number = None if value is None else format(value, "f")
    if number and "." in number:
        number = number.rstrip("0").rstrip(".")
    said = repr((user_id, metric, occurred_at.isoformat(), number))
    return sha256(said.encode()).hexdigest()[:40]


def _told(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(
        f"{one['path']}: {one['message']}" for one in flattened(error.messages)
    )


def _contradictions(experiment: Experiment) -> Iterator[str]:
    """Yield a sentence for each line that another line, or the database, denies."""
    Other = Staged.alias()
    firsts = Other.select(Other.user_id, fn.MIN(Other.line).alias("line")).group_by(
        Other.user_id
    )
    First = Staged.alias()
    moved = (
        Staged.select(Staged.line, Staged.variant, First.variant.alias("before"))
        .join(firsts, on=(Staged.user_id == firsts.c.user_id))
        .join(First, on=(First.line == firsts.c.line))
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
        .join(Assignment, on=(Assignment.user_id == Staged.user_id))
        .where(
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
    Other = Staged.alias()
    twice = (
        Staged.select(Staged.line, fn.MIN(Other.line))
        .join(Other, on=(Other.key == Staged.key) & (Other.line < Staged.line))
        .where(Other.content != Staged.content)
        .group_by(Staged.line)
        .order_by(Staged.line)
    )
    for line, before in twice.tuples().iterator():
        yield f"line {line}: the idempotency_key of line {before}, with another body"
    stored = (
        Conversion.select(Conversion, Assignment, Staged)
        .join(Assignment)
        .switch(Conversion)
        .join(Staged, on=(Staged.key == Conversion.idempotency_key), attr="staged")
        .where(Conversion.experiment == experiment.id)
        .order_by(Staged.line)
    )
    for row in stored.iterator():
        there = _content(row.assignment.user_id, row.metric, row.occurred_at, row.value)
        if there != row.staged.content:
            yield (
                f"line {row.staged.line}: the idempotency_key of a conversion that "
                "is stored, with another body"
            )
