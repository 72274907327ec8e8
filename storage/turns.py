"""How the threads of one process wait to write, and write together."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from storage.engine import Refused, Unsettled
from storage.traffic import traffic


class Turns:
    """The queue of this process's threads that wait to write.

    The first thread in the queue has the turn. At most *most* threads may wait, so that
    the others can always read and answer health checks.
    """

    def __init__(self) -> None:
        self.most: float = float("inf")
        self.members = 0  # threads that wait, and have no place in the line
        self.lock = threading.Lock()
        self._line: deque[tuple[int, threading.Lock]] = deque()

    def refuse_too_many(self) -> None:
        """Raise Refused if as many threads wait as may; call it with the lock held."""
        if len(self._line) + self.members >= self.most:
            raise Refused("BUSY", "Too many writers wait already.")

    def take(self, seconds: float) -> None:
        """Wait for the turn; raise Refused if that takes too long."""
        turn = threading.Lock()
        turn.acquire()
        place = threading.get_ident(), turn
        with self.lock:
            self.refuse_too_many()
            self._line.append(place)
            if len(self._line) == 1:
                return
        if turn.acquire(timeout=max(0, seconds)):
            return
        with self.lock:
            if self._line[0] is not place:  # else it came at the last moment
                self._line.remove(place)
                raise Refused("BUSY", "The other writers took too long.")

    def give(self) -> None:
        """Let the next thread write, if this one has the turn."""
        with self.lock:
            if self._line and self._line[0][0] == threading.get_ident():
                self._line.popleft()
                if self._line:
                    self._line[0][1].release()


Work = Callable[[list[Any]], Sequence[Any]]
"""Writes a list of items; returns a result for each."""


class Job:
    """An item that one thread has to write, in a transaction shared with others."""

    def __init__(self, work: Work, item: Any, place: Any, deadline: float) -> None:
        self.work, self.item, self.place, self.deadline = work, item, place, deadline
        self.leads = False
        self.request: object | None = None  # as the traffic knows it
        self.result: Any = None
        self.error: BaseException | None = None
        self.wait = threading.Lock()
        self.wait.acquire()

    def outcome(self) -> Any:
        """Return what the work returned, or raise what it raised."""
        if self.error is not None:
            raise self.error
        return self.result


def run(jobs: Sequence[Job]) -> None:
    """Do the jobs within the present transaction: one call for all of the same work."""
    kinds: dict[Work, list[Job]] = {}
    for job in jobs:
        kinds.setdefault(job.work, []).append(job)
    for work, same in kinds.items():
        results = work([job.item for job in same])
        for job, result in zip(same, results, strict=True):
            job.result, job.error = result, None


class Group:
    """Jobs that are committed together: one flush to the disk for several answers.

    The first thread leads: it waits a moment if the process is answering other requests
    too, begins a transaction, does the jobs of all threads that have come meanwhile,
    and commits. Then it wakes them, and the first one that has come since leads the
    next group. Nobody is answered before the commit.
    """

    MOMENT = 0.003  # seconds

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._waiting: deque[Job] = deque()
        self._is_led = False

    def join(self, work: Work, item: Any, place: Any, deadline: float) -> Job:
        """Return the job when it is done, or when its thread must lead.

        Only jobs of one place, the file that their threads have open, are committed
        together.
        """
        job = Job(work, item, place, deadline)
        with self._turns.lock:
            if not self._is_led:
                self._is_led = job.leads = True
            else:
                self._turns.refuse_too_many()
                self._turns.members += 1
            self._waiting.append(job)
        job.request = traffic.wait_to_write()
        if not job.leads:
            job.wait.acquire()
        return job

    def lead(
        self, job: Job, transaction: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        """Do all jobs that wait, this one among them, in one transaction."""
        jobs = [job]
        try:
            self._await_others()
            try:
                with transaction():
                    jobs = self._all(job.place)
                    run(jobs)
            except BaseException as error:
                self._part(jobs, error, transaction)
        finally:
            self._hand_over(jobs, job)

    def _await_others(self) -> None:
        """Wait for requests that may be about to write, as long as some of them do."""
        end, joined = time.monotonic() + self.MOMENT, 0
        while joined < len(self._waiting) and time.monotonic() < end:
            joined = len(self._waiting)
            traffic.await_others(end - time.monotonic())

    def _all(self, place: Any) -> list[Job]:
        with self._turns.lock:
            jobs = [one for one in self._waiting if one.place == place]
            others = [one for one in self._waiting if one.place != place]
            self._waiting = deque(others)
            self._turns.members -= len(jobs) - 1
        return jobs

    def _part(
        self,
        jobs: list[Job],
        error: BaseException,
        transaction: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        """Do each job in a transaction of its own: one has spoilt that of all."""
        if len(jobs) == 1 or isinstance(error, Unsettled):
            for one in jobs:
                one.error = error
            return
        for one in jobs:
            try:
                with transaction():
                    run([one])
            except BaseException as own:
                one.error = own

    def _hand_over(self, jobs: list[Job], leader: Job) -> None:
        """Wake the threads of these jobs, and the next leader if there is one."""
        traffic.go_on(one.request for one in jobs)
        with self._turns.lock:
            if leader in self._waiting:  # its transaction never began
                self._waiting.remove(leader)
            if self._waiting:
                self._waiting[0].leads = True
                self._turns.members -= 1
                self._waiting[0].wait.release()
            else:
                self._is_led = False
        for one in jobs:
            if one is not leader:
                one.wait.release()
