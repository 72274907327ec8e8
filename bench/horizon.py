"""A planned experiment, looked at after every 1 % of its horizon, in full.

Experiments by seeded chance, without an effect and with the planned one. Beside the
production test are the e-process alone and ten looks of O'Brien and Fleming. Sizes are
in multiples of N, the users that a single look needs. Takes some minutes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))
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


class Found(NamedTuple):
    """At which looks each test is significant, and the users at the looks, in N."""

    planned: np.ndarray
    alone: np.ndarray
    ten: np.ndarray
    users: np.ndarray


def measured(
    draw: np.random.Generator, scenario: Scenario, has_effect: bool, runs: int
) -> Found:
    """Return the looks of so many runs, up to twice the horizon."""
    plan = stats.Plan(scenario.baseline, scenario.target - scenario.baseline)
    splits = (1 - scenario.share, scenario.share)
    single, users = (
        stats.planned_total(plan, splits),
        stats.planned_horizon(plan, splits),
    )
    rates = scenario.baseline, scenario.target if has_effect else scenario.baseline
    tables = looks_of(draw, rates, 2 * users, scenario.share, runs, 2 * LOOKS)
    flat, shape = raveled(tables), tables.control_size.shape
    total = flat.control_size + flat.treatment_size
    share = np.full(len(total), scenario.share)
    centre = stats.planned_centre(plan)
    reached = horizon.reached(flat, total, users, splits[0] * splits[1])
    pairs = horizon.pairs_of(flat, share, reached, centre, 1)
    alone = stats.always_valid_p_value(stats.log_e_values(flat, scenario.share, centre))
    z = np.abs(horizon.pooled_score(flat)).reshape(shape)
    ends = total.reshape(shape)[0]
    last = INFLATION * single
    steps = np.searchsorted(ends, last * np.arange(1, 11) / 10 - 1e-9)
    ten = np.zeros(shape, bool)
    ten[:, steps] = z[:, steps] >= TEN_LOOKS * np.sqrt(
        last / ends[steps].clip(max=last)
    )
    planned = horizon.p_values(pairs, horizon.log_e(pairs)) < 0.05
    return Found(
        planned.reshape(shape), (alone < 0.05).reshape(shape), ten, ends / single
    )


def mean_stop(hits: np.ndarray, users: np.ndarray, until: int) -> str:
    """Return the users at the first significant of so many looks, or at the last."""
    seen = hits[:, :until]
    first = np.where(seen.any(axis=1), seen.argmax(axis=1), until - 1)
    return f"{users[first].mean():.2f}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--runs", type=int, default=4_000)
    runs = options.parse_args().runs
    draw = np.random.default_rng(SEED)
    print(f"{runs:,} runs, a look at every 1 % of the horizon, seed {SEED}.\n")
    print(
        "| plan | false alarms | beyond too | found | mean stop | "
        "e-process alone: found, stop | ten looks: false, found, stop |"
    )
    print("|:--|--:|--:|--:|--:|:--|:--|")
    for name, scenario in SCENARIOS.items():
        none, real = (measured(draw, scenario, has, runs) for has in (False, True))
        ten = np.flatnonzero(none.ten.any(axis=0)).max(initial=LOOKS - 1) + 1
        print(
            f"| {name} | {percent(none.planned[:, :LOOKS].any(1))} "
            f"| {percent(none.planned.any(1))} "
            f"| {percent(real.planned[:, :LOOKS].any(1))} "
            f"| {mean_stop(real.planned, real.users, LOOKS)} N "
            f"| {percent(real.alone[:, :LOOKS].any(1))}, "
            f"{mean_stop(real.alone, real.users, LOOKS)} N "
            f"| {percent(none.ten.any(1))}, {percent(real.ten.any(1))}, "
            f"{mean_stop(real.ten, real.users, ten)} N |",
            flush=True,
        )


if __name__ == "__main__":
    main()
