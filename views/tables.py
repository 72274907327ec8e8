"""Results as tables: text, Markdown, CSV."""

from __future__ import annotations

import csv
import io
import re
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from itertools import pairwise
from math import floor, log10
from typing import Any, NamedTuple

import tabulate
from flask import Response, request
from wcwidth import wcswidth, wcwidth

from web.csv import _guarded


def readable(
    name: str, result: dict[str, Any], drawn: Callable[[str, Any], Sheet]
) -> Any:
    """Return the result as JSON, or as the text that the caller accepts rather."""
    accepted = request.accept_mimetypes
    form = accepted.best_match(["application/json", *FORMS])
    if form not in FORMS:
        return result
    text = FORMS[form](drawn(name, result))
    return Response(text, content_type=f"{form}; charset=utf-8")


tabulate.MIN_PADDING = 0  # every column counts

WIDTH = 80

BAR = 10

NAME = 12

NONE = "-"

# What moves a cursor, ends a line or turns the direction of what follows.
CONTROLS = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)

MARKS = 2  # on one letter, as Vietnamese and Hindi have them

# They change the width of the letter before them, in some terminals and not in others.
SELECTORS = frozenset(map(chr, [*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)]))

# So many decimals fit the widest tables.
MOST_OF_RATES, MOST_OF_LIFTS, MOST_OF_AMOUNTS = 7, 4, 6

LARGEST_LIFT = 1_000

NOISE = 1e-9

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


def counts(name: str, result: dict[str, Any]) -> Sheet:
    """Return the sheet of raw counts, with its days where it has any."""
    rows = [(variant, row) for variant in result["variants"] for row in _rows(variant)]
    decimals = _shares([_rate(row, variant) for variant, row in rows])
    counted = [
        [
            _clipped(variant["variantName"]),
            _clipped(row["metric"], 10),
            f"{variant['participants']:,}",
            f"{row['conversions']:,}",
            f"{row['events']:,}",
            _percent(_rate(row, variant), decimals),
            _filled(_rate(row, variant)),
        ]
        for variant, row in rows
    ]
    headers = ["variant", "metric", "users", "converted", "events", "rate", ""]
    grids = [Grid(headers, counted, "llrrrrl")]
    valued = [(variant, row) for variant, row in rows if row["value"]["count"]]
    sums = _amounts([row["value"]["sum"] for _, row in valued])
    values = [
        [
            _clipped(variant["variantName"]),
            _clipped(row["metric"], 10),
            f"{row['value']['count']:,}",
            amount,
        ]
        for (variant, row), amount in zip(valued, sums, strict=True)
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
    found = [variant["conversionRate"] for variant in variants]
    decimals = _shares(found, *intervals)
    rates = [
        [
            _clipped(variant["variantName"]),
            f"{variant['sampleSize']:,}",
            f"{variant['conversions']:,}",
            _percent(variant["conversionRate"], decimals),
            _span(interval, _percent, decimals),
            _strip(interval, variant["conversionRate"], low, high),
        ]
        for variant, interval in zip(variants, intervals, strict=True)
    ]
    headers = ["variant", "users", "converted", "rate", f"{level:.4g}% interval", ""]
    grids = [Grid(headers, rates, "lrrrrl")]
    comparisons = [one for variant in variants if (one := variant["comparison"])]
    decimals = _lifts(one["lift"] for one in comparisons)
    compared = [
        [
            _clipped(variant["variantName"]),
            _lift(told["lift"], decimals),
            _span(told["sequential"]["liftInterval"], _lift, decimals),
            _p_value(told["sequential"]["adjustedPValue"]),
            _p_value(told["fixedHorizon"]["pValue"]),
            _chance(variant["probabilityBest"]),
        ]
        for variant in variants
        if (told := variant["comparison"])
    ]
    headers = ["to control", "lift", "lift at any look", "p", "p one look", "best"]
    grids.append(Grid(headers, compared, "lrrrrr"))
    valued = [(one, value) for one in variants if (value := one["value"])]
    amounts = iter(
        _amounts([value["mean"] for _, value in valued if value["mean"] is not None])
    )
    told_of = [value["comparison"] for _, value in valued]
    decimals = _lifts(told["lift"] for told in told_of if told)
    means = [
        [
            _clipped(variant["variantName"]),
            NONE if value["mean"] is None else next(amounts),
            _lift(told["lift"] if told else None, decimals),
            _p_value(told["sequential"]["adjustedPValue"] if told else None),
            _p_value(told["fixedHorizon"]["pValue"] if told else None),
        ]
        for (variant, value), told in zip(valued, told_of, strict=True)
    ]
    if means:
        headers = ["value", "mean a user", "lift", "p", "p one look"]
        grids.append(Grid(headers, means, "lrrrr"))
    verdict = result["verdict"]
    notes = [caution["message"] for caution in result["warnings"]]
    made = result["analysis"]["inputHash"][:12]
    if "asOf" in result:
        made += f", as received by {result['asOf']}"
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


def _visible(text: str) -> str:
    """Return the text without what hides, moves or shifts what is beside it.

    A control character is shown as "?". What takes no room is left out, but for two
    marks on a letter: more would be drawn over the lines above and below.
    """
    kept: list[str] = []
    marks = 0
    for letter in CONTROLS.sub("?", unicodedata.normalize("NFC", text)):
        if unicodedata.category(letter) == "Cf":
            continue
        if wcwidth(letter) > 0:
            kept.append(letter)
            marks = 0
        elif wcwidth(letter) < 0:
            kept.append("?")
            marks = 0
        elif kept and marks < MARKS and _is_mark(letter):
            kept.append(letter)
            marks += 1
    return "".join(kept) or "?" * bool(text)


def _is_mark(letter: str) -> bool:
    return letter not in SELECTORS and unicodedata.category(letter) in ("Mn", "Mc")


def _clipped(text: str, width: int = NAME) -> str:
    """Return the visible text in at most so many columns."""
    text = _visible(text)
    taken, kept = 0, 0
    for letter in text:
        taken += wcwidth(letter)
        if taken <= width - 1:
            kept += len(letter)
    return text if taken <= width else f"{text[:kept]}…"


def _decimals(number: float, digits: int) -> int:
    """Return the decimals that show so many digits of a number.

    0 for 0, and for what is so small that it is the noise of a float.
    """
    if abs(number) < NOISE:
        return 0
    return max(digits - 1 - floor(log10(abs(number))), 0)


def _apart(numbers: Iterable[float]) -> int:
    """Return the decimals that show two digits of each difference of two numbers."""
    gaps = [high - low for low, high in pairwise(sorted(set(numbers)))]
    return max((_decimals(gap, 2) for gap in gaps), default=0)


def _fixed(number: Any, decimals: int) -> str:
    """Return a number with so many decimals; what rounds to 0 has no sign."""
    text = f"{number:,.{decimals}f}"
    return text if text.strip("-0.,") else text.removeprefix("-")


def _shares(column: Sequence[float], *intervals: dict[str, Any]) -> int:
    """Return the decimals of a column of rates in percent, the same for all.

    Each shows two digits of what it is from the nearer end, 0 % or 100 %, and of
    what it is from the others; and no interval that has a width seems to have none.
    """
    rates = [100 * float(share) for share in column]
    wanted = [_decimals(min(rate, 100 - rate), 2) for rate in rates]
    widths = [100 * (each["upper"] - each["lower"]) for each in intervals]
    wanted += [_decimals(width, 1) for width in widths]
    return min(max(1, _apart(rates), *wanted), MOST_OF_RATES)


def _percent(share: float, decimals: int) -> str:
    return f"{_fixed(100 * share, decimals)}%"


def _chance(share: float | None) -> str:
    """Return a probability in percent; none but 0 and 1 is shown as 0 or 100."""
    if share is None:
        return NONE
    if 0.9995 <= share < 1:
        return "> 99.9%"
    return "< 0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def _lifts(column: Iterable[float | None]) -> int:
    """Return the decimals of a column of lifts in percent, the same for all."""
    lifts = [100 * lift for lift in column if lift is not None]
    wanted = [_decimals(lift, 2) for lift in lifts]
    return min(max(1, _apart(lifts), *wanted), MOST_OF_LIFTS)


def _lift(share: float | None, decimals: int) -> str:
    if share is None:
        return NONE
    if abs(share) >= LARGEST_LIFT:
        return f"{'>' if share > 0 else '<'} {_fixed(share / abs(share) * 99_999, 0)}%"
    # Of thousands nobody reads decimals, and there is no room for them.
    text = _fixed(100 * share, decimals if abs(share) < 10 else 0)
    return f"{'+' if share > 0 and text.strip('0.') else ''}{text}%"


def _amounts(column: Sequence[Any]) -> list[str]:
    """Return the numbers of a column with as many decimals each, and no exponent.

    Whole numbers have none. Others have two, or more where a small one or a small
    difference is seen only then.
    """
    numbers = [Decimal(str(number)) for number in column]
    if all(number == number.to_integral_value() for number in numbers):
        return [f"{int(number):,}" for number in numbers]
    sizes = [float(number) for number in numbers]
    wanted = [_decimals(size, 2) for size in sizes]
    decimals = min(max(2, _apart(sizes), *wanted), MOST_OF_AMOUNTS)
    return [_fixed(number, decimals) for number in numbers]


def _p_value(p_value: float | None) -> str:
    if p_value is None:
        return NONE
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _span(interval: dict[str, Any], form: Callable[..., str], decimals: int) -> str:
    lower, upper = interval["lower"], interval["upper"]
    return f"{form(lower, decimals)} to {form(upper, decimals)}"


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


def plain(sheet: Sheet) -> str:
    """Return the sheet for a terminal of 80 columns."""
    parts = [_wrapped(sheet.title), _wrapped(sheet.lead)]
    parts += [_fitted(grid) for grid in sheet.grids]
    parts += [_wrapped(note) for note in sheet.notes]
    return "\n\n".join(parts) + "\n"


def _fitted(grid: Grid) -> str:
    """Return the table in 80 columns: a drawing gives way to digits."""
    drawn = _drawn(grid, "simple")
    if max(map(wcswidth, drawn.splitlines())) > WIDTH and not grid.headers[-1]:
        rows = [row[:-1] for row in grid.rows]
        return _drawn(Grid(grid.headers[:-1], rows, grid.alignment[:-1]), "simple")
    return drawn


def _wrapped(text: str) -> str:
    lines = textwrap.wrap(_visible(text), WIDTH, break_on_hyphens=False)
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
    return MARKUP.sub(r"\\\1", _visible(text))


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
    """Return the figures as CSV (RFC 4180) with a header line.

    It is to be looked at in a spreadsheet, and nothing reads it back. So an
    apostrophe stands also where a formula could begin that an export has to keep.
    """
    names = list(dict.fromkeys(name for row in sheet.figures for name in row))
    # The control has no comparison where the others have one of many figures.
    held = {name.rpartition(".")[0] for name in names}
    shown = [name for name in names if name not in held]
    text = io.StringIO()
    lines = csv.writer(text)
    lines.writerow(shown)
    lines.writerows(
        [_guarded(row.get(name)) for name in shown] for row in sheet.figures
    )
    return text.getvalue()


FORMS: dict[str, Callable[[Sheet], str]] = {
    "text/plain": plain,
    "text/markdown": markdown,
    "text/csv": comma_separated,
}
