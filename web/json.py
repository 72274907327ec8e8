"""JSON read strictly, and written digit for digit."""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from datetime import datetime
from decimal import Decimal
from itertools import accumulate
from typing import Any

import simplejson
from marshmallow import ValidationError

DEPTH = 64

ERRORS = 100  # that a refusal names; after them no more are looked for

PIECE = 65_536  # bytes of a body that are looked through at a time

ROWS = 10_000  # of a batch

ROWS_DEPTH = 2  # where they stand: an object holds a list that holds them

MARKS = b"[]{},"

NO_MARKS = bytes(set(range(256)) - set(MARKS))

STEPS_OF_DEPTH = bytes.maketrans(MARKS, b"\x01\xff\x01\xff\0")  # 1, -1 or 0

# Of JSON whose escaped backslashes are taken out: NUL, or half a surrogate pair.
UNSTORABLE = re.compile(
    rb"\\u0000"
    rb"|\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]"
)

FORBIDDEN = re.compile("[\0\ud800-\udfff]")

REFUSED_TEXT = "A text may hold neither NUL nor half a surrogate pair."


class InvalidJson(Exception):
    """A text is not JSON that every reader reads alike: a body, a query, a line."""


def loads(body: bytes, rows: str | None = None) -> Any:
    """Return what strict JSON in UTF-8 says; numbers are int or Decimal.

    With *rows*, the name of the one list that a batch has, raise ValidationError
    for more than 10,000 items in it before any of them is read.

    Raise InvalidJson for anything that two readers may read differently: duplicate
    keys, NaN, other encodings, depth over 64; ValidationError, with its path, for
    a text that holds NUL or half a surrogate pair.
    """
    if body.startswith(BOM_UTF8):  # simplejson would pass over it
        raise InvalidJson("The text begins with a byte order mark.")
    # The first backslash of a pair is no escape of what follows the pair.
    plain_body = body.replace(b"\\\\", b"..") if b"\\" in body else body
    _refuse_size(plain_body, rows)
    try:
        document = simplejson.loads(
            body.decode(),
            use_decimal=True,
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
        )
    except UnicodeDecodeError as error:
        raise InvalidJson("The text is not UTF-8.") from error
    except (ValueError, ArithmeticError) as error:
        raise InvalidJson(f"The text is not JSON: {error}") from error
    if UNSTORABLE.search(plain_body):
        _refuse_forbidden(document)
    return document


def _refuse_size(plain_body: bytes, rows: str | None) -> None:
    """Raise InvalidJson for brackets over 64 deep, ValidationError for too many rows.

    The body is looked through in pieces and never matched as a whole: a pattern for
    a text with escapes needs a hundred times the memory of the text.
    """
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
                # A comma repeats the depth that it stands at.
                repeated = _depths(marks.translate(STEPS_OF_DEPTH), depth)
                commas += repeated.count(ROWS_DEPTH) - depths.count(ROWS_DEPTH)
                if rows is not None and commas >= ROWS:
                    told = f"A batch has at most {ROWS:,} rows."
                    raise ValidationError({rows: [told]})
        depth += 2 * opened - len(brackets)


def _depths(steps: bytes, depth: int) -> list[int]:
    """Return the depth, and how deep each of these steps leads from it."""
    return list(accumulate(memoryview(steps).cast("b"), initial=depth))


def _marks(plain_body: bytes) -> Iterator[bytes]:
    """Yield brackets and commas that stand outside of texts, a piece at a time."""
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


def _refuse_forbidden(document: Any) -> None:
    path = _forbidden(document)
    if path is not None:
        nested: Any = [REFUSED_TEXT]
        for step in path:
            nested = {step: nested}
        raise ValidationError(nested)


def _forbidden(document: Any) -> list[str] | None:
    """Return the steps to the first text that no database keeps, the last one first."""
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
    """Return a text, or its beginning: what was sent is not sent back whole."""
    return text if len(text) <= most else f"{text[:most]}..."


def quoted(text: str) -> str:
    """Return the beginning of a text, quoted and in ASCII."""
    return ascii(cut(text, 100))


def dumps(value: Any, **_: Any) -> str:
    """Return JSON text; Decimals are written digit for digit."""
    return simplejson.dumps(
        value, ensure_ascii=False, use_decimal=True, allow_nan=False, default=as_text
    )


def as_text(value: Any) -> str:
    """Return a value as text: a time and a number as the wire has them everywhere."""
    if isinstance(value, datetime):
        return moment(value)
    return str(plain(value) if isinstance(value, Decimal) else value)


def plain(number: Decimal) -> int | Decimal:
    """Return the same number, to the digit, and a whole one as an int."""
    whole = number.to_integral_value()
    return int(whole) if number == whole else number


def moment(value: datetime) -> str:
    """Return the time as the wire has it: UTC, with a Z."""
    return value.isoformat().replace("+00:00", "Z")
