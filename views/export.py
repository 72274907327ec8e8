"""Exported rows as CSV and as JSON lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ledger.rows import ExportedRow
from views.figures import on_the_wire
from web import csv
from web.json import dumps


def csv_lines(rows: Iterable[ExportedRow]) -> Iterator[str]:
    """Yield exported rows as CSV, with a header line."""
    return csv.csv_lines(ExportedRow._fields, (map(on_the_wire, row) for row in rows))


def json_lines(rows: Iterable[ExportedRow]) -> Iterator[str]:
    """Yield exported rows as JSON, one object on each line."""
    for row in rows:
        cells = dict(zip(ExportedRow._fields, map(on_the_wire, row), strict=True))
        yield f"{dumps(cells)}\n"
