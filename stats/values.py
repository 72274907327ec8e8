"""The value figures of an analysis: the mean of each variant, and its tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stats.means import (
    AlwaysValidMeans,
    always_valid_mean_interval,
    always_valid_means,
    difference,
    least_values,
    lift,
    mean_interval,
    welch,
)
from stats.multiplicity import holm
from stats.results import (
    Arm,
    Crossing,
    Level,
    MetricSettings,
    ValueComparison,
    ValueFigures,
    ValueSequential,
)
from stats.samples import Sample, Samples


def value_figures(
    arms: Sequence[Arm],
    measured: Samples | None,
    shown: Level,
    deciding: Level,
    settings: MetricSettings,
    crossings: Mapping[str, Crossing],
) -> list[ValueFigures | None]:
    """Return the value figures of each arm from its sample; all None without samples.

    *crossings* are the stored ones of these means. The mean is over all users of an
    arm, of whom one without a value counts as 0; that of a ratio is over all events.
    The p-value for any look is asymptotic, as the name of its method says.
    """
    if measured is None:
        return [None] * len(arms)
    samples = measured.arms
    always = [
        always_valid_means(measured.any_look[0], treatment, shown.each)
        for treatment in measured.any_look[1:]
    ]
    # A comparison without a p-value still counts as one of the comparisons.
    adjusted = holm([1.0 if one.p_value is None else one.p_value for one in always])
    comparisons: list[ValueComparison | None] = [None]
    for place, (any_look, p_value) in enumerate(zip(always, adjusted, strict=True), 1):
        crossing = crossings.get(arms[place].variant_id)
        sequential = _sequential(any_look, p_value, deciding, crossing)
        pair = samples[0], samples[place]
        comparison = _comparison(arms[0].variant_id, *pair, shown, sequential)
        comparisons.append(comparison._replace(crossing=crossing))
    rows = zip(arms, measured.own, comparisons, strict=True)
    least = least_values(settings.cap)
    return [_of_arm(*row, shown.confidence, least) for row in rows]


def _of_arm(
    arm: Arm,
    one: Sample | None,
    comparison: ValueComparison | None,
    level: float,
    least: int,
) -> ValueFigures | None:
    """Return the value figures of an arm."""
    if arm.value is None:
        return None
    return ValueFigures(
        count=arm.value.count,
        sum=float(arm.value.sum),
        mean=one and one.mean,
        confidence_interval=mean_interval(one, level),
        always_valid_interval=always_valid_mean_interval(
            one, arm.value.count, level, least
        ),
        comparison=comparison,
    )


def _comparison(
    control_variant_id: str,
    control: Sample | None,
    treatment: Sample | None,
    shown: Level,
    sequential: ValueSequential,
) -> ValueComparison:
    """Return the comparison of an arm's mean with the control's."""
    return ValueComparison(
        control_variant_id=control_variant_id,
        difference=difference(control, treatment) if control and treatment else None,
        lift=lift(control, treatment),
        fixed_horizon=welch(control, treatment, shown.each),
        sequential=sequential,
    )


def _sequential(
    any_look: AlwaysValidMeans,
    adjusted: float,
    deciding: Level,
    crossing: Crossing | None,
) -> ValueSequential:
    """Return the figures for any look, with the adjusted p-value."""
    is_known = any_look.p_value is not None
    return ValueSequential(
        any_look.p_value,
        adjusted if is_known else None,
        any_look.log_e_value,
        any_look.difference_interval,
        any_look.lift_interval,
        (is_known and adjusted < 1 - deciding.confidence) or crossing is not None,
    )
