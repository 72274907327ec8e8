"""The analysis of one metric: counts in, every figure and a verdict out.

With several variants the always-valid p-values are Holm's, and the intervals of the
comparisons hold together: each has its own, higher level.

A pair's figures use the planned split, which their guarantee requires. If the
pair's split is broken (p < 0.001), they use the realised one, and nothing can be
trusted until the cause is found. The same holds if nothing was counted for the
metric in any arm; *received* then says what did arrive.

For a metric with values (revenue), `value` has each variant's mean value of a user,
with a comparison at one look and at any look. The verdict still rests on the
conversion rate, whose test is exact; if the means contradict it, its sentence and a
warning say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import isfinite
from typing import TYPE_CHECKING, NamedTuple

from stats import contrasts, horizon
from stats.evidence import E_PROCESS, always_valid_limits
from stats.means import MIXTURE, always_valid_means
from stats.multiplicity import holm
from stats.numerics import np
from stats.planning import detectable_effect, planned_centre
from stats.posterior import Beta, Posterior, pooled_prior, posterior
from stats.provenance import input_hash
from stats.rates import (
    always_valid_rate_interval,
    conversion_rate,
    rate_difference,
    rate_lift,
    wilson_interval,
)
from stats.results import (
    CONVERSION,
    GUARDRAIL,
    PRIMARY,
    Analysis,
    Arm,
    Comparison,
    Crossing,
    FixedHorizon,
    Horizon,
    Interval,
    Level,
    Method,
    MetricFigures,
    MetricSettings,
    Number,
    Plan,
    Received,
    SampleRatioMismatch,
    Sequential,
    ValueFigures,
    VariantFigures,
    check_counts,
    check_level,
    interval,
)
from stats.samples import Samples, samples
from stats.scorecard import Measured, Scorecard
from stats.splits import pair_share, sample_ratio_mismatch
from stats.values import value_figures
from stats.verdict import (
    Bounds,
    contest_of,
    nothing_counted,
    verdict,
    warnings,
    with_values,
)

if TYPE_CHECKING:
    from stats.contrasts import Limits, Tables
    from stats.numerics import Floats

POWER = 0.8  # where no plan says how surely an effect is to be found
SCORE_DIFFERENCE, SCORE_RATIO = "mee_score", "koopman_score"

#: How many analyses are remembered: enough for those that people look at again and
#: again. One takes 3 KB for a variant, so 128 take 1 MB with two variants each. With 20
#: variants, values of 340 decimals and the longest names they take 17 MB at most.
REMEMBERED = 128


class _Test(NamedTuple):
    """The tests of all pairs at any look: their inputs and their results."""

    pairs: horizon.Pairs
    log_e_values: list[float]
    p_values: list[float]
    adjusted: list[float]
    prior: Beta
    looks: list[horizon.Looks]
    """The intervals that are shown, and those that decide."""

    @property
    def labels(self) -> tuple[str, str]:
        """Return the method of the intervals for difference and lift."""
        return (self.pairs.method,) * 2


def analyse(
    arms: Sequence[Arm],
    *,
    plan: Plan | None = None,
    confidence_level: Number = 0.95,
    metric: str | MetricSettings = CONVERSION,
    received: Received | None = None,
    computed_at: str | None = None,
    horizon_users: int | None = None,
    crossings: Mapping[str, Crossing] | None = None,
    others: Sequence[Measured] = (),
) -> Analysis:
    """Return every figure, the verdict and the warnings for one metric.

    The first arm is the control. *metric* is a name, or the settings of a metric.
    *confidence_level* (0.5 to 0.99) is the level of the intervals; significance and
    verdict use the plan's (0.95 without one). *horizon_users* is the horizon that was
    frozen when the experiment started, and *crossings* are the stored ones, by the ids
    of their variants. *others* are the guardrails and the secondary metrics.
    """
    _check(arms)
    settings = MetricSettings(metric, PRIMARY) if isinstance(metric, str) else metric
    stored = tuple(sorted((crossings or {}).items()))
    known = figures(
        *(tuple(arms), plan, confidence_level, settings, horizon_users, stored),
        tuple(others),
    )
    arrived = received or Received()
    absence = nothing_counted(arms, settings.name, arrived)
    unknown = [
        caution
        for one in others
        if one.settings.role == GUARDRAIL
        for caution in nothing_counted(one.arms, one.settings.name, arrived)
    ]
    return known._replace(
        analysis=known.analysis._replace(plan=plan, computed_at=computed_at),
        warnings=absence + unknown + known.warnings,
        trustworthy=known.trustworthy and not absence,
    )


@lru_cache(maxsize=REMEMBERED)
def figures(
    arms: tuple[Arm, ...],
    plan: Plan | None,
    confidence_level: Number,
    settings: MetricSettings,
    horizon_users: int | None,
    stored: tuple[tuple[str, Crossing], ...],
    others: tuple[Measured, ...] = (),
) -> Analysis:
    """Return all that depends on these inputs alone, remembered by them.

    Equal numbers give equal figures, however they are written (0.1 or 0.10). The time
    and what else was received are added by `analyse`. No caller changes the lists.
    """
    shown, deciding = _levels(len(arms) - 1, confidence_level, plan)
    directed = plan and plan.towards(settings)
    split, measured = _split(arms), samples(arms, settings)
    pairs = _pairs(arms, planned_centre(directed), horizon_users)
    levels = [shown, deciding] if settings.kind == CONVERSION else [shown]
    test, metrics = _tested(arms, pairs, levels, Scorecard(others, shown, deciding))
    variants = _variants(arms, test, measured, shown, deciding, settings, stored)
    bounds = _bounds(test, variants, measured, shown, deciding, settings)
    contest = contest_of(settings, variants, bounds, metrics)
    decided = verdict(arms, contest, split, directed, horizon_users)
    decided, disagreement = with_values(decided, contest, deciding.alpha)
    method = _method(shown, deciding, test, horizon_users, settings)._replace(
        smallest_effect=_smallest_effect(arms[0], test, deciding, directed, settings),
        adjustment=measured and measured.adjustment,
    )
    made_from = plan, confidence_level, settings, horizon_users, others
    return Analysis(
        settings.name,
        variants,
        method._replace(input_hash=input_hash(arms, *made_from)),
        split,
        decided,
        disagreement + warnings(arms, variants, split, directed, deciding, settings),
        trustworthy=not split.detected,
        metrics=metrics or None,
    )


def _method(
    shown: Level,
    deciding: Level,
    test: _Test,
    users: int | None,
    settings: MetricSettings,
) -> Method:
    return Method(
        method=test.pairs.method if settings.kind == CONVERSION else MIXTURE,
        confidence_level=shown.confidence,
        verdict_confidence_level=deciding.confidence,
        correction="holm" if len(test.p_values) > 1 else "none",
        prior=f"Beta({test.prior.successes:.4g}, {test.prior.failures:.4g})",
        centre=test.pairs.centre,
        plan=None,
        computed_at=None,
        input_hash="",
        smallest_effect=None,
        horizon=_horizon(users, deciding),
        kind=settings.kind,
        direction=settings.direction,
    )


def _smallest_effect(
    control: Arm,
    test: _Test,
    deciding: Level,
    plan: Plan | None,
    settings: MetricSettings,
) -> float | None:
    """Return the smallest effect of any variant that would be found at these sizes.

    It is None if none or all of the control's users converted, if no effect is large
    enough, and if the metric is no rate.
    """
    tables = test.pairs.tables
    if (
        settings.kind != CONVERSION
        or control.conversions in (0, control.sample_size)
        or not tables.treatment_size.all()
    ):
        return None
    rate = control.conversions / control.sample_size
    # A fall of a rate is a rise of the rest.
    rate = 1 - rate if settings.sign < 0 else rate
    found = [
        detectable_effect(
            rate,
            control.sample_size,
            critical,
            float(plan.power) if plan else POWER,
            size / control.sample_size,
        )
        for critical, size in zip(
            horizon.critical(test.pairs, deciding.alpha).tolist(),
            tables.treatment_size.tolist(),
            strict=True,
        )
        if isfinite(critical)
    ]
    known = [one for one in found if one is not None]
    return max(known) if len(known) == len(tables.treatment_size) else None


def _horizon(users: int | None, deciding: Level) -> Horizon | None:
    """Return how the horizon shares the error rate; None without one."""
    if users is None:
        return None
    return Horizon(
        users=users,
        boundary_alpha=deciding.alpha * horizon.ON_BOUNDARY,
        evidence_alpha=deciding.alpha * horizon.ON_EVIDENCE,
    )


def _split(arms: Sequence[Arm]) -> SampleRatioMismatch:
    return sample_ratio_mismatch(
        [arm.sample_size for arm in arms], [arm.split_percentage for arm in arms]
    )


def _check(arms: Sequence[Arm]) -> None:
    for arm in arms:
        check_counts(arm.conversions, arm.sample_size)
    if len(arms) < 2:
        raise ValueError(f"An analysis needs two variants, not {len(arms)}")


def _variants(
    arms: Sequence[Arm],
    test: _Test,
    measured: Samples | None,
    shown: Level,
    deciding: Level,
    settings: MetricSettings,
    stored: Sequence[tuple[str, Crossing]],
) -> list[VariantFigures]:
    """Return the figures of every arm, with its comparison to the control."""
    chances = _chances(arms, test.prior, settings)
    # They are of the figure that decides.
    rates, means = dict(stored), dict[str, Crossing]()
    if settings.kind != CONVERSION:
        rates, means = means, rates
    comparisons = _comparisons(arms, test, chances, shown, deciding, rates)
    values = value_figures(arms, measured, shown, deciding, settings, means)
    return [
        _variant(arms, place, chances, comparisons[place], values[place], shown)
        for place in range(len(arms))
    ]


def _levels(
    comparisons: int, confidence_level: Number, plan: Plan | None
) -> tuple[Level, Level]:
    """Return the level that is shown, and the one that decides.

    The latter is the plan's, and 0.95 without one.
    """
    deciding = 0.95 if plan is None else check_level(plan.confidence_level)
    shown = Level(check_level(confidence_level), comparisons)
    return shown, shown._replace(confidence=deciding)


# ---------------------------------------------------------------------------
# Rates


def _pairs(arms: Sequence[Arm], centre: float, users: int | None) -> horizon.Pairs:
    """Return each variant against the control."""
    sides = [(arms[0], arm) for arm in arms[1:]]
    tables = contrasts.tables_of(sides)
    shares = np.array([pair_share(*pair) for pair in sides])
    reached = None if users is None else _reached(arms, tables, users)
    return horizon.pairs_of(tables, shares, reached, centre, len(sides))


def _tested(
    arms: Sequence[Arm], pairs: horizon.Pairs, levels: list[Level], card: Scorecard
) -> tuple[_Test, list[MetricFigures]]:
    """Return the tests of the variants, and the figures of the other metrics.

    Their intervals are searched together, because many take little longer than one.
    """
    alphas = list(dict.fromkeys(level.alpha for level in levels))
    asked = [horizon.question(pairs, alpha) for alpha in alphas]
    answers = always_valid_limits(*asked, *card.questions)
    looks = [
        horizon.limits(pairs, *each)
        for each in zip(alphas, answers[: len(asked)], strict=True)
    ]
    return _test(arms, pairs, looks), card.figures(answers[len(asked) :])


def _test(
    arms: Sequence[Arm], pairs: horizon.Pairs, looks: list[horizon.Looks]
) -> _Test:
    """Return the test of each variant against the control, valid at any look."""
    log_e = horizon.log_e(pairs)
    p_values: list[float] = horizon.p_values(pairs, log_e).tolist()
    prior = pooled_prior([(arm.conversions, arm.sample_size) for arm in arms])
    return _Test(pairs, log_e.tolist(), p_values, holm(p_values), prior, looks)


def _reached(arms: Sequence[Arm], tables: Tables, users: int) -> Floats:
    """Return the share of the horizon's information that each pair has."""
    planned = horizon.planned_information([arm.split_percentage for arm in arms])
    total = float(sum(arm.sample_size for arm in arms))
    return horizon.reached(tables, total, users, planned)


def _chances(arms: Sequence[Arm], prior: Beta, settings: MetricSettings) -> Posterior:
    """Return how likely each arm is the best: where less is better, the lowest rate."""
    if settings.sign > 0:
        return posterior([(arm.conversions, arm.sample_size) for arm in arms], prior)
    # The lowest rate of converting is the highest rate of not converting.
    spared = [(arm.sample_size - arm.conversions, arm.sample_size) for arm in arms]
    return posterior(spared, Beta(prior.failures, prior.successes))


def _comparisons(
    arms: Sequence[Arm],
    test: _Test,
    chances: Posterior,
    shown: Level,
    deciding: Level,
    crossings: Mapping[str, Crossing],
) -> list[Comparison | None]:
    """Return each variant's comparison with the control; None for the control."""
    tables = test.pairs.tables
    fixed, always = test.looks[0]
    fixed_p_values = contrasts.fixed_horizon_p_value(tables)
    return [None] + [
        Comparison(
            control_variant_id=arms[0].variant_id,
            difference=rate_difference(arms[0], arm),
            lift=rate_lift(arms[0], arm),
            probability_to_beat_control=chances.probability_to_beat_control[place + 1],
            fixed_horizon=FixedHorizon(
                float(fixed_p_values[place]),
                *_pair_of_intervals(
                    fixed, place, shown.each, (SCORE_DIFFERENCE, SCORE_RATIO)
                ),
            ),
            sequential=Sequential(
                test.p_values[place],
                test.adjusted[place],
                test.log_e_values[place],
                *_pair_of_intervals(always, place, shown.each, test.labels),
                test.adjusted[place] < 1 - deciding.confidence
                or arm.variant_id in crossings,
            ),
            crossing=crossings.get(arm.variant_id),
        )
        for place, arm in enumerate(arms[1:])
    ]


def _pair_of_intervals(
    limits: tuple[Limits, Limits], place: int, level: float, methods: tuple[str, str]
) -> tuple[Interval, Interval]:
    """Return the difference's and the lift's interval of one comparison."""
    difference, ratio = limits
    return (
        interval(difference.lower[place], difference.upper[place], level, methods[0]),
        interval(ratio.lower[place] - 1, ratio.upper[place] - 1, level, methods[1]),
    )


def _bounds(
    test: _Test,
    variants: Sequence[VariantFigures],
    measured: Samples | None,
    shown: Level,
    deciding: Level,
    settings: MetricSettings,
) -> list[Bounds]:
    """Return the interval of each difference that decides, of which more is better."""
    ends: list[Interval]
    compared = [one.value and one.value.comparison for one in variants[1:]]
    if settings.kind != CONVERSION and shown == deciding and all(compared):
        ends = [one.sequential.difference_interval for one in compared if one]
    elif settings.kind != CONVERSION:
        control, *treatments = measured.any_look if measured else [None] * len(variants)
        ends = [
            always_valid_means(control, one, deciding.each).difference_interval
            for one in treatments
        ]
    elif shown == deciding:
        ends = [
            variant.comparison.sequential.difference_interval
            for variant in variants
            if variant.comparison
        ]
    else:
        limits, _ = test.looks[-1].always
        pairs = zip(limits.lower, limits.upper, strict=True)
        ends = [interval(*each, deciding.each, E_PROCESS) for each in pairs]
    return [Bounds.of(each, settings) for each in ends]


def _variant(
    arms: Sequence[Arm],
    place: int,
    chances: Posterior,
    comparison: Comparison | None,
    value: ValueFigures | None,
    shown: Level,
) -> VariantFigures:
    """Return the figures of one arm."""
    arm = arms[place]
    counts = arm.conversions, arm.sample_size
    level = shown.confidence
    return VariantFigures(
        variant_id=arm.variant_id,
        variant_name=arm.variant_name,
        sample_size=arm.sample_size,
        conversions=arm.conversions,
        conversion_rate=conversion_rate(*counts),
        is_control=place == 0,
        confidence_interval=wilson_interval(*counts, confidence_level=level),
        always_valid_interval=always_valid_rate_interval(
            *counts, confidence_level=level
        ),
        probability_best=chances.probability_best[place],
        expected_loss=chances.expected_loss[place],
        comparison=comparison,
        value=value,
    )
