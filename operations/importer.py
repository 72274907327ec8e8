"""The import of assignments and conversions from a file."""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from codecs import BOM_UTF8
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from datetime import datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import IO, Any, NamedTuple

from marshmallow import ValidationError
from peewee import chunked

from ledger import conversions, rows
from ledger.enrolment import Participant, participants_among
from ledger.tallies import Metrics, TooManyMetrics, metrics_of
from models import Assignment, Conversion, Experiment, GroupShare
from operations.staging import FileLine, StagedLine, Staging
from schemas import ImportLineSchema
from storage.table import CHUNK, one_of
from web.csv import unguarded
from web.errors import flattened, sentence
from web.json import InvalidJson, loads

LINE = ImportLineSchema()

REQUIRED = [name for name, field in LINE.fields.items() if field.required]

NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")  # JSON's

LONGEST = 1024 * 1024  # bytes of a line, and of a record of several lines


class NotReadable(Exception):
    """The file cannot be read at all; the message says what to do."""


class TooLong(Exception):
    """A line, or a record of several lines, is longer than the limit."""


UNREADABLE = (csv.Error, TooLong, EOFError, zlib.error, gzip.BadGzipFile)


def stage(experiment: Experiment, file: Path, staging: Staging) -> Iterator[str]:
    """Stage the whole file, and yield a sentence for each bad line.

    A line is named by its number, a record of several lines by its first. Nothing is
    written to the experiment, and memory does not grow with the file.
    """
    variants = {variant.name: variant.key for variant in experiment.variants}
    variants |= {variant.key: variant.key for variant in experiment.variants}
    metrics = Metrics(experiment, metrics_of(experiment.id))
    good: list[FileLine] = []
    for number, row, problem in _rows(file):
        try:
            if problem:
                raise ValidationError(problem)
            good.append(_read(experiment, number, row, variants, metrics))
        except (ValidationError, InvalidJson) as error:
            yield f"line {number}: {_message(error)}"
        if len(good) == CHUNK:
            staging.add(good)
            good.clear()
    staging.add(good)
    for chunk in staging.chunks():
        stored = Stored.of(experiment, [staged.line for staged in chunk])
        for staged in chunk:
            if contradictions := [*_contradictions(experiment, staged, stored)]:
                yield f"line {staged.line.number}: {'; '.join(contradictions)}"


def write(experiment: Experiment, staging: Staging) -> tuple[int, int, int]:
    """Write the staged lines; return lines, users enrolled, conversions counted.

    Each chunk is a transaction; an interrupted run is completed by the next one.
    """
    lines = enrolled = counted = 0
    for chunk in staging.chunks():
        users, events = rows.book(experiment, [_booked(staged) for staged in chunk])
        lines += len(chunk)
        enrolled += users
        counted += events
    return lines, enrolled, counted


def _booked(staged: StagedLine) -> rows.Line:
    """Return a line as it is booked: its user is enrolled as of the earliest one."""
    line, event, number = staged.line, None, None
    if line.occurred_at is not None:
        event = conversions.Event(
            line.user_id, line.metric, line.value, line.occurred_at, line.key
        )
        # A line without a key is keyed by its content, see _read.
        number = staged.repetition if line.key == line.content else None
    return rows.Line(line.user_id, line.variant, staged.earliest, event, number)


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

    Nothing is decoded ahead, so that an error has the number of its line. A line ends
    with LF, CRLF or, as Excel for Mac writes it, CR.
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
        """Begin a record with the next line."""
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
    experiment: Experiment,
    number: int,
    row: Any,
    variants: dict[str, str],
    metrics: Metrics,
) -> FileLine:
    """Return the content of a line; raise ValidationError with all its problems."""
    if isinstance(row, bytes):
        row = loads(row)
    wrong: Any = {}
    try:
        fields: dict[str, Any] = LINE.load(row)
    except ValidationError as error:
        wrong = error.messages
    variant = row.get("variant") if isinstance(row, dict) else None
    if isinstance(variant, str) and variant not in variants:
        wrong["variant"] = f"There is no variant {variant!r}."
    if wrong:
        raise ValidationError(wrong)
    user_id, assigned_at = fields["user_id"], fields["timestamp"]
    line = FileLine(number, user_id, variants[fields["variant"]], assigned_at)
    if fields["converted_at"] is None:
        return line
    metric, value = fields["metric"] or experiment.primary_metric, fields["value"]
    # LINE has refused what is earlier than the leeway before the timestamp.
    occurred_at = max(fields["converted_at"], assigned_at)
    if not metrics.admit(metric):
        raise ValidationError({"metric": str(TooManyMetrics(metric))})
    event = (user_id, metric, occurred_at, value)
    content = rows.content_key(*event)
    # A line without a key gets a key of its content, and of how many such lines are
    # before it. An export of an earlier version may contain such a key.
    key = fields["idempotency_key"]
    if key is None or rows.is_content_key(key, *event):
        key = content
    return line._replace(
        metric=metric, value=value, occurred_at=occurred_at, key=key, content=content
    )


def _number(text: str) -> Decimal | str:
    """Return the number in a cell, as JSON reads it, or else the text.

    Decimal accepts more than JSON: blanks, underscores, digits of other scripts.
    """
    try:
        return Decimal(text) if NUMBER.fullmatch(text) else text
    except InvalidOperation:  # an exponent beyond all bounds
        return text


def _message(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    return sentence(flattened(error.messages))


class StoredConversion(NamedTuple):
    """The stored conversion of an idempotency key."""

    user_id: str
    metric: str
    value: Decimal | None
    occurred_at: datetime
    assigned_at: datetime


class Stored(NamedTuple):
    """What the database has about the users and the keys of some lines."""

    participants: dict[str, Participant]
    elsewhere: dict[str, list[str]]
    """The other experiments of the exclusion group that a user is in."""
    conversions: dict[str, StoredConversion]

    @classmethod
    def of(cls, experiment: Experiment, lines: Iterable[FileLine]) -> Stored:
        """Read what belongs to these lines."""
        lines = list(lines)
        users = {line.user_id for line in lines}
        keys = {line.key for line in lines if line.key is not None}
        enrolled = participants_among(experiment.id, users)
        others = _elsewhere(experiment, users - enrolled.keys())
        return cls(enrolled, others, _stored_conversions(experiment, keys))


def _elsewhere(experiment: Experiment, users: Iterable[str]) -> dict[str, list[str]]:
    others = GroupShare.others(experiment.id, experiment.exclusion_group)
    elsewhere: dict[str, list[str]] = defaultdict(list)
    for some in chunked(users, CHUNK) if others else ():
        query: Any = (
            Assignment.select(Assignment.user_id, Assignment.experiment)
            .where(Assignment.experiment.in_(others), one_of(Assignment.user_id, some))
            .order_by(Assignment.experiment)
        )
        for user, other in query.tuples():
            elsewhere[user].append(other)
    return elsewhere


def _stored_conversions(
    experiment: Experiment, keys: Iterable[str]
) -> dict[str, StoredConversion]:
    stored = {}
    for some in chunked(keys, CHUNK):
        query: Any = (
            Conversion.select(
                Conversion.idempotency_key,
                Assignment.user_id,
                Conversion.metric,
                Conversion.value,
                Conversion.occurred_at,
                Assignment.assigned_at,
            )
            .join(Assignment)
            .where(
                Conversion.experiment == experiment.id,
                one_of(Conversion.idempotency_key, some),
            )
        )
        for key, *cells in query.tuples():
            stored[key] = StoredConversion(*cells)
    return stored


def _contradictions(
    experiment: Experiment, staged: StagedLine, stored: Stored
) -> Iterator[str]:
    """Yield the contradictions of a line with other lines or with the database."""
    line = staged.line
    if line.variant != staged.first_variant:
        before = staged.first_variant
        yield f"variant {line.variant}, but the file has the user in {before}"
    participant = stored.participants.get(line.user_id)
    if participant is not None:
        if line.variant != participant.variant:
            yield f"variant {line.variant}, but the user is in {participant.variant}"
        if line.occurred_at and not conversions.occurred(
            line.occurred_at, participant.assigned_at
        ):
            yield "converted_at is before the user's enrolment"
    for other in stored.elsewhere.get(line.user_id, ()):
        yield (
            f"the user is in {other}, which is of the same exclusion group "
            f"{experiment.exclusion_group!r}"
        )
    if line.content != staged.key_content:
        yield f"the idempotency_key of line {staged.key_number}, with another body"
    if line.key in stored.conversions and not _same(line, stored.conversions[line.key]):
        yield "the idempotency_key of a stored conversion, with another body"


def _same(line: FileLine, stored: StoredConversion) -> bool:
    """Tell whether a line equals what is stored under its key."""
    *body, assigned_at = stored
    # As it would be booked; where that is too early, it contradicts the enrolment.
    occurred_at = line.occurred_at and (
        conversions.occurred(line.occurred_at, assigned_at) or line.occurred_at
    )
    event = [line.user_id, line.metric, line.value]
    return body in ([*event, line.occurred_at], [*event, occurred_at])
