"""The forms of the planner: numbers as a person types them."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from marshmallow import ValidationError, fields, validate, validates_schema

from web.fields import LARGEST_VALUE, Wire

NUMBER = re.compile(r"-?(\d{1,15}|\d{1,3}(,\d{3}){1,4})(\.\d{1,15})?", re.ASCII)


class Typed(fields.Field[Decimal]):
    """A number as somebody types it: 12.5, 12.5 % or 1,000."""

    def __init__(self, low: str, high: str, **options: Any) -> None:
        self.low, self.high = Decimal(low), Decimal(high)
        super().__init__(**options)

    def _deserialize(
        self, value: Any, attr: str | None, data: Any, **_: Any
    ) -> Decimal:
        text = value.strip().removesuffix("%").rstrip()
        if not NUMBER.fullmatch(text):
            raise ValidationError("Write a number with a point, such as 12.5.")
        number = Decimal(text.replace(",", ""))
        if number < self.low:
            raise ValidationError(f"It must be at least {self.low:,f}.")
        if number > self.high:
            raise ValidationError(f"It must be at most {self.high:,f}.")
        return number


def is_whole(number: Decimal) -> None:
    """Refuse a number with decimals."""
    if number != number.to_integral_value():
        raise ValidationError("It must be a whole number.")


class PlanForm(Wire):
    """The effect to find, the users, and how surely; rates are in percent."""

    kind = fields.String(load_default="rate", validate=validate.OneOf(["rate", "mean"]))
    effect = Typed("0.0001", LARGEST_VALUE)
    effect_is = fields.String(
        load_default="absolute", validate=validate.OneOf(["absolute", "relative"])
    )
    users_per_day = Typed("1", LARGEST_VALUE, validate=is_whole)
    variants = Typed("2", "20", validate=is_whole)
    power = Typed("1", "99.9")
    confidence_level = Typed("50", "99")


class RatePlanForm(PlanForm):
    """A plan for a conversion rate; without an effect, the days say which to find."""

    baseline_rate = Typed(
        "0.0001",
        "99.9999",
        required=True,
        error_messages={"required": "Write the conversion rate of today, in percent."},
    )
    days = Typed("1", "3650", validate=is_whole)

    @validates_schema(skip_on_field_errors=True)
    def _is_enough(self, plan: dict[str, Any], **_: Any) -> None:
        if "effect" not in plan and not {"days", "users_per_day"} <= plan.keys():
            raise ValidationError(
                "Write the smallest effect worth finding, or else the users of a day "
                "and the number of days.",
                "effect",
            )


class MeanPlanForm(PlanForm):
    """A plan for the mean of a number of each user."""

    baseline_mean = Typed(
        f"-{LARGEST_VALUE}",
        LARGEST_VALUE,
        required=True,
        error_messages={"required": "Write the mean of today."},
    )
    standard_deviation = Typed(
        "0.000001",
        LARGEST_VALUE,
        required=True,
        error_messages={
            "required": "Write the standard deviation of the users' totals."
        },
    )
    effect = Typed(
        "0.0001",
        LARGEST_VALUE,
        required=True,
        error_messages={"required": "Write the smallest effect worth finding."},
    )
    covariate_correlation = Typed("0", "0.99")
