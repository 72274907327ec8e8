"""Plain users and events in the fewest statements, one at a time or users by the batch.

`enrolment` and `conversions` say what is right. A page view or a purchase is nearly
always the same simple case, and this module answers it with a quarter of their work. It
reads one row, which also says whether what it remembers of the experiment still holds,
and it writes under the condition that this has not changed. In any other case it
returns None, having written nothing, and the caller goes the general way. A property
test compares the two.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from functools import cache
from operator import itemgetter
from typing import Any, NamedTuple

from peewee import JOIN, SQL

from ledger import conversions, tallies
from ledger.conversions import ACCEPTED, Event, Receipt
from ledger.enrolment import ENROL, Participant, count_participants
from ledger.sums import is_inside, write_joined
from models import (
    Assignment,
    Conversion,
    Experiment,
    Identity,
    Metric,
    Override,
)
from stats import MetricSettings
from storage.columns import Json, utcnow
from storage.engine import Overtaken, database
from storage.table import Statement, pieces
from targeting import decision
from targeting.decision import (
    EXISTING,
    HELD_OUT,
    NEW,
    RUNNING,
    STOPPED,
    Decision,
    Definition,
    User,
    decide,
    decide_for_all,
)

TIME, COVARIATE = Assignment.assigned_at, Assignment.covariate

# The form of every id and of every key.
PLAIN_NAME = re.compile(r"[\w.-]{1,255}", re.ASCII)


def is_plain_name(name: str) -> bool:
    """Tell whether an experiment can have this id or this key."""
    return PLAIN_NAME.fullmatch(name) is not None


class Known(NamedTuple):
    """What is remembered of an experiment, as of a revision of the database."""

    revision: int
    definition: Definition
    primary_metric: str
    own_sums: dict[str, MetricSettings]
    has_overrides: bool
    derived: dict[Any, Any]
    """What callers derive from the definition, to be forgotten with it."""


class Memory:
    """The experiments that were read last. Each use checks the revision."""

    MOST = 1_000
    LARGEST = 32 * 1024  # characters of configs and rules: 32 MiB in all

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[Any, Known] = {}

    def get(self, name: str) -> Known | None:
        """Return the experiment with this id or key, read now or remembered."""
        # A restored backup is another file, and may have the same revision.
        place = database.obj.opened(), name
        return self._known.get(place) or self._read(place)

    def forget(self, name: str) -> None:
        """Read the experiment again at its next use."""
        self._known.pop((database.obj.opened(), name), None)

    def _read(self, place: tuple[Any, str]) -> Known | None:
        # Read first: if the experiment changes meanwhile, it is read again.
        revision: Any = Identity.select(Identity.revision).scalar()
        experiment = Experiment.named(place[1])
        if experiment is None or revision is None:
            return None
        overrides = Override.select(SQL("1")).where(
            Override.experiment == experiment.id
        )
        known = Known(
            revision,
            experiment.definition,
            experiment.primary_metric,
            experiment.own_sums,
            overrides.exists(),
            {},
        )
        if size(known.definition) <= self.LARGEST:
            with self._lock:
                if len(self._known) >= self.MOST:
                    self._known.pop(next(iter(self._known)))
                self._known[place] = known
        return known


def size(definition: Definition) -> int:
    """Return the characters of a definition's configs and rules."""
    held = [definition.rules, *(variant.config for variant in definition.variants)]
    return sum(len(str(Json().db_value(one))) for one in held)


memory = Memory()  # of the process; the databases of several apps are told apart


# ----------------------------------------------------------------------------
# Enrolment
# ----------------------------------------------------------------------------


@cache
def standing_in(number: int) -> Statement:
    """Return the statement for the rows of a user in so many experiments."""
    return Statement(
        lambda mark: Identity.select(
            Identity.revision,
            Assignment.experiment,
            Assignment.variant,
            Assignment.assigned_at,
        ).join(
            Assignment,
            JOIN.LEFT_OUTER,
            on=(Assignment.user_id == mark)
            & Assignment.experiment.in_([mark] * number),
        )
    )


@cache
def users_in(number: int) -> Statement:
    """Return the statement for the rows of so many users in an experiment."""
    return Statement(
        lambda mark: Assignment.select(
            Assignment.user_id, Assignment.variant, Assignment.assigned_at
        ).where(Assignment.experiment == mark, Assignment.user_id.in_([mark] * number))
    )


REVISION = Statement(lambda _: Identity.select(Identity.revision))


def enrol(names: Sequence[str], user: User) -> list[tuple[Known, Decision]] | None:
    """Return the decision of each of these experiments for a user, enrolled if new.

    None if one of them is not known, or not simple, or named twice.
    """
    standing = _standing(names, user.user_id)
    if standing is None:
        return None
    known, rows = standing
    if len({one.definition.id for one in known}) < len(known):
        return None  # two equal rows would be refused, which takes ids on PostgreSQL
    now = utcnow()
    decisions = [_decided(one.definition, rows, user, now) for one in known]
    new = [place for place, one in enumerate(decisions) if one.reason == NEW]
    if any(one.has_overrides for one in known) or any(
        known[place].definition.group for place in new
    ):
        return None
    if new:
        entered_at = _entered_at(
            [known[place] for place in new],
            [_place(decisions[place]) for place in new],
            user.covariate,
        )
        if entered_at is None:
            return None
        for place in new:
            decisions[place] = decisions[place]._replace(assigned_at=entered_at)
    return list(zip(known, decisions, strict=True))


Rows = dict[str, tuple[str, int]]
"""The variant of a user, and since when, by the experiment."""


def _standing(names: Sequence[str], user_id: str) -> tuple[list[Known], Rows] | None:
    """Return what is known of the experiments now, and the user's rows in them."""
    for _ in range(2):
        found = [memory.get(name) for name in names]
        known = [one for one in found if one is not None]
        if len(known) < len(names):
            return None
        ids = [one.definition.id for one in known]
        stored = standing_in(len(ids))(user_id, *ids)
        if all(one.revision == stored[0][0] for one in known):
            return known, {id: (variant, time) for _, id, variant, time in stored}
        for name in names:
            memory.forget(name)
    return None


def enrol_each(name: str, user_ids: Sequence[str]) -> list[Decision] | None:
    """Return the decision of an experiment for each of these users, in order.

    Those who are new are enrolled, all or none. None if a user stands twice, or if the
    experiment is not known or not simple.
    """
    known = memory.get(name)
    if known is None:
        return None
    if REVISION() != [(known.revision,)]:
        memory.forget(name)
        return None
    definition, now = known.definition, utcnow()
    if (
        known.has_overrides
        or not decision.has_plain_entry(definition, now)
        or len(set(user_ids)) < len(user_ids)
    ):
        return None
    id, present = definition.id, _present(definition, user_ids)
    absent = [one for one in user_ids if one not in present] if present else user_ids
    dealt = decision.dealt_each(definition, absent)
    new = [
        (id, user_id, variant.id)
        for user_id, variant in zip(absent, dealt, strict=True)
        if variant
    ]
    entered_at = _entered_at([known], new) if new else None
    if new and entered_at is None:
        return None
    decisions = [
        Decision(id, user_id, NEW, variant, entered_at)
        if variant
        else Decision(id, user_id, HELD_OUT)
        for user_id, variant in zip(absent, dealt, strict=True)
    ]
    if not present:
        return decisions
    present |= zip(absent, decisions, strict=True)
    return [present[user_id] for user_id in user_ids]


def _present(definition: Definition, user_ids: Sequence[str]) -> dict[str, Decision]:
    """Return the decisions of those of these users who are enrolled."""
    present: dict[str, Decision] = {}
    kinds: dict[tuple[str, int], Decision] = {}  # by the variant and the time
    for some in pieces(user_ids):
        for user_id, variant, time in users_in(len(some))(definition.id, *some):
            one = kinds.get((variant, time))
            if one is None:
                one = _existing(definition, user_id, variant, time)
                kinds[variant, time] = one
            present[user_id] = Decision(one.experiment_id, user_id, *one[2:])
    return present


def _decided(definition: Definition, rows: Rows, user: User, now: datetime) -> Decision:
    if definition.id not in rows or definition.winner:
        return decide(definition, user, now)
    return _existing(definition, user.user_id, *rows[definition.id])


def _existing(
    definition: Definition, user_id: str, variant: str, time: int
) -> Decision:
    given, at = definition.variant(variant), TIME.python_value(time)
    return Decision(definition.id, user_id, EXISTING, given, at)


Place = tuple[str, str, str]
"""The ids of an experiment, of a user, and of the variant that the user gets."""


class Entry(NamedTuple):
    """New users of experiments, to be enrolled together."""

    known: Sequence[Known]
    new: Sequence[Place]
    covariate: Decimal | None = None


def _entered_at(
    known: Sequence[Known], new: Sequence[Place], covariate: Decimal | None = None
) -> datetime | None:
    """Enrol new users; return when. None if nobody was, because others came first."""
    try:
        return database.obj.write(_enter, Entry(known, new, covariate))
    except Overtaken:
        return None


def _place(new: Decision) -> Place:
    if new.variant is None:
        raise ValueError(f"{new} comes without a variant.")
    return new.experiment_id, new.user_id, new.variant.id


def _enter(entries: Sequence[Entry]) -> list[datetime | None]:
    """Write the rows of all entries with their tallies; return when, for each.

    None for an entry whose experiments are not all as they were known, or which has a
    user of an earlier entry: none of its rows is written. Raise Overtaken if a user has
    a row already.
    """
    ((revision,),), now = REVISION(), database.obj.now()
    time = TIME.db_value(now)
    users: set[Place] = set()
    rows: list[tuple[Any, ...]] = []
    joined: list[tuple[str, str, datetime, Decimal | None]] = []
    written: list[datetime | None] = []
    for entry in entries:
        own = set(entry.new)  # a user's variant is the same as of one revision
        is_valid = users.isdisjoint(own) and all(
            known.revision == revision and not decide_for_all(known.definition, "", now)
            for known in entry.known
        )
        written.append(now if is_valid else None)
        if is_valid:
            users |= own
            with_sums = {one.definition.id for one in entry.known if one.own_sums}
            if not with_sums:
                rows += [(*place, time, time, None) for place in entry.new]
                continue
            for place in entry.new:
                covariate = entry.covariate if place[0] in with_sums else None
                rows.append((*place, time, time, COVARIATE.db_value(covariate)))
                if place[0] in with_sums:
                    joined.append((place[0], place[2], now, covariate))
    rows.sort(key=itemgetter(0, 1))  # so that no two processes wait for each other
    if ENROL.stored(rows) < len(rows):
        raise Overtaken
    count_participants(map(itemgetter(0, 2), rows))
    if joined:
        write_joined(joined)
    return written


# ----------------------------------------------------------------------------
# Conversions
# ----------------------------------------------------------------------------

# What an event depends on, null where there is none, behind the place of the event.
FACTS = Statement(
    lambda mark: (
        Identity.select(
            mark,
            Identity.revision,
            Assignment.id,
            Assignment.variant,
            Assignment.assigned_at,
            Assignment.covariate,
            Metric.number,
            Conversion.id,
        )
        .join(
            Assignment,
            JOIN.LEFT_OUTER,
            on=(Assignment.experiment == mark) & (Assignment.user_id == mark),
        )
        .switch(Identity)
        .join(
            Metric,
            JOIN.LEFT_OUTER,
            on=(Metric.experiment == mark) & (Metric.name == mark),
        )
        .switch(Identity)
        .join(
            Conversion,
            JOIN.LEFT_OUTER,
            on=(Conversion.experiment == mark) & (Conversion.idempotency_key == mark),
        )
    )
)


class Candidate(NamedTuple):
    """An event for an experiment, by the name that the request gives it."""

    name: str
    known: Known
    event: Event

    @property
    def metric(self) -> str:
        """The metric that the event is for."""
        return self.event.metric or self.known.primary_metric


def book(name: str, event: Event) -> tuple[Known, Receipt] | None:
    """Return the receipt of an accepted event; None, unless it is simply accepted."""
    known = memory.get(name)
    if known is None or known.has_overrides:
        return None
    try:
        receipt = database.obj.write(_book, Candidate(name, known, event))
    except Overtaken:
        return None
    return receipt and (known, receipt)


class Books(NamedTuple):
    """Events to be written together."""

    bookings: list[tallies.Booking]
    keys: set[tuple[str, str]]
    """The experiment and the idempotency key of each event that has one."""


def _book(candidates: Sequence[Candidate]) -> list[Receipt | None]:
    """Book events of participants in metrics that were counted before.

    Return the receipt of each that is simply accepted, else None.
    """
    now, books = database.obj.now(), Books([], set())
    asked = [_asked(place, one) for place, one in enumerate(candidates)]
    facts = sorted(FACTS.each(asked))  # by the place
    receipts = [
        _counted(books, one, found, now)
        for one, found in zip(candidates, facts, strict=True)
    ]
    tallies.write_bookings(books.bookings)
    return receipts


def _asked(place: int, candidate: Candidate) -> tuple[Any, ...]:
    """Return the values for the facts of an event."""
    id, event = candidate.known.definition.id, candidate.event
    return place, id, event.user_id, id, candidate.metric, id, event.idempotency_key


def _counted(
    books: Books, candidate: Candidate, found: Sequence[Any], now: datetime
) -> Receipt | None:
    """Add an event to the books if it is simply accepted; return its receipt."""
    name, known, event = candidate
    id, user_id, key = known.definition.id, event.user_id, event.idempotency_key
    metric = candidate.metric
    _, revision, assignment_id, variant, assigned_at, covariate, number, taken = found
    if revision != known.revision:
        memory.forget(name)
        return None
    if None in (assignment_id, number) or taken or not _takes(known, now):
        return None
    time: Any = TIME.python_value(assigned_at)
    seat = Participant(
        assignment_id, user_id, variant, time, COVARIATE.python_value(covariate)
    )
    occurred_at = conversions.occurred_at(event, now, seat)
    settings = known.own_sums.get(metric)
    if occurred_at < seat.assigned_at or not is_inside(settings, time, occurred_at):
        return None
    if key is not None:
        if (id, key) in books.keys:
            return None
        books.keys.add((id, key))
    books.bookings.append(
        tallies.Booking(
            *(id, assignment_id, variant, metric, event.value, occurred_at, now, key),
            *(time, seat.covariate, settings),
        )
    )
    return Receipt(
        id, ACCEPTED, user_id, metric, event.value, occurred_at, key, variant
    )


def _takes(known: Known, now: datetime) -> bool:
    """Tell whether the experiment takes conversions now."""
    one = known.definition
    state = decision.state_at(now, one.status, one.end_date)
    return not one.is_archived and state in (RUNNING, STOPPED)
