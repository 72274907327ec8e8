"""Priority of short requests over long work."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Row = TypeVar("Row")


class Traffic:
    """The number of quick requests that this process has received or is answering.

    Work that takes seconds lets them go first. All threads share one interpreter, and a
    write releases it about twenty times, each of which could be a wait.
    """

    PAUSE = 0.001  # seconds; about three times as long as the work between two pauses

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._own = threading.local()
        self.quick = 0
        self._settled = self._due = 0
        self._bell: threading.Lock | None = None

    def announce(self) -> None:
        """Count a request that has been received, and that a thread will take."""
        with self._lock:
            self.quick += 1

    def take(self) -> None:
        """Note that the request of this thread counts already."""
        self._own.counts = True

    def enter(self) -> None:
        """Count the request of this thread, unless it counts already."""
        if not self._counts():
            self.announce()
            self.take()

    def leave(self) -> None:
        """Stop counting it: it was answered, or it takes seconds."""
        if self._counts():
            self._own.counts = False
            with self._lock:
                self.quick -= 1
                self._settle()

    def _counts(self) -> bool:
        return getattr(self._own, "counts", False)

    def wait_to_write(self) -> None:
        """Note that the request of this thread waits until another one has written."""
        with self._lock:
            self._settle()

    def await_others(self, waiting: int, seconds: float) -> None:
        """Wait until every request that counts now has left, or waits to be written.

        So many wait already, the caller's among them.
        """
        with self._lock:
            others = self.quick - waiting
            if others <= 0:
                return
            self._due = self._settled + others
            bell = self._bell = threading.Lock()
            bell.acquire()
        bell.acquire(timeout=max(0, seconds))

    def _settle(self) -> None:
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
