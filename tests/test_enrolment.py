"""Enrolment: who gets which variant, once and for good."""

import hashlib
import json
import tracemalloc
from pathlib import Path
from urllib.parse import quote

import pytest
from conftest import assert_error
from hypothesis import example, given, settings
from hypothesis import strategies as st

import models
from ledger import enrolment, proof
from storage import columns
from targeting import assignment, decision

CASES = Path(__file__).parent / "cases" / "buckets.json"


@pytest.mark.parametrize(
    ("user_id", "bucket"),
    # The contract's published vectors.
    [("user-1", 3520), ("user-2", 5983), ("Zoë", 8203), ("用户42", 5809)],
)
def test_the_hash_is_the_published_one(user_id, bucket):
    assert assignment.bucket("exp_abc123", user_id) == bucket


def test_the_hash_agrees_with_nodes_on_320_vectors_in_many_scripts():
    # Made by tests/cases/buckets.mjs with node's crypto and BigInt.
    vectors = json.loads(CASES.read_text(encoding="utf-8"))

    assert len(vectors) == 320
    for one in vectors:
        assert assignment.bucket(one["salt"], one["userId"]) == one["bucket"], one
        assert int(one["sha256"][:13], 16) * 625 >> 48 == one["bucket"], one


def test_the_variants_take_consecutive_ranges_of_the_buckets():
    splits = [3333, 3333, 3334]
    for number in range(2_000):
        place = assignment.bucket("exp_1", f"u{number}")
        wanted = 0 if place < 3333 else 1 if place < 6666 else 2
        assert assignment.dealt("exp_1", f"u{number}", splits) == wanted


def test_the_traffic_draw_says_nothing_about_the_variant():
    users = [f"u{number}" for number in range(20_000)]
    inside = [one for one in users if assignment.in_traffic("exp_1", one, 2_000)]
    first = sum(assignment.dealt("exp_1", one, [5000, 5000]) == 0 for one in inside)

    # Binomial: five standard deviations either way.
    assert abs(len(inside) - 4_000) < 5 * (20_000 * 0.2 * 0.8) ** 0.5
    assert abs(first - len(inside) / 2) < 5 * (len(inside) / 4) ** 0.5


def test_a_new_user_is_201_and_then_200_with_the_same_variant(api, running):
    path = running()

    first = api.post(f"{path}/assignments", {"userId": "u1", "attributes": {"a": 1}})
    again = api.post(f"{path}/assignments", {"userId": "u1"})

    assert (first.status_code, again.status_code) == (201, 200)
    data = first.json["data"]
    assert data["reason"] == "NEW_ASSIGNMENT" and data["enrolled"] is True
    position = assignment.dealt(path.removeprefix("experiments/"), "u1", [5000, 5000])
    assert data["variantId"] == f"v{position + 1}"
    assert data["flowId"] == ("flow_a", "flow_b")[position]
    assert again.json["data"] == {**data, "reason": "EXISTING_ASSIGNMENT"}
    assert api.get(path).json["data"]["_count"] == {"assignments": 1}


def told(api, path, user_id):
    response = api.post(f"{path}/assignments", {"userId": user_id})
    assert response.status_code == 200, response.text
    return response.json["data"]


def test_nobody_new_is_enrolled_unless_the_experiment_runs(api, draft, enrolled):
    path = draft()
    reasons = [told(api, path, "new")["reason"]]
    api.post(f"{path}/start")
    enrolled(path, "old")
    for move, body in (("stop", None), ("complete", {"conclusion": "lost"})):
        assert api.post(f"{path}/{move}", body).status_code == 200
        reasons.append(told(api, path, "new")["reason"])
        assert told(api, path, "old")["reason"] == "EXISTING_ASSIGNMENT"
    api.delete(path)
    answer = told(api, path, "new")

    assert reasons == ["NOT_STARTED", "ENROLLMENT_CLOSED", "ENROLLMENT_CLOSED"]
    assert answer["reason"] == "ARCHIVED"
    assert answer["enrolled"] is False
    nothing = ("variantId", "variantName", "flowId", "config", "assignedAt")
    assert [answer[name] for name in nothing] == [None] * 5
    assert api.get(path).json["data"]["_count"] == {"assignments": 1}
    assert list(proof.discrepancies()) == []


def test_a_user_outside_the_traffic_is_held_out_and_not_stored(api, running):
    path = running(trafficPercentage=10)
    id = path.removeprefix("experiments/")
    users = [f"u{number}" for number in range(300)]
    body = {"users": [{"userId": one} for one in users]}

    answers = api.post(f"{path}/assignments/batch", body).json["data"]

    for one, answer in zip(users, answers, strict=True):
        inside = assignment.in_traffic(id, one, 1_000)
        assert answer["reason"] == ("NEW_ASSIGNMENT" if inside else "HELD_OUT")
    count = sum(assignment.in_traffic(id, one, 1_000) for one in users)
    assert api.get(path).json["data"]["_count"] == {"assignments": count}


def test_a_batch_answers_in_order_and_enrols_a_repeated_user_once(api, running):
    path = running()
    users = ["b", "a", "b", "c", "a"]
    body = {"users": [{"userId": one} for one in users]}

    answers = api.post(f"{path}/assignments/batch", body).json["data"]

    assert [one["userId"] for one in answers] == users
    new, old = "NEW_ASSIGNMENT", "EXISTING_ASSIGNMENT"
    assert [one["reason"] for one in answers] == [new, new, old, new, old]
    assert api.get(path).json["data"]["_count"] == {"assignments": 3}


def test_a_call_enrols_ten_thousand_users_and_not_one_more(api, running):
    path = running()
    users = [{"userId": f"u{number}"} for number in range(10_001)]

    refused = api.post(f"{path}/assignments/batch", {"users": users})
    assert_error(refused, 400, "VALIDATION_ERROR")
    assert api.get(path).json["data"]["_count"] == {"assignments": 0}
    taken = api.post(f"{path}/assignments/batch", {"users": users[:-1]})

    assert taken.status_code == 200
    assert api.get(path).json["data"]["_count"] == {"assignments": 10_000}
    assert list(proof.discrepancies()) == []


def test_a_large_answer_is_written_as_it_is_sent_and_after_the_commit(api, running):
    configs = [{"text": letter * 16_000} for letter in "ab"]
    variants = [
        {"name": f"V{place}", "splitPercentage": 50, "config": config}
        for place, config in enumerate(configs)
    ]
    path = running(variants=variants)
    users = [{"userId": f"u{number}"} for number in range(1_000)]

    tracemalloc.start()
    try:
        answer = api.post(f"{path}/assignments/batch", {"users": users})
        before = api.get(path).json["data"]["_count"]
        tracemalloc.reset_peak()
        start = tracemalloc.get_traced_memory()[0]
        pieces, size = [], 0
        for piece in answer.response:
            pieces.append(hashlib.sha256(piece).digest())
            size += len(piece)
        peak = tracemalloc.get_traced_memory()[1] - start
    finally:
        tracemalloc.stop()
    again = api.post(f"{path}/assignments/batch", {"users": users}).json["data"]

    assert before == {"assignments": 1_000}
    assert size > 16_000_000 and peak < 1_000_000
    assert len(pieces) > 100
    assert [one["userId"] for one in again] == [one["userId"] for one in users]
    for one in again:
        assert one["config"] == configs[int(one["variantName"][1])]


def test_a_wrong_row_refuses_the_whole_batch(api, running):
    path = running()
    body = {"users": [{"userId": "good"}, {"userId": 5}, {"userId": "null"}]}

    error = assert_error(
        api.post(f"{path}/assignments/batch", body), 400, "VALIDATION_ERROR"
    )

    assert {one["path"] for one in error["details"]} == {
        "users.1.userId",
        "users.2.userId",
    }
    assert api.get(path).json["data"]["_count"] == {"assignments": 0}


@pytest.mark.parametrize(
    "user_id", ["a/b", "Zoë", "用户42", "a b", "x?y=1&z", "%2F", "'; --", "é" * 255]
)
def test_an_id_is_opaque_whatever_it_is_made_of(api, running, enrolled, user_id):
    from urllib.parse import quote

    path = running()
    enrolled(path, user_id)

    read = api.get(f"{path}/assignments/{quote(user_id, safe='')}")
    listed = api.get(f"users/{quote(user_id, safe='')}/assignments").json

    assert read.json["data"]["userId"] == user_id
    assert read.json["data"]["reason"] == "EXISTING_ASSIGNMENT"
    assert [f"experiments/{one['experimentId']}" for one in listed["data"]] == [path]


def test_reading_enrols_nobody(api, running):
    path = running()

    assert_error(api.get(f"{path}/assignments/u1"), 404, "NOT_FOUND")

    assert api.get(f"{path}/assignments").json["meta"]["total"] == 0


def test_the_enrolled_are_listed_newest_first(api, running, enrolled):
    path = running()
    enrolled(path, *[f"u{number}" for number in range(5)])

    page = api.get(f"{path}/assignments?limit=2&page=2").json

    assert [one["userId"] for one in page["data"]] == ["u2", "u1"]
    assert page["meta"].pop("next")
    assert page["meta"] == {"total": 5, "page": 2, "limit": 2, "totalPages": 3}


def test_with_a_winner_everyone_is_given_it_and_nobody_is_enrolled(
    api, running, enrolled
):
    path = running()
    enrolled(path, *[f"u{number}" for number in range(10)])
    body = {"conclusion": "won", "winnerVariantId": "v2"}
    assert api.post(f"{path}/complete", body).status_code == 200

    for user_id in ("u1", "u2", "u3", "stranger"):
        answer = told(api, path, user_id)
        assert (answer["reason"], answer["variantId"]) == ("WINNER", "v2")
        assert (answer["enrolled"], answer["assignedAt"]) == (True, None)
        read = api.get(f"{path}/assignments/{user_id}").json["data"]
        assert read["reason"] == "WINNER"
    assert api.get(path).json["data"]["_count"] == {"assignments": 10}


@pytest.mark.parametrize(
    "user_id", ["/a", "a/", "a//b", "//", "..", ".", "./a", "batch", "a/assignments"]
)
def test_an_id_that_looks_like_a_path_names_its_own_user(
    api, running, enrolled, user_id
):
    path = running()
    enrolled(path, user_id, user_id.strip("/") + "-another", "a", "b")
    quoted = quote(user_id, safe="")

    read = api.get(f"{path}/assignments/{quoted}")
    listed = api.get(f"users/{quoted}/assignments")

    assert read.status_code == listed.status_code == 200, read.text
    assert read.json["data"]["userId"] == user_id
    assert listed.json["meta"]["total"] == 1


# What a path, a server or a client may read as something else than a part of an id.
PIECES = [
    *("a", "/", "//", ".", "..", "\n", "\r\n", "\r", "\t", " ", "%2F", "%0a", "%", "?"),
    *("#", ";", "&", "=", "+", "\\", "batch", "/assignments", "/test", "test", "é"),
    *("e\u0301", "\u2028", "\x85", "\x1b", "\ufeff", "\ufffd", "\U0001f600", "null"),
]
ids = st.one_of(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=255),
)
ODD = [
    *("a\nb", "\na", "a\n", "\r", "a\n/assignments", "x/assignments", "x/test", "test"),
    *(
        "batch",
        "assignments",
        "a?b",
        "%0a",
        "%2F",
        "..",
        "/",
        "a/../b",
        "\u2028",
        "\n/",
    ),
]


def each_of(examples):
    def decorate(test):
        for one in examples:
            test = example(one)(test)
        return test

    return decorate


@each_of(ODD)
@given(ids)
@settings(settings.get_profile("contract"))
def test_a_user_who_can_be_enrolled_can_be_read_forced_listed_and_erased(
    api, running, user_id
):
    path = running()
    quoted = quote(user_id, safe="")
    here, forced = f"{path}/assignments/{quoted}", f"{path}/overrides/{quoted}"
    lists = ("assignments", "overrides", "history", "export?format=ndjson")
    new = api.post(f"{path}/assignments", {"userId": user_id})
    if new.status_code != 201:
        assert_error(new, 400, "VALIDATION_ERROR")
        # What is refused here can come to be stored in no other way.
        for call in (
            ("PUT", forced, {"variantId": "v1"}),
            ("DELETE", f"users/{quoted}"),
        ):
            assert api(*call).status_code in (400, 404)
        return

    assert api.get(here).json["data"]["userId"] == user_id
    explained = api.get(f"{here}?explain=true").json["data"]
    assert (explained["userId"], explained["enrolled"]) == (user_id, True)
    put = api("PUT", forced, {"variantId": "v2"})
    assert (put.status_code, put.json["data"]["userId"]) == (201, user_id)
    assert api.get(here).json["data"]["reason"] == "OVERRIDE"
    listed = api.get(f"{path}/overrides").json["data"]
    assert [one["userId"] for one in listed] == [user_id]
    assert api.delete(forced).json["data"]["userId"] == user_id
    member = api.get(f"users/{quoted}/assignments").json
    assert [f"experiments/{one['experimentId']}" for one in member["data"]] == [path]
    assert api.post(f"{path}/conversions", {"userId": user_id}).status_code == 201
    erased = api.delete(f"users/{quoted}").json["data"]
    assert [f"experiments/{one['experimentId']}" for one in erased["experiments"]] == [
        path
    ]
    assert_error(api.get(here), 404, "NOT_FOUND")
    assert api.get(f"users/{quoted}/assignments").json["data"] == []
    for name in lists:
        text = api.get(f"{path}/{name}").text
        assert f": {json.dumps(user_id, ensure_ascii=False)}" not in text, name


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(1, 9_999))
def test_every_user_has_a_bucket_and_one_variant(user_id, split):
    place = assignment.bucket("exp_1", user_id)

    assert 0 <= place < 10_000
    dealt = assignment.dealt("exp_1", user_id, [split, 10_000 - split])
    assert dealt == (0 if place < split else 1)
    assert assignment.in_traffic("exp_1", user_id, 10_000)


def test_a_user_keeps_the_variant_through_a_stop_and_a_resume(api, running, enrolled):
    path = running()
    (seat,) = enrolled(path, "u1")
    for move in ("stop", "resume"):
        assert api.post(f"{path}/{move}").status_code == 200
        again = told(api, path, "u1")
        assert again == {**seat, "reason": "EXISTING_ASSIGNMENT"}

    new = api.post(f"{path}/assignments", {"userId": "u2"})

    assert (new.status_code, new.json["data"]["reason"]) == (201, "NEW_ASSIGNMENT")


def test_who_is_in_stays_in_when_the_traffic_would_hold_them_out(
    app, api, running, enrolled
):
    path = running()
    id = path.removeprefix("experiments/")
    out = next(
        f"u{number}"
        for number in range(1_000)
        if not assignment.in_traffic(id, f"u{number}", 100)
    )
    (seat,) = enrolled(path, out)
    models.Experiment.update(traffic=100).execute()

    assert told(api, path, out)["variantId"] == seat["variantId"]
    assert told(api, path, out)["reason"] == "EXISTING_ASSIGNMENT"


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "userId"),
        ({"userId": ""}, "userId"),
        ({"userId": " "}, "userId"),
        ({"userId": "NaN"}, "userId"),
        ({"userId": "x" * 256}, "userId"),
        ({"userId": None}, "userId"),
        ({"userId": "u1", "attributes": []}, "attributes"),
        ({"userId": "u1", "variantId": "v1"}, "variantId"),
    ],
)
def test_a_user_that_cannot_be_is_not_enrolled(api, running, body, path):
    place = running()

    error = assert_error(
        api.post(f"{place}/assignments", body), 400, "VALIDATION_ERROR"
    )

    assert {one["path"] for one in error["details"]} == {path}
    assert api.get(place).json["data"]["_count"] == {"assignments": 0}


def test_nobody_is_enrolled_in_an_experiment_that_is_not_there(api, running):
    running()

    response = api.post("experiments/exp_none/assignments", {"userId": "u1"})

    assert_error(response, 404, "NOT_FOUND")
    assert api.get("users/u1/assignments").json["meta"]["total"] == 0


def test_an_enrolment_that_meets_a_stop_on_its_way_is_refused(api, running):
    """The row is read, the stop is answered, then the enrolment is written."""
    path = running()
    read = models.Experiment.get_by_id(path.removeprefix("experiments/")).definition
    proposed = decision.decide(read, decision.User("late"), columns.utcnow())
    assert proposed.reason == "NEW_ASSIGNMENT"
    assert api.post(f"{path}/stop").status_code == 200

    (answer,) = enrolment.enrol(read, [proposed])

    assert (answer.reason, answer.variant) == ("ENROLLMENT_CLOSED", None)
    assert api.get(path).json["data"]["_count"] == {"assignments": 0}


# ----------------------------------------------------------------------------
# One user in several experiments
# ----------------------------------------------------------------------------


def test_a_page_asks_for_all_its_experiments_at_once(api, running, draft):
    paths = [running(), running(key="checkout-button"), draft()]
    ids = [path.partition("/")[2] for path in paths]
    body = {"experiments": [ids[0], "checkout-button", "nobody", ids[2], ids[0]]}

    first = api.post("users/u1/assignments", body)
    again = api.post("users/u1/assignments", body)

    assert first.status_code == again.status_code == 200
    assert [(one["experimentId"], one["reason"]) for one in first.json["data"]] == [
        (ids[0], "NEW_ASSIGNMENT"),
        (ids[1], "NEW_ASSIGNMENT"),
        ("nobody", "NOT_FOUND"),
        (ids[2], "NOT_STARTED"),
        (ids[0], "EXISTING_ASSIGNMENT"),
    ]
    for path, one in zip(paths[:2], first.json["data"], strict=False):
        single = api.post(f"{path}/assignments", {"userId": "u1"}).json["data"]
        assert single == {**one, "reason": "EXISTING_ASSIGNMENT"}
    variants = [one["variantId"] for one in first.json["data"]]
    assert [one["variantId"] for one in again.json["data"]] == variants
    assert [one["enrolled"] for one in again.json["data"]] == [
        *(True, True, False, False, True)
    ]
    for path in paths[:2]:
        assert api.get(path).json["data"]["_count"] == {"assignments": 1}


def test_attributes_decide_in_each_of_several_experiments(api, running):
    rules = {"field": "plan", "operator": "eq", "value": "pro"}
    assert api("PUT", "audiences/payers", {"name": "P", "ruleTree": rules}).status_code
    ids = [running(audienceId="payers").partition("/")[2] for _ in range(2)]
    outside = api.post("users/u1/assignments", {"experiments": ids}).json["data"]
    body = {"experiments": ids, "attributes": {"plan": "pro"}}
    inside = api.post("users/u1/assignments", body).json["data"]

    assert {one["reason"] for one in outside} == {"NOT_IN_AUDIENCE"}
    assert {one["reason"] for one in inside} == {"NEW_ASSIGNMENT"}


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "experiments"),
        ({"experiments": []}, "experiments"),
        ({"experiments": ["a"] * 101}, "experiments"),
        ({"experiments": ["a", "null"]}, "experiments.1"),
        ({"experiments": ["a"], "attributes": []}, "attributes"),
        ({"experiments": ["a"], "userId": "u1"}, "userId"),
    ],
)
def test_a_call_for_several_experiments_that_is_wrong_enrols_nobody(
    api, running, body, path
):
    place = running(key="a")

    error = assert_error(
        api.post("users/u1/assignments", body), 400, "VALIDATION_ERROR"
    )

    assert path in {one["path"] for one in error["details"]}
    assert api.get(place).json["data"]["_count"] == {"assignments": 0}
