"""What the counts say (pure)."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist
from typing import NamedTuple


class Rate(NamedTuple):
    """A conversion rate with its confidence interval."""

    conversions: int
    sample_size: int
    value: float
    low: float
    high: float


def conversion_rate(conversions: int, sample_size: int, alpha: float = 0.05) -> Rate:
    """Return the conversion rate with its Wilson score interval.

    With nobody enrolled the rate is 0 and the interval is the whole range, which
    says that nothing is known.

    Wilson (1927), "Probable inference, the law of succession, and statistical
    inference", JASA 22, p. 209-212.
    """
    if not 0 <= conversions <= sample_size:
        raise ValueError(f"{conversions} conversions of {sample_size} is impossible")
    if sample_size == 0:
        return Rate(0, 0, 0.0, 0.0, 1.0)

    z = NormalDist().inv_cdf(1 - alpha / 2)
    p = conversions / sample_size
    shrink = 1 + z**2 / sample_size
    centre = (p + z**2 / (2 * sample_size)) / shrink
    spread = z * sqrt(p * (1 - p) / sample_size + (z / (2 * sample_size)) ** 2) / shrink
    # At 0 and at 1 the bound is exact; the sum above misses it by a rounding.
    low = 0.0 if conversions == 0 else centre - spread
    high = 1.0 if conversions == sample_size else centre + spread
    return Rate(conversions, sample_size, p, low, high)
