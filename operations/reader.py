"""A fast reader for the usual shapes of a line of an import.

The schema is the reference. The fast reader accepts only what the schema accepts, and
reads the same from it. It leaves every other line, and so every error, to the schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

from marshmallow import ValidationError

from ledger import rows
from ledger.conversions import LEEWAY
from ledger.tallies import Metrics
from models import NOT_IDS
from storage.columns import EPOCH, MICROSECOND, Utc, utcnow
from web.fields import Moment

COLUMNS = (
    *("user_id", "variant", "timestamp"),
    *("converted_at", "metric", "value", "idempotency_key"),
)

NAMES = frozenset(COLUMNS)

MOMENT, MICROSECONDS = Moment(), Utc()

# Numbers below 1e12 in the form in which they are stored.
PLAIN_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,11})(?:\.[0-9]{1,20})?")


class WrittenNumber(str):
    """A number of a JSON text, as it is written there."""


# An object is read as the tuple of its pairs, so that a key that stands twice is seen.
FLAT = json.JSONDecoder(
    parse_float=WrittenNumber, parse_int=WrittenNumber, object_pairs_hook=tuple
)

TEXTS = {str, type(None)}

EARLIER = LEEWAY // MICROSECOND


class Read(NamedTuple):
    """What a line says, with times in microseconds since 1970."""

    user_id: str
    variant: str
    assigned_at: int
    covariate: str
    """The number as it is stored, or an empty text."""
    event: Event | None


class Event(NamedTuple):
    """The conversion of a line."""

    metric: str
    value: str
    """The number as it is stored, or an empty text."""
    occurred_at: int
    key: str
    is_numbered: bool
    """Whether the key is made of the content, so that equal lines have numbers."""


class Assigned(NamedTuple):
    """What lines without a conversion say, as columns."""

    user_ids: Sequence[str]
    variants: Sequence[str]
    assigned_at: Sequence[int]


Reader = Callable[[Sequence[str]], Read | None]

BlockReader = Callable[[bytes], Assigned | None]


def microseconds(text: str) -> int | None:
    """Return the time in a usual text as the schema reads it, or else None.

    Each day, each minute of a day, and each rest of a text is read by the schema's
    field once, and then remembered. The microseconds that an export writes are too
    many for that.
    """
    rest, fraction = text[16:], 0
    if len(rest) == 11 and rest[3] == ".":  # :04.123456Z
        digits, rest = rest[4:10], rest[:3] + rest[10]
        if not (digits.isascii() and digits.isdecimal()):
            return None
        fraction = int(digits)
    day, minute, after = _day(text[:10]), _minute(text[10:16]), _rest(rest)
    if day is None or minute is None or after is None:
        return None
    return day + minute + after + fraction


@lru_cache(4_096)
def _day(day: str) -> int | None:
    """Return when a day begins in UTC, in years that are far from the bounds."""
    return _moment(f"{day}T00:00Z") if day.startswith(("19", "20")) else None


@lru_cache(4_096)
def _minute(minute: str) -> int | None:
    """Return how long after its day's beginning a minute begins."""
    return _after(_moment("2024-01-01T00:00Z"), _moment(f"2024-01-01{minute}Z"))


@lru_cache(4_096)
def _rest(rest: str) -> int | None:
    """Return how long after its minute a time is, with its offset in this text."""
    return _after(_moment("2024-01-01T00:00Z"), _moment(f"2024-01-01T00:00{rest}"))


def _after(start: int | None, time: int | None) -> int | None:
    return None if start is None or time is None else time - start


def _moment(text: str) -> int | None:
    try:
        return MICROSECONDS.db_value(MOMENT.deserialize(text))
    except ValidationError:
        return None


def is_usual_id(text: str) -> bool:
    """Tell whether a cell is an id that needs no closer look."""
    return (
        0 < len(text) <= 255
        and text[0] != "'"  # it may guard a formula
        and text.isprintable()
        and text.strip().casefold() not in MISSING
    )


MISSING = {*NOT_IDS, ""}


class FastReader:
    """The fast reader for the lines of a file into one experiment."""

    def __init__(
        self, variants: Mapping[str, str], metrics: Metrics, primary_metric: str
    ) -> None:
        self._variants = {
            name: key for name, key in variants.items() if not name.startswith("'")
        }
        self._metrics, self._primary_metric = metrics, primary_metric
        # The schema allows a little more, and asks the clock at each line.
        self._latest = (utcnow() - EPOCH) // MICROSECOND

    def of(self, names: Sequence[str]) -> Reader:
        """Return a function that reads the cells of a CSV file with this header."""
        if not set(names) <= set(COLUMNS):
            return lambda cells: None  # the schema refuses the others where not empty
        places = [names.index(one) if one in names else -1 for one in COLUMNS]
        picked = itemgetter(*places)
        return lambda cells: self.read(*picked([*cells, ""]))

    def read_block(self, names: Sequence[str], block: bytes) -> Assigned | None:
        """Return what whole lines of a CSV file with this header say together.

        It is None unless each line is a record that `read` would read, without a
        conversion. By columns this takes a third of the time.
        """
        ends = block.count(b"\r\n")
        if not NAMES.issuperset(names) or b'"' in block or block.count(b"\r") > ends:
            return None
        try:
            text = block.decode()
        except UnicodeDecodeError:
            return None
        lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
        width = len(names)
        if {line.count(",") + 1 for line in lines} != {width}:
            return None
        cells = ",".join(lines).split(",")
        columns = {name: cells[place::width] for place, name in enumerate(names)}
        user_ids, variants, timestamps = map(columns.pop, COLUMNS[:3])
        times = {text: self._assigned_at(text) for text in {*timestamps}}
        if (
            any(map(any, columns.values()))
            or None in times.values()
            or not self._variants.keys() >= {*variants}
            or not all(map(is_usual_id, user_ids))
        ):
            return None
        chosen = [*map(self._variants.__getitem__, variants)]
        assigned_at: Any = [*map(times.__getitem__, timestamps)]
        return Assigned(user_ids, chosen, assigned_at)

    def read_json(self, line: bytes) -> Read | None:
        """Return what a line of NDJSON says, or None if the schema has to read it."""
        try:
            pairs = FLAT.decode(line.decode())
        except (ValueError, RecursionError):
            return None
        if type(pairs) is not tuple:
            return None
        fields = dict(pairs)
        if len(fields) < len(pairs) or not fields.keys() <= NAMES:
            return None
        value = fields.pop("value", None)
        texts = fields.values()
        # An empty text is refused here; in CSV it means that there is none.
        if "" in texts or not TEXTS.issuperset(map(type, texts)):
            return None
        if value is not None and (type(value) is not WrittenNumber or value == "-0"):
            return None  # a whole number has no negative zero, and a cell of CSV has
        fields["value"] = value and str(value)
        return self.read(*[fields.get(name) or "" for name in COLUMNS])

    def read(
        self,
        user_id: str,
        variant: str,
        timestamp: str,
        converted_at: str,
        metric: str,
        value: str,
        key: str,
    ) -> Read | None:
        """Return what these cells say, or None if the schema has to read them."""
        chosen, assigned_at = self._variants.get(variant), self._assigned_at(timestamp)
        if chosen is None or assigned_at is None or not is_usual_id(user_id):
            return None
        if converted_at:
            event = self._event(user_id, assigned_at, converted_at, metric, value, key)
            return event and Read(user_id, chosen, assigned_at, "", event)
        if metric or value or key:
            return None
        return Read(user_id, chosen, assigned_at, "", None)

    def _assigned_at(self, timestamp: str) -> int | None:
        time = microseconds(timestamp)
        return None if time is None or time > self._latest else time

    def _event(
        self,
        user_id: str,
        assigned_at: int,
        converted_at: str,
        metric: str,
        value: str,
        key: str,
    ) -> Event | None:
        time = microseconds(converted_at)
        if time is None or not assigned_at - EARLIER <= time <= self._latest:
            return None
        if metric and not is_usual_id(metric):
            return None
        if value and not PLAIN_NUMBER.fullmatch(value):
            return None
        if key and (not is_usual_id(key) or key.startswith(rows.IMPORTED)):
            return None
        metric = metric or self._primary_metric
        if not self._metrics.admit(metric):
            return None
        time = max(time, assigned_at)
        made = key or content_key(user_id, metric, time, value)
        return Event(metric, value, time, made, not key)


def content_key(user_id: str, metric: str, time: int, value: str) -> str:
    """Return the key that is made of the content of a line."""
    number = Decimal(value) if value else None
    return rows.content_key(user_id, metric, EPOCH + time * MICROSECOND, number)
