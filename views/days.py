"""What the page of an experiment shows of its days, in words and figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from itertools import accumulate
from math import floor, log10
from typing import NamedTuple

from ledger.counts import Counts
from stats.results import CONVERSION, RATIO, Interval
from stats.wording import amounts, decimals, percent_decimals, points
from views.charts import Chart, chart
from views.course import DayOfCourse, DayOfVariant
from views.figures import Computed

UNKNOWN = "not known"

MOST_DECIMALS = 6

MOST_CHARTS = 4  # treatments; the API has the days of the others

SINGLE_DAYS = 14
"""The last days have a row each, and before them every seventh day."""


class Row(NamedTuple):
    """The end of a day, as text: the cells of a table."""

    day: str
    cells: list[str]


class Course(NamedTuple):
    """A variant beside the control over the days."""

    name: str
    sentence: str
    chart: Chart
    rows: list[Row]


class Joining(NamedTuple):
    """The users who were enrolled until each day, beside those of the plan."""

    horizon: str
    """The users of the plan, or an empty text without one."""
    chart: Chart
    rows: list[Row]


class Days(NamedTuple):
    """All pictures over days."""

    control: str
    difference: str
    """The heading of the intervals."""
    courses: list[Course]
    others: int
    """How many variants have no picture."""
    joining: Joining
    are_thinned: bool
    """Whether the tables leave days out."""


def days(computed: Computed, counts: Counts) -> Days | None:
    """Return the pictures over days; None if the days were not counted, or none is."""
    if not computed.days:
        return None
    control, *treatments = computed.analysis.variants
    shown = treatments[:MOST_CHARTS]
    kind = computed.analysis.analysis.kind
    names = [(control.variant_name, one.variant_name) for one in shown]
    return Days(
        control.variant_name,
        "Difference in points" if kind == CONVERSION else "Difference",
        [_course(computed.days, n, both, kind) for n, both in enumerate(names, 1)],
        len(treatments) - len(shown),
        _joining(computed, counts),
        len(computed.days) > len(_rows_of(len(computed.days))),
    )


def _course(
    course: Sequence[DayOfCourse], place: int, names: tuple[str, str], kind: str
) -> Course:
    """Return a variant beside the control; *place* is its own among the variants."""
    dates = [day.date for day in course]
    pairs = [(day.variants[0], day.variants[place]) for day in course]
    places = _places(pairs[-1], kind)
    band = [_band(*pair, kind) for pair in pairs]
    lines = [
        ("control", [control.estimate for control, _ in pairs]),
        ("variant", [variant.estimate for _, variant in pairs]),
    ]
    sentence = _since(dates, [variant for _, variant in pairs])
    rows = [
        Row(dates[n].isoformat(), _cells(pairs[n], kind, places))
        for n in _rows_of(len(pairs))
    ]
    title = f"{name_of(kind)} until each day"
    last = "; ".join(
        f"{name}: {number_text(one.estimate, kind, places)}"
        for name, one in zip(names, pairs[-1], strict=True)
    )
    words = title, f"On the last day, {long(dates[-1])}: {last}. {sentence}"
    return Course(
        names[1],
        sentence,
        chart(words, dates, lines, band, _labels(kind)),
        rows,
    )


def _places(pair: Iterable[DayOfVariant], kind: str) -> int:
    """Return how many decimals the figures of all days have."""
    known = [one.estimate for one in pair if one.estimate is not None]
    if kind == CONVERSION:
        return min(max(percent_decimals(known), 2), MOST_DECIMALS)
    return min(max((decimals(one, 4) for one in known), default=2), MOST_DECIMALS)


def _band(
    control: DayOfVariant, variant: DayOfVariant, kind: str
) -> tuple[float, float] | None:
    """Return where the variant is: the control with the interval of the difference."""
    ends = variant.difference_interval
    if control.estimate is None or not ends or ends.lower is None or ends.upper is None:
        return None
    low, high = control.estimate + ends.lower, control.estimate + ends.upper
    return (max(low, 0.0), min(high, 1.0)) if kind == CONVERSION else (low, high)


def _since(dates: Sequence[date], variants: Sequence[DayOfVariant]) -> str:
    """Return since when the band has left the line of the control out."""
    since = None
    for day, variant in zip(dates, variants, strict=True):
        if not _is_apart(variant.difference_interval):
            since = None
        elif since is None:
            since = day
    if since is None:
        return "On the last day the band still holds the control's line."
    return f"The band has left the control's line out since {long(since)}."


def _is_apart(ends: Interval | None) -> bool:
    if ends is None or ends.lower is None or ends.upper is None:
        return False
    return ends.lower > 0 or ends.upper < 0


def _cells(
    pair: tuple[DayOfVariant, DayOfVariant], kind: str, places: int
) -> list[str]:
    cells = []
    for one in pair:
        cells += [f"{one.sample_size:,}", number_text(one.estimate, kind, places)]
    ends = pair[1].difference_interval
    if ends is None or ends.lower is None or ends.upper is None:
        return [*cells, UNKNOWN]
    unit = 100 if kind == CONVERSION else 1
    low, high = (f"{unit * end:,.{places}f}" for end in (ends.lower, ends.upper))
    return [*cells, f"{low} to {high}"]


def _joining(computed: Computed, counts: Counts) -> Joining:
    """Return the users of all variants until each day."""
    new: Counter[date] = Counter()
    for (_, day), number in (counts.enrolled_on or {}).items():
        new[day] += number
    dates = [day.date for day in computed.days or []]
    before = sum(number for day, number in new.items() if day < dates[0])
    totals = list(accumulate((new[day] for day in dates), initial=before))[1:]
    horizon = computed.analysis.analysis.horizon
    lines: list[tuple[str, Sequence[float]]] = [("users", totals)]
    text = f"{totals[-1]:,} users on {long(dates[-1])}"
    if horizon:
        lines.insert(0, ("plan", [horizon.users] * len(dates)))
        text += f", of the {horizon.users:,} of the plan"
    words = "Users until each day", f"{text}."
    return Joining(
        f"{horizon.users:,}" if horizon else "",
        chart(words, dates, lines, [], _count_label, within=(0.0,)),
        [
            Row(dates[n].isoformat(), [f"{new[dates[n]]:,}", f"{totals[n]:,}"])
            for n in _rows_of(len(dates))
        ],
    )


def _rows_of(number: int) -> list[int]:
    """Return the places of the days that have a row, the last one first."""
    places = range(number - 1, -1, -1)
    if number <= 2 * SINGLE_DAYS:
        return [*places]
    return [*places[:SINGLE_DAYS], *places[SINGLE_DAYS - 1 :: 7][1:]]


# ----------------------------------------------------------------------------
# Numbers as text
# ----------------------------------------------------------------------------


def name_of(kind: str) -> str:
    """Return the name of the figure that a metric of this kind has."""
    if kind == CONVERSION:
        return "Conversion rate"
    return "Mean of an event" if kind == RATIO else "Mean of a user"


def number_text(number: float | None, kind: str, places: int) -> str:
    """Return a rate in percent, or a mean."""
    if number is None:
        return UNKNOWN
    if kind == CONVERSION:
        return f"{100 * number:,.{places}f} %"
    return f"{number:,.{places}f}"


def difference_text(ends: Interval | None, kind: str) -> str:
    """Return the interval of a difference: of rates in percentage points."""
    if ends is None or ends.lower is None or ends.upper is None:
        return UNKNOWN
    wording = points if kind == CONVERSION else amounts
    unit = " points" if kind == CONVERSION else ""
    return " to ".join(wording([ends.lower, ends.upper])) + unit


def long(day: date) -> str:
    """Return a day in words, such as 3 March 2026."""
    return f"{day.day} {day:%B %Y}"


def _labels(kind: str) -> Callable[[float, float], str]:
    """Return how the round numbers of a scale are written."""

    def label(number: float, step: float) -> str:
        size = 100 * step if kind == CONVERSION else step
        places = max(-floor(log10(size) + 1e-9), 0)
        # A number that rounds to zero has no sign.
        return number_text(number if abs(number) > step / 2 else 0.0, kind, places)

    return label


def _count_label(number: float, _: float) -> str:
    return f"{number / 1e6:g} M" if number >= 1e6 else f"{number:,.0f}"
