"""Sample sizes, and rehearsals of a draft."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import stats
from models import Experiment
from storage import traffic
from targeting import assignment
from views.figures import camel, shape

# The work of one rehearsal, in users dealt: about 5 seconds, whatever its shape.
REHEARSAL = 4_000_000

# What a look at a treatment costs at most, with and without the effect, and what a
# run costs beside its users: measured. Small samples at many looks cost most.
LOOK, RUN = 80, 30


def sample_sizes(splits: Sequence[int], **plan: Any) -> dict[str, Any]:
    """Return the users and days that a plan needs, for one look and for any look."""
    planned: dict[str, Any] = camel(stats.plan_sample_size(splits=splits, **plan))
    # In decimals: 0.1 and 0.02 are 0.12, where floats give 0.12000000000000001.
    effect = plan["minimum_effect"] or plan["baseline_rate"] * plan["relative_effect"]
    return {**planned, "targetRate": float(plan["baseline_rate"] + effect)}


def affordable_runs(participants: int, looks: int, runs: int, treatments: int) -> int:
    """Return how many of these runs fit into REHEARSAL: at least one.

    The bound is by the size of what is asked and not by a clock, so that the same
    question always has the same answer.
    """
    return min(runs, REHEARSAL // (participants + LOOK * looks * treatments + RUN))


def rehearsed(
    experiment: Experiment,
    baseline_rate: Decimal,
    effect: Decimal,
    participants: int,
    looks: int,
    runs: int,
    seed: int,
) -> dict[str, Any]:
    """Return what the production hash and statistics make of a draft's users."""
    splits = [variant.split for variant in experiment.variants]
    plan = stats.Plan(**experiment.plan) if experiment.plan else None
    confidence = plan.confidence_level if plan else 0.95
    came_of_it: dict[str, Any] = camel(
        stats.simulate(
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
        )
    )
    return came_of_it


def _giving_way(deal: Callable[[str, str], int]) -> Callable[[str, str], int]:
    """Return the dealer, which lets quick requests go first at every 100th user."""

    def dealt(salt: str, user_id: str) -> int:
        if user_id.endswith("00"):
            traffic.traffic.pause()
        return deal(salt, user_id)

    return dealt


SIZES = shape(stats.PlannedSize)()

REHEARSED = shape(stats.Simulation)()
