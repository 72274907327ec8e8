"""From sums to samples: the mean of an arm and its variance, of each kind of metric."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from stats.results import (
    MEAN,
    RATIO,
    Adjustment,
    Arm,
    MetricSettings,
    Number,
    check_counts,
)

#: The fewest users with a value, in each arm, for means to be adjusted. With fewer, the
#: covariate explains the few values by chance, and the variance left is far too small.
LEAST_ADJUSTED = 30


class Sample(NamedTuple):
    """An exact mean and its variance; the variance of one observation is None."""

    size: int
    exact_mean: Fraction
    variance: float | None

    @property
    def mean(self) -> float:
        """Return the mean as a float."""
        return float(self.exact_mean)


class Samples(NamedTuple):
    """The sample of each arm, and how a covariate has adjusted them.

    *arms* are for a comparison at one look, and *any_look* for one at any look. *own*
    are for the interval of an arm by itself.
    """

    arms: list[Sample | None]
    any_look: list[Sample | None]
    own: list[Sample | None]
    adjustment: Adjustment | None = None


def samples(arms: Sequence[Arm], settings: MetricSettings) -> Samples | None:
    """Return the sample of each arm; None unless every arm has the sums for it.

    A ratio is the value of an event. Everything else is the mean of the users' totals,
    which a covariate adjusts if the metric is a mean.
    """
    if any(arm.value is None for arm in arms):
        return None
    if settings.kind == RATIO:
        of_buyers = [_ratio(arm, arm.value.count) for arm in arms if arm.value]
        return Samples(
            [_ratio(arm, arm.sample_size) for arm in arms], of_buyers, of_buyers
        )
    plain = [_plain(arm) for arm in arms]
    if settings.kind != MEAN or any(arm.covariate is None for arm in arms):
        return _unadjusted(plain)
    return _adjusted(arms, plain)


def _unadjusted(plain: list[Sample | None]) -> Samples:
    return Samples(plain, plain, plain)


def _plain(arm: Arm) -> Sample | None:
    """Return mean and variance of one arm; raise for more values than users."""
    sums = arm.value
    if sums is None:
        return None
    if not 0 <= sums.count <= arm.sample_size:
        raise ValueError(f"{sums.count} values of {arm.sample_size} users is absurd")
    return sample(arm.sample_size, sums.sum, sums.sum_squares)


def _ratio(arm: Arm, size: int) -> Sample | None:
    """Return the value of an event, with the variance of one user's part in it.

    It is the delta method's: ``(s_aa - 2 R s_ab + R^2 s_bb) / b^2``, with a the total
    and b the events of a user, R the ratio of their means.

    *size* is the number of all users, or of those with a value. Both give the same
    standard error, but for ``n / (n - 1)``, because a user without events is no part
    of the ratio. At any look it has to be that of the users with a value: two buyers
    are a sample of two, and not of the hundred visitors who bought nothing.

    Deng, Knoblich & Lu (2018), KDD, p. 233-242.
    """
    if arm.value is None or arm.events is None or not arm.events.sum:
        return None
    total, events = Fraction(arm.value.sum), Fraction(arm.events.sum)
    ratio = total / events
    if size < 2:
        return Sample(size, ratio, None)
    squares = Fraction(arm.value.sum_squares) - total * total / size
    event_squares = Fraction(arm.events.sum_squares) - events * events / size
    products = Fraction(arm.events.products) - total * events / size
    spread = squares - 2 * ratio * products + ratio * ratio * event_squares
    variance = max(spread, Fraction(0)) / (size - 1) / (events / size) ** 2
    return Sample(size, ratio, float(variance))


def _adjusted(arms: Sequence[Arm], plain: list[Sample | None]) -> Samples:
    """Return the samples without what the covariate explains (CUPED).

    ``theta = S_xy / S_xx`` over all users of all arms. An arm's mean is
    ``y - theta (x - x_all)`` and the sum of its squares is
    ``SS_yy - 2 theta SS_xy + theta^2 SS_xx``.

    Deng, Xu, Kohavi & Walker (2013), WSDM, p. 123-132.
    """
    users = sum(arm.sample_size for arm in arms)
    given = [arm.covariate for arm in arms if arm.covariate is not None]
    values = [arm.value for arm in arms if arm.value is not None]
    if not users or not any(one.count for one in given):
        return _unadjusted(plain)
    if min(one.count for one in values) < LEAST_ADJUSTED:
        return _unadjusted(plain)
    x, y = (_total(each, "sum") for each in (given, values))
    xx = _total(given, "sum_squares") - x * x / users
    yy = _total(values, "sum_squares") - y * y / users
    xy = _total(given, "products") - x * y / users
    if xx <= 0 or yy <= 0:
        return _unadjusted(plain)
    theta = xy / xx
    adjusted = [
        _without_covariate(arm, one, theta, x / users)
        for arm, one in zip(arms, plain, strict=True)
    ]
    number = sum(one.count for one in given)
    explained = float(theta * theta * xx / users) / users
    return Samples(
        adjusted,
        adjusted,
        [_by_itself(one, explained) for one in adjusted],
        Adjustment(number, float(theta), float(xy * xy / (xx * yy))),
    )


def _by_itself(one: Sample | None, explained: float) -> Sample | None:
    """Return an adjusted sample with the error of the covariate's mean.

    All arms are adjusted to the same mean of the covariate, that of all users. Its
    error cancels in a difference, and is one of each arm by itself: *explained* is
    ``theta^2 s_xx / N``.
    """
    if one is None or one.variance is None:
        return one
    return one._replace(variance=one.variance + one.size * explained)


def _total(sums: Sequence[NamedTuple], name: str) -> Fraction:
    """Return the exact sum of one of these sums over all arms."""
    return sum((Fraction(getattr(one, name)) for one in sums), Fraction(0))


def _without_covariate(
    arm: Arm, plain: Sample | None, theta: Fraction, middle: Fraction
) -> Sample | None:
    """Return an arm's sample without what its covariate explains."""
    if plain is None or arm.covariate is None or arm.value is None:
        return plain
    size = plain.size
    x, y = Fraction(arm.covariate.sum), Fraction(arm.value.sum)
    mean = plain.exact_mean - theta * (x / size - middle)
    if size < 2:
        return Sample(size, mean, None)
    squares = Fraction(arm.value.sum_squares) - y * y / size
    products = Fraction(arm.covariate.products) - x * y / size
    covariate_squares = Fraction(arm.covariate.sum_squares) - x * x / size
    spread = squares - 2 * theta * products + theta * theta * covariate_squares
    return Sample(size, mean, float(max(spread, Fraction(0)) / (size - 1)))


def sample(size: int, total: Number, sum_squares: Number) -> Sample | None:
    """Return mean and variance from sums; None for an empty sample.

    All steps but the last are in exact fractions, so that no digits cancel.
    """
    check_counts(0, size)
    exact, squares = Fraction(total), Fraction(sum_squares)
    if size == 0:
        if exact or squares:
            raise ValueError(f"An empty sample cannot have the sum {total}")
        return None
    spread = squares - exact * exact / size
    if spread < -_rounding(size, total, sum_squares) or squares < 0:
        raise ValueError(f"{size} values with sum {total} have larger squares")
    variance = float(max(spread, Fraction(0)) / (size - 1)) if size > 1 else None
    return Sample(size, exact / size, variance)


def _rounding(size: int, total: Number, sum_squares: Number) -> Fraction:
    """Return the amount by which rounding can make two sums contradict each other.

    A decimal with places after the point may have been rounded to them. A whole
    number counts as exact, and a float has nine good digits.
    """
    units = [_unit(total), _unit(sum_squares)]
    slack = units[1] / 2 + abs(Fraction(total)) * units[0] / size
    return max(slack, abs(Fraction(sum_squares)) / 10**9)


def _unit(number: Number) -> Fraction:
    """Return the unit of a decimal's last place; 0 without places after the point."""
    exponent = number.as_tuple().exponent if isinstance(number, Decimal) else 0
    if isinstance(exponent, str) or exponent >= 0:
        return Fraction(0)
    return Fraction(1, 10**-exponent)
