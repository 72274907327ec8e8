"""Planning: sample sizes, durations, power and detectable effects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import ceil, exp, inf, isfinite, log, sqrt
from typing import NamedTuple

from stats.contrasts import project
from stats.evidence import AROUND_NULL, CENTRE, critical_score, nuisance_level
from stats.horizon import horizon_factor
from stats.means import bet_scale
from stats.numerics import crossing, normal_quantile, np, special
from stats.results import Number, Plan, check_level
from stats.splits import shares


class Size(NamedTuple):
    """The users of each variant, in order, and the days if the traffic is known."""

    users_per_variant: list[int]
    total: int
    days: int | None


class PlannedSize(NamedTuple):
    """The sizes that detect an effect by one look at the end, and by any look.

    *horizon* is for any look of an experiment that stores its plan, and
    *always_valid* for one without. The latter is None if the effect is below half the
    finest bet, 0.25 % of the odds: that test does not detect it with any number of
    users. A guardrail has no horizon.
    """

    baseline_rate: float
    target_rate: float
    fixed_horizon: Size
    horizon: Size | None
    always_valid: Size | None


class MeanPlan(NamedTuple):
    """An effect on a mean, absolute, and the spread of the users' totals.

    *correlation* is that of the totals with a covariate, which takes its part of the
    variance away.
    """

    baseline_mean: Number
    standard_deviation: Number
    minimum_effect: Number
    correlation: Number = 0
    power: Number = 0.8
    confidence_level: Number = 0.95


class PlannedMeanSize(NamedTuple):
    """The sizes that detect an effect on a mean by one look, and by any look.

    The latter is None if no number of users is enough: the finest bet is larger.
    """

    baseline_mean: float
    target_mean: float
    fixed_horizon: Size
    always_valid: Size | None


def plan_mean_sample_size(
    plan: MeanPlan,
    splits: Sequence[Number] = (50, 50),
    users_per_day: Number | None = None,
) -> PlannedMeanSize:
    """Return the users and days that a plan for a mean needs."""
    return _mean_sizes(plan, float(plan.minimum_effect), splits, users_per_day)


def plan_harmless_mean(
    plan: MeanPlan,
    splits: Sequence[Number] = (50, 50),
    users_per_day: Number | None = None,
) -> PlannedMeanSize:
    """Return the users and days until a mean that does not change is shown harmless.

    The effect of the plan is the margin of the guardrail: an interval must leave it
    out, which is the test of a difference from the other side.
    """
    return _mean_sizes(plan, 0.0, splits, users_per_day)


def _mean_sizes(
    plan: MeanPlan,
    change: float,
    splits: Sequence[Number],
    users_per_day: Number | None,
) -> PlannedMeanSize:
    """Return the sizes that a plan needs for a mean that changes by so much."""
    baseline, effect = float(plan.baseline_mean), float(plan.minimum_effect)
    spread = float(plan.standard_deviation) * sqrt(1 - float(plan.correlation) ** 2)
    control, *treatments = shares(splits)
    alpha = (1 - check_level(plan.confidence_level)) / max(len(treatments), 1)
    power, once, always = float(plan.power), 0.0, 0.0
    for part in set(treatments):
        ratio = part / control
        least = mean_sample_size(effect, spread, alpha, power, ratio)
        scale = bet_scale(baseline + change * part / (part + control), spread**2)
        most = _always_valid_mean(effect / spread, scale, alpha, power, ratio, least)
        once, always = max(once, least / control), max(always, most / control)
    return PlannedMeanSize(
        baseline,
        baseline + change,
        _size(once, splits, users_per_day),
        _size(always, splits, users_per_day) if isfinite(always) else None,
    )


def mean_sample_size(
    effect: float,
    standard_deviation: float,
    alpha: float = 0.05,
    power: float = 0.8,
    ratio: float = 1.0,
) -> float:
    """Return the control users that detect this effect on a mean in one look.

    *ratio* is the number of treatment users for each control user. The test is the
    two-sided t-test, and the power that of the noncentral t distribution, as in R's
    ``power.t.test(strict = TRUE)``. The size is not rounded.
    """
    distance = abs(effect) / standard_deviation

    def excess(logarithm: float) -> float:
        users = exp(logarithm)
        freedom = users * (1 + ratio) - 2
        shift = distance * sqrt(users * ratio / (1 + ratio))
        critical = special.stdtrit(freedom, 1 - alpha / 2)
        # A tail of less than 1e-20 may be NaN.
        tails = special.nctdtr(freedom, shift, np.array([critical, -critical]))
        missed, found = (float(tail) for tail in np.nan_to_num(tails))
        return power - (1 - (missed - found))

    # Not found with the fewest users, and found with those of the normal distribution.
    least = log(2.0 / (1 + ratio) * 2)
    z = normal_quantile(1 - alpha / 2) + normal_quantile(power)
    enough = log((z / distance) ** 2 * (1 + 1 / ratio) + 10 * (1 + 1 / ratio))
    if excess(least) <= 0:
        return exp(least)
    return exp(crossing(lambda one: -excess(one), enough, least, 1e-12))


def _always_valid_mean(
    distance: float,
    scale: float,
    alpha: float,
    power: float,
    ratio: float,
    least: float,
) -> float:
    """Return the control users at which the test of a mean at any look has the power.

    *distance* is the effect in standard deviations, and *scale* that of the bets.
    Infinite if no size is enough.
    """

    def needed(users: float) -> float:
        critical = critical_score(users * ratio / (1 + ratio) * scale, alpha)
        if critical is None:
            return inf
        z = critical + normal_quantile(power)
        return float((z / distance) ** 2 * (1 + 1 / ratio))

    return _fixed_point(needed, least)


def plan_sample_size(
    baseline_rate: Number,
    minimum_effect: Number | None = None,
    *,
    relative_effect: Number | None = None,
    power: Number = 0.8,
    confidence_level: Number = 0.95,
    splits: Sequence[Number] = (50, 50),
    users_per_day: Number | None = None,
) -> PlannedSize:
    """Return the users and days that a plan needs, for one look and for any look.

    The effect is either absolute (0.02 on 0.10) or relative (0.2). Several variants
    share alpha evenly, and the one with the smallest split determines the size. The
    size for any look is the one at which the test has the planned power; most
    tests stop well before it.
    """
    if (minimum_effect is None) == (relative_effect is None):
        raise ValueError("Give either the minimum effect or the relative effect")
    if minimum_effect is None:
        minimum_effect = float(baseline_rate) * float(relative_effect or 0)
    plan = Plan(baseline_rate, minimum_effect, power, confidence_level)
    baseline, target = planned_rates(plan)
    always = _always_valid_total(plan, splits)
    return PlannedSize(
        baseline_rate=baseline,
        target_rate=target,
        fixed_horizon=_size(planned_total(plan, splits), splits, users_per_day),
        horizon=_size(planned_horizon(plan, splits), splits, users_per_day),
        always_valid=_size(always, splits, users_per_day) if isfinite(always) else None,
    )


def plan_harmless_rate(
    baseline_rate: Number,
    margin: Number,
    *,
    power: Number = 0.8,
    confidence_level: Number = 0.95,
    splits: Sequence[Number] = (50, 50),
    users_per_day: Number | None = None,
) -> PlannedSize:
    """Return the users and days until a rate that does not change is shown harmless.

    *margin* is the difference that has to be ruled out: a fall, below 0, where more is
    better, and a rise where less is. Its size for one look is that of Farrington and
    Manning's test, with half of alpha on the side that matters.
    """
    plan = Plan(baseline_rate, margin, power, confidence_level)
    baseline, _ = planned_rates(plan)
    control, *treatments = shares(splits)
    alpha = (1 - float(confidence_level)) / max(len(treatments), 1)
    evident = AROUND_NULL * (alpha - nuisance_level(len(treatments)))
    once, always = 0.0, 0.0
    for part in set(treatments):
        one = _Harmless(baseline, float(margin), float(power), part / control)
        least = one.users(normal_quantile(1 - alpha / 2))
        most = _fixed_point(partial(one.always_valid_users, evident), least)
        once, always = max(once, least / control), max(always, most / control)
    return PlannedSize(
        baseline_rate=baseline,
        target_rate=baseline,
        fixed_horizon=_size(once, splits, users_per_day),
        horizon=None,
        always_valid=_size(always, splits, users_per_day) if isfinite(always) else None,
    )


class _Harmless(NamedTuple):
    """A rate that is the same in both arms, and a difference that is ruled out."""

    baseline: float
    margin: float
    power: float
    ratio: float

    def users(self, critical: float) -> float:
        """Return the control users if |z| against the margin must be *critical*.

        Farrington & Manning (1990), Stat. Med. 9, p. 1447-1454, method 3.
        """
        control, treatment = self._variances()
        null = sqrt(control + treatment / self.ratio)
        real = sqrt(self.baseline * (1 - self.baseline) * (1 + 1 / self.ratio))
        signal = critical * null + normal_quantile(self.power) * real
        return _users(signal, self.margin)

    def always_valid_users(self, alpha: float, users: float) -> float:
        """Return them if the |z| is that of any look, with the bets of so many users.

        A bet on the odds ratio has, on the null line, the information of the counts
        about its logarithm.
        """
        control, treatment = self._variances()
        information = users / (1 / control + 1 / (treatment * self.ratio))
        critical = critical_score(information, alpha)
        return inf if critical is None else self.users(critical)

    def _variances(self) -> tuple[float, float]:
        """Return the arms' variances where the difference is the margin.

        The rates are the most likely ones for what is expected of both arms.
        """
        one = np.array([self.baseline])
        share = np.array([self.ratio / (1 + self.ratio)])
        shift = np.array([self.margin])
        control = float(project(one, one, share, np.ones(1), shift)[0])
        treatment = control + self.margin
        return control * (1 - control), treatment * (1 - treatment)


def planned_rates(plan: Plan) -> tuple[float, float]:
    """Return baseline and target rate; raise ValueError for an impossible plan.

    A positive effect is a rise; with a negative one the target is below the baseline.
    """
    baseline, effect = float(plan.baseline_rate), float(plan.minimum_effect)
    check_level(plan.confidence_level)
    if not (0 < baseline < 1 and 0 < baseline + effect < 1 and effect):
        raise ValueError(
            f"Rates lie between 0 and 1: baseline {baseline}, effect {effect}"
        )
    if not 0 < plan.power < 1:
        raise ValueError(f"Power lies between 0 and 1: {plan.power}")
    return baseline, baseline + effect


def planned_centre(plan: Plan | None) -> float:
    """Return the log odds ratio of the plan's effect; 0.2 without a plan."""
    if plan is None:
        return CENTRE
    baseline, target = planned_rates(plan)
    return abs(log(target / (1 - target)) - log(baseline / (1 - baseline)))


def planned_total(plan: Plan, splits: Sequence[Number]) -> float:
    """Return the users of all variants that one look at the end needs."""
    baseline, target = planned_rates(plan)
    parts = shares(splits)
    comparisons = max(len(parts) - 1, 1)
    alpha = (1 - float(plan.confidence_level)) / comparisons
    return max(
        sample_size(baseline, target, alpha, float(plan.power), part / parts[0])
        / parts[0]
        for part in set(parts[1:])
    )


def planned_horizon(plan: Plan, splits: Sequence[Number]) -> int:
    """Return the users of all variants up to which a planned experiment is tested.

    At so many it has the planned power however often it was looked at.
    """
    alpha = (1 - float(plan.confidence_level)) / max(len(splits) - 1, 1)
    factor = horizon_factor(alpha, float(plan.power))
    return ceil(planned_total(plan, splits) * factor - 1e-9)


def smallest_planned_effect(
    baseline_rate: Number,
    users: Number,
    *,
    power: Number = 0.8,
    confidence_level: Number = 0.95,
    variants: int = 2,
) -> float | None:
    """Return the smallest absolute rise whose horizon is so many users; None if none.

    The users are split evenly. It is the inverse of `planned_horizon`.
    """
    alpha = (1 - check_level(confidence_level)) / (variants - 1)
    once = float(users) / horizon_factor(alpha, float(power))
    return minimum_detectable_effect(
        float(baseline_rate), once / variants, alpha, float(power)
    )


def sample_size(
    baseline_rate: float,
    target_rate: float,
    alpha: float = 0.05,
    power: float = 0.8,
    ratio: float = 1.0,
) -> float:
    """Return the control users that detect this effect with this power in one look.

    *ratio* is the number of treatment users for each control user. The test is
    two-sided, with pooled variance under the null and unpooled variance under the
    alternative, as in R's ``power.prop.test``. The size is not rounded.

    Fleiss, Levin & Paik (2003), "Statistical Methods for Rates and Proportions",
    3rd ed., section 4.2.
    """
    critical = normal_quantile(1 - alpha / 2)
    return _size_at(baseline_rate, target_rate, critical, power, ratio)


def power_at(
    baseline_rate: float,
    target_rate: float,
    users_per_arm: float,
    alpha: float = 0.05,
    ratio: float = 1.0,
) -> float:
    """Return the power of one look at this many control users."""
    rates = baseline_rate, target_rate
    return _power(rates, users_per_arm, normal_quantile(1 - alpha / 2), ratio)


def _power(
    rates: tuple[float, float], users_per_arm: float, critical: float, ratio: float
) -> float:
    """Return the power if |z| must be *critical*."""
    null, alternative = _spreads(*rates, ratio)
    signal = abs(rates[1] - rates[0]) * sqrt(users_per_arm)
    return float(special.ndtr((signal - critical * null) / alternative))


def minimum_detectable_effect(
    baseline_rate: float,
    users_per_arm: float,
    alpha: float = 0.05,
    power: float = 0.8,
    ratio: float = 1.0,
) -> float | None:
    """Return the smallest absolute rise with this power; None if there is none."""
    critical = normal_quantile(1 - alpha / 2)
    return detectable_effect(baseline_rate, users_per_arm, critical, power, ratio)


def detectable_effect(
    baseline_rate: float,
    users_per_arm: float,
    critical: float,
    power: float,
    ratio: float,
) -> float | None:
    """Return the smallest absolute rise that is found if |z| must be *critical*."""

    def excess(effect: float) -> float:
        rates = baseline_rate, baseline_rate + effect
        return _power(rates, users_per_arm, critical, ratio) - power

    largest = (1 - baseline_rate) * (1 - 1e-12)
    if excess(largest) < 0:
        return None
    return crossing(excess, largest * 1e-12, largest, 1e-13)


def always_valid_sample_size(
    baseline_rate: float,
    target_rate: float,
    alpha: float = 0.05,
    power: float = 0.8,
    ratio: float = 1.0,
    centre: float | None = None,
    nuisance: float = 1e-4,
) -> float:
    """Return the control users at which the test for any look has this power.

    The formula is that of `sample_size`, with the critical |z| of the always-valid
    test at that size instead of 1.96. The result is about twice the size for one look,
    and simulations need 1.7 to 1.8 times. If the effect is as planned, the test stops
    on average at 1.14 to 1.22 times the size for one look. The result is infinite if no
    size is large enough.
    """
    plan = Plan(baseline_rate, target_rate - baseline_rate)
    middle = planned_centre(plan) if centre is None else centre
    pooled = (baseline_rate + ratio * target_rate) / (1 + ratio)

    def needed(users: float) -> float:
        information = users * ratio / (1 + ratio) * pooled * (1 - pooled)
        critical = critical_score(information, alpha - nuisance, middle)
        if critical is None:
            return inf
        return _size_at(baseline_rate, target_rate, critical, power, ratio)

    least = sample_size(baseline_rate, target_rate, alpha, power, ratio)
    return _fixed_point(needed, least)


def _fixed_point(needed: Callable[[float], float], least: float) -> float:
    """Return the size that is equal to its needed size; infinity if there is none."""

    def excess(size: float) -> float:
        return size - log(needed(exp(size)))

    low = high = log(least)
    while excess(high) < 0:
        low, high = high, high + log(2)
        if high > log(1e18):
            return inf
    if low == high:
        return least
    return exp(crossing(excess, low, high, 1e-9))


def _spreads(baseline: float, target: float, ratio: float) -> tuple[float, float]:
    """Return the standard deviations under the null and under the alternative."""
    pooled = (baseline + ratio * target) / (1 + ratio)
    null = sqrt(pooled * (1 - pooled) * (1 + 1 / ratio))
    return null, sqrt(baseline * (1 - baseline) + target * (1 - target) / ratio)


def _size_at(
    baseline: float, target: float, critical: float, power: float, ratio: float
) -> float:
    null, alternative = _spreads(baseline, target, ratio)
    signal = critical * null + normal_quantile(power) * alternative
    return _users(signal, target - baseline)


def _users(signal: float, change: float) -> float:
    """Return the control users at which a change is so large a signal: at least one.

    Below 0, no user is needed: a test finds something in about half of alpha of the
    experiments with any number of users, and no more was asked for.
    """
    return max(1.0, (max(signal, 0.0) / change) ** 2)


def _always_valid_total(plan: Plan, splits: Sequence[Number]) -> float:
    """Return the users of all variants at which any look has the planned power."""
    baseline, target = planned_rates(plan)
    parts = shares(splits)
    comparisons = max(len(parts) - 1, 1)
    alpha = (1 - float(plan.confidence_level)) / comparisons
    return max(
        always_valid_sample_size(
            baseline,
            target,
            alpha,
            float(plan.power),
            part / parts[0],
            nuisance=nuisance_level(comparisons),
        )
        / parts[0]
        for part in set(parts[1:])
    )


def _size(total: float, splits: Sequence[Number], users_per_day: Number | None) -> Size:
    """Return the size in whole users for each variant, and in whole days."""
    if users_per_day is not None and not users_per_day > 0:
        raise ValueError(f"Users a day must be above 0, not {users_per_day}")
    users = [ceil(total * part - 1e-9) for part in shares(splits)]
    days = None if users_per_day is None else ceil(sum(users) / float(users_per_day))
    return Size(users, sum(users), days)
