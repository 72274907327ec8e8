"""The test of a planned experiment: a boundary for the users of its plan.

A plan says how many users an experiment is for: its horizon. Up to there, a boundary
that may be looked at all the time costs almost nothing beside a single look at the end.
It is crossed if ``|z| sqrt(t) >= c``, where t is the share of the horizon's information
and c is what a Brownian motion on [0, 1] exceeds with probability alpha.

Nine tenths of alpha are spent on the boundary. One tenth is left to the e-process,
which can still decide when more users come than were planned.

O'Brien & Fleming (1979), Biometrics 35, p. 549-556; Lan & DeMets (1983), Biometrika 70,
p. 659-663; Siegmund (1985), "Sequential Analysis", chapter 3.
"""

from __future__ import annotations

from functools import lru_cache
from math import exp, pi
from typing import TYPE_CHECKING, NamedTuple

from stats.contrasts import Limits, Tables, pooled_score, score_limits
from stats.evidence import (
    E_PROCESS,
    Question,
    always_valid_p_value,
    critical_score,
    log_e_values,
    nuisance_level,
)
from stats.numerics import crossing, normal_quantile, np, special

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stats.numerics import Flags, Floats, Indices
    from stats.results import Number

#: The method of an experiment with a horizon, with its version.
PLANNED = "planned_horizon_1"

#: The part of alpha that is spent on the boundary, and the part of the e-process.
ON_BOUNDARY, ON_EVIDENCE = 0.9, 0.1

#: The boundary is asymptotic. Where a cell of a pair's table is expected to be smaller
#: under "no effect", the e-process decides alone.
LEAST_EXPECTED = 10.0

#: What it costs, in users, that nobody looks all the time. Simulated.
BETWEEN_LOOKS = 1.03


class Pairs(NamedTuple):
    """The tables of some comparisons, with what their test at any look needs.

    *share* is the treatment's planned share of the pair's users. *reached* is the share
    of the horizon's information that each table has, 0 where the boundary does not
    apply, and None for an experiment without a horizon: the e-process decides alone.
    """

    tables: Tables
    share: Floats
    reached: Floats | None
    centre: float
    nuisance: float

    @property
    def method(self) -> str:
        """Return the name of the test and of its intervals."""
        return E_PROCESS if self.reached is None else PLANNED

    def rows(self, index: Indices) -> Pairs:
        """Return the pairs at these places, in this order."""
        return self._replace(
            tables=self.tables.rows(index),
            share=self.share[index],
            reached=None if self.reached is None else self.reached[index],
        )


def pairs_of(
    tables: Tables,
    share: Floats,
    reached: Floats | None,
    centre: float,
    comparisons: int,
) -> Pairs:
    """Return the pairs of an experiment with so many comparisons."""
    part = 1.0 if reached is None else ON_EVIDENCE
    return Pairs(tables, share, reached, centre, part * nuisance_level(comparisons))


def reached(
    tables: Tables, users: Floats | float, horizon: int, planned: Floats | float
) -> Floats:
    """Return the share of the horizon's information that each table has.

    *users* are those of the whole experiment, and *planned* is the
    `planned_information` of each pair: ``s_c s_t / (s_c + s_t)`` for two shares of all
    users. It is 0 beyond the horizon, and for small counts.
    """
    total = tables.control_size + tables.treatment_size
    converted = tables.control_conversions + tables.treatment_conversions
    smaller = np.minimum(tables.control_size, tables.treatment_size)
    rarer = np.minimum(converted, total - converted)
    size = np.maximum(total, 1)
    share = tables.control_size * tables.treatment_size / size / (horizon * planned)
    applies = (users <= horizon) & (smaller * rarer / size >= LEAST_EXPECTED)
    return np.where(applies, np.minimum(share, 1.0), 0.0)


def planned_information(splits: Sequence[Number]) -> Floats:
    """Return the information of each pair for each user of the horizon."""
    control, *others = (float(split) for split in splits)
    whole = control + sum(others)
    return np.array([control * one / (control + one) / whole for one in others])


def log_e(pairs: Pairs) -> Floats:
    """Return the log e-value of each table against "no effect"; 0 without users."""
    values = np.zeros(len(pairs.share))
    sizes = pairs.tables.control_size, pairs.tables.treatment_size
    for share in np.unique(pairs.share):
        rows = np.flatnonzero((pairs.share == share) & (np.minimum(*sizes) > 0))
        if len(rows):
            values[rows] = log_e_values(
                pairs.tables.rows(rows), float(share), pairs.centre, pairs.nuisance
            )
    return values


def p_values(pairs: Pairs, log_e: Floats) -> Floats:
    """Return the p-value of each table, valid at every look.

    With a horizon it is below alpha if the boundary is crossed at its part of alpha, or
    if the e-process decides at its own.
    """
    evident = always_valid_p_value(log_e, pairs.nuisance)
    if pairs.reached is None:
        return evident
    moved = np.abs(pooled_score(pairs.tables)) * np.sqrt(pairs.reached)
    bounded = np.where(pairs.reached > 0, leaving_probability(moved), 1.0)
    least = np.minimum(bounded / ON_BOUNDARY, evident / ON_EVIDENCE)
    return np.asarray(np.minimum(least, 1.0))


def question(pairs: Pairs, alpha: Floats | float) -> Question:
    """Return what `limits` needs to know of the e-process, to be asked with others."""
    part = 1.0 if pairs.reached is None else ON_EVIDENCE
    return Question(
        pairs.tables, pairs.share, part * alpha, pairs.centre, pairs.nuisance
    )


class Looks(NamedTuple):
    """The intervals for difference and ratio: of a single look, and of every look."""

    once: tuple[Limits, Limits]
    always: tuple[Limits, Limits]


def limits(pairs: Pairs, alpha: float, evident: tuple[Limits, Limits]) -> Looks:
    """Return the intervals at this error rate; *evident* are those of the e-process.

    With a horizon, those that are valid at every look hold what neither the boundary
    nor the e-process excludes. They exclude "no effect" exactly if the p-value is below
    alpha, and hold those of a single look. That is valid too, because it is wider. It
    is needed only if one arm has very few users and the other very many, because then
    the interval of a single look is too wide.
    """
    once = np.full(len(pairs.share), normal_quantile(1 - alpha / 2))
    if pairs.reached is None or not pairs.reached.any():
        fixed = score_limits(pairs.tables, once)
        return Looks(fixed, _with_all_of(evident, fixed))
    applies = pairs.reached > 0
    critical = boundary(alpha * ON_BOUNDARY) / np.sqrt(
        np.where(applies, pairs.reached, 1.0)
    )
    # Both at once take hardly longer than one.
    twice = Tables.joined([pairs.tables, pairs.tables])
    found = score_limits(twice, np.concatenate([once, critical]))
    fixed, bounded = zip(*(one.parts([len(once)]) for one in found), strict=True)
    difference, ratio = (
        _both(applies, *each) for each in zip(bounded, evident, strict=True)
    )
    return Looks(fixed, _with_all_of((difference, ratio), fixed))


def _with_all_of(
    wide: tuple[Limits, Limits], other: tuple[Limits, Limits]
) -> tuple[Limits, Limits]:
    return wide[0].with_all_of(other[0]), wide[1].with_all_of(other[1])


def critical(pairs: Pairs, alpha: float) -> Floats:
    """Return the |z| at which each table would be significant; infinity if none is."""
    tables, part = pairs.tables, 1.0 if pairs.reached is None else ON_EVIDENCE
    total = tables.control_size + tables.treatment_size
    rate = (tables.control_conversions + tables.treatment_conversions) / total
    weight = tables.control_size * tables.treatment_size / total
    scores = [
        critical_score(one, part * alpha - pairs.nuisance, pairs.centre)
        for one in (weight * rate * (1 - rate)).tolist()
    ]
    least = np.array([np.inf if one is None else one for one in scores])
    if pairs.reached is None or not pairs.reached.any():
        return least
    with np.errstate(divide="ignore"):
        bounded = boundary(alpha * ON_BOUNDARY) / np.sqrt(pairs.reached)
    return np.asarray(np.minimum(least, bounded))


def _both(applies: Flags, bounded: Limits, evident: Limits) -> Limits:
    """Return what both intervals hold; the first one if they hold nothing in common."""
    lower = np.fmax(bounded.lower, evident.lower)
    upper = np.fmin(bounded.upper, evident.upper)
    apart = lower > upper
    lower, upper = (
        np.where(apart, one, both)
        for one, both in ((bounded.lower, lower), (bounded.upper, upper))
    )
    return Limits(
        np.where(applies, lower, evident.lower), np.where(applies, upper, evident.upper)
    )


@lru_cache(maxsize=64)  # few levels are in use, and the search takes milliseconds
def boundary(alpha: float) -> float:
    """Return c: what a Brownian motion on [0, 1] exceeds with probability alpha."""

    def excess(c: float) -> float:
        return alpha - float(leaving_probability(np.array([c]))[0])

    return crossing(excess, 1e-3, 12.0, 1e-13)


def leaving_probability(c: Floats) -> Floats:
    """Return the probability that a Brownian motion leaves (-c, c) within [0, 1].

    There are two series. One converges fast for a large c, the other for a small one.
    Feller (1971), "An Introduction to Probability Theory", vol. 2, section X.5.
    """
    c = np.maximum(c, 1e-3)[..., None]
    terms = np.arange(20)
    odd, sign = 2 * terms + 1, 1.0 - 2 * (terms % 2)
    inside = 4 / pi * (sign / odd * np.exp(-((odd * pi / c) ** 2) / 8)).sum(axis=-1)
    outside = 4 * (sign * special.ndtr(-odd * c)).sum(axis=-1)
    return np.asarray(np.where(c[..., 0] < 1.5, 1 - inside, outside))


def horizon_factor(alpha: float, power: float) -> float:
    """Return the users of the horizon in multiples of those that one look needs.

    It is 1.12 for an alpha of 0.05 and a power of 0.8. A power below alpha counts as
    alpha, because both tests have about half of that without any users.
    """
    power = max(power, alpha)
    c = boundary(alpha * ON_BOUNDARY)
    drift = crossing(lambda each: _found(each, c) - power, 0.0, c + 12, 1e-12)
    once = normal_quantile(1 - alpha / 2) + normal_quantile(power)
    return BETWEEN_LOOKS * (drift / once) ** 2


def _found(drift: float, c: float) -> float:
    """Return the probability that c is crossed where z is expected to become *drift*.

    Siegmund (1985), section 3.2; the other side of the boundary is left out.
    """
    reflected = exp(2 * drift * c + float(special.log_ndtr(-drift - c)))
    return float(special.ndtr(drift - c)) + reflected
