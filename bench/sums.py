"""Experiments by seeded chance, as the sums that the service keeps of them.

All looks of many experiments are drawn at once. Most looks need no test, because they
are far from any decision: `Moments` tells which do.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))
import numpy as np
import scipy.integrate
import scipy.stats

import stats
from bench.values import Draw
from stats import RATIO, Arm, CovariateSums, EventSums, MetricSettings, ValueSums
from stats.samples import LEAST_ADJUSTED, Samples, samples

LOOKS, FIRST, USERS = 60, 20, 20_000
LEVEL, CORRELATION = 0.05, 0.7
#: No bet gains more than ``z^2 / 2``, so that no look is significant below this |z|.
LEAST_Z = math.sqrt(2 * math.log(1 / LEVEL)) - 1e-6


class Kind(NamedTuple):
    """What a buyer spends, the part of the users who buy, and the cap of a total."""

    spent: Any
    buying: float
    cap: float

    def mean(self, cap: float = math.inf) -> float:
        """Return the mean of a user's total, up to the cap."""
        above = scipy.integrate.quad(self.spent.sf, 0, cap, limit=200)[0]
        below = scipy.integrate.quad(self.spent.cdf, -math.inf, 0, limit=200)[0]
        return self.buying * float(above - below)


# A cap that one in a hundred of the users who buy reaches.
LOGNORMAL = scipy.stats.lognorm(1, scale=math.exp(3))
_PARETO = scipy.stats.pareto(2.1)
KINDS = {
    "normal(10, 5)": Kind(scipy.stats.norm(10, 5), 1.0, 21.6),
    "lognormal, 95 % zeros": Kind(LOGNORMAL, 0.05, 206.0),
    "lognormal, 99 % zeros": Kind(LOGNORMAL, 0.01, 206.0),
    "Pareto 2.1": Kind(_PARETO, 1.0, 9.0),
    "Pareto 2.1, 95 % zeros": Kind(_PARETO, 0.05, 9.0),
}
BUYING = {"5 % buyers": 0.05, "30 % buyers": 0.3}


def geometric(users: int = USERS, looks: int = LOOKS) -> np.ndarray:
    """Return the users at so many looks, more of them early."""
    return np.unique(np.geomspace(FIRST, users, looks).round().astype(int))


# ----------------------------------------------------------------------------
# Sums: what the service keeps of an experiment
# ----------------------------------------------------------------------------


class Sums(NamedTuple):
    """The sums of both arms at each look; each is (runs, looks, arms).

    *y* is a user's total. *x* is the covariate, or the events of the user for a ratio.
    """

    users: np.ndarray
    count: np.ndarray
    y: np.ndarray
    yy: np.ndarray
    x: np.ndarray
    xx: np.ndarray
    xy: np.ndarray

    def raised(self, lift: float) -> Sums:
        """Return the sums as if the treatment raised each total by this part."""
        factor = np.array([1.0, 1.0 + lift])
        return self._replace(
            y=self.y * factor, yy=self.yy * factor**2, xy=self.xy * factor
        )

    def with_control_of(self, other: Sums) -> Sums:
        """Return the treatment's sums beside the control's of other ones."""
        is_control = np.array([True, False])
        pairs = zip(self, other, strict=True)
        return Sums(*(np.where(is_control, theirs, own) for own, theirs in pairs))

    def arms(self, place: tuple[int, int], settings: MetricSettings) -> list[Arm]:
        """Return the arms at one look of one run."""
        rows = [[float(column[(*place, arm)]) for column in self] for arm in (0, 1)]
        return [
            self._arm(str(arm), rows[arm], settings.kind == RATIO) for arm in (0, 1)
        ]

    @staticmethod
    def _arm(name: str, row: Sequence[float], is_ratio: bool) -> Arm:
        users, count = int(row[0]), int(row[1])
        y, yy, x, xx, xy = row[2:]
        return Arm(
            name,
            name,
            Decimal(50),
            users,
            count,
            ValueSums(count, y, yy),
            EventSums(round(x), round(xx), xy) if is_ratio else None,
            None if is_ratio else CovariateSums(users, x, xx, xy),
        )


def summed(sizes: np.ndarray, *columns: np.ndarray) -> list[np.ndarray]:
    """Return cumulative sums, where *sizes* has the new users of each look and arm."""
    starts = sizes.ravel().cumsum() - sizes.ravel()
    sums = []
    for column in columns:
        parts = np.add.reduceat(np.append(column, 0.0), starts).reshape(sizes.shape)
        sums.append(np.where(sizes > 0, parts, 0.0).cumsum(axis=1))
    return sums


def dealt(
    draw: np.random.Generator, share: float, looks: np.ndarray, runs: int
) -> np.ndarray:
    """Return the new users of each arm at each look: (runs, looks, arms)."""
    fresh = np.diff(looks, prepend=0)
    treated = draw.binomial(fresh, share, (runs, len(looks)))
    return np.stack([fresh - treated, treated], axis=-1)


def value_sums(
    draw: np.random.Generator,
    values: Draw,
    sizes: np.ndarray,
    caps: Sequence[float] = (math.inf,),
) -> list[Sums]:
    """Return the sums with each cap.

    The covariate has the correlation 0.7 with the total, and is as skewed as it.
    """
    users = int(sizes.sum())
    y, other = values(draw, users), values(draw, users)
    x = CORRELATION * y + math.sqrt(1 - CORRELATION**2) * other
    known = summed(sizes, x, x * x)
    (count,) = summed(sizes, (y != 0).astype(float))
    found = []
    for cap in caps:
        total = np.minimum(y, cap)
        y_sum, yy, xy = summed(sizes, total, total * total, x * total)
        found.append(Sums(sizes.cumsum(axis=1), count, y_sum, yy, *known, xy))
    return found


def order_sums(draw: np.random.Generator, buying: float, sizes: np.ndarray) -> Sums:
    """Return the sums of order values: a buyer has one order and Poisson(1) more."""
    users = int(sizes.sum())
    buyers = np.flatnonzero(draw.random(users) < buying)
    number = 1 + draw.poisson(1.0, len(buyers))
    spent = draw.lognormal(3, 1, int(number.sum()))
    a, b = np.zeros(users), np.zeros(users)
    a[buyers] = np.add.reduceat(spent, number.cumsum() - number)
    b[buyers] = number
    count, *sums = summed(sizes, (b > 0).astype(float), a, a * a, b, b * b, a * b)
    return Sums(sizes.cumsum(axis=1), count, *sums)


def rate_tables(
    draw: np.random.Generator, sizes: np.ndarray, rates: tuple[float, float]
) -> stats.Tables:
    """Return the cumulative tables of a rate; each column is (runs, looks)."""
    converted = draw.binomial(sizes, rates).cumsum(axis=1).astype(float)
    users = sizes.cumsum(axis=1).astype(float)
    return stats.Tables(
        users[..., 0], converted[..., 0], users[..., 1], converted[..., 1]
    )


def samples_at(
    sums: Sums, place: tuple[int, int], settings: MetricSettings, has_covariate: bool
) -> Samples:
    """Return the samples that the service makes of one look."""
    arms = sums.arms(place, settings)
    if not has_covariate:
        arms = [arm._replace(covariate=None) for arm in arms]
    found = samples(arms, settings)
    if found is None:
        raise ValueError("There are no sums")
    return found


# ----------------------------------------------------------------------------
# Which looks are near a decision
# ----------------------------------------------------------------------------


class Moments(NamedTuple):
    """The mean of each arm and its variance, of all looks at once.

    *own* is the variance for the interval of an arm by itself.
    """

    size: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    own: np.ndarray

    def may_exclude(self, difference: float, ratio: float = 1.0) -> np.ndarray:
        """Tell whether ``m_t = ratio m_c + difference`` may be excluded at a look.

        Both tests must exclude it, Welch's and the pooled one.
        """
        distance = self.mean[..., 1] - ratio * self.mean[..., 0] - difference
        scaled = self.variance * np.array([ratio**2, 1.0])
        welch = LEAST_Z**2 * (scaled / self.size).sum(axis=-1)
        rest = self.size.sum(axis=-1) - 1 - LEAST_Z**2
        within = (scaled * (self.size - 1)).sum(axis=-1)
        pooled = LEAST_Z**2 * (1 / self.size).sum(axis=-1) * within / rest
        found = (distance**2 > np.maximum(welch, pooled)) & (rest > 0)
        return np.asarray(found & (self.size > 1).all(axis=-1) & (welch > 0))

    def may_exclude_mean(self, arm: int, mean: float) -> np.ndarray:
        """Tell whether the interval of one arm may leave this mean out at a look."""
        error = np.sqrt(self.own[..., arm] / self.size[..., arm])
        return np.asarray(np.abs(self.mean[..., arm] - mean) > LEAST_Z * error)


def moments(sums: Sums, settings: MetricSettings, has_covariate: bool) -> Moments:
    """Return the moments of `stats.samples` in floats."""
    n, mean, slope, extra = sums.users, sums.y / sums.users, np.zeros(1), np.zeros(1)
    scale = np.ones(1)
    if settings.kind == RATIO:
        n, mean, slope = sums.count, sums.y / sums.x, sums.y / sums.x
        scale = (sums.x / n) ** 2
    elif has_covariate:
        slope, centre, explained = _slope(sums)
        is_adjusted = sums.count.min(axis=-1, keepdims=True) >= LEAST_ADJUSTED
        slope = np.where(is_adjusted, slope, 0.0)
        mean = mean - slope * (sums.x / n - centre)
        extra = slope**2 * explained * n
    yy = sums.yy - sums.y**2 / n
    xx = sums.xx - sums.x**2 / n
    xy = sums.xy - sums.x * sums.y / n
    spread = np.maximum(yy - 2 * slope * xy + slope**2 * xx, 0.0)
    variance = spread / (n - 1) / scale
    return Moments(n, mean, variance, variance + extra)


def _slope(sums: Sums) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return theta, the mean of the covariate of all users, and that mean's error."""
    n, x, xx, y, xy = (
        column.sum(axis=-1, keepdims=True)
        for column in (sums.users, sums.x, sums.xx, sums.y, sums.xy)
    )
    spread = xx - x * x / n
    return (xy - x * y / n) / spread, x / n, spread / n / n
