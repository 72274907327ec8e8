"""Rows out and in: the export and the import."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from datetime import datetime
from decimal import Decimal
from hashlib import sha256
from typing import Any, NamedTuple

import peewee
from peewee import JOIN, chunked, fn

from ledger.conversions import Event, _known, _occurred, refuse_unless_open
from ledger.counts import FEW
from ledger.enrolment import (
    Participant,
    elsewhere,
    participants_among,
)
from ledger.tallies import Booking, write_conversions
from models import Assignment, Conflict, Conversion, Experiment, Variant
from storage.columns import EPOCH, MICROSECOND, utcnow
from storage.engine import database
from storage.table import CHUNK
from storage.traffic import giving_way


class Line(NamedTuple):
    """One line of an import: an assignment, and the conversion it may carry."""

    user_id: str
    variant: str
    assigned_at: int
    """In microseconds since 1970."""
    event: Event | None
    number: int | None = None
    """For an event without its own key: its place among those with equal content."""


def content_key(
    user_id: str, metric: str, occurred_at: datetime, value: Decimal | None
) -> str:
    """Return the key for an imported event without one: a digest of its content."""
    number = None
    if value is not None:
        number = format(abs(value) if value == 0 else value, "f")
        if "." in number:
            number = number.rstrip("0").rstrip(".")
    content = repr((user_id, metric, occurred_at.isoformat(), number))
    return f"{IMPORTED}{sha256(content.encode()).hexdigest()[:40]}"


IMPORTED = "import:"


def is_content_key(key: str | None, user_id: str, *content: Any) -> bool:
    """Tell whether an import made this key for an event with this content.

    The arguments after the key are those of `content_key`. The first event with the
    content has that key, the second one has `:2` after it, and so on.
    """
    if key is None or not key.startswith(IMPORTED):
        return False
    digest, separator, number = key[len(IMPORTED) :].partition(":")
    return IMPORTED + digest == content_key(user_id, *content) and (
        not separator or (number.isascii() and number.isdecimal())
    )


def book(experiment: Experiment, lines: Sequence[Line]) -> tuple[int, int]:
    """Write imported lines in one transaction; existing rows stay as they are.

    Return how many users were enrolled and how many conversions were counted. An event
    exists already if its key is stored. An event without its own key, the n-th of its
    file with this content, exists if n such events are stored, by the API without a key
    or by an import. So lines must come in their order.
    """
    with database.atomic():
        now = utcnow()
        refuse_unless_open(Experiment.get_by_id(experiment.id))
        enrolled = _enrol(experiment, lines, now)
        participants = participants_among(
            experiment.id, {line.user_id for line in lines} - enrolled.keys()
        )
        group = experiment.exclusion_group
        if elsewhere(experiment.id, group, enrolled) or any(
            participants[line.user_id].variant != line.variant
            for line in lines
            if line.user_id in participants
        ):
            raise Conflict(
                "A user of the file was enrolled elsewhere after the file was checked; "
                "run the import again.",
                experiment.id,
            )
        participants |= enrolled
        rows = _new_bookings(experiment, lines, enrolled.keys(), participants, now)
        write_conversions(experiment, rows)
    return len(enrolled), len(rows)


def _enrol(
    experiment: Experiment, lines: Sequence[Line], now: datetime
) -> dict[str, Participant]:
    """Enrol the users of the lines who are not enrolled; return their rows."""
    first: dict[str, Line] = {}
    for line in lines:
        first.setdefault(line.user_id, line)
    received_at = (now - EPOCH) // MICROSECOND
    last = Assignment.select(fn.MAX(Assignment.id)).scalar() or 0
    _insert(
        Assignment.insert_many([dict.fromkeys(ASSIGNED)]).on_conflict(
            action="NOTHING",
            conflict_target=[Assignment.experiment, Assignment.user_id],
        ),
        [(experiment.id, *line[:3], received_at) for line in first.values()],
    )
    # Under the write lock, the rows after the last one are those of this call.
    new: Any = Assignment.select(Assignment.id, Assignment.user_id)
    enrolled = {}
    for id, user_id in new.where(Assignment.id > last).tuples():
        line = first[user_id]
        assigned_at = EPOCH + line.assigned_at * MICROSECOND
        enrolled[user_id] = Participant(id, user_id, line.variant, assigned_at)
    for key, number in Counter(one.variant for one in enrolled.values()).items():
        Variant.update(participants=Variant.participants + number).where(
            Variant.experiment == experiment.id, Variant.key == key
        ).execute()
    return enrolled


ASSIGNED = (
    Assignment.experiment,
    Assignment.user_id,
    Assignment.variant,
    Assignment.assigned_at,
    Assignment.received_at,
)


def _insert(query: Any, rows: Iterable[tuple[Any, ...]]) -> None:
    """Run an insert for each of these rows, whose values are as columns store them.

    To convert the values of a row takes longer than to write it.
    """
    statement, _ = query.sql()
    with peewee.__exception_wrapper__:
        database.connection().executemany(statement, rows)


def _new_bookings(
    experiment: Experiment,
    lines: Sequence[Line],
    enrolled: Set[str],
    participants: dict[str, Participant],
    now: datetime,
) -> list[Booking]:
    """Return the bookings of the lines' events that are not stored yet."""
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
        content = row.assignment_id, row.metric, moment, row.value
        is_stored = line.number is not None and line.number <= stored[content]
        if not is_stored and key not in known:
            rows.append(row)
    return rows


def _key(line: Line) -> str | None:
    """Return the idempotency key under which the event of a line is stored."""
    key = line.event.idempotency_key if line.event else None
    return key if line.number in (None, 1) else f"{key}:{line.number}"


def _booking(
    experiment: Experiment,
    participant: Participant,
    line: Line,
    key: str | None,
    now: datetime,
) -> Booking:
    """Return the booking of a line's event, not earlier than the enrolment."""
    event = line.event or Event(line.user_id)
    return Booking(
        experiment.id,
        participant.id,
        participant.variant,
        event.metric or experiment.primary_metric,
        event.value,
        _occurred(event, now, participant),
        now,
        key,
    )


def _anonymous(
    participants: Iterable[Participant], times: Iterable[datetime | None]
) -> Counter[tuple[Any, ...]]:
    """Count the events of these participants at these times that have no own key.

    They are counted by their content. Only these times are read, because a user may
    have any number of events.
    """
    user_ids = {one.id: one.user_id for one in participants}
    counts: Counter[tuple[Any, ...]] = Counter()
    for ids in chunked(user_ids, CHUNK):
        for moments in chunked(times, CHUNK):
            rows: Any = Conversion.select(
                Conversion.assignment,
                Conversion.metric,
                Conversion.occurred_at,
                Conversion.value,
                Conversion.idempotency_key,
            ).where(Conversion.assignment.in_(ids), Conversion.occurred_at.in_(moments))
            for id, *content, key in rows.tuples().iterator():
                if key is None or is_content_key(key, user_ids[id], *content):
                    counts.update([(id, *content)])
    return counts


PAGE = 2_000


class ExportedRow(NamedTuple):
    """One line of an export, with the columns of an import."""

    user_id: str
    variant: str
    timestamp: datetime
    converted_at: datetime | None
    metric: str | None
    value: Decimal | None
    idempotency_key: str | None


def exported(experiment: Experiment) -> Iterator[ExportedRow]:
    """Yield a row for each conversion, and one for each participant without any.

    The rows are those of one moment, oldest enrolment first, in the form that an
    import reads. Rows are only ever added, so later ones are simply left out. They
    are read a page at a time, so neither memory nor the write-ahead log grows with
    them. Keys that an import made are left out: the next import makes them again.
    """
    query, number = _exported_columns(experiment)
    last_user = last_event = 0
    while True:
        page = query.where(
            Assignment.id >= last_user,
            (Assignment.id > last_user) | (number > last_event),
        )
        rows: list[Any] = list(page.tuples())
        for _, _, *cells in giving_way(rows, FEW):
            row = ExportedRow(*cells)
            content = row.user_id, row.metric, row.converted_at, row.value
            if row.metric and is_content_key(row.idempotency_key, *content):
                row = row._replace(idempotency_key=None)
            yield row
        if len(rows) < PAGE:
            return
        last_user, last_event, *_ = rows[-1]


def _exported_columns(experiment: Experiment) -> tuple[Any, Any]:
    """Return the query of all rows up to now, and its column of the event's number."""
    with database.transaction("DEFERRED"):
        last_assignment = Assignment.select(fn.MAX(Assignment.id)).scalar() or 0
        last_conversion = Conversion.select(fn.MAX(Conversion.id)).scalar() or 0
    number = fn.COALESCE(Conversion.id, 0)
    until = Conversion.id <= last_conversion
    query = (
        Assignment.select(
            Assignment.id,
            number,
            Assignment.user_id,
            Assignment.variant,
            Assignment.assigned_at,
            Conversion.occurred_at,
            Conversion.metric,
            Conversion.value,
            Conversion.idempotency_key,
        )
        .join(
            Conversion,
            JOIN.LEFT_OUTER,
            on=(Conversion.assignment == Assignment.id) & until,
        )
        .where(Assignment.experiment == experiment.id, Assignment.id <= last_assignment)
        .order_by(Assignment.id, Conversion.id)
        .limit(PAGE)
    )
    return query, number
