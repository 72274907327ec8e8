"""Where users and conversions are booked, each with its tally, in one commit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from decimal import Context, Decimal, Inexact
from hashlib import sha256
from typing import Any, NamedTuple

from peewee import EXCLUDED, chunked

import assignment
import audience
from models import (
    CHUNK,
    DRAFT,
    MOST_METRICS,
    RUNNING,
    STOPPED,
    Assignment,
    BeforeEnrollment,
    Conflict,
    Conversion,
    Experiment,
    GroupShare,
    Invalid,
    InvalidState,
    Metric,
    NotEnrolled,
    Outcome,
    Override,
    Refusal,
    RefusalTally,
    Tally,
    TooManyMetrics,
    Variant,
    database,
    one_of,
    utcnow,
)
from paging import Listing, Page

NEW, EXISTING = "NEW_ASSIGNMENT", "EXISTING_ASSIGNMENT"
OVERRIDE, WINNER = "OVERRIDE", "WINNER"
ACCEPTED, DUPLICATE, REJECTED = "accepted", "duplicate", "rejected"
NOT_ENROLLED, BEFORE_ENROLLMENT = "NOT_ENROLLED", "BEFORE_ENROLLMENT"
CONFLICT, TOO_MANY_METRICS = "CONFLICT", "TOO_MANY_METRICS"
INVALID_STATE = "INVALID_STATE"
LEEWAY = timedelta(seconds=10)
MOST_PAIRS = 10_000  # of an event and an experiment that one call may book
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
        reason = _gate(experiment)(user)
        if reason is None:
            excluded = elsewhere(experiment, [user.user_id])
            reason = "EXCLUDED" if excluded else NOT_ENROLLED
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


class Seat(NamedTuple):
    """The row of somebody who is enrolled."""

    id: int
    user_id: str
    variant: str
    assigned_at: datetime


def _seat_decision(experiment: Experiment, seat: Seat | Assignment) -> Decision:
    variant = experiment.variant(seat.variant)
    return Decision(experiment.id, seat.user_id, EXISTING, variant, seat.assigned_at)


def seats(experiment: Experiment, user_ids: Iterable[str]) -> dict[str, Seat]:
    """Return the rows of those of these users who are enrolled."""
    columns = [getattr(Assignment, name) for name in Seat._fields]
    found = {}
    for some in chunked(dict.fromkeys(user_ids), CHUNK):
        rows: Any = Assignment.select(*columns).where(
            Assignment.experiment == experiment.id, one_of(Assignment.user_id, some)
        )
        for row in rows.tuples():
            seat = Seat(*row)
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
    enrolment that comes later can undo. So is whether a user is in another experiment
    of the exclusion group: an import may have put them there, whatever the hash says.
    """
    if not dealt:
        return {}
    written: set[str] = set()
    with database.atomic():
        now = utcnow()
        current = Experiment.get_by_id(experiment.id)
        closed = _closed(current)
        excluded = elsewhere(current, dealt)
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
                if user_id not in excluded
            ]
            written = write_seats(rows)
    decided = {
        one: Decision(experiment.id, one, NEW, dealt[one], now) for one in written
    }
    others = [user_id for user_id in dealt if user_id not in written]
    if others:
        for one in others:
            reason = closed or ("EXCLUDED" if one in excluded else NEW)
            decided[one] = Decision(current.id, one, reason)
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


def assignments_page(experiment: Experiment, page: Page) -> Listing:
    """Return a page of who is enrolled, newest first."""
    query = Assignment.select().where(Assignment.experiment == experiment.id)
    found = page.of(
        lambda _: query,
        (Assignment.id,),
        ("assignments", experiment.id),
        total=lambda: experiment.participants,
    )
    seats = [_seat_decision(experiment, seat) for seat in found.rows]
    return found._replace(rows=seats)


def assignments_of(user_id: str, page: Page) -> Listing:
    """Return a page of the experiments that a user is in, newest first."""
    query = (
        Assignment.select(
            Assignment.id,
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
        .namedtuples()
    )
    return page.of(lambda _: query, (Assignment.id,), ("memberships", user_id))


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
    is_forced: bool = False
    """Whether it is refused because an override forces the user's variant."""


class Booking(NamedTuple):
    """One conversion as it is written and counted."""

    experiment_id: str
    assignment_id: int
    variant: str
    metric: str
    value: Decimal | None
    occurred_at: datetime
    received_at: datetime
    idempotency_key: str | None


class Total(NamedTuple):
    """What one participant did in one metric; *total* is None without any value."""

    events: int = 0
    total: Decimal | None = None


def refuse_rejected(receipt: Receipt) -> None:
    """Raise what a single conversion that was rejected is answered with.

    NotEnrolled, BeforeEnrollment, TooManyMetrics, or Conflict where its idempotency
    key belongs to another body. The first two are counted as refused all the same.
    """
    if receipt.is_forced:
        told = "A variant is forced for the user, who is not counted meanwhile."
        raise NotEnrolled(told, "override", ["enrolled"])
    if receipt.reason == NOT_ENROLLED:
        told = f"The user is not enrolled in {receipt.experiment_id}."
        raise NotEnrolled(told, "not enrolled", ["enrolled"])
    if receipt.reason == BEFORE_ENROLLMENT:
        told = "The conversion happened before the enrolment."
        raise BeforeEnrollment(told, receipt.occurred_at)
    if receipt.reason == TOO_MANY_METRICS:
        raise TooManyMetrics(receipt.metric)
    if receipt.status == REJECTED:
        told = "The idempotencyKey was used with another body."
        raise Conflict(told, receipt.idempotency_key)


def credit(events: Sequence[Event]) -> list[list[Receipt]]:
    """Book each event in every experiment that its user is in.

    Return, for each event in order, one receipt an experiment, oldest enrolment
    first. Experiments that take no conversions any more answer INVALID_STATE. Raise
    Invalid, before anything is written, where these are more than MOST_PAIRS.
    """
    memberships = _memberships(events)
    places: dict[str, list[int]] = {}
    for place, event in enumerate(events):
        for experiment_id in memberships.get(event.user_id, ()):
            places.setdefault(experiment_id, []).append(place)
    booked: dict[tuple[int, str], Receipt] = {}
    with database.atomic():
        for experiment_id, some in places.items():
            experiment = Experiment.get_by_id(experiment_id)
            receipts = _record(experiment, [events[place] for place in some])
            for place, receipt in zip(some, receipts, strict=True):
                booked[place, experiment_id] = receipt
    return [
        [booked[place, id] for id in memberships.get(event.user_id, ())]
        for place, event in enumerate(events)
    ]


def _memberships(events: Sequence[Event]) -> dict[str, list[str]]:
    """Return the experiments of the users of these events, oldest enrolment first.

    Raise Invalid where they make more than MOST_PAIRS with the events. This is read
    before the write lock is taken, and no further than the bound.
    """
    times = Counter(event.user_id for event in events)
    pairs = 0
    found: dict[str, list[str]] = {}
    for some in chunked(times, CHUNK):
        rows: Any = (
            Assignment.select(Assignment.id, Assignment.user_id, Assignment.experiment)
            .where(one_of(Assignment.user_id, some))
            .limit(MOST_PAIRS + 1 - pairs)
        )
        for _, user_id, experiment_id in sorted(rows.tuples()):
            pairs += times[user_id]
            found.setdefault(user_id, []).append(experiment_id)
        if pairs > MOST_PAIRS:
            raise Invalid(
                "events",
                f"A call books at most {MOST_PAIRS:,} pairs of an event and an "
                "experiment that its user is in; these events make more. Send fewer "
                "at once.",
            )
    return found


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
            _receipt(experiment, event, now, REJECTED, reason=INVALID_STATE)
            for event in events
        ]
    user_ids = [event.user_id for event in events]
    enrolled = seats(experiment, user_ids)
    # Behaviour under an override is not evidence about the assigned variant.
    forced = _overridden(experiment, user_ids)
    for user_id in forced:
        enrolled.pop(user_id, None)
    known = _known(experiment, [event.idempotency_key for event in events])
    metrics = Metrics(
        experiment, [event.metric or experiment.primary_metric for event in events]
    )
    counted: list[Booking] = []
    receipts = []
    for event in events:
        seat = enrolled.get(event.user_id)
        receipt = _receipt(experiment, event, now, ACCEPTED, seat)
        earlier = known.get(event.idempotency_key)
        if seat is None:
            receipt = receipt._replace(
                status=REJECTED,
                reason=NOT_ENROLLED,
                is_forced=event.user_id in forced,
            )
        elif earlier is not None:
            if _same(earlier, seat, event, receipt):
                told = {"status": DUPLICATE, "occurred_at": earlier.occurred_at}
            else:
                told = {"status": REJECTED, "reason": CONFLICT}
            receipt = receipt._replace(**told)
        elif receipt.occurred_at < seat.assigned_at:
            receipt = receipt._replace(status=REJECTED, reason=BEFORE_ENROLLMENT)
        elif not metrics.admit(receipt.metric):
            receipt = receipt._replace(status=REJECTED, reason=TOO_MANY_METRICS)
        else:
            row = Booking(
                experiment.id,
                seat.id,
                seat.variant,
                receipt.metric,
                receipt.value,
                receipt.occurred_at,
                now,
                event.idempotency_key,
            )
            counted.append(row)
            if event.idempotency_key is not None:
                known[event.idempotency_key] = row
        receipts.append(receipt)
    metrics.write()
    _write_bookings(experiment, counted)
    _write_refusals(experiment, receipts, now)
    return receipts


def _receipt(
    experiment: Experiment,
    event: Event,
    now: datetime,
    status: str,
    seat: Seat | None = None,
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


def _known(experiment: Experiment, keys: Iterable[str | None]) -> dict[str | None, Any]:
    """Return the conversions that these idempotency keys name already."""
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


def _same(earlier: Any, seat: Seat, event: Event, receipt: Receipt) -> bool:
    """Tell whether an event says what the one with its key said.

    Times are compared as they are booked: a repetition without an occurredAt
    occurred when the first was received, and one shortly before the enrolment at
    the enrolment; see _occurred.
    """
    return (
        earlier.assignment_id == seat.id
        and earlier.metric == receipt.metric
        and earlier.value == event.value
        and earlier.occurred_at == _occurred(event, earlier.received_at, seat)
    )


def occurred(event_time: datetime, assigned_at: datetime) -> datetime | None:
    """Return the time as of which an event counts; None where it is too early.

    Clocks differ, and many programs cut a time to the second: an event up to LEEWAY
    before its user's enrolment counts as of the enrolment.
    """
    if event_time < assigned_at - LEEWAY:
        return None
    return max(event_time, assigned_at)


def _occurred(event: Event, received_at: datetime, seat: Seat | None) -> datetime:
    """Return when an event occurred: when it was received, where it does not say.

    For an enrolled user this is the time as of which the event counts, or, where
    that is too early, the event's own time.
    """
    if seat is None:
        return event.occurred_at or received_at
    if event.occurred_at is None:  # not before the enrolment: a clock may be set back
        return max(received_at, seat.assigned_at)
    return occurred(event.occurred_at, seat.assigned_at) or event.occurred_at


class Metrics:
    """The metrics of an experiment: those that it has, and room for more.

    To be used within a transaction.
    """

    def __init__(self, experiment: Experiment, names: Iterable[str]) -> None:
        """Look up *names*; no others can be asked for."""
        self._experiment = experiment
        self._admitted = Metric.of(experiment.id, dict.fromkeys(names))
        self._taken: int | None = None
        self._numbers: dict[str, int] = {}

    def admit(self, name: str) -> bool:
        """Return whether the experiment has this metric, or has room for it.

        The primary metric is always admitted: a thousand others must not be able
        to keep the experiment from ever being decided.
        """
        if name in self._admitted:
            return True
        if self._taken is None:
            self._taken = Metric.taken(self._experiment.id)
        if self._taken < MOST_METRICS:
            self._taken += 1
            self._numbers[name] = self._taken
        elif name == self._experiment.primary_metric:
            self._numbers[name] = 0
        else:
            return False
        self._admitted.add(name)
        return True

    def write(self) -> None:
        """Write the metrics that were admitted now."""
        Metric.write_rows(
            [Metric.experiment, Metric.name, Metric.number],
            [(self._experiment.id, *new) for new in self._numbers.items()],
        )


def write_conversions(experiment: Experiment, rows: Sequence[Booking]) -> None:
    """Write conversions with the totals and the tallies that count them.

    To be called within a transaction, with rows whose keys are new. Raise
    TooManyMetrics, having written nothing, where the experiment has no room for one
    of their metrics.
    """
    metrics = Metrics(experiment, [row.metric for row in rows])
    for row in rows:
        if not metrics.admit(row.metric):
            raise TooManyMetrics(row.metric)
    metrics.write()
    _write_bookings(experiment, rows)


def _write_bookings(experiment: Experiment, rows: Sequence[Booking]) -> None:
    """Write conversions whose metrics are there, with what counts them.

    Only the totals and tallies that these rows change are read and written.
    """
    Conversion.write_rows(
        [
            Conversion.experiment,
            Conversion.assignment,
            Conversion.metric,
            Conversion.value,
            Conversion.occurred_at,
            Conversion.received_at,
            Conversion.idempotency_key,
        ],
        [(row.experiment_id, row.assignment_id, *row[3:]) for row in rows],
    )
    totals, tallies = _totals(rows), _tallies(experiment, rows)
    for row in rows:
        count(row, totals, tallies)
    Outcome.write_rows(
        [Outcome.assignment, Outcome.metric, Outcome.events, Outcome.total],
        [(*key, *total) for key, total in totals.items()],
        over=[Outcome.assignment, Outcome.metric],
    )
    Tally.write_rows(
        list(Tally._meta.sorted_fields),
        [
            [row.__data__[field.name] for field in Tally._meta.sorted_fields]
            for row in tallies.values()
        ],
        over=[Tally.experiment, Tally.variant, Tally.metric],
    )


def _totals(rows: Iterable[Booking]) -> dict[tuple[int, str], Total]:
    """Return the totals so far of the participants in the metrics of these rows."""
    participants: dict[str, set[int]] = {}
    for row in rows:
        participants.setdefault(row.metric, set()).add(row.assignment_id)
    found = {}
    for metric, ids in participants.items():
        for some in chunked(ids, CHUNK):
            stored: Any = Outcome.select(
                Outcome.assignment, Outcome.events, Outcome.total
            ).where(one_of(Outcome.assignment, some), Outcome.metric == metric)
            for id, *total in stored.tuples():
                found[id, metric] = Total(*total)
    return found


def _tallies(
    experiment: Experiment, rows: Iterable[Booking]
) -> dict[tuple[str, str], Tally]:
    """Return the tallies so far of the variants in the metrics of these rows."""
    variants = {row.variant for row in rows}
    found = {}
    for some in chunked({row.metric for row in rows}, CHUNK):
        for tally in Tally.select().where(
            Tally.experiment == experiment.id,
            Tally.variant.in_(variants),
            one_of(Tally.metric, some),
        ):
            found[tally.variant, tally.metric] = tally
    return found


def count(
    row: Any,
    totals: dict[tuple[int, str], Total],
    tallies: dict[tuple[str, str], Tally],
) -> None:
    """Add one conversion to its participant's total and to its variant's tally.

    The order in which conversions are added changes nothing.
    """
    before = totals.get((row.assignment_id, row.metric), Total())
    tally = tallies.get((row.variant, row.metric))
    if tally is None:
        tally = tallies[row.variant, row.metric] = Tally(
            experiment=row.experiment_id,
            variant=row.variant,
            metric=row.metric,
            users=0,
            events=0,
            value_users=0,
            value_sum=Decimal(0),
            value_sum_squares=Decimal(0),
            first_at=row.occurred_at,
            last_at=row.occurred_at,
        )
    tally.events += 1
    tally.users += before.events == 0
    if row.occurred_at < tally.first_at:
        tally.first_at = row.occurred_at
    if row.occurred_at > tally.last_at:
        tally.last_at = row.occurred_at
    total = before.total
    if row.value is not None:
        start = before.total or Decimal(0)
        total = exact.add(start, row.value)
        tally.value_users += before.total is None
        tally.value_sum = exact.add(tally.value_sum, row.value)
        grown = exact.subtract(
            exact.multiply(total, total), exact.multiply(start, start)
        )
        tally.value_sum_squares = exact.add(tally.value_sum_squares, grown)
    totals[row.assignment_id, row.metric] = Total(before.events + 1, total)


# ----------------------------------------------------------------------------
# Imports
# ----------------------------------------------------------------------------


class Line(NamedTuple):
    """One line of an import: an assignment, and the conversion it may carry."""

    user_id: str
    variant: str
    assigned_at: datetime
    event: Event | None
    number: int | None = None
    """Of an event without a key of its own: 1 for the first that says the same."""


def content_key(
    user_id: str, metric: str, occurred_at: datetime, value: Decimal | None
) -> str:
    """Return the key of an imported event that has none: a digest of what it says."""
    number = None
    if value is not None:
        number = format(abs(value) if value == 0 else value, "f")
        if "." in number:
            number = number.rstrip("0").rstrip(".")
    said = repr((user_id, metric, occurred_at.isoformat(), number))
    return f"{IMPORTED}{sha256(said.encode()).hexdigest()[:40]}"


IMPORTED = "import:"


def is_content_key(key: str | None, user_id: str, *said: Any) -> bool:
    """Tell whether an import made this key for an event that says this.

    The arguments after the key are those of `content_key`. The first event that says
    so has that key, the second one `:2` behind it, and so on.
    """
    if key is None or not key.startswith(IMPORTED):
        return False
    content, separator, number = key[len(IMPORTED) :].partition(":")
    return IMPORTED + content == content_key(user_id, *said) and (
        not separator or (number.isascii() and number.isdecimal())
    )


def book(experiment: Experiment, lines: Sequence[Line]) -> tuple[int, int]:
    """Write imported lines in one transaction; what is there already stays.

    Return how many users were enrolled and how many conversions were counted. An
    event is there already where its key is. One without a key of its own, the n-th
    of its file that says the same, is there where n such events are stored, whether
    by the API without a key or by an import. So lines must come in their order.
    """
    with database.atomic():
        now = utcnow()
        refuse_unless_open(Experiment.get_by_id(experiment.id))
        first: dict[str, Line] = {}
        for line in lines:
            first.setdefault(line.user_id, line)
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
        participants = seats(experiment, first)
        if elsewhere(experiment, enrolled) or any(
            participants[line.user_id].variant != line.variant for line in lines
        ):
            raise Conflict(
                "A user of the file was enrolled elsewhere after the file was checked; "
                "run the import again.",
                experiment.id,
            )
        events = {_key(line): line for line in lines if line.event}
        known = _known(experiment, events)
        stored = _anonymous(
            {
                participants[line.user_id]
                for line in events.values()
                if line.number and line.user_id not in enrolled
            },
            {line.event.occurred_at for line in events.values() if line.event},
        )
        rows = []
        for key, line in events.items():
            row = _booking(experiment, participants[line.user_id], line, key, now)
            moment = line.event and line.event.occurred_at  # as the line has it
            said = row.assignment_id, row.metric, moment, row.value
            there = line.number is not None and line.number <= stored[said]
            if not there and key not in known:
                rows.append(row)
        write_conversions(experiment, rows)
    return len(enrolled), len(rows)


def _key(line: Line) -> str | None:
    """Return the idempotency key under which the event of a line is stored."""
    key = line.event.idempotency_key if line.event else None
    return key if line.number in (None, 1) else f"{key}:{line.number}"


def _booking(
    experiment: Experiment, seat: Seat, line: Line, key: str | None, now: datetime
) -> Booking:
    """Return the booking of a line's event, as of the enrolment where it is before."""
    event = line.event or Event(line.user_id)
    return Booking(
        experiment.id,
        seat.id,
        seat.variant,
        event.metric or experiment.primary_metric,
        event.value,
        _occurred(event, now, seat),
        now,
        key,
    )


def _anonymous(
    participants: Iterable[Seat], times: Iterable[datetime | None]
) -> Counter[tuple[Any, ...]]:
    """Count the events of these participants and times without a key of their own.

    The key of a count is what the events say. Only these times are read: a user may
    have any number of events.
    """
    of = {seat.id: seat.user_id for seat in participants}
    found: Counter[tuple[Any, ...]] = Counter()
    for ids in chunked(of, CHUNK):
        for moments in chunked(times, CHUNK):
            rows: Any = Conversion.select(
                Conversion.assignment,
                Conversion.metric,
                Conversion.occurred_at,
                Conversion.value,
                Conversion.idempotency_key,
            ).where(Conversion.assignment.in_(ids), Conversion.occurred_at.in_(moments))
            for id, *said, key in rows.tuples().iterator():
                if key is None or is_content_key(key, of[id], *said):
                    found.update([(id, *said)])
    return found


def elsewhere(experiment: Experiment, user_ids: Iterable[str]) -> set[str]:
    """Return which users are in another experiment that shares the exclusion group."""
    others = GroupShare.others(experiment)
    found: set[str] = set()
    if others:
        for some in chunked(user_ids, CHUNK):
            rows = Assignment.select(Assignment.user_id).where(
                Assignment.experiment.in_(others), Assignment.user_id.in_(some)
            )
            found.update(row.user_id for row in rows)
    return found


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
    Refusal.write_rows(
        [Refusal.experiment, Refusal.reason, Refusal.received_at],
        [(experiment.id, reason, now) for reason in reasons],
    )
    for reason, number in Counter(reasons).items():
        RefusalTally.insert(
            experiment=experiment.id, reason=reason, count=number
        ).on_conflict(
            conflict_target=[RefusalTally.experiment, RefusalTally.reason],
            update={RefusalTally.count: RefusalTally.count + EXCLUDED.count},
        ).execute()
