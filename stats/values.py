"""The value figures of an analysis: the mean of each variant, and its tests."""

from __future__ import annotations

from collections.abc import Sequence

from stats.means import (
    AlwaysValidMeans,
    Sample,
    always_valid_mean_interval,
    always_valid_means,
    difference,
    lift,
    mean_interval,
    sample,
    welch,
)
from stats.multiplicity import holm
from stats.results import (
    Arm,
    Level,
    ValueComparison,
    ValueFigures,
    ValueSequential,
    ValueSums,
)


def value_figures(
    arms: Sequence[Arm], shown: Level, deciding: Level
) -> list[ValueFigures | None]:
    """Return the value figures of each arm; all None unless every arm has sums.

    The mean is over all users of an arm; a user without a value counts as 0. The
    p-value for any look is asymptotic, as the name of its method says.
    """
    sums = [arm.value for arm in arms if arm.value is not None]
    if len(sums) < len(arms):
        return [None] * len(arms)

    samples = [
        _sample(arm.sample_size, one) for arm, one in zip(arms, sums, strict=True)
    ]
    always = [
        always_valid_means(samples[0], treatment, shown.each)
        for treatment in samples[1:]
    ]
    # A comparison without a p-value still counts as one of the comparisons.
    adjusted = holm([1.0 if one.p_value is None else one.p_value for one in always])
    comparisons: list[ValueComparison | None] = [None]
    for treatment, any_look, p_value in zip(samples[1:], always, adjusted, strict=True):
        sequential = _sequential(any_look, p_value, deciding)
        comparisons.append(
            _comparison(arms[0].variant_id, samples[0], treatment, shown, sequential)
        )
    return [
        ValueFigures(
            count=total.count,
            sum=float(total.sum),
            mean=one and one.mean,
            confidence_interval=mean_interval(one, shown.confidence),
            always_valid_interval=always_valid_mean_interval(
                one, total.count, shown.confidence
            ),
            comparison=comparison,
        )
        for total, one, comparison in zip(sums, samples, comparisons, strict=True)
    ]


def _sample(sample_size: int, sums: ValueSums) -> Sample | None:
    """Return mean and variance of one arm; raise for more values than users."""
    if not 0 <= sums.count <= sample_size:
        raise ValueError(f"{sums.count} values of {sample_size} users is impossible")
    return sample(sample_size, sums.sum, sums.sum_squares)


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
    any_look: AlwaysValidMeans, adjusted: float, deciding: Level
) -> ValueSequential:
    """Return the figures for any look, with the adjusted p-value."""
    is_known = any_look.p_value is not None
    return ValueSequential(
        any_look.p_value,
        adjusted if is_known else None,
        any_look.log_e_value,
        any_look.difference_interval,
        any_look.lift_interval,
        is_known and adjusted < 1 - deciding.confidence,
    )
