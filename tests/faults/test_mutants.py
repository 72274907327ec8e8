"""The harness itself: it notices when our own server is broken on purpose."""

import threading

import pytest
import service as real
from mutants import mutated
from service import wait_until
from traffic import Caller, Traffic, locked

MUTANTS = {
    "acknowledge before commit": [
        (
            "ledger.py",
            "def _seated(experiment: Experiment, dealt: dict[str, Variant])",
            """def _seated(experiment, dealt):
    import threading

    threading.Timer(0.1, _seated_late, (experiment, dealt)).start()
    now = utcnow()
    return {one: Decision(experiment.id, one, NEW, dealt[one], now) for one in dealt}


def _seated_late(experiment: Experiment, dealt: dict[str, Variant])""",
        )
    ],
    "no UNIQUE on (experiment, user)": [
        (
            "models.py",
            'indexes = ((("experiment", "user_id"), True),)',
            'indexes = ((("experiment", "user_id"), False),)',
        ),
        (
            "ledger.py",
            """            .on_conflict(
                action="NOTHING",
                conflict_target=[Assignment.experiment, Assignment.user_id],
            )
""",
            "",
        ),
    ],
    "a random variant": [
        (
            "ledger.py",
            "position = assignment.dealt(experiment.id, user.user_id, splits)",
            "position = __import__('random').randrange(len(splits))",
        )
    ],
    "a counter in another transaction": [
        (
            "ledger.py",
            "    for key, number in Counter(variants[user_id] for user_id in written)",
            "    database.commit()\n"
            "    database.begin()\n"
            "    for key, number in Counter(variants[user_id] for user_id in written)",
        )
    ],
    "a swallowed lock error": [
        (
            "ledger.py",
            "    decided |= _seated(experiment, dealt)\n",
            """    try:
        decided |= _seated(experiment, dealt)
    except __import__("peewee").OperationalError:
        now = utcnow()
        for one, variant in dealt.items():
            decided[one] = Decision(experiment.id, one, NEW, variant, now)
""",
        )
    ],
}


def noticed(service, rounds):
    """Return what the harness says: callers of the same users, kills, and a lock."""
    traffic = Traffic(service, service.running())
    with traffic.flowing():
        wait_until(lambda: traffic.told() > 100, 30)
        same = [Caller(traffic) for _ in range(8)]
        same_users(same)
    if wrong := proof(traffic):
        return wrong
    for _ in range(rounds):
        told = traffic.told()
        with traffic.flowing():
            wait_until(lambda told=told: traffic.told() > told + 20, 30)
            service.kill()
            service.restarted()
        if wrong := proof(traffic):
            return wrong
    with locked(service, 6), traffic.flowing():
        wait_until(lambda: traffic.statuses[503] > 0 or traffic.told() > told + 40, 30)
    return proof(traffic)


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
