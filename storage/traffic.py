"""Priority of short requests over long work."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Row = TypeVar("Row")


class Traffic:
    """The quick requests that this process has received or is answering.

    Work that takes seconds lets them go first. All threads share one interpreter, and a
    write releases it about twenty times, each of which could be a wait.
    """

    PAUSE = 0.001  # seconds; about three times as long as the work between two pauses

    SLOW = 0.1  # seconds; after them no writer waits, as a client may send slowly

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._own = threading.local()
        self.quick = 0
        # Those that may be about to write, and since when; the first one is the oldest.
        self._coming: dict[object, float] = {}
        self._settled = self._due = 0
        self._bell: threading.Lock | None = None

    def announce(self) -> object:
        """Count a request that has been received, and that a thread will take."""
        request = object()
        with self._lock:
            self.quick += 1
            self._coming[request] = time.monotonic()
        return request

    def take(self, request: object) -> None:
        """Note that this thread answers a request that counts already."""
        self._own.request = request

    def enter(self) -> None:
        """Count the request of this thread, unless it counts already."""
        if self._request() is None:
            self.take(self.announce())

    def leave(self) -> None:
        """Stop counting it: it was answered, or it takes seconds."""
        request = self._request()
        if request is not None:
            self._own.request = None
            with self._lock:
                self.quick -= 1
                self._settle(request)

    def _request(self) -> object | None:
        return getattr(self._own, "request", None)

    def wait_to_write(self) -> object | None:
        """Note that the request of this thread waits to be written; return it."""
        request = self._request()
        with self._lock:
            self._settle(request)
        return request

    def go_on(self, requests: Iterable[object | None]) -> None:
        """Note that these requests were written, and are about to be answered."""
        with self._lock:
            now = time.monotonic()
            self._coming |= {one: now for one in requests if one is not None}

    def await_others(self, seconds: float) -> None:
        """Wait until every request that comes now has left, or waits to be written."""
        with self._lock:
            slow = time.monotonic() - self.SLOW
            while self._coming and next(iter(self._coming.values())) <= slow:
                del self._coming[next(iter(self._coming))]
            if not self._coming:
                return
            self._due = self._settled + len(self._coming)
            bell = self._bell = threading.Lock()
            bell.acquire()
        bell.acquire(timeout=max(0, seconds))

    def _settle(self, request: object) -> None:
        if self._coming.pop(request, None) is None:
            return
        self._settled += 1
        if self._bell and self._settled >= self._due:
            self._bell.release()
            self._bell = None

    def pause(self) -> None:
        """Pause for a moment if quick requests are being answered."""
        if self.quick > 0:
            time.sleep(self.PAUSE)


traffic = Traffic()  # of the process, as its interpreter is


def giving_way(rows: Iterable[Row], every: int) -> Iterator[Row]:
    """Yield the rows, and let quick requests go first before each *every* of them."""
    for number, row in enumerate(rows):
        if number % every == 0:
            traffic.pause()
        yield row
