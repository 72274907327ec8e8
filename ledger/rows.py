"""Rows out and in: the export and the import."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from hashlib import sha256
from itertools import repeat
from operator import itemgetter
from typing import Any, NamedTuple

from peewee import JOIN, chunked, fn

from ledger.conversions import occurred, refuse_unless_open
from ledger.counts import FEW
from ledger.enrolment import (
    ASSIGNED,
    Participant,
    count_participants,
    elsewhere,
    participants_among,
    unless_enrolled,
)
from ledger.sums import is_inside, write_joined
from ledger.tallies import Booking, write_conversions
from models import Assignment, Conflict, Conversion, Experiment
from stats import MetricSettings
from storage.columns import EPOCH, MICROSECOND
from storage.engine import database
from storage.table import CHUNK, Insert, one_of
from storage.traffic import giving_way


class Line(NamedTuple):
    """One line of an import: an assignment, and the conversion it may carry.

    Times are in microseconds since 1970, and values are in the form of their column:
    of a million lines, conversions to and fro would take longer than the rest.
    """

    user_id: str
    variant: str
    assigned_at: int
    covariate: str = ""
    """An empty text if none is known."""
    metric: str | None = None
    """None, as all that follows, if the line has no conversion."""
    value: str | None = None
    """An empty text if the conversion has no value."""
    occurred_at: int | None = None
    key: str | None = None
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


class Booked(NamedTuple):
    """How many users and conversions of some lines were written."""

    enrolled: int
    counted: int
    after_window: int
    """How many conversions were left out, because their windows were over."""

    def plus(self, other: Booked) -> Booked:
        """Return the sum of both."""
        return Booked(*(one + two for one, two in zip(self, other, strict=True)))


def book(experiment: Experiment, lines: Sequence[Line]) -> Booked:
    """Write imported lines in one transaction; existing rows stay as they are.

    A user has the covariate of the first line that names the user. An event
    exists already if its key is stored. An event without its own key, the n-th of its
    file with this content, exists if n such events are stored, by the API without a key
    or by an import. So lines must come in their order.
    """
    # Only an import can bring a user of one experiment of a group into another one.
    write = database.obj.alone if experiment.exclusion_group else database.obj.beside
    return write(lambda: _booked(experiment, lines))


def _booked(given: Experiment, lines: Sequence[Line]) -> Booked:
    now = database.obj.now()
    experiment = Experiment.get_by_id(given.id)
    refuse_unless_open(experiment)
    new = _enrol(experiment, lines, now)
    others = {line.user_id: line.variant for line in lines if line.user_id not in new}
    participants = participants_among(experiment.id, others)
    if elsewhere(experiment.id, experiment.exclusion_group, new) or any(
        participants[user_id].variant != variant for user_id, variant in others.items()
    ):
        raise Conflict(
            "A user of the file was enrolled elsewhere after the file was checked; "
            "run the import again.",
            experiment.id,
        )
    rows = _new_bookings(experiment, lines, new, participants, now)
    inside = [
        row
        for row in rows
        if is_inside(row.settings, row.assigned_at or now, row.occurred_at)
    ]
    write_conversions(experiment, inside)
    return Booked(len(new), len(inside), len(rows) - len(inside))


def _enrol(
    experiment: Experiment, lines: Sequence[Line], now: datetime
) -> dict[str, int]:
    """Enrol the users of the lines who are not enrolled; return their rows' ids."""
    first = dict(zip(map(itemgetter(0), lines), lines, strict=True))
    if len(first) < len(lines):
        first.clear()
        for line in lines:
            first.setdefault(line.user_id, line)
    experiment_id = experiment.id  # to look it up takes as long as to make a row
    received_at = _microseconds(now)
    ids = database.obj.new_ids(Assignment, len(first))
    covariates: Iterable[Any] = repeat(None)
    if experiment.own_sums:
        covariates = [line.covariate or None for line in first.values()]
    # By columns this takes half the time.
    columns = [map(itemgetter(place), first.values()) for place in range(3)]
    rows = [*zip(ids, repeat(experiment_id), *columns, repeat(received_at), covariates)]
    # The ids are in the order of the lines. The rows are written in the order of the
    # users, so that each page of the two indexes is read and written once.
    rows.sort(key=itemgetter(2))
    is_each_new = ENROL_AS.stored(rows) == len(rows)
    rows.clear()  # thousands of them, and the memory is needed below
    new = dict(zip(first, ids, strict=True))
    if not is_each_new:
        # Others may have got some of the ids between the first and the last.
        written: Any = Assignment.select(Assignment.id).where(
            Assignment.id >= ids[0], Assignment.id <= ids[-1]
        )
        present = {id for (id,) in database.execute(written)}
        new = {user_id: id for user_id, id in new.items() if id in present}
    variants = map(itemgetter(1), map(first.__getitem__, new))
    count_participants(zip(repeat(experiment_id), variants))
    if experiment.own_sums:
        write_joined(
            (experiment_id, one.variant, _time(one.assigned_at), _number(one.covariate))
            for one in map(first.__getitem__, new)
        )
    return new


ENROL_AS = Insert([Assignment.id, *ASSIGNED], unless_enrolled)


def _new_bookings(
    experiment: Experiment,
    lines: Sequence[Line],
    new: Mapping[str, int],
    participants: Mapping[str, Participant],
    now: datetime,
) -> list[Booking]:
    """Return the bookings of the lines' events that are not stored yet.

    *new* are the users who have no events, *participants* are the others.
    """
    events = {_key(line): line for line in lines if line.key is not None}
    known = _stored_keys(experiment, events)
    numbered = [
        line for line in events.values() if line.number and line.user_id not in new
    ]
    stored = _anonymous(
        {participants[line.user_id] for line in numbered},
        {_time(line.occurred_at) for line in numbered},
    )
    names = {line.user_id for line in events.values()}
    seats = {**participants, **dict(_seats(lines, new, names))}
    own_sums = experiment.own_sums
    rows = []
    for key, line in events.items():
        participant = participants.get(line.user_id)
        settings = own_sums.get(line.metric or experiment.primary_metric)
        row = _booking(experiment, seats[line.user_id], line, key, now, settings)
        is_stored = False
        if participant and line.number is not None:
            moment = _time(line.occurred_at)  # as the line has it
            content = participant.id, row.metric, moment, row.value
            is_stored = line.number <= stored[content]
        if not is_stored and key not in known:
            rows.append(row)
    return rows


def _key(line: Line) -> str:
    """Return the idempotency key under which the event of a line is stored."""
    key = line.key or ""
    return key if line.number in (None, 1) else f"{key}:{line.number}"


def _stored_keys(experiment: Experiment, keys: Iterable[str]) -> set[str]:
    """Return those of these idempotency keys that are stored."""
    stored: set[str] = set()
    for some in chunked(keys, CHUNK):
        rows = Conversion.select(Conversion.idempotency_key).where(
            Conversion.experiment == experiment.id,
            one_of(Conversion.idempotency_key, some),
        )
        stored.update(key for (key,) in database.execute(rows))
    return stored


def _seats(
    lines: Iterable[Line], new: Mapping[str, int], user_ids: set[str]
) -> Iterator[tuple[str, Participant]]:
    """Yield the rows of those of these users whom the lines have enrolled."""
    first: dict[str, Line] = {}
    for line in lines:
        if line.user_id in user_ids and line.user_id in new:
            first.setdefault(line.user_id, line)
    for user_id, one in first.items():
        assigned_at, covariate = _time(one.assigned_at), _number(one.covariate)
        seat = Participant(new[user_id], user_id, one.variant, assigned_at, covariate)
        yield user_id, seat


def _booking(
    experiment: Experiment,
    seat: Participant,
    line: Line,
    key: str,
    now: datetime,
    settings: MetricSettings | None,
) -> Booking:
    """Return the booking of a line's event, not earlier than the enrolment."""
    moment = _time(line.occurred_at)
    return Booking(
        experiment.id,
        seat.id,
        line.variant,
        line.metric or experiment.primary_metric,
        _number(line.value),
        occurred(moment, seat.assigned_at) or moment,
        now,
        key,
        seat.assigned_at,
        seat.covariate,
        settings,
    )


def _number(text: str | None) -> Decimal | None:
    return Decimal(text) if text else None


def _time(microseconds: int | None) -> datetime:
    return EPOCH + (microseconds or 0) * MICROSECOND


def _microseconds(time: datetime) -> int:
    return (time - EPOCH) // MICROSECOND


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
    covariate: Decimal | None


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
    with database.obj.stillness():
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
            Assignment.covariate,
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
