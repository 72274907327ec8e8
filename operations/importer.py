"""The import of assignments and conversions from a file."""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from codecs import BOM_UTF8
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import datetime
from decimal import Decimal, InvalidOperation
from functools import partial
from io import BufferedReader, FileIO
from itertools import chain, islice
from math import inf
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from marshmallow import ValidationError
from peewee import chunked

from ledger import conversions, rows
from ledger.enrolment import Participant, participants_among
from ledger.tallies import Metrics, TooManyMetrics, metrics_of
from models import Assignment, Conversion, Experiment, GroupShare
from operations.reader import Assigned, BlockReader, Event, FastReader, Read
from operations.staging import CheckedLine, Staging
from schemas import ImportLineSchema
from storage.columns import EPOCH, MICROSECOND, Exact
from storage.table import CHUNK, one_of
from web.csv import unguarded
from web.errors import flattened, sentence
from web.json import InvalidJson, loads

LINE = ImportLineSchema()

REQUIRED = [name for name, field in LINE.fields.items() if field.required]

NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")  # JSON's

WRITTEN = 10_000  # lines of a transaction

AHEAD = 2_500  # lines that are read while a transaction is written

BUFFER = 128 * 1024  # bytes that are read at once

LONGEST = 1024 * 1024  # bytes of a line, and of a record of several lines


class NotReadable(Exception):
    """The file cannot be read at all; the message says what to do."""


class TooLong(Exception):
    """A line, or a record of several lines, is longer than the limit."""


UNREADABLE = (csv.Error, TooLong, EOFError, zlib.error, gzip.BadGzipFile)


Progress = Callable[[int], object]
"""What is called with the number of bytes, lines or rows done since the last call."""


def unseen(_: int) -> None:
    """Show no progress."""


def stage(
    experiment: Experiment, file: Path, staging: Staging, progress: Progress = unseen
) -> Iterator[tuple[int, str]]:
    """Stage the whole file, and yield the number of each bad line and its problem.

    A record of several lines has the number of its first. Nothing is written to the
    experiment, and memory does not grow with the file.
    """
    variants = {variant.name: variant.key for variant in experiment.variants}
    variants |= {variant.key: variant.key for variant in experiment.variants}
    metrics = Metrics(experiment, metrics_of(experiment.id))
    fast = FastReader(variants, metrics, experiment.primary_metric)
    for number, row, problem in _rows(file, fast, progress):
        if isinstance(row, Read):
            staging.add(number, row)
            continue
        if isinstance(row, Assigned):
            staging.add_assigned(number, row)
            continue
        try:
            if problem:
                raise ValidationError(problem)
            staging.add(number, _read(experiment, row, variants, metrics))
        except (ValidationError, InvalidJson) as error:
            yield number, _message(error)
    staging.compare()
    yield from _contradicting(experiment, staging)


def _contradicting(
    experiment: Experiment, staging: Staging
) -> Iterator[tuple[int, str]]:
    """Yield each line that contradicts other lines or the database, and how."""
    chunks = staging.checked() if _may_be_stored(experiment) else staging.differing()
    for chunk in chunks:
        stored = Stored.of(experiment, chunk)
        for line in chunk:
            if contradictions := [*_contradictions(experiment, line, stored)]:
                yield line.number, "; ".join(contradictions)


def _may_be_stored(experiment: Experiment) -> bool:
    """Tell whether the database has anything that a line could contradict."""
    if GroupShare.others(experiment.id, experiment.exclusion_group):
        return True
    # Every conversion has its user, so that one look is enough.
    return Assignment.get_or_none(experiment=experiment.id) is not None


Item = TypeVar("Item")


class Written(NamedTuple):
    """How many lines a file has, and what became of them."""

    lines: int
    enrolled: int
    counted: int
    after_window: int
    """Conversions after the window of their metric, which are left out."""


def write(
    experiment: Experiment, staging: Staging, progress: Progress = unseen
) -> Written:
    """Write the staged lines; return what became of them.

    Each chunk is a transaction; an interrupted run is completed by the next one.
    """
    lines, whole = 0, rows.Booked(0, 0, 0)
    with closing(ahead(staging.chunks(AHEAD))) as pieces:
        while chunk := [*chain.from_iterable(islice(pieces, WRITTEN // AHEAD))]:
            whole = whole.plus(rows.book(experiment, chunk))
            lines += len(chunk)
            progress(len(chunk))
            chunk.clear()  # else it would be in memory beside the next one
    return Written(lines, *whole)


def ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """Yield the same items, each made in a thread while the one before is in use.

    The thread ends with this generator: close it.
    """
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, items, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, items, None)
            yield item


def _value(line: CheckedLine) -> Decimal | None:
    return Decimal(line.value) if line.value else None


def _moment(line: CheckedLine) -> datetime | None:
    at = line.occurred_at
    return None if at is None else EPOCH + at * MICROSECOND


Record = tuple[int, Any, str | None]
"""A record: the number of its first line, its fields, and what keeps it unread.

The fields are a dict, or the text to parse, or what the fast reader has read: that may
be many records, each of one line.
"""


class _Measured(FileIO):
    """A file that reports how many bytes are read."""

    def __init__(self, file: Path, progress: Progress) -> None:
        super().__init__(file, "rb")
        self._progress = progress

    def readinto(self, buffer: Any) -> int | None:
        size = super().readinto(buffer)
        self._progress(size or 0)
        return size


def _rows(file: Path, fast: FastReader, progress: Progress) -> Iterator[Record]:
    """Yield each record of a file, which is opened once: it may be a pipe."""
    lines = None
    with ExitStack() as opened:
        try:
            measured = _Measured(file, progress)
            raw: Any = opened.enter_context(BufferedReader(measured, BUFFER))
            if raw.peek(1)[:1] == b"\x1f":  # gzip's; no text begins with it
                raw = opened.enter_context(gzip.GzipFile(fileobj=raw))
            lines = _Lines(raw)
            if ".ndjson" in file.suffixes or ".jsonl" in file.suffixes:
                yield from lines.records(fast)
            else:
                yield from _table(lines, fast)
        except UNREADABLE as error:
            first = lines.first if lines else 1
            yield first, None, f"from here on it cannot be read: {error}"
        except OSError as error:
            raise NotReadable(
                f"{file} cannot be read ({error.strerror or error}): name a CSV or "
                "NDJSON file that this user may read."
            ) from error


Peekable = BufferedReader | gzip.GzipFile


class _Lines:
    """The lines of a file, one at a time.

    Nothing is decoded ahead, so that an error has the number of its line. A line ends
    with LF, CRLF or, as Excel for Mac writes it, CR.
    """

    def __init__(self, raw: Peekable) -> None:
        self._raw = raw
        self._number = self._size = 0
        self._alone: float = 0  # bytes to read before lines are read together again
        self.first = 1
        """The number of the first line of the record that is being read."""
        self.problem: str | None = None
        """What is wrong with the bytes of that record."""

    def records(self, fast: FastReader) -> Iterator[Record]:
        """Yield each line that is not empty, read or as it is: a record each."""
        for line in self._lines():
            self._number += 1
            if line.strip():
                yield self.first, fast.read_json(line) or line, None
            self.begin()

    def together(self, read: BlockReader) -> Iterator[Record]:
        """Yield what the next lines say while they can be read together.

        They are those that are in memory already, so that no error of the file comes
        earlier than with one line at a time.
        """
        while self._alone <= 0:
            block = self._raw.peek(1)
            block = block[: block.rfind(b"\n") + 1]
            lines = read(block) if block else None
            if lines is None:
                self._alone = len(block) or 1
                return
            self._raw.read(len(block))
            yield self.first, lines, None
            self._number += len(lines.user_ids)
            self.begin()

    def begin(self) -> None:
        """Begin a record with the next line."""
        self._alone -= self._size
        self.first, self._size, self.problem = self._number + 1, 0, None

    def __iter__(self) -> Iterator[str]:
        for line in self._lines():
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                byte = line[error.start]
                self.problem = f"it cannot be read: byte 0x{byte:02x} is not UTF-8"
                text = line.decode(errors="replace")
            if "\r" not in text:
                self._number += 1
                yield text
                continue
            pieces = re.split(r"(?<=\r)(?!\n|\Z)", text)
            if len(pieces) > 1:
                self._alone = inf  # the file is ahead of the pieces
            for piece in pieces:
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


def _table(lines: _Lines, fast: FastReader) -> Iterator[Record]:
    """Yield each record of a CSV file."""
    reader = csv.reader(lines, strict=True)
    names = next(reader, [])
    if lines.problem:
        raise csv.Error(lines.problem)
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise csv.Error(f"the header names {', '.join(map(repr, twice))} twice")
    if not set(REQUIRED) <= set(names):
        raise csv.Error(f"the header is missing; it names {', '.join(REQUIRED)}")
    lines.begin()
    read, width = fast.of(names), len(names)
    read_block = partial(fast.read_block, names)
    yield from lines.together(read_block)
    for cells in reader:
        if len(cells) > width:
            problem = f"It has {len(cells)} cells, more than the header's {width}."
            lines.problem = lines.problem or problem
        if cells:
            is_usual = lines.problem is None and len(cells) == width
            row = (read(cells) if is_usual else None) or _fields(names, cells)
            yield lines.first, row, lines.problem
        lines.begin()
        yield from lines.together(read_block)


def _fields(names: Sequence[str], cells: Sequence[str]) -> dict[str, Any]:
    """Return a record as a dict, without its empty cells."""
    pairs = zip(names, cells, strict=False)  # what is left out is empty
    row: dict[str, Any] = {name: unguarded(cell) for name, cell in pairs if cell}
    for name in ("value", "covariate"):
        if name in row:
            row[name] = _number(row[name])
    return row


def _read(
    experiment: Experiment, row: Any, variants: dict[str, str], metrics: Metrics
) -> Read:
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
    assigned_at = (fields["timestamp"] - EPOCH) // MICROSECOND
    event = None
    if fields["converted_at"] is not None:
        event = _event(fields, fields["metric"] or experiment.primary_metric, metrics)
    covariate = Exact().db_value(fields["covariate"]) or ""
    variant_id = variants[fields["variant"]]
    return Read(fields["user_id"], variant_id, assigned_at, covariate, event)


def _event(fields: dict[str, Any], metric: str, metrics: Metrics) -> Event:
    """Return the conversion of a line."""
    if not metrics.admit(metric):
        raise ValidationError({"metric": str(TooManyMetrics(metric))})
    # LINE has refused what is earlier than the leeway before the timestamp.
    occurred_at = max(fields["converted_at"], fields["timestamp"])
    content = fields["user_id"], metric, occurred_at, fields["value"]
    # A line without a key gets a key of its content, and of how many such lines are
    # before it. An export of an earlier version may contain such a key.
    key = fields["idempotency_key"]
    is_numbered = key is None or rows.is_content_key(key, *content)
    return Event(
        metric,
        Exact().db_value(fields["value"]) or "",
        (occurred_at - EPOCH) // MICROSECOND,
        rows.content_key(*content) if is_numbered else key,
        is_numbered,
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
    def of(cls, experiment: Experiment, lines: Iterable[CheckedLine]) -> Stored:
        """Read what belongs to these lines."""
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
    experiment: Experiment, line: CheckedLine, stored: Stored
) -> Iterator[str]:
    """Yield the contradictions of a line with other lines or with the database."""
    occurred_at = _moment(line)
    before = line.first_variant
    if before not in (None, line.variant):
        yield f"variant {line.variant}, but the file has the user in {before}"
    participant = stored.participants.get(line.user_id)
    if participant is not None:
        if line.variant != participant.variant:
            yield f"variant {line.variant}, but the user is in {participant.variant}"
        if occurred_at and not conversions.occurred(
            occurred_at, participant.assigned_at
        ):
            yield "converted_at is before the user's enrolment"
    for other in stored.elsewhere.get(line.user_id, ()):
        yield (
            f"the user is in {other}, which is of the same exclusion group "
            f"{experiment.exclusion_group!r}"
        )
    if line.key_number is not None and not _repeats(line):
        yield f"the idempotency_key of line {line.key_number}, with another body"
    if line.key in stored.conversions and not _same(line, stored.conversions[line.key]):
        yield "the idempotency_key of a stored conversion, with another body"


def _repeats(line: CheckedLine) -> bool:
    """Tell whether a line says the same as the first one with its key."""
    earlier = Decimal(line.key_value) if line.key_value else None
    return (line.key_user, line.key_metric, earlier, line.key_occurred_at) == (
        line.user_id,
        line.metric,
        _value(line),
        line.occurred_at,
    )


def _same(line: CheckedLine, stored: StoredConversion) -> bool:
    """Tell whether a line equals what is stored under its key."""
    *body, assigned_at = stored
    moment = _moment(line)
    # As it would be booked; where that is too early, it contradicts the enrolment.
    occurred_at = moment and (conversions.occurred(moment, assigned_at) or moment)
    event = [line.user_id, line.metric, _value(line)]
    return body in ([*event, moment], [*event, occurred_at])
