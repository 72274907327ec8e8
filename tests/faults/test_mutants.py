"""The harness itself: it notices when our own server is broken on purpose."""

import shutil
import threading

import pytest
import service as real
from mutants import FLUSHES_LATE, MUTANTS, mutated
from service import wait_until
from traffic import Caller, Traffic, locked


def noticed(service, rounds):
    """Return what the harness says: callers of the same users, kills, and a lock."""
    traffic = Traffic(service, service.running())
    with traffic.flowing():
        wait_until(lambda: traffic.acknowledged() > 100, 30)
        same = [Caller(traffic) for _ in range(8)]
        same_users(same)
    if wrong := proof(traffic):
        return wrong
    for _ in range(rounds):
        before = traffic.acknowledged()
        with traffic.flowing():
            wait_until(lambda before=before: traffic.acknowledged() > before + 20, 30)
            service.kill()
            service.restarted()
        if wrong := proof(traffic):
            return wrong
    with locked(service, 6), traffic.flowing():
        wait_until(
            lambda: traffic.statuses[503] > 0 or traffic.acknowledged() > before + 40,
            30,
        )
    return proof(traffic) or enrolled_after_stop(traffic)


def enrolled_after_stop(traffic):
    """Return who was enrolled after a stop was answered; both workers are asked."""
    service = traffic.service
    service.data("POST", f"{traffic.path}/stop")
    decisions = [
        service.data("POST", f"{traffic.path}/assignments", {"userId": f"late-{n}"})
        for n in range(40)
    ]
    return [f"after the stop: {one}" for one in decisions if one["enrolled"]]


def same_users(callers):
    """Let all callers enrol the same new users at once."""

    def enrol(caller):
        for number in range(30):
            caller.enrol(f"same-{number}")
        caller.close()

    threads = [threading.Thread(target=enrol, args=(one,)) for one in callers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def proof(traffic):
    try:
        return traffic.proved()
    except Exception as error:  # a proof that cannot even be read is none
        return [repr(error)]


@pytest.mark.parametrize("patches", [*MUTANTS.values(), FLUSHES_LATE])
def test_f18_every_mutant_can_be_made(tmp_path, patches):
    """So that a change of the service does not disarm the harness unseen."""
    for name, old, new in patches:
        assert new in (mutated(tmp_path, (name, old, new)) / name).read_text()
        shutil.rmtree(tmp_path / "tree")


def test_f18_the_harness_finds_nothing_in_the_server_as_it_is(tmp_path, thorough):
    with real.served(tmp_path / "instance") as service:
        assert noticed(service, 5) == []


@pytest.mark.parametrize("mutant", MUTANTS)
def test_f18_the_harness_notices_a_broken_server(tmp_path, thorough, mutant, figure):
    tree = mutated(tmp_path, *MUTANTS[mutant])
    with real.served(tmp_path / "instance", tree=tree) as service:
        wrong = noticed(service, 30)

    assert wrong, f"{mutant}: nothing was noticed"
    figure(f"F18 {mutant}", noticed=wrong[0][:90])
