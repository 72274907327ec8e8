"""The shapes of users, of what they are given, and of their erasure."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from marshmallow import (
    fields,
    post_dump,
    validate,
)

from models import Experiment
from targeting.decision import Explanation
from web.fields import (
    Answer,
    Batch,
    Flag,
    Id,
    Items,
    JsonText,
    MetricValue,
    Moment,
    Rows,
    Wire,
)


class UserSchema(Wire):
    """A user, and what the caller knows about them."""

    user_id = Id(required=True)
    attributes = fields.Dict(load_default=dict)
    covariate = MetricValue(load_default=None, allow_none=True)


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


class OverrideSchema(Wire):
    """A variant forced for one user."""

    experiment_id = fields.String(dump_only=True)
    user_id = fields.String(dump_only=True)
    variant_id = Id(required=True, attribute="variant")


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
