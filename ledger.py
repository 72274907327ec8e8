"""Where users and conversions are booked, each with its tally, in one commit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from decimal import Context, Decimal, Inexact
from typing import Any, NamedTuple

from peewee import EXCLUDED, chunked

import assignment
import audience
from models import (
    DRAFT,
    RUNNING,
    STOPPED,
    Assignment,
    BeforeEnrollment,
    Conflict,
    Conversion,
    Experiment,
    GroupShare,
    InvalidState,
    NotEnrolled,
    Outcome,
    Override,
    Refusal,
    RefusalTally,
    Tally,
    Variant,
    database,
    utcnow,
)

CHUNK = 500  # rows a statement: far below any engine's limit of parameters
NEW, EXISTING = "NEW_ASSIGNMENT", "EXISTING_ASSIGNMENT"
OVERRIDE, WINNER = "OVERRIDE", "WINNER"
ACCEPTED, DUPLICATE, REJECTED = "accepted", "duplicate", "rejected"
NOT_ENROLLED, BEFORE_ENROLLMENT = "NOT_ENROLLED", "BEFORE_ENROLLMENT"
# Room for the square of any total; what would not fit raises and is not rounded.
exact = Context(prec=1_000, traps=[Inexact])


# ----------------------------------------------------------------------------
# Enrolment
# ----------------------------------------------------------------------------


class User(NamedTuple):
    """Somebody who asks, and what the caller knows of them."""

    user_id: str
    attributes: dict[str, Any] = {}


class Decision(NamedTuple):
    """Which variant a user gets, if any, and why."""

    experiment_id: str
    user_id: str
    reason: str
    variant: Variant | None = None
    assigned_at: datetime | None = None


def decision(experiment: Experiment, user_id: str) -> Decision | None:
    """Return what a user is given already; None where that is nothing."""
    return _settled(experiment, [user_id]).get(user_id)


def enrol(experiment: Experiment, users: Sequence[User]) -> list[Decision]:
    """Return a decision for each user, in order, enrolling those who are new.

    The first of these that has an answer: an override, the winner, the row that is
    there (sticky), the state, the audience, the exclusion group or else the traffic,
    the split. A "no" is never stored. All rows are written, or none.
    """
    decided = _settled(experiment, [user.user_id for user in users])
    refusal = _gate(experiment, len(users))
    splits = [variant.split for variant in experiment.variants]
    dealt: dict[str, Variant] = {}
    refused: dict[int, str] = {}
    for place, user in enumerate(users):
        if user.user_id in decided or user.user_id in dealt:
            continue
        if reason := refusal(user):
            refused[place] = reason
        else:
            position = assignment.dealt(experiment.id, user.user_id, splits)
            dealt[user.user_id] = experiment.variants[position]
    decided |= _seated(experiment, dealt)

    answers = []
    for place, user in enumerate(users):
        if place in refused:
            no = Decision(experiment.id, user.user_id, refused[place])
            answers.append(no)
            continue
        answers.append(decided[user.user_id])
        if answers[-1].reason == NEW:
            decided[user.user_id] = answers[-1]._replace(reason=EXISTING)
    return answers


def _gate(experiment: Experiment, asks: int = 1) -> Callable[[User], str | None]:
    """Return what says why somebody new is not let in, or None where they are."""
    closed = _closed(experiment)
    rules, group = experiment.audience_rules, experiment.exclusion_group
    if rules and asks > 1 and not closed:
        rules = audience.indexed(rules)
    share = GroupShare.of(experiment) if group and not closed else []

    def refusal(user: User) -> str | None:
        if closed:
            return closed
        if rules and not audience.matches(rules, user.user_id, user.attributes):
            return "NOT_IN_AUDIENCE"
        if group:
            inside = assignment.in_share(group, user.user_id, share)
            return None if inside else "EXCLUDED"
        traffic = experiment.traffic
        inside = assignment.in_traffic(experiment.id, user.user_id, traffic)
        return None if inside else "HELD_OUT"

    return refusal


class Explanation(NamedTuple):
    """A decision with all that anyone needs to come to it again."""

    decision: Decision
    receipt: assignment.Receipt
    rules: dict[str, Any] | None
    """The frozen rules, each with its truth; None where there are none."""


def explained(experiment: Experiment, user: User) -> Explanation:
    """Return what a user is given or would be told now, and why, enrolling nobody.

    Who would be let in is told NOT_ENROLLED: only asking enrols. The attributes
    that a row was once let in by are not kept, so the rules are asked of those
    given.
    """
    given = decision(experiment, user.user_id)
    if given is None:
        reason = _gate(experiment)(user) or NOT_ENROLLED
        given = Decision(experiment.id, user.user_id, reason)
    rules = experiment.audience_rules
    return Explanation(
        given,
        assignment.receipt(
            experiment.id,
            user.user_id,
            [variant.split for variant in experiment.variants],
            experiment.traffic,
            experiment.exclusion_group,
            GroupShare.of(experiment),
        ),
        audience.trace(rules, user.user_id, user.attributes) if rules else None,
    )


def _settled(experiment: Experiment, user_ids: Sequence[str]) -> dict[str, Decision]:
    """Return the decisions that no rule can change any more."""
    forced = _overridden(experiment, user_ids)
    if winner := experiment.winner:
        settled = {
            one: Decision(experiment.id, one, WINNER, winner) for one in user_ids
        }
    else:
        settled = {
            seat.user_id: _seat_decision(experiment, seat)
            for seat in seats(experiment, user_ids).values()
        }
    for user_id, variant in forced.items():
        chosen = experiment.variant(variant)
        settled[user_id] = Decision(experiment.id, user_id, OVERRIDE, chosen)
    return settled


def _overridden(experiment: Experiment, user_ids: Iterable[str]) -> dict[str, str]:
    """Return the forced variants of those of these users who have one."""
    found: dict[str, str] = {}
    for some in chunked(dict.fromkeys(user_ids), CHUNK):
        found |= Override.of(experiment.id, some)
    return found


def _seat_decision(experiment: Experiment, seat: Assignment) -> Decision:
    variant = experiment.variant(seat.variant)
    return Decision(experiment.id, seat.user_id, EXISTING, variant, seat.assigned_at)


def seats(experiment: Experiment, user_ids: Iterable[str]) -> dict[str, Assignment]:
    """Return the rows of those of these users who are enrolled."""
    found = {}
    for some in chunked(dict.fromkeys(user_ids), CHUNK):
        for seat in Assignment.select().where(
            Assignment.experiment == experiment.id, Assignment.user_id.in_(some)
        ):
            found[seat.user_id] = seat
    return found


def _closed(experiment: Experiment) -> str | None:
    """Return why nobody is enrolled now, or None while enrolment is open."""
    if experiment.archived_at:
        return "ARCHIVED"
    return {DRAFT: "NOT_STARTED", RUNNING: None}.get(
        experiment.state, "ENROLLMENT_CLOSED"
    )


def _seated(experiment: Experiment, dealt: dict[str, Variant]) -> dict[str, Decision]:
    """Write a row for each user dealt a variant, unless enrolment has closed.

    The state is asked again under the write lock: what a stop has answered, no
    enrolment that comes later can undo.
    """
    if not dealt:
        return {}
    written: set[str] = set()
    with database.atomic():
        now = utcnow()
        current = Experiment.get_by_id(experiment.id)
        closed = _closed(current)
        if not closed:
            rows = [
                {
                    "experiment": experiment.id,
                    "user_id": user_id,
                    "variant": variant.key,
                    "assigned_at": now,
                    "received_at": now,
                }
                for user_id, variant in dealt.items()
            ]
            written = write_seats(rows)
    decided = {
        one: Decision(experiment.id, one, NEW, dealt[one], now) for one in written
    }
    others = [user_id for user_id in dealt if user_id not in written]
    if others:
        decided |= {one: Decision(current.id, one, closed or NEW) for one in others}
        decided |= _settled(current, others)
    return decided


def write_seats(rows: list[dict[str, Any]]) -> set[str]:
    """Write assignments of one experiment with their tally; return the new users.

    To be called within a transaction. Who is enrolled already stays as they are.
    """
    variants: dict[str, str] = {row["user_id"]: row["variant"] for row in rows}
    written: set[str] = set()
    for some in chunked(rows, CHUNK):
        query = (
            Assignment.insert_many(some)
            .on_conflict(
                action="NOTHING",
                conflict_target=[Assignment.experiment, Assignment.user_id],
            )
            .returning(Assignment.user_id)
        )
        written.update(row.user_id for row in query.execute())
    for key, number in Counter(variants[user_id] for user_id in written).items():
        Variant.update(participants=Variant.participants + number).where(
            Variant.experiment == rows[0]["experiment"], Variant.key == key
        ).execute()
    return written


def assignments_page(
    experiment: Experiment, number: int, limit: int
) -> tuple[list[Decision], int]:
    """Return a page of who is enrolled, newest first, and how many there are."""
    found = (
        Assignment.select()
        .where(Assignment.experiment == experiment.id)
        .order_by(Assignment.id.desc())
        .limit(limit)
        .offset((number - 1) * limit)
    )
    rows = [_seat_decision(experiment, seat) for seat in found]
    return rows, experiment.participants


def assignments_of(
    user_id: str, number: int, limit: int
) -> tuple[list[dict[str, Any]], int]:
    """Return a page of the experiments that a user is in, newest first."""
    found = (
        Assignment.select(
            Assignment.experiment.alias("experiment_id"),
            Experiment.name.alias("experiment_name"),
            Experiment.key.alias("experiment_key"),
            Variant.key.alias("variant_id"),
            Variant.name.alias("variant_name"),
            Variant.flow_id,
            Assignment.assigned_at,
        )
        .join(Experiment)
        .join(
            Variant,
            on=(Variant.experiment == Assignment.experiment)
            & (Variant.key == Assignment.variant),
        )
        .where(Assignment.user_id == user_id)
    )
    page = found.order_by(Assignment.id.desc()).limit(limit)
    rows: list[Any] = list(page.offset((number - 1) * limit).dicts())
    return rows, found.count()


# ----------------------------------------------------------------------------
# Conversions
# ----------------------------------------------------------------------------


class Event(NamedTuple):
    """Something that a user did; what is None, the experiment or the clock says."""

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


def refuse_rejected(receipt: Receipt) -> None:
    """Raise what a single conversion that was rejected is answered with.

    NotEnrolled, BeforeEnrollment, or Conflict where its idempotency key belongs to
    another body; the refusal is on the books all the same.
    """
    if receipt.reason == NOT_ENROLLED:
        told = f"The user is not enrolled in {receipt.experiment_id}."
        raise NotEnrolled(told, "not enrolled", ["enrolled"])
    if receipt.reason == BEFORE_ENROLLMENT:
        told = "The conversion happened before the enrolment."
        raise BeforeEnrollment(told, str(receipt.occurred_at))
    if receipt.status == REJECTED:
        told = "The idempotencyKey was used with another body."
        raise Conflict(told, str(receipt.idempotency_key))


def credit(events: Sequence[Event]) -> list[list[Receipt]]:
    """Book each event in every experiment that its user is in.

    Return, for each event in order, one receipt an experiment, oldest enrolment
    first. Experiments that take no conversions any more answer INVALID_STATE.
    """
    receipts: list[list[Receipt]] = [[] for _ in events]
    with database.atomic():
        places: dict[str, list[int]] = {}
        for place, event in enumerate(events):
            places.setdefault(event.user_id, []).append(place)
        wanted: dict[str, list[int]] = {}
        for some in chunked(places, CHUNK):
            for seat in (
                Assignment.select(Assignment.experiment, Assignment.user_id)
                .where(Assignment.user_id.in_(some))
                .order_by(Assignment.id)
            ):
                wanted.setdefault(seat.experiment_id, []).extend(places[seat.user_id])
        for experiment_id, rows in wanted.items():
            experiment = Experiment.get_by_id(experiment_id)
            rows.sort()
            mine = [events[place] for place in rows]
            for place, receipt in zip(rows, _record(experiment, mine), strict=True):
                receipts[place].append(receipt)
    return receipts


def record(experiment: Experiment, events: Sequence[Event]) -> list[Receipt]:
    """Book events in one experiment, in one transaction; return their receipts.

    Raise InvalidState where the experiment takes no conversions: in draft, when
    completed, when archived. An event is counted, a duplicate, or refused, and
    what is refused is counted as refused.
    """
    with database.atomic():
        current = Experiment.get_by_id(experiment.id)
        refuse_unless_open(current)
        return _record(current, events)


def _record(experiment: Experiment, events: Sequence[Event]) -> list[Receipt]:
    now = utcnow()
    if experiment.archived_at or experiment.state not in (RUNNING, STOPPED):
        return [
            _receipt(experiment, event, now, REJECTED, reason="INVALID_STATE")
            for event in events
        ]
    user_ids = [event.user_id for event in events]
    enrolled = seats(experiment, user_ids)
    # What a forced variant makes a user do says nothing about the one dealt.
    for user_id in _overridden(experiment, user_ids):
        enrolled.pop(user_id, None)
    known = _known(experiment, events)
    counted: list[Conversion] = []
    receipts = []
    for event in events:
        seat = enrolled.get(event.user_id)
        receipt = _receipt(experiment, event, now, ACCEPTED, seat)
        earlier = known.get(event.idempotency_key)
        if seat is None:
            receipt = receipt._replace(status=REJECTED, reason=NOT_ENROLLED)
        elif earlier is not None:
            if _same(earlier, seat, event, receipt):
                told = {"status": DUPLICATE, "occurred_at": earlier.occurred_at}
            else:
                told = {"status": REJECTED, "reason": "CONFLICT"}
            receipt = receipt._replace(**told)
        elif receipt.occurred_at < seat.assigned_at:
            receipt = receipt._replace(status=REJECTED, reason=BEFORE_ENROLLMENT)
        else:
            row = Conversion(
                experiment=experiment.id,
                assignment=seat,
                metric=receipt.metric,
                value=receipt.value,
                occurred_at=receipt.occurred_at,
                received_at=now,
                idempotency_key=event.idempotency_key,
            )
            counted.append(row)
            if event.idempotency_key is not None:
                known[event.idempotency_key] = row
        receipts.append(receipt)
    write_conversions(experiment, counted)
    _write_refusals(experiment, receipts, now)
    return receipts


def _receipt(
    experiment: Experiment,
    event: Event,
    now: datetime,
    status: str,
    seat: Assignment | None = None,
    reason: str | None = None,
) -> Receipt:
    return Receipt(
        experiment.id,
        status,
        event.user_id,
        event.metric or experiment.primary_metric,
        event.value,
        _occurred(event, now, seat),
        event.idempotency_key,
        seat.variant if seat else None,
        reason,
    )


def _known(
    experiment: Experiment, events: Iterable[Event]
) -> dict[str | None, Conversion]:
    """Return the conversions that these events' idempotency keys name already."""
    keys = {event.idempotency_key for event in events if event.idempotency_key}
    return {
        row.idempotency_key: row
        for some in chunked(keys, CHUNK)
        for row in Conversion.select().where(
            Conversion.experiment == experiment.id,
            Conversion.idempotency_key.in_(some),
        )
    }


def _same(
    earlier: Conversion, seat: Assignment, event: Event, receipt: Receipt
) -> bool:
    """Tell whether an event says what the one with its key said.

    An event without an occurredAt occurred when it was received; see _occurred.
    """
    return (
        earlier.assignment_id == seat.id
        and earlier.metric == receipt.metric
        and earlier.value == event.value
        and earlier.occurred_at == _occurred(event, earlier.received_at, seat)
    )


def _occurred(event: Event, received_at: datetime, seat: Assignment | None) -> datetime:
    """Return when an event occurred: received, where it does not say.

    Never before the enrolment by that, for our own clock may have been set back.
    """
    if event.occurred_at is None and seat is not None:
        return max(received_at, seat.assigned_at)
    return event.occurred_at or received_at


def write_conversions(experiment: Experiment, rows: Sequence[Conversion]) -> None:
    """Write conversions with the totals and the tallies that count them.

    To be called within a transaction, with rows whose keys are new.
    """
    for some in chunked(rows, CHUNK):
        Conversion.insert_many([row.__data__ for row in some]).execute()
    outcomes = _outcomes(rows)
    tallies = {
        (row.variant, row.metric): row
        for row in Tally.select().where(Tally.experiment == experiment.id)
    }
    for row in rows:
        count(row, row.assignment.variant, outcomes, tallies)
    _upsert(Outcome, [Outcome.assignment, Outcome.metric], outcomes.values())
    _upsert(Tally, [Tally.experiment, Tally.variant, Tally.metric], tallies.values())


def _outcomes(rows: Iterable[Conversion]) -> dict[tuple[int, str], Outcome]:
    found = {}
    for some in chunked({row.assignment_id for row in rows}, CHUNK):
        for outcome in Outcome.select().where(Outcome.assignment.in_(some)):
            found[outcome.assignment_id, outcome.metric] = outcome
    return found


def count(
    row: Any,
    variant: str,
    outcomes: dict[tuple[int, str], Outcome],
    tallies: dict[tuple[str, str], Tally],
) -> None:
    """Add one conversion to its participant's total and to its variant's tally.

    The order in which conversions are added changes nothing.
    """
    mine = row.assignment_id, row.metric
    outcome = outcomes.get(mine)
    if outcome is None:
        outcome = Outcome(assignment=mine[0], metric=mine[1], events=0, total=None)
        outcomes[mine] = outcome
    its = variant, row.metric
    tally = tallies.get(its)
    if tally is None:
        tally = tallies[its] = Tally(
            experiment=row.experiment_id,
            variant=its[0],
            metric=its[1],
            users=0,
            events=0,
            value_users=0,
            value_sum=Decimal(0),
            value_sum_squares=Decimal(0),
            first_at=row.occurred_at,
            last_at=row.occurred_at,
        )
    tally.events += 1
    tally.users += outcome.events == 0
    tally.first_at = min(tally.first_at, row.occurred_at)
    tally.last_at = max(tally.last_at, row.occurred_at)
    outcome.events += 1
    if row.value is not None:
        before = outcome.total or Decimal(0)
        after = exact.add(before, row.value)
        tally.value_users += outcome.total is None
        tally.value_sum = exact.add(tally.value_sum, row.value)
        grown = exact.subtract(
            exact.multiply(after, after), exact.multiply(before, before)
        )
        tally.value_sum_squares = exact.add(tally.value_sum_squares, grown)
        outcome.total = after


def _upsert(table: Any, key: list[Any], rows: Iterable[Any]) -> None:
    """Write the rows that were touched over those with their key."""
    names = {field.name for field in key}
    kept = [field for name, field in table._meta.fields.items() if name not in names]
    for some in chunked((row for row in rows if row.is_dirty()), CHUNK):
        table.insert_many([row.__data__ for row in some]).on_conflict(
            conflict_target=key, preserve=kept
        ).execute()


class Line(NamedTuple):
    """One line of an import: an assignment, and the conversion it may carry."""

    user_id: str
    variant: str
    assigned_at: datetime
    event: Event | None


def book(experiment: Experiment, lines: Sequence[Line]) -> tuple[int, int]:
    """Write imported lines in one transaction; what is there already stays.

    Return how many users were enrolled and how many conversions were counted.
    Each event has an idempotency key, so that a second run adds nothing.
    """
    with database.atomic():
        now = utcnow()
        refuse_unless_open(Experiment.get_by_id(experiment.id))
        first = {line.user_id: line for line in reversed(lines)}
        enrolled = write_seats(
            [
                {
                    "experiment": experiment.id,
                    "user_id": line.user_id,
                    "variant": line.variant,
                    "assigned_at": line.assigned_at,
                    "received_at": now,
                }
                for line in first.values()
            ]
        )
        events = {
            line.event.idempotency_key: line.event for line in lines if line.event
        }
        known = _known(experiment, events.values())
        participants = seats(experiment, first)
        rows = [
            Conversion(
                experiment=experiment.id,
                assignment=participants[event.user_id],
                metric=event.metric or experiment.primary_metric,
                value=event.value,
                occurred_at=event.occurred_at,
                received_at=now,
                idempotency_key=key,
            )
            for key, event in events.items()
            if key not in known
        ]
        write_conversions(experiment, rows)
    return len(enrolled), len(rows)


def refuse_unless_open(experiment: Experiment) -> None:
    """Raise InvalidState where the experiment takes no conversions."""
    if experiment.archived_at or experiment.state not in (RUNNING, STOPPED):
        told = "archived" if experiment.archived_at else experiment.state
        raise InvalidState(told, [RUNNING, STOPPED])


def _write_refusals(
    experiment: Experiment, receipts: Iterable[Receipt], now: datetime
) -> None:
    reasons = [
        receipt.reason or DUPLICATE
        for receipt in receipts
        if receipt.status == DUPLICATE
        or receipt.reason in (NOT_ENROLLED, BEFORE_ENROLLMENT)
    ]
    for some in chunked(reasons, CHUNK):
        Refusal.insert_many(
            [
                {"experiment": experiment.id, "reason": reason, "received_at": now}
                for reason in some
            ]
        ).execute()
    for reason, number in Counter(reasons).items():
        RefusalTally.insert(
            experiment=experiment.id, reason=reason, count=number
        ).on_conflict(
            conflict_target=[RefusalTally.experiment, RefusalTally.reason],
            update={RefusalTally.count: RefusalTally.count + EXCLUDED.count},
        ).execute()
