"""Conversions: counted once a user, kept every one, refused in the open."""

import json
from datetime import datetime, timedelta
from decimal import Decimal

import pytest
from conftest import assert_error

from ledger import conversions, proof
from storage import columns


def results(api, path):
    return api.get(f"{path}/results").json["data"]


def totals(api, path, metric="conversion"):
    """Return users, events and value of a metric over both variants."""
    rows = [
        row
        for variant in results(api, path)["variants"]
        for row in variant["results"]
        if row["metric"] == metric
    ]
    names = ("count", "sum", "sumSquares")
    return (
        sum(row["conversions"] for row in rows),
        sum(row["events"] for row in rows),
        *(sum(row["value"][name] for row in rows) for name in names),
    )


def quality(api, path):
    told = results(api, path)["quality"]
    assert told["received"] == sum(told.values()) - told["received"]
    return (
        told["counted"],
        told["duplicates"],
        told["beforeEnrollment"],
        told["notEnrolled"],
    )


@pytest.fixture(autouse=True)
def every_tally_is_proved_from_its_rows(app):
    yield
    assert list(proof.discrepancies()) == []


def test_a_conversion_is_credited_to_the_users_variant(api, running, enrolled):
    path = running()
    (seat,) = enrolled(path, "u1")

    response = api.post(f"{path}/conversions", {"userId": "u1"})

    assert response.status_code == 201
    data = response.json["data"]
    assert (data["status"], data["metric"]) == ("accepted", "conversion")
    assert data["variantId"] == seat["variantId"]
    credited = [one for one in results(api, path)["variants"] if one["results"]]
    assert [one["variantId"] for one in credited] == [seat["variantId"]]


def test_a_user_counts_once_a_metric_and_every_event_is_kept(api, running, enrolled):
    path = running(primaryMetric="signup")
    enrolled(path, "u1", "u2")
    for user_id, metric in (
        ("u1", None),
        ("u1", "signup"),
        ("u2", None),
        ("u1", "buy"),
    ):
        body = {"userId": user_id} | ({"metric": metric} if metric else {})
        assert api.post(f"{path}/conversions", body).status_code == 201

    assert totals(api, path, "signup")[:2] == (2, 3)
    assert totals(api, path, "buy")[:2] == (1, 1)
    (row, *_) = [
        row
        for variant in results(api, path)["variants"]
        for row in variant["results"]
        if row["metric"] == "buy"
    ]
    assert row["primary"] is False
    assert row["firstAt"] == row["lastAt"]


def test_values_are_summed_a_user_to_the_last_digit(api, running, enrolled):
    path = running()
    enrolled(path, "u1", "u2")
    for user_id, value in (("u1", 0.1), ("u1", 0.1), ("u1", 0.1), ("u2", -2.5)):
        body = {"userId": user_id, "value": value}
        assert api.post(f"{path}/conversions", body).status_code == 201
    assert api.post(f"{path}/conversions", {"userId": "u2"}).status_code == 201

    raw = json.loads(api.get(f"{path}/results").text, parse_float=Decimal)
    values = [row["value"] for one in raw["data"]["variants"] for row in one["results"]]
    assert totals(api, path)[:3] == (2, 5, 2)
    # Three tenths are 0.3, and its square 0.09; two and a half squared is 6.25.
    assert sum(value["sum"] for value in values) == Decimal("-2.2")
    assert sum(value["sumSquares"] for value in values) == Decimal("6.34")


@pytest.mark.parametrize("value", [1e12, -1e12, 5e-324, 0.30000000000000004, 0])
def test_any_number_in_bounds_is_kept_as_it_is(api, running, enrolled, value):
    path = running()
    enrolled(path, "u1")

    response = api.post(f"{path}/conversions", {"userId": "u1", "value": value})

    assert response.status_code == 201
    assert response.json["data"]["value"] == value
    assert totals(api, path)[3] == value


@pytest.mark.one_engine
@pytest.mark.parametrize(
    "fields",
    [
        {"value": 1.1e12},
        {"value": "12"},
        {"value": True},
        {"value": [1]},
        {"metric": ""},
        {"userId": 5},
        {"userId": "[object Object]"},
        {"variantId": "v1"},
        {"idempotencyKey": "k" * 256},
        {"occurredAt": "2026-01-01"},
        {"occurredAt": "2126-01-01T00:00:00Z"},
    ],
)
def test_a_wrong_shape_is_refused_and_not_received(api, running, enrolled, fields):
    path = running()
    enrolled(path, "u1")

    response = api.post(f"{path}/conversions", {"userId": "u1", **fields})

    assert_error(response, 400, "VALIDATION_ERROR")
    assert quality(api, path) == (0, 0, 0, 0)


def test_the_same_key_with_the_same_body_counts_nothing(api, running, enrolled):
    path = running()
    enrolled(path, "u1")
    body = {"userId": "u1", "value": 5, "idempotencyKey": "order-1"}

    first = api.post(f"{path}/conversions", body)
    again = api.post(f"{path}/conversions", {**body, "value": 5.0})

    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json["data"] == {
        **first.json["data"],
        "status": "duplicate",
        "value": 5,
    }
    assert totals(api, path) == (1, 1, 1, 5, 25)
    assert quality(api, path) == (1, 1, 0, 0)


@pytest.mark.parametrize(
    "other",
    [
        {"userId": "u2"},
        {"value": 6},
        {"value": None},
        {"metric": "buy"},
        {"occurredAt": "later"},
    ],
)
def test_the_same_key_with_another_body_is_a_conflict(api, running, enrolled, other):
    path = running()
    seats = enrolled(path, "u1", "u2")
    body = {"userId": "u1", "value": 5, "idempotencyKey": "order-1"}
    assert api.post(f"{path}/conversions", body).status_code == 201
    if "occurredAt" in other:
        other = {"occurredAt": seats[0]["assignedAt"]}

    response = api.post(f"{path}/conversions", {**body, **other})

    assert_error(response, 409, "CONFLICT")
    assert totals(api, path) == (1, 1, 1, 5, 25)
    assert quality(api, path) == (1, 0, 0, 0)


def test_a_key_is_unique_within_its_experiment_only(api, running, enrolled):
    for path in (running(), running()):
        enrolled(path, "u1")
        body = {"userId": "u1", "idempotencyKey": "order-1"}
        assert api.post(f"{path}/conversions", body).status_code == 201


def test_a_stranger_is_refused_and_never_enrolled_by_it(api, running):
    path = running()

    response = api.post(f"{path}/conversions", {"userId": "stranger"})

    assert_error(response, 409, "NOT_ENROLLED")
    assert quality(api, path) == (0, 0, 0, 1)
    assert api.get(path).json["data"]["_count"] == {"assignments": 0}


def before(seat, **early):
    """Return the time that is so much before an enrolment."""
    at = datetime.fromisoformat(seat["assignedAt"].replace("Z", "+00:00"))
    return (at - timedelta(**early)).isoformat()


def booked(api, path, how, body):
    """Book one event in one of the four ways; return its status and reason."""
    batch = how.endswith("/batch")
    rows = "events" if how.startswith("events") else "conversions"
    where = how if rows == "events" else f"{path}/{how}"
    answer = api.post(where, {rows: [body]} if batch else body)
    if answer.status_code == 409:
        return "rejected", answer.json["error"]["code"], None
    assert answer.status_code in (200, 201), answer.text
    data = answer.json["data"]
    while isinstance(data, list):
        (data,) = data
    return data["status"], data["reason"], data["occurredAt"]


FOUR_WAYS = ["conversions", "conversions/batch", "events", "events/batch"]


@pytest.mark.parametrize("how", FOUR_WAYS)
def test_what_happened_over_ten_seconds_before_the_enrolment_is_refused(
    api, running, enrolled, how
):
    path = running()
    (seat,) = enrolled(path, "u1")
    body = {"userId": "u1", "occurredAt": before(seat, seconds=10, microseconds=1)}

    status, reason, _ = booked(api, path, how, body)

    assert (status, reason) == ("rejected", "BEFORE_ENROLLMENT")
    assert totals(api, path)[:2] == (0, 0)
    assert quality(api, path) == (0, 0, 1, 0)


@pytest.mark.parametrize("how", FOUR_WAYS)
@pytest.mark.parametrize("early", [{"microseconds": 1}, {"seconds": 10}])
def test_what_happened_shortly_before_the_enrolment_counts_as_of_it(
    api, running, enrolled, how, early
):
    path = running()
    (seat,) = enrolled(path, "u1")
    body = {
        "userId": "u1",
        "occurredAt": before(seat, **early),
        "idempotencyKey": "order-1",
    }

    first = booked(api, path, how, body)
    again = booked(api, path, how, body)

    assert first == ("accepted", None, seat["assignedAt"])
    assert again == ("duplicate", None, seat["assignedAt"])
    assert quality(api, path) == (1, 1, 0, 0)
    replayed = api.get(f"{path}/results?asOf=2100-01-01T00:00:00Z").json["data"]
    assert replayed["variants"] == results(api, path)["variants"]
    exported = api.get(f"{path}/export?format=ndjson").text
    row = json.loads(exported)
    assert row["timestamp"] == row["converted_at"] == seat["assignedAt"]


def test_a_program_that_cuts_its_times_to_the_second_loses_no_conversion(
    api, running, enrolled
):
    path = running()
    (seat,) = enrolled(path, "u1")
    body = {"userId": "u1", "occurredAt": f"{seat['assignedAt'][:19]}Z"}

    assert api.post(f"{path}/conversions", body).status_code == 201

    assert quality(api, path) == (1, 0, 0, 0)


def test_a_key_used_shortly_before_the_enrolment_stays_taken(api, running, enrolled):
    path = running()
    (seat,) = enrolled(path, "u1")
    body = {"userId": "u1", "idempotencyKey": "order-1"}
    early = {**body, "occurredAt": before(seat, seconds=2)}
    assert api.post(f"{path}/conversions", early).status_code == 201

    for other in (before(seat, seconds=11), before(seat, microseconds=-1)):
        response = api.post(f"{path}/conversions", {**body, "occurredAt": other})
        assert_error(response, 409, "CONFLICT")

    assert totals(api, path)[:2] == (1, 1)
    assert quality(api, path) == (1, 0, 0, 0)


def test_conversions_count_after_a_stop_and_not_after_the_conclusion(
    api, draft, enrolled
):
    path, body = draft(), {"userId": "u1"}
    answers = [api.post(f"{path}/conversions", body)]
    api.post(f"{path}/start")
    enrolled(path, "u1")
    api.post(f"{path}/stop")
    assert api.post(f"{path}/conversions", body).status_code == 201
    api.post(f"{path}/complete", {"conclusion": "invalid"})
    answers.append(api.post(f"{path}/conversions", body))
    answers.append(api.post(f"{path}/conversions/batch", {"conversions": [body]}))
    api.delete(path)
    answers.append(api.post(f"{path}/conversions", body))

    for answer, current in zip(
        answers, ("draft", "completed", "completed", "archived"), strict=True
    ):
        error = assert_error(answer, 409, "INVALID_STATE")
        assert error["details"] == [
            {"current": current, "allowed": ["running", "stopped"]}
        ]
    assert quality(api, path) == (1, 0, 0, 0)


def test_a_batch_keeps_its_good_rows_and_answers_in_order(api, running, enrolled):
    path = running()
    enrolled(path, "u1", "u2")
    rows = [
        {"userId": "u1", "idempotencyKey": "a", "value": 1},
        {"userId": "stranger"},
        {"userId": "u1", "idempotencyKey": "a", "value": 1},
        {"userId": "u2", "idempotencyKey": "a"},
        {"userId": "u2", "occurredAt": "2020-01-01T00:00:00Z"},
        {"userId": "u2"},
    ]

    answer = api.post(f"{path}/conversions/batch", {"conversions": rows})

    assert answer.status_code == 200
    assert [(one["status"], one["reason"]) for one in answer.json["data"]] == [
        ("accepted", None),
        ("rejected", "NOT_ENROLLED"),
        ("duplicate", None),
        ("rejected", "CONFLICT"),
        ("rejected", "BEFORE_ENROLLMENT"),
        ("accepted", None),
    ]
    assert totals(api, path) == (2, 2, 1, 1, 1)
    assert quality(api, path) == (2, 1, 1, 1)


def test_a_long_batch_keeps_every_event_whether_its_rows_are_equal_or_not(
    api, running, enrolled
):
    path = running()
    enrolled(path, "u1")
    values = [number / 4 for number in range(1, 60)]
    rows = [{"userId": "u1", "value": value} for value in values]
    rows += [{"userId": "u1"}] + [{"userId": "stranger"}] * 60

    answer = api.post(f"{path}/conversions/batch", {"conversions": rows})

    assert answer.status_code == 200
    text = api.get(f"{path}/export?format=ndjson").text
    kept = [json.loads(line)["value"] for line in text.splitlines()]
    assert kept == [*values, None]
    assert results(api, path)["quality"]["notEnrolled"] == 60


def test_what_only_the_last_row_of_a_batch_has_is_kept(api, running, enrolled):
    path = running()
    enrolled(path, "u1")
    last = {"userId": "u1", "metric": "order", "value": 2.5, "idempotencyKey": "k1"}
    body = {"conversions": [{"userId": "u1"}, last]}

    assert api.post(f"{path}/conversions/batch", body).status_code == 200

    text = api.get(f"{path}/export?format=ndjson").text
    first, second = (json.loads(line) for line in text.splitlines())
    names = ("metric", "value", "idempotency_key")
    assert [first[name] for name in names] == ["conversion", None, None]
    assert [second[name] for name in names] == ["order", 2.5, "k1"]


def test_a_wrong_row_refuses_the_whole_batch(api, running, enrolled):
    path = running()
    enrolled(path, "u1")
    rows = [{"userId": "u1"}, {"userId": "u1", "value": "x"}]

    answer = api.post(f"{path}/conversions/batch", {"conversions": rows})

    error = assert_error(answer, 400, "VALIDATION_ERROR")
    assert [one["path"] for one in error["details"]] == ["conversions.1.value"]
    assert quality(api, path) == (0, 0, 0, 0)


def test_a_batch_of_ten_thousand_is_counted_to_the_last(api, running, enrolled):
    path = running()
    users = [f"u{number}" for number in range(5_000)]
    enrolled(path, *users)
    rows = [{"userId": one, "value": 0.01} for one in users + users]

    answer = api.post(f"{path}/conversions/batch", {"conversions": rows})

    assert answer.status_code == 200
    assert totals(api, path)[:3] == (5_000, 10_000, 5_000)
    raw = results(api, path)["variants"]
    users = [variant["participants"] for variant in raw]
    sums = [variant["results"][0]["value"]["sum"] for variant in raw]
    assert sums == [number * 2 / 100 for number in users]


def test_an_event_is_credited_in_every_experiment_the_user_is_in(
    api, running, enrolled
):
    paths = [running(), running(primaryMetric="signup"), running(), running()]
    for path in paths[:3]:
        enrolled(path, "u1")
    api.post(f"{paths[2]}/complete", {"conclusion": "lost"})

    answer = api.post("events", {"userId": "u1", "idempotencyKey": "e1"})

    assert answer.status_code == 200
    assert [
        (f"experiments/{one['experimentId']}", one["status"], one["metric"])
        for one in answer.json["data"]
    ] == [
        (paths[0], "accepted", "conversion"),
        (paths[1], "accepted", "signup"),
        (paths[2], "rejected", "conversion"),
    ]
    assert answer.json["data"][2]["reason"] == "INVALID_STATE"
    assert quality(api, paths[2]) == quality(api, paths[3]) == (0, 0, 0, 0)


def test_an_event_of_a_stranger_is_credited_nowhere(api, running):
    running()

    assert api.post("events", {"userId": "stranger"}).json["data"] == []


def test_a_batch_of_events_answers_a_list_an_event_in_order(api, running, enrolled):
    one, two = running(), running()
    enrolled(one, "u1", "u2")
    enrolled(two, "u2")
    rows = [{"userId": user_id} for user_id in ("u2", "stranger", "u1", "u2")]

    answer = api.post("events/batch", {"events": rows}).json["data"]

    assert [[item["status"] for item in some] for some in answer] == [
        ["accepted", "accepted"],
        [],
        ["accepted"],
        ["accepted", "accepted"],
    ]
    assert totals(api, one)[:2] == (2, 3)
    assert totals(api, two)[:2] == (1, 2)


def test_users_who_are_enrolled_by_the_same_call_have_their_events_counted(
    api, running
):
    rules = {"field": "plan", "operator": "eq", "value": "pro"}
    assert api("PUT", "audiences/aud_1", {"name": "A", "ruleTree": rules}).is_json
    one, two = running(key="checkout"), running(audienceId="aud_1")
    pro, id = {"plan": "pro"}, two.rpartition("/")[2]
    enrolments = [
        {"experiment": "checkout", "userId": "u1"},
        {"experiment": id, "userId": "u1", "attributes": pro},
        {"experiment": id, "userId": "u2", "attributes": {"plan": "free"}},
        {"experiment": "nope", "userId": "u2"},
    ]
    events = [{"userId": "u1", "idempotencyKey": "e1"}, {"userId": "u2"}]
    body = {"events": events, "enrollments": enrolments}

    first = api.post("events/batch", body).json["data"]
    again = api.post("events/batch", body).json["data"]

    assert [[item["status"] for item in some] for some in first] == [
        ["accepted", "accepted"],
        [],
    ]
    assert [item["status"] for item in again[0]] == ["duplicate", "duplicate"]
    for path in (one, two):
        assert totals(api, path)[:2] == (1, 1)
        assert quality(api, path) == (1, 1, 0, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        {},
        [{"userId": "u1"}],
        [{"experiment": "checkout"}],
        [{"experiment": "checkout", "userId": "null"}],
        [{"experiment": "checkout", "userId": "u1", "covariate": 1}],
        [{"experiment": "checkout", "userId": "u1"}] * 101,
    ],
)
def test_a_call_with_wrong_enrolments_enrols_nobody_and_books_nothing(
    api, running, enrolled, wrong
):
    path = running(key="checkout")
    enrolled(path, "u0")
    body = {"events": [{"userId": "u0"}], "enrollments": wrong}

    assert_error(api.post("events/batch", body), 400, "VALIDATION_ERROR")

    assert quality(api, path) == (0, 0, 0, 0)
    assert totals(api, path)[0] == 0
    assert len(api.get(f"{path}/assignments").json["data"]) == 1


def test_each_event_has_its_results_in_the_order_of_its_users_enrolments(
    api, running, enrolled
):
    one, two = running(), running()
    enrolled(two, "u2")
    enrolled(one, "u1")
    enrolled(two, "u1")
    enrolled(one, "u2")
    rows = [{"userId": user_id} for user_id in ("u2", "u1", "u2")]

    answer = api.post("events/batch", {"events": rows}).json["data"]

    told = [[f"experiments/{row['experimentId']}" for row in some] for some in answer]
    assert told == [[two, one], [one, two], [two, one]]


def test_an_event_that_is_sent_twice_counts_once_everywhere(api, running, enrolled):
    paths = [running(), running()]
    for path in paths:
        enrolled(path, "u1")
    body = {"userId": "u1", "value": 0.1, "idempotencyKey": "e1"}

    first = api.post("events", body).json["data"]
    again = api.post("events", body).json["data"]

    assert [one["status"] for one in first] == ["accepted", "accepted"]
    assert [one["status"] for one in again] == ["duplicate", "duplicate"]
    for path in paths:
        assert totals(api, path)[:4] == (1, 1, 1, 0.1)
        assert quality(api, path) == (1, 1, 0, 0)


@pytest.mark.one_engine
@pytest.mark.parametrize(
    ("path", "rows"), [("events/batch", "events"), ("conversions/batch", "conversions")]
)
@pytest.mark.parametrize(
    "wrong", [[], None, {}, [{"userId": "u1"}, None], [[]], ["u1"]]
)
def test_a_batch_that_is_no_list_of_events_books_nothing(
    api, running, enrolled, path, rows, wrong
):
    place = running()
    enrolled(place, "u1")
    where = path if rows == "events" else f"{place}/{path}"

    assert_error(api.post(where, {rows: wrong}), 400, "VALIDATION_ERROR")

    assert quality(api, place) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ("2020-01-01T01:00:00+01:00", "2020-01-01T00:00:00Z"),
        ("2020-01-01T00:00:00.125Z", "2020-01-01T00:00:00.125000Z"),
    ],
)
def test_a_refusal_tells_the_time_as_every_answer_does(
    api, running, enrolled, sent, told
):
    path = running()
    enrolled(path, "u1")
    body = {"userId": "u1", "occurredAt": sent}

    error = assert_error(
        api.post(f"{path}/conversions", body), 409, "BEFORE_ENROLLMENT"
    )

    assert [one["current"] for one in error["details"]] == [told]


@pytest.mark.parametrize(("ahead", "status"), [(4, 201), (6, 400)])
def test_a_clock_may_be_five_minutes_ahead(api, running, enrolled, ahead, status):
    path = running()
    enrolled(path, "u1")
    at = columns.utcnow() + timedelta(minutes=ahead)
    body = {"userId": "u1", "occurredAt": at.isoformat()}

    assert api.post(f"{path}/conversions", body).status_code == status
    assert quality(api, path) == (int(status == 201), 0, 0, 0)


@pytest.mark.parametrize("offset", ["Z", "+00:00", "+05:30", "-0800"])
def test_a_time_with_any_offset_is_the_same_time_in_utc(api, running, enrolled, offset):
    path = running()
    (seat,) = enrolled(path, "u1")
    at = datetime.fromisoformat(seat["assignedAt"].replace("Z", "+00:00"))
    hours = {"Z": 0, "+00:00": 0, "+05:30": 5.5, "-0800": -8}[offset]
    local = (at + timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%S.%f")

    body = {"userId": "u1", "occurredAt": local + offset}
    booked = api.post(f"{path}/conversions", body)

    assert booked.status_code == 201, booked.text
    assert booked.json["data"]["occurredAt"] == seat["assignedAt"]


def test_an_experiment_that_is_not_there_takes_no_conversions(api):
    for path in ("conversions", "conversions/batch"):
        body = {"userId": "u1"}
        body = {"conversions": [body]} if path.endswith("batch") else body
        response = api.post(f"experiments/exp_none/{path}", body)
        assert_error(response, 404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("event_time", "counts_as_of"),
    [
        ("12:00:01.000000", "12:00:01.000000"),
        ("12:00:00.894000", "12:00:00.894000"),
        ("12:00:00.000000", "12:00:00.894000"),
        ("11:59:50.894000", "12:00:00.894000"),
        ("11:59:50.893999", None),
    ],
)
def test_ten_seconds_before_the_enrolment_count_as_of_it(event_time, counts_as_of):
    def at(time):
        return time and datetime.fromisoformat(f"2026-01-05T{time}+00:00")

    assert conversions.occurred(at(event_time), at("12:00:00.894000")) == at(
        counts_as_of
    )
