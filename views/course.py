"""The course of an experiment, day by day, from a replay of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from typing import NamedTuple

import stats
from ledger.counts import Counts
from stats import wording
from stats.results import Interval
from views.arms import Course, days_of

DAYS = 366
"""The most days of a course: the last ones."""

BROKEN_DAY = "SRM_ON_A_DAY"

LEAST = 0.001  # the p-value, corrected for all days, of a day whose split is broken


class DayOfVariant(NamedTuple):
    """A variant at the end of a day, with all that it gained until then."""

    variant_id: str
    sample_size: int
    conversions: int
    estimate: float | None
    """The rate, the mean or the ratio, by the kind of the metric."""
    difference: float | None
    lift: float | None
    difference_interval: Interval | None
    lift_interval: Interval | None


class DayOfCourse(NamedTuple):
    """The end of a day, in UTC."""

    date: date
    variants: list[DayOfVariant]


def course(
    counts: Counts, settings: stats.MetricSettings, confidence_level: Decimal
) -> list[DayOfCourse]:
    """Return the cumulative estimates of a metric at the end of each day."""
    experiment = counts.experiment
    is_primary = settings.name == experiment.primary_metric
    plan = experiment.directed_plan if is_primary else None
    centre = stats.planned_centre(plan)
    running = Course(counts, settings)
    days = [(day, running.after(day)) for day in days_of(counts)][-DAYS:]
    level = stats.Level(float(confidence_level), len(counts.variants) - 1)
    users = experiment.horizon if is_primary else None
    points = stats.course([each for _, each in days], settings, level, centre, users)
    return [
        DayOfCourse(day, _variants(each, settings, some))
        for (day, each), some in zip(days, points, strict=True)
    ]


def points_of(counts: Counts) -> int:
    """Return how many intervals the course has; 0 if the days were not counted."""
    return len(days_of(counts)[-DAYS:]) * (len(counts.variants) - 1)


def _variants(
    arms: Sequence[stats.Arm],
    settings: stats.MetricSettings,
    points: Sequence[stats.Point],
) -> list[DayOfVariant]:
    estimates = stats.estimates(arms, settings)
    each = [None, *points]
    return [
        DayOfVariant(
            arm.variant_id,
            arm.sample_size,
            arm.conversions,
            estimate,
            *(point or (None, None, None, None)),
        )
        for arm, estimate, point in zip(arms, estimates, each, strict=True)
    ]


def broken_day(counts: Counts) -> stats.Caution | None:
    """Return a warning if the users of a single day are not split as planned.

    It is the ordinary chi-square test of each day, corrected for the number of days.
    """
    enrolled = counts.enrolled_on or {}
    splits = [variant.split for variant in counts.variants]
    days = sorted({day for _, day in enrolled})
    tests = []
    for day in days:
        users = [enrolled.get((variant.key, day), 0) for variant in counts.variants]
        tests.append(stats.sample_ratio_mismatch(users, splits))
    worst = min(tests, key=lambda one: one.chi_square_p_value, default=None)
    if worst is None:
        return None
    p_value = min(1.0, worst.chi_square_p_value * len(tests))
    if p_value >= LEAST:
        return None
    day = days[tests.index(worst)]
    return stats.Caution(
        BROKEN_DAY,
        f"The users of {wording.day(day.isoformat())} did not fall as the split says "
        f"({wording.p_value(p_value)}): find out what was different on that day.",
    )
