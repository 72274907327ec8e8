"""Events received: counted, recognised as duplicates, or refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from peewee import chunked

from ledger.enrolment import Participant, overrides_among, participants_among
from ledger.sums import is_inside
from ledger.tallies import Booking, Metrics, TooManyMetrics, write_bookings
from models import (
    Assignment,
    Conflict,
    Conversion,
    Experiment,
    Invalid,
    InvalidState,
    Refusal,
    RefusalTally,
)
from stats import MetricSettings
from storage.engine import database
from storage.table import CHUNK, Insert, added, one_of
from targeting.decision import NOT_ENROLLED, RUNNING, STOPPED

ACCEPTED, DUPLICATE, REJECTED = "accepted", "duplicate", "rejected"

BEFORE_ENROLLMENT, AFTER_WINDOW = "BEFORE_ENROLLMENT", "AFTER_WINDOW"

CONFLICT, TOO_MANY_METRICS = "CONFLICT", "TOO_MANY_METRICS"

INVALID_STATE = "INVALID_STATE"

LEEWAY = timedelta(seconds=10)

MOST_PAIRS = 10_000  # pairs of an event and an experiment in one call


class NotEnrolled(Conflict):
    """The user is not a participant of the experiment."""

    code = "NOT_ENROLLED"


class BeforeEnrollment(Conflict):
    """The conversion happened before the user was enrolled."""

    code = "BEFORE_ENROLLMENT"


class AfterWindow(Conflict):
    """The conversion happened after the window of its metric."""

    code = "AFTER_WINDOW"


class Event(NamedTuple):
    """Something that a user did; the experiment and the clock fill in what is None."""

    user_id: str
    metric: str | None = None
    value: Decimal | None = None
    occurred_at: datetime | None = None
    idempotency_key: str | None = None


class Receipt(NamedTuple):
    """What became of an event in one experiment."""

    experiment_id: str
    status: str
    user_id: str
    metric: str
    value: Decimal | None
    occurred_at: datetime
    idempotency_key: str | None
    variant_id: str | None = None
    reason: str | None = None
    is_forced: bool = False
    """Whether it is refused because an override forces the user's variant."""


def refuse_rejected(receipt: Receipt) -> None:
    """Raise the error for a single conversion that was rejected.

    NotEnrolled, BeforeEnrollment, AfterWindow, TooManyMetrics, or Conflict if its
    idempotency key belongs to another body. The first three are counted as refused.
    """
    if receipt.is_forced:
        message = "A variant is forced for the user, who is not counted meanwhile."
        raise NotEnrolled(message, "override", ["enrolled"])
    if receipt.reason == NOT_ENROLLED:
        message = f"The user is not enrolled in {receipt.experiment_id}."
        raise NotEnrolled(message, "not enrolled", ["enrolled"])
    if receipt.reason == BEFORE_ENROLLMENT:
        message = "The conversion happened before the enrolment."
        raise BeforeEnrollment(message, receipt.occurred_at)
    if receipt.reason == AFTER_WINDOW:
        message = f"The window of the metric {receipt.metric!r} was over for the user."
        raise AfterWindow(message, receipt.occurred_at)
    if receipt.reason == TOO_MANY_METRICS:
        raise TooManyMetrics(receipt.metric)
    if receipt.status == REJECTED:
        message = "The idempotencyKey was used with another body."
        raise Conflict(message, receipt.idempotency_key)


def credit(events: Sequence[Event]) -> list[list[Receipt]]:
    """Book each event in every experiment that its user is in.

    Return, for each event in order, one receipt for each experiment, oldest enrolment
    first. Experiments that take no conversions any more answer INVALID_STATE. Raise
    Invalid, before anything is written, if there are more than MOST_PAIRS receipts.
    """
    memberships = _memberships(events)
    places: dict[str, list[int]] = {}
    for place, event in enumerate(events):
        for experiment_id in memberships.get(event.user_id, ()):
            places.setdefault(experiment_id, []).append(place)

    def book() -> dict[tuple[int, str], Receipt]:
        booked = {}
        for experiment_id, some in sorted(places.items()):
            experiment = Experiment.get_by_id(experiment_id)
            receipts = _record(experiment, [events[place] for place in some])
            for place, receipt in zip(some, receipts, strict=True):
                booked[place, experiment_id] = receipt
        return booked

    booked = database.obj.beside(book)
    return [
        [booked[place, id] for id in memberships.get(event.user_id, ())]
        for place, event in enumerate(events)
    ]


def _memberships(events: Sequence[Event]) -> dict[str, list[str]]:
    """Return the experiments of the users of these events, oldest enrolment first.

    Raise Invalid if they make more than MOST_PAIRS with the events. This reads before
    the write lock is taken, and no more rows than the bound.
    """
    times = Counter(event.user_id for event in events)
    pairs = 0
    experiments: dict[str, list[str]] = {}
    for some in chunked(times, CHUNK):
        rows: Any = (
            Assignment.select(Assignment.id, Assignment.user_id, Assignment.experiment)
            .where(one_of(Assignment.user_id, some))
            .limit(MOST_PAIRS + 1 - pairs)
        )
        for _, user_id, experiment_id in sorted(rows.tuples()):
            pairs += times[user_id]
            experiments.setdefault(user_id, []).append(experiment_id)
        if pairs > MOST_PAIRS:
            raise Invalid(
                "events",
                f"A call books at most {MOST_PAIRS:,} pairs of an event and an "
                "experiment that its user is in; these events make more. Send fewer "
                "at once.",
            )
    return experiments


def record(experiment: Experiment, events: Sequence[Event]) -> list[Receipt]:
    """Book events in one experiment, in one transaction; return their receipts.

    Raise InvalidState if the experiment takes no conversions: as a draft, when
    completed, when archived. Each event is counted, is a duplicate, or is refused,
    and refused events are counted as refused.
    """

    def book() -> list[Receipt]:
        current = Experiment.get_by_id(experiment.id)
        refuse_unless_open(current)
        return _record(current, events)

    return database.obj.beside(book)


def _record(experiment: Experiment, events: Sequence[Event]) -> list[Receipt]:
    now = database.obj.now()
    if not _is_open(experiment):
        return [
            _receipt(experiment, event, now, REJECTED, reason=INVALID_STATE)
            for event in events
        ]
    facts = _facts(experiment, events)
    counted: list[Booking] = []
    receipts = []
    for event in events:
        participant = facts.enrolled.get(event.user_id)
        receipt = _judged(experiment, event, participant, facts, now)
        receipts.append(receipt)
        if participant and receipt.status == ACCEPTED:
            row = Booking(
                experiment.id,
                participant.id,
                participant.variant,
                receipt.metric,
                receipt.value,
                receipt.occurred_at,
                now,
                event.idempotency_key,
                participant.assigned_at,
                participant.covariate,
                facts.own_sums.get(receipt.metric),
            )
            counted.append(row)
            if event.idempotency_key is not None:
                facts.known[event.idempotency_key] = row
    facts.metrics.write()
    write_bookings(counted)
    _write_refusals(experiment, receipts, now)
    return receipts


class _Facts(NamedTuple):
    """What is stored about the users, the keys and the metrics of some events."""

    enrolled: dict[str, Participant]
    forced: dict[str, str]
    known: dict[str | None, Any]
    metrics: Metrics
    own_sums: dict[str, MetricSettings]


def _facts(experiment: Experiment, events: Sequence[Event]) -> _Facts:
    user_ids = [event.user_id for event in events]
    enrolled = participants_among(experiment.id, user_ids)
    # Behaviour under an override is not evidence about the assigned variant.
    forced = overrides_among(experiment.id, user_ids)
    for user_id in forced:
        enrolled.pop(user_id, None)
    names = [event.metric or experiment.primary_metric for event in events]
    return _Facts(
        enrolled,
        forced,
        _known(experiment, [event.idempotency_key for event in events]),
        Metrics(experiment, names),
        experiment.own_sums,
    )


def _judged(
    experiment: Experiment,
    event: Event,
    participant: Participant | None,
    facts: _Facts,
    now: datetime,
) -> Receipt:
    """Return what becomes of an event: accepted, a duplicate, or rejected."""
    receipt = _receipt(experiment, event, now, ACCEPTED, participant)
    if participant is None:
        forced = event.user_id in facts.forced
        return receipt._replace(status=REJECTED, reason=NOT_ENROLLED, is_forced=forced)
    earlier = facts.known.get(event.idempotency_key)
    if earlier is not None:
        if _same(earlier, participant, event, receipt):
            return receipt._replace(status=DUPLICATE, occurred_at=earlier.occurred_at)
        return receipt._replace(status=REJECTED, reason=CONFLICT)
    if receipt.occurred_at < participant.assigned_at:
        return receipt._replace(status=REJECTED, reason=BEFORE_ENROLLMENT)
    settings = facts.own_sums.get(receipt.metric)
    if not is_inside(settings, participant.assigned_at, receipt.occurred_at):
        return receipt._replace(status=REJECTED, reason=AFTER_WINDOW)
    if not facts.metrics.admit(receipt.metric):
        return receipt._replace(status=REJECTED, reason=TOO_MANY_METRICS)
    return receipt


def _receipt(
    experiment: Experiment,
    event: Event,
    now: datetime,
    status: str,
    participant: Participant | None = None,
    reason: str | None = None,
) -> Receipt:
    return Receipt(
        experiment.id,
        status,
        event.user_id,
        event.metric or experiment.primary_metric,
        event.value,
        occurred_at(event, now, participant),
        event.idempotency_key,
        participant.variant if participant else None,
        reason,
    )


def _known(experiment: Experiment, keys: Iterable[str | None]) -> dict[str | None, Any]:
    """Return the stored conversions with these idempotency keys."""
    wanted = {key for key in keys if key is not None}
    return {
        row.idempotency_key: row
        for some in chunked(wanted, CHUNK)
        for row in Conversion.select(
            Conversion.assignment.alias("assignment_id"),
            Conversion.metric,
            Conversion.value,
            Conversion.occurred_at,
            Conversion.received_at,
            Conversion.idempotency_key,
        )
        .where(
            Conversion.experiment == experiment.id,
            one_of(Conversion.idempotency_key, some),
        )
        .namedtuples()
    }


def _same(
    earlier: Any, participant: Participant, event: Event, receipt: Receipt
) -> bool:
    """Tell whether an event has the same content as the stored one with its key.

    Times are compared as they are booked: a repetition without `occurredAt` occurred
    when the first one was received, and an event shortly before the enrolment
    occurred at the enrolment; see `occurred_at`.
    """
    return bool(
        earlier.assignment_id == participant.id
        and earlier.metric == receipt.metric
        and earlier.value == event.value
        and earlier.occurred_at == occurred_at(event, earlier.received_at, participant)
    )


def occurred(event_time: datetime, assigned_at: datetime) -> datetime | None:
    """Return the time from which an event counts; None if it is too early.

    Clocks differ, and many programs truncate times to seconds: an event up to LEEWAY
    before its user's enrolment counts from the enrolment.
    """
    if event_time < assigned_at - LEEWAY:
        return None
    return max(event_time, assigned_at)


def occurred_at(
    event: Event, received_at: datetime, participant: Participant | None
) -> datetime:
    """Return when an event occurred; without a time of its own, when it was received.

    For an enrolled user this is the time from which the event counts, or, if that is
    too early, the event's own time.
    """
    if participant is None:
        return event.occurred_at or received_at
    if event.occurred_at is None:  # the clock may be set back since the enrolment
        return max(received_at, participant.assigned_at)
    return occurred(event.occurred_at, participant.assigned_at) or event.occurred_at


def _is_open(experiment: Experiment) -> bool:
    """Tell whether the experiment takes conversions now."""
    return experiment.state_or_archived in (RUNNING, STOPPED)


def refuse_unless_open(experiment: Experiment) -> None:
    """Raise InvalidState if the experiment takes no conversions."""
    if not _is_open(experiment):
        raise InvalidState(experiment.state_or_archived, [RUNNING, STOPPED])


def _write_refusals(
    experiment: Experiment, receipts: Iterable[Receipt], now: datetime
) -> None:
    reasons = [
        receipt.reason or DUPLICATE
        for receipt in receipts
        if receipt.status == DUPLICATE
        or receipt.reason in (NOT_ENROLLED, BEFORE_ENROLLMENT, AFTER_WINDOW)
    ]
    ADD_REFUSALS.of((experiment.id, reason, now) for reason in reasons)
    COUNT_REFUSALS.of(
        (experiment.id, reason, number)
        for reason, number in sorted(Counter(reasons).items())
    )


ADD_REFUSALS = Insert([Refusal.experiment, Refusal.reason, Refusal.received_at])

COUNT_REFUSALS = Insert(
    [RefusalTally.experiment, RefusalTally.reason, RefusalTally.count],
    lambda insert: insert.on_conflict(
        conflict_target=[RefusalTally.experiment, RefusalTally.reason],
        update=added([RefusalTally.count]),
    ),
)
