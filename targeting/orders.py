"""Versions and moments: texts that have an order of their own (pure).

**Versions** are those of SemVer 2.0 (https://semver.org), in the order of its section
11: a pre-release comes before its release, and build metadata counts for nothing. Two
spellings that are common in the field are read as well: a leading ``v`` or ``V`` is
skipped, and a missing minor or patch number is 0, so that ``v1.2`` is ``1.2.0``. A
text of more than 256 characters is no version.

**Moments** are dates with a time and a zone in ISO-8601, such as
``2025-02-01T09:30:00.5+01:00``, from year 1 to 9999. The seconds may be left out, and
have up to 9 decimals, which all count. A date alone is no moment, because it begins
at another moment in each zone. There is no leap second and no hour 24.
"""

from __future__ import annotations

import re
from typing import Any

Key = tuple[Any, ...]
"""Keys of texts of one kind compare as the texts do."""

VERSION_LENGTH = 256

_NUMBER = r"(0|[1-9][0-9]*)"

_IDENTIFIER = r"(?:0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"

VERSION = re.compile(
    rf"[vV]?{_NUMBER}(?:\.{_NUMBER}(?:\.{_NUMBER})?)?"
    rf"(?:-({_IDENTIFIER}(?:\.{_IDENTIFIER})*))?"
    r"(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?"
)

MOMENT = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]"
    r"([01][0-9]|2[0-3]):([0-5][0-9])(?::([0-5][0-9])(?:[.,]([0-9]{1,9}))?)?"
    r"(?:[Zz]|([+-])([01][0-9]|2[0-3]):?([0-5][0-9]))"
)

DAYS_OF_MONTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def version(text: str) -> Key | None:
    """Return the key of a version, or None if the text is none."""
    match = VERSION.fullmatch(text) if len(text) <= VERSION_LENGTH else None
    if match is None:
        return None
    major, minor, patch, before = match.groups()
    numbers = (_numeric(number or "0") for number in (major, minor, patch))
    if before is None:
        return *numbers, True
    return *numbers, False, tuple(map(_identifier, before.split(".")))


def _numeric(digits: str) -> Key:
    """Return a key in the order of the numbers, without reading a long number."""
    return len(digits), digits


def _identifier(text: str) -> Key:
    """Return the key of a pre-release identifier: numbers are lower than words."""
    return (0, *_numeric(text)) if text.isdigit() else (1, text)


def moment(text: str) -> Key | None:
    """Return the key of a moment, its seconds and decimals; None if it is none."""
    match = MOMENT.fullmatch(text)
    if match is None:
        return None
    *date, hour, minute, second, decimals, sign, hours, minutes = match.groups()
    days = _days(*map(int, date))
    if days is None:
        return None
    east = int(f"{sign}1") * (int(hours) * 60 + int(minutes)) if sign else 0
    seconds = (days * 1440 + int(hour) * 60 + int(minute) - east) * 60
    return seconds + int(second or 0), (decimals or "").ljust(9, "0")


def _days(year: int, month: int, day: int) -> int | None:
    """Return the days up to a Gregorian date, or None if there is no such date."""
    is_leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if year < 1 or not 1 <= month <= 12:
        return None
    if not 1 <= day <= DAYS_OF_MONTHS[month - 1] + (is_leap and month == 2):
        return None
    past = year - 1
    years = past * 365 + past // 4 - past // 100 + past // 400
    return years + sum(DAYS_OF_MONTHS[: month - 1]) + (is_leap and month > 2) + day
