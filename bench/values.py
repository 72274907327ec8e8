"""Tests of mean values side by side: false alarms, power, and where they stop.

Experiments by seeded chance, each looked at 60 times from 20 users to 20,000. Five
distributions of values, three splits. Beside the production test, which takes the least
of two tests, are GrowthBook's engine and Welch's test, at every look and once at the
end. Takes some minutes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))
import numpy as np
import scipy.stats

import stats
from bench import growthbook
from bench.peeking import percent

RUNS, LOOKS, FIRST, USERS, SEED = 4_000, 60, 20, 20_000, 20250201
LEVEL = 0.05
Draw = Callable[[np.random.Generator, int], np.ndarray]


def normal(draw: np.random.Generator, users: int) -> np.ndarray:
    return draw.normal(10, 5, users)


def lognormal(buying: float) -> Draw:
    """Return a draw of lognormal(3, 1) values of which most are 0."""

    def values(draw: np.random.Generator, users: int) -> np.ndarray:
        return draw.lognormal(3, 1, users) * (draw.random(users) < buying)

    return values


def pareto(buying: float) -> Draw:
    """Return a draw of Pareto values with exponent 2.1, from 1 on."""

    def values(draw: np.random.Generator, users: int) -> np.ndarray:
        return (1 + draw.pareto(2.1, users)) * (draw.random(users) < buying)

    return values


VALUES: dict[str, Draw] = {
    "normal(10, 5)": normal,
    "lognormal, 95 % zeros": lognormal(0.05),
    "lognormal, 99 % zeros": lognormal(0.01),
    "Pareto 2.1": pareto(1.0),
    "Pareto 2.1, 95 % zeros": pareto(0.05),
}
SHARES = {"50/50": 0.5, "90/10": 0.1, "99/1": 0.01}


class Hits(NamedTuple):
    """At which looks of an experiment each test is significant."""

    ours: np.ndarray
    growthbook: np.ndarray
    welch: np.ndarray


#: No bet gains more than ``z^2 / 2``, so that no look is significant where Welch's p is
#: above this: it is that of the |z| at which ``exp(-z^2 / 2)`` is LEVEL.
LARGEST_P = 2 * scipy.stats.norm.sf(math.sqrt(-2 * math.log(LEVEL))) + 1e-9


def hits(
    draw: np.random.Generator,
    values: Draw,
    share: float,
    lift: float = 0.0,
    looks: np.ndarray | None = None,
) -> Hits:
    """Return what the tests find in one experiment."""
    if looks is None:
        looks = np.geomspace(FIRST, USERS, LOOKS).round().astype(int)
    users = int(looks[-1])
    treated = draw.random(users) < share
    drawn = values(draw, users) * np.where(treated, 1 + lift, 1.0)
    arms = [
        [np.cumsum(part)[looks - 1] for part in (mine, drawn * mine, drawn**2 * mine)]
        for mine in (~treated, treated)
    ]
    control, treatment = (growthbook.group_of_mean(*arm) for arm in arms)
    with np.errstate(all="ignore"):
        welch = scipy.stats.ttest_ind_from_stats(
            *(control.mean, np.sqrt(control.variance), control.size),
            *(treatment.mean, np.sqrt(treatment.variance), treatment.size),
            equal_var=False,
        ).pvalue
        theirs = growthbook.p_values(control, treatment) < LEVEL
    # One user has no variance, and no p-value.
    welch = np.where(np.minimum(control.size, treatment.size) > 1, welch, 1.0)
    ours = np.zeros(len(looks), bool)
    for look in np.flatnonzero(welch < LARGEST_P):
        samples = [
            stats.sample(int(size[look]), float(total[look]), float(squares[look]))
            for size, total, squares in arms
        ]
        ours[look] = (stats.means_log_e_value(*samples) or 0.0) > -math.log(LEVEL)
    return Hits(ours, theirs, welch < LEVEL)


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else RUNS
    looks = np.geomspace(FIRST, USERS, LOOKS).round().astype(int)
    print(f"{runs:,} runs a cell, {LOOKS} looks, seed {SEED}.")
    print(growthbook.compared(np.random.default_rng(SEED)), end="\n\n")
    tests = "ours, any look | GrowthBook, any look | Welch, any look | Welch, one look"
    print(f"| A/A, values | split | {tests} |\n|:--|:--|--:|--:|--:|--:|")
    for name, values in VALUES.items():
        for split, share in SHARES.items():
            found = cell(values, share, 0.0, runs)
            told = " | ".join(map(percent, alarms(found)))
            print(f"| {name} | {split} | {told} |", flush=True)
    print(f"\n| A/B at 50/50: found, mean users | {tests} |")
    print("|:--|:--|:--|:--|:--|")
    for name, lift in (("normal(10, 5)", 0.03), ("lognormal, 95 % zeros", 0.25)):
        found = cell(VALUES[name], 0.5, lift, runs // 4)
        stops = [mean_stop(each, looks) for each in found] + [USERS]
        told = " | ".join(
            f"{percent(each)}, {users:,.0f}"
            for each, users in zip(alarms(found), stops, strict=True)
        )
        print(f"| {name}, {lift:+.0%} | {told} |", flush=True)


def cell(values: Draw, share: float, lift: float, runs: int) -> Hits:
    """Return what the tests find in so many experiments: (runs, looks)."""
    draw = np.random.default_rng(SEED)
    each = [hits(draw, values, share, lift) for _ in range(runs)]
    return Hits(*map(np.array, zip(*each, strict=True)))


def alarms(found: Hits) -> list[np.ndarray]:
    """Return which experiments are significant: by each test, and by Welch's last."""
    return [each.any(axis=1) for each in found] + [found.welch[:, -1]]


def mean_stop(found: np.ndarray, looks: np.ndarray) -> float:
    """Return the users at the first significant look, or at the last."""
    first = np.where(found.any(axis=1), found.argmax(axis=1), len(looks) - 1)
    return float(looks[first].mean())


if __name__ == "__main__":
    main()
