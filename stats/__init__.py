"""The statistics: pure functions from counts to named tuples.

No function reads a clock, a database or a request, draws at random without a seed,
or rounds its result. The service calls `analyse` and the functions that plan an
experiment; the others are their parts, each with its source.
"""

from stats.analysis import analyse
from stats.contrasts import Tables, fixed_horizon_p_value, score
from stats.course import Point, course
from stats.evidence import always_valid_p_value, log_e_values, null_log_e_values
from stats.means import means_log_e_value, welch
from stats.planning import (
    MeanPlan,
    PlannedMeanSize,
    PlannedSize,
    plan_harmless_mean,
    plan_harmless_rate,
    plan_mean_sample_size,
    plan_sample_size,
    planned_centre,
    planned_horizon,
    planned_total,
    smallest_planned_effect,
)
from stats.results import (
    CONVERSION,
    DECREASE,
    DIRECTIONS,
    GUARDRAIL,
    INCREASE,
    KINDS,
    MEAN,
    PRIMARY,
    RATIO,
    ROLES,
    SECONDARY,
    Analysis,
    Arm,
    Caution,
    CovariateSums,
    Crossing,
    EventSums,
    Level,
    MetricSettings,
    Plan,
    Received,
    ValueSums,
)
from stats.samples import sample
from stats.scorecard import Measured, estimates
from stats.simulation import Simulation, simulate
from stats.splits import sample_ratio_mismatch

__all__ = [
    "CONVERSION",
    "DECREASE",
    "DIRECTIONS",
    "GUARDRAIL",
    "INCREASE",
    "KINDS",
    "MEAN",
    "PRIMARY",
    "RATIO",
    "ROLES",
    "SECONDARY",
    "Analysis",
    "Arm",
    "Caution",
    "CovariateSums",
    "Crossing",
    "EventSums",
    "Level",
    "MeanPlan",
    "Measured",
    "MetricSettings",
    "Plan",
    "PlannedMeanSize",
    "PlannedSize",
    "Point",
    "Received",
    "Simulation",
    "Tables",
    "ValueSums",
    "always_valid_p_value",
    "analyse",
    "course",
    "estimates",
    "fixed_horizon_p_value",
    "log_e_values",
    "means_log_e_value",
    "null_log_e_values",
    "plan_harmless_mean",
    "plan_harmless_rate",
    "plan_mean_sample_size",
    "plan_sample_size",
    "planned_centre",
    "planned_horizon",
    "planned_total",
    "sample",
    "sample_ratio_mismatch",
    "score",
    "simulate",
    "smallest_planned_effect",
    "welch",
]
