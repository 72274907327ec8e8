"""Results as tables: text, Markdown, CSV."""

from __future__ import annotations

import csv
import io
import re
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import Any, NamedTuple, TypeVar

import tabulate
from flask import Response, request
from wcwidth import wcswidth, wcwidth

from models import Experiment
from stats.results import (
    CONVERSION,
    RATIO,
    Analysis,
    Interval,
    MetricFigures,
    VariantFigures,
)
from stats.wording import decimals, decimals_apart, points
from views.figures import (
    Computed,
    Day,
    DaysMetric,
    Quality,
    Results,
    Value,
    VariantsCounts,
    VariantsMetric,
    on_the_wire,
)
from web.csv import Cell, guarded
from web.fields import camel_case
from web.json import moment

Result = TypeVar("Result", Results, Computed)


def readable(
    name: str, result: Result, drawn: Callable[[str, Result], Sheet]
) -> Result | Response:
    """Return the result for JSON, or as the text that the caller prefers."""
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
    """A result as text and tables, and its figures as rows for CSV."""

    title: str
    lead: str
    grids: list[Grid]
    notes: list[str]
    figures: list[dict[str, Cell]]


Row = tuple[VariantsCounts, VariantsMetric | DaysMetric]
"""A variant, and its counts in one metric."""

NOTHING = DaysMetric("", 0, 0, Value(0, Decimal(0)))


def counts(name: str, result: Results) -> Sheet:
    """Return the sheet of raw counts, with its days if it has any."""
    rows: list[Row] = []
    for variant in result.variants:
        rows += [(variant, row) for row in variant.results] or [(variant, NOTHING)]
    days = [
        (day, variant, row)
        for variant in result.variants
        for day in variant.series or []
        for row in day.results or [NOTHING]
    ]
    days.sort(key=lambda each: each[0].date)
    grids = [_counts_grid(rows)]
    if valued := [(variant, row) for variant, row in rows if row.value.count]:
        grids.append(_values_grid(valued))
    if days:
        grids.append(_days_grid(days))
    lead = result.status
    if result.as_of:
        lead += f", as received by {moment(result.as_of)}"
    figures = [
        _flat(variant._replace(results=[])) | _metric_figures(row)
        for variant, row in rows
    ]
    if days:
        figures = [_day_figures(*each) for each in days]
    return Sheet(name, lead, grids, [quality_sentence(result.quality)], figures)


def experiments(rows: Sequence[Experiment], width: int = WIDTH) -> Sheet:
    """Return the sheet of a list of experiments, for so many columns.

    A key that is too long for the table gives way to the id, which is as good a name.
    """
    cells = [
        [
            row.key if len(row.key) <= width // 2 else row.id,
            row.state_or_archived,
            f"{row.participants:,}",
        ]
        for row in rows
    ]
    headers = ["key", "state", "users"]
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    left = max(NAME, width - sum(widths) - 2 * len(widths))
    for row, shown in zip(rows, cells, strict=True):
        shown.append(clipped(row.name, left))
    lead = f"{len(rows):,} experiment{'' if len(rows) == 1 else 's'}"
    grids = [Grid([*headers, "name"], cells, "llrl")] if rows else []
    return Sheet("Experiments, newest first", lead, grids, [], [])


def _counts_grid(rows: Sequence[Row]) -> Grid:
    places = _shares([_rate(row, variant) for variant, row in rows])
    highest: dict[str, float] = {}
    for variant, row in rows:
        rate = _rate(row, variant)
        highest[row.metric] = max(rate, highest.get(row.metric, 0.0))
    cells = [
        [
            clipped(variant.variant_name),
            clipped(row.metric, 10),
            f"{variant.participants:,}",
            f"{row.conversions:,}",
            f"{row.events:,}",
            _percent(_rate(row, variant), places),
            _filled(_rate(row, variant), highest[row.metric]),
        ]
        for variant, row in rows
    ]
    headers = ["variant", "metric", "users", "converted", "events", "rate", ""]
    return Grid(headers, cells, "llrrrrl")


def _values_grid(rows: Sequence[Row]) -> Grid:
    sums = _amounts([row.value.sum for _, row in rows])
    cells = [
        [
            clipped(variant.variant_name),
            clipped(row.metric, 10),
            f"{row.value.count:,}",
            amount,
        ]
        for (variant, row), amount in zip(rows, sums, strict=True)
    ]
    headers = ["variant", "metric", "users with a value", "sum of values"]
    return Grid(headers, cells, "llrr")


def _days_grid(days: Sequence[tuple[Day, VariantsCounts, DaysMetric]]) -> Grid:
    cells = [
        [
            day.date.isoformat(),
            clipped(variant.variant_name),
            f"{day.participants:,}",
            clipped(row.metric),
            f"{row.conversions:,}",
            f"{row.events:,}",
        ]
        for day, variant, row in days
    ]
    headers = ["day (UTC)", "variant", "new users", "metric", "converted", "events"]
    return Grid(headers, cells, "llrlrr")


def quality_sentence(quality: Quality) -> str:
    late = ""
    if quality.after_window is not None:
        late = f"{quality.after_window:,} after the window of their metric, "
    return (
        f"{quality.received:,} conversions received: {quality.counted:,} "
        f"counted, {quality.duplicates:,} duplicates, "
        f"{quality.before_enrollment:,} before the enrolment, {late}"
        f"{quality.not_enrolled:,} of users who are not enrolled."
    )


def analysis(name: str, result: Computed) -> Sheet:
    """Return the sheet of a computed result, with its verdict first."""
    variants, verdict = result.analysis.variants, result.analysis.verdict
    grids = [_rates_grid(variants), _comparisons_grid(variants)]
    kind = result.analysis.analysis.kind
    if any(variant.value for variant in variants):
        means = _means_grid(variants, "an event" if kind == RATIO else "a user")
        # The verdict rests on the first table.
        grids.insert(len(grids) if kind == CONVERSION else 0, means)
    if result.analysis.metrics:
        grids.append(_others_grid(result.analysis.metrics))
    inputs = result.analysis.analysis.input_hash[:12]
    if result.as_of:
        inputs += f", as received by {moment(result.as_of)}"
    notes = [caution.message for caution in result.analysis.warnings]
    notes.append(f"{verdict.status}; metric {result.analysis.metric}; inputs {inputs}")
    figures = _analysed_figures(result.analysis)
    return Sheet(name, verdict.sentence, grids, notes, figures)


def _rates_grid(variants: Sequence[VariantFigures]) -> Grid:
    intervals = [variant.confidence_interval for variant in variants]
    low = min(_known(interval.lower) for interval in intervals)
    high = max(_known(interval.upper) for interval in intervals)
    places = _shares([variant.conversion_rate for variant in variants], *intervals)
    cells = [
        [
            clipped(variant.variant_name),
            f"{variant.sample_size:,}",
            f"{variant.conversions:,}",
            _percent(variant.conversion_rate, places),
            _span(variant.confidence_interval, _percent, places),
            _strip(variant.confidence_interval, variant.conversion_rate, low, high),
        ]
        for variant in variants
    ]
    level = f"{100 * intervals[0].level:.4g}% interval"
    return Grid(["variant", "users", "converted", "rate", level, ""], cells, "lrrrrl")


def _comparisons_grid(variants: Sequence[VariantFigures]) -> Grid:
    pairs = [(one, one.comparison) for one in variants if one.comparison]
    places = _lifts(comparison.lift for _, comparison in pairs)
    cells = [
        [
            clipped(variant.variant_name),
            _lift(comparison.lift, places),
            _span(comparison.sequential.lift_interval, _lift, places),
            _p_value(comparison.sequential.adjusted_p_value),
            _p_value(comparison.fixed_horizon.p_value),
            _chance(variant.probability_best),
        ]
        for variant, comparison in pairs
    ]
    headers = ["to control", "lift", "lift at any look", "p", "p one look", "best"]
    return Grid(headers, cells, "lrrrrr")


def _others_grid(metrics: Sequence[MetricFigures]) -> Grid:
    """Return the guardrails and the secondary metrics, a row for each comparison."""
    cells = [
        [
            clipped(metric.metric),
            metric.role,
            clipped(variant.variant_name),
            _difference(metric.kind, one.difference_interval),
            _p_value(
                one.p_value if one.adjusted_p_value is None else one.adjusted_p_value
            ),
            one.status.replace("_", " "),
        ]
        for metric in metrics
        for variant in metric.variants
        if (one := variant.comparison)
    ]
    headers = ["other metrics", "role", "variant", "difference at any look", "p", ""]
    return Grid(headers, cells, "lllrrl")


def _difference(kind: str, one: Interval) -> str:
    """Return a difference at any look: of rates in percentage points."""
    if one.lower is None or one.upper is None:
        return NONE
    ends = [one.lower, one.upper]
    if kind != CONVERSION:
        return " to ".join(_amounts(ends))
    return f"{' to '.join(points(ends))} points"


def _means_grid(variants: Sequence[VariantFigures], unit: str) -> Grid:
    pairs = [(one, one.value) for one in variants if one.value]
    means = [value.mean for _, value in pairs if value.mean is not None]
    amounts = iter(_amounts(means))
    comparisons = [value.comparison for _, value in pairs]
    places = _lifts(one.lift for one in comparisons if one)
    cells = [
        [
            clipped(variant.variant_name),
            NONE if value.mean is None else next(amounts),
            _lift(one.lift if one else None, places),
            _p_value(one.sequential.adjusted_p_value if one else None),
            _p_value(one.fixed_horizon.p_value if one else None),
        ]
        for (variant, value), one in zip(pairs, comparisons, strict=True)
    ]
    return Grid(["value", f"mean {unit}", "lift", "p", "p one look"], cells, "lrrrr")


def _rate(row: VariantsMetric | DaysMetric, variant: VariantsCounts) -> float:
    users = variant.participants
    return row.conversions / users if users else 0.0


def _known(end: float | None) -> float:
    """Return the end of an interval of a rate, which is always known."""
    if end is None:
        raise ValueError("An interval of a rate has two ends.")
    return end


def _analysed_figures(result: Analysis) -> list[dict[str, Cell]]:
    """Return the figures of each variant, then those of each in the other metrics.

    What says of which metric a row is stands behind the figures of the variants.
    """
    method = result.analysis
    label = {"metric": result.metric, "direction": method.direction}
    rows = [_flat(variant) for variant in result.variants]
    figures: dict[str, Cell] = {name: None for row in rows for name in row}
    analysed = [figures | row | label | {"kind": method.kind} for row in rows]
    others = [
        _flat(metric._replace(variants=[])) | _flat(variant)
        for metric in result.metrics or []
        for variant in metric.variants
    ]
    return analysed + others


def _day_figures(day: Day, variant: VariantsCounts, row: DaysMetric) -> dict[str, Cell]:
    first: dict[str, Cell] = {
        "date": day.date.isoformat(),
        "variantId": variant.variant_id,
        "variantName": variant.variant_name,
        "participants": day.participants,
    }
    return first | _flat(row)


def _metric_figures(row: VariantsMetric | DaysMetric) -> dict[str, Cell]:
    """Return the figures of one metric; here `primary` is beside the metric's name."""
    first: dict[str, Cell] = {"metric": row.metric}
    if isinstance(row, VariantsMetric):
        first["primary"] = row.primary
    return first | _flat(row)


def _flat(row: Any, path: str = "") -> dict[str, Cell]:
    """Return the figures of nested tuples side by side: `comparison.lift`."""
    flat: dict[str, Cell] = {}
    for name, value in row._asdict().items():
        if (name in row._field_defaults and value is None) or value == []:
            continue
        named = path + camel_case(name)
        if hasattr(value, "_asdict"):
            flat |= _flat(value, f"{named}.")
        else:
            flat[named] = on_the_wire(value)
    return flat


def visible(text: str) -> str:
    """Return the text without characters that hide, move or shift others.

    A control character is shown as "?". Characters without a width are left out, except
    two marks on a letter; more would be drawn over the lines above and below.
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


def clipped(text: str, width: int = NAME) -> str:
    """Return the visible text, clipped to this many columns."""
    text = visible(text)
    taken, kept = 0, 0
    for letter in text:
        taken += wcwidth(letter)
        if taken <= width - 1:
            kept += len(letter)
    return text if taken <= width else f"{text[:kept]}…"


def _fixed(number: float | Decimal, places: int) -> str:
    """Return a number with this many decimals; one that rounds to 0 has no sign."""
    text = f"{number:,.{places}f}"
    return text if text.strip("-0.,") else text.removeprefix("-")


def _shares(column: Sequence[float], *intervals: Interval) -> int:
    """Return the number of decimals for a column of rates in percent.

    Each rate shows two digits of its distance from the nearer end (0 % or 100 %) and
    from the other rates, and no interval with a width appears to have none.
    """
    rates = [100 * float(share) for share in column]
    wanted = [decimals(min(rate, 100 - rate), 2, NOISE) for rate in rates]
    widths = [100 * (_known(each.upper) - _known(each.lower)) for each in intervals]
    wanted += [decimals(width, 1, NOISE) for width in widths]
    return min(max(1, decimals_apart(rates, NOISE), *wanted), MOST_OF_RATES)


def _percent(share: float, places: int) -> str:
    return f"{_fixed(100 * share, places)}%"


def _chance(share: float | None) -> str:
    """Return a probability in percent; only 0 and 1 are shown as 0 and 100."""
    if share is None:
        return NONE
    if 0.9995 <= share < 1:
        return "> 99.9%"
    return "< 0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def _lifts(column: Iterable[float | None]) -> int:
    """Return the number of decimals for a column of lifts in percent."""
    lifts = [100 * lift for lift in column if lift is not None]
    wanted = [decimals(lift, 2, NOISE) for lift in lifts]
    return min(max(1, decimals_apart(lifts, NOISE), *wanted), MOST_OF_LIFTS)


def _lift(share: float | None, places: int) -> str:
    if share is None:
        return NONE
    if abs(share) >= LARGEST_LIFT:
        return f"{'>' if share > 0 else '<'} {_fixed(share / abs(share) * 99_999, 0)}%"
    # Of thousands nobody reads decimals, and there is no room for them.
    text = _fixed(100 * share, places if abs(share) < 10 else 0)
    return f"{'+' if share > 0 and text.strip('0.') else ''}{text}%"


def _amounts(column: Sequence[float | Decimal]) -> list[str]:
    """Return the numbers of a column with equally many decimals and no exponent.

    Whole numbers have none. Others have two, or more if a small number or difference
    needs them.
    """
    numbers = [Decimal(str(number)) for number in column]
    if all(number == number.to_integral_value() for number in numbers):
        return [f"{int(number):,}" for number in numbers]
    sizes = [float(number) for number in numbers]
    wanted = [decimals(size, 2, NOISE) for size in sizes]
    places = min(max(2, decimals_apart(sizes, NOISE), *wanted), MOST_OF_AMOUNTS)
    return [_fixed(number, places) for number in numbers]


def _p_value(p_value: float | None) -> str:
    if p_value is None:
        return NONE
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _span(interval: Interval, form: Callable[..., str], places: int) -> str:
    if interval.lower is None and interval.upper is None:
        return NONE
    return f"{form(interval.lower, places)} to {form(interval.upper, places)}"


def _filled(rate: float, highest: float) -> str:
    """Draw a rate, where the highest one of its metric fills the bar."""
    length = round(rate / highest * BAR) if highest else 0
    return "█" * length + "·" * (BAR - length)


def _strip(interval: Interval, rate: float, low: float, high: float) -> str:
    """Draw an interval on the line from *low* to *high*, with the rate on it."""
    width = high - low or 1.0

    def place(value: float) -> int:
        return round((value - low) / width * (BAR - 1))

    first, last = place(_known(interval.lower)), place(_known(interval.upper))
    line = ["·"] * BAR
    line[first : last + 1] = "─" * (last + 1 - first)
    line[first], line[last] = "├", "┤"
    line[place(rate)] = "●"
    return "".join(line)


def plain(sheet: Sheet, width: int = WIDTH) -> str:
    """Return the sheet for a terminal of so many columns."""
    parts = [_wrapped(sheet.title, width), _wrapped(sheet.lead, width)]
    parts += [_fitted(grid, width) for grid in sheet.grids]
    parts += [_wrapped(note, width) for note in sheet.notes]
    return "\n\n".join(parts) + "\n"


def _fitted(grid: Grid, width: int) -> str:
    """Return the table in so many columns.

    If it does not fit, a drawing is left out, and then each row becomes a list.
    """
    for shown in (grid, _undrawn(grid)):
        drawn = _drawn(shown, "simple")
        if max(map(wcswidth, drawn.splitlines())) <= width:
            return drawn
    if width >= WIDTH:
        return drawn
    return "\n\n".join(
        _drawn(
            Grid([], [*map(list, zip(shown.headers, row, strict=True))], "ll"), "plain"
        )
        for row in shown.rows
    )


def _undrawn(grid: Grid) -> Grid:
    """Return the table without its last column, if that is a drawing."""
    if grid.headers[-1]:
        return grid
    rows = [row[:-1] for row in grid.rows]
    return Grid(grid.headers[:-1], rows, grid.alignment[:-1])


def whole(sentence: str) -> str:
    """Return a sentence in which no line ends between a number and its unit."""
    return re.sub(r"(?<=\d) (?=%|users?\b)", "\N{NO-BREAK SPACE}", sentence)


def _wrapped(text: str, width: int) -> str:
    """Return a text in lines of a terminal, in which some letters are two wide."""
    lines = [""]
    for word in re.split(r"[^\S\N{NO-BREAK SPACE}]+", whole(visible(text).strip())):
        for piece in textwrap.wrap(word, width, break_on_hyphens=False):
            longer = f"{lines[-1]} {piece}".lstrip()
            if lines[-1] and wcswidth(longer) > width:
                lines.append(piece)
            else:
                lines[-1] = longer
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")


def markdown(sheet: Sheet) -> str:
    """Return the sheet for a pull request; no name in it can be markup."""
    parts = [f"### {_escaped(sheet.title)}", f"**{_escaped(sheet.lead)}**"]
    for grid in sheet.grids:
        rows = [[_escaped(cell) for cell in row] for row in grid.rows]
        parts.append(_drawn(grid._replace(rows=rows), "pipe"))
    parts += [_escaped(note) for note in sheet.notes]
    return "\n\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    return MARKUP.sub(r"\\\1", visible(text))


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

    It is for spreadsheets, and no program reads it back. So it has an apostrophe
    wherever a formula could begin, also where an export must not have one.
    """
    names = list(dict.fromkeys(name for row in sheet.figures for name in row))
    # The control has no comparison where the others have one of many figures.
    held = {name.rpartition(".")[0] for name in names}
    shown = [name for name in names if name not in held]
    text = io.StringIO()
    lines = csv.writer(text)
    lines.writerow(shown)
    lines.writerows([guarded(row.get(name)) for name in shown] for row in sheet.figures)
    return text.getvalue()


FORMS: dict[str, Callable[[Sheet], str]] = {
    "text/plain": plain,
    "text/markdown": markdown,
    "text/csv": comma_separated,
}
