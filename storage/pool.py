"""The connections of one process to a database server."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from storage.engine import Refused
from storage.turns import Turns


class Pool:
    """Connections that threads borrow; there are fewer than threads.

    More connections than the server has processors make it slower, and each one takes
    memory there. Whoever gets none waits in a line, whose length is bounded too.
    """

    def __init__(self, connect: Callable[[], Any], size: int, turns: Turns) -> None:
        """*turns* bounds how many threads wait, here and to write in a group."""
        self._connect = connect
        self._turns = turns
        self._lock = threading.Lock()
        self._places = threading.Semaphore(size)
        self._idle: list[Any] = []
        self.generation = 0
        """How often a connection was lost, and perhaps another server was found."""

    def take(self, seconds: float) -> Any:
        """Lend a connection to this thread; raise Refused if all are in use."""
        if not self._places.acquire(blocking=False):
            self._wait(seconds)
        try:
            with self._lock:
                if self._idle:
                    return self._idle.pop()  # the last one used has the warmest cache
            return self._connect()
        except BaseException:
            self._places.release()
            raise

    def _wait(self, seconds: float) -> None:
        with self._turns.lock:
            self._turns.refuse_too_many()
            self._turns.members += 1
        try:
            if not self._places.acquire(timeout=max(0, seconds)):
                raise Refused("BUSY", "The other threads took too long.")
        finally:
            with self._turns.lock:
                self._turns.members -= 1

    def give(self, connection: Any, is_sound: bool) -> None:
        """Take a connection back; one that is not sound is closed, with the idle ones.

        The server that they are connected to may be gone or may not be the leader any
        more, and a new connection finds the one that is.
        """
        if is_sound:
            with self._lock:
                self._idle.append(connection)
        else:
            connection.close()
            self.empty()
            self.generation += 1
        self._places.release()

    def empty(self) -> None:
        """Close the connections that nobody uses."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
