"""The definitions that clients decide with: what is in them, and what they cost."""

import json
import re
from hashlib import sha256
from pathlib import Path

import jsonschema
import pytest
from conftest import PERSON, Caller, assert_error, statements
from test_ofrep import CONFIGURED, state
from test_wire import called_from

from ledger import published, standing
from models import Change, Experiment, Identity
from storage.engine import database
from targeting.assignment import bucket

DEFINITIONS = "/api/definitions"

DOCUMENT = Path(__file__).parent.parent / "docs" / "local-evaluation.md"


def answered(api, tag=None):
    """Return the answer, which must be good; with a tag, to whoever has that one."""
    headers = {"If-None-Match": tag} if tag else {}
    answer = api.get(DEFINITIONS, headers=headers)
    assert answer.status_code in (200, 304), answer.text
    return answer


def definitions(api):
    """Return the published definitions by their keys."""
    listed = answered(api).json["data"]["experiments"]
    return {one["key"]: one for one in listed}


# ---------------------------------------------------------------------------
# What is published


def test_a_definition_has_all_that_decides_and_nothing_else(api, running):
    rules = {"field": "plan", "operator": "in", "value": ["pro", 0.1]}
    api("PUT", "audiences/aud_payers", {"name": "Payers", "ruleTree": rules})
    running(exclusionGroup="Größe", trafficPercentage=10)
    path = running(
        key="checkout",
        variants=CONFIGURED,
        audienceId="aud_payers",
        exclusionGroup="Größe",
        trafficPercentage=33.33,
        endDate="2999-01-01T00:00:00Z",
    )
    id = path.partition("/")[2]

    assert definitions(api)["checkout"] == {
        "id": id,
        "key": "checkout",
        "status": "running",
        "endDate": "2999-01-01T00:00:00Z",
        "salts": {
            "variant": id,
            "traffic": f"{id}:traffic",
            "group": "group:Größe",
            "userId": f"users:{id}",
        },
        "variants": [
            {
                "id": "v1",
                "name": "Control",
                "split": 5_000,
                "flowId": None,
                "config": None,
            },
            {
                "id": "v2",
                "name": "Detailed",
                "split": 5_000,
                "flowId": "flow_b",
                "config": {"steps": 5, "rate": 0.1},
            },
        ],
        "traffic": 3_333,
        "rules": rules,
        "ranges": [[1_000, 4_332]],
        "winner": None,
        "overrides": {},
    }


def test_the_salts_are_those_that_the_receipt_shows(api, running):
    path = running(key="alone", trafficPercentage=50)
    receipt = api.get(f"{path}/assignments/u1?explain=true").json["data"]["receipt"]
    salts = definitions(api)["alone"]["salts"]

    assert salts["variant"] == receipt["salt"]
    assert salts["traffic"] == receipt["entry"]["salt"]
    assert bucket(salts["variant"], "u1") == receipt["bucket"]
    assert salts["group"] is None


def test_whatever_has_started_is_there_and_what_decides_comes_first(
    api, running, draft
):
    for name in ("stopped", "completed", "winner", "archived", "running"):
        state(api, running(key=name), name)
    draft(key="draft")

    found = definitions(api)

    assert list(found) == ["running", "winner", "completed", "stopped"]
    assert [one["status"] for one in found.values()] == [
        *("running", "completed", "completed", "stopped")
    ]
    winners = {name: one["winner"] for name, one in found.items() if one["winner"]}
    assert winners == {"winner": "v2"}
    # Those who were enrolled keep their variant, which a client has to know.
    assert [one["name"] for one in found["stopped"]["variants"]] == [
        *("Control", "Detailed")
    ]


def test_a_user_with_an_override_is_a_salted_hash(api, running):
    paths = [running(key="one"), running(key="two")]
    for path in paths:
        assert api("PUT", f"{path}/overrides/Zoë", {"variantId": "v2"}).status_code
    text = answered(api).text
    found = definitions(api)

    hashes = [
        sha256(f"users:{one['id']}:Zoë".encode()).hexdigest() for one in found.values()
    ]
    assert [one["overrides"] for one in found.values()] == [
        {hash: "v2"} for hash in hashes
    ]
    assert len(set(hashes)) == 2
    assert "Zoë" not in text and "Zo\\u" not in text


def test_no_user_is_named_by_the_rules_either(api, running):
    ids = ["user-1", "user-2", 7, None]
    leaves = [
        {"field": "userId", "operator": "eq", "value": "user-1"},
        {"field": "userId", "operator": "neq", "value": "user-1"},
        {"field": "userId", "operator": "eq", "value": 7},
        {"field": "userId", "operator": "in", "value": ids},
        {"field": "userId", "operator": "not_in", "value": ids},
        {"field": "userId", "operator": "starts_with", "value": "staff-"},
        {"field": "plan", "operator": "eq", "value": "pro"},
    ]
    tree = {
        "logicalOperator": "OR",
        "rules": [*leaves[1:], {"logicalOperator": "AND", "rules": leaves[:1]}],
    }
    api("PUT", "audiences/aud_staff", {"name": "Staff", "ruleTree": tree})
    id = running(key="staff", audienceId="aud_staff").partition("/")[2]

    one, other = (
        sha256(f"users:{id}:{user_id}".encode()).hexdigest()
        for user_id in ("user-1", "user-2")
    )

    def leaf(operator, *hashes):
        return {"field": "userId", "operator": operator, "hashes": sorted(hashes)}

    assert definitions(api)["staff"]["rules"] == {
        "logicalOperator": "OR",
        "rules": [
            leaf("not_in", one),
            leaf("in"),
            leaf("in", one, other),
            leaf("not_in", one, other),
            *leaves[5:],
            {"logicalOperator": "AND", "rules": [leaf("in", one)]},
        ],
    }
    assert "user-1" not in answered(api).text


def test_an_erased_person_is_not_there_any_more(api, running):
    path = running(key="checkout")
    api("PUT", f"{path}/overrides/{PERSON}", {"variantId": "v2"})
    before = answered(api)
    assert definitions(api)["checkout"]["overrides"]

    assert api.delete(f"users/{PERSON}").status_code == 200

    assert definitions(api)["checkout"]["overrides"] == {}
    assert answered(api, before.headers["ETag"]).status_code == 200


def test_of_more_than_1000_experiments_the_rest_is_counted(api, running, monkeypatch):
    for name in ("stopped", "running", "winner"):
        state(api, running(key=name), name)
    assert answered(api).json["data"]["omitted"] == 0
    assert published.MOST == 1_000
    monkeypatch.setattr(published, "MOST", 2)

    found = answered(api).json["data"]

    assert [one["key"] for one in found["experiments"]] == ["winner", "running"]
    assert found["omitted"] == 1


# ---------------------------------------------------------------------------
# What it costs


def test_the_tag_is_the_revision_and_spares_the_same_answer(api, running):
    running()
    first = answered(api)
    tag = first.headers["ETag"]

    assert tag == f'"{first.json["data"]["revision"]}"'
    assert first.json["data"]["version"] == 1
    for known in (tag, f"W/{tag}", f'"other", {tag}'):
        again = answered(api, known)
        assert (again.status_code, again.data) == (304, b"")
        assert again.headers["ETag"] == tag
    assert answered(api, '"other"').json == first.json


@pytest.mark.sqlite
def test_an_answer_without_a_change_reads_two_rows(api, running):
    for _ in range(3):
        running(variants=CONFIGURED)
    tag = answered(api).headers["ETag"]
    standing._remembered.clear()  # as in a process that has just started

    with statements() as sent:
        assert answered(api, tag).status_code == 304

    read = [one for one in sent if one.upper().startswith("SELECT")]
    assert [re.findall(r'FROM "(\w+)"', one)[0] for one in read] == [
        *("identity", "change")
    ]


def test_each_change_is_a_new_revision_and_an_enrolment_is_none(api, draft):
    tags = [answered(api).headers["ETag"]]

    def changed():
        tags.append(answered(api, tags[-1]).headers["ETag"])
        return tags[-1] not in tags[:-1]

    path = draft(key="checkout")
    for move in ("start", "stop", "resume"):
        assert api.post(f"{path}/{move}").status_code == 200
        assert changed(), move
    api("PUT", f"{path}/overrides/u1", {"variantId": "v2"})
    assert changed()
    assert definitions(api)["checkout"]["overrides"]
    api.delete(f"{path}/overrides/u1")
    assert changed()
    assert definitions(api)["checkout"]["overrides"] == {}
    for user_id in ("u1", "u2"):
        api.post(f"{path}/assignments", {"userId": user_id})
        api.post(f"{path}/conversions", {"userId": user_id})
    assert not changed()
    state(api, path, "winner")
    assert changed()
    assert definitions(api)["checkout"]["winner"] == "v2"
    api.delete(path)
    assert changed()
    assert definitions(api) == {}


@pytest.mark.sqlite
def test_a_restored_database_that_comes_to_the_same_number_has_another_tag(
    api, running
):
    path = running(key="checkout")
    with database.atomic() as transaction:
        noted(path, "first")
        first = published.revision()
        number = Identity.select(Identity.revision).scalar()
        transaction.rollback()
    noted(path, "second")

    assert Identity.select(Identity.revision).scalar() == number
    assert published.revision() != first


def noted(path, note):
    """Note a change of an experiment in the transaction of this test."""
    experiment = Experiment.named(path.partition("/")[2])
    Change.note(experiment, "tester", "revise", {}, {"note": note})


# ---------------------------------------------------------------------------
# Who may read it


def test_it_needs_the_scope_of_those_who_enrol(app, api, anonymous, token):
    assert_error(anonymous.get(DEFINITIONS), 401, "UNAUTHENTICATED")
    for scope in ("read", "write"):
        refused = Caller(app, token(scope=scope)).get(DEFINITIONS)
        assert "assign" in assert_error(refused, 403, "FORBIDDEN")["message"]
    assert Caller(app, token(scope="assign")).get(DEFINITIONS).status_code == 200
    assert_error(api.get(f"{DEFINITIONS}?x=1"), 400, "VALIDATION_ERROR")
    assert_error(api.post(DEFINITIONS, {}), 405, "METHOD_NOT_ALLOWED")


@pytest.mark.one_engine
def test_the_origins_named_may_read_it_from_a_browser(app, tmp_path):
    client = called_from("https://shop.example", tmp_path)
    asked = {
        "Origin": "https://shop.example",
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "authorization, if-none-match",
    }

    preflight = client.options(DEFINITIONS, headers=asked)
    other = client.options(DEFINITIONS, headers={**asked, "Origin": "https://e.x"})
    refused = client.get(DEFINITIONS, headers={"Origin": "https://shop.example"})

    assert preflight.status_code == 200
    origin = preflight.headers["Access-Control-Allow-Origin"]
    assert origin == "https://shop.example"
    assert "Access-Control-Allow-Origin" not in other.headers
    assert refused.status_code == 401
    assert "ETag" in refused.headers["Access-Control-Expose-Headers"]


# ---------------------------------------------------------------------------
# The document


def test_the_example_of_the_page_has_the_shape_of_the_answer(anonymous):
    (example,) = re.findall(r"```json\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    document = anonymous.get("/openapi.json").json
    answer = document["paths"][DEFINITIONS]["get"]["responses"]["200"]
    schema = answer["content"]["application/json"]["schema"]

    jsonschema.validate(
        json.loads(example), {**schema, "components": document["components"]}
    )


def test_the_page_has_the_published_vectors():
    vectors = re.findall(r"\| `(\S+)` \| `(\S+)` \| (\d+) \|", DOCUMENT.read_text())

    assert len(vectors) == 4
    for salt, user_id, number in vectors:
        assert bucket(salt, user_id) == int(number)
