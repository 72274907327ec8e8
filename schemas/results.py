"""The shapes of questions about results, and of planning."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from marshmallow import (
    ValidationError,
    fields,
    post_load,
    validate,
    validates_schema,
)

import stats
from schemas.experiments import splits_sum_to_100
from web.fields import (
    LARGEST_RATE,
    LARGEST_VALUE,
    SMALLEST_RATE,
    Between,
    ConfidenceLevel,
    Id,
    Integer,
    Items,
    LevelText,
    Moment,
    Percentage,
    PlannedRate,
    Power,
    Wire,
)


class SplitSchema(Wire):
    """How surely an effect should be found, and how the users are split."""

    power = Power()
    confidence_level = ConfidenceLevel()
    variants = Integer("2", "20", load_default=None)
    splits = Items(Percentage(), load_default=None, validate=validate.Length(2, 20))
    users_per_day = Integer("1", "1000000000000", load_default=None)

    @validates_schema(skip_on_field_errors=True)
    def _one_split(self, size: dict[str, Any], **_: Any) -> None:
        if size["splits"] is None:
            return
        if size["variants"] is not None:
            raise ValidationError("Give either variants or splits.", "variants")
        splits_sum_to_100([{"split": split} for split in size["splits"]])

    @post_load
    def _split_evenly(self, size: dict[str, Any], **_: Any) -> dict[str, Any]:
        variants = size.pop("variants") or 2
        return {**size, "splits": size["splits"] or [1] * variants}


def wanted_change(size: dict[str, Any]) -> str:
    """Return which of the three describes what is wanted; raise unless one does."""
    names = {
        "minimum_effect": "minimumEffect",
        "relative_effect": "relativeEffect",
        "margin": "margin",
    }
    given = [wire for name, wire in names.items() if size[name] is not None]
    if len(given) != 1:
        raise ValidationError(f"Give one of {', '.join(names.values())}.")
    return given[0]


class SizeSchema(SplitSchema):
    """The effect on a rate that should be detected, or the margin of a guardrail."""

    baseline_rate = PlannedRate(required=True)
    minimum_effect = PlannedRate(load_default=None)
    relative_effect = Between(SMALLEST_RATE, "1000000", load_default=None)
    margin = PlannedRate(load_default=None)
    direction = fields.String(
        load_default=stats.INCREASE, validate=validate.OneOf(stats.DIRECTIONS)
    )

    @validates_schema(skip_on_field_errors=True)
    def _one_change(self, size: dict[str, Any], **_: Any) -> None:
        name, rate = wanted_change(size), size["baseline_rate"]
        change = size["margin"] or size["minimum_effect"]
        change = change or rate * size["relative_effect"]
        # A margin is a change for the worse.
        is_rise = (size["direction"] == stats.INCREASE) != (name == "margin")
        room = (
            Decimal(LARGEST_RATE) - rate if is_rise else rate - Decimal(SMALLEST_RATE)
        )
        if not Decimal(SMALLEST_RATE) <= change <= room:
            raise ValidationError(
                f"The change must be at least {SMALLEST_RATE}, and the changed rate "
                f"from {SMALLEST_RATE} to {LARGEST_RATE}.",
                name,
            )


class MeanSizeSchema(SplitSchema):
    """The effect on a mean that should be detected, or the margin of a guardrail."""

    baseline_mean = Between(f"-{LARGEST_VALUE}", LARGEST_VALUE, required=True)
    standard_deviation = Between(SMALLEST_RATE, LARGEST_VALUE, required=True)
    minimum_effect = Between(SMALLEST_RATE, LARGEST_VALUE, load_default=None)
    relative_effect = Between(SMALLEST_RATE, "1000000", load_default=None)
    margin = Between(SMALLEST_RATE, LARGEST_VALUE, load_default=None)
    covariate_correlation = Between("0", "0.99", load_default=Decimal(0))

    @validates_schema(skip_on_field_errors=True)
    def _one_change(self, size: dict[str, Any], **_: Any) -> None:
        name = wanted_change(size)
        if name == "relativeEffect" and not size["baseline_mean"]:
            raise ValidationError("A mean of 0 has no relative effect.", "baselineMean")
        change = size["margin"] or size["minimum_effect"]
        change = change or abs(size["baseline_mean"]) * size["relative_effect"]
        least = size["standard_deviation"] / 10_000
        if not least <= change <= size["standard_deviation"] * 10_000:
            raise ValidationError(
                f"{name} must be within a factor of 10,000 of the standard deviation.",
                name,
            )


class RehearsalSchema(Wire):
    """What to simulate a draft with; a run is one whole experiment."""

    participants = Integer("2", "1000000", required=True)
    baseline_rate = Between("0", "1", required=True)
    effect = Between("-1", "1", load_default=Decimal(0))
    looks = Integer("1", "1000", load_default=20)
    runs = Integer("1", "10000", load_default=200)
    seed = Integer("0", "2147483647", load_default=0)

    @validates_schema(skip_on_field_errors=True)
    def _possible(self, rehearsal: dict[str, Any], **_: Any) -> None:
        if not 0 <= rehearsal["baseline_rate"] + rehearsal["effect"] <= 1:
            raise ValidationError("A rate is from 0 to 1.", "effect")
        if rehearsal["looks"] > rehearsal["participants"]:
            raise ValidationError("There are more looks than participants.", "looks")


class AnalysisSchema(Wire):
    """The metric to analyse, the confidence level of the intervals, and the time."""

    metric = Id(load_default=None, allow_none=True)
    confidence_level = ConfidenceLevel()
    as_of = Moment(load_default=None, allow_none=True)
    granularity = fields.String(
        load_default=None, allow_none=True, validate=validate.OneOf(["day"])
    )


class AnalysisQuery(Wire):
    """The same as AnalysisSchema, for a request without a body."""

    metric = Id(load_default=None, allow_none=False)
    confidence_level = LevelText(load_default=Decimal("0.95"))
    as_of = Moment(load_default=None, allow_none=False)
    granularity = fields.String(
        load_default=None, allow_none=False, validate=validate.OneOf(["day"])
    )


class ResultsQuery(Wire):
    """Which counts, and at which time."""

    metric = Id(load_default=None, allow_none=False)
    as_of = Moment(load_default=None, allow_none=False)
    granularity = fields.String(
        load_default=None, allow_none=False, validate=validate.OneOf(["day"])
    )


def is_replay(query: dict[str, Any]) -> bool:
    """Tell whether results need every row, and not only the tallies."""
    return bool(query.get("granularity") or query.get("as_of"))


class ExportQuery(Wire):
    """The format of an export."""

    format = fields.String(
        load_default="csv", validate=validate.OneOf(["csv", "ndjson"])
    )
