"""Exported rows as CSV and as JSON lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ledger.rows import EXPORTED
from web import csv
from web.json import dumps, moment, plain


def csv_lines(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield exported rows as CSV, with a header line."""
    return csv.csv_lines(EXPORTED, map(_exported, rows))


def json_lines(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield exported rows as JSON, an object a line."""
    return (f"{dumps(_exported(row))}\n" for row in rows)


def _exported(row: dict[str, Any]) -> dict[str, Any]:
    times = {name: row[name] and moment(row[name]) for name in TIMES}
    value = row["value"]
    return {**row, **times, "value": value if value is None else plain(value)}


TIMES = ("timestamp", "converted_at")
