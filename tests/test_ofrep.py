"""OpenFeature's protocol: each flag is the decision that the API gives."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from conftest import Caller, assert_error, paths, statements, two_variants
from hypothesis import given
from hypothesis import strategies as st
from test_shortcut import caller
from test_wire import called_from

from app import create_app
from clients import CONFIGURED, PAYERS
from ledger import standing
from ledger.enrolment import NewAssignment, write_assignments
from models import Assignment, Experiment
from storage import engine
from storage.columns import utcnow
from targeting.decision import User
from web import errors

BULK = "/ofrep/v1/evaluate/flags"


def key_of(api, path):
    return api.get(path).json["data"]["key"]


def evaluated(api, key, user_id="u1", **attributes):
    """Return the flag of a user, which must be one."""
    body = {"context": {"targetingKey": user_id, **attributes}}
    answer = api.post(f"{BULK}/{key}", body)
    assert answer.status_code == 200, answer.text
    return answer.json


def all_of(api, user_id="u1", **attributes):
    """Return all flags of a user by their keys."""
    answer = api.post(BULK, {"context": {"targetingKey": user_id, **attributes}})
    assert answer.status_code == 200, answer.text
    return {flag["key"]: flag for flag in answer.json["flags"]}


def participants(api, path):
    return api.get(path).json["data"]["_count"]["assignments"]


# ---------------------------------------------------------------------------
# One flag


def test_a_flag_is_the_flow_or_the_name_of_the_variant_that_the_api_gives(api, running):
    path = running(key="checkout", variants=CONFIGURED)
    id = path.partition("/")[2]
    seen = set()
    for number in range(30):
        user_id = f"user-{number}"
        by_key = evaluated(api, "checkout", user_id)
        decision = api.post(f"{path}/assignments", {"userId": user_id}).json["data"]
        by_id = evaluated(api, id, user_id)
        config = evaluated(api, "checkout.config", user_id)
        config_by_id = evaluated(api, f"{id}.config", user_id)

        seen.add(decision["variantId"])
        assert decision["reason"] == "EXISTING_ASSIGNMENT"
        assert by_key == {
            "key": "checkout",
            "value": decision["flowId"] or decision["variantName"],
            "variant": decision["variantId"],
            "reason": "SPLIT",
            "metadata": {"experimentId": id},
        }
        assert by_id == {**by_key, "key": id}
        assert config_by_id == {**config, "key": f"{id}.config"}
        assert config.pop("value", None) == decision["config"]
        del by_key["value"]
        assert config == {**by_key, "key": "checkout.config"}
    assert seen == {"v1", "v2"}
    assert participants(api, path) == 30


def test_a_variant_without_a_config_leaves_the_default_to_the_application(api, running):
    running(key="checkout", variants=CONFIGURED)
    flags = [evaluated(api, "checkout.config", f"u{number}") for number in range(20)]

    values = {flag["variant"]: flag.get("value") for flag in flags}
    assert values == {"v1": None, "v2": {"steps": 5, "rate": 0.1}}
    assert all(("value" in flag) is (flag["variant"] == "v2") for flag in flags)


def test_the_attributes_of_the_context_decide_who_is_meant(api, running):
    api("PUT", "audiences/aud_payers", {"name": "Payers", "ruleTree": PAYERS})
    path = running(key="paid", audienceId="aud_payers")

    assert "value" not in evaluated(api, "paid", "u1", plan="free")
    assert participants(api, path) == 0
    assert "value" in evaluated(api, "paid", "u1", plan="pro")
    assert participants(api, path) == 1
    # A user who is in stays in.
    assert evaluated(api, "paid", "u1", plan="free")["reason"] == "SPLIT"


def state(api, path, name):
    """Bring a running experiment into a state."""
    moves = {
        "stopped": [("stop", {})],
        "archived": [("stop", {}), ("", None)],
        "completed": [("complete", {"conclusion": "inconclusive"})],
        "winner": [("complete", {"conclusion": "won", "winnerVariantId": "v2"})],
    }
    for move, body in moves.get(name, []):
        method = "POST" if move else "DELETE"
        place = f"{path}/{move}".removesuffix("/")
        assert api(method, place, body).status_code == 200


@pytest.mark.parametrize(
    ("name", "reason", "decision"),
    [
        ("draft", "DISABLED", "NOT_STARTED"),
        ("archived", "DISABLED", "ARCHIVED"),
        ("stopped", "DEFAULT", "ENROLLMENT_CLOSED"),
        ("completed", "DEFAULT", "ENROLLMENT_CLOSED"),
    ],
)
def test_a_state_in_which_nobody_is_enrolled_leaves_the_default(
    api, draft, name, reason, decision
):
    path = draft(key="checkout")
    if name != "draft":
        assert api.post(f"{path}/start").status_code == 200
        enrolled = evaluated(api, "checkout", "early")
        state(api, path, name)
        # Whoever is enrolled keeps the variant.
        assert evaluated(api, "checkout", "early") == enrolled
        assert enrolled["reason"] == "SPLIT"

    for key in ("checkout", "checkout.config"):
        assert evaluated(api, key, "late") == {
            "key": key,
            "variant": "not_enrolled",
            "reason": reason,
            "metadata": {"experimentId": path.partition("/")[2], "decision": decision},
        }
    assert participants(api, path) == (name != "draft")


@pytest.mark.parametrize(
    ("fields", "decision"),
    [
        ({"audienceId": "aud_payers"}, "NOT_IN_AUDIENCE"),
        ({"trafficPercentage": 0.01}, "HELD_OUT"),
        ({"trafficPercentage": 0.01, "exclusionGroup": "page"}, "EXCLUDED"),
    ],
)
def test_a_user_who_is_not_taken_gets_the_default(api, running, fields, decision):
    api("PUT", "audiences/aud_payers", {"name": "Payers", "ruleTree": PAYERS})
    running(key="checkout", **fields)

    flag = evaluated(api, "checkout", "u1")

    assert "value" not in flag
    assert (flag["variant"], flag["reason"]) == ("not_enrolled", "DEFAULT")
    assert flag["metadata"]["decision"] == decision
    assert all_of(api)["checkout"] == flag


def test_a_winner_is_for_everyone_and_enrols_nobody(api, running):
    path = running(key="checkout", variants=CONFIGURED)
    evaluated(api, "checkout", "early")
    state(api, path, "winner")

    for user_id in ("early", "late-1", "late-2", "late-3"):
        flag = evaluated(api, "checkout", user_id)
        assert (flag["value"], flag["variant"]) == ("flow_b", "v2")
        assert flag["reason"] == "DEFAULT"
        assert flag["metadata"]["decision"] == "WINNER"
        assert evaluated(api, "checkout.config", user_id)["value"]["steps"] == 5
        assert all_of(api, user_id)["checkout"] == flag
    assert participants(api, path) == 1


def test_an_override_is_a_match_in_any_state_and_enrols_nobody(api, draft):
    path = draft(key="checkout")
    for variant, flow in (("v1", "flow_a"), ("v2", "flow_b")):
        forced = api("PUT", f"{path}/overrides/tester", {"variantId": variant})
        assert forced.status_code in (200, 201)
        flag = evaluated(api, "checkout", "tester")
        assert (flag["value"], flag["variant"]) == (flow, variant)
        assert flag["reason"] == "TARGETING_MATCH"
        assert participants(api, path) == 0
    api.post(f"{path}/start")
    assert evaluated(api, "checkout", "tester") == flag
    assert all_of(api, "tester")["checkout"] == flag
    assert participants(api, path) == 0


def test_no_key_ends_as_the_flag_of_a_config_does(api, draft):
    body = {"name": "x", "variants": two_variants(), "key": "checkout.config"}

    error = assert_error(api.post("experiments", body), 400, "VALIDATION_ERROR")

    assert paths(error) == {"key"}
    changed = api.patch(draft(), {"key": "a.config"})
    assert assert_error(changed, 400, "VALIDATION_ERROR")
    assert api.post("experiments", {**body, "key": "config"}).status_code == 201


# ---------------------------------------------------------------------------
# Refusals


def assert_failure(answer, status, code, key="checkout"):
    """Assert the one shape of the protocol's errors; return the details."""
    assert answer.status_code == status, answer.text
    body = dict(answer.json)
    details = body.pop("errorDetails")
    assert body == {
        "key": key,
        "reason": "ERROR",
        "variant": "not_enrolled",
        "errorCode": code,
    }
    assert details
    return details


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "TARGETING_KEY_MISSING"),
        (b"{}", "TARGETING_KEY_MISSING"),
        (b'{"context": {}}', "TARGETING_KEY_MISSING"),
        (b'{"context": {"plan": "pro"}}', "TARGETING_KEY_MISSING"),
        (b'{"context": {"targetingKey": null}}', "TARGETING_KEY_MISSING"),
        (b'{"context": {"targetingKey": ""}}', "TARGETING_KEY_MISSING"),
        (b'{"context": {"targetingKey": 7}}', "INVALID_CONTEXT"),
        (b'{"context": {"targetingKey": " "}}', "INVALID_CONTEXT"),
        (b'{"context": {"targetingKey": "undefined"}}', "INVALID_CONTEXT"),
        (b'{"context": {"targetingKey": "a\\u0000"}}', "INVALID_CONTEXT"),
        (b'{"context": {"targetingKey": "%s"}}' % (b"x" * 256), "INVALID_CONTEXT"),
        (b'{"context": null}', "INVALID_CONTEXT"),
        (b'{"context": []}', "INVALID_CONTEXT"),
        (b"[]", "INVALID_CONTEXT"),
        (b"{", "PARSE_ERROR"),
        (b'{"context": {"targetingKey": "\xff"}}', "PARSE_ERROR"),
        (b'{"context": {"targetingKey": "a", "n": NaN}}', "PARSE_ERROR"),
        (b'{"context": {"a": 1, "a": 2, "targetingKey": "u"}}', "PARSE_ERROR"),
        (b'{"context": {"a": "%s"}}' % (b"x" * 2**20), "PARSE_ERROR"),
    ],
    ids=str,
)
def test_a_body_that_is_refused_says_why_in_the_protocol_s_words(
    api, running, body, code
):
    path = running(key="checkout")
    for place, key in ((f"{BULK}/checkout", "checkout"), (BULK, "")):
        answer = api.post(place, data=body, content_type="application/json")
        assert_failure(answer, 400, code, key)
    assert participants(api, path) == 0


@pytest.mark.parametrize("content_type", ["text/plain", "application/xml", ""])
def test_a_body_that_is_not_called_json_is_not_parsed(api, running, content_type):
    running(key="checkout")
    body = b'{"context": {"targetingKey": "u1"}}'

    answer = api.post(f"{BULK}/checkout", data=body, content_type=content_type)

    assert_failure(answer, 400, "PARSE_ERROR")


@pytest.mark.parametrize(
    "key",
    [
        "nope",
        "nope.config",
        ".config",
        "exp_0",
        "exp_0.config",
        "a/b",
        "Zoë",
        "x" * 300,
        "a\0b",
        "\ufffd",
    ],
)
def test_an_unknown_flag_is_not_found(api, running, key):
    running(key="checkout")
    context = {"context": {"targetingKey": "u1"}}

    assert_failure(api.post(f"{BULK}/{key}", context), 404, "FLAG_NOT_FOUND", key)


def test_unknown_fields_and_parameters_are_ignored(api, running):
    running(key="checkout")
    body = {"context": {"targetingKey": "u1"}, "later": 1}
    query = "?flagConfigEtag=abc&flagConfigLastModified=1771622898&later=1"

    for place in (f"{BULK}/checkout", BULK):
        assert api.post(place + query, body).json == api.post(place, body).json


def test_no_token_no_scope_and_a_wrong_method_are_answered_in_the_same_shape(
    app, api, anonymous, token, running
):
    running(key="checkout")
    body, place = {"context": {"targetingKey": "u1"}}, f"{BULK}/checkout"

    refused = anonymous.post(place, body)
    assert_failure(refused, 401, "GENERAL")
    assert refused.headers["WWW-Authenticate"] == "Bearer"
    forged = {"Authorization": f"Bearer {token()}x"}
    assert_failure(anonymous.post(place, body, headers=forged), 401, "GENERAL")
    reader = Caller(app, token(scope="read write"))
    assert "assign" in assert_failure(reader.post(place, body), 403, "GENERAL")
    assert_failure(reader.post(BULK, body), 403, "GENERAL", "")
    assert Caller(app, token(scope="assign")).post(place, body).status_code == 200
    wrong = api.get(place)
    assert_failure(wrong, 405, "GENERAL")
    assert set(wrong.headers["Allow"].split(", ")) == {"POST", "OPTIONS"}
    for nowhere in ("/ofrep", "/ofrep/", "/ofrep/v2/x", f"{BULK}/"):
        assert_failure(api.post(nowhere, body), 404, "FLAG_NOT_FOUND", "")
    assert_error(api.post("/ofrepx", body), 404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("status", "answered"),
    [
        (409, 400),
        (422, 400),
        (413, 400),
        (431, 400),
        (429, 429),
        (500, 500),
        (503, 503),
    ],
)
def test_whatever_happens_the_status_is_one_of_the_protocol(app, status, answered):
    with app.test_request_context(f"{BULK}/checkout", method="POST"):
        problem = errors.problem(status, "It is so.")

    assert problem.status_code == answered
    assert problem.json["key"] == "checkout"
    assert problem.json["errorDetails"] == "It is so."
    assert problem.headers.get("Retry-After", "1").isdecimal()
    assert ("Retry-After" in problem.headers) is (status == 503)


def test_without_a_database_the_answer_is_503_with_the_seconds_to_wait(
    app, token, tmp_path
):
    made = create_app(
        {
            "JWT_SECRET_KEY": app.config["JWT_SECRET_KEY"],
            "DATABASE_URL": f"sqlite:///{tmp_path / 'missing.db'}",
        }
    )
    caller, body = Caller(made, token()), {"context": {"targetingKey": "u1"}}

    for place, key in ((f"{BULK}/checkout", "checkout"), (BULK, "")):
        for _ in range(2):  # the second time the token is known, as the short way wants
            answer = caller.post(place, body)
            assert_failure(answer, 503, "GENERAL", key)
            assert answer.headers["Retry-After"] == "1"


# ---------------------------------------------------------------------------
# All flags


def test_all_flags_are_those_of_what_has_started_and_is_not_archived(
    api, running, draft
):
    keys = []
    for name in ("running", "stopped", "completed", "winner", "archived"):
        path = running(key=name)
        state(api, path, name)
        keys += [name, f"{name}.config"]
    draft(key="draft")

    answer = api.post(BULK, {"context": {"targetingKey": "u1"}}).json

    assert [flag["key"] for flag in answer["flags"]] == keys[:-2]
    assert answer["metadata"] == {"eventsUrl": "/api/events"}


def test_all_flags_enrol_nobody_until_the_context_says_so(api, running):
    made = [running(key=f"test-{number}") for number in range(3)]
    shown = all_of(api)

    assert Assignment.select().count() == 0
    for not_true in (False, None, 1, "true", [True]):
        assert all_of(api, enroll=not_true) == shown
    assert Assignment.select().count() == 0
    assert all_of(api, enroll=True) == shown
    assert [participants(api, path) for path in made] == [1, 1, 1]
    assert all_of(api, enroll=True) == all_of(api) == shown
    assert Assignment.select().count() == 3
    single = [evaluated(api, f"test-{number}") for number in range(3)]
    assert single == [shown[f"test-{number}"] for number in range(3)]


def test_the_tag_is_of_the_answer_and_spares_the_same_one(api, running):
    api("PUT", "audiences/aud_payers", {"name": "Payers", "ruleTree": PAYERS})
    path = running(key="paid", audienceId="aud_payers")

    def answer(tag="", **attributes):
        body = {"context": {"targetingKey": "u1", **attributes}}
        return api.post(BULK, body, headers={"If-None-Match": tag} if tag else {})

    first = answer()
    tag = first.headers["ETag"]
    assert tag.startswith('"') and tag.endswith('"')
    for known in (tag, f"W/{tag}", f'"other", {tag}'):
        again = answer(known)
        assert (again.status_code, again.data) == (304, b"")
        assert again.headers["ETag"] == tag
    # What does not change the answer does not change its tag.
    assert answer(tag, country="DE").status_code == 304
    changed = answer(tag, plan="pro")
    assert changed.status_code == 200
    assert changed.headers["ETag"] != tag
    assert changed.json != first.json
    # Nor does the enrolment of the user, who gets what was shown.
    enrolled = answer(changed.headers["ETag"], plan="pro", enroll=True)
    assert enrolled.status_code == 304
    assert participants(api, path) == 1


def test_all_flags_follow_every_change_at_once(api, draft):
    path = draft(key="checkout")
    assert all_of(api) == {}
    api.post(f"{path}/start")
    assert all_of(api)["checkout"]["reason"] == "SPLIT"
    api("PUT", f"{path}/overrides/u1", {"variantId": "v2"})
    assert all_of(api)["checkout"]["reason"] == "TARGETING_MATCH"
    api.delete(f"{path}/overrides/u1")
    assert all_of(api)["checkout"]["reason"] == "SPLIT"
    api.post(f"{path}/stop")
    assert all_of(api)["checkout"]["reason"] == "DEFAULT"
    api.delete(path)
    assert all_of(api) == {}


def test_a_user_of_another_experiment_of_the_group_is_excluded_from_all_flags(
    api, running
):
    shared = {"exclusionGroup": "page", "trafficPercentage": 50}
    made = [running(key=f"page-{number}", **shared) for number in range(2)]
    taken = [
        next(n for n in range(99) if "value" in all_of(api, f"u{n}")[f"page-{number}"])
        for number in range(2)
    ]
    # An import may have put a user of the one share into the other experiment.
    other = made[1].partition("/")[2]
    row = NewAssignment(f"u{taken[0]}", "v1", utcnow())
    with engine.database.atomic():
        write_assignments(Experiment.get_by_id(other), [row], utcnow())

    flags = all_of(api, f"u{taken[0]}")

    assert flags["page-0"]["metadata"]["decision"] == "EXCLUDED"
    assert flags["page-1"]["reason"] == "SPLIT"
    assert evaluated(api, "page-0", f"u{taken[0]}") == flags["page-0"]
    assert Assignment.select().count() == 1


def test_what_is_shown_before_the_enrolment_is_what_the_enrolment_gives(api, running):
    api("PUT", "audiences/aud_payers", {"name": "Payers", "ruleTree": PAYERS})
    shared = {"exclusionGroup": "page", "trafficPercentage": 30}
    keys = [
        key_of(api, running(**fields))
        for fields in (
            {},
            {"trafficPercentage": 40},
            {"audienceId": "aud_payers"},
            shared,
            shared,
            {"variants": CONFIGURED},
        )
    ]
    for number in range(60):
        plan = {"plan": "pro" if number % 2 else "free"}
        shown = all_of(api, f"u{number}", **plan)
        given = {key: evaluated(api, key, f"u{number}", **plan) for key in keys}
        assert {key: shown[key] for key in keys} == given
        assert all_of(api, f"u{number}", **plan) == shown


def test_all_flags_cost_the_same_statements_for_any_number_of_experiments(api, running):
    def number():
        with statements() as sent:
            standing.standing(User("u1"))
        return len(sent)

    running()
    assert number() > 3  # the experiments are read, and remembered from then on
    few = number()
    for _ in range(5):
        running()
    assert number() > 3
    assert number() == few <= 3


def test_many_experiments_are_entered_a_hundred_at_a_time(api, running):
    for _ in range(standing.TOGETHER + 1):
        running()

    flags = all_of(api, enroll=True)

    assert len(flags) == 2 * (standing.TOGETHER + 1)
    assert Assignment.select().count() == standing.TOGETHER + 1


# ---------------------------------------------------------------------------
# Browsers


@pytest.mark.one_engine
def test_a_browser_of_an_allowed_origin_may_evaluate(app, tmp_path):
    client = called_from("https://shop.example", tmp_path)
    asked = {
        "Origin": "https://shop.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,if-none-match",
    }
    for place in (BULK, f"{BULK}/checkout"):
        preflight = client.options(place, headers=asked)
        assert preflight.status_code == 200
        headers = preflight.headers
        assert headers["Access-Control-Allow-Origin"] == "https://shop.example"
        assert "POST" in headers["Access-Control-Allow-Methods"]
        allowed = headers["Access-Control-Allow-Headers"].lower()
        assert set(allowed.split(", ")) == {
            "authorization",
            "content-type",
            "if-none-match",
        }
        other = client.options(place, headers={**asked, "Origin": "https://e.example"})
        assert "Access-Control-Allow-Origin" not in other.headers
        refused = client.post(place, headers={"Origin": "https://shop.example"})
        assert refused.status_code == 401
        origin = refused.headers["Access-Control-Allow-Origin"]
        assert origin == "https://shop.example"
        exposed = refused.headers["Access-Control-Expose-Headers"]
        assert set(exposed.split(", ")) == {"ETag", "Retry-After"}


# ---------------------------------------------------------------------------
# The protocol's own document


CASE = Path(__file__).parent / "cases" / "ofrep-0.3.0.yaml"
PROTOCOL = yaml.safe_load(CASE.read_text(encoding="utf-8"))


def amended():
    """Return the protocol's schemas without the faults that no answer could meet.

    `oneOf` of the kinds of flags refuses each value: a flag with a value is one without
    a needed value too, and a whole number is a number. DEFAULT is a reason of
    OpenFeature that the document forgot; the clients know it.
    """
    schemas = json.loads(json.dumps(PROTOCOL["components"]["schemas"]))
    reason, kinds = schemas["evaluationSuccess"]["allOf"]
    reason["properties"]["reason"]["enum"].append("DEFAULT")
    kinds["anyOf"] = [
        each for each in kinds.pop("oneOf") if "codeDefault" not in each["$ref"]
    ]
    kinds["anyOf"].append({"not": {"required": ["value"]}})
    return {"schemas": schemas}


def conforms(answer, path):
    """Assert that an answer is one of those that the protocol has for this path."""
    operation = PROTOCOL["paths"][path]["post"]["responses"]
    documented = operation[str(answer.status_code)]
    if "content" in documented:
        schema = documented["content"]["application/json"]["schema"]
        jsonschema.validate(answer.json, {**schema, "components": amended()})


def test_every_answer_is_one_that_the_protocol_has(api, anonymous, running, draft):
    api("PUT", "audiences/aud_payers", {"name": "Payers", "ruleTree": PAYERS})
    for name in ("stopped", "completed", "winner", "archived"):
        state(api, running(key=name, variants=CONFIGURED), name)
    running(key="running", variants=CONFIGURED)
    running(key="paid", audienceId="aud_payers")
    draft(key="draft")
    one, every = BULK + "/{key}", BULK
    names = ("running", "stopped", "completed", "winner", "archived", "paid", "draft")
    bodies = [{"context": {"targetingKey": f"u{n}"}} for n in range(8)]
    bodies += [{}, {"context": {}}, {"context": 7}, {"context": {"targetingKey": 7}}]

    seen = set()
    for each in (api, anonymous):
        for body in bodies:
            for name in (*names, "running.config", "winner.config", "nope"):
                answer = each.post(one.replace("{key}", name), body)
                conforms(answer, one)
                seen.add(answer.status_code)
            answer = each.post(every, body)
            conforms(answer, every)
    assert seen == {200, 400, 401, 404}


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory, new_database):
    """Return a caller of a service with one running experiment."""
    with new_database(tmp_path_factory.mktemp("ofrep") / "abacus.db") as url:
        made = caller(url)
        body = {"name": "Checkout", "key": "checkout", "variants": CONFIGURED}
        path = f"experiments/{made.post('experiments', body).json['data']['id']}"
        assert made.post(f"{path}/start").status_code == 200
        yield made
        made.client.application.extensions["database"].shut()


@given(values | st.fixed_dictionaries({"context": values}), st.booleans())
def test_no_body_breaks_the_protocol(evaluator, body, is_bulk):
    path = BULK if is_bulk else BULK + "/{key}"
    answer = evaluator.post(path.replace("{key}", "checkout"), body)
    if body is not None:
        assert answer.status_code in (200, 400)
    conforms(answer, path)
