"""Long work lets short requests go first."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Row = TypeVar("Row")


class Traffic:
    """How many quick requests this process is answering now.

    Work that takes seconds lets them go first. They share one interpreter with it,
    and would wait for it at each of the twenty times that a write gives it up.
    """

    PAUSE = 0.001  # seconds; about three times as long as the work between two pauses

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.quick = 0

    def enter(self) -> None:
        """Count a quick request in."""
        with self._lock:
            self.quick += 1

    def leave(self) -> None:
        """Count it out: it was answered, or turned out to take seconds."""
        with self._lock:
            self.quick -= 1

    def pause(self) -> None:
        """Pause once if quick requests are being answered: never for long."""
        if self.quick > 0:
            time.sleep(self.PAUSE)


traffic = Traffic()  # of the process, as its interpreter is


def giving_way(rows: Iterable[Row], every: int) -> Iterator[Row]:
    """Yield the rows, and before each *every* of them let quick requests go first."""
    for number, row in enumerate(rows):
        if number % every == 0:
            traffic.pause()
        yield row
