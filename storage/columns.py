"""Column types, and the only two impure helpers: the clock and random ids."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from decimal import Context, Decimal, Inexact
from typing import Any

import simplejson
from peewee import BigIntegerField, TextField


def utcnow() -> datetime:
    """Return the present moment, to the microsecond, in UTC."""
    return datetime.now(timezone.utc)


def new_id(prefix: str) -> Callable[[], str]:
    """Return a function that makes ids such as ``exp_4f0c9ba2d17e86b35a10``."""
    return lambda: f"{prefix}_{secrets.token_hex(10)}"


EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

MICROSECOND = timedelta(microseconds=1)


EXACT = Context(prec=1_000, traps=[Inexact])
"""Enough digits for the square of any total; a result that does not fit raises."""


class Utc(BigIntegerField):
    """A time, stored as microseconds since 1970: exact, and a day is a division."""

    def db_value(self, value: datetime | None) -> int | None:
        return value if value is None else (value - EPOCH) // MICROSECOND

    def python_value(self, value: int | None) -> datetime | None:
        return value if value is None else EPOCH + value * MICROSECOND


class Json(TextField):
    """A JSON value, stored as text, which keeps the order of keys and exact numbers."""

    def db_value(self, value: Any) -> str | None:
        if value is None:
            return None
        return simplejson.dumps(value, ensure_ascii=False, separators=(",", ":"))

    def python_value(self, value: str | None) -> Any:
        return value if value is None else simplejson.loads(value, use_decimal=True)


class Exact(TextField):
    """A decimal number, stored as the engine stores it without rounding."""

    field_type = "EXACT"

    def db_value(self, value: Decimal | None) -> str | None:
        return value if value is None else format(value, "f")

    def python_value(self, value: str | None) -> Decimal | None:
        return value if value is None else Decimal(value)
