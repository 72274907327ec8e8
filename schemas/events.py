"""The shapes of events, and of what becomes of them."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from marshmallow import (
    Schema,
    ValidationError,
    fields,
    validate,
    validates_schema,
)

from ledger.conversions import (
    AFTER_WINDOW,
    BEFORE_ENROLLMENT,
    CONFLICT,
    INVALID_STATE,
    LEEWAY,
    TOO_MANY_METRICS,
    occurred,
)
from storage.columns import utcnow
from targeting.decision import NOT_ENROLLED
from web.fields import (
    Answer,
    Batch,
    Id,
    Items,
    MetricValue,
    Moment,
    Rows,
    Wire,
)


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


class EnrollmentSchema(Wire):
    """A user to enrol, and the id or the key of the experiment."""

    experiment = Id(required=True)
    user_id = Id(required=True)
    attributes = fields.Dict(load_default=dict)


class EventsSchema(Batch):
    """Events to book in every experiment that their users are in.

    The enrolments come before all events.
    """

    events = Rows(EventSchema())
    enrollments = Items(
        fields.Nested(EnrollmentSchema()),
        load_default=list,
        validate=validate.Length(max=100),
    )


class ImportLineSchema(Schema):
    """One line of an import: an assignment, and perhaps a conversion."""

    user_id = Id(required=True)
    variant = fields.String(required=True)
    timestamp = Moment(required=True, validate=is_not_to_come)
    converted_at = Moment(load_default=None, allow_none=True, validate=is_not_to_come)
    metric = Id(load_default=None, allow_none=True)
    value = MetricValue(load_default=None, allow_none=True)
    idempotency_key = Id(load_default=None, allow_none=True)
    covariate = MetricValue(load_default=None, allow_none=True)

    @validates_schema(skip_on_field_errors=True)
    def _in_order(self, line: dict[str, Any], **_: Any) -> None:
        converted_at = line["converted_at"]
        if converted_at is None:
            return
        if occurred(converted_at, line["timestamp"]) is None:
            message = f"It is over {LEEWAY.seconds} seconds before the timestamp."
            raise ValidationError(message, "converted_at")


REASONS = (
    NOT_ENROLLED,
    BEFORE_ENROLLMENT,
    AFTER_WINDOW,
    TOO_MANY_METRICS,
    CONFLICT,
    INVALID_STATE,
)
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
