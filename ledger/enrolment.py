"""Enrolment: each user's row, written once and read back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from operator import attrgetter
from types import MappingProxyType
from typing import Any, NamedTuple

from peewee import chunked

from ledger.sums import write_joined
from models import (
    Assignment,
    Experiment,
    GroupShare,
    Override,
    ParticipantTally,
    Variant,
)
from storage.columns import utcnow
from storage.engine import Overtaken, database
from storage.paging import Listing, Page
from storage.table import CHUNK, Insert, added, one_of
from targeting import decision
from targeting.decision import (
    EXCLUDED,
    EXISTING,
    NEW,
    NOT_ENROLLED,
    NOT_FOUND,
    OVERRIDE,
    Decision,
    Definition,
    Explanation,
    User,
)

NONE_KNOWN: Mapping[str, Decimal] = MappingProxyType({})


class Participant(NamedTuple):
    """The row of a user who is enrolled."""

    id: int
    user_id: str
    variant: str
    assigned_at: datetime
    covariate: Decimal | None = None


def enrol(
    definition: Definition,
    proposed: Sequence[Decision],
    covariates: Mapping[str, Decimal] = NONE_KNOWN,
) -> list[Decision]:
    """Return the decision for each user, in order, and write a row for the new ones.

    *proposed* is what `targeting.decision` says of users who are not enrolled. An
    override and, while there is no winner, an existing row come first. Only a new
    assignment is stored, with the user's covariate. All rows are written, or none.
    """
    stored = _stored(definition, [one.user_id for one in proposed])
    new = {
        one.user_id: one
        for one in proposed
        if one.reason == NEW and one.user_id not in stored
    }
    written = _assigned(definition, new, covariates)
    decisions = []
    for one in proposed:
        answer = stored.get(one.user_id)
        if answer is None and one.reason == NEW:
            answer = written[one.user_id]
            # If the same user is in this call again, they are enrolled by then.
            again = EXISTING if answer.reason == NEW else answer.reason
            stored[one.user_id] = answer._replace(reason=again)
        decisions.append(answer or one)
    return decisions


def enrol_in(names: Sequence[str], user: User) -> list[Decision]:
    """Return the decision of each of these experiments for a user, in order.

    An experiment is named by its id or its key. All rows are written, or none.
    """
    return enrol_pairs([(name, user) for name in names])


def enrol_pairs(pairs: Sequence[tuple[str, User]]) -> list[Decision]:
    """Return the decision of each pair of an experiment and a user, in order."""
    if not pairs:
        return []
    return database.obj.beside(lambda: [enrolled_in(*pair) for pair in pairs])


def enrolled_in(name: str, user: User) -> Decision:
    """Return the decision of the experiment of this name, enrolling who is new."""
    experiment = Experiment.named(name)
    if experiment is None:
        return Decision(name, user.user_id, NOT_FOUND)
    definition = experiment.definition
    proposed = decision.decide(definition, user, utcnow())
    return enrol(definition, [proposed])[0]


def stored_decision(
    definition: Definition, user_id: str, now: datetime
) -> Decision | None:
    """Return the decision that a user has already, or None."""
    stored = _stored(definition, [user_id]).get(user_id)
    if stored or not definition.winner:
        return stored
    return decision.decide_for_all(definition, user_id, now)


def explained(definition: Definition, explanation: Explanation) -> Explanation:
    """Return the explanation with what is stored about its user; enrol nobody.

    The rules are evaluated with the attributes given now: those that a user was
    enrolled with are not kept.
    """
    proposed = explanation.decision
    stored = _stored(definition, [proposed.user_id]).get(proposed.user_id)
    if stored:
        return explanation._replace(decision=stored)
    if proposed.reason == NOT_ENROLLED and elsewhere(
        definition.id, definition.group, [proposed.user_id]
    ):
        excluded = proposed._replace(reason=EXCLUDED)
        return explanation._replace(decision=excluded)
    return explanation


def _stored(definition: Definition, user_ids: Sequence[str]) -> dict[str, Decision]:
    """Return the decisions of those of these users who have an override or a row.

    Once there is a winner, rows decide nothing any more.
    """
    stored = {}
    if not definition.winner:
        for row in participants_among(definition.id, user_ids).values():
            stored[row.user_id] = _existing(definition, row)
    for user_id, variant in overrides_among(definition.id, user_ids).items():
        forced = definition.variant(variant)
        stored[user_id] = Decision(definition.id, user_id, OVERRIDE, forced)
    return stored


def _existing(definition: Definition, row: Participant | Assignment) -> Decision:
    variant = definition.variant(row.variant)
    return Decision(definition.id, row.user_id, EXISTING, variant, row.assigned_at)


def overrides_among(experiment_id: str, user_ids: Iterable[str]) -> dict[str, str]:
    """Return the forced variant of each of these users who has one."""
    forced: dict[str, str] = {}
    for some in chunked(dict.fromkeys(user_ids), CHUNK):
        forced |= Override.of(experiment_id, some)
    return forced


def participants_among(
    experiment_id: str, user_ids: Iterable[str]
) -> dict[str, Participant]:
    """Return the row of each of these users who is enrolled."""
    columns = [getattr(Assignment, name) for name in Participant._fields]
    enrolled = {}
    for some in chunked(dict.fromkeys(user_ids), CHUNK):
        rows: Any = Assignment.select(*columns).where(
            Assignment.experiment == experiment_id, one_of(Assignment.user_id, some)
        )
        for row in rows.tuples():
            participant = Participant(*row)
            enrolled[participant.user_id] = participant
    return enrolled


def _assigned(
    definition: Definition,
    new: Mapping[str, Decision],
    covariates: Mapping[str, Decimal],
) -> dict[str, Decision]:
    """Write a row for each new user, unless enrolment has closed; return what holds.

    Under the write lock the database is asked again. It may have changed since the
    definition was read: a stop was answered, another request enrolled the user, or an
    import put them in another experiment of the exclusion group.
    """
    if not new:
        return {}
    return database.obj.beside(lambda: _written(definition, new, covariates))


def _written(
    definition: Definition,
    new: Mapping[str, Decision],
    covariates: Mapping[str, Decimal],
) -> dict[str, Decision]:
    now = database.obj.now()
    current = Experiment.get_by_id(definition.id)
    excluded = elsewhere(definition.id, definition.group, new)
    written: set[str] = set()
    known = covariates if current.own_sums else NONE_KNOWN
    if current.is_open_at(now):
        rows = [
            NewAssignment(user_id, one.variant.id, now, known.get(user_id))
            for user_id, one in new.items()
            if one.variant and user_id not in excluded
        ]
        written = write_assignments(current, rows, now)
    decisions = {one: new[one]._replace(assigned_at=now) for one in written}
    others = [user_id for user_id in new if user_id not in written]
    if others:
        latest = current.definition
        for one in others:
            general = decision.decide_for_all(latest, one, now)
            decisions[one] = general or Decision(latest.id, one, EXCLUDED)
        decisions |= _stored(latest, others)
    return decisions


class NewAssignment(NamedTuple):
    """A row to write for a user who may not be enrolled yet."""

    user_id: str
    variant: str
    assigned_at: datetime
    covariate: Decimal | None = None


def write_assignments(
    experiment: Experiment, rows: Sequence[NewAssignment], now: datetime
) -> set[str]:
    """Write assignments of one experiment with their tally; return the new users.

    Call it within a transaction. A user who is enrolled already keeps their row. Raise
    Overtaken if another process has enrolled one of them meanwhile.
    """
    experiment_id = experiment.id
    present = participants_among(experiment_id, [row.user_id for row in rows])
    in_order = sorted(rows, key=attrgetter("user_id"))  # as every process has them
    new = {row.user_id: row for row in in_order if row.user_id not in present}
    rows_written = ENROL.of(
        (experiment_id, *row[:3], now, row.covariate) for row in new.values()
    )
    if rows_written < len(new):
        raise Overtaken
    count_participants((experiment_id, row.variant) for row in new.values())
    if experiment.own_sums:
        write_joined((experiment_id, *row[1:]) for row in new.values())
    return set(new)


ASSIGNED: list[Any] = [
    Assignment.experiment,
    Assignment.user_id,
    Assignment.variant,
    Assignment.assigned_at,
    Assignment.received_at,
    Assignment.covariate,
]


def unless_enrolled(insert: Any) -> Any:
    """Return the insert of assignments without those whose users have one already."""
    return insert.on_conflict(
        action="NOTHING", conflict_target=[Assignment.experiment, Assignment.user_id]
    )


ENROL = Insert(ASSIGNED, unless_enrolled)

PARTICIPANT_KEY: list[Any] = [
    ParticipantTally.experiment,
    ParticipantTally.variant,
    ParticipantTally.slot,
]

ADD_PARTICIPANTS = Insert(
    [*PARTICIPANT_KEY, ParticipantTally.participants],
    lambda insert: insert.on_conflict(
        conflict_target=PARTICIPANT_KEY, update=added([ParticipantTally.participants])
    ),
)


def count_participants(pairs: Iterable[tuple[str, str]]) -> None:
    """Add rows that were written, each a pair of the ids of experiment and variant."""
    slot = database.obj.slot
    ADD_PARTICIPANTS.stored(
        [(*pair, slot, number) for pair, number in sorted(Counter(pairs).items())]
    )


def assignments_page(experiment: Experiment, page: Page) -> Listing:
    """Return a page of the users who are enrolled, newest first."""
    query = Assignment.select().where(Assignment.experiment == experiment.id)
    listing = page.of(
        lambda _: query,
        (Assignment.id,),
        ("assignments", experiment.id),
        total=lambda: experiment.participants,
        moment=database.obj.stillness,
    )
    definition = experiment.definition
    return listing._replace(rows=[_existing(definition, row) for row in listing.rows])


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
    return page.of(
        lambda _: query,
        (Assignment.id,),
        ("memberships", user_id),
        moment=database.obj.stillness,
    )


def elsewhere(
    experiment_id: str, group: str | None, user_ids: Iterable[str]
) -> set[str]:
    """Return which users are in another experiment that shares the exclusion group."""
    others = GroupShare.others(experiment_id, group)
    enrolled: set[str] = set()
    if others:
        for some in chunked(user_ids, CHUNK):
            rows = Assignment.select(Assignment.user_id).where(
                Assignment.experiment.in_(others), Assignment.user_id.in_(some)
            )
            enrolled.update(row.user_id for row in rows)
    return enrolled
