"""Traffic under faults, the answers to its callers, and the proof of them.

Each request is of one of three classes, as in Jepsen: *ok* (a whole answer: what it
says must be there, exactly once, for ever), *fail* (refused, or never sent: must not
be there) and *info* (sent, and not answered: may be there; its caller asks again with
the same body).
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any

from ledger import proof
from models import Assignment, Conversion, ParticipantTally, Refusal
from storage import engine, factory, schema
from targeting import assignment

CALLERS = 8
BATCH = 100
EVEN = [5_000, 5_000]
HOLD = """
import sys, time, pysqlite3
held = pysqlite3.connect(sys.argv[1], isolation_level=None)
held.execute("BEGIN IMMEDIATE")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


class Traffic:
    """Callers of one experiment, who note each answer."""

    def __init__(self, service: Any, path: str, batch_every: int = 40) -> None:
        self.service, self.path, self.batch_every = service, path, batch_every
        self.id = path.partition("/")[2]
        self.variants: dict[str, str] = {}  # ok: the variant of a user, as answered
        self.keys: dict[str, tuple[str, int]] = {}  # ok: a conversion by its key
        self.batches: list[list[str]] = []  # sent, whatever was answered
        self.maybe: set[str] = set()  # info: users and keys
        self.never: set[str] = set()  # fail: users and keys
        self.statuses: Counter[int] = Counter()
        self.spent: list[float] = []
        self.wrong: list[str] = []  # what was seen to be wrong at once
        self.counts = (0, 0)
        self.checks = 0
        self._numbers = iter(range(10**9))
        self._lock = threading.Lock()
        self._over = threading.Event()

    # -- calling

    @contextmanager
    def flowing(self, callers: int = CALLERS) -> Iterator[None]:
        """Let so many callers call until the end of the block."""
        self._over.clear()
        threads = [threading.Thread(target=self._call_on) for _ in range(callers)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join(60)
                assert not thread.is_alive()

    def acknowledged(self) -> int:
        """Return how many users and conversions have been acknowledged."""
        return len(self.variants) + len(self.keys)

    def _call_on(self) -> None:
        with self._lock:
            choice = random.Random(next(self._numbers))
        caller = Caller(self)
        while not self._over.is_set():
            with self._lock:
                number = next(self._numbers)
            if number % self.batch_every == 0:
                batch = [f"b{number}-{place}" for place in range(BATCH)]
                self.batches.append(batch)
                caller.enrol_batch(batch)
            elif number % 10 == 0:
                caller.convert_stranger(f"s{number}")
            else:
                caller.enrol(f"u{number}")
                if choice.random() < 0.3:  # a deliberate replay
                    caller.enrol(f"u{number}")
                caller.convert(f"u{number}", f"k{number}", number)
                if choice.random() < 0.3:
                    caller.convert(f"u{number}", f"k{number}", number)
        caller.close()

    def ask_again(self) -> None:
        """Ask again whatever was left unanswered; now each must be answered."""
        caller = Caller(self)
        for batch in self.batches:
            if self.maybe.intersection(batch):
                caller.enrol_batch(batch)
        for user in [one for one in self.maybe if one.startswith("u")]:
            caller.enrol(user)
        for key in [one for one in self.maybe if one.startswith("k")]:
            caller.convert(f"u{key[1:]}", key, int(key[1:]))
        caller.close()
        if self.maybe:
            self.wrong.append(f"I7: {len(self.maybe)} stay unanswered")

    # -- proving

    def proved(self) -> list[str]:
        """Return what is wrong: over HTTP first, then in the database."""
        service, wrong = self.service, list(self.wrong)
        experiment = service.data("GET", self.path)
        computed = service.data("POST", f"{self.path}/compute-results")
        quality = service.data("GET", f"{self.path}/results")["quality"]
        for user in random.sample(sorted(self.variants), min(20, len(self.variants))):
            again = service.data("POST", f"{self.path}/assignments", {"userId": user})
            if again["variantId"] != self.variants[user]:
                wrong.append(f"I3: {user} had {self.variants[user]}, now {again}")
        with opened(service):
            wrong += self._proved_from_rows(experiment, computed, quality)
        return wrong

    def _proved_from_rows(
        self, experiment: Any, computed: Any, quality: Any
    ) -> Iterator[str]:
        schema.verify()
        engine.database.obj.examine()  # I5
        yield from (f"I4: {one}" for one in proof.discrepancies())
        seats = list(
            Assignment.select(Assignment.user_id, Assignment.variant)
            .where(Assignment.experiment == self.id)
            .tuples()
        )
        rows = list(
            Conversion.select(
                Conversion.idempotency_key, Assignment.user_id, Conversion.value
            )
            .join(Assignment)
            .where(Conversion.experiment == self.id)
            .tuples()
        )
        self.checks += len(self.variants) + len(self.keys) + len(self.never)
        users, keys = dict(seats), {row[0]: row[1:] for row in rows}
        if len(users) != len(seats) or len(keys) != len(rows):
            yield f"I1: {len(seats)} seats of {len(users)} users, {len(rows)} rows"
        yield from self._compared_with_answers(users, keys)
        yield from self._compared_counts(len(seats), len(rows), experiment, quality)
        for variant in computed["variants"]:
            if variant["conversions"] > variant["sampleSize"]:
                yield f"I4: more conversions than participants: {variant}"
        if len(seats) < self.counts[0] or len(rows) < self.counts[1]:
            yield f"I6: {self.counts} became {len(seats)}, {len(rows)}"
        self.counts = len(seats), len(rows)

    def _compared_with_answers(
        self, users: dict[str, str], keys: dict[str, Any]
    ) -> Iterator[str]:
        """Yield each stored user or key that differs from the answers."""
        for user, variant in self.variants.items():
            if users.get(user) != variant:
                yield f"I1, I3: {user} got {variant}, stored {users.get(user)}"
        for key, (user, value) in self.keys.items():
            if key not in keys or keys[key] != (user, value):
                yield f"I1: {key} was accepted, stored {keys.get(key)}"
        known = self.variants.keys() | self.keys.keys() | self.maybe
        if unknown := (users.keys() | keys.keys()) - known:
            yield f"I2: {sorted(unknown)[:5]} stored, never acknowledged"
        for batch in self.batches:
            if len(users.keys() & set(batch)) not in (0, len(batch)):
                yield f"F11: {len(users.keys() & set(batch))} of a batch"

    def _compared_counts(
        self, seats: int, rows: int, experiment: Any, quality: Any
    ) -> Iterator[str]:
        """Yield each count of the service that differs from the number of rows."""
        counted = sum(
            one.participants
            for one in ParticipantTally.select().where(
                ParticipantTally.experiment == self.id
            )
        )
        if not seats == counted == experiment["_count"]["assignments"]:
            yield f"I4: {seats} seats, {counted} counted, answered {experiment}"
        refused = Refusal.select().where(Refusal.experiment == self.id).count()
        if (quality["counted"], quality["received"]) != (rows, rows + refused):
            yield f"I4: {rows} rows, {refused} refusals, answered {quality}"


@contextmanager
def opened(service: Any) -> Iterator[None]:
    """Open the service's database in this process, as `check` would."""
    file = f"sqlite:///{service.instance / 'abacus.db'}"
    url = service.settings.get("DATABASE_URL", file)
    with engine.using(factory.database_at(url)) as database:
        database.open()
        try:
            yield
        finally:
            database.shut()


@contextmanager
def locked(service: Any, seconds: float) -> Iterator[None]:
    """Let another process hold the write lock for so long, and wait for its end."""
    database = service.instance / "abacus.db"
    command = [sys.executable, "-c", HOLD, str(database), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        yield
        assert holder.wait(seconds + 10) == 0


class Caller:
    """One connection, and what becomes of each request on it."""

    def __init__(self, traffic: Traffic) -> None:
        self.traffic = traffic
        self.connection: HTTPConnection | None = None

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def ask(self, path: str, body: Any, *names: str) -> tuple[int, Any]:
        """Return status and answer; 0 if there is none, with the names kept as info."""
        traffic = self.traffic
        known = (traffic.maybe, traffic.variants, traffic.keys)
        fresh = {name for name in names if not any(name in one for one in known)}
        began = time.monotonic()
        try:
            connection = self._connected()
        except OSError:
            traffic.never |= fresh  # not sent, so not there
            time.sleep(0.05)
            return 0, None
        # Noted before it is sent; from here on, it may be there.
        traffic.maybe |= fresh
        traffic.never -= fresh
        try:
            answer, content = self._exchange(connection, path, body)
        except (OSError, HTTPException, ValueError):
            self.close()
            return 0, None
        if answer.will_close:
            self.close()
        traffic.spent.append(time.monotonic() - began)
        traffic.statuses[answer.status] += 1
        if answer.status >= 400:
            traffic.never |= fresh
            traffic.maybe -= fresh
            if answer.status == 503 and answer.headers["Retry-After"] is None:
                traffic.wrong.append("a 503 without Retry-After")
        return answer.status, content

    def _connected(self) -> HTTPConnection:
        """Return the open connection, made if there is none."""
        if self.connection is None:
            made = HTTPConnection("127.0.0.1", self.traffic.service.port, timeout=30)
            made.connect()
            self.connection = made
        return self.connection

    def _exchange(
        self, connection: HTTPConnection, path: str, body: Any
    ) -> tuple[HTTPResponse, Any]:
        """Send a request; return the response, and the JSON that it contains."""
        headers = {
            "Authorization": f"Bearer {self.traffic.service.token}",
            "Content-Type": "application/json",
        }
        connection.request(
            "POST", f"/api/{self.traffic.path}/{path}", json.dumps(body), headers
        )
        answer = connection.getresponse()
        return answer, json.loads(answer.read())

    def enrol(self, user: str) -> None:
        status, answer = self.ask("assignments", {"userId": user}, user)
        if status in (200, 201):
            self._seated(answer["data"])
        elif status not in (0, 503):
            self.traffic.wrong.append(f"enrol {user}: {status} {answer}")

    def enrol_batch(self, users: list[str]) -> None:
        body = {"users": [{"userId": user} for user in users]}
        status, answer = self.ask("assignments/batch", body, *users)
        if status == 200:
            for one in answer["data"]:
                self._seated(one)
        elif status not in (0, 503):
            self.traffic.wrong.append(f"batch: {status} {answer}")

    def _seated(self, decision: Any) -> None:
        user, variant = decision["userId"], decision["variantId"]
        traffic = self.traffic
        # The hash is published: any caller can know what the answer must be.
        expected = f"v{assignment.dealt(traffic.id, user, EVEN) + 1}"
        if variant != traffic.variants.get(user, expected):
            traffic.wrong.append(f"I3: {user} got {variant}, not {expected}")
        traffic.variants[user] = variant
        traffic.maybe.discard(user)
        traffic.never.discard(user)

    def convert(self, user: str, key: str, value: int) -> None:
        traffic = self.traffic
        enrolled = user in traffic.variants
        body = {"userId": user, "value": value, "idempotencyKey": key}
        status, answer = self.ask("conversions", body, key)
        if status in (200, 201):
            if status == 201 and key in traffic.keys:
                traffic.wrong.append(f"I1: {key} is counted twice")
            traffic.keys[key] = (user, value)
            traffic.maybe.discard(key)
            traffic.never.discard(key)
        elif status == 409 and answer["error"]["code"] == "NOT_ENROLLED":
            traffic.maybe.discard(key)  # it was not counted before, either
            traffic.never.add(key)
            if enrolled:
                traffic.wrong.append(f"I1: {user} was enrolled, and is forgotten")
        elif status not in (0, 503):
            traffic.wrong.append(f"convert {key}: {status} {answer}")

    def convert_stranger(self, user: str) -> None:
        key = f"k-{user}"
        body = {"userId": user, "value": 1, "idempotencyKey": key}
        status, answer = self.ask("conversions", body)
        self.traffic.never |= {user, key}
        if status not in (0, 409, 503):
            self.traffic.wrong.append(f"stranger {user}: {status} {answer}")
