"""Slots for requests that take seconds: how many of them run at once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import wraps
from typing import Any

from flask import Response, current_app
from werkzeug.exceptions import TooManyRequests

from web import auth
from web.logging import note_end


class Slots:
    """The slots of this process for costly requests, and who holds them.

    An export occupies a thread for as long as its client reads. Each token has at most
    one slot, so that one caller cannot hold all of them. Only one of the requests with
    a slot works at a time: two would not finish sooner, and would take the interpreter
    from all other requests twice as often.
    """

    MOST = 2
    RETRY_AFTER = 5  # seconds, about as long as such a request takes

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()
        self.turn = threading.Lock()

    def take(self, owner: str) -> Slot:
        """Return a slot, or answer 429 if none is free for this owner."""
        with self._lock:
            if self._held[owner] or self._held.total() >= self.MOST:
                raise TooManyRequests(
                    "Other work that takes seconds is running; try again later.",
                    retry_after=self.RETRY_AFTER,
                )
            self._held[owner] += 1
        return Slot(self, owner)

    def give(self, owner: str) -> None:
        """Release the owner's slot."""
        with self._lock:
            self._held[owner] -= 1
            self._held += Counter()  # forget owners without a slot


class Slot:
    """One slot, until it is released."""

    def __init__(self, slots: Slots, owner: str) -> None:
        self._slots, self._owner = slots, owner
        self._is_held = threading.Lock()
        self._is_held.acquire()

    def give(self) -> None:
        """Release the slot; a second call changes nothing."""
        with suppress(RuntimeError):  # released already
            self._is_held.release()
            self._slots.give(self._owner)

    def over(self, chunks: Iterable[Any]) -> Iterator[Any]:
        """Yield the chunks, each computed in its turn; release the slot at the end."""
        following, end = iter(chunks), object()
        try:
            while True:
                with self._slots.turn:
                    chunk = next(following, end)
                if chunk is end:
                    return
                yield chunk
        finally:
            self.give()


def always(_: Any) -> bool:
    """Return True for any request."""
    return True


def costly(when: Callable[[Any], bool] = always) -> Callable[[Any], Any]:
    """Mark a handler as costly: it runs in a slot, or answers 429.

    *when* tells from the parsed request whether this one is costly. A stream keeps its
    slot until it is closed, also if the client has gone.
    """

    def mark(handler: Any) -> Any:
        @wraps(handler)
        def bounded(*read: Any, **ids: Any) -> Any:
            if read and not when(read[0]):
                return handler(*read, **ids)
            slots: Slots = current_app.extensions["abacus_slots"]
            slot = slots.take(auth.subject())
            note_end()  # it is not a quick one
            try:
                with slots.turn:
                    answer = handler(*read, **ids)
            except BaseException:
                slot.give()
                raise
            if isinstance(answer, Response) and answer.is_streamed:
                answer.response = slot.over(answer.response)
                # The `finally` of a generator that was never started does not run.
                answer.call_on_close(slot.give)
            else:
                slot.give()
            return answer

        bounded.is_costly = True  # type: ignore[attr-defined]
        return bounded

    return mark
