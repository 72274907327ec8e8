"""The shapes of experiments, and of pages of a list."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from marshmallow import (
    ValidationError,
    fields,
    post_load,
    validate,
    validates_schema,
)

import lifecycle
import stats
from models import CONCLUSIONS, FULL, Change
from storage.columns import utcnow
from storage.paging import Page
from targeting.decision import STATUSES
from web.fields import (
    LARGEST_RATE,
    LARGEST_VALUE,
    SMALLEST_RATE,
    Answer,
    Between,
    ConfidenceLevel,
    Flag,
    Id,
    Integer,
    Items,
    Key,
    Limit,
    Moment,
    Name,
    Percentage,
    PlannedRate,
    Power,
    Quick,
    Search,
    Text,
    Whole,
    Wire,
)
from web.json import dumps, plain


class Nothing(Wire):
    """An empty body."""


class PageQuery(Wire):
    """Which page of a list: by number, or by the cursor of the previous page."""

    page = Whole(load_default=1)
    limit = Limit(load_default=20)
    cursor = fields.String(
        load_default=None,
        allow_none=False,
        validate=[validate.Length(1, 512), validate.Regexp(r"^[A-Za-z0-9_-]+\Z")],
        metadata={"pattern": "^[A-Za-z0-9_-]+$"},
    )

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def _one_way(self, query: dict[str, Any], original: Any, **_: Any) -> None:
        if "cursor" in original and "page" in original:
            message = "A page has a number or a cursor, not both."
            raise ValidationError(message, "cursor")

    @post_load
    def _page(self, query: dict[str, Any], **_: Any) -> dict[str, Any]:
        page = Page(*(query.pop(name) for name in ("page", "limit", "cursor")))
        return {**query, "page": page}


class ExperimentsQuery(PageQuery):
    """A page of the experiments, and filters."""

    status = fields.String(
        load_default=None, allow_none=False, validate=validate.OneOf(STATUSES)
    )
    archived = Flag(load_default=False)
    search = Search()


def is_small(config: dict[str, Any]) -> None:
    size = len(dumps(config).encode())
    if size > 16 * 1024:
        raise ValidationError(f"A config has at most 16 KiB, not {size} bytes.")


class VariantSchema(Quick):
    """What a share of the users gets."""

    id = Id(attribute="key", dump_only=True)
    name = Name(200, required=True)
    split_percentage = Percentage(attribute="split", required=True)
    flow_id = Id(allow_none=True)
    config = fields.Dict(allow_none=True, validate=is_small)


class VariantChangeSchema(VariantSchema):
    """A variant in a PATCH: with a known id, it keeps the fields left out."""

    id = Id(attribute="key")
    name = Name(200)
    split_percentage = Percentage(attribute="split")


def splits_sum_to_100(variants: Iterable[Mapping[str, Any]]) -> None:
    total = sum(variant["split"] for variant in variants)
    if total != FULL:
        raise ValidationError(
            f"The splits must sum to 100, not {plain(Decimal(total) / 100)}."
        )


def names_are_distinct(variants: Iterable[Mapping[str, Any]]) -> None:
    names = [variant["name"] for variant in variants]
    for name in names:
        if names.count(name) > 1:
            raise ValidationError(f"Two variants have the name {name!r}.")


def ids_are_distinct(variants: Iterable[Mapping[str, Any]]) -> None:
    ids = [variant["key"] for variant in variants if variant.get("key")]
    if len(ids) != len(set(ids)):
        raise ValidationError("Two variants have the same id.")


WHOLE_LIST = [
    validate.Length(2, 20, error="An experiment has 2 to 20 variants."),
    splits_sum_to_100,
    names_are_distinct,
]


def whole_variants(variants: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the list if it is valid as a whole; else raise ValidationError.

    A PATCH may leave fields out, so its list is checked after it has been merged with
    the stored one.
    """
    for place, variant in enumerate(variants):
        for name, wire_name in (("name", "name"), ("split", "splitPercentage")):
            if name not in variant:
                missing = {wire_name: ["Missing data for required field."]}
                raise ValidationError({"variants": {place: missing}})
    for rule in (splits_sum_to_100, names_are_distinct):
        try:
            rule(variants)
        except ValidationError as error:
            raise ValidationError({"variants": error.messages}) from error
    return variants


class PlanSchema(Wire):
    """The effect that the experiment is planned to detect."""

    baseline_rate = PlannedRate(required=True)
    minimum_effect = PlannedRate(required=True)
    power = Power()
    confidence_level = ConfidenceLevel()

    @validates_schema(skip_on_field_errors=True)
    def _within_one(self, plan: dict[str, Any], **_: Any) -> None:
        if plan["baseline_rate"] + plan["minimum_effect"] > Decimal(LARGEST_RATE):
            raise ValidationError(f"No rate is above {LARGEST_RATE}.", "minimumEffect")


class MetricSchema(Wire):
    """What is measured by a metric, and what for."""

    name = Id(required=True)
    role = fields.String(
        load_default=stats.SECONDARY, validate=validate.OneOf(stats.ROLES)
    )
    direction = fields.String(
        load_default=stats.INCREASE, validate=validate.OneOf(stats.DIRECTIONS)
    )
    kind = fields.String(
        load_default=stats.CONVERSION, validate=validate.OneOf(stats.KINDS)
    )
    margin = Between(SMALLEST_RATE, LARGEST_VALUE, load_default=None, allow_none=True)
    cap = Between(SMALLEST_RATE, LARGEST_VALUE, load_default=None, allow_none=True)
    window = Integer("1", "365", load_default=None, allow_none=True)

    @validates_schema(skip_on_field_errors=True)
    def _fits(self, metric: dict[str, Any], **_: Any) -> None:
        wrong = {}
        if metric["margin"] is not None and metric["role"] != stats.GUARDRAIL:
            wrong["margin"] = ["Only a guardrail has a margin."]
        if metric["cap"] is not None and metric["kind"] == stats.CONVERSION:
            wrong["cap"] = ["A conversion has no value to cap."]
        if (
            metric["margin"] is not None
            and metric["kind"] == stats.CONVERSION
            and metric["margin"] >= 1
        ):
            wrong["margin"] = ["A margin of rates is absolute, and below 1."]
        if wrong:
            raise ValidationError(wrong)


def have_different_names(metrics: Iterable[Mapping[str, Any]]) -> None:
    names = [metric["name"] for metric in metrics]
    for name in names:
        if names.count(name) > 1:
            raise ValidationError(f"Two metrics have the name {name!r}.")


def have_one_primary(metrics: Iterable[Mapping[str, Any]]) -> None:
    if [metric["role"] for metric in metrics].count(stats.PRIMARY) > 1:
        raise ValidationError("An experiment has one primary metric.")


def is_ahead(time: datetime) -> None:
    if time <= utcnow():
        raise ValidationError("The endDate must be in the future.")


class ExperimentSchema(Quick):
    """A test of variants against each other."""

    id = fields.String(dump_only=True)
    key = Key()
    name = Name(200, required=True)
    description = Text(10_000)
    hypothesis = Text(10_000)
    type = fields.String(load_default="ab_test", validate=validate.OneOf(["ab_test"]))
    status = fields.String(
        dump_only=True, attribute="state", metadata={"enum": STATUSES}
    )
    audience_id = Id(allow_none=True)
    audience_snapshot_at = Moment(dump_only=True, allow_none=True)
    exclusion_group = Id(allow_none=True)
    primary_metric = Id(metadata={"default": stats.CONVERSION})
    metrics = Items(
        fields.Nested(MetricSchema()),
        allow_none=True,
        validate=[
            validate.Length(0, 20, error="An experiment describes at most 20 metrics."),
            have_different_names,
            have_one_primary,
        ],
    )
    plan = fields.Nested(PlanSchema(), allow_none=True)
    traffic_percentage = Percentage(attribute="traffic", load_default=FULL)
    start_date = Moment(dump_only=True, allow_none=True)
    end_date = Moment(allow_none=True, validate=is_ahead)
    completed_at = Moment(dump_only=True, allow_none=True)
    archived_at = Moment(dump_only=True, allow_none=True)
    conclusion = fields.String(
        dump_only=True, allow_none=True, metadata={"enum": [*CONCLUSIONS, None]}
    )
    winner_variant_id = fields.String(dump_only=True, allow_none=True)
    note = fields.String(dump_only=True, allow_none=True)
    created_at = Moment(dump_only=True)
    updated_at = Moment(dump_only=True)
    variants = Items(fields.Nested(VariantSchema()), required=True, validate=WHOLE_LIST)
    count = fields.Function(
        lambda experiment: {"assignments": experiment.participants},
        data_key="_count",
        dump_only=True,
        metadata={
            "type": "object",
            "properties": {"assignments": {"type": "integer", "minimum": 0}},
            "required": ["assignments"],
        },
    )


class ExperimentChangeSchema(ExperimentSchema):
    """The body of a PATCH: only the fields in it change."""

    name = Name(200)
    type = fields.String(validate=validate.OneOf(["ab_test"]))
    traffic_percentage = Percentage(attribute="traffic")
    variants = Items(
        fields.Nested(VariantChangeSchema()),
        validate=[
            validate.Length(2, 20, error="An experiment has 2 to 20 variants."),
            ids_are_distinct,
        ],
    )


class WarnedExperimentSchema(ExperimentSchema):
    """An experiment with warnings for whoever created or started it."""

    warnings = fields.Function(
        lambda experiment: [one._asdict() for one in lifecycle.warnings(experiment)],
        dump_only=True,
        metadata={
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "code": {"type": "string"},
                    "message": {"type": "string"},
                },
                "required": ["code", "message"],
            },
        },
    )


class ConclusionSchema(Wire):
    """How an experiment ended."""

    conclusion = fields.String(required=True, validate=validate.OneOf(CONCLUSIONS))
    winner_variant_id = Id(load_default=None, allow_none=True)
    note = Text(10_000, load_default=None)


MOST_DAYS = 90  # of a link that shares results


class ShareSchema(Wire):
    """For how many days a link shares the results of an experiment."""

    days = Whole(required=True, validate=validate.Range(1, MOST_DAYS))


class ChangeSchema(Answer):
    """One entry of an experiment's history."""

    at = Moment()
    subject = fields.String(attribute="actor")
    action = fields.String()
    user_id = fields.String(allow_none=True)
    changes = fields.Function(
        lambda change: changes(change), metadata={"type": "object"}
    )


class SettingsSchema(ExperimentSchema):
    """The settings of an experiment that can change, as its answers have them."""

    class Meta:
        exclude = ("count",)

    status = fields.String()
    variant_id = fields.String()


SETTINGS = SettingsSchema()


def changes(change: Change) -> dict[str, dict[str, Any]]:
    """Return the changes of a history entry: `{"name": {"from", "to"}}`."""
    before, after = (
        SETTINGS.dump({name: pair[place] for name, pair in change.changes.items()})
        for place in (0, 1)
    )
    return {name: {"from": before[name], "to": after[name]} for name in after}
