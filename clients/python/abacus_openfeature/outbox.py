"""Enrolments and events on their way to the service, sent by one thread."""

from __future__ import annotations

import atexit
import logging
import os
import random
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from abacus_openfeature.service import Refused, Service, Unavailable

log = logging.getLogger("abacus_openfeature")

ENROLMENTS, EVENTS = "enrolments", "events"

USERS_AT_ONCE = 5_000  # the service takes 10,000; with attributes they may be large
EVENTS_AT_ONCE = 500  # the service books at most 10,000 pairs of event and experiment
LONGEST_WAIT = 30.0  # seconds between two attempts


class Enrolment(NamedTuple):
    """A user to be enrolled, or asked about, in an experiment."""

    experiment_id: str
    user_id: str
    attributes: dict[str, Any] | None

    @property
    def row(self) -> dict[str, Any]:
        """What the service reads."""
        if self.attributes is None:
            return {"userId": self.user_id}
        return {"userId": self.user_id, "attributes": self.attributes}


Row = TypeVar("Row")

Tell = Callable[[str, list[dict[str, Any]]], None]
"""Takes the id of an experiment, and the decisions of the service."""


class Outbox:
    """Two bounded queues. Enrolments leave before the events that came after them.

    What the service has not acknowledged stays, in order, and is sent again: a row of
    an enrolment is unique, and an event has an idempotency key. A full queue takes no
    more, and counts what it drops.
    """

    def __init__(
        self, service: Service, tell: Tell, seconds: float, size: int, grace: float
    ) -> None:
        self._service, self._tell = service, tell
        self._seconds, self._size, self._grace = seconds, size, grace
        self._counts: Counter[str] = Counter()
        self._begin()
        outboxes.add(self)
        atexit.register(_close, weakref.ref(self))

    def _begin(self) -> None:
        """Begin empty and without a thread, also in the child of a fork."""
        self._changed = threading.Condition()
        self._enrolments: deque[Enrolment] = deque()
        self._events: deque[dict[str, Any]] = deque()
        self._unsent: Counter[str] = Counter()  # enrolments by their users
        self._thread: threading.Thread | None = None
        self._is_urgent = self._is_asked = self._is_closed = False
        self._flushes = 0

    def enrol(self, enrolment: Enrolment) -> bool:
        """Queue an enrolment; tell whether there was room."""
        with self._changed:
            if not self._has_room(self._enrolments, ENROLMENTS):
                return False
            self._enrolments.append(enrolment)
            self._unsent[enrolment.user_id] += 1
            self._wake(len(self._enrolments) >= USERS_AT_ONCE)
        return True

    def report(self, event: dict[str, Any], occurred_at: str) -> bool:
        """Queue an event; tell whether there was room.

        The service would refuse an event that is older than its enrolment. So the event
        has no time of its own, and that of its arrival counts, if the enrolment is
        still on its way.
        """
        with self._changed:
            if not self._has_room(self._events, EVENTS):
                return False
            if event["userId"] not in self._unsent:
                event = {**event, "occurredAt": occurred_at}
            self._events.append(event)
            self._wake(len(self._events) >= EVENTS_AT_ONCE)
        return True

    def _has_room(self, queue: deque[Any], name: str) -> bool:
        has_room = len(queue) < self._size and not self._is_closed
        self._counts[f"{name}_{'queued' if has_room else 'dropped'}"] += 1
        return has_room

    def _wake(self, is_urgent: bool) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, name="abacus-outbox", daemon=True
            )
            self._thread.start()
        if is_urgent and not self._is_urgent:
            self._is_urgent = True
            self._changed.notify_all()

    def counters(self) -> dict[str, int]:
        """Return what was queued, sent, refused and dropped, and what is waiting."""
        with self._changed:
            return {
                **{
                    f"{name}_{fate}": self._counts[f"{name}_{fate}"]
                    for name in (ENROLMENTS, EVENTS)
                    for fate in ("queued", "sent", "refused", "dropped")
                },
                "enrolments_waiting": len(self._enrolments),
                "events_waiting": len(self._events),
                "attempts_failed": self._counts["attempts_failed"],
            }

    def flush(self, seconds: float) -> bool:
        """Send all that waits; tell whether the service has it within these seconds."""
        with self._changed:
            self._flushes += 1
            self._is_asked = True
            self._changed.notify_all()
            try:
                return self._changed.wait_for(
                    lambda: not (self._enrolments or self._events), seconds
                )
            finally:
                self._flushes -= 1

    def refuse_event(self) -> None:
        """Count an event that cannot be sent."""
        with self._changed:
            self._counts["events_refused"] += 1

    def open(self) -> None:
        """Take reports, also after a `close`."""
        with self._changed:
            self._is_closed = False

    def close(self) -> None:
        """Send all that waits, for a few seconds at most, and take no more."""
        if self._is_closed:
            return
        self.flush(self._grace)
        with self._changed:
            self._is_closed = True
            self._counts["enrolments_dropped"] += len(self._enrolments)
            self._counts["events_dropped"] += len(self._events)
            lost = len(self._enrolments) + len(self._events)
            self._enrolments.clear()
            self._events.clear()
            self._unsent.clear()
            self._thread = None
            self._is_asked = True
            self._changed.notify_all()
        if lost:
            log.warning("Abacus did not answer; %d reports are lost.", lost)

    # ------------------------------------------------------------------------
    # The thread
    # ------------------------------------------------------------------------

    def _run(self) -> None:
        wait, is_failing, thread = self._seconds, False, self._thread
        while self._thread is thread:
            with self._changed:
                due = self._is_asked_for if is_failing else self._is_due
                self._changed.wait_for(due, wait)
                self._is_urgent = self._is_asked = False
            try:
                self._send_all()
                wait, is_failing = self._seconds, False
            except Unavailable as problem:
                self._service.warn(problem)
                wait, is_failing = self._pause(wait, problem), True
            except Exception:  # a defect must not end the thread
                log.exception("Abacus: reports could not be sent.")
                wait, is_failing = self._pause(wait, Unavailable("")), True

    def _is_asked_for(self) -> bool:
        """Tell whether to try now, although nobody answers."""
        return self._is_asked

    def _is_due(self) -> bool:
        return self._is_asked or self._is_urgent

    def _pause(self, wait: float, problem: Unavailable) -> float:
        """Return how long to wait for the next attempt: twice as long, with jitter."""
        self._counts["attempts_failed"] += 1
        if self._flushes:
            return 0.2
        longer = min(max(wait, 0.1) * 2, LONGEST_WAIT)
        return max(longer * random.uniform(0.5, 1), problem.retry_after)  # noqa: S311

    def _send_all(self) -> None:
        """Send what waits now: the events, and before them all enrolments."""
        events = len(self._events)
        while some := self._first(self._enrolments, USERS_AT_ONCE):
            self._send_enrolments(some)
        while events > 0:
            rows = self._first(self._events, min(events, EVENTS_AT_ONCE))
            self._count(EVENTS, self._send("/api/events/batch", "events", rows))
            with self._changed:
                _take_off(self._events, rows)
                self._changed.notify_all()
            events -= len(rows)

    def _first(self, queue: deque[Row], most: int) -> list[Row]:
        with self._changed:
            return list(islice(queue, most))

    def _count(self, kind: str, answers: list[Any]) -> None:
        refused = sum(one is None for one in answers)
        self._counts[f"{kind}_refused"] += refused
        self._counts[f"{kind}_sent"] += len(answers) - refused

    def _send_enrolments(self, some: list[Enrolment]) -> None:
        """Send the first enrolments of the queue, those of one experiment at a time."""
        left = dict.fromkeys(one.experiment_id for one in some)
        try:
            for id in list(left):
                rows = [one.row for one in some if one.experiment_id == id]
                path = f"/api/experiments/{id}/assignments/batch"
                decisions = self._send(path, "users", rows)
                del left[id]
                self._count(ENROLMENTS, decisions)
                self._tell(id, [one for one in decisions if one is not None])
        finally:
            with self._changed:
                taken = _take_off(self._enrolments, some)
                again = [one for one in taken if one.experiment_id in left]
                self._enrolments.extendleft(reversed(again))
                self._unsent = Counter(one.user_id for one in self._enrolments)
                self._changed.notify_all()

    def _send(self, path: str, name: str, rows: list[Any]) -> list[Any]:
        """Return an answer for each row, None for one that the service refuses.

        The service refuses a whole call for one wrong row. Halves of halves find it.
        """
        try:
            answers = self._service.post(path, {name: rows}).get("data")
        except Refused as error:
            if error.status not in (400, 413) or len(rows) == 1:
                log.warning("Abacus refused %d %s: %s", len(rows), name, error)
                return [None] * len(rows)
            middle = len(rows) // 2
            first = self._send(path, name, rows[:middle])
            return [*first, *self._send(path, name, rows[middle:])]
        if not isinstance(answers, list) or len(answers) != len(rows):
            raise Unavailable("The answer is not one for each row.")
        return answers


def _take_off(queue: deque[Row], first: list[Row]) -> list[Row]:
    """Remove the first items of a queue; return those that had not gone already."""
    taken = []
    for one in first:
        if queue and queue[0] is one:
            taken.append(queue.popleft())
    return taken


outboxes: weakref.WeakSet[Outbox] = weakref.WeakSet()


def _close(reference: weakref.ref[Outbox]) -> None:
    outbox = reference()
    if outbox is not None:
        outbox.close()


def _begin_all() -> None:
    """Begin anew in the child of a fork, whose parent sends what was queued before."""
    for outbox in list(outboxes):
        outbox._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_all)


def moment(seconds: float) -> str:
    """Return a time in ISO-8601, to the millisecond."""
    whole, part = divmod(round(seconds * 1_000), 1_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{part:03}Z"
