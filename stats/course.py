"""The course of an experiment: the cumulative estimate of each day, with its band.

The intervals are those of the analysis, so that all of them hold at once: the band
contains the true difference on every day, in 95 of 100 experiments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from stats import horizon
from stats.contrasts import tables_of
from stats.evidence import always_valid_limits
from stats.means import always_valid_means, difference, lift
from stats.numerics import np
from stats.rates import rate_difference, rate_lift
from stats.results import CONVERSION, Arm, Interval, Level, MetricSettings, interval
from stats.samples import samples
from stats.splits import pair_share

if TYPE_CHECKING:
    from stats.contrasts import Tables
    from stats.numerics import Floats


class Point(NamedTuple):
    """What is known of a variant against the control at the end of a day."""

    difference: float | None
    lift: float | None
    difference_interval: Interval
    lift_interval: Interval


def course(
    days: Sequence[Sequence[Arm]],
    settings: MetricSettings,
    level: Level,
    centre: float,
    horizon_users: int | None = None,
) -> list[list[Point]]:
    """Return a point of each variant but the control for each day, in order.

    *days* has the arms with their cumulative counts at the end of each day. The
    intervals of rates are computed all at once, which takes little longer than one.
    """
    if not days:
        return []
    if settings.kind != CONVERSION:
        return [_means(arms, settings, level) for arms in days]
    sides = [(arms[0], arm) for arms in days for arm in arms[1:]]
    tables = tables_of(sides)
    planned = np.array([pair_share(*pair) for pair in sides])
    reached = None
    if horizon_users is not None:
        reached = _reached(days, tables, horizon_users)
    pairs = horizon.pairs_of(tables, planned, reached, centre, level.comparisons)
    (evident,) = always_valid_limits(horizon.question(pairs, level.alpha))
    differences, ratios = horizon.limits(pairs, level.alpha, evident).always
    found = iter(zip(sides, *differences, *ratios, strict=True))
    label = level.each, pairs.method
    return [[_point(label, *next(found)) for _ in arms[1:]] for arms in days]


def _point(label: tuple[float, str], pair: tuple[Arm, Arm], *ends: float) -> Point:
    """Return the point of a pair of rates; the last two ends are of their ratio."""
    low, high, least, most = ends
    return Point(
        rate_difference(*pair),
        rate_lift(*pair),
        interval(low, high, *label),
        interval(least - 1, most - 1, *label),
    )


def _means(arms: Sequence[Arm], settings: MetricSettings, level: Level) -> list[Point]:
    """Return the points of means or ratios."""
    found = samples(arms, settings)
    control, *treatments = found.any_look if found else [None] * len(arms)
    points = []
    for treatment in treatments:
        tested = always_valid_means(control, treatment, level.each)
        points.append(
            Point(
                difference(control, treatment) if control and treatment else None,
                lift(control, treatment),
                tested.difference_interval,
                tested.lift_interval,
            )
        )
    return points


def _reached(days: Sequence[Sequence[Arm]], tables: Tables, users: int) -> Floats:
    """Return the share of the horizon's information of each pair at each day."""
    planned = horizon.planned_information([arm.split_percentage for arm in days[0]])
    totals = [float(sum(arm.sample_size for arm in arms)) for arms in days]
    return horizon.reached(
        tables,
        np.repeat(totals, len(planned)),
        users,
        np.tile(planned, len(days)),
    )
