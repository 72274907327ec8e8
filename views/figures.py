"""Results as named tuples, and their JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import cache
from math import ceil
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    NamedTuple,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from marshmallow import fields

import stats
from ledger.counts import Counts
from models import Crossing, Variant
from storage.columns import utcnow
from targeting.decision import STATUSES
from views.arms import arms_of
from views.course import DayOfCourse, broken_day, course
from web.fields import Answer, Quick
from web.json import moment, plain

DAY = timedelta(days=1)

Count = Annotated[int, {"minimum": 0}]
Status = Annotated[str, {"enum": STATUSES}]


class Value(NamedTuple):
    """The values of some users together."""

    count: Count  # type: ignore[assignment]  # tuple has a method of this name
    sum: Decimal
    sum_squares: Decimal | None = None
    """None for a day: the squares of days do not sum to those of the whole."""


class DaysMetric(NamedTuple):
    """What a variant gained in one metric on one day."""

    metric: str
    conversions: Count
    events: Count
    value: Value


class Day(NamedTuple):
    """What a variant gained on one day, in UTC."""

    date: date
    participants: Count
    results: list[DaysMetric]


class VariantsMetric(NamedTuple):
    """The counts of a variant in one metric."""

    metric: str
    conversions: Count
    events: Count
    value: Value
    primary: bool
    first_at: datetime
    last_at: datetime


class VariantsCounts(NamedTuple):
    """The counts of a variant, day by day if that was asked for."""

    variant_id: str
    variant_name: str
    split_percentage: Decimal
    participants: Count
    results: list[VariantsMetric]
    series: list[Day] | None = None


class Quality(NamedTuple):
    """How many events were received, and what became of them."""

    received: Count
    counted: Count
    duplicates: Count
    before_enrollment: Count
    not_enrolled: Count
    after_window: int | None = None
    """None if no metric has a window."""


class Results(NamedTuple):
    """The raw counts of an experiment."""

    experiment_id: str
    name: str
    status: Status
    start_date: datetime | None
    end_date: datetime | None
    variants: list[VariantsCounts]
    quality: Quality
    as_of: datetime | None = None


class Progress(NamedTuple):
    """How far a planned experiment is from the users of its horizon."""

    users_left: Count
    users_per_day: float | None
    """The average since the start; None before the first day is over."""
    days_left: int | None
    """At that pace; None also if nobody is enrolled any more."""


class Computed(NamedTuple):
    """All figures of one metric of an experiment."""

    experiment_id: str
    analysis: stats.Analysis
    as_of: datetime | None = None
    progress: Progress | None = None
    users_in_window: int | None = None
    """Users of the metric's window, which is not over: they are counted later."""
    days: list[DayOfCourse] | None = None
    """The cumulative estimates at the end of each day, if they were asked for."""


def results(counts: Counts, metric: str | None) -> Results:
    """Return the raw counts of an experiment, of one metric or of all.

    Each variant has its days beside it if the counts have days.
    """
    experiment = counts.experiment
    return Results(
        experiment.id,
        experiment.name,
        experiment.state,
        experiment.start_date,
        experiment.end_date,
        [
            VariantsCounts(
                variant.key,
                variant.name,
                Decimal(variant.split) / 100,
                counts.participants[variant.key],
                list(_metrics(counts, variant, metric)),
            )
            for variant in counts.variants
        ],
        quality(counts),
        counts.as_of,
    )


def daily_results(counts: Counts, metric: str | None) -> Results:
    """Return the raw counts, and for each variant the days that sum to them."""
    whole = results(counts, metric)
    variants = [
        variant._replace(series=list(_series(counts, variant.variant_id, metric)))
        for variant in whole.variants
    ]
    return whole._replace(variants=variants)


def _series(counts: Counts, variant: str, metric: str | None) -> Iterator[Day]:
    metrics = [one for one in counts.metrics if metric in (None, one)]
    enrolled_on, days = counts.enrolled_on or {}, counts.days or {}
    dates = {day for key, day in enrolled_on if key == variant} | {
        day for key, day, one in days if key == variant and one in metrics
    }
    for day in sorted(dates):
        gained = [(one, days.get((variant, day, one))) for one in metrics]
        yield Day(
            day,
            enrolled_on.get((variant, day), 0),
            [
                DaysMetric(
                    one,
                    gain.users,
                    gain.events,
                    Value(gain.value_users, gain.value_sum),
                )
                for one, gain in gained
                if gain
            ],
        )


def _metrics(
    counts: Counts, variant: Variant, wanted: str | None
) -> Iterator[VariantsMetric]:
    for metric in counts.metrics:
        tally = counts.tallies.get((variant.key, metric))
        if tally is None or wanted not in (None, metric):
            continue
        yield VariantsMetric(
            metric,
            tally.users,
            tally.events,
            Value(tally.value_users, tally.value_sum, tally.value_sum_squares),
            metric == counts.experiment.primary_metric,
            tally.first_at,
            tally.last_at,
        )


def quality(counts: Counts) -> Quality:
    """Return how many events were received, and what became of them; the sum closes."""
    outcomes = (
        sum(tally.events for tally in counts.tallies.values()),
        counts.refusals.get("duplicate", 0),
        counts.refusals.get("BEFORE_ENROLLMENT", 0),
        counts.refusals.get("NOT_ENROLLED", 0),
    )
    settings = counts.experiment.metric_settings.values()
    late = None
    if any(one.window is not None for one in settings):
        late = counts.refusals.get("AFTER_WINDOW", 0)
    return Quality(sum(outcomes) + (late or 0), *outcomes, late)


def computed_results(
    counts: Counts,
    metric: str | None,
    confidence_level: Decimal,
    crossings: Mapping[str, Crossing],
) -> Computed:
    """Return all figures of one metric, with the verdict and its basis.

    *crossings* are those that are stored, by their variants. The horizon is that of
    the primary metric.
    """
    experiment = counts.experiment
    metric = metric or experiment.primary_metric
    settings = experiment.metric_settings.get(metric, stats.MetricSettings(metric))
    is_primary = metric == experiment.primary_metric
    arms = arms_of(counts, settings)
    analysis = stats.analyse(
        arms,
        plan=stats.Plan(**experiment.plan) if experiment.plan else None,
        confidence_level=confidence_level,
        metric=settings,
        received=stats.Received(counts.metrics, _refused(counts)),
        computed_at=moment(utcnow()),
        horizon_users=experiment.horizon if is_primary else None,
        crossings={name: _crossing(row) for name, row in crossings.items()},
        others=_others(counts) if is_primary else (),
    )
    progress = None
    if analysis.analysis.horizon:
        progress = _progress(counts, analysis.analysis.horizon.users)
        if analysis.verdict.status == "keep_running" and progress.users_left:
            sentence = f"{analysis.verdict.sentence} {_to_go(progress)}"
            verdict = analysis.verdict._replace(sentence=sentence)
            analysis = analysis._replace(verdict=verdict)
    waiting = None
    if settings.window is not None:
        waiting = counts.users - sum(arm.sample_size for arm in arms)
        analysis = _told_apart(analysis, settings.window, waiting)
    return Computed(experiment.id, analysis, counts.as_of, progress, waiting)


def with_days(
    computed: Computed, counts: Counts, confidence_level: Decimal
) -> Computed:
    """Return computed results with the days of their metric, from a replay."""
    analysis = computed.analysis
    name = analysis.metric
    settings = counts.experiment.metric_settings.get(name, stats.MetricSettings(name))
    caution = broken_day(counts)
    if caution and not analysis.sample_ratio_mismatch.detected:
        analysis = analysis._replace(warnings=[caution, *analysis.warnings])
    days = course(counts, settings, confidence_level)
    return computed._replace(analysis=analysis, days=days)


def _told_apart(analysis: stats.Analysis, window: int, waiting: int) -> stats.Analysis:
    """Return the analysis with a sentence on the users inside their windows."""
    if not waiting:
        return analysis
    days = "1 day" if window == 1 else f"{window} days"
    sentence = (
        f"{analysis.verdict.sentence} {waiting:,} more users are inside their window "
        f"of {days}, and counted when it is over."
    )
    if analysis.verdict.status == "not_enough_data":
        sentence = (
            f"There is not enough data: a user counts when the window of {days} is "
            f"over, and {waiting:,} users are inside theirs."
        )
    return analysis._replace(
        verdict=analysis.verdict._replace(sentence=sentence),
        # It says that nobody is enrolled; these users are, and not counted yet.
        warnings=[one for one in analysis.warnings if one.code != "NO_DATA"],
    )


def _others(counts: Counts) -> tuple[stats.Measured, ...]:
    """Return the metrics with settings beside the primary one, with their counts."""
    return tuple(
        stats.Measured(one, arms_of(counts, one))
        for one in counts.experiment.metric_settings.values()
        if one.role != stats.PRIMARY
    )


def _progress(counts: Counts, horizon: int) -> Progress:
    """Return how far the experiment is, at its average pace."""
    experiment, now = counts.experiment, counts.as_of or utcnow()
    left, pace, days_left = max(horizon - counts.users, 0), None, None
    if experiment.start_date:
        days = (min(now, experiment.end_date or now) - experiment.start_date) / DAY
        pace = counts.users / days if days >= 1 else None
    if pace and experiment.is_open_at(now):
        days_left = ceil(left / pace)
    return Progress(left, pace, days_left)


def _to_go(progress: Progress) -> str:
    """Return a sentence on what is left."""
    left = f"{progress.users_left:,} users are left of the plan's"
    days = progress.days_left
    if days is None:
        return f"{left}."
    return f"{left}, about {days:,} day{'' if days == 1 else 's'} at this pace."


def _crossing(row: Crossing) -> stats.Crossing:
    names = (*Crossing.COUNTS, *Crossing.MEANS)
    counts: dict[str, Any] = {name: getattr(row, name) for name in names}
    for name, value in counts.items():
        if isinstance(value, Decimal):
            counts[name] = float(value)
    return stats.Crossing(at=moment(row.at), **counts)


def _refused(counts: Counts) -> dict[str, int]:
    """Return how many events were refused for each reason; a duplicate was not."""
    return {
        reason: number
        for reason, number in counts.refusals.items()
        if reason != "duplicate" and number
    }


# ----------------------------------------------------------------------------
# Their schemas, read off the annotations
# ----------------------------------------------------------------------------

TYPES: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    Decimal: {"type": "number"},
    date: {"type": "string", "format": "date"},
    datetime: {"type": "string", "format": "date-time"},
}


class Figure(fields.Field[Any]):
    """A figure as the wire has it."""

    def _serialize(self, value: Any, attr: str | None, obj: Any, **_: Any) -> Any:
        return on_the_wire(value)


def on_the_wire(value: Any) -> Any:
    """Return a figure as the wire has it: times as text, whole numbers as integers."""
    if isinstance(value, datetime):
        return moment(value)
    if isinstance(value, date):
        return value.isoformat()
    return plain(value) if isinstance(value, Decimal) else value


class Shape(Quick, Answer):
    """The schema of a named tuple; a field whose default is None may be left out."""


@cache
def shape(kind: Any) -> type[Shape]:
    """Return the schema of a named tuple, read off its annotations."""
    hints = get_type_hints(kind, include_extras=True)
    prefix = "Computed" if kind.__module__.startswith("stats") else ""
    return _schema(
        f"{prefix}{kind.__name__}",
        {name: _field(hint) for name, hint in hints.items()},
        tuple(n for n, default in kind._field_defaults.items() if default is None),
    )


def _schema(
    name: str, columns: dict[str, Any], sometimes: tuple[str, ...]
) -> type[Shape]:
    for each in sometimes:
        columns[each].allow_none = False
    return type(name, (Shape,), {**columns, "sometimes": sometimes})


def _field(hint: Any, **options: Any) -> fields.Field[Any]:
    is_union = get_origin(hint) in (Union, UnionType)
    kinds = get_args(hint) if is_union else (hint,)
    null, kind = NoneType in kinds, kinds[0]
    if get_origin(kind) is list:
        return fields.List(_field(*get_args(kind)), allow_none=null, **options)
    if hasattr(kind, "_fields"):
        return fields.Nested(shape(kind), allow_none=null, **options)
    facts: dict[str, Any] = {}
    if get_origin(kind) is Annotated:
        kind, facts = get_args(kind)
    described = TYPES[float] if float in kinds else TYPES[kind]
    return Figure(metadata={**described, **facts}, allow_none=null, **options)


RESULTS = shape(Results)()

ANALYSIS = get_type_hints(stats.Analysis)

COMPUTED = _schema(
    "Computed",
    {
        **{n: _field(hint, attribute=f"analysis.{n}") for n, hint in ANALYSIS.items()},
        "experiment_id": _field(str),
        "as_of": _field(datetime),
        "progress": _field(Progress | None),
        "users_in_window": _field(int | None),
        "days": _field(list[DayOfCourse] | None),
    },
    ("as_of", "days", "metrics", "progress", "users_in_window"),
)()
