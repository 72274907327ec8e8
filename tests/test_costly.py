"""Work that takes seconds is bounded in how much of it runs at once."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import Caller, assert_error
from werkzeug.test import EnvironBuilder

from storage.traffic import Traffic, traffic
from targeting import assignment
from views import planning
from web.errors import REFUSALS
from web.slots import Slots

DAY = "results?granularity=day"
AS_OF = "results?asOf=2099-01-01T00:00:00Z"


@pytest.fixture
def callers(app, token):
    """Return a maker of callers, each with a subject of its own."""
    return lambda subject: Caller(app, token(subject))


@pytest.fixture
def exporting(running, enrolled):
    """Return the path of an experiment whose export takes several pieces."""
    path = running()
    enrolled(path, *(f"user-{number}" for number in range(600)))
    return path


def begun(caller, path):
    """Return an export of which the first piece was read, and no more."""
    response = caller.get(f"{path}/export?format=csv")
    assert response.status_code == 200, response.text
    return response


def assert_refused(response):
    error = assert_error(response, 429, "TOO_MANY_REQUESTS")
    assert error["message"]
    assert response.headers["Retry-After"] == "5"


def test_beyond_two_pieces_of_costly_work_more_is_429(callers, exporting):
    first, second = (begun(callers(name), exporting) for name in ("a", "b"))

    assert_refused(callers("c").get(f"{exporting}/export?format=csv"))

    first.close()
    second.close()
    assert begun(callers("c"), exporting).text.count("\n") == 601


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "simulate", {"participants": 100, "baselineRate": 0.1}),
        ("GET", "export?format=ndjson", None),
        ("GET", DAY, None),
        ("GET", AS_OF, None),
        ("GET", f"compute-{AS_OF}", None),
        ("POST", "compute-results", {"asOf": "2099-01-01T00:00:00Z"}),
    ],
)
def test_all_costly_work_has_the_same_slots(
    callers, exporting, draft, method, path, body
):
    where = draft() if path == "simulate" else exporting
    held = [begun(callers(name), exporting) for name in ("a", "b")]
    refused = callers("c")(method, f"{where}/{path}", body)
    for one in held:
        one.close()

    assert_refused(refused)
    assert callers("c")(method, f"{where}/{path}", body).status_code == 200


def test_a_token_has_one_slot_so_that_another_finds_one(callers, exporting):
    held = begun(callers("a"), exporting)

    assert_refused(callers("a").get(f"{exporting}/{AS_OF}"))
    assert callers("b").get(f"{exporting}/{AS_OF}").status_code == 200
    held.close()
    assert callers("a").get(f"{exporting}/{AS_OF}").status_code == 200


def test_what_takes_no_seconds_is_answered_meanwhile(callers, exporting):
    held = [begun(callers(name), exporting) for name in ("a", "b")]
    caller = callers("c")

    assert caller.get(f"{exporting}/results").status_code == 200
    assert caller.post(f"{exporting}/compute-results").status_code == 200
    enrolled = caller.post(f"{exporting}/assignments", {"userId": "late"})
    assert enrolled.status_code == 201
    assert caller.get("/healthz").status_code == 200
    assert caller.get("/readyz").status_code == 200
    for one in held:
        one.close()


@pytest.mark.parametrize("path", ["export?format=csv", DAY, f"compute-{AS_OF}"])
def test_of_costly_work_one_piece_runs_at_a_time(app, callers, exporting, path):
    turn = app.extensions["abacus_slots"].turn
    with ThreadPoolExecutor(1) as pool:
        with turn:
            waiting = pool.submit(lambda: callers("a").get(f"{exporting}/{path}").text)
            quick = callers("b").get(f"{exporting}/results")
            assert not waiting.done()
        assert "v1" in waiting.result(30)

    assert quick.status_code == 200


def test_between_two_chunks_of_an_export_others_have_their_turn():
    slots = Slots()
    chunks = slots.take("a").over(slots.turn.locked() for _ in range(3))

    for chunk in chunks:
        assert chunk is True
        assert not slots.turn.locked()


def test_a_slot_is_free_once_the_export_was_read(callers, exporting):
    caller = callers("a")

    for _ in range(5):
        assert caller.get(f"{exporting}/export?format=csv").text.count("\n") == 601


@pytest.mark.parametrize("pieces", [0, 1])
def test_a_slot_is_free_once_a_reader_went_away(app, callers, exporting, pieces):
    caller = callers("a")
    for _ in range(3):
        environ = EnvironBuilder(
            path=f"/api/{exporting}/export", headers=caller.headers
        ).get_environ()
        statuses = []
        stream = app.wsgi_app(environ, lambda status, _, to=statuses: to.append(status))
        for _ in range(pieces):
            next(iter(stream))

        stream.close()

        assert statuses == ["200 OK"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "experiments/exp_none/export?format=csv", 404),
        ("HEAD", "{}/export?format=csv", 200),
        ("GET", "{}/export?format=xml", 400),
        ("GET", "{}/results?granularity=day&asOf=yesterday", 400),
        ("POST", "{}/simulate", 409),
    ],
)
def test_a_refusal_holds_no_slot(callers, exporting, method, path, status):
    body = {"participants": 100, "baselineRate": 0.1} if method == "POST" else None
    caller = callers("a")

    for _ in range(3):
        answer = caller(method, path.replace("{}", exporting), body)
        assert answer.status_code == status
        answer.close()

    assert caller.get(f"{exporting}/{DAY}").status_code == 200


def test_the_document_tells_of_429_where_work_is_bounded_and_nowhere_else(api):
    paths = api.get("/openapi.json").json["paths"]
    told = {
        f"{method.upper()} {path.rpartition('/')[2]}"
        for path, methods in paths.items()
        for method, operation in methods.items()
        if method != "parameters" and "429" in operation["responses"]
    }

    assert told == {
        "GET export",
        "GET results",
        "GET compute-results",
        "POST compute-results",
        "POST simulate",
    }
    assert "Retry-After" in REFUSALS[429][1]


def test_a_slot_that_is_given_back_twice_is_one_slot():
    slots = Slots()
    slot = slots.take("a")
    slot.give()
    slot.give()
    slots.take("a")
    slots.take("b")

    with pytest.raises(Exception, match="running"):
        slots.take("c")


@pytest.mark.parametrize(
    ("participants", "looks", "runs", "treatments", "affordable"),
    [
        (2_000, 20, 200, 1, 200),  # what is asked by default
        (1_000_000, 2, 10_000, 1, 3),
        (1_000_000, 1_000, 10_000, 19, 1),
        (1_000, 1_000, 10_000, 1, 49),  # were 363, and 10 times the time
        (1_000, 1_000, 10_000, 19, 2),
        (2, 1, 10_000, 19, 2_577),
    ],
)
def test_a_rehearsal_keeps_its_budget_whatever_its_shape(
    participants, looks, runs, treatments, affordable
):
    assert planning.affordable_runs(participants, looks, runs, treatments) == affordable


def test_costly_work_pauses_only_while_quick_requests_are_answered():
    ways = Traffic()
    began = time.monotonic()
    for _ in range(1_000):
        ways.pause()
    undisturbed = time.monotonic() - began
    ways.enter()
    began = time.monotonic()
    for _ in range(20):
        ways.pause()
    disturbed = time.monotonic() - began
    ways.leave()

    assert disturbed >= 20 * ways.PAUSE > undisturbed
    assert ways.quick == 0


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/healthz", 200),
        ("GET", "/nowhere", 404),
        ("GET", "{}", 200),
        ("GET", "{}/export?format=csv", 200),
        ("GET", "{}/export?format=xml", 400),
        ("GET", f"{{}}/{DAY}", 200),
        ("POST", "{}/simulate", 400),
        ("PATCH", "{}", 409),
    ],
)
def test_every_request_that_was_counted_in_is_counted_out(
    callers, exporting, method, path, status
):
    before = traffic.quick
    answer = callers("a")(
        method,
        path.replace("{}", f"{exporting}"),
        {"name": "X"} if method == "PATCH" else None,
    )

    assert answer.status_code == status
    answer.close()
    assert traffic.quick == before


@pytest.mark.parametrize("splits", [[5000, 5000], [1, 9999], [3333, 3333, 3334]])
def test_the_quick_dealer_deals_what_the_hash_deals(splits):
    deal = assignment.dealer(splits)

    for number in range(3_000):
        user = f"user-{number}"
        assert deal("exp_abc123", user) == assignment.dealt("exp_abc123", user, splits)
