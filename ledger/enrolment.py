"""Users enrolled: decided, written once, and read back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from peewee import chunked

from models import DRAFT, RUNNING, Assignment, Experiment, GroupShare, Override, Variant
from storage.columns import utcnow
from storage.engine import database
from storage.paging import Listing, Page
from storage.table import CHUNK, one_of
from targeting import assignment, audience

NEW, EXISTING = "NEW_ASSIGNMENT", "EXISTING_ASSIGNMENT"

OVERRIDE, WINNER = "OVERRIDE", "WINNER"
NOT_ENROLLED = "NOT_ENROLLED"


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
