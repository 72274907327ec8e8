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
        self.quick = 0

    def enter(self) -> None:
        """Count a quick request."""
        with self._lock:
            self.quick += 1

    def leave(self) -> None:
        """Stop counting it: it was answered, or it takes seconds."""
        with self._lock:
            self.quick -= 1

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
