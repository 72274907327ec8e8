"""What the counts say: pure functions from values to named tuples.

Nothing here reads a clock, a database or a request, nothing draws at random
without a seed, and nothing is rounded. `analyse` is the one entry the service
calls; the rest are its parts, each with its source, and the planning of the next
experiment.
"""

from stats.analysis import analyse
from stats.contrasts import (
    Tables,
    fixed_horizon_p_value,
    pooled_score,
    project,
    score,
    score_limits,
)
from stats.evidence import (
    always_valid_limits,
    always_valid_p_value,
    critical_score,
    log_e_values,
    normal_log_e_value,
    nuisance_level,
    null_log_e_values,
)
from stats.means import (
    always_valid_mean_interval,
    always_valid_means,
    mean_interval,
    means_log_e_value,
    sample,
    welch,
)
from stats.multiplicity import holm
from stats.planning import (
    PlannedSize,
    always_valid_sample_size,
    minimum_detectable_effect,
    plan_sample_size,
    planned_centre,
    planned_rates,
    planned_total,
    power_at,
    sample_size,
)
from stats.posterior import Beta, pooled_prior, posterior
from stats.provenance import input_hash
from stats.rates import always_valid_rate_interval, conversion_rate, wilson_interval
from stats.results import Analysis, Arm, Interval, Plan, Received, ValueSums
from stats.simulation import Simulation, simulate
from stats.splits import mismatch_e_value, sample_ratio_mismatch
from stats.wording import amounts, percent_decimals, percentages

__all__ = [
    "Analysis",
    "Arm",
    "Beta",
    "Interval",
    "Plan",
    "PlannedSize",
    "Received",
    "Simulation",
    "Tables",
    "ValueSums",
    "always_valid_limits",
    "always_valid_mean_interval",
    "always_valid_means",
    "always_valid_p_value",
    "always_valid_rate_interval",
    "always_valid_sample_size",
    "amounts",
    "analyse",
    "conversion_rate",
    "critical_score",
    "fixed_horizon_p_value",
    "holm",
    "input_hash",
    "log_e_values",
    "mean_interval",
    "means_log_e_value",
    "minimum_detectable_effect",
    "mismatch_e_value",
    "normal_log_e_value",
    "nuisance_level",
    "null_log_e_values",
    "percent_decimals",
    "percentages",
    "plan_sample_size",
    "planned_centre",
    "planned_rates",
    "planned_total",
    "pooled_prior",
    "pooled_score",
    "posterior",
    "power_at",
    "project",
    "sample",
    "sample_ratio_mismatch",
    "sample_size",
    "score",
    "score_limits",
    "simulate",
    "welch",
    "wilson_interval",
]
