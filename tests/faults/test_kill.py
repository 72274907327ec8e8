"""Processes that are killed under load: what was acknowledged is there, once."""

import os
import random
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from service import GRACE, wait_until
from traffic import Traffic, opened

from models import Assignment


@pytest.fixture
def traffic(service):
    return Traffic(service, service.running())


def living(service):
    """Return the processes of the service's group that live."""
    alive = []
    for pid in os.listdir("/proc"):
        try:
            if pid.isdigit() and os.getpgid(int(pid)) == service.process.pid:
                with open(f"/proc/{pid}/stat") as stat:
                    if stat.read().rpartition(")")[2].split()[0] != "Z":
                        alive.append(int(pid))
        except OSError:
            continue
    return alive


def is_free(port):
    """Tell whether another service could take the port now."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def shaken(traffic, rounds, fault):
    """Let traffic flow, and make the fault in its midst, so often; return the worst.

    *fault* ends with a service that answers, and returns seconds.
    """
    worst = 0.0
    for number in range(rounds):
        before = traffic.acknowledged()
        with traffic.flowing():
            wait_until(lambda before=before: traffic.acknowledged() > before + 20, 30)
            time.sleep(random.Random(number).random() * 0.3)
            worst = max(worst, fault(traffic.service))
        assert traffic.proved() == [], f"round {number}"
        traffic.ask_again()
    assert traffic.proved() == []
    assert traffic.service.flask("check").returncode == 0
    return worst


def report(figure, fault, rounds, traffic, **figures):
    figure(
        fault,
        rounds=rounds,
        acknowledged=traffic.acknowledged(),
        checks=traffic.checks,
        violations=0,
        **{name: f"{value:.2f} s" for name, value in figures.items()},
    )


@pytest.mark.alone
def test_f1_nothing_acknowledged_is_lost_when_all_are_killed(traffic, rounds, figure):
    def fault(service):
        service.kill()
        return service.restarted()

    worst = shaken(traffic, rounds, fault)

    report(figure, "F1 kill -9 of the group", rounds, traffic, restart_at_most=worst)
    assert worst <= 3


def test_f2_when_a_worker_is_killed_the_others_answer(traffic, rounds, figure):
    def fault(service):
        victim = random.choice(sorted(service.workers()))
        os.kill(victim, signal.SIGKILL)
        return wait_until(lambda: len(service.workers() - {victim}) == 2, 10)

    worst = shaken(traffic, rounds, fault)

    report(figure, "F2 kill -9 of a worker", rounds, traffic, replaced_after=worst)
    assert not [status for status in traffic.statuses if status >= 500]


@pytest.mark.alone
def test_f3_when_the_master_is_killed_no_orphan_holds_the_port(traffic, rounds, figure):
    def fault(service):
        os.kill(service.process.pid, signal.SIGKILL)
        service.process.wait(10)
        free_after = wait_until(lambda: is_free(service.port), 40)
        wait_until(lambda: not living(service), 40)
        assert service.restarted() <= 3
        return free_after

    worst = shaken(traffic, rounds, fault)

    report(figure, "F3 kill -9 of the master", rounds, traffic, port_free_after=worst)
    assert worst <= 2


def test_f4_what_was_answered_before_an_orderly_end_is_kept(traffic, rounds, figure):
    def fault(service):
        began = time.monotonic()
        service.process.terminate()
        assert service.process.wait(GRACE + 5) == 0
        gone = time.monotonic() - began
        service.start()
        return gone

    worst = shaken(traffic, rounds, fault)

    report(figure, "F4 SIGTERM under load", rounds, traffic, exit_after=worst)
    assert worst <= GRACE


def test_f11_a_batch_is_there_whole_or_not_at_all(traffic, rounds, figure):
    traffic.batch_every = 1  # batches alone; F1 to F4 have them among others

    def fault(service):
        service.kill()
        return service.restarted()

    shaken(traffic, rounds, fault)

    cut = sum(batch[0] not in traffic.never for batch in traffic.batches)
    report(figure, f"F11 killed in the midst of {cut} batches of 100", rounds, traffic)


def test_f12_eight_callers_who_enrol_the_same_new_users_make_one_row_each(
    traffic, rounds, figure
):
    service, path = traffic.service, traffic.path
    users = [f"same-{number}" for number in range(10 * rounds)]

    def enrol(_):
        asked = (
            service.data("POST", f"{path}/assignments", {"userId": user})
            for user in users
        )
        return [one["variantId"] for one in asked]

    with ThreadPoolExecutor(8) as callers:
        variants = list(callers.map(enrol, range(8)))

    assert len({tuple(one) for one in variants}) == 1
    with opened(service):
        stored = Assignment.select(Assignment.user_id, Assignment.variant)
        rows = list(stored.tuples())
    assert len(rows) == len(users)
    assert dict(rows) == dict(zip(users, variants[0], strict=True))
    figure("F12 eight callers", users=len(users), answers=8 * len(users), doubled=0)
