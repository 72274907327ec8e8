"""Results as text: for a terminal of 80 columns, a pull request, a spreadsheet (pure).

What goes in is an answer as the wire has it; nothing is counted or rounded but for
the eye, and in CSV every figure stands as it is.
"""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import tabulate
from wcwidth import wcwidth

tabulate.MIN_PADDING = 0  # every column counts
WIDTH = 80
BAR = 10
NAME = 12
NONE = "-"
# What moves a cursor, ends a line or turns the direction of what follows.
CONTROLS = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
FORMULAS = tuple("=+-@\t\r'")  # what a text begins with that is given an apostrophe
MARKUP = re.compile(r"([\\`*_{}\[\]<>|~@#&])")


class Grid(NamedTuple):
    """One table: its headers, rows of text, and l or r for each column."""

    headers: list[str]
    rows: list[list[str]]
    alignment: str


class Sheet(NamedTuple):
    """What is told of a result, and its figures, a row for each."""

    title: str
    lead: str
    grids: list[Grid]
    notes: list[str]
    figures: list[dict[str, Any]]


# ----------------------------------------------------------------------------
# What is told
# ----------------------------------------------------------------------------


def counts(name: str, result: dict[str, Any]) -> Sheet:
    """Return the sheet of raw counts, with its days where it has any."""
    rows = [(variant, row) for variant in result["variants"] for row in _rows(variant)]
    counted = [
        [
            _clipped(variant["variantName"]),
            _clipped(row["metric"], 10),
            f"{variant['participants']:,}",
            f"{row['conversions']:,}",
            f"{row['events']:,}",
            _percent(_rate(row, variant)),
            _filled(_rate(row, variant)),
        ]
        for variant, row in rows
    ]
    headers = ["variant", "metric", "users", "converted", "events", "rate", ""]
    grids = [Grid(headers, counted, "llrrrrl")]
    values = [
        [
            _clipped(variant["variantName"]),
            _clipped(row["metric"], 10),
            f"{row['value']['count']:,}",
            _number(row["value"]["sum"]),
        ]
        for variant, row in rows
        if row["value"]["count"]
    ]
    if values:
        headers = ["variant", "metric", "users with a value", "sum of values"]
        grids.append(Grid(headers, values, "llrr"))
    days = [
        (day["date"], variant, day["participants"], row)
        for variant in result["variants"]
        for day in variant.get("series", [])
        for row in day["results"] or [NOTHING]
    ]
    if days:
        days.sort(key=lambda each: each[0])
        daily = [
            [
                day,
                _clipped(variant["variantName"]),
                f"{new:,}",
                _clipped(row["metric"]),
                f"{row['conversions']:,}",
                f"{row['events']:,}",
            ]
            for day, variant, new, row in days
        ]
        headers = ["day (UTC)", "variant", "new users", "metric", "converted", "events"]
        grids.append(Grid(headers, daily, "llrlrr"))
    figures = (
        [
            _flat({**_without(variant, "results", "series"), **row})
            for variant, row in rows
        ]
        if not days
        else [
            _flat({"date": day, **_identity(variant), "participants": new, **row})
            for day, variant, new, row in days
        ]
    )
    quality = result["quality"]
    told = (
        f"{quality['received']:,} conversions received: {quality['counted']:,} "
        f"counted, {quality['duplicates']:,} duplicates, "
        f"{quality['beforeEnrollment']:,} before the enrolment, "
        f"{quality['notEnrolled']:,} of users who are not enrolled."
    )
    lead = result["status"]
    if "asOf" in result:
        lead += f", as received by {result['asOf']}"
    return Sheet(name, lead, grids, [told], figures)


NOTHING = {"metric": "", "conversions": 0, "events": 0, "value": {"count": 0, "sum": 0}}


def analysis(name: str, result: dict[str, Any]) -> Sheet:
    """Return the sheet of a computed result, with its verdict first."""
    variants = result["variants"]
    intervals = [variant["confidenceInterval"] for variant in variants]
    level = 100 * intervals[0]["level"]
    low = min(interval["lower"] for interval in intervals)
    high = max(interval["upper"] for interval in intervals)
    rates = [
        [
            _clipped(variant["variantName"]),
            f"{variant['sampleSize']:,}",
            f"{variant['conversions']:,}",
            _percent(variant["conversionRate"]),
            _span(interval, _percent),
            _strip(interval, variant["conversionRate"], low, high),
        ]
        for variant, interval in zip(variants, intervals, strict=True)
    ]
    headers = ["variant", "users", "converted", "rate", f"{level:.4g}% interval", ""]
    grids = [Grid(headers, rates, "lrrrrl")]
    compared = [
        [
            _clipped(variant["variantName"]),
            _lift(told["lift"]),
            _span(told["sequential"]["liftInterval"], _lift),
            _p_value(told["sequential"]["adjustedPValue"]),
            _p_value(told["fixedHorizon"]["pValue"]),
            _percent(variant["probabilityBest"]),
        ]
        for variant in variants
        if (told := variant["comparison"])
    ]
    headers = ["to control", "lift", "lift at any look", "p", "p one look", "best"]
    grids.append(Grid(headers, compared, "lrrrrr"))
    means = [
        [
            _clipped(variant["variantName"]),
            _number(value["mean"]),
            _lift(told["lift"] if told else None),
            _p_value(told["sequential"]["adjustedPValue"] if told else None),
            _p_value(told["fixedHorizon"]["pValue"] if told else None),
        ]
        for variant in variants
        if (value := variant["value"])
        for told in [value["comparison"]]
    ]
    if means:
        headers = ["value", "mean a user", "lift", "p", "p one look"]
        grids.append(Grid(headers, means, "lrrrr"))
    verdict = result["verdict"]
    notes = [caution["message"] for caution in result["warnings"]]
    made = result["analysis"]["inputHash"][:12]
    notes.append(f"{verdict['status']}; metric {result['metric']}; inputs {made}")
    figures = [_flat(variant) for variant in variants]
    return Sheet(name, verdict["sentence"], grids, notes, figures)


def _rows(variant: dict[str, Any]) -> list[dict[str, Any]]:
    return variant["results"] or [NOTHING]


def _rate(row: dict[str, Any], variant: dict[str, Any]) -> float:
    users = variant["participants"]
    return row["conversions"] / users if users else 0.0


def _identity(variant: dict[str, Any]) -> dict[str, Any]:
    return {name: variant[name] for name in ("variantId", "variantName")}


def _without(told: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in told.items() if name not in names}


def _flat(told: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Return nested figures side by side: `comparison.lift`."""
    flat: dict[str, Any] = {}
    for name, value in told.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{path}{name}.")
        else:
            flat[path + name] = value
    return flat


# ----------------------------------------------------------------------------
# For the eye
# ----------------------------------------------------------------------------


def _clipped(text: str, width: int = NAME) -> str:
    """Return the text in at most so many columns, and without control characters."""
    text = CONTROLS.sub("?", text)
    taken, kept = 0, 0
    for letter in text:
        taken += max(wcwidth(letter), 0)
        if taken <= width - 1:
            kept += len(letter)
    return text if taken <= width else f"{text[:kept]}…"


def _percent(share: float | None) -> str:
    if share is None:
        return NONE
    return f"{share:.2%}" if abs(share) < 0.1 else f"{share:.1%}"


def _lift(share: float | None) -> str:
    if share is None:
        return NONE
    if abs(share) < 10:
        return f"{share:+.1%}"
    return f"{share:+.0%}" if abs(share) < 1_000 else f"{100 * share:+.1e}%"


def _number(value: Any) -> str:
    return NONE if value is None else f"{Decimal(str(value)):,.6g}"


def _p_value(p_value: float | None) -> str:
    if p_value is None:
        return NONE
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _span(interval: dict[str, Any], form: Callable[[Any], str]) -> str:
    return f"{form(interval['lower'])} to {form(interval['upper'])}"


def _filled(share: float) -> str:
    length = round(share * BAR)
    return "█" * length + "·" * (BAR - length)


def _strip(interval: dict[str, Any], rate: float, low: float, high: float) -> str:
    """Draw an interval on the line from *low* to *high*, with the rate on it."""
    width = high - low or 1.0

    def place(value: float) -> int:
        return round((value - low) / width * (BAR - 1))

    first, last = place(interval["lower"]), place(interval["upper"])
    line = ["·"] * BAR
    line[first : last + 1] = "─" * (last + 1 - first)
    line[first], line[last] = "├", "┤"
    line[place(rate)] = "●"
    return "".join(line)


# ----------------------------------------------------------------------------
# The forms
# ----------------------------------------------------------------------------


def plain(sheet: Sheet) -> str:
    """Return the sheet for a terminal of 80 columns."""
    parts = [_wrapped(sheet.title), _wrapped(sheet.lead)]
    parts += [_drawn(grid, "simple") for grid in sheet.grids]
    parts += [_wrapped(note) for note in sheet.notes]
    return "\n\n".join(parts) + "\n"


def _wrapped(text: str) -> str:
    lines = textwrap.wrap(CONTROLS.sub("?", text), WIDTH, break_on_hyphens=False)
    return "\n".join(lines)


def markdown(sheet: Sheet) -> str:
    """Return the sheet for a pull request; no name in it can be markup."""
    parts = [f"### {_escaped(sheet.title)}", f"**{_escaped(sheet.lead)}**"]
    for grid in sheet.grids:
        rows = [[_escaped(cell) for cell in row] for row in grid.rows]
        parts.append(_drawn(grid._replace(rows=rows), "pipe"))
    parts += [_escaped(note) for note in sheet.notes]
    return "\n\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    return MARKUP.sub(r"\\\1", CONTROLS.sub("?", text))


def _drawn(grid: Grid, form: str) -> str:
    sides = {"l": "left", "r": "right"}
    drawn = tabulate.tabulate(
        grid.rows,
        grid.headers,
        tablefmt=form,
        disable_numparse=True,
        colalign=[sides[side] for side in grid.alignment] if grid.rows else None,
    )
    return "\n".join(line.rstrip() for line in drawn.splitlines())


def comma_separated(sheet: Sheet) -> str:
    """Return the figures as CSV (RFC 4180) with a header line."""
    names = list(dict.fromkeys(name for row in sheet.figures for name in row))
    # The control has no comparison where the others have one of many figures.
    held = {name.rpartition(".")[0] for name in names}
    return "".join(
        csv_lines([name for name in names if name not in held], sheet.figures)
    )


def csv_lines(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a CSV file line by line.

    A text that a spreadsheet would take for a formula has an apostrophe before it,
    and so has one that begins with an apostrophe: `unguarded` takes it off again.
    """
    yield _csv_line(names)
    for row in rows:
        yield _csv_line(row.get(name) for name in names)


def _csv_line(cells: Iterable[Any]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow([_cell(cell) for cell in cells])
    return line.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and value.startswith(FORMULAS):
        return f"'{value}"
    return value


def unguarded(cell: str) -> str:
    """Return the text that stands in a cell of a CSV, as it was before `csv_lines`."""
    return cell[1:] if cell[:1] == "'" and cell[1:].startswith(FORMULAS) else cell


FORMS: dict[str, Callable[[Sheet], str]] = {
    "text/plain": plain,
    "text/markdown": markdown,
    "text/csv": comma_separated,
}
