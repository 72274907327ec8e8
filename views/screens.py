"""What the pages show, in words and figures; the templates only mark it up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple
from urllib.parse import urlencode

from ledger.counts import Counts
from models import Change, Experiment
from stats.results import (
    CONVERSION,
    Interval,
    MetricComparison,
    MetricFigures,
    VariantFigures,
)
from stats.wording import (
    change,
    decimals,
    decimals_apart,
    p_value,
    percent_decimals,
)
from storage.paging import Listing
from targeting.decision import COMPLETED, DRAFT, STOPPED
from views.course import BROKEN_DAY
from views.days import (
    MOST_DECIMALS,
    UNKNOWN,
    Days,
    days,
    difference_text,
    name_of,
    number_text,
)
from views.figures import Computed, Results
from views.figures import results as raw_results
from views.pictures import Estimate, Picture, picture, scale
from views.tables import quality_sentence, visible, whole
from web.fields import camel_case
from web.json import moment

MOST_METRICS = 50  # on a page, of up to 1,000

VERDICTS = {
    "variant_wins": "A variant is better",
    "control_wins": "The control is better",
    "no_difference": "No difference that matters",
    "inconclusive": "No answer",
    "harm": "A guardrail is harmed",
    "keep_running": "Wait",
    "not_enough_data": "Not enough data",
    "broken_split": "The split is broken",
}
"""Each status of a verdict, as a heading."""

MOODS = {
    "variant_wins": "good",
    "harm": "bad",
    "broken_split": "bad",
    "control_wins": "bad",
}
"""How a heading is coloured, which repeats what it says; the others are plain."""

NEXT = {
    "variant_wins": "Complete the experiment with this variant as the winner. "
    "Everyone is given it then.",
    "control_wins": "Complete the experiment and keep the control.",
    "no_difference": "Complete the experiment. Choose the variant that costs less, "
    "because the planned effect is ruled out.",
    "inconclusive": "Complete the experiment as inconclusive. To find a smaller "
    "effect, plan another one with more users.",
    "harm": "Stop the experiment, and look at the guardrail before anything else.",
    "keep_running": "Wait. You may look as often as you like: the intervals and "
    "p-values here hold at any look.",
    "not_enough_data": "Check that users are enrolled in each variant, and that events "
    "arrive under the name of the metric.",
    "broken_split": "Believe no figure below. Look for users who are lost in one of "
    "the variants, then start again with a duplicate.",
}
"""What to do about each status while the experiment is running."""

STATUSES = {
    "harmed": "harmed",
    "harmless": "shown to be harmless",
    "better": "better",
    "worse": "worse",
    "not_counted": "nothing was counted",
}
"""The status of another metric in words; `not_shown` depends on its role."""

CREDENTIALS = '-H "Authorization: Bearer $TOKEN"'


# ----------------------------------------------------------------------------
# The list
# ----------------------------------------------------------------------------


class Line(NamedTuple):
    """An experiment in the list."""

    path: str
    name: str
    key: str
    state: str
    is_archived: bool
    users: str
    created_at: datetime


class ListScreen(NamedTuple):
    """A page of a list, and the ways to the pages beside it."""

    lines: Sequence[NamedTuple]
    total: str
    number: int
    pages: int
    previous: str | None
    next: str | None


def listed(listing: Listing, asked: dict[str, str]) -> ListScreen:
    """Return the screen of a page of experiments; *asked* are its parameters."""
    lines = [
        Line(
            f"experiments/{row.id}",
            row.name,
            row.key,
            row.state,
            row.archived_at is not None,
            f"{row.participants:,}",
            row.created_at,
        )
        for row in listing.rows
    ]
    return list_screen(lines, listing, asked)


def list_screen(
    lines: Sequence[NamedTuple], listing: Listing, asked: dict[str, str]
) -> ListScreen:
    """Return the screen of a page with these lines; *asked* are its parameters."""

    def way(number: int) -> str | None:
        if not 1 <= number <= listing.pages or "cursor" in asked:
            return None
        return f"?{urlencode({**asked, 'page': number})}"

    return ListScreen(
        lines,
        f"{listing.total:,}",
        listing.number,
        listing.pages,
        # Past the end, the way back is to the last page.
        way(min(listing.number - 1, listing.pages)),
        way(listing.number + 1),
    )


# ----------------------------------------------------------------------------
# One experiment
# ----------------------------------------------------------------------------


class Figure(NamedTuple):
    """The figures of a variant in the metric, as text."""

    name: str
    is_control: bool
    users: str
    converted: str
    estimate: str
    interval: str


class Lift(NamedTuple):
    """A variant against the control, as text."""

    name: str
    lift: str
    interval: str
    p: str


class Other(NamedTuple):
    """A guardrail or a secondary metric of one variant."""

    metric: str
    role: str
    name: str
    difference: str
    status: str


class Share(NamedTuple):
    """The participants of a variant against the planned split."""

    name: str
    participants: str
    share: str
    planned: str


class Raw(NamedTuple):
    """What was counted for a variant in one metric."""

    metric: str
    name: str
    converted: str
    events: str
    values: str


class Advance(NamedTuple):
    """How far a planned experiment is."""

    users: int
    horizon: int
    sentence: str


class Entry(NamedTuple):
    """A line of the history."""

    at: datetime
    subject: str
    sentence: str


class Screen(NamedTuple):
    """One experiment."""

    experiment: Experiment
    state: str
    heading: str
    mood: str
    sentence: str
    advice: str
    empty: str
    """Why there is nothing to draw, or an empty text."""
    metric: str
    estimate_name: str
    level: str
    figures: list[Figure]
    estimates: Picture
    lifts: list[Lift]
    lift_picture: Picture | None
    days: Days | None
    """None if the days were not counted."""
    others: list[Other]
    shares: list[Share]
    split: str
    warnings: list[str]
    advance: Advance | None
    raw: list[Raw]
    more_metrics: int
    """How many metrics have no row: the API has them."""
    quality: str
    entries: list[Entry]
    more_entries: int
    credentials: str


def experiment(computed: Computed, counts: Counts, history: Listing) -> Screen:
    """Return the screen of one experiment, with its days if they were counted."""
    row, analysis = counts.experiment, computed.analysis
    results = raw_results(counts, None)
    kind, state = analysis.analysis.kind, row.state_or_archived
    figures = [_estimate(one, kind) for one in analysis.variants]
    lifts = [_lift(one, kind) for one in analysis.variants[1:]]
    status = analysis.verdict.status
    return Screen(
        experiment=row,
        state=state,
        heading=VERDICTS[status],
        mood=MOODS.get(status, "plain"),
        sentence=whole(analysis.verdict.sentence),
        advice=_advice(row, status),
        empty=_emptiness(row, results, analysis.metric),
        metric=analysis.metric,
        estimate_name=name_of(kind),
        level=f"{100 * analysis.analysis.confidence_level:.4g} %",
        figures=_figures(analysis.variants, figures, kind),
        estimates=_picture(f"{name_of(kind)} of each variant", figures, kind),
        lifts=[_lift_in_words(one, estimate, kind) for one, estimate in lifts],
        lift_picture=_lift_picture([estimate for _, estimate in lifts]),
        days=days(computed, counts),
        others=[line for one in analysis.metrics or [] for line in _others(one)],
        shares=_shares(results),
        split=_split(computed, results),
        warnings=[caution.message for caution in analysis.warnings],
        advance=_advance(computed, results),
        raw=_raw(results, counts.metrics[:MOST_METRICS]),
        more_metrics=len(counts.metrics[MOST_METRICS:]),
        quality=quality_sentence(results.quality),
        entries=[_entry(one) for one in history.rows],
        more_entries=history.total - len(history.rows),
        credentials=CREDENTIALS,
    )


def _advice(row: Experiment, status: str) -> str:
    """Return what to do next."""
    state = row.state
    if row.archived_at:
        return "Nothing: the experiment is archived. Its data stays."
    if state == DRAFT:
        return "Start the experiment when your application asks for its variants."
    if state == COMPLETED:
        return f"Nothing: the results are final. {_conclusion(row)}"
    if state == STOPPED and status == "keep_running":
        return (
            "Nobody is enrolled any more. Resume the experiment to go on, or complete "
            "it with what is known."
        )
    if state == STOPPED and status == "harm":
        return "Look at the guardrail, and complete the experiment without a winner."
    return NEXT[status]


def _conclusion(row: Experiment) -> str:
    """Return how a completed experiment was concluded."""
    winner = row.variant(row.winner_variant_id) if row.winner_variant_id else None
    given = f" Everyone is given {visible(winner.name)}." if winner else ""
    return f"It was concluded as {row.conclusion}.{given}"


def _emptiness(row: Experiment, results: Results, metric: str) -> str:
    """Return in words why there is nothing to draw; nothing if there is."""
    if row.state == DRAFT:
        return "This is a draft: it has not started, and nobody is enrolled."
    if not any(one.participants for one in results.variants):
        return "Nobody is enrolled yet."
    counted = {one.metric for variant in results.variants for one in variant.results}
    if metric not in counted:
        return f"Nothing has been counted for the metric {visible(metric)} yet."
    return ""


def _estimate(one: VariantFigures, kind: str) -> Estimate:
    """Return a variant's own figure with its interval; its text comes later."""
    if kind == CONVERSION:
        value: float | None = one.conversion_rate
        ends = one.always_valid_interval
    elif one.value is None:
        return Estimate(one.variant_name, None, None, None, UNKNOWN)
    else:
        value, ends = one.value.mean, one.value.always_valid_interval
    return Estimate(one.variant_name, value, ends.lower, ends.upper, "")


def _places(estimates: Sequence[Estimate], kind: str) -> int:
    """Return how many decimals the figures need, the same for all.

    The ends of intervals do not decide: they may be as close as they like.
    """
    values = [one.value for one in estimates if one.value is not None]
    if kind == CONVERSION:
        return min(percent_decimals(values), MOST_DECIMALS)
    places = max((decimals(one, 4) for one in values), default=0)
    return min(max(places, decimals_apart(values)), MOST_DECIMALS)


def _figures(
    variants: Sequence[VariantFigures], estimates: Sequence[Estimate], kind: str
) -> list[Figure]:
    places = _places(estimates, kind)
    return [
        Figure(
            one.variant_name,
            one.is_control,
            f"{one.sample_size:,}",
            f"{one.conversions:,}",
            *_estimate_texts(estimate, kind, places),
        )
        for one, estimate in zip(variants, estimates, strict=True)
    ]


def _estimate_texts(one: Estimate, kind: str, places: int) -> tuple[str, str]:
    """Return a figure, and its interval, as text."""
    lower, upper = (number_text(end, kind, places) for end in (one.lower, one.upper))
    return number_text(one.value, kind, places), _span(one, lower, upper)


def _span(one: Estimate, lower: str, upper: str) -> str:
    """Return an interval in words; one without ends is not known."""
    if one.lower is None and one.upper is None:
        return UNKNOWN
    if one.upper is None:
        return f"at least {lower}"
    return f"at most {upper}" if one.lower is None else f"{lower} to {upper}"


def _picture(title: str, estimates: Sequence[Estimate], kind: str) -> Picture:
    places, drawn = _places(estimates, kind), []
    for one in estimates:
        value, span = _estimate_texts(one, kind, places)
        drawn.append(one._replace(text=f"{value} ({span})"))
    low, high = (number_text(end, kind, places) for end in scale(drawn))
    return picture(title, drawn, (low, high), "0")


def _lift(one: VariantFigures, kind: str) -> tuple[VariantFigures, Estimate]:
    """Return a variant with its lift."""
    compared = one.compared(kind)
    if compared is None:
        return one, Estimate(one.variant_name, None, None, None, UNKNOWN)
    ends: Interval = compared.sequential.lift_interval
    return one, Estimate(one.variant_name, compared.lift, ends.lower, ends.upper, "")


def _lift_texts(one: Estimate) -> tuple[str, str]:
    lift, lower, upper = (
        UNKNOWN if end is None else change(end)
        for end in (one.value, one.lower, one.upper)
    )
    return lift, _span(one, lower, upper)


def _lift_in_words(one: VariantFigures, lift: Estimate, kind: str) -> Lift:
    compared = one.compared(kind)
    p = compared.sequential.adjusted_p_value if compared else None
    return Lift(
        one.variant_name, *_lift_texts(lift), UNKNOWN if p is None else p_value(p)
    )


def _lift_picture(lifts: Sequence[Estimate]) -> Picture | None:
    """Return the picture of the lifts; None if no lift is known."""
    if all(one.value is None for one in lifts):
        return None
    drawn = []
    for one in lifts:
        lift, span = _lift_texts(one)
        drawn.append(one._replace(text=f"{lift} ({span})"))
    low, high = (change(end) if end else "0 %" for end in scale(drawn))
    return picture("Lift over the control", drawn, (low, high), "no difference")


def _others(metric: MetricFigures) -> list[Other]:
    return [
        Other(
            metric.metric,
            metric.role,
            variant.variant_name,
            difference_text(variant.comparison.difference_interval, metric.kind),
            _status(metric, variant.comparison),
        )
        for variant in metric.variants
        if variant.comparison
    ]


def _status(metric: MetricFigures, one: MetricComparison) -> str:
    if one.status in STATUSES:
        return STATUSES[one.status]
    if metric.role != "guardrail":
        return "no difference shown"
    has_margin = metric.margin is not None
    return "not shown to be harmless yet" if has_margin else "no harm shown"


def _shares(results: Results) -> list[Share]:
    users = sum(one.participants for one in results.variants)
    return [
        Share(
            one.variant_name,
            f"{one.participants:,}",
            f"{100 * one.participants / users:.2f} %" if users else UNKNOWN,
            f"{one.split_percentage.normalize():f} %",
        )
        for one in results.variants
    ]


def _split(computed: Computed, results: Results) -> str:
    """Return in words whether the users are split as planned."""
    mismatch = computed.analysis.sample_ratio_mismatch
    if not any(one.participants for one in results.variants):
        return "Nobody is enrolled, so there is no split to check."
    tested = f"{p_value(mismatch.p_value)} at any look"
    if mismatch.detected:
        return f"The users are not split as planned ({tested})."
    if any(one.code == BROKEN_DAY for one in computed.analysis.warnings):
        return f"All users together are split as planned ({tested}), but a day is not."
    return f"Nothing speaks against the planned split ({tested})."


def _advance(computed: Computed, results: Results) -> Advance | None:
    """Return how far a planned experiment is; None without a plan."""
    progress, horizon = computed.progress, computed.analysis.analysis.horizon
    if progress is None or horizon is None:
        return None
    users = sum(one.participants for one in results.variants)
    sentence = f"{users:,} of the {horizon.users:,} users of the plan are enrolled."
    if progress.users_left and progress.users_per_day:
        sentence += (
            f" {progress.users_left:,} are left, at {progress.users_per_day:,.0f} a day"
        )
        days = progress.days_left
        sentence += f": about {days:,} more days." if days is not None else "."
    return Advance(min(users, horizon.users), horizon.users, sentence)


def _raw(results: Results, metrics: Sequence[str]) -> list[Raw]:
    """Return what was counted, with the variants of a metric below each other."""
    rows = [
        Raw(
            one.metric,
            variant.variant_name,
            f"{one.conversions:,}",
            f"{one.events:,}",
            f"{one.value.sum.normalize():,f}" if one.value.count else "none",
        )
        for variant in results.variants
        for one in variant.results
        if one.metric in metrics
    ]
    return sorted(rows, key=lambda row: metrics.index(row.metric))


def _entry(entry: Change) -> Entry:
    names = ", ".join(camel_case(name) for name in sorted(entry.settings))
    told = f"{entry.action} ({names})" if names else entry.action
    return Entry(entry.at, entry.actor, told)


# ----------------------------------------------------------------------------
# What the templates use
# ----------------------------------------------------------------------------


def minute(at: datetime) -> str:
    """Return a time in UTC, to the minute, for people."""
    return f"{at:%Y-%m-%d %H:%M} UTC"


FILTERS: dict[str, Callable[..., str]] = {
    "visible": visible,
    "minute": minute,
    "moment": moment,
}
