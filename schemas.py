"""The shapes of requests and answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

from marshmallow import (
    Schema,
    ValidationError,
    fields,
    post_dump,
    post_load,
    validate,
    validates_schema,
)

import lifecycle
from ledger.conversions import (
    BEFORE_ENROLLMENT,
    CONFLICT,
    INVALID_STATE,
    LEEWAY,
    TOO_MANY_METRICS,
    occurred,
)
from models import CONCLUSIONS, FULL, Change, Experiment
from storage.columns import utcnow
from storage.paging import Page
from targeting.decision import NOT_ENROLLED, STATUSES, Explanation
from web.fields import (
    LARGEST_RATE,
    SMALLEST_RATE,
    Answer,
    Batch,
    Between,
    ConfidenceLevel,
    Flag,
    Id,
    Integer,
    Items,
    JsonText,
    Key,
    LevelText,
    Limit,
    MetricValue,
    Moment,
    Name,
    Percentage,
    PlannedRate,
    Power,
    Quick,
    Rows,
    RuleTree,
    Text,
    Whole,
    Wire,
    is_storable,
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
    minimum_effect = PlannedRate(required=True, metadata={"description": "absolute"})
    power = Power()
    confidence_level = ConfidenceLevel()

    @validates_schema(skip_on_field_errors=True)
    def _within_one(self, plan: dict[str, Any], **_: Any) -> None:
        if plan["baseline_rate"] + plan["minimum_effect"] > Decimal(LARGEST_RATE):
            raise ValidationError(f"No rate is above {LARGEST_RATE}.", "minimumEffect")


class SizeSchema(Wire):
    """The effect that an experiment should detect, absolute or relative."""

    baseline_rate = PlannedRate(required=True)
    minimum_effect = PlannedRate(load_default=None)
    relative_effect = Between(SMALLEST_RATE, "1000000", load_default=None)
    power = Power()
    confidence_level = ConfidenceLevel()
    variants = Integer("2", "20", load_default=None)
    splits = Items(Percentage(), load_default=None, validate=validate.Length(2, 20))
    users_per_day = Integer("1", "1000000000000", load_default=None)

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


class AnalysisQuery(Wire):
    """The same as AnalysisSchema, for a request without a body."""

    metric = Id(load_default=None, allow_none=False)
    confidence_level = LevelText(load_default=Decimal("0.95"))
    as_of = Moment(load_default=None, allow_none=False)


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
    primary_metric = Id(load_default="conversion")
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
    primary_metric = Id()
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


class UserSchema(Wire):
    """A user, and what the caller knows about them."""

    user_id = Id(required=True)
    attributes = fields.Dict(load_default=dict)


class ExperimentsOfUserSchema(Wire):
    """The experiments to enrol a user in, and what the caller knows about the user."""

    experiments = Items(Id(), required=True, validate=validate.Length(1, 100))
    attributes = fields.Dict(load_default=dict)


class ExplainQuery(Wire):
    """Whether to explain the decision, and what is known about the user."""

    explain = Flag(load_default=False)
    attributes = JsonText(load_default=dict)


class UsersSchema(Batch):
    """Users to enrol in one transaction."""

    users = Rows(UserSchema())


class DecisionSchema(Answer):
    """Which variant a user gets, if any, and why."""

    experiment_id = fields.String()
    user_id = fields.String()
    enrolled = fields.Function(
        lambda decision: decision.variant is not None, metadata={"type": "boolean"}
    )
    reason = fields.String()
    variant_id = fields.String(
        attribute="variant.id", dump_default=None, allow_none=True
    )
    variant_name = fields.String(
        attribute="variant.name", dump_default=None, allow_none=True
    )
    flow_id = fields.String(
        attribute="variant.flow_id", dump_default=None, allow_none=True
    )
    config = fields.Raw(
        attribute="variant.config",
        dump_default=None,
        allow_none=True,
        metadata={"type": "object"},
    )
    assigned_at = Moment(allow_none=True)


class RangeSchema(Answer):
    """Consecutive buckets, both ends included, and the variant that has them."""

    sometimes = ("variant_id",)  # the entry draw assigns no variant

    first = fields.Integer()
    last = fields.Integer()
    variant_id = fields.String()


class DrawSchema(Answer):
    """One draw: SHA-256 of `salt:userId`, the bucket it gives, the range it is in."""

    salt = fields.String()
    hash = fields.String(attribute="sha256")
    bucket = fields.Integer()
    ranges = fields.List(fields.Nested(RangeSchema()))
    inside = fields.Boolean()
    command = fields.String()


class ReceiptOfAssignmentSchema(DrawSchema):
    """The draw of the variant, and the entry draw before it."""

    variant_id = fields.String()
    entry = fields.Nested(DrawSchema())
    audience_id = fields.String(allow_none=True)
    audience_snapshot_at = Moment(allow_none=True)
    rules = fields.Raw(allow_none=True, metadata={"type": "object"})


class ExplainedSchema(DecisionSchema):
    """A decision, and its receipt if it was asked for."""

    sometimes = ("receipt",)

    receipt = fields.Nested(ReceiptOfAssignmentSchema())


def explained(experiment: Experiment, explanation: Explanation) -> SimpleNamespace:
    """Return a decision with its receipt, for ExplainedSchema."""
    entry, split = explanation.draws
    ids = [variant.id for variant in explanation.variants]
    ranges = [
        {**each._asdict(), "variant_id": key}
        for each, key in zip(split.ranges, ids, strict=True)
    ]
    receipt = {
        **split._asdict(),
        "ranges": ranges,
        "inside": True,
        "variant_id": None if split.position is None else ids[split.position],
        "entry": {**entry._asdict(), "inside": entry.position is not None},
        "audience_id": experiment.audience_id,
        "audience_snapshot_at": experiment.audience_snapshot_at,
        "rules": explanation.rules,
    }
    return SimpleNamespace(**explanation.decision._asdict(), receipt=receipt)


class MembershipSchema(Answer):
    """An experiment that a user is in."""

    experiment_id = fields.String()
    experiment_key = fields.String()
    experiment_name = fields.String()
    variant_id = fields.String()
    variant_name = fields.String()
    flow_id = fields.String(allow_none=True)
    assigned_at = Moment()


def is_not_to_come(time: datetime) -> None:
    if time > utcnow() + timedelta(minutes=5):
        raise ValidationError("The time is more than 5 minutes ahead.")


class EventSchema(Wire):
    """Something that a user did."""

    user_id = Id(required=True)
    metric = Id(load_default=None)
    value = MetricValue(load_default=None, allow_none=True)
    occurred_at = Moment(load_default=None, allow_none=True, validate=is_not_to_come)
    idempotency_key = Id(load_default=None, allow_none=True)


class ConversionsSchema(Batch):
    """Conversions to book in one transaction."""

    conversions = Rows(EventSchema())


class EventsSchema(Batch):
    """Events to book in every experiment that their users are in."""

    events = Rows(EventSchema())


class ImportLineSchema(Schema):
    """One line of an import: an assignment, and perhaps a conversion."""

    user_id = Id(required=True)
    variant = fields.String(required=True)
    timestamp = Moment(required=True, validate=is_not_to_come)
    converted_at = Moment(load_default=None, allow_none=True, validate=is_not_to_come)
    metric = Id(load_default=None, allow_none=True)
    value = MetricValue(load_default=None, allow_none=True)
    idempotency_key = Id(load_default=None, allow_none=True)

    @validates_schema(skip_on_field_errors=True)
    def _in_order(self, line: dict[str, Any], **_: Any) -> None:
        converted_at = line["converted_at"]
        if converted_at is None:
            return
        if occurred(converted_at, line["timestamp"]) is None:
            message = f"It is over {LEEWAY.seconds} seconds before the timestamp."
            raise ValidationError(message, "converted_at")


REASONS = (NOT_ENROLLED, BEFORE_ENROLLMENT, TOO_MANY_METRICS, CONFLICT, INVALID_STATE)
"""Why an event is rejected."""


class ReceiptSchema(Answer):
    """The outcome of an event in one experiment."""

    experiment_id = fields.String()
    status = fields.String(metadata={"enum": ["accepted", "duplicate", "rejected"]})
    reason = fields.String(allow_none=True, metadata={"enum": [*REASONS, None]})
    user_id = fields.String()
    variant_id = fields.String(allow_none=True)
    metric = fields.String()
    value = MetricValue(allow_none=True)
    occurred_at = Moment()
    idempotency_key = fields.String(allow_none=True)


class BookedSchema(Answer):
    """The outcome of each event of a batch, in each experiment of its user."""

    data = fields.List(fields.List(fields.Nested(ReceiptSchema())))


class AudienceSchema(Wire):
    """The rules that decide which users an experiment is for."""

    id = fields.String(dump_only=True)
    name = Name(200, required=True)
    description = Text(10_000)
    rule_tree = RuleTree(required=True)
    created_at = Moment(dump_only=True)
    updated_at = Moment(dump_only=True)


class AudienceChangeSchema(AudienceSchema):
    """The body of a PATCH of an audience: only the fields in it change."""

    name = Name(200)
    rule_tree = RuleTree()


class AudiencesQuery(PageQuery):
    """A page of the audiences, and a search."""

    search = fields.String(
        load_default=None,
        allow_none=False,
        validate=[validate.Length(max=200), is_storable],
    )


class TrialSchema(Wire):
    """A user to test an audience with."""

    user_id = Id(load_default=None)
    attributes = fields.Dict(load_default=dict)


class TrialResultSchema(Answer):
    """Whether the user matches, and the result of each rule."""

    matches = fields.Boolean()
    trace = fields.Raw(metadata={"type": "object"})


class OverrideSchema(Wire):
    """A variant forced for one user."""

    experiment_id = fields.String(dump_only=True)
    user_id = fields.String(dump_only=True)
    variant_id = Id(required=True, attribute="variant")


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


class CountedSchema(Answer):
    """The total counts of an experiment."""

    participants = fields.Integer()
    conversions = fields.Integer()
    events = fields.Integer()


class ErasedSchema(Answer):
    """The counts of one experiment before and after an erasure."""

    experiment_id = fields.String()
    before = fields.Nested(CountedSchema())
    after = fields.Nested(CountedSchema())


class MentionSchema(Answer):
    """A text that somebody wrote and that still contains the id."""

    resource = fields.String(metadata={"enum": ["audience", "experiment"]})
    id = fields.String()
    field = fields.String()


class ErasureSchema(Answer):
    """Where a person was erased, and which texts still contain the id."""

    sometimes = ("mentions",)

    before = fields.Nested(CountedSchema())
    after = fields.Nested(CountedSchema())
    experiments = fields.List(fields.Nested(ErasedSchema()))
    mentions = fields.List(fields.Nested(MentionSchema()))
    file_rewritten = fields.Boolean()
    log_emptied = fields.Boolean()

    @post_dump
    def _leave_out_none(self, answer: dict[str, Any], **_: Any) -> dict[str, Any]:
        if not answer["mentions"]:
            del answer["mentions"]
        return answer


class ExportQuery(Wire):
    """The format of an export."""

    format = fields.String(
        load_default="csv", validate=validate.OneOf(["csv", "ndjson"])
    )
