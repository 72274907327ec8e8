"""Value metrics such as revenue: the mean over all users, from exact sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from math import exp, isfinite, sqrt
from typing import NamedTuple

from stats.evidence import critical_score, normal_log_e_value
from stats.numerics import special
from stats.results import Interval, ValueFixedHorizon
from stats.samples import Sample

WELCH, FIELLER, STUDENT = "welch", "fieller", "student"
MIXTURE = "normal_mixture_asymptotic"

#: The bounds of the mean in standard deviations that the bets are scaled by.
LEAST_SCALE, MOST_SCALE = 0.02, 1.0

#: The fewest users with a value for which an arm's always-valid interval is shown: if
#: values have no cap, and if they have one.
LEAST_VALUES, LEAST_CAPPED_VALUES = 2_000, 300

#: Beyond it a lift is not known: a float would not hold it in percent.
LARGEST_LIFT = 1e300


class AlwaysValidMeans(NamedTuple):
    """The test of two means at any look; unlike that of two rates, it is asymptotic."""

    p_value: float | None
    log_e_value: float | None
    difference_interval: Interval
    lift_interval: Interval


def mean_interval(one: Sample | None, confidence_level: float) -> Interval:
    """Return Student's interval of one mean, valid for one look. Student (1908)."""
    if one is None or not one.variance:
        return Interval(None, None, confidence_level, STUDENT)
    k = float(special.stdtrit(one.size - 1, (1 + confidence_level) / 2))
    spread = k * sqrt(one.variance / one.size)
    return Interval(one.mean - spread, one.mean + spread, confidence_level, STUDENT)


def least_values(cap: Decimal | None) -> int:
    """Return how many users with a value an arm's always-valid interval needs.

    Without a cap, a few values may be so large that the mean of 300 is too low, and its
    variance with it: of Pareto values with exponent 2.1, the interval would leave out
    the true mean in 11 of 100 experiments, and in 3 with 2,000.
    """
    return LEAST_VALUES if cap is None else LEAST_CAPPED_VALUES


def always_valid_mean_interval(
    one: Sample | None,
    values: int,
    confidence_level: float,
    least: int = LEAST_VALUES,
) -> Interval:
    """Return the asymptotic interval of one mean that is valid at every look.

    It is unknown below so many users with a value (*values*). With fewer users and
    skewed values it would hold the true mean at all looks in 34 to 81 of 100
    experiments; with as many as `least_values` says, in 97 or more.
    """
    nothing = Interval(None, None, confidence_level, MIXTURE)
    if one is None or not one.variance or values < least:
        return nothing
    information = one.size * bet_scale(one.mean, one.variance)
    k = _critical(information, one.size - 1, 1 - confidence_level)
    if k is None:
        return nothing
    spread = k * sqrt(one.variance / one.size)
    return Interval(one.mean - spread, one.mean + spread, confidence_level, MIXTURE)


def welch(
    control: Sample | None, treatment: Sample | None, confidence_level: float
) -> ValueFixedHorizon:
    """Return Welch's test of two means, and Fieller's interval for the lift.

    All of it is None if the variance is 0 or unknown. The lift needs a control mean
    above 0, and its interval one that is significantly above 0.

    Welch (1947), Biometrika 34, p. 28-35; Fieller (1954), JRSS-B 16, p. 175-185.
    """
    error = _standard_error(control, treatment)
    if control is None or treatment is None or error is None:
        nothing = Interval(None, None, confidence_level, WELCH)
        lift = nothing._replace(method=FIELLER)
        return ValueFixedHorizon(None, None, None, nothing, lift)
    freedom = _degrees_of_freedom(control, treatment)
    t = difference(control, treatment) / error
    k = float(special.stdtrit(freedom, (1 + confidence_level) / 2))
    return ValueFixedHorizon(
        p_value=float(2 * special.stdtr(freedom, -abs(t))),
        t=t,
        degrees_of_freedom=freedom,
        difference_interval=_difference(
            control, treatment, k * error, (confidence_level, WELCH)
        ),
        lift_interval=_fieller(
            control.mean,
            treatment.mean,
            _squared_errors(control, treatment),
            k,
            (confidence_level, FIELLER),
        ),
    )


def always_valid_means(
    control: Sample | None, treatment: Sample | None, confidence_level: float
) -> AlwaysValidMeans:
    """Return the test of two means at any look: the bets of the rates, on two t's.

    The e-value is the smaller of those of Welch's t and of the pooled t. Welch's t
    alone fails if one arm is small: its variance is near 0 until some users of that
    arm have a value, so that 0 buyers of 100 would be significant.

    The tail probability of each statistic is first converted to a normal score, which
    makes it smaller while there are few users. The bets are on the relative effect,
    scaled by mean over standard deviation. Each end of an interval is the outer one
    of both tests. The guarantee is asymptotic: it needs large samples, and larger ones
    for heavier tails.

    All of it is None if an arm has fewer than two users, or if all users of each arm
    have the same value: a difference cannot be measured without a spread.
    """
    label = (confidence_level, MIXTURE)
    nothing = Interval(None, None, *label)
    log_e = means_log_e_value(control, treatment)
    if control is None or treatment is None or log_e is None:
        return AlwaysValidMeans(None, None, nothing, nothing)
    p_value = exp(-max(log_e, 0.0))  # 1 / exp(log_e) could overflow
    differences, lifts = [], []
    for test in _statistics(control, treatment):
        k = _critical(test.information, test.freedom, 1 - confidence_level)
        errors = None if k is None else test.errors(k)
        if k is None or errors is None:
            return AlwaysValidMeans(p_value, log_e, nothing, nothing)
        spread = k * sqrt(sum(errors))
        differences.append(_difference(control, treatment, spread, label))
        lifts.append(_fieller(control.mean, treatment.mean, errors, k, label))
    return AlwaysValidMeans(p_value, log_e, _widest(differences), _widest(lifts))


def means_log_e_value(control: Sample | None, treatment: Sample | None) -> float | None:
    """Return the log e-value of two means at any look; None if it is unknown."""
    error = _standard_error(control, treatment)
    if control is None or treatment is None or error is None:
        return None
    return min(_log_e_value(test) for test in _statistics(control, treatment))


class _Statistic(NamedTuple):
    """A t statistic, its degrees of freedom, the information of a bet, and its errors.

    *errors* returns, for a critical value, the squared standard errors of the
    control's and the treatment's mean; None if no difference can be excluded.
    """

    t: float
    freedom: float
    information: float
    errors: Callable[[float], tuple[float, float] | None]


def _statistics(control: Sample, treatment: Sample) -> list[_Statistic]:
    return [
        _welch_statistic(control, treatment),
        _pooled_statistic(control, treatment),
    ]


def _welch_statistic(control: Sample, treatment: Sample) -> _Statistic:
    """Return Welch's t; its errors do not depend on the critical value."""
    errors = _squared_errors(control, treatment)
    return _Statistic(
        difference(control, treatment) / sqrt(sum(errors)),
        _degrees_of_freedom(control, treatment),
        _information(control, treatment),
        lambda _: errors,
    )


def _pooled_statistic(control: Sample, treatment: Sample) -> _Statistic:
    """Return the t with the variance of all users under the null hypothesis.

    With h = 1 / n_c + 1 / n_t, SSW the sum of squares within the arms and D the
    difference of the means minus the tested one, the variance is
    ``V = (SSW + D^2 / h) / (N - 1)``. So an arm without any value has the spread of
    the other arm, and the statistic is at most ``sqrt(N - 1)``. Solved for D,
    ``D^2 <= k^2 h V`` is ``D^2 <= k^2 h SSW / (N - 1 - k^2)``. For a lift the
    control's values are multiplied by the ratio, and their part of SSW by its square.
    """
    total = control.size + treatment.size
    h = 1 / control.size + 1 / treatment.size
    within = [(one.variance or 0.0) * (one.size - 1) for one in (control, treatment)]
    distance = difference(control, treatment)
    variance = (sum(within) + distance**2 / h) / (total - 1)
    mean = (control.mean * control.size + treatment.mean * treatment.size) / total

    def errors(k: float) -> tuple[float, float] | None:
        rest = total - 1 - k * k
        if rest <= 0:
            return None
        return h * within[0] / rest, h * within[1] / rest

    return _Statistic(
        distance / sqrt(h * variance), total - 2, bet_scale(mean, variance) / h, errors
    )


def _log_e_value(test: _Statistic) -> float:
    """Return the log e-value of a t statistic, converted to a normal score."""
    tail = max(float(special.stdtr(test.freedom, -abs(test.t))), 1e-300)
    return normal_log_e_value(-float(special.ndtri(tail)), test.information)


def difference(control: Sample, treatment: Sample) -> float:
    """Return treatment mean minus control mean, rounded only once."""
    return float(treatment.exact_mean - control.exact_mean)


def lift(control: Sample | None, treatment: Sample | None) -> float | None:
    """Return the relative difference.

    None unless the control's mean is above 0, and so far above it that a float holds
    the difference.
    """
    if control is None or treatment is None or control.exact_mean <= 0:
        return None
    exact = treatment.exact_mean / control.exact_mean - 1
    return float(exact) if abs(exact) < LARGEST_LIFT else None


def _standard_error(control: Sample | None, treatment: Sample | None) -> float | None:
    """Return the standard error of the difference; None if it is 0 or unknown."""
    if control is None or treatment is None:
        return None
    if control.variance is None or treatment.variance is None:
        return None
    return sqrt(sum(_squared_errors(control, treatment))) or None


def _squared_errors(control: Sample, treatment: Sample) -> tuple[float, float]:
    """Return the squared standard error of each mean."""
    control_error = (control.variance or 0.0) / control.size
    return control_error, (treatment.variance or 0.0) / treatment.size


def _degrees_of_freedom(control: Sample, treatment: Sample) -> float:
    """Return Welch's approximate degrees of freedom."""
    parts = _squared_errors(control, treatment)
    whole = sum(parts)
    return 1 / sum(
        (part / whole) ** 2 / (one.size - 1)
        for part, one in zip(parts, (control, treatment), strict=True)
    )


def _difference(
    control: Sample, treatment: Sample, spread: float, label: tuple[float, str]
) -> Interval:
    centre = difference(control, treatment)
    return Interval(centre - spread, centre + spread, *label)


def _fieller(
    control: float,
    treatment: float,
    errors: tuple[float, float],
    k: float,
    label: tuple[float, str],
) -> Interval:
    """Return ``{r : (m_t - r m_c)^2 <= k^2 (v_t + r^2 v_c)} - 1``.

    It is unbounded unless the control's mean is k standard errors above 0, and where no
    float holds an end.
    """
    control_error, treatment_error = errors
    square = control**2 - k * k * control_error
    if control <= 0 or square <= 0:
        return Interval(None, None, *label)
    middle = treatment * control
    root = k * sqrt(treatment**2 * control_error + treatment_error * square)
    ends = (middle - root) / square - 1, (middle + root) / square - 1
    if not all(abs(end) < LARGEST_LIFT for end in ends):
        return Interval(None, None, *label)
    return Interval(*ends, *label)


def _widest(intervals: Sequence[Interval]) -> Interval:
    """Return the interval from the lowest lower end to the highest upper end."""
    lower = [one.lower for one in intervals if one.lower is not None]
    upper = [one.upper for one in intervals if one.upper is not None]
    return intervals[0]._replace(
        lower=min(lower) if len(lower) == len(intervals) else None,
        upper=max(upper) if len(upper) == len(intervals) else None,
    )


def bet_scale(mean: float, variance: float) -> float:
    """Return the squared mean in standard deviations, within the two bounds."""
    if not variance or not isfinite(mean):
        return MOST_SCALE**2
    return min(max(abs(mean) / sqrt(variance), LEAST_SCALE), MOST_SCALE) ** 2


def _information(control: Sample, treatment: Sample) -> float:
    """Return the information of a bet on the lift: ``n_c n_t / N * (m / s)^2``."""
    total = control.size + treatment.size
    mean = (control.mean * control.size + treatment.mean * treatment.size) / total
    variance = (
        (control.variance or 0.0) * control.size
        + (treatment.variance or 0.0) * treatment.size
    ) / total
    return control.size * treatment.size / total * bet_scale(mean, variance)


def _critical(information: float, freedom: float, alpha: float) -> float | None:
    """Return the |t| that is significant at any look; None if no finite |t| is."""
    z = critical_score(information, alpha)
    if z is None:
        return None
    tail = float(special.ndtr(-z))
    k = -float(special.stdtrit(freedom, tail)) if tail > 1e-290 else None
    return k if k is not None and isfinite(k) else None
