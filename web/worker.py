"""gunicorn's worker, with a fair share of the connections."""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterable
from typing import Any

from gunicorn.workers.gthread import ThreadWorker

from storage.traffic import traffic

PLACES = 64  # workers that know of each other; further ones take what comes

NOBODY = 2**31 - 1  # more connections than any worker has

# The connections of each worker, in memory that the master shares with all of them.
connections = memoryview(mmap.mmap(-1, 4 * PLACES)).cast("i")
for each in range(PLACES):
    connections[each] = NOBODY


def free_place(workers: Iterable[Any]) -> int | None:
    """Return a place that none of these workers has, or None if there is none."""
    taken = {getattr(one, "place", None) for one in workers}
    return next((place for place in range(PLACES) if place not in taken), None)


def free(worker: Any) -> None:
    """Forget the connections of a worker that ended."""
    place = getattr(worker, "place", None)
    if place is not None:
        connections[place] = NOBODY


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """A worker that leaves new connections to a worker that has fewer.

    gunicorn's own takes what it sees first. So one of two workers may get all of the
    connections that are opened within a moment, and the processor of the other is idle.
    """

    PAUSE = 0.002  # seconds; after it, even a worker with more takes a connection

    place: int | None = None
    _paused_until = 0.0

    def accept(self, listener: Any) -> None:
        """Accept a connection; pause if another worker has at least two fewer."""
        super().accept(listener)
        self._tell()
        if self.place is not None and self.nr_conns > min(connections) + 1:
            self._paused_until = time.monotonic() + self.PAUSE
            self.set_accept_enabled(False)

    def set_accept_enabled(self, enabled: bool) -> None:
        """Accept connections from now on, if there is no pause, or do not."""
        is_paused = time.monotonic() < self._paused_until
        super().set_accept_enabled(enabled and not is_paused)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Wait for events, at most until the end of a pause, and answer them."""
        pause = self._paused_until - time.monotonic()
        super().wait_for_and_dispatch_events(pause if pause > 0 else timeout)
        self._tell()

    def _tell(self) -> None:
        if self.place is not None:
            connections[self.place] = self.nr_conns if self.alive else NOBODY

    # A request counts as traffic from here on, because it may wait for a thread.

    def on_client_socket_readable(self, conn: Any, client: Any) -> None:
        """Give a request on a kept connection to a thread."""
        conn.announced = traffic.announce()
        super().on_client_socket_readable(conn, client)

    def handle(self, conn: Any) -> Any:
        """Read a request and answer it, in a thread."""
        announced = getattr(conn, "announced", None)
        if announced:
            conn.announced = None
            traffic.take(announced)
        try:
            return super().handle(conn)
        finally:
            traffic.leave()
