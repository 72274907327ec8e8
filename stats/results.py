"""The named tuples that an analysis takes and returns.

Field names are those of the JSON, in snake case. An unknown number is None, never
NaN and never infinite; an interval that is unbounded on a side has None there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from math import isfinite
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

Number: TypeAlias = int | float | Decimal


PRIMARY, GUARDRAIL, SECONDARY = ROLES = ("primary", "guardrail", "secondary")
INCREASE, DECREASE = DIRECTIONS = ("increase", "decrease")
CONVERSION, MEAN, RATIO = KINDS = ("conversion", "mean", "ratio")


class MetricSettings(NamedTuple):
    """What is measured by a metric, and what for.

    *direction* is the one that is better. A *conversion* is whether a user has an
    event, a *mean* is that of the users' totals, and a *ratio* is the value of an
    event. *margin* is how much worse a guardrail may be, in the units of its
    differences. Totals count up to *cap*, and events for *window* days from the
    enrolment.
    """

    name: str
    role: str = SECONDARY
    direction: str = INCREASE
    kind: str = CONVERSION
    margin: Decimal | None = None
    cap: Decimal | None = None
    window: int | None = None

    @property
    def sign(self) -> int:
        """Return 1 if more is better, and -1 if less is."""
        return 1 if self.direction == INCREASE else -1

    def gains(self, one: Interval) -> tuple[float | None, float | None]:
        """Return the ends of a difference's interval, turned so that more is better."""
        if self.sign > 0:
            return one.lower, one.upper
        lower, upper = (None if end is None else -end for end in (one.upper, one.lower))
        return lower, upper

    @property
    def has_own_sums(self) -> bool:
        """Tell whether it needs more than the counts that every metric has."""
        return self.kind != CONVERSION or self.window is not None


class ValueSums(NamedTuple):
    """The sum of the users' totals of a value metric, and the sum of their squares.

    Both are exact. *count* is the number of users with a value; the others count as 0.
    """

    count: int  # type: ignore[assignment]  # the wire's word, though tuples have it
    sum: Number
    sum_squares: Number


class EventSums(NamedTuple):
    """The events of an arm's users: their sum, their squares, and with their values.

    *products* is the sum of each user's events times the user's total.
    """

    sum: int
    sum_squares: int
    products: Number


class CovariateSums(NamedTuple):
    """A number that was known of each user before the enrolment, as sums.

    *products* is the sum of each user's number times the user's total. A user of whom
    none was given counts as 0; *count* users have one.
    """

    count: int  # type: ignore[assignment]  # the wire's word, though tuples have it
    sum: Number
    sum_squares: Number
    products: Number


class Adjustment(NamedTuple):
    """How a covariate has adjusted means: CUPED.

    *users* have a covariate, *theta* is how much a total rises with it, and
    *variance_explained* is the part of the totals' variance that it takes away.
    """

    users: int
    theta: float
    variance_explained: float


class Arm(NamedTuple):
    """One variant's counts; the first arm of an analysis is the control."""

    variant_id: str
    variant_name: str
    split_percentage: Decimal
    sample_size: int
    conversions: int
    value: ValueSums | None = None
    events: EventSums | None = None
    covariate: CovariateSums | None = None


class Received(NamedTuple):
    """Every metric that has conversions, and the number of refusals by reason."""

    metrics: Sequence[str] = ()
    refused: Mapping[str, int] = MappingProxyType({})


class Plan(NamedTuple):
    """The plan of an experiment: the effect to detect, with its power and confidence.

    *minimum_effect* is absolute: 0.02 on a baseline of 0.10 means 0.12.
    """

    baseline_rate: Number
    minimum_effect: Number
    power: Number = 0.8
    confidence_level: Number = 0.95

    def towards(self, settings: MetricSettings) -> Plan:
        """Return the plan with a negative effect if less is better."""
        effect = settings.sign * abs(Decimal(str(self.minimum_effect)))
        return self._replace(minimum_effect=effect)


class Crossing(NamedTuple):
    """The first look at which a comparison was significant, with its counts.

    *users* are those of all variants. No later look withdraws it. Of a mean or a ratio
    it has the control's figure and the difference to it, which are None for a rate.
    """

    at: str
    users: int
    control_sample_size: int
    control_conversions: int
    sample_size: int
    conversions: int
    p_value: float
    control_mean: float | None = None
    difference: float | None = None

    @property
    def is_higher(self) -> bool:
        """Tell whether the variant had the higher figure; they are never equal."""
        if self.difference is not None:
            return self.difference > 0
        raised = self.conversions * self.control_sample_size
        return raised > self.control_conversions * self.sample_size


class Interval(NamedTuple):
    """An interval with its level; an end that is unbounded or unknown is None."""

    lower: float | None
    upper: float | None
    level: float
    method: str


class Level(NamedTuple):
    """A confidence level, and the number of comparisons that share its error."""

    confidence: float
    comparisons: int

    @property
    def alpha(self) -> float:
        """Return the error rate of one comparison; together they keep the whole."""
        return (1 - self.confidence) / self.comparisons

    @property
    def each(self) -> float:
        """Return the level of the interval of one comparison."""
        return 1 - self.alpha


class FixedHorizon(NamedTuple):
    """The test of two rates that is valid for one look, at the planned end."""

    p_value: float | None
    difference_interval: Interval
    lift_interval: Interval


class Sequential(NamedTuple):
    """The test of two rates that is valid at any look; it decides significance."""

    p_value: float
    adjusted_p_value: float
    log_e_value: float
    difference_interval: Interval
    lift_interval: Interval
    is_significant: bool
    """Whether it is significant now, or was at an earlier look that is stored."""


class Comparison(NamedTuple):
    """A variant compared with the control; differences are variant minus control."""

    control_variant_id: str
    difference: float | None
    lift: float | None
    probability_to_beat_control: float
    fixed_horizon: FixedHorizon
    sequential: Sequential
    crossing: Crossing | None = None


class ValueFixedHorizon(NamedTuple):
    """Welch's test of two means, valid for one look at the planned end."""

    p_value: float | None
    t: float | None
    degrees_of_freedom: float | None
    difference_interval: Interval
    lift_interval: Interval


class ValueSequential(NamedTuple):
    """The test of two means at any look: asymptotic, and None without a variance."""

    p_value: float | None
    adjusted_p_value: float | None
    log_e_value: float | None
    difference_interval: Interval
    lift_interval: Interval
    is_significant: bool
    """Whether it is significant now, or was at an earlier look that is stored."""


class ValueComparison(NamedTuple):
    """A variant's mean value compared with the control's."""

    control_variant_id: str
    difference: float | None
    lift: float | None
    fixed_horizon: ValueFixedHorizon
    sequential: ValueSequential
    crossing: Crossing | None = None


class ValueFigures(NamedTuple):
    """The value figures of one variant; the mean is over all of its users."""

    count: int  # type: ignore[assignment]  # the wire's word, though tuples have it
    sum: float
    mean: float | None
    confidence_interval: Interval
    always_valid_interval: Interval
    comparison: ValueComparison | None


class VariantFigures(NamedTuple):
    """All figures of one variant."""

    variant_id: str
    variant_name: str
    sample_size: int
    conversions: int
    conversion_rate: float
    is_control: bool
    confidence_interval: Interval
    always_valid_interval: Interval
    probability_best: float
    expected_loss: float
    comparison: Comparison | None
    value: ValueFigures | None

    def compared(self, kind: str) -> Comparison | ValueComparison | None:
        """Return the comparison with the control in the figure that decides."""
        if kind == CONVERSION:
            return self.comparison
        return self.value and self.value.comparison


class Horizon(NamedTuple):
    """The users that an experiment is planned for, frozen at its start.

    Up to them, a boundary decides at *boundary_alpha*; an e-process decides at
    *evidence_alpha*, also later. Both are for one comparison.
    """

    users: int
    boundary_alpha: float
    evidence_alpha: float


class Method(NamedTuple):
    """How the figures were computed, with all that it takes to repeat it."""

    method: str
    confidence_level: float
    verdict_confidence_level: float
    correction: str
    prior: str
    centre: float
    plan: Plan | None
    computed_at: str | None
    input_hash: str
    smallest_effect: float | None
    """The smallest effect that so many users would show now, with the planned power."""
    horizon: Horizon | None = None
    kind: str = CONVERSION
    direction: str = INCREASE
    adjustment: Adjustment | None = None


class MetricComparison(NamedTuple):
    """A variant's figure of a metric compared with the control's, at any look.

    *status* is `harmed`, `harmless` or `not_shown` of a guardrail, `better`, `worse`
    or `not_shown` of a secondary metric, and `not_counted` without any event. The
    adjusted p-value is that of all secondary metrics together.
    """

    difference: float | None
    lift: float | None
    difference_interval: Interval
    p_value: float | None
    adjusted_p_value: float | None
    status: str


class MetricOfVariant(NamedTuple):
    """One variant's figure of a metric: a rate, a mean or a ratio, by its kind."""

    variant_id: str
    variant_name: str
    sample_size: int
    conversions: int
    estimate: float | None
    comparison: MetricComparison | None


class MetricFigures(NamedTuple):
    """A metric beside the primary one; a secondary one is exploratory."""

    metric: str
    role: str
    direction: str
    kind: str
    margin: float | None
    exploratory: bool
    variants: list[MetricOfVariant]


class SampleRatioMismatch(NamedTuple):
    """The test of whether the users are split as planned."""

    p_value: float
    chi_square: float
    chi_square_p_value: float
    expected: list[float]
    detected: bool


class Verdict(NamedTuple):
    """The verdict as a sentence and as a status."""

    status: str
    variant_id: str | None
    sentence: str


class Caution(NamedTuple):
    """A warning that the reader needs before relying on the figures."""

    code: str
    message: str


class Analysis(NamedTuple):
    """All figures of one metric of one experiment."""

    metric: str
    variants: list[VariantFigures]
    analysis: Method
    sample_ratio_mismatch: SampleRatioMismatch
    verdict: Verdict
    warnings: list[Caution]
    trustworthy: bool
    metrics: list[MetricFigures] | None = None
    """The guardrails and the secondary metrics; None without any."""


def interval(lower: float, upper: float, level: float, method: str) -> Interval:
    """Return an interval, with None for an end that is not a finite number."""
    low, high = (float(end) if isfinite(end) else None for end in (lower, upper))
    return Interval(low, high, level, method)


def check_counts(conversions: int, sample_size: int) -> None:
    """Raise ValueError for counts that no experiment can have."""
    for count in (conversions, sample_size):
        if isinstance(count, bool) or not isinstance(count, int):
            raise ValueError(f"A count is a whole number, not {count!r}")
    if not 0 <= conversions <= sample_size:
        raise ValueError(f"{conversions} conversions of {sample_size} is impossible")


def check_level(confidence_level: Number) -> float:
    """Return the confidence level as a float; raise unless it is 0.5 to 0.99."""
    # Compared as a float, because the float 0.99 is a little below the decimal 0.99.
    level = float(confidence_level)
    if not 0.5 <= level <= 0.99:
        raise ValueError(f"A confidence level is 0.5 to 0.99, not {confidence_level}")
    return level
