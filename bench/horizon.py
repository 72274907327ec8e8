"""A planned experiment, looked at after every 1 % of its horizon, in full.

Experiments by seeded chance, without an effect and with the planned one. Beside the
production test are the e-process alone, GrowthBook's engine, and ten looks of O'Brien
and Fleming. Sizes are in multiples of N, the users that a single look needs. Takes some
minutes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))
import growthbook
import numpy as np
from peeking import looks_of, percent, raveled

import stats
from stats import horizon

LOOKS, SEED = 100, 20250201
# |z| at look k of 10 is compared with 2.087 sqrt(10 / k); 1.024 N have 80 % power.
# Jennison & Turnbull (2000), tables 2.3 and 2.4.
TEN_LOOKS, INFLATION = 2.087, 1.024


class Scenario(NamedTuple):
    """A planned experiment: both rates, and the treatment's share of the users."""

    baseline: float
    target: float
    share: float = 0.5


SCENARIOS = {
    "10 to 12 %": Scenario(0.10, 0.12),
    "5 to 6 %": Scenario(0.05, 0.06),
    "1 to 1.4 %": Scenario(0.01, 0.014),
    "0.2 to 0.4 %": Scenario(0.002, 0.004),
    "30 to 33 %": Scenario(0.30, 0.33),
    "50 to 55 %": Scenario(0.50, 0.55),
    "90 to 91.5 %": Scenario(0.90, 0.915),
    "10 to 15 %": Scenario(0.10, 0.15),
    "10 to 12 %, 90/10": Scenario(0.10, 0.12, 0.1),
    "10 to 12 %, 10/90": Scenario(0.10, 0.12, 0.9),
}


class Trouble(NamedTuple):
    """An experiment without an effect, whose plan is for these users."""

    rate: float
    users: int
    looks: int
    first: int
    planned_share: float = 0.5
    real_share: float = 0.5
    drift: float = 1.0
    """The rate grows so many times from the first user to the last."""
    seen: float = 1.0
    """The part of the conversions still to come that each look sees."""


TROUBLES = {
    "typical, 10 %": Trouble(0.1, 20_000, 50, 400),
    "early, 5 %": Trouble(0.05, 2_000, 200, 10),
    "rare, 1 %": Trouble(0.01, 20_000, 100, 200),
    "very rare, 0.2 %": Trouble(0.002, 20_000, 200, 100),
    "high, 50 %": Trouble(0.5, 4_000, 50, 80),
    "uneven, 90/10": Trouble(0.05, 20_000, 50, 400, 0.1, 0.1),
    "large, 5 %": Trouble(0.05, 1_000_000, 40, 25_000),
    "split 52/48": Trouble(0.1, 20_000, 50, 400, 0.5, 0.48),
    "drift x 6": Trouble(0.05, 20_000, 50, 400, drift=6),
    "delayed": Trouble(0.1, 20_000, 50, 400, seen=0.1),
}


class Found(NamedTuple):
    """At which looks each test is significant: (runs, looks)."""

    planned: np.ndarray
    alone: np.ndarray
    growthbook: np.ndarray
    ten: np.ndarray


def found(
    tables: stats.Tables,
    plan: stats.Plan,
    share: float,
    users: int,
    last: float,
) -> Found:
    """Return what the tests find in tables of (runs, looks).

    *users* are those of the horizon, and *last* those of the last of ten looks.
    """
    flat, shape = raveled(tables), tables.control_size.shape
    total = flat.control_size + flat.treatment_size
    reached = horizon.reached(flat, total, users, share * (1 - share))
    centre = stats.planned_centre(plan)
    pairs = horizon.pairs_of(flat, np.full(len(total), share), reached, centre, 1)
    p_values = (
        horizon.p_values(pairs, horizon.log_e(pairs)),
        stats.always_valid_p_value(stats.log_e_values(flat, share, centre)),
        growthbook.p_values(*growthbook.groups(flat)),
    )
    z = np.abs(horizon.pooled_score(flat)).reshape(shape)
    return Found(
        *((each < 0.05).reshape(shape) for each in p_values),
        ten_looks(z, total.reshape(shape)[0], last),
    )


def ten_looks(z: np.ndarray, ends: np.ndarray, last: float) -> np.ndarray:
    """Return at which looks O'Brien and Fleming's test is significant."""
    steps = np.searchsorted(ends, last * np.arange(1, 11) / 10 - 1e-9)
    hits = np.zeros(z.shape, bool)
    hits[:, steps] = z[:, steps] >= TEN_LOOKS * np.sqrt(
        last / ends[steps].clip(max=last)
    )
    return hits


def troubled(draw: np.random.Generator, one: Trouble, runs: int) -> list[np.ndarray]:
    """Return at which looks each test gives a false alarm, up to the horizon.

    GrowthBook's is there twice: by itself, and where it shows a result.
    """
    ends = np.linspace(one.first, one.users, one.looks).astype(int)
    new = np.diff(ends, prepend=0)
    rates = one.rate * one.drift ** (ends / one.users)
    sizes = np.zeros((2, runs, one.looks))
    converted = np.zeros((2, runs, one.looks))
    treated = draw.binomial(new, one.real_share, (runs, one.looks))
    for arm, gained in enumerate((new - treated, treated)):
        pending = np.zeros(runs, int)
        for look in range(one.looks):
            pending = pending + draw.binomial(gained[:, look], rates[look])
            seen = draw.binomial(pending, one.seen)
            converted[arm, :, look], pending = seen, pending - seen
        sizes[arm] = gained.cumsum(axis=1)
    counts = converted.cumsum(axis=2)
    tables = stats.Tables(
        *(each for pair in zip(sizes, counts, strict=True) for each in pair)
    )
    splits = (1 - one.planned_share, one.planned_share)
    plan = stats.Plan(one.rate, effect_of(one, splits))
    each = found(tables, plan, one.planned_share, one.users, one.users)
    shown = each.growthbook & growthbook.is_shown(tables)
    return [each.planned, each.alone, each.growthbook, shown, each.ten]


def effect_of(one: Trouble, splits: tuple[float, float]) -> float:
    """Return the effect whose plan has these users as its horizon."""
    low, high = one.rate * 1e-3, (1 - one.rate) * 0.999
    for _ in range(60):
        middle = (low * high) ** 0.5
        users = stats.planned_horizon(stats.Plan(one.rate, middle), splits)
        low, high = (middle, high) if users > one.users else (low, middle)
    return high


class Measured(NamedTuple):
    """What the tests find, and the users at the looks, in multiples of N."""

    found: Found
    users: np.ndarray


def measured(
    draw: np.random.Generator, scenario: Scenario, has_effect: bool, runs: int
) -> Measured:
    """Return the looks of so many runs, up to twice the horizon."""
    plan = stats.Plan(scenario.baseline, scenario.target - scenario.baseline)
    splits = (1 - scenario.share, scenario.share)
    single, users = (
        stats.planned_total(plan, splits),
        stats.planned_horizon(plan, splits),
    )
    rates = scenario.baseline, scenario.target if has_effect else scenario.baseline
    tables = looks_of(draw, rates, 2 * users, scenario.share, runs, 2 * LOOKS)
    ends = (tables.control_size + tables.treatment_size)[0]
    return Measured(
        found(tables, plan, scenario.share, users, INFLATION * single), ends / single
    )


def beside(none: np.ndarray, real: np.ndarray, users: np.ndarray, until: int) -> str:
    """Return a test's false alarms, what it finds, and where it stops on average.

    It stops at the first significant of so many looks, or at the last of them.
    """
    none, real = none[:, :until], real[:, :until]
    first = np.where(real.any(axis=1), real.argmax(axis=1), until - 1)
    return (
        f"{percent(none.any(1))}, {percent(real.any(1))}, {users[first].mean():.2f} N"
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--runs", type=int, default=4_000)
    runs = options.parse_args().runs
    draw = np.random.default_rng(SEED)
    print(f"{runs:,} runs, a look at every 1 % of the horizon, seed {SEED}.")
    print(growthbook.compared(np.random.default_rng(SEED)))
    print("\nUp to the horizon: false alarms, found with the effect, mean stop.\n")
    print("| plan | planned | e-process alone | GrowthBook | ten looks | beyond too |")
    print("|:--|:--|:--|:--|:--|--:|")
    for name, scenario in SCENARIOS.items():
        none, real = (measured(draw, scenario, has, runs) for has in (False, True))
        last = int(np.searchsorted(real.users, INFLATION - 1e-9)) + 1
        cells = [
            beside(*pair, real.users, until)
            for *pair, until in zip(
                none.found, real.found, (LOOKS, LOOKS, LOOKS, last), strict=True
            )
        ]
        cells.append(percent(none.found.planned.any(1)))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print("\nFalse alarms at any look up to the horizon, where something is unusual.")
    print(f"GrowthBook's app shows a result from {growthbook.GATE} conversions on.\n")
    print(
        "| experiment | planned | e-process alone | GrowthBook | as shown | ten looks |"
    )
    print("|:--|--:|--:|--:|--:|--:|")
    for name, trouble in TROUBLES.items():
        hits = [percent(each.any(1)) for each in troubled(draw, trouble, runs)]
        print(f"| {name} | {' | '.join(hits)} |", flush=True)


if __name__ == "__main__":
    main()
