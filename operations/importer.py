"""Assignments and conversions made elsewhere, read from a file."""

from __future__ import annotations

import csv
import gzip
import heapq
import re
import tempfile
import zlib
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from decimal import Decimal, InvalidOperation
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import IO, Any

from marshmallow import ValidationError
from peewee import JOIN, IntegerField, ModelSelect, TextField, Value, fn

from ledger import conversions, rows
from ledger.tallies import Metrics, TooManyMetrics, metrics_of
from models import Assignment, Conversion, Experiment, GroupShare
from schemas import ImportLineSchema
from storage.columns import EPOCH, MICROSECOND, Exact, Utc
from storage.engine import database
from storage.table import Table
from web.csv import unguarded
from web.errors import flattened, sentence
from web.json import InvalidJson, loads

CHUNK = 1_000

LINE = ImportLineSchema()

REQUIRED = [name for name, field in LINE.fields.items() if field.required]

NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")  # JSON's

LONGEST = 1024 * 1024  # bytes of a line, and of a record of several lines


class NotReadable(Exception):
    """The file cannot be read at all; the message says what to do."""


class TooLong(Exception):
    """A line, or a record of several, is longer than any that is meant."""


UNREADABLE = (csv.Error, TooLong, EOFError, zlib.error, gzip.BadGzipFile)


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

    A line is told by its number in the file, a record of several lines by its first.
    Nothing is written to the experiment; memory does not grow with the file.
    """
    _attach()
    variants = {variant.name: variant.key for variant in experiment.variants}
    variants |= {variant.key: variant.key for variant in experiment.variants}
    metrics = Metrics(experiment, metrics_of(experiment.id))
    good: list[dict[str, Any]] = []
    for number, row, problem in _rows(file):
        try:
            if problem:
                raise ValidationError(problem)
            good.append({"line": number, **_read(experiment, row, variants, metrics)})
        except (ValidationError, InvalidJson) as error:
            yield f"line {number}: {_told(error)}"
        if len(good) == CHUNK // 2:
            _stage(good)
    _stage(good)
    every = heapq.merge(*_contradictions(experiment), key=itemgetter(0))
    for number, found in groupby(every, key=itemgetter(0)):
        yield f"line {number}: {'; '.join(message for _, message in found)}"


def write(experiment: Experiment) -> tuple[int, int, int]:
    """Write what was staged; return lines, users enrolled, conversions counted.

    A chunk a transaction: a run that is cut off is completed by the next one.
    """
    lines = enrolled = counted = 0
    for some in _chunks():
        users, conversions = rows.book(experiment, [_line(row) for row in some])
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


def _line(row: dict[str, Any]) -> rows.Line:
    event = number = None
    if row["occurred_at"] is not None:
        event = conversions.Event(
            row["user_id"], row["metric"], row["value"], row["occurred_at"], row["key"]
        )
        # A line without a key is keyed by its content, see _read.
        number = row["number"] if row["key"] == row["content"] else None
    first = EPOCH + row["first"] * MICROSECOND  # MIN() answers what is stored
    return rows.Line(row["user_id"], row["variant"], first, event, number)


Record = tuple[int, Any, str | None]
"""A record: the number of its first line, its fields, and what keeps it unread.

The fields are a dict, or the text to parse.
"""


def _rows(file: Path) -> Iterator[Record]:
    """Yield each record of a file, which is opened once: it may be a pipe."""
    lines = None
    with ExitStack() as opened:
        try:
            raw: Any = opened.enter_context(file.open("rb"))
            if raw.peek(1)[:1] == b"\x1f":  # gzip's; no text begins with it
                raw = opened.enter_context(gzip.GzipFile(fileobj=raw))
            lines = _Lines(raw)
            if ".ndjson" in file.suffixes or ".jsonl" in file.suffixes:
                yield from lines.records()
            else:
                yield from _table(lines)
        except UNREADABLE as error:
            first = lines.first if lines else 1
            yield first, None, f"from here on it cannot be read: {error}"
        except OSError as error:
            raise NotReadable(
                f"{file} cannot be read ({error.strerror or error}): name a CSV or "
                "NDJSON file that this user may read."
            ) from error


class _Lines:
    """The lines of a file, one at a time.

    Nothing is decoded ahead, so that what is wrong is told with the line in which it
    stands. A line ends with LF, CRLF or, as Excel for Mac writes it, CR.
    """

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._number = self._size = 0
        self.first = 1
        """The number of the first line of the record that is being read."""
        self.problem: str | None = None
        """What is wrong with the bytes of that record."""

    def records(self) -> Iterator[Record]:
        """Yield each line that is not empty, as it is: a record each."""
        for line in self._lines():
            self._number += 1
            if line.strip():
                yield self.first, line, None
            self.begin()

    def begin(self) -> None:
        """Let a record begin with the next line."""
        self.first, self._size, self.problem = self._number + 1, 0, None

    def __iter__(self) -> Iterator[str]:
        for line in self._lines():
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                byte = line[error.start]
                self.problem = f"it cannot be read: byte 0x{byte:02x} is not UTF-8"
                text = line.decode(errors="replace")
            if "\r" not in text.removesuffix("\n").removesuffix("\r"):
                self._number += 1
                yield text
                continue
            for piece in re.split(r"(?<=\r)(?!\n|\Z)", text):
                self._number += 1
                yield piece

    def _lines(self) -> Iterator[bytes]:
        """Yield the lines as bytes, the first without a byte order mark."""
        line = self._raw.readline(LONGEST + 1).removeprefix(BOM_UTF8)
        while line:
            self._size += len(line)
            if self._size > LONGEST:
                raise TooLong("it is longer than 1 MiB")
            yield line
            line = self._raw.readline(LONGEST + 1)


def _table(lines: _Lines) -> Iterator[Record]:
    """Yield each record of a CSV file as a dict, without its empty cells."""
    reader = csv.reader(lines, strict=True)
    names = next(reader, [])
    if lines.problem:
        raise csv.Error(lines.problem)
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise csv.Error(f"the header names {', '.join(map(repr, twice))} twice")
    if not set(REQUIRED) <= set(names):
        raise csv.Error(f"the header is missing; it names {', '.join(REQUIRED)}")
    lines.begin()
    for cells in reader:
        if len(cells) > len(names):
            problem = f"It has {len(cells)} cells, more than the header's {len(names)}."
            lines.problem = lines.problem or problem
        if cells:
            pairs = zip(names, cells, strict=False)  # what is left out is empty
            row: dict[str, Any] = {
                name: unguarded(cell) for name, cell in pairs if cell
            }
            if "value" in row:
                row["value"] = _number(row["value"])
            yield lines.first, row, lines.problem
        lines.begin()


def _read(
    experiment: Experiment, row: Any, variants: dict[str, str], metrics: Metrics
) -> dict[str, Any]:
    """Return what a line says, as Staged holds it; raise with all that is wrong."""
    if isinstance(row, bytes):
        row = loads(row)
    wrong: Any = {}
    try:
        line: dict[str, Any] = LINE.load(row)
    except ValidationError as error:
        wrong = error.messages
    variant = row.get("variant") if isinstance(row, dict) else None
    if isinstance(variant, str) and variant not in variants:
        wrong["variant"] = f"There is no variant {variant!r}."
    if wrong:
        raise ValidationError(wrong)
    staged = {
        "user_id": line["user_id"],
        "variant": variants[line["variant"]],
        "assigned_at": line["timestamp"],
        "occurred_at": None,
        "metric": None,
        "value": None,
        "key": None,
        "content": None,
    }
    if line["converted_at"] is not None:
        staged["metric"] = line["metric"] or experiment.primary_metric
        staged["value"] = line["value"]
        # LINE has refused what is earlier than the leeway before the timestamp.
        staged["occurred_at"] = max(line["converted_at"], line["timestamp"])
        if not metrics.admit(staged["metric"]):
            raise ValidationError({"metric": str(TooManyMetrics(staged["metric"]))})
        said = (
            *(staged["user_id"], staged["metric"]),
            *(staged["occurred_at"], staged["value"]),
        )
        staged["content"] = rows.content_key(*said)
        # A line without a key is keyed by its content, and by how many such lines
        # stand before it. So was one that a version before exported with that key.
        key = line["idempotency_key"]
        if key is None or rows.is_content_key(key, *said):
            key = staged["content"]
        staged["key"] = key
    return staged


def _number(text: str) -> Decimal | str:
    """Return the number that a cell says, as JSON would; else the text as it is.

    Decimal takes more than JSON: blanks, underscores, digits of other scripts.
    """
    try:
        return Decimal(text) if NUMBER.fullmatch(text) else text
    except InvalidOperation:  # an exponent beyond all bounds
        return text


def _told(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    return sentence(flattened(error.messages))


Found = Iterator[tuple[int, str]]


def _contradictions(experiment: Experiment) -> list[Found]:
    """Return what is wrong with lines because of other lines, or of the database.

    Each kind is (line, message), in the order of lines.
    """
    return [
        _moved(),
        _enrolled(experiment),
        _excluded(experiment),
        _reused_keys(),
        _stored_keys(experiment),
    ]


def _moved() -> Found:
    """Yield the lines that have a user in another variant than a line before."""
    First = Staged.alias()
    moved = (
        Staged.select(Staged.line, Staged.variant, First.variant.alias("before"))
        .join(First, on=(First.line == _least("line", "user_id")))
        .where(Staged.variant != First.variant)
        .order_by(Staged.line)
    )
    for line, variant, before in moved.tuples().iterator():
        yield line, f"variant {variant}, but the file has the user in {before}"


def _enrolled(experiment: Experiment) -> Found:
    """Yield the lines that deny how their user is enrolled already."""
    earliest = Assignment.assigned_at - Value(
        conversions.LEEWAY // MICROSECOND, converter=False
    )
    enrolled = (
        Staged.select(
            Staged.line,
            Staged.variant,
            Assignment.variant,
            Staged.occurred_at < earliest,
        )
        .join(Assignment, JOIN.CROSS)  # SQLite's way to say: line by line
        .where(
            Assignment.user_id == Staged.user_id,
            Assignment.experiment == experiment.id,
            (Assignment.variant != Staged.variant) | (Staged.occurred_at < earliest),
        )
        .order_by(Staged.line)
    )
    for line, variant, before, early in enrolled.tuples().iterator():
        if variant != before:
            yield line, f"variant {variant}, but the user is in {before}"
        if early:
            yield line, "converted_at is before the user's enrolment"


def _excluded(experiment: Experiment) -> Found:
    """Yield the lines of users who are in another experiment of the exclusion group.

    Who is in this one already is not asked again.
    """
    others = GroupShare.others(experiment.id, experiment.exclusion_group)
    if not others:
        return
    Mine = Assignment.alias()
    mine = Mine.select(Mine.id).where(
        Mine.experiment == experiment.id, Mine.user_id == Staged.user_id
    )
    excluded = (
        Staged.select(Staged.line, Assignment.experiment)
        .join(Assignment, JOIN.CROSS)
        .where(
            Assignment.user_id == Staged.user_id,
            Assignment.experiment.in_(others),
            ~fn.EXISTS(mine),
        )
        .order_by(Staged.line)
    )
    for line, other in excluded.tuples().iterator():
        yield (
            line,
            (
                f"the user is in {other}, which is of the same exclusion group "
                f"{experiment.exclusion_group!r}"
            ),
        )


def _reused_keys() -> Found:
    """Yield the lines that have a line's idempotency key, and another body."""
    First = Staged.alias()
    twice = (
        Staged.select(Staged.line, First.line)
        .join(First, on=(First.line == _least("line", "key")))
        .where(First.content != Staged.content)
        .order_by(Staged.line)
    )
    for line, before in twice.tuples().iterator():
        yield line, f"the idempotency_key of line {before}, with another body"


def _stored_keys(experiment: Experiment) -> Found:
    """Yield the lines that have a stored idempotency key, and another body."""
    stored = (
        Staged.select(
            *(Staged.line, Staged.user_id, Staged.metric, Staged.value),
            Staged.occurred_at,
            *(Assignment.user_id, Conversion.metric, Conversion.value),
            *(Conversion.occurred_at, Assignment.assigned_at),
        )
        .join(Conversion, JOIN.CROSS)
        .join(Assignment, JOIN.CROSS)
        .where(
            Conversion.idempotency_key == Staged.key,
            Conversion.experiment == experiment.id,
            Assignment.id == Conversion.assignment,
            # Most say the same, letter for letter, and need no second look.
            (Assignment.user_id != Staged.user_id)
            | (Conversion.metric != Staged.metric)
            | (Conversion.occurred_at != Staged.occurred_at)
            | (fn.COALESCE(Conversion.value, "") != fn.COALESCE(Staged.value, "")),
        )
        .order_by(Staged.line)
    )
    for line, *row in stored.tuples().iterator():
        said, there, assigned_at = row[:4], row[4:8], row[8]
        # As it would be booked; where that is too early, _enrolled says so.
        said[3] = conversions.occurred(said[3], assigned_at) or said[3]
        if said != there:
            yield line, "the idempotency_key of a stored conversion, with another body"
