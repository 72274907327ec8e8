"""The sequential test of GrowthBook's engine, for many looks at once.

It is that of the package gbstats, version 0.8.0, with its default settings: the
relative difference, and the tuning parameter 5,000. The package computes one look at a
time and needs an old numpy, so that it is no requirement here. Where it is installed
(``pip install --no-deps gbstats==0.8.0``), `compared` compares every figure with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

import stats

ALPHA, TUNING = 0.05, 5_000
#: GrowthBook shows no result until one variant has so many conversions.
GATE = 150
COMPARED = 400


class Group(NamedTuple):
    """The users of an arm at each look, their mean and its variance in one user."""

    size: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


def group_of_rate(size: np.ndarray, conversions: np.ndarray) -> Group:
    rate = conversions / np.maximum(size, 1)
    return Group(size, rate, rate * (1 - rate))


def group_of_mean(size: np.ndarray, total: np.ndarray, squares: np.ndarray) -> Group:
    users = np.maximum(size, 1)
    spread = (squares - total**2 / users) / np.maximum(size - 1, 1)
    return Group(size, total / users, np.where(size > 1, spread, 0.0))


def groups(tables: stats.Tables) -> tuple[Group, Group]:
    """Return both arms of the tables of a rate."""
    return (
        group_of_rate(tables.control_size, tables.control_conversions),
        group_of_rate(tables.treatment_size, tables.treatment_conversions),
    )


def p_values(control: Group, treatment: Group) -> np.ndarray:
    """Return the p-value of each look; 1 where the engine gives no answer.

    Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas (2023), arXiv 2103.06476v7,
    equations 155 and 161, on the relative difference.
    """
    is_known = (control.mean != 0) & (control.variance > 0) & (treatment.variance > 0)
    (n_c, m_c, v_c), (n_t, m_t, v_t) = (
        (np.where(is_known, column, 1.0) for column in one)
        for one in (control, treatment)
    )
    error = v_t / (m_c**2 * n_t) + v_c * m_t**2 / (m_c**4 * n_c)
    tuned = -2 * np.log(ALPHA)
    information = (n_c + n_t) * (tuned + np.log(tuned + 1)) / TUNING + 1
    z_squared = ((m_t - m_c) / m_c) ** 2 / error
    log_e = z_squared * (1 - 1 / information) / 2 - np.log(information) / 2
    return np.where(is_known, np.exp(-np.maximum(log_e, 0.0)), 1.0)


def is_shown(tables: stats.Tables) -> np.ndarray:
    """Tell at which looks GrowthBook shows a result."""
    most = np.maximum(tables.control_conversions, tables.treatment_conversions)
    return np.asarray(most >= GATE)


def compared(draw: np.random.Generator) -> str:
    """Return how the formula compares with the package, on random counts."""
    try:
        from gbstats import __version__
        from gbstats.frequentist.tests import SequentialTwoSidedTTest
        from gbstats.models.statistics import ProportionStatistic, SampleMeanStatistic
    except ImportError:
        return "GrowthBook: by the formula of gbstats 0.8.0, which is not installed."
    sizes = draw.integers(2, 20_000, (2, COMPARED))
    converted = draw.binomial(sizes, draw.uniform(0, 0.2, (2, COMPARED)))
    totals = draw.normal(20, 5, sizes.shape) * np.sqrt(sizes) + 3 * sizes
    squares = totals**2 / sizes + draw.uniform(1, 900, sizes.shape) * sizes
    ours = [
        p_values(*map(group_of_rate, sizes, converted)),
        p_values(*map(group_of_mean, sizes, totals, squares)),
    ]
    theirs = [
        [
            _by_package(SequentialTwoSidedTTest, kind, row)
            for row in zip(*arms, strict=True)
        ]
        for kind, arms in (
            (ProportionStatistic, (*sizes, *converted)),
            (SampleMeanStatistic, (*sizes, *totals, *squares)),
        )
    ]
    worst = float(np.abs(np.array(ours) - theirs).max())
    if worst > 1e-9:
        raise ValueError(f"The formula and gbstats {__version__} differ by {worst}")
    return (
        f"GrowthBook: by its formula, equal to gbstats {__version__} in "
        f"{2 * COMPARED} random experiments."
    )


def _by_package(test: Any, kind: Any, row: Sequence[float]) -> float:
    """Return the p-value of the package; *row* has the arms' figures by turns."""
    arms = (kind(int(row[arm]), *map(float, row[arm + 2 :: 2])) for arm in (0, 1))
    with np.errstate(over="ignore"):
        return float(test(*arms).compute_result().p_value)
