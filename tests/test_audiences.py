"""Audiences: whom an experiment is for. The rules' own truth is in test_audience."""

import time
from urllib.parse import quote

import pytest
from conftest import assert_error, paths
from hypothesis import given, settings
from test_enrolment import ODD, each_of, ids

PRO = {"field": "plan", "operator": "eq", "value": "pro"}
GERMAN = {"field": "traits.country", "operator": "in", "value": ["DE", "AT"]}
BOTH = {"logicalOperator": "AND", "rules": [PRO, GERMAN]}
MEANT = {"plan": "pro", "traits": {"country": "DE"}}


@pytest.fixture
def audience(api):
    """Return a maker of audiences, which answers the path of each."""

    def make(id="aud_pro", rule_tree=PRO, **fields):
        body = {"name": "Paying", "ruleTree": rule_tree, **fields}
        response = api("PUT", f"audiences/{id}", body)
        assert response.status_code in (200, 201), response.text
        return f"audiences/{id}"

    return make


def test_an_audience_is_made_read_changed_and_deleted(api):
    made = api.post("audiences", {"name": "Paying", "ruleTree": BOTH})

    assert made.status_code == 201
    told = made.json["data"]
    path = f"audiences/{told['id']}"
    assert told["id"].startswith("aud_")
    assert (told["name"], told["description"]) == ("Paying", None)
    assert told["ruleTree"] == BOTH
    assert told["createdAt"] == told["updatedAt"]
    assert api.get(path).json["data"] == told
    changed = api.patch(path, {"description": "Who pays"})
    assert changed.status_code == 200
    assert changed.json["data"]["ruleTree"] == BOTH
    assert changed.json["data"]["description"] == "Who pays"
    assert changed.json["data"]["updatedAt"] > told["updatedAt"]
    assert api.delete(path).status_code == 200
    assert_error(api.get(path), 404, "NOT_FOUND")
    assert_error(api.delete(path), 404, "NOT_FOUND")


def test_put_creates_under_your_own_id_and_then_replaces(api):
    body = {"name": "Paying", "description": "Who pays", "ruleTree": PRO}

    first = api("PUT", "audiences/aud_xyz", body)
    second = api("PUT", "audiences/aud_xyz", {"name": "Both", "ruleTree": BOTH})

    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json["data"]["id"] == second.json["data"]["id"] == "aud_xyz"
    assert second.json["data"]["description"] is None
    assert second.json["data"]["createdAt"] == first.json["data"]["createdAt"]
    assert api.get("audiences/aud_xyz").json == second.json


@pytest.mark.one_engine
@pytest.mark.parametrize("id", ["null", "undefined", " ", "x" * 256])
def test_an_id_that_cannot_be_is_refused(api, id):
    response = api("PUT", f"audiences/{id}", {"name": "Paying", "ruleTree": PRO})

    assert paths(assert_error(response, 400, "VALIDATION_ERROR")) == {"audienceId"}
    assert api.get("audiences").json["meta"]["total"] == 0


@pytest.mark.one_engine
@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"name": None}, "name"),
        ({"name": " "}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"description": "x" * 10_001}, "description"),
        ({"ruleTree": None}, "ruleTree"),
        ({"ruleTree": "plan eq pro"}, "ruleTree"),
        ({"ruleTree": {**PRO, "operator": "like"}}, "ruleTree.operator"),
        ({"ruleTree": {**PRO, "operator": "gt"}}, "ruleTree.value"),
        ({"ruleTree": {**PRO, "operator": "regex", "value": "("}}, "ruleTree.value"),
        (
            {"ruleTree": {**PRO, "operator": "semver_gte", "value": "newest"}},
            "ruleTree.value",
        ),
        (
            {"ruleTree": {**PRO, "operator": "before", "value": "2025-02-01T00:00"}},
            "ruleTree.value",
        ),
        (
            {"ruleTree": {**PRO, "operator": "after", "value": "2025-02-01"}},
            "ruleTree.value",
        ),
        ({"ruleTree": {"logicalOperator": "AND", "rules": []}}, "ruleTree.rules"),
        (
            {"ruleTree": {**BOTH, "rules": [PRO, {**GERMAN, "value": "DE"}]}},
            "ruleTree.rules.1.value",
        ),
        ({"id": "aud_mine"}, "id"),
        ({"rules": []}, "rules"),
    ],
)
def test_a_wrong_audience_is_refused_with_the_path(api, audience, fields, path):
    there = audience()
    before = api.get(there).json
    body = {"name": "Paying", "ruleTree": PRO, **fields}

    for response in (
        api.post("audiences", body),
        api("PUT", there, body),
        api.patch(there, fields),
    ):
        assert paths(assert_error(response, 400, "VALIDATION_ERROR")) == {path}
    assert api.get(there).json == before
    assert api.get("audiences").json["meta"]["total"] == 1


def test_audiences_are_paged_newest_first(api, audience):
    for number in range(5):
        audience(f"aud_{number}")

    page = api.get("audiences?page=2&limit=2").json

    assert [one["id"] for one in page["data"]] == ["aud_2", "aud_1"]
    assert page["meta"].pop("next")
    assert page["meta"] == {"total": 5, "page": 2, "limit": 2, "totalPages": 3}


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("PAYING", {"aud_a"}),
        ("straße", {"aud_b"}),
        ("STRASSE", {"aud_b"}),
        ("aud_", {"aud_a", "aud_b"}),
        ("audx", set()),
        ("100%", {"aud_b"}),
        ("%", {"aud_b"}),
        ("nobody", set()),
    ],
)
def test_a_search_finds_a_part_of_id_name_or_description(api, audience, search, found):
    audience("aud_a", name="Paying users")
    audience("aud_b", name="Hauptstraße", description="100% of them")

    page = api.get("audiences", query_string={"search": search}).json

    assert {one["id"] for one in page["data"]} == found
    assert page["meta"]["total"] == len(found)


def test_a_search_for_what_no_text_holds_is_refused(api, audience):
    audience()

    refused = api.get("audiences?search=a%00")

    assert paths(assert_error(refused, 400, "VALIDATION_ERROR")) == {"search"}


@pytest.mark.one_engine
def test_an_audience_is_tried_out_with_the_truth_of_each_rule(api, audience):
    path = audience(rule_tree=BOTH)

    meant = api.post(f"{path}/test", {"attributes": MEANT}).json["data"]
    other = api.post(f"{path}/test", {"attributes": {"plan": "pro"}}).json["data"]

    assert (meant["matches"], other["matches"]) == (True, False)
    assert [rule["result"] for rule in other["trace"]["rules"]] == [True, False]
    assert other["trace"]["result"] is False
    assert other["trace"]["rules"][0] == {**PRO, "result": True}
    assert api.post(f"{path}/test").json["data"]["matches"] is False


def test_an_audience_can_name_a_user(api, audience):
    path = audience(
        rule_tree={"field": "userId", "operator": "starts_with", "value": "qa-"}
    )

    told = [
        api.post(f"{path}/test", {"userId": user_id}).json["data"]["matches"]
        for user_id in ("qa-1", "user-1")
    ]

    assert told == [True, False]


@each_of(ODD)
@given(ids)
@settings(settings.get_profile("contract"))
def test_an_audience_that_can_be_written_can_be_read_tried_and_deleted(
    api, audience_id
):
    path = f"audiences/{quote(audience_id, safe='')}"
    body = {"name": "Paying", "ruleTree": PRO}
    made = api("PUT", path, body)
    if made.status_code != 201:
        assert_error(made, 400, "VALIDATION_ERROR")
        return

    for answer in (api.get(path), api("PUT", path, body), api.patch(path, {})):
        assert (answer.status_code, answer.json["data"]["id"]) == (200, audience_id)
    tried = api.post(f"{path}/test", {"attributes": MEANT})
    assert tried.json["data"]["matches"] is True
    (listed,) = api.get("audiences").json["data"]
    assert listed["id"] == audience_id
    assert api.delete(path).json["data"]["id"] == audience_id
    assert_error(api.get(path), 404, "NOT_FOUND")
    assert api.get("audiences").json["data"] == []


def decided(api, path, user_id, attributes=None):
    body = {"userId": user_id, "attributes": attributes or {}}
    response = api.post(f"{path}/assignments", body)
    assert response.status_code in (200, 201), response.text
    return response.json["data"]


def test_only_users_who_are_meant_are_enrolled(api, running, audience):
    audience(rule_tree=BOTH)
    path = running(audienceId="aud_pro")

    assert decided(api, path, "in", MEANT)["reason"] == "NEW_ASSIGNMENT"
    refused = decided(api, path, "out", {"plan": "free"})
    assert (refused["enrolled"], refused["reason"]) == (False, "NOT_IN_AUDIENCE")
    assert refused["variantId"] is None
    # A "no" is never stored, and a "yes" is not asked again.
    assert decided(api, path, "out", MEANT)["reason"] == "NEW_ASSIGNMENT"
    assert decided(api, path, "in")["reason"] == "EXISTING_ASSIGNMENT"


def test_each_row_of_a_batch_is_asked_with_its_own_attributes(api, running, audience):
    audience()
    path = running(audienceId="aud_pro")
    rows = [("a", "free"), ("a", "pro"), ("a", "free"), ("b", "free"), ("c", "pro")]
    users = [{"userId": user, "attributes": {"plan": plan}} for user, plan in rows]

    told = api.post(f"{path}/assignments/batch", {"users": users}).json["data"]

    assert [(one["userId"], one["reason"]) for one in told] == [
        ("a", "NOT_IN_AUDIENCE"),
        ("a", "NEW_ASSIGNMENT"),
        ("a", "EXISTING_ASSIGNMENT"),
        ("b", "NOT_IN_AUDIENCE"),
        ("c", "NEW_ASSIGNMENT"),
    ]
    assert api.get(path).json["data"]["_count"] == {"assignments": 2}


def test_a_batch_asks_a_long_list_once_and_not_for_each_user(api, running, audience):
    numbers = list(range(100_000, 200_000))
    rule = {"field": "account", "operator": "in", "value": numbers}
    audience("aud_listed", rule)
    path = running(audienceId="aud_listed")
    users = [
        {"userId": f"u{place}", "attributes": {"account": 199_990.0 + place}}
        for place in range(2_000)
    ]
    began = time.process_time()

    rows = api.post(f"{path}/assignments/batch", {"users": users}).json["data"]

    assert time.process_time() - began < 10
    assert [row["enrolled"] for row in rows] == [True] * 10 + [False] * 1_990


def test_the_rules_of_a_running_experiment_are_those_of_its_start(api, draft, audience):
    there = audience()
    path = draft(audienceId="aud_pro")
    assert api.get(path).json["data"]["audienceSnapshotAt"] is None
    api.patch(there, {"ruleTree": BOTH})

    started = api.post(f"{path}/start").json["data"]
    api.patch(there, {"ruleTree": PRO})

    assert started["audienceSnapshotAt"] == started["startDate"]
    assert started["warnings"] == []
    pro = {"plan": "pro"}
    assert decided(api, path, "a", pro)["reason"] == "NOT_IN_AUDIENCE"
    assert decided(api, path, "b", MEANT)["reason"] == "NEW_ASSIGNMENT"
    api.post(f"{path}/stop")
    api.post(f"{path}/resume")
    assert decided(api, path, "c", pro)["reason"] == "NOT_IN_AUDIENCE"


def messages(data, code):
    return [one["message"] for one in data["warnings"] if one["code"] == code]


def test_a_rule_that_can_never_be_true_is_warned_of(api, draft, audience):
    there = audience()
    never = {**GERMAN, "value": []}
    path = draft(audienceId="aud_pro")

    def warned(response):
        assert response.status_code in (200, 201), response.text
        return messages(response.json["data"], "RULE_NEVER_TRUE")

    assert warned(api.post(f"{draft(audienceId='aud_pro')}/start")) == []
    api.patch(there, {"ruleTree": {"logicalOperator": "OR", "rules": [PRO, never]}})
    (message,) = warned(api.post(f"{path}/duplicate"))
    assert message == (
        "The rule ruleTree.rules.1 of the audience can never be true: no value of "
        "'traits.country' satisfies ruleTree.rules.1."
    )
    free = {**PRO, "value": "free"}
    api.patch(there, {"ruleTree": {"logicalOperator": "AND", "rules": [PRO, free]}})
    (message,) = warned(api.post(f"{path}/start"))
    assert message == (
        "The rule ruleTree of the audience can never be true: no value of 'plan' "
        "satisfies ruleTree.rules.0 and ruleTree.rules.1. Nobody can be enrolled."
    )
    assert decided(api, path, "a", {"plan": "pro"})["reason"] == "NOT_IN_AUDIENCE"


def test_no_more_than_ten_rules_are_warned_of(api, draft, audience):
    never = {**GERMAN, "value": []}
    rules = [PRO, *[never] * 12]
    audience(rule_tree={"logicalOperator": "OR", "rules": rules})

    started = api.post(f"{draft(audienceId='aud_pro')}/start").json["data"]

    assert len(messages(started, "RULE_NEVER_TRUE")) == 10


def test_an_audience_that_is_defined_too_late_changes_nothing(api, draft, audience):
    path = draft(audienceId="aud_pro")
    warned = api.post(f"{path}/start").json["data"]["warnings"]
    audience()

    assert [one["code"] for one in warned] == ["AUDIENCE_NOT_DEFINED"]
    assert api.get(path).json["data"]["audienceSnapshotAt"] is None
    assert decided(api, path, "a")["reason"] == "NEW_ASSIGNMENT"


def test_an_audience_in_use_cannot_be_deleted(api, draft, audience):
    there = audience()
    path = draft(audienceId="aud_pro")

    for move in (None, "start"):
        if move:
            assert api.post(f"{path}/{move}").status_code == 200
        error = assert_error(api.delete(there), 409, "CONFLICT")
        assert path.removeprefix("experiments/") in error["message"]
        assert api.get(there).status_code == 200
    api.post(f"{path}/stop")
    assert api.delete(there).status_code == 200
    # What has been frozen stays, also when it runs again.
    api.post(f"{path}/resume")
    assert decided(api, path, "a")["reason"] == "NOT_IN_AUDIENCE"


def test_an_archived_draft_does_not_hold_its_audience(api, draft, audience):
    there = audience()
    path = draft(audienceId="aud_pro")
    assert api.delete(path).status_code == 200

    assert api.delete(there).status_code == 200
