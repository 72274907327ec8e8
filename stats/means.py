"""Value metrics, such as revenue: means for each user, from exact sums."""

from __future__ import annotations

from fractions import Fraction
from math import exp, isfinite, sqrt
from typing import NamedTuple

from stats.evidence import critical_score, normal_log_e_value
from stats.numerics import special
from stats.results import Interval, Number, ValueFixedHorizon, check_counts

WELCH, FIELLER, STUDENT = "welch", "fieller", "student"
MIXTURE = "normal_mixture_asymptotic"

#: How far a mean may lie from 0, in standard deviations, to scale the bets by it.
LEAST_SCALE, MOST_SCALE = 0.02, 1.0


class Sample(NamedTuple):
    """An exact mean and its variance; one observation has no variance."""

    size: int
    exact_mean: Fraction
    variance: float | None

    @property
    def mean(self) -> float:
        """Return the mean as a float."""
        return float(self.exact_mean)


class AlwaysValidMeans(NamedTuple):
    """Two means at any look; asymptotic, unlike the test of two rates."""

    p_value: float
    log_e_value: float
    difference_interval: Interval
    lift_interval: Interval


def sample(size: int, total: Number, sum_squares: Number) -> Sample | None:
    """Return mean and variance from sums, or None with nobody in it.

    In exact fractions up to the last step, so that no digit cancels.
    """
    check_counts(0, size)
    exact, squares = Fraction(total), Fraction(sum_squares)
    if size == 0:
        if exact or squares:
            raise ValueError(f"Nobody cannot have a sum of {total}")
        return None
    spread = squares - exact * exact / size
    if spread < -squares / 10**9 or squares < 0:
        raise ValueError(f"{size} values with sum {total} have larger squares")
    variance = float(max(spread, Fraction(0)) / (size - 1)) if size > 1 else None
    return Sample(size, exact / size, variance)


def mean_interval(one: Sample | None, confidence_level: float) -> Interval:
    """Return Student's interval of one mean, for one look. Student (1908)."""
    if one is None or not one.variance:
        return Interval(None, None, confidence_level, STUDENT)
    k = float(special.stdtrit(one.size - 1, (1 + confidence_level) / 2))
    spread = k * sqrt(one.variance / one.size)
    return Interval(one.mean - spread, one.mean + spread, confidence_level, STUDENT)


def always_valid_mean_interval(one: Sample | None, confidence_level: float) -> Interval:
    """Return the asymptotic interval of one mean that holds at every look."""
    nothing = Interval(None, None, confidence_level, MIXTURE)
    if one is None or not one.variance:
        return nothing
    information = one.size * _scale(one.mean, one.variance)
    k = _critical(information, one.size - 1, 1 - confidence_level)
    if k is None:
        return nothing
    spread = k * sqrt(one.variance / one.size)
    return Interval(one.mean - spread, one.mean + spread, confidence_level, MIXTURE)


def welch(
    control: Sample | None, treatment: Sample | None, confidence_level: float
) -> ValueFixedHorizon:
    """Return Welch's test of two means, and Fieller's interval for the lift.

    All None where the variance is 0 or unknown. The lift needs a control mean
    above 0, and has no interval unless that is significantly so.

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
        lift_interval=_fieller(control, treatment, k, (confidence_level, FIELLER)),
    )


def always_valid_means(
    control: Sample | None, treatment: Sample | None, confidence_level: float
) -> AlwaysValidMeans:
    """Return the test of two means at any look: the bets of the rates, on Welch's t.

    The statistic is first carried to the normal scale by its tail probability,
    which tames it while there are few users. The bets are on the relative effect,
    scaled by mean over standard deviation. Asymptotic: a guarantee only in large
    samples, and the heavier the tails, the larger.
    """
    nothing = Interval(None, None, confidence_level, MIXTURE)
    error = _standard_error(control, treatment)
    if control is None or treatment is None or error is None:
        return AlwaysValidMeans(1.0, 0.0, nothing, nothing)
    freedom = _degrees_of_freedom(control, treatment)
    t = difference(control, treatment) / error
    tail = max(float(special.stdtr(freedom, -abs(t))), 1e-300)
    information = _information(control, treatment)
    log_e = normal_log_e_value(-float(special.ndtri(tail)), information)
    p_value = exp(-max(log_e, 0.0))  # the other way round, it can overflow
    k = _critical(information, freedom, 1 - confidence_level)
    if k is None:
        return AlwaysValidMeans(p_value, log_e, nothing, nothing)
    label = (confidence_level, MIXTURE)
    return AlwaysValidMeans(
        p_value=p_value,
        log_e_value=log_e,
        difference_interval=_difference(control, treatment, k * error, label),
        lift_interval=_fieller(control, treatment, k, label),
    )


def difference(control: Sample, treatment: Sample) -> float:
    """Return treatment mean minus control mean, subtracted before rounding."""
    return float(treatment.exact_mean - control.exact_mean)


def lift(control: float | None, treatment: float | None) -> float | None:
    """Return the relative difference; None unless the control is above 0."""
    if control is None or treatment is None or control <= 0:
        return None
    return treatment / control - 1


def _standard_error(control: Sample | None, treatment: Sample | None) -> float | None:
    """Return the standard error of the difference, or None if it is 0 or unknown."""
    if control is None or treatment is None:
        return None
    if control.variance is None or treatment.variance is None:
        return None
    squared = control.variance / control.size + treatment.variance / treatment.size
    return sqrt(squared) or None


def _degrees_of_freedom(control: Sample, treatment: Sample) -> float:
    """Return Welch's approximate degrees of freedom, from shares of the variance."""
    parts = [(one.variance or 0.0) / one.size for one in (control, treatment)]
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
    control: Sample, treatment: Sample, k: float, label: tuple[float, str]
) -> Interval:
    """Return ``{r : (m_t - r m_c)^2 <= k^2 (v_t + r^2 v_c)} - 1``.

    Unbounded unless the control's mean is k standard errors above 0.
    """
    control_error = (control.variance or 0.0) / control.size
    treatment_error = (treatment.variance or 0.0) / treatment.size
    square = control.mean**2 - k * k * control_error
    if control.mean <= 0 or square <= 0:
        return Interval(None, None, *label)
    middle = treatment.mean * control.mean
    root = k * sqrt(treatment.mean**2 * control_error + treatment_error * square)
    return Interval((middle - root) / square - 1, (middle + root) / square - 1, *label)


def _scale(mean: float, variance: float) -> float:
    """Return the squared mean in standard deviations, kept within reason."""
    if not variance or not isfinite(mean):
        return MOST_SCALE**2
    return min(max(abs(mean) / sqrt(variance), LEAST_SCALE), MOST_SCALE) ** 2


def _information(control: Sample, treatment: Sample) -> float:
    """Return what a bet on the relative effect weighs: ``n_c n_t / N * (m / s)^2``."""
    total = control.size + treatment.size
    mean = (control.mean * control.size + treatment.mean * treatment.size) / total
    variance = (
        (control.variance or 0.0) * control.size
        + (treatment.variance or 0.0) * treatment.size
    ) / total
    return control.size * treatment.size / total * _scale(mean, variance)


def _critical(information: float, freedom: float, alpha: float) -> float | None:
    """Return the |t| that is significant at any look, None if beyond reach."""
    z = critical_score(information, alpha)
    if z is None:
        return None
    tail = float(special.ndtr(-z))
    k = -float(special.stdtrit(freedom, tail)) if tail > 1e-290 else None
    return k if k is not None and isfinite(k) else None
