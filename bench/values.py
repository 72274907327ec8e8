"""False alarms of the value test at uneven splits, and its power at an even one.

A/A experiments by seeded chance, each looked at 60 times from 20 users to 20,000;
every look counts. Five distributions of values, three splits. The least of both
tests is what the service uses; Welch's alone is shown beside it. Takes some minutes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import numpy as np

import stats

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


def alarms(
    draw: np.random.Generator,
    values: Draw,
    share: float,
    lift: float = 0.0,
    looks: np.ndarray | None = None,
) -> tuple[bool, bool]:
    """Tell whether some look was significant: the service's test, and Welch's t."""
    if looks is None:
        looks = np.geomspace(FIRST, USERS, LOOKS).round().astype(int)
    users = int(looks[-1])
    treated = draw.random(users) < share
    drawn = values(draw, users) * np.where(treated, 1 + lift, 1.0)
    arms = [
        [np.cumsum(part)[looks - 1] for part in (mine, drawn * mine, drawn**2 * mine)]
        for mine in (~treated, treated)
    ]
    ours = welch = False
    for look in range(len(looks)):
        samples = [
            stats.sample(int(size[look]), float(total[look]), float(squares[look]))
            for size, total, squares in arms
        ]
        ours = ours or (stats.means_log_e_value(*samples) or 0.0) > -math.log(LEVEL)
        welch = welch or is_below(stats.welch(*samples, 1 - LEVEL).p_value)
        if ours and welch:
            break
    return ours, welch


def is_below(p_value: float | None) -> bool:
    return p_value is not None and p_value < LEVEL


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else RUNS
    print(f"{runs:,} runs a cell, {LOOKS} looks, seed {SEED}; every look counts.\n")
    print("| A/A, values | split | false alarms | Welch, every look |")
    print("|:--|:--|--:|--:|")
    for name, values in VALUES.items():
        for split, share in SHARES.items():
            draw = np.random.default_rng(SEED)
            found = np.array([alarms(draw, values, share) for _ in range(runs)])
            told = " | ".join(told_of(found[:, kind]) for kind in (0, 1))
            print(f"| {name} | {split} | {told} |", flush=True)
    print("\n| A/B at 50/50, by 20,000 users | found | Welch, every look |")
    print("|:--|--:|--:|")
    for name, lift in (("normal(10, 5)", 0.03), ("lognormal, 95 % zeros", 0.25)):
        draw = np.random.default_rng(SEED)
        found = np.array(
            [alarms(draw, VALUES[name], 0.5, lift) for _ in range(runs // 4)]
        )
        told = " | ".join(told_of(found[:, kind]) for kind in (0, 1))
        print(f"| {name}, {lift:+.0%} | {told} |", flush=True)


def told_of(hits: np.ndarray) -> str:
    share = float(hits.mean())
    return f"{share:.1%} ± {math.sqrt(share * (1 - share) / len(hits)):.1%}"


if __name__ == "__main__":
    main()
