"""Peek after every 1 % of the traffic: false alarms, power and coverage, in full.

A/A and A/B experiments by seeded chance, each looked at 100 times; the production
statistics beside the ordinary z-test. Takes some minutes.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import numpy as np

import stats

RUNS, LOOKS, SEED = 4_000, 100, 20250201
# The scenarios of a product's traffic: rate, users, share of the treatment.
SCENARIOS = {
    "typical, 10 %": (0.10, 20_000, 0.5),
    "early, 5 %": (0.05, 2_000, 0.5),
    "rare, 1 %": (0.01, 20_000, 0.5),
    "very rare, 0.2 %": (0.002, 20_000, 0.5),
    "high, 50 %": (0.50, 4_000, 0.5),
    "uneven, 90/10": (0.05, 20_000, 0.1),
    "large, 5 %": (0.05, 1_000_000, 0.5),
}


def main() -> None:
    draw = np.random.default_rng(SEED)
    print(f"{RUNS:,} runs, {LOOKS} looks, seed {SEED}; every look counts.\n")
    print_false_alarms(draw)
    print_power(draw)
    print_coverage(draw)


def print_false_alarms(draw: np.random.Generator) -> None:
    print("| A/A | any-look alarms | z-test, any look | z-test, one look |")
    print("|:--|--:|--:|--:|")
    for name, (rate, users, share) in SCENARIOS.items():
        ours, naive = significant(looks_of(draw, (rate, rate), users, share), share)
        print_row(name, ours.any(1), naive.any(1), naive[:, -1])


def print_power(draw: np.random.Generator) -> None:
    print(
        "\n| A/B, the planned effect | any look, by N | by 2N | z-test, one look at N |"
    )
    print("|:--|--:|--:|--:|")
    for rates in ((0.10, 0.12), (0.01, 0.014), (0.50, 0.56)):
        plan = stats.Plan(rates[0], rates[1] - rates[0])
        size = round(stats.planned_total(plan, (50, 50)))
        tables = looks_of(draw, rates, 2 * size, 0.5)
        ours, naive = significant(tables, 0.5, stats.planned_centre(plan))
        half, name = LOOKS // 2, f"{rates[0]:.0%} to {rates[1]:.1%}"
        print_row(name, ours[:, :half].any(1), ours.any(1), naive[:, half - 1])


def print_coverage(draw: np.random.Generator) -> None:
    print("\n| 10 % and 13 % | holds the truth at all looks | at the last |")
    print("|:--|--:|--:|")
    rates = (0.10, 0.13)
    tables = looks_of(draw, rates, 8_000, 0.5, runs=1_000)
    ones, zeros = np.ones(1_000 * LOOKS), np.zeros(1_000 * LOOKS)
    nulls = {
        "difference, any look": (ones, ones * (rates[1] - rates[0])),
        "lift, any look": (ones * rates[1] / rates[0], zeros),
    }
    flat = raveled(tables)
    for name, (ratio, shift) in nulls.items():
        log_e = stats.null_log_e_values(flat, ones * 0.5, ratio, shift)
        covered = (log_e < -math.log(0.05 - 1e-4)).reshape(1_000, LOOKS)
        print_row(name, covered.all(1), covered[:, -1])
    z = np.abs(stats.score(flat, ones, nulls["difference, any look"][1]))
    covered = (z < 1.959964).reshape(1_000, LOOKS)
    print_row("difference, one look", covered.all(1), covered[:, -1])


def print_row(name: str, *hits: np.ndarray) -> None:
    print(f"| {name} | {' | '.join(map(percent, hits))} |", flush=True)


def looks_of(
    draw: np.random.Generator,
    rates: tuple[float, float],
    users: int,
    share: float,
    runs: int = RUNS,
    looks: int = LOOKS,
) -> stats.Tables:
    """Return cumulative tables, (runs, looks) each column."""
    fresh = np.diff(np.linspace(0, users, looks + 1).round().astype(int))
    treated = draw.binomial(fresh, share, (runs, looks))
    columns = (
        fresh - treated,
        draw.binomial(fresh - treated, rates[0]),
        treated,
        draw.binomial(treated, rates[1]),
    )
    return stats.Tables(*(each.cumsum(axis=1).astype(float) for each in columns))


def raveled(tables: stats.Tables) -> stats.Tables:
    return stats.Tables(*(column.ravel() for column in tables))


def significant(
    tables: stats.Tables, share: float, centre: float = 0.2
) -> tuple[np.ndarray, np.ndarray]:
    """Return at which looks the production test, and the z-test, is significant."""
    flat, shape = raveled(tables), tables.control_size.shape
    p_values = stats.always_valid_p_value(stats.log_e_values(flat, share, centre))
    naive = stats.fixed_horizon_p_value(flat)
    return (p_values < 0.05).reshape(shape), (naive < 0.05).reshape(shape)


def percent(hits: np.ndarray) -> str:
    share = float(hits.mean())
    return f"{share:.1%} ± {math.sqrt(share * (1 - share) / len(hits)):.1%}"


if __name__ == "__main__":
    main()
