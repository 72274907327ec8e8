"""CSV in which a spreadsheet finds no formula to run."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from typing import TypeAlias

# Where a spreadsheet may begin a formula: at the start of a text, and after the cell
# separators of some countries or files.
FORMULA = re.compile(
    r"\A(?=[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20])|(?<=[;\t\r\n])(?=[=+\-@\uff1d\uff0b\uff0d\uff20])"
)

FORMULAS = tuple("=+-@\t\r'")  # a text that begins so gets an apostrophe


Cell: TypeAlias = str | int | float | Decimal | None


def guarded(value: Cell) -> Cell:
    """Return a cell with an apostrophe wherever a formula could begin in it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return FORMULA.sub("'", value) if isinstance(value, str) else value


def csv_lines(names: Sequence[str], rows: Iterable[Iterable[Cell]]) -> Iterator[str]:
    """Yield a CSV file line by line.

    A text that a spreadsheet would read as a formula gets an apostrophe before it,
    and so does one that begins with an apostrophe; `unguarded` removes it again.
    """
    yield _csv_line(names)
    yield from map(_csv_line, rows)


def _csv_line(cells: Iterable[Cell]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow([_cell(cell) for cell in cells])
    return line.getvalue()


def _cell(value: Cell) -> Cell:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and value.startswith(FORMULAS):
        return f"'{value}"
    return value


def unguarded(cell: str) -> str:
    """Return the text of a CSV cell as it was before `csv_lines`."""
    return cell[1:] if cell[:1] == "'" and cell[1:].startswith(FORMULAS) else cell
