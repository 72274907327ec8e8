"""How long a write waits for its turn: four ways to queue before one write lock.

Two processes of eight threads enrol and convert through the ledger on one database
file, as two gunicorn workers would: over HTTP the processor is the limit, and the
lock is hidden by what surrounds it. Rounds of all ways are interleaved.
"""

from __future__ import annotations

import argparse
import contextvars
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
import peewee

import lifecycle
from ledger import conversions, enrolment
from models import TABLES, Experiment
from storage import engine, factory, schema, sqlite
from storage.columns import utcnow
from storage.engine import database
from targeting.decision import User, decide

PROCESSES, THREADS = 2, 8
Call = Callable[[], Any]


class Line:
    """What the service does: threads in line, whose head asks every millisecond."""

    def __init__(self) -> None:
        """Nothing is added to the service's own."""

    def write(self, call: Call) -> Any:
        return call()


class Plain(Line):
    """BEGIN IMMEDIATE, and SQLite's own wait: a poll without a queue."""

    def __init__(self) -> None:
        for name in ("begin", "commit", "rollback"):
            setattr(sqlite.Sqlite, name, getattr(peewee.SqliteDatabase, name))


class Mutex(Plain):
    """The same, and one lock a process: of its threads, one at a time asks."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def write(self, call: Call) -> Any:
        with self.lock:
            return call()


class Group(Plain):
    """One writer thread a process commits what has gathered; then it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: SimpleQueue[tuple[Call, Future[Any]]] = SimpleQueue()
        in_thread(self.run).start()

    def write(self, call: Call) -> Any:
        answer: Future[Any] = Future()
        self.queue.put((call, answer))
        return answer.result()

    def run(self) -> None:
        while True:
            some = [self.queue.get()]
            while len(some) < 32 and not self.queue.empty():
                some.append(self.queue.get())
            told: list[tuple[Future[Any], Any, Exception | None]] = []
            with database.atomic():
                for call, answer in some:
                    try:
                        with database.savepoint():
                            told.append((answer, call(), None))
                    except Exception as error:  # its neighbours are kept
                        told.append((answer, None, error))
            for answer, result, problem in told:
                if problem:
                    answer.set_exception(problem)
                else:
                    answer.set_result(result)


def in_thread(act: Callable[..., None], *arguments: Any) -> threading.Thread:
    """Return a thread that does it on this thread's database."""
    context = contextvars.copy_context()
    return threading.Thread(target=context.run, args=(act, *arguments), daemon=True)


WAYS = {"plain": Plain, "mutex": Mutex, "line": Line, "group": Group}


def waited(due: float, step: float) -> float:
    """Wait until the next call is due, if there is a pace; return the one after."""
    now = time.monotonic()
    if step and due > now:
        time.sleep(due - now)
    return due + step


def call_of(experiment: Experiment, user: User, is_event: bool) -> Call:
    """Return a call that enrols a user, or converts them."""
    if is_event:
        events = [conversions.Event(user.user_id)]
        return lambda: conversions.record(experiment, events)
    proposed = [decide(experiment.definition, user, utcnow())]
    return lambda: enrolment.enrol(experiment.definition, proposed)


def work(
    way: str, url: str, id: str, name: str, pace: float, seconds: float, told: Any
) -> None:
    """Enrol and convert in eight threads; tell how long each call took."""
    engine.enter(factory.database_at(url))
    turn = WAYS[way]()
    spent: list[list[float]] = [[] for _ in range(THREADS)]
    start = time.monotonic() + 0.2

    def run(place: int) -> None:
        engine.connect()
        experiment = Experiment.get_by_id(id)
        step = THREADS * PROCESSES / pace if pace else 0.0
        due = start + step * place / THREADS
        number = 0
        while True:
            due = waited(due, step)
            began = time.monotonic()
            if began > start + seconds:
                break
            user = User(f"{name}-{place}-{number // 2}")
            turn.write(call_of(experiment, user, is_event=number % 2 == 1))
            number += 1
            spent[place].append(time.monotonic() - began)
        database.close()

    threads = [in_thread(run, n) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told.put([one for some in spent for one in some])


def measured(way: str, pace: float, seconds: float) -> list[float]:
    """Return rate, and p50, p99, p99.9 and maximum in milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/abacus.db"
        schema.create(served := factory.database_at(url), TABLES)
        with engine.using(served):
            halves = [{"name": name, "split": 5_000} for name in ("A", "B")]
            made = lifecycle.draft(
                halves, "bench", name="One", type="ab_test", primary_metric="conversion"
            )
            lifecycle.start(made, "bench")
            database.close()
        context = multiprocessing.get_context("spawn")
        told: Any = context.Queue()
        workers = [
            context.Process(
                target=work, args=(way, url, made.id, f"w{n}", pace, seconds, told)
            )
            for n in range(PROCESSES)
        ]
        for worker in workers:
            worker.start()
        spent = sorted(one for _ in workers for one in told.get(timeout=120))
        for worker in workers:
            worker.join()

    def at(share: float) -> float:
        return spent[min(len(spent) - 1, int(share * len(spent)))] * 1000

    return [len(spent) / seconds, at(0.5), at(0.99), at(0.999), spent[-1] * 1000]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=4)
    options.add_argument("--paces", type=float, nargs="*", default=[300, 0])
    options.add_argument("--ways", nargs="*", default=list(WAYS))
    chosen = options.parse_args()
    print("| way | offered | calls/s | p50 ms | p99 | p99.9 | max |")
    print("|---|---|---|---|---|---|---|")
    for pace in chosen.paces:
        rounds: dict[str, list[list[float]]] = {way: [] for way in chosen.ways}
        for _ in range(chosen.rounds):
            for way in chosen.ways:
                rounds[way].append(measured(way, pace, chosen.seconds))
        for way, figures in rounds.items():
            medians = [
                statistics.median(column) for column in zip(*figures, strict=True)
            ]
            shown = " | ".join(f"{one:,.1f}" for one in medians)
            print(f"| {way} | {f'{pace:g}/s' if pace else 'all'} | {shown} |")


if __name__ == "__main__":
    main()
