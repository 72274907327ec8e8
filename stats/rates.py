"""The conversion rate of one variant, and its two intervals."""

from __future__ import annotations

from math import log, sqrt

from stats.numerics import crossing, normal_quantile, special
from stats.results import Arm, Interval, check_counts


def conversion_rate(conversions: int, sample_size: int) -> float:
    """Return the share of users who converted; 0 without users."""
    check_counts(conversions, sample_size)
    return conversions / sample_size if sample_size else 0.0


def wilson_interval(
    conversions: int, sample_size: int, confidence_level: float = 0.95
) -> Interval:
    """Return the Wilson score interval of a rate, valid for one look.

    Without users it is the whole range from 0 to 1. Its lower end is exactly 0 if
    nobody converted, and its upper end exactly 1 if everybody did.

    Wilson (1927), JASA 22, p. 209-212; Newcombe (1998), Stat. Med. 17, p. 857-872.
    """
    check_counts(conversions, sample_size)
    if sample_size == 0:
        return Interval(0.0, 1.0, confidence_level, "wilson")

    z = normal_quantile((1 + confidence_level) / 2)
    p = conversions / sample_size
    shrink = 1 + z**2 / sample_size
    centre = (p + z**2 / (2 * sample_size)) / shrink
    spread = z * sqrt(p * (1 - p) / sample_size + (z / (2 * sample_size)) ** 2) / shrink
    lower = 0.0 if conversions == 0 else max(0.0, centre - spread)
    upper = 1.0 if conversions == sample_size else min(1.0, centre + spread)
    return Interval(lower, upper, confidence_level, "wilson")


def always_valid_rate_interval(
    conversions: int, sample_size: int, confidence_level: float = 0.95
) -> Interval:
    """Return the interval of a rate that is valid at all looks together.

    It holds every rate against which the likelihood ratio of a Beta(1/2, 1/2)
    mixture is still below ``1 / alpha``.

    Robbins (1970), Ann. Math. Stat. 41, p. 1397-1409; Howard, Ramdas, McAuliffe &
    Sekhon (2021), Ann. Stat. 49, p. 1055-1080.
    """
    check_counts(conversions, sample_size)
    if sample_size == 0:
        return Interval(0.0, 1.0, confidence_level, "beta_binomial_mixture")

    n, p = sample_size, conversions / sample_size
    failures = n - conversions
    evidence = special.betaln(conversions + 0.5, failures + 0.5)
    evidence += log(1 - confidence_level) - special.betaln(0.5, 0.5)

    def excess(rate: float) -> float:
        likelihood = special.xlogy(conversions, rate) + special.xlog1py(failures, -rate)
        return min(float(evidence - likelihood), 1e6)

    # The interval ends before these points, because KL(p || q) is at least
    # (q - p)^2 / 2 max(q, p), and the same is true for 1 - p.
    spare = special.xlogy(conversions, p) + special.xlog1py(failures, -p) - evidence
    far = 1.001 * max(float(spare), 0.0) / n
    lowest = max(0.0, p - far - sqrt(far * far + 2 * (1 - p) * far))
    highest = min(1.0, p + far + sqrt(far * far + 2 * p * far))
    return Interval(
        0.0 if conversions == 0 else crossing(excess, p, lowest, 1e-12),
        1.0 if failures == 0 else crossing(excess, p, highest, 1e-12),
        confidence_level,
        "beta_binomial_mixture",
    )


def rate_difference(control: Arm, treatment: Arm) -> float | None:
    """Return the difference of the rates, None if an arm is empty."""
    if not (control.sample_size and treatment.sample_size):
        return None
    sizes = control.sample_size * treatment.sample_size
    return _cross_difference(control, treatment) / sizes


def rate_lift(control: Arm, treatment: Arm) -> float | None:
    """Return the relative difference; None if an arm is empty or the control at 0."""
    if not (control.sample_size and treatment.sample_size and control.conversions):
        return None
    base = control.conversions * treatment.sample_size
    return _cross_difference(control, treatment) / base


def _cross_difference(control: Arm, treatment: Arm) -> int:
    """Return the difference of the rates times both sample sizes.

    It is a whole number and therefore exact: its one division rounds once, and 12 %
    minus 10 % is 0.02 instead of 0.01999999999999999.
    """
    raised = treatment.conversions * control.sample_size
    return raised - control.conversions * treatment.sample_size
