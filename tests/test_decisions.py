"""In which order it is decided who is in: overrides, groups, receipts, warnings."""

import json
import subprocess

import pytest
from conftest import assert_error, paths, two_variants

PRO = {"field": "plan", "operator": "eq", "value": "pro"}


def decided(api, path, user_id, **attributes):
    body = {"userId": user_id, "attributes": attributes}
    response = api.post(f"{path}/assignments", body)
    assert response.status_code in (200, 201), response.text
    return response.json["data"]


def forced(api, path, user_id, variant_id):
    response = api("PUT", f"{path}/overrides/{user_id}", {"variantId": variant_id})
    assert response.status_code in (200, 201), response.text
    return response.json["data"]


def counted(api, path):
    return api.get(f"{path}/results").json["data"]["variants"]


# ----------------------------------------------------------------------------
# Overrides
# ----------------------------------------------------------------------------


def test_an_override_decides_in_every_state_and_counts_nowhere(api, draft):
    path = draft()
    dealt = forced(api, path, "qa", "v2")
    assert dealt == {
        "experimentId": path.removeprefix("experiments/"),
        "userId": "qa",
        "variantId": "v2",
    }
    moves = [
        None,
        ("POST", f"{path}/start", None),
        ("POST", f"{path}/stop", None),
        (
            "POST",
            f"{path}/complete",
            {"conclusion": "won", "winnerVariantId": "v1"},
        ),
        ("DELETE", path, None),
    ]
    for move in moves:
        if move:
            assert api(*move).status_code == 200
        told = decided(api, path, "qa")
        assert (told["enrolled"], told["reason"]) == (True, "OVERRIDE")
        assert (told["variantId"], told["flowId"]) == ("v2", "flow_b")
        assert told["assignedAt"] is None
        assert api.get(f"{path}/assignments/qa").json["data"] == told
    assert [one["participants"] for one in counted(api, path)] == [0, 0]
    assert api.get(f"{path}/assignments").json["meta"]["total"] == 0


def test_a_conversion_of_a_forced_user_is_not_counted(api, running, enrolled):
    path = running()
    enrolled(path, "user", "other")
    forced(api, path, "user", "v2")
    forced(api, path, "stranger", "v2")

    for user_id in ("user", "stranger"):
        refused = api.post(f"{path}/conversions", {"userId": user_id})
        error = assert_error(refused, 409, "NOT_ENROLLED")
        assert "A variant is forced" in error["message"]
        assert error["details"] == [{"current": "override", "allowed": ["enrolled"]}]
    assert [one["results"] for one in counted(api, path)] == [[], []]
    # Who was a participant before is one still, and counts again afterwards.
    assert sum(one["participants"] for one in counted(api, path)) == 2
    assert api.delete(f"{path}/overrides/user").status_code == 200
    assert api.post(f"{path}/conversions", {"userId": "user"}).status_code == 201


def test_an_override_is_changed_listed_and_removed(api, draft):
    path = draft()
    first = api("PUT", f"{path}/overrides/b", {"variantId": "v1"})
    second = api("PUT", f"{path}/overrides/b", {"variantId": "v2"})
    forced(api, path, "a", "v1")

    assert (first.status_code, second.status_code) == (201, 200)
    listed = api.get(f"{path}/overrides").json
    told = [(one["userId"], one["variantId"]) for one in listed["data"]]
    assert told == [("a", "v1"), ("b", "v2")]  # newest first; a change is none
    assert listed["meta"]["total"] == 2
    removed = api.delete(f"{path}/overrides/b")
    assert removed.json["data"]["variantId"] == "v2"
    assert_error(api.delete(f"{path}/overrides/b"), 404, "NOT_FOUND")
    assert decided(api, path, "b")["reason"] == "NOT_STARTED"


@pytest.mark.parametrize("variant_id", ["v3", "Control", "null", "", 1, None])
def test_an_override_to_no_variant_is_refused(api, draft, variant_id):
    path = draft()
    response = api("PUT", f"{path}/overrides/qa", {"variantId": variant_id})

    assert paths(assert_error(response, 400, "VALIDATION_ERROR")) == {"variantId"}
    assert api.get(f"{path}/overrides").json["meta"]["total"] == 0


def test_an_override_follows_its_variant_through_an_edit(api, draft):
    path = draft()
    forced(api, path, "stays", "v2")
    forced(api, path, "goes", "v1")
    variants = [
        {"name": "New", "splitPercentage": 50},
        {"id": "v2", "name": "Renamed"},
    ]

    assert api.patch(path, {"variants": variants}).status_code == 200

    assert decided(api, path, "stays")["variantName"] == "Renamed"
    assert decided(api, path, "goes")["reason"] == "NOT_STARTED"
    assert api.get(f"{path}/overrides").json["meta"]["total"] == 1
    # What went with the variant is written down like any other removal.
    history = api.get(f"{path}/history").json["data"]
    told = {(one["action"], one["userId"]): one["changes"] for one in history}
    assert told["remove_override", "goes"] == {"variantId": {"from": "v1", "to": None}}
    assert ("remove_override", "stays") not in told


# ----------------------------------------------------------------------------
# The order
# ----------------------------------------------------------------------------


def test_each_question_is_asked_before_the_next(api, draft):
    """Take the first answer away, and the next one is given."""
    api("PUT", "audiences/aud_pro", {"name": "Paying", "ruleTree": PRO})
    path = draft(audienceId="aud_pro", exclusionGroup="page", trafficPercentage=0.01)
    full = {"variants": two_variants(), "exclusionGroup": "page"}

    def reason(user_id="user", **attributes):
        return decided(api, path, user_id, **attributes)["reason"]

    # Outside the audience and outside the group's share: the state is asked first.
    assert reason(plan="free") == "NOT_STARTED"
    assert api.post(f"{path}/start").status_code == 200
    assert reason(plan="free") == "NOT_IN_AUDIENCE"
    assert reason(plan="pro") == "EXCLUDED"
    assert api.post(f"{path}/stop").status_code == 200
    assert reason(plan="free") == "ENROLLMENT_CLOSED"
    forced(api, path, "user", "v1")
    assert reason(plan="free") == "OVERRIDE"
    body = {"conclusion": "won", "winnerVariantId": "v2"}
    assert api.post(f"{path}/complete", body).status_code == 200
    assert decided(api, path, "user")["variantId"] == "v1"
    assert decided(api, path, "other")["reason"] == "WINNER"
    # The room is free again for one that takes it whole.
    other = draft(**full)
    assert api.post(f"{other}/start").status_code == 200


def test_who_is_in_stays_in_and_a_winner_comes_before_the_row(api, running, enrolled):
    api("PUT", "audiences/aud_pro", {"name": "Paying", "ruleTree": PRO})
    path = running(audienceId="aud_pro")
    row = decided(api, path, "user", plan="pro")
    assert row["reason"] == "NEW_ASSIGNMENT"
    loser = {"v1": "v2", "v2": "v1"}[row["variantId"]]

    assert decided(api, path, "user", plan="free")["reason"] == "EXISTING_ASSIGNMENT"
    api.post(f"{path}/stop")
    assert decided(api, path, "user")["reason"] == "EXISTING_ASSIGNMENT"
    api.post(f"{path}/complete", {"conclusion": "won", "winnerVariantId": loser})
    told = decided(api, path, "user")
    assert (told["reason"], told["variantId"]) == ("WINNER", loser)
    assert sum(one["participants"] for one in counted(api, path)) == 1


# ----------------------------------------------------------------------------
# Exclusion groups
# ----------------------------------------------------------------------------


def taking(percentage, group="page"):
    return {"exclusionGroup": group, "trafficPercentage": percentage}


def members(api, path, user_ids):
    users = [{"userId": user_id} for user_id in user_ids]
    told = api.post(f"{path}/assignments/batch", {"users": users}).json["data"]
    assert {one["reason"] for one in told} <= {"NEW_ASSIGNMENT", "EXCLUDED"}
    return {one["userId"] for one in told if one["enrolled"]}


def test_two_of_a_group_share_no_user_and_a_third_finds_no_room(api, running, draft):
    first, second = running(**taking(60)), running(**taking(40))
    third = draft(**taking(0.01))
    users = [f"user-{number}" for number in range(5_000)]

    in_first, in_second = members(api, first, users), members(api, second, users)

    assert not in_first & in_second
    assert in_first | in_second == set(users)
    assert abs(len(in_first) - 3_000) < 5 * (5_000 * 0.6 * 0.4) ** 0.5
    error = assert_error(api.post(f"{third}/start"), 409, "CONFLICT")
    assert error["details"] == [{"current": "0.01", "allowed": ["0"]}]
    assert api.get(third).json["data"]["status"] == "draft"
    assert running(**taking(100, "another page"))


@pytest.mark.parametrize("end", ["complete", "archive"])
def test_what_has_ended_gives_its_room_back(api, running, draft, end):
    first, second = running(**taking(60)), running(**taking(30))
    third = draft(**taking(50))
    error = assert_error(api.post(f"{third}/start"), 409, "CONFLICT")
    assert error["details"] == [{"current": "50", "allowed": ["10"]}]
    # A stopped one may be resumed, so it keeps its room.
    assert api.post(f"{first}/stop").status_code == 200
    assert_error(api.post(f"{third}/start"), 409, "CONFLICT")

    if end == "complete":
        body = {"conclusion": "inconclusive"}
        assert api.post(f"{first}/complete", body).status_code == 200
    else:
        assert api.delete(first).status_code == 200

    assert api.post(f"{third}/start").status_code == 200
    users = [f"user-{number}" for number in range(2_000)]
    assert not members(api, second, users) & members(api, third, users)


def archived(api, path):
    for answer in (api.post(f"{path}/stop"), api.delete(path)):
        assert answer.status_code == 200, answer.text


def resumed(api, path):
    assert api.post(f"{path}/unarchive").status_code == 200
    return api.post(f"{path}/resume")


def test_a_resume_after_an_archiving_takes_the_same_room_again(api, running):
    first, second = running(**taking(60)), running(**taking(40))
    users = [f"user-{number}" for number in range(1_000)]
    mine = members(api, first, users[:500])
    archived(api, first)

    assert resumed(api, first).status_code == 200

    new = members(api, first, users[500:])
    assert mine and new
    assert not (mine | new) & members(api, second, users)


def test_a_resume_that_finds_its_room_taken_is_a_conflict(api, running, draft):
    first = running(**taking(60))
    users = [f"user-{number}" for number in range(500)]
    mine = members(api, first, users)
    archived(api, first)
    second = running(**taking(50))
    theirs = members(api, second, users)
    assert mine & theirs  # so the first must not run beside the second

    refused = assert_error(resumed(api, first), 409, "CONFLICT")

    assert refused["details"] == [{"current": "60", "allowed": ["10"]}]
    assert api.get(first).json["data"]["status"] == "stopped"
    last = api.get(f"{first}/history").json["data"][0]["action"]
    assert last == "unarchive"
    archived(api, second)
    assert api.post(f"{first}/resume").status_code == 200
    assert_error(resumed(api, second), 409, "CONFLICT")


def test_without_users_a_resume_takes_whatever_room_is_left(api, running):
    first = running(**taking(60))
    archived(api, first)
    second = running(**taking(40))

    assert resumed(api, first).status_code == 200

    users = [f"user-{number}" for number in range(1_000)]
    in_first, in_second = members(api, first, users), members(api, second, users)
    assert not in_first & in_second
    assert in_first | in_second == set(users)
    archived(api, first)
    assert running(**taking(30))
    assert_error(resumed(api, first), 409, "CONFLICT")


def test_room_that_lies_in_pieces_is_room(api, running):
    paths = [running(**taking(10)) for _ in range(10)]
    for path in paths[::2]:
        assert api.post(f"{path}/stop").status_code == 200
        assert api.delete(path).status_code == 200

    pieced = running(**taking(50))

    users = [f"user-{number}" for number in range(2_000)]
    mine = members(api, pieced, users)
    for path in paths[1::2]:
        assert not mine & members(api, path, users)
    assert abs(len(mine) - 1_000) < 5 * 500**0.5


# ----------------------------------------------------------------------------
# Receipts
# ----------------------------------------------------------------------------


def explained(api, path, user_id, attributes=None):
    query = {"explain": "true", "attributes": json.dumps(attributes or {})}
    response = api.get(f"{path}/assignments/{user_id}", query_string=query)
    assert response.status_code == 200, response.text
    return response.json["data"]


def recomputed(draw):
    """Return the bucket that the receipt's shell command prints."""
    line = ["sh", "-c", draw["command"]]
    return int(subprocess.run(line, capture_output=True, check=True, text=True).stdout)


@pytest.mark.parametrize("user_id", ["user-1", "Zoë", "o'neil $(date)", "用户42"])
def test_anyone_can_come_to_the_receipt_s_answer_in_a_shell(api, running, user_id):
    api("PUT", "audiences/aud_pro", {"name": "Paying", "ruleTree": PRO})
    # Each experiment leaves out one user in 10,000, by its random id.
    paths = (running(audienceId="aud_pro", trafficPercentage=99.99) for _ in range(5))
    tried = ((path, decided(api, path, user_id, plan="pro")) for path in paths)
    path, row = next((path, row) for path, row in tried if row["enrolled"])

    told = explained(api, path, user_id, {"plan": "pro"})

    receipt = told.pop("receipt")
    assert told == {**row, "reason": "EXISTING_ASSIGNMENT"}
    assert receipt["salt"] == path.removeprefix("experiments/")
    bucket = recomputed(receipt)
    assert bucket == receipt["bucket"]
    (mine,) = (
        each["variantId"]
        for each in receipt["ranges"]
        if each["first"] <= bucket <= each["last"]
    )
    assert mine == receipt["variantId"] == row["variantId"]
    entry = receipt["entry"]
    assert entry["salt"] == f"{receipt['salt']}:traffic"
    assert entry["ranges"] == [{"first": 0, "last": 9998}]
    assert recomputed(entry) == entry["bucket"] <= 9998
    assert entry["inside"] is True
    assert receipt["rules"] == {**PRO, "result": True}
    assert receipt["audienceId"] == "aud_pro"


def test_a_receipt_says_why_somebody_is_not_in_and_enrols_nobody(api, draft):
    api("PUT", "audiences/aud_pro", {"name": "Paying", "ruleTree": PRO})
    path = draft(audienceId="aud_pro", **taking(50))
    assert explained(api, path, "user")["reason"] == "NOT_STARTED"
    assert api.post(f"{path}/start").status_code == 200
    reasons = set()
    for number in range(20):
        user_id = f"user-{number}"
        free = explained(api, path, user_id)
        assert (free["enrolled"], free["reason"]) == (False, "NOT_IN_AUDIENCE")
        assert free["receipt"]["rules"]["result"] is False
        told = explained(api, path, user_id, {"plan": "pro"})
        entry = told["receipt"]["entry"]
        assert entry["salt"] == "group:page"
        assert entry["inside"] is (entry["bucket"] < 5_000)
        assert told["reason"] == ("NOT_ENROLLED" if entry["inside"] else "EXCLUDED")
        reasons.add(told["reason"])
        assert_error(api.get(f"{path}/assignments/{user_id}"), 404, "NOT_FOUND")
    assert reasons == {"NOT_ENROLLED", "EXCLUDED"}
    assert api.get(path).json["data"]["_count"] == {"assignments": 0}


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("explain=yes", "explain"),
        ("explain=true&attributes=[1]", "attributes"),
        ("explain=true&attributes={", "attributes"),
        ('explain=true&attributes={"a":"\\ud800"}', "attributes.a"),
        ("explained=true", "explained"),
    ],
)
def test_a_wrong_question_for_a_receipt_is_refused(api, running, query, path):
    response = api.get(f"{running()}/assignments/user-1?{query}")
    assert paths(assert_error(response, 400, "VALIDATION_ERROR")) == {path}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "The text is not JSON: "),
        ("\ufeff{}", "The text begins with a byte order mark."),
        ('{"a": 1, "a": 2}', "The key 'a' stands twice in one object."),
        ('{"a": NaN}', "NaN is not JSON."),
        ("[" * 65 + "]" * 65, "The JSON is nested over 64 deep."),
    ],
)
def test_what_is_wrong_with_a_query_is_not_said_of_a_body(api, running, text, message):
    query = {"explain": "true", "attributes": text}

    response = api.get(f"{running()}/assignments/user-1", query_string=query)

    error = assert_error(response, 400, "VALIDATION_ERROR")
    (detail,) = error["details"]
    assert detail["path"] == "attributes"
    assert detail["message"].startswith(message)
    assert "body" not in response.text


# ----------------------------------------------------------------------------
# Warnings
# ----------------------------------------------------------------------------


def test_a_start_warns_of_a_flow_that_stands_twice(api, draft, running):
    variants = two_variants()
    variants[1]["flowId"] = "flow_a"
    path, clean = draft(variants=variants), draft()

    def codes(response):
        assert response.status_code == 200
        return [one["code"] for one in response.json["data"]["warnings"]]

    assert codes(api.post(f"{path}/start")) == ["FLOW_IN_TWO_VARIANTS"]
    warned = api.post(f"{clean}/start")
    assert codes(warned) == ["FLOW_IN_TWO_EXPERIMENTS"]
    assert path.removeprefix("experiments/") in warned.text
    for one in (path, clean):
        assert api.post(f"{one}/stop").status_code == 200
    # Only what runs is in the way, and a flow that is not named is no flow.
    assert codes(api.post(f"{draft()}/start")) == []
    nameless = [{**one, "flowId": None} for one in two_variants()]
    for path in (draft(variants=nameless), draft(variants=nameless)):
        assert codes(api.post(f"{path}/start")) == []
