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


class SizeSchema(SplitSchema):
    """The effect that an experiment should detect, absolute or relative."""

    baseline_rate = PlannedRate(required=True)
    minimum_effect = PlannedRate(load_default=None)
    relative_effect = Between(SMALLEST_RATE, "1000000", load_default=None)

    @validates_schema(skip_on_field_errors=True)
    def _one_effect(self, size: dict[str, Any], **_: Any) -> None:
        absolute, relative = size["minimum_effect"], size["relative_effect"]
        if (absolute is None) == (relative is None):
            raise ValidationError("Give either minimumEffect or relativeEffect.")
        name = "minimumEffect" if relative is None else "relativeEffect"
        effect = absolute or size["baseline_rate"] * relative
        room = Decimal(LARGEST_RATE) - size["baseline_rate"]
        if not Decimal(SMALLEST_RATE) <= effect <= room:
            raise ValidationError(
                f"The effect must be at least {SMALLEST_RATE}, and no rate above "
                f"{LARGEST_RATE}.",
                name,
            )


class MeanSizeSchema(SplitSchema):
    """The effect on a mean that an experiment should detect."""

    baseline_mean = Between(f"-{LARGEST_VALUE}", LARGEST_VALUE, required=True)
    standard_deviation = Between(SMALLEST_RATE, LARGEST_VALUE, required=True)
    minimum_effect = Between(SMALLEST_RATE, LARGEST_VALUE, load_default=None)
    relative_effect = Between(SMALLEST_RATE, "1000000", load_default=None)
    covariate_correlation = Between("0", "0.99", load_default=Decimal(0))

    @validates_schema(skip_on_field_errors=True)
    def _one_effect(self, size: dict[str, Any], **_: Any) -> None:
        absolute, relative = size["minimum_effect"], size["relative_effect"]
        if (absolute is None) == (relative is None):
            raise ValidationError("Give either minimumEffect or relativeEffect.")
        if absolute is None and not size["baseline_mean"]:
            raise ValidationError("A mean of 0 has no relative effect.", "baselineMean")
        effect = absolute or abs(size["baseline_mean"]) * relative
        least = size["standard_deviation"] / 10_000
        if not least <= effect <= size["standard_deviation"] * 10_000:
            raise ValidationError(
                "The effect must be within a factor of 10,000 of the standard "
                "deviation.",
                "minimumEffect" if relative is None else "relativeEffect",
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
