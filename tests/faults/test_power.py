"""The power fails: what was acknowledged had been flushed to the disk before.

A kill -9 cannot show this, for what a dead process wrote stays in the system's memory.
"""

import random
import re
import shutil
import time

import pysqlite3
import pytest
import service as real
from conftest import leave_out
from disk import MODELS, STRACE, Replay
from mutants import FLUSHES_LATE, mutated
from traffic import Traffic

CUTS_A_ROUND = 9  # 20 rounds are 180 moments in each of four models: 720 cuts


def recorded(folder, tree, acknowledged):
    """Return the log of a whole service under load, its instance, and its traffic."""
    instance, log = folder / "instance", folder / "strace"
    before = {"abacus.db": (real.made_ready(real.ROOT)[0] / "abacus.db").read_bytes()}
    wrapper = (*STRACE, "-o", str(log))
    with real.served(instance, tree=tree, wrapper=wrapper) as service:
        traffic = Traffic(service, service.running(), batch_every=25)
        with traffic.flowing(4):
            deadline = time.monotonic() + 120
            while traffic.acknowledged() < acknowledged:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert traffic.proved() == []
        master = service.process.pid
    deadline = time.monotonic() + 30
    while not re.search(rf"(?m)^{master} +\+\+\+ exited", log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return Replay(log, instance, before), traffic


def examined(disk, folder, answered, batches):
    """Return how many acknowledged users are lost, and what else is wrong."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    disk.write_to(folder)
    database = pysqlite3.connect(f"file:{folder / 'abacus.db'}?mode=rw", uri=True)
    try:
        found = database.execute("PRAGMA integrity_check").fetchone()[0]
        users = {user for (user,) in database.execute("SELECT user_id FROM assignment")}
        tally = database.execute(
            "SELECT sum(participants) FROM participant_tally"
        ).fetchone()[0]
    except pysqlite3.DatabaseError as error:
        return len(answered), [str(error)]
    finally:
        database.close()
    wrong = [] if found == "ok" else [found]
    if (tally or 0) != len(users):
        wrong.append(f"{len(users)} users, {tally} counted")
    wrong += [
        f"{len(users & batch)} of a batch"
        for batch in batches
        if len(users & batch) not in (0, len(batch))
    ]
    return len(answered - users), wrong


def cut_often(replay, traffic, folder, cuts):
    """Cut the power at so many moments, in each model; return losses and wrongs."""
    choice = random.Random(1)
    moments = sum(1 for _ in Replay(replay.log, replay.folder, {}).events())
    chosen = set(choice.sample(range(moments), min(cuts, moments)))
    batches = [set(batch) for batch in traffic.batches]
    losses, wrong = [], []
    for moment, _ in enumerate(replay.events()):
        if moment in chosen:
            for model in MODELS:
                disk = replay.cut(model, choice)
                lost, problems = examined(disk, folder, replay.answered, batches)
                losses.append(lost)
                wrong += [f"at {moment}, {model}: {one}" for one in problems]
    assert replay.answered >= traffic.variants.keys()  # the log has every answer
    return losses, wrong


@pytest.fixture(autouse=True)
def strace():
    if shutil.which("strace") is None:
        leave_out("strace is not installed; .ci/run installs it")


def test_f5_nothing_acknowledged_is_lost_when_the_power_fails(tmp_path, rounds, figure):
    acknowledged = min(50 * rounds, 600)
    replay, traffic = recorded(tmp_path, real.ROOT, acknowledged)
    cuts = CUTS_A_ROUND * rounds
    losses, wrong = cut_often(replay, traffic, tmp_path / "cut", cuts)

    assert wrong == []
    assert not any(losses)
    figure(
        "F5 power cuts",
        cuts=len(losses),
        acknowledged=len(replay.answered),
        cuts_that_lost=0,
        broken=0,
    )


def test_f5_without_the_flush_the_same_cuts_do_lose(tmp_path, rounds, thorough, figure):
    """The control: synchronous=NORMAL, in a copy of the service, must be caught."""
    tree = mutated(tmp_path, *FLUSHES_LATE)
    replay, traffic = recorded(tmp_path, tree, min(50 * rounds, 600))
    cuts = CUTS_A_ROUND * rounds
    losses, _ = cut_often(replay, traffic, tmp_path / "cut", cuts)

    losing = sum(lost > 0 for lost in losses)
    assert losing > 0
    figure(
        "F5 control, synchronous=NORMAL",
        cuts=len(losses),
        cuts_that_lost=losing,
        worst=f"{max(losses)} of {len(replay.answered)}",
    )
