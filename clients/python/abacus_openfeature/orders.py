"""Versions and moments as keys that compare as the texts do."""

from __future__ import annotations

import re
from datetime import date
from typing import Any

Key = tuple[Any, ...]

_NUMBER = r"(0|[1-9][0-9]*)"
_IDENTIFIER = r"(?:0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_VERSION = re.compile(
    rf"[vV]?{_NUMBER}(?:\.{_NUMBER}(?:\.{_NUMBER})?)?"
    rf"(?:-({_IDENTIFIER}(?:\.{_IDENTIFIER})*))?"
    r"(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?"
)
_MOMENT = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]"
    r"([01][0-9]|2[0-3]):([0-5][0-9])(?::([0-5][0-9])(?:[.,]([0-9]{1,9}))?)?"
    r"(?:[Zz]|([+-])([01][0-9]|2[0-3]):?([0-5][0-9]))"
)


def version(text: str) -> Key | None:
    """Return the key of a version of SemVer 2.0, or None if the text is none.

    A leading `v` is skipped, and a missing minor or patch number is 0.
    """
    match = _VERSION.fullmatch(text) if len(text) <= 256 else None
    if match is None:
        return None
    *numbers, before = match.groups()
    key = tuple(_numeric(number or "0") for number in numbers)
    if before is None:
        return (*key, 1)
    return (*key, 0, tuple(map(_identifier, before.split("."))))


def _numeric(digits: str) -> Key:
    """Return a key in the order of the numbers; a long number is never converted."""
    return len(digits), digits


def _identifier(text: str) -> Key:
    return (0, *_numeric(text)) if text.isdigit() else (1, text)


def moment(text: str) -> Key | None:
    """Return the key of a date with a time and a zone, or None if the text is none."""
    match = _MOMENT.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second, decimals, sign, *zone = match.groups()
    try:
        days = date(int(year), int(month), int(day)).toordinal()
    except ValueError:
        return None
    east = (int(zone[0]) * 60 + int(zone[1])) * 60 if sign else 0
    seconds = days * 86_400 + int(hour) * 3_600 + int(minute) * 60 + int(second or 0)
    return seconds - (-east if sign == "-" else east), (decimals or "").ljust(9, "0")
