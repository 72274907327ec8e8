"""Requests at the same time: what one of them does, and what the others see."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise

import pytest
from conftest import LINE, Caller, ago, configured, two_variants

from app import create_app
from ledger import enrolment, proof
from models import (
    Assignment,
    Conversion,
    Crossing,
    Experiment,
    GroupShare,
    Variant,
)
from storage import engine
from storage.columns import utcnow

CALLERS = 8


@pytest.fixture
def callers(app, api, database_url):
    """Return callers of two apps on the same database, as of two processes."""
    other = create_app(configured(database_url))
    made = []
    for one in (app, other):
        caller = Caller(one, None)
        caller.headers = api.headers
        made.append(caller)
    yield made * (CALLERS // 2)
    with engine.using(other.extensions["database"]) as database:
        database.shut()


def at_once(callers, act):
    """Return what each caller's act returns; all begin together, in threads."""
    start = threading.Barrier(len(callers))

    def run(number, caller):
        start.wait()
        try:
            return act(number, caller)
        finally:
            caller.client.application.extensions["database"].close()

    with ThreadPoolExecutor(len(callers)) as threads:
        return list(threads.map(run, range(len(callers)), callers))


def statuses(answers):
    return Counter(answer.status_code for answer in answers)


def is_proved():
    return list(proof.discrepancies()) == []


def test_no_event_of_many_writers_is_lost_from_a_sum(callers, api, running, enrolled):
    path = running()
    users = [f"u{number}" for number in range(20)]
    enrolled(path, *users)

    def convert(number, caller):
        answers = []
        for turn in range(15):
            body = {"userId": users[turn % 20], "value": 0.1, "metric": f"m{turn % 3}"}
            answers.append(caller.post(f"{path}/conversions", body))
            rows = [{"userId": user, "value": 1} for user in users]
            batch = {"conversions": rows if number % 2 else rows[::-1]}
            answers.append(caller.post(f"{path}/conversions/batch", batch))
        return statuses(answers)

    told = sum(at_once(callers, convert), Counter())

    assert told == {201: CALLERS * 15, 200: CALLERS * 15}
    assert Conversion.select().count() == CALLERS * 15 * 21
    results = api.get(f"{path}/results").json["data"]
    assert results["quality"]["counted"] == CALLERS * 15 * 21
    assert is_proved()


def test_no_user_of_many_writers_is_lost_from_the_participants(callers, api, running):
    path = running()

    def enrol(number, caller):
        answers = []
        for turn in range(15):  # each user is enrolled by two callers
            body = {"userId": f"u{number // 2}-{turn}"}
            answers.append(caller.post(f"{path}/assignments", body))
            users = [{"userId": f"b{number // 2}-{turn}-{n}"} for n in range(10)]
            batch = {"users": users if number % 2 else users[::-1]}
            answers.append(caller.post(f"{path}/assignments/batch", batch))
        return statuses(answers)

    told = sum(at_once(callers, enrol), Counter())

    people = CALLERS // 2 * 15
    assert told == {201: people, 200: 3 * people}
    assert api.get(path).json["data"]["_count"] == {"assignments": people * 11}
    assert Assignment.select().count() == people * 11
    assert is_proved()


@pytest.mark.parametrize("users", ["ba", "bab"], ids=["short way", "long way"])
def test_users_are_written_in_one_order_so_that_no_two_batches_deadlock(
    api, running, users
):
    path = running()

    body = {"users": [{"userId": user} for user in users]}
    answer = api.post(f"{path}/assignments/batch", body)

    assert [one["userId"] for one in answer.json["data"]] == list(users)
    rows = Assignment.select().order_by(Assignment.id)
    assert [row.user_id for row in rows] == ["a", "b"]


@pytest.mark.parametrize("move", ["stop", "complete"])
def test_nobody_is_enrolled_after_the_answer_to_a_move(callers, api, running, move):
    path = running()
    body = {"conclusion": "inconclusive"} if move == "complete" else None
    moved, enrolled_after = threading.Event(), []

    def act(number, caller):
        if number == 0:
            for turn in range(15):
                caller.post(f"{path}/assignments", {"userId": f"first-{turn}"})
            answer = caller.post(f"{path}/{move}", body)
            enrolled_after.append(utcnow())
            moved.set()
            return answer.status_code
        turn = 0
        while not moved.is_set() or turn % 5:
            turn += 1
            is_late = moved.is_set()
            user = {"userId": f"u{number}-{turn}"}
            many = {"users": [{"userId": f"b{number}-{turn}"}]}
            for answer in (
                caller.post(f"{path}/assignments", user).json["data"],
                *caller.post(f"{path}/assignments/batch", many).json["data"],
            ):
                assert not (is_late and answer["enrolled"]), answer
        return 200

    assert set(at_once(callers, act)) == {200}
    (answered,) = enrolled_after
    assert Assignment.select().where(Assignment.assigned_at > answered).count() == 0
    assert api.get(path).json["data"]["_count"]["assignments"] > 0
    assert is_proved()


def test_experiments_that_start_at_once_share_a_group_without_overlap(callers, draft):
    drafts = [
        draft(exclusionGroup="checkout", trafficPercentage=30) for _ in range(CALLERS)
    ]

    told = at_once(callers, lambda n, caller: caller.post(f"{drafts[n]}/start"))

    assert statuses(told) == {200: 3, 409: CALLERS - 3}
    shares = sorted((row.first, row.last) for row in GroupShare.select())
    assert sum(last - first + 1 for first, last in shares) == 9_000
    assert all(one[1] < other[0] for one, other in pairwise(shares))


def test_of_experiments_with_one_key_only_the_first_is_made(callers):
    body = {"key": "checkout", "name": "Checkout", "variants": two_variants()}

    told = at_once(callers, lambda _, caller: caller.post("experiments", body))

    assert statuses(told) == {201: 1, 409: CALLERS - 1}
    assert Experiment.select().count() == 1


def test_experiments_of_one_name_have_keys_of_their_own(callers):
    body = {"name": "Checkout", "variants": two_variants()}

    told = at_once(callers, lambda _, caller: caller.post("experiments", body))

    assert statuses(told) == {201: CALLERS}
    assert len({row.key for row in Experiment.select()}) == CALLERS
    assert Variant.select().count() == 2 * CALLERS


@pytest.mark.parametrize("way", ["conversions", "conversions/batch"])
def test_an_idempotency_key_that_is_sent_at_once_counts_once(
    callers, running, enrolled, way
):
    path = running()
    enrolled(path, "u1")
    event = {"userId": "u1", "value": 5, "idempotencyKey": "order-1"}
    body = event if way == "conversions" else {"conversions": [event]}

    told = at_once(callers, lambda _, caller: caller.post(f"{path}/{way}", body))

    assert set(statuses(told)) <= {200, 201}
    data = [answer.json["data"] for answer in told]
    data = data if way == "conversions" else [row for rows in data for row in rows]
    kinds = Counter(one["status"] for one in data)
    assert kinds == {"accepted": 1, "duplicate": CALLERS - 1}
    assert Conversion.select().count() == 1
    assert is_proved()


def test_looks_at_once_all_answer_with_the_one_that_is_stored(
    callers, api, running, enrolled
):
    path = running()
    given = enrolled(path, *[f"u{place}" for place in range(200)])
    rows = [{"userId": one["userId"]} for one in given if one["variantId"] == "v2"]
    booked = api.post(f"{path}/conversions/batch", {"conversions": rows})
    assert booked.status_code == 200

    answers = at_once(callers, lambda _, one: one.get(f"{path}/compute-results"))

    later = api.get(f"{path}/compute-results")
    told = [each.json["data"]["variants"][1] for each in (*answers, later)]
    stored = told[-1]["comparison"]["crossing"]
    assert stored["users"] == 200
    assert [one["comparison"]["crossing"] for one in told] == [stored] * len(told)
    assert is_proved()


def test_looks_at_once_store_one_first_look_at_a_mean(callers, api, running, load):
    path = running(metrics=[{"name": "spent", "role": "primary", "kind": "mean"}])
    now = ago(0)
    lines = [
        f"u{n},v{n % 2 + 1},{now},{now},spent,{10 * (n % 2) + n % 7}"
        for n in range(120)
    ]
    load(path, f"{LINE},value", *lines)

    answers = at_once(
        callers, lambda _, caller: caller.get(f"{path}/compute-results").json["data"]
    )

    assert {each["verdict"]["status"] for each in answers} == {"variant_wins"}
    row = Crossing.get()
    assert Crossing.select().count() == 1
    found = api.get(f"{path}/compute-results").json["data"]
    crossing = found["variants"][1]["value"]["comparison"]["crossing"]
    assert crossing["difference"] == float(row.difference)
    assert {crossing["at"]} == {
        each["variants"][1]["value"]["comparison"]["crossing"]["at"] for each in answers
    }
    assert is_proved()


def test_new_metrics_that_come_at_once_are_all_admitted(callers, running, enrolled):
    path = running()
    enrolled(path, "u1")

    def convert(number, caller):
        bodies = [{"userId": "u1", "metric": f"m{number}-{n}"} for n in range(10)]
        bodies += [{"userId": "u1", "metric": f"everyone-{n}"} for n in range(10)]
        return statuses(caller.post(f"{path}/conversions", body) for body in bodies)

    assert sum(at_once(callers, convert), Counter()) == {201: CALLERS * 20}
    assert is_proved()


def test_events_of_many_experiments_that_come_at_once_are_all_booked(
    callers, running, enrolled
):
    paths = [running() for _ in range(4)]
    users = [f"u{number}" for number in range(10)]
    for number, path in enumerate(paths):  # each user joins in an order of their own
        enrolled(path, *users[number:], *users[:number])

    def send(number, caller):
        rows = [{"userId": user, "value": 1} for user in users]
        body = {"events": rows if number % 2 else rows[::-1]}
        return statuses(caller.post("events/batch", body) for _ in range(5))

    assert sum(at_once(callers, send), Counter()) == {200: CALLERS * 5}
    assert Conversion.select().count() == CALLERS * 5 * 10 * 4
    assert is_proved()


def test_an_erasure_changes_no_count_while_others_write(callers, running, enrolled):
    path = running()
    people = [f"person-{number}" for number in range(10)]
    enrolled(path, *people)
    done = threading.Event()

    def act(number, caller):
        if number == 0:
            answers = [caller.delete(f"users/{one}").json["data"] for one in people]
            done.set()
            return [one["before"] == one["after"] for one in answers]
        turn = 0
        while not done.is_set():
            turn += 1
            caller.post(f"{path}/assignments", {"userId": f"u{number}-{turn}"})
            caller.post(f"{path}/conversions", {"userId": f"u{number}-{turn}"})
        return []

    assert at_once(callers, act)[0] == [True] * len(people)
    assert is_proved()


@contextmanager
def unfinished(path, user="late"):
    """Enrol a user in a transaction that is not committed before the block ends."""
    written, end = threading.Event(), threading.Event()
    here = engine.database.obj

    def write():
        with engine.using(here):
            here.beside(enter)
            here.close()

    def enter():
        now = here.now()
        new = [enrolment.NewAssignment(user, "v1", now)]
        experiment = Experiment.get_by_id(path.partition("/")[2])
        enrolment.write_assignments(experiment, new, now)
        written.set()
        end.wait(10)

    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(write)
        assert written.wait(10)
        threading.Timer(0.3, end.set).start()
        yield
        end.set()
        writing.result()


def asked_as_of(api, path, moment):
    asked = f"{path}/results?asOf={moment:%Y-%m-%dT%H:%M:%S.%fZ}"
    variants = api.get(asked).json["data"]["variants"]
    return sum(variant["participants"] for variant in variants)


@pytest.mark.postgresql  # on SQLite a reader cannot meet a writer who began before
def test_what_was_received_by_then_does_not_change_later(api, running, enrolled):
    path = running()
    enrolled(path, "u1")

    with unfinished(path):
        moment = utcnow() + timedelta(milliseconds=1)
        first = asked_as_of(api, path, moment)

    assert first == asked_as_of(api, path, moment) == 2


@pytest.mark.postgresql
def test_a_walk_and_an_export_begin_after_whoever_began_before(api, running, enrolled):
    path = running()
    enrolled(path, "u1", "u2")

    with unfinished(path):
        enrolled(path, "u3")
        first = api.get(f"{path}/assignments?limit=1").json
    with unfinished(path, "later"):
        enrolled(path, "u4")
        lines = api.get(f"{path}/export?format=csv").text.splitlines()
    following = api.get(f"{path}/assignments?cursor={first['meta']['next']}").json

    users = [one["userId"] for one in first["data"] + following["data"]]
    assert first["meta"]["total"] == len(users) == 4
    assert users == ["u3", "late", "u2", "u1"]
    exported = [line.partition(",")[0] for line in lines[1:]]
    assert exported == ["u1", "u2", "late", "u3", "later", "u4"]
