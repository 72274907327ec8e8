"""What an event costs, and what a call of events may book."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import Caller, assert_error, database_steps, statements
from test_conversions import quality, results, totals

# ----------------------------------------------------------------------------
# What an event may cost
# ----------------------------------------------------------------------------


def in_metrics(*names, **fields):
    return [{"userId": "u1", "metric": name, **fields} for name in names]


def numbered(count):
    return [f"m{number}" for number in range(count)]


def metrics_seen(api, path):
    rows = [row for one in results(api, path)["variants"] for row in one["results"]]
    return {row["metric"] for row in rows}


def test_an_experiment_takes_a_thousand_metrics_and_no_further_one(
    api, running, enrolled
):
    path = running()
    enrolled(path, "u1")
    rows = in_metrics(*numbered(1_001))

    batch = api.post(f"{path}/conversions/batch", {"conversions": rows}).json["data"]
    single = api.post(f"{path}/conversions", in_metrics("m1000")[0])
    (everywhere,) = api.post("events", in_metrics("m1000")[0]).json["data"]
    ((in_batch,),) = api.post("events/batch", {"events": in_metrics("m1000")}).json[
        "data"
    ]

    assert {row["status"] for row in batch[:1_000]} == {"accepted"}
    for row in (batch[1_000], everywhere, in_batch):
        assert (row["status"], row["reason"]) == ("rejected", "TOO_MANY_METRICS")
    error = assert_error(single, 409, "TOO_MANY_METRICS")
    assert "1,000 metrics" in error["message"]
    assert metrics_seen(api, path) == set(numbered(1_000))
    assert quality(api, path) == (1_000, 0, 0, 0)


def test_a_full_experiment_counts_on_in_the_metrics_that_it_has(api, running, enrolled):
    path, other = running(), running()
    for one in (path, other):
        enrolled(one, "u1")
    rows = in_metrics(*numbered(1_000))
    api.post(f"{path}/conversions/batch", {"conversions": rows})

    assert api.post(f"{path}/conversions", in_metrics("m7")[0]).status_code == 201
    assert api.post(f"{other}/conversions", in_metrics("new")[0]).status_code == 201

    assert totals(api, path, "m7")[:2] == (1, 2)


def test_other_metrics_cannot_keep_the_primary_one_out(api, running, enrolled):
    path = running(primaryMetric="signup")
    enrolled(path, "u1")
    rows = in_metrics(*numbered(1_000))
    api.post(f"{path}/conversions/batch", {"conversions": rows})

    for _ in range(2):
        assert api.post(f"{path}/conversions", {"userId": "u1"}).status_code == 201
    late = api.post(f"{path}/conversions", in_metrics("m1000")[0])

    assert_error(late, 409, "TOO_MANY_METRICS")
    assert totals(api, path, "signup")[:2] == (1, 2)


def test_what_is_refused_takes_no_metric(api, running, enrolled):
    path = running()
    enrolled(path, "u1")
    rows = in_metrics(*numbered(998)) + in_metrics("m998", idempotencyKey="k")
    api.post(f"{path}/conversions/batch", {"conversions": rows})
    rows = [
        {"userId": "stranger", "metric": "a"},
        {"userId": "u1", "metric": "b", "occurredAt": "2020-01-01T00:00:00Z"},
        {"userId": "u1", "metric": "c", "idempotencyKey": "k"},
        {"userId": "u1", "metric": "d"},
        {"userId": "u1", "metric": "e"},
    ]

    answer = api.post(f"{path}/conversions/batch", {"conversions": rows})

    assert [row["reason"] for row in answer.json["data"]] == [
        "NOT_ENROLLED",
        "BEFORE_ENROLLMENT",
        "CONFLICT",
        None,
        "TOO_MANY_METRICS",
    ]
    assert quality(api, path) == (1_000, 0, 1, 1)
    assert len(metrics_seen(api, path)) == 1_000


def test_concurrent_writers_make_at_most_a_thousand_metrics(
    app, api, token, running, enrolled
):
    path = running()
    enrolled(path, "u1")

    def send(writer):
        client = Caller(app, token())
        names = [f"{writer}-{number}" for number in range(60)]
        statuses = []
        for some in range(0, 60, 20):
            body = {"conversions": in_metrics(*names[some : some + 20])}
            answer = client.post(f"{path}/conversions/batch", body)
            assert answer.status_code == 200, answer.text
            statuses += [row["status"] for row in answer.json["data"]]
        app.extensions["database"].close()
        return statuses

    body = {"conversions": in_metrics(*numbered(900))}
    api.post(f"{path}/conversions/batch", body)
    with ThreadPoolExecutor(4) as writers:
        statuses = [one for some in writers.map(send, range(4)) for one in some]

    assert statuses.count("accepted") == 100
    assert statuses.count("rejected") == 140
    assert len(metrics_seen(api, path)) == 1_000


def steps(api, path, body):
    """Return how much the database does for one event."""
    return database_steps(lambda: api.post(f"{path}/conversions", body))


def beside_the_first(decisions):
    """Return another user of the variant that the first one has."""
    first, *others = decisions
    return next(
        one["userId"] for one in others if one["variantId"] == first["variantId"]
    )


@pytest.mark.sqlite  # counts the steps of SQLite
def test_an_event_costs_the_same_however_much_is_counted_already(
    api, running, enrolled
):
    few, many = running(), running()
    users = ["u1", *[f"other{number}" for number in range(3_000)]]
    other = {
        few: beside_the_first(enrolled(few, *users[:50])),
        many: beside_the_first(enrolled(many, *users)),
    }
    events = [{"userId": user_id} for user_id in users]
    api.post(f"{many}/conversions/batch", {"conversions": events})
    events = in_metrics(*numbered(998))
    api.post(f"{many}/conversions/batch", {"conversions": events})
    costs = {}

    for path in (few, many):
        for what, body in (
            ("first", {"metric": "new"}),
            ("second", {"metric": "new"}),
            ("of another user", {"metric": "new", "userId": other[path]}),
        ):
            body = {"userId": "u1", **body}
            costs.setdefault(what, []).append(steps(api, path, body))
    refused = steps(api, many, {"userId": "u1", "metric": "one too many"})

    for cost_of_few, cost_of_many in costs.values():
        assert 0 < cost_of_many < cost_of_few * 1.2
    assert refused < costs["first"][0]


def test_a_call_books_ten_thousand_events_of_an_experiment_and_no_more(
    api, running, enrolled
):
    paths = [running() for _ in range(20)]
    for path in paths:
        enrolled(path, "u1")
    rows = in_metrics(*["conversion"] * 501)

    refused = api.post("events/batch", {"events": rows})
    counted_by_it = [quality(api, path) for path in paths]
    taken = api.post("events/batch", {"events": rows[:500]})

    error = assert_error(refused, 400, "VALIDATION_ERROR")
    assert "10,000" in error["message"]
    assert [one["path"] for one in error["details"]] == ["events"]
    assert counted_by_it == [(0, 0, 0, 0)] * 20
    assert [len(some) for some in taken.json["data"]] == [20] * 500
    assert [quality(api, path) for path in paths] == [(500, 0, 0, 0)] * 20


def test_the_events_of_many_users_are_bounded_together(api, running, enrolled):
    paths = [running() for _ in range(11)]
    users = [f"u{number}" for number in range(1_000)]
    for path in paths:
        enrolled(path, *users)
    rows = [{"userId": user_id} for user_id in users]

    refused = api.post("events/batch", {"events": rows})

    assert_error(refused, 400, "VALIDATION_ERROR")
    assert [quality(api, path) for path in paths] == [(0, 0, 0, 0)] * 11


def test_a_call_that_books_too_much_does_not_take_the_write_lock(
    api, running, enrolled
):
    paths = [running() for _ in range(11)]
    for path in paths:
        enrolled(path, "u1")
    rows = in_metrics(*["conversion"] * 1_000)

    with statements() as sent:
        refused = api.post("events/batch", {"events": rows})

    assert_error(refused, 400, "VALIDATION_ERROR")
    assert sent
    assert [one for one in sent if one.startswith(("BEGIN", "INSERT"))] == []
