"""JSON: read strictly, and written with exact numbers."""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from datetime import datetime
from decimal import Decimal
from functools import cache
from itertools import accumulate
from typing import Any

import simplejson
from marshmallow import ValidationError

DEPTH = 64

ERRORS = 100  # the most that one refusal reports

PIECE = 65_536  # bytes of a body that are scanned at a time

ROWS = 10_000  # the most in a batch

ROWS_DEPTH = 2  # of rows: they are in a list in an object

MARKS = b"[]{},"

NO_MARKS = bytes(set(range(256)) - set(MARKS))

STEPS_OF_DEPTH = bytes.maketrans(MARKS, b"\x01\xff\x01\xff\0")  # 1, -1 or 0

# In JSON without escaped backslashes: NUL, or half a surrogate pair.
UNSTORABLE = re.compile(
    rb"\\u0000"
    rb"|\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]"
)

FORBIDDEN = re.compile("[\0\ud800-\udfff]")

REFUSED_TEXT = "A text may hold neither NUL nor half a surrogate pair."


class InvalidJson(Exception):
    """A text is not JSON, or not JSON that every parser reads in the same way."""


def loads(body: bytes, rows: str | None = None) -> Any:
    """Return the value of strict JSON in UTF-8; numbers are int or Decimal.

    With *rows*, the name of a batch's list, raise ValidationError if the list has more
    than 10,000 items, before any of them is read.

    Raise InvalidJson for anything that two parsers may read differently: duplicate
    keys, NaN, other encodings, a depth over 64. Raise ValidationError, with its path,
    for a text that contains NUL or half a surrogate pair.
    """
    if body.startswith(BOM_UTF8):  # simplejson would ignore it
        raise InvalidJson("The text begins with a byte order mark.")
    # A pair of backslashes does not escape the character after it.
    has_escapes = b"\\" in body
    plain_body = body.replace(b"\\\\", b"..") if has_escapes else body
    _refuse_size(plain_body, rows)
    try:
        document = _decoder().decode(body.decode())
    except UnicodeDecodeError as error:
        raise InvalidJson("The text is not UTF-8.") from error
    except (ValueError, ArithmeticError) as error:
        raise InvalidJson(f"The text is not JSON: {error}") from error
    if has_escapes and UNSTORABLE.search(plain_body):
        _refuse_forbidden(document)
    return document


def plain_texts(body: bytes, rows: str, key: str) -> list[str] | None:
    """Return the texts of a body such as `{"users": [{"userId": "u1"}, ...]}`.

    *rows* names its list, and *key* the one key of each row. None for any other body,
    also for one that `loads` refuses. Without a backslash, each quote begins or ends a
    text, so the number of quotes shows that there is no other key, and none twice.
    """
    if b"\\" in body:
        return None
    try:
        texts = [row[key] for row in json.loads(body.decode())[rows]]
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    if not 0 < len(texts) <= ROWS or set(map(type, texts)) != {str}:
        return None
    return texts if body.count(b'"') == 2 + 4 * len(texts) else None


def _refuse_size(plain_body: bytes, rows: str | None) -> None:
    """Raise InvalidJson for brackets over 64 deep, ValidationError for too many rows.

    The body is scanned in pieces. A regular expression for a text with escapes would
    need a hundred times the memory of the text.
    """
    if rows is None and plain_body.count(b"{") + plain_body.count(b"[") <= DEPTH:
        return
    depth = commas = 0
    for marks in _marks(plain_body):
        brackets = marks.translate(STEPS_OF_DEPTH, b",")
        opened = brackets.count(b"\x01")
        has_commas = rows is not None and len(marks) > len(brackets)
        if has_commas or depth + opened > DEPTH:
            depths = _depths(brackets, depth)
            if max(depths) > DEPTH:
                raise InvalidJson(f"The JSON is nested over {DEPTH} deep.")
            if has_commas and ROWS_DEPTH in depths:
                # A comma repeats the depth at its place.
                repeated = _depths(marks.translate(STEPS_OF_DEPTH), depth)
                commas += repeated.count(ROWS_DEPTH) - depths.count(ROWS_DEPTH)
                if rows is not None and commas >= ROWS:
                    message = f"A batch has at most {ROWS:,} rows."
                    raise ValidationError({rows: [message]})
        depth += 2 * opened - len(brackets)


def _depths(steps: bytes, depth: int) -> list[int]:
    """Return the depth, and the depth after each of these steps."""
    return list(accumulate(memoryview(steps).cast("b"), initial=depth))


def _marks(plain_body: bytes) -> Iterator[bytes]:
    """Yield the brackets and commas outside of texts, a piece at a time."""
    if b"\\" in plain_body:
        plain_body = plain_body.replace(b'\\"', b"..")
    is_quoted = False
    for start in range(0, len(plain_body), PIECE):
        parts = plain_body[start : start + PIECE].split(b'"')
        outside = parts[is_quoted::2]
        is_quoted ^= len(parts) % 2 == 0
        yield b"".join(outside).translate(None, NO_MARKS)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    whole = dict(pairs)
    if len(whole) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise InvalidJson(f"The key {quoted(key)} stands twice in one object.")
            seen.add(key)
    return whole


def _refuse_constant(name: str) -> None:
    raise InvalidJson(f"{name} is not JSON.")


@cache  # to make one takes as long as to read a small body
def _decoder() -> Any:
    return simplejson.JSONDecoder(
        parse_float=Decimal, object_pairs_hook=_object, parse_constant=_refuse_constant
    )


def _refuse_forbidden(document: Any) -> None:
    path = _forbidden(document)
    if path is not None:
        nested: Any = [REFUSED_TEXT]
        for step in path:
            nested = {step: nested}
        raise ValidationError(nested)


def _forbidden(document: Any) -> list[str] | None:
    """Return the path to the first text that cannot be stored, or None."""
    if isinstance(document, str):
        return [] if FORBIDDEN.search(document) else None
    if isinstance(document, dict):
        if any(FORBIDDEN.search(key) for key in document):
            return []
        items: Iterable[tuple[Any, Any]] = document.items()
    elif isinstance(document, list):
        items = enumerate(document)
    else:
        return None
    for step, item in items:
        if isinstance(item, str | dict | list):
            path = _forbidden(item)
            if path is not None:
                return [*path, str(step)]
    return None


def cut(text: str, most: int = 255) -> str:
    """Return at most the beginning of a text that a client sent."""
    return text if len(text) <= most else f"{text[:most]}..."


def quoted(text: str) -> str:
    """Return the beginning of a text, quoted and in ASCII."""
    return ascii(cut(text, 100))


def dumps(value: Any, **_: Any) -> str:
    """Return JSON text; Decimals are written exactly."""
    return str(_encoder().encode(value))


@cache
def _encoder() -> Any:
    return simplejson.JSONEncoder(
        ensure_ascii=False, use_decimal=True, allow_nan=False, default=as_text
    )


def as_text(value: Any) -> str:
    """Return a value as text, with times and numbers as on the wire."""
    if isinstance(value, datetime):
        return moment(value)
    return str(plain(value) if isinstance(value, Decimal) else value)


def plain(number: Decimal) -> int | Decimal:
    """Return the same number, as an int if it is whole."""
    whole = number.to_integral_value()
    return int(whole) if number == whole else number


def moment(value: datetime) -> str:
    """Return the time as the wire has it: UTC, with a Z."""
    return value.isoformat().replace("+00:00", "Z")
