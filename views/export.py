"""Exported rows as CSV and as JSON lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ledger.rows import ExportedRow
from views.figures import on_the_wire
from web import csv
from web.json import dumps


def columns(has_covariates: bool) -> Sequence[str]:
    """Return the columns of an export, of which the covariate is the last one."""
    return ExportedRow._fields if has_covariates else ExportedRow._fields[:-1]


def csv_lines(rows: Iterable[ExportedRow], columns: Sequence[str]) -> Iterator[str]:
    """Yield exported rows as CSV, with a header line."""
    last = len(columns)
    return csv.csv_lines(columns, (map(on_the_wire, row[:last]) for row in rows))


def json_lines(rows: Iterable[ExportedRow], columns: Sequence[str]) -> Iterator[str]:
    """Yield exported rows as JSON, one object on each line."""
    for row in rows:
        # The covariate of the row is left out if the export has no such column.
        yield f"{dumps(dict(zip(columns, map(on_the_wire, row), strict=False)))}\n"
