"""Sample sizes, and simulations of a draft."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import stats
from models import Experiment
from storage import traffic
from targeting import assignment
from views.figures import shape

# The work of one simulation in users dealt, which takes about 5 seconds.
SIMULATION = 4_000_000

# The measured cost, in users dealt, of a look at a treatment and of a run beside its
# users. Small samples with many looks cost most.
LOOK, RUN = 80, 30


def sample_sizes(
    baseline_rate: Decimal,
    minimum_effect: Decimal | None,
    relative_effect: Decimal | None,
    margin: Decimal | None,
    direction: str,
    **options: Any,
) -> stats.PlannedSize:
    """Return the users and days that a plan needs, for one look and for any look.

    With a margin they are those until a guardrail is shown to be harmless.
    """
    sign = stats.MetricSettings("", direction=direction).sign
    if margin is not None:
        return stats.plan_harmless_rate(baseline_rate, -sign * margin, **options)
    effect = sign * (minimum_effect or baseline_rate * (relative_effect or 0))
    planned = stats.plan_sample_size(baseline_rate, effect, **options)
    # In decimals: 0.1 and 0.02 are 0.12, but with floats 0.12000000000000001.
    return planned._replace(target_rate=float(baseline_rate + effect))


def mean_sample_sizes(
    baseline_mean: Decimal,
    standard_deviation: Decimal,
    minimum_effect: Decimal | None,
    relative_effect: Decimal | None,
    margin: Decimal | None,
    covariate_correlation: Decimal,
    power: Decimal,
    confidence_level: Decimal,
    splits: Sequence[int],
    users_per_day: int | None,
) -> stats.PlannedMeanSize:
    """Return the users and days that a plan for a mean needs, or its guardrail."""
    effect = margin or minimum_effect or abs(baseline_mean) * (relative_effect or 0)
    plan = stats.MeanPlan(
        *(baseline_mean, standard_deviation, effect, covariate_correlation),
        *(power, confidence_level),
    )
    if margin is not None:
        return stats.plan_harmless_mean(plan, splits, users_per_day)
    planned = stats.plan_mean_sample_size(plan, splits, users_per_day)
    return planned._replace(target_mean=float(baseline_mean + effect))


def affordable_runs(participants: int, looks: int, runs: int, treatments: int) -> int:
    """Return how many of these runs fit into SIMULATION: at least one.

    The bound depends on the request's size and not on a clock, so that the same request
    always has the same answer.
    """
    return min(runs, SIMULATION // (participants + LOOK * looks * treatments + RUN))


def simulated(
    experiment: Experiment,
    baseline_rate: Decimal,
    effect: Decimal,
    participants: int,
    looks: int,
    runs: int,
    seed: int,
) -> stats.Simulation:
    """Return how the production hash and statistics behave with a draft's settings."""
    splits = [variant.split for variant in experiment.variants]
    plan = experiment.directed_plan
    confidence = plan.confidence_level if plan else 0.95
    return stats.simulate(
        baseline_rate=float(baseline_rate),
        effect=float(effect),
        splits=splits,
        participants=participants,
        looks=looks,
        runs=affordable_runs(participants, looks, runs, len(splits) - 1),
        seed=seed,
        assign=_giving_way(assignment.dealer(splits)),
        confidence_level=float(confidence),
        centre=stats.planned_centre(plan),
        horizon_users=plan and stats.planned_horizon(plan, splits),
    )


def _giving_way(deal: Callable[[str, str], int]) -> Callable[[str, str], int]:
    """Return the same function, pausing at every 100th user for quick requests."""

    def dealt(salt: str, user_id: str) -> int:
        if user_id.endswith("00"):
            traffic.traffic.pause()
        return deal(salt, user_id)

    return dealt


SIZES = shape(stats.PlannedSize)()

MEAN_SIZES = shape(stats.PlannedMeanSize)()

SIMULATED = shape(stats.Simulation)()
