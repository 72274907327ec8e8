"""A token that is public: what a page may do with it, and what it never learns."""

import json

import pytest
from conftest import Caller, assert_error
from test_wire import called_from

BULK = "/ofrep/v1/evaluate/flags"
RUNTIME = {
    ("POST", "/api/experiments/<id>/assignments"),
    ("POST", "/api/experiments/<id>/assignments/batch"),
    ("POST", "/api/experiments/<id>/conversions"),
    ("POST", "/api/experiments/<id>/conversions/batch"),
    ("POST", "/api/users/<path:user_id>/assignments"),
    ("POST", "/api/events"),
    ("POST", "/api/events/batch"),
    ("GET", "/api/definitions"),
    ("HEAD", "/api/definitions"),
    ("POST", "/ofrep/v1/evaluate/flags/<path:key>"),
    ("POST", "/ofrep/v1/evaluate/flags"),
}
OPEN = {"/", "/docs", "/docs/", "/healthz", "/readyz", "/metrics", "/openapi.json"}
OPEN |= {"/ui/sign-in", "/ui/abacus.css", "/ui/abacus.svg"}
MOVES = ("start", "stop", "resume", "complete", "archive", "unarchive", "share")
PAGES = {"/ui", "/ui/", "/ui/sign-out"}
PAGES |= {"/ui/experiments/<id>", "/ui/experiments/<id>/days", "/ui/planner"}
PAGES |= {"/ui/audiences", "/ui/audiences/<path:audience_id>"}
PAGES |= {f"/ui/experiments/<id>/{move}" for move in MOVES}
NAMES = {
    "<id>": "checkout",
    "<path:user_id>": "other-user",
    "<path:audience_id>": "aud_testers",
    "<path:key>": "checkout",
    "<path:path>": "swagger-ui.css",
}


def filled(rule):
    """Return the path of a rule, with names that exist."""
    for variable, name in NAMES.items():
        rule = rule.replace(variable, name)
    return rule


@pytest.fixture
def page(app, token):
    """Return a caller with a token that a page may have."""
    return Caller(app, token("page", scope="assign"))


@pytest.fixture
def checkout(api, running):
    """Return the path of an experiment with another user in it, in all ways."""
    rules = {"field": "userId", "operator": "neq", "value": "other-tester"}
    body = {"name": "Testers", "ruleTree": rules}
    assert api("PUT", "audiences/aud_testers", body).status_code == 201
    path = running(key="checkout", audienceId="aud_testers")
    forced = api("PUT", f"{path}/overrides/other-forced", {"variantId": "v2"})
    assert forced.status_code == 201
    other_user_acts(api, path, "other-user")
    return path


def other_user_acts(api, path, user_id):
    """Enrol another user, who converts."""
    assert api.post(f"{path}/assignments", {"userId": user_id}).json["data"]["enrolled"]
    event = {"userId": user_id, "metric": "order", "value": 7}
    event["idempotencyKey"] = f"key-of-{user_id}"
    assert api.post(f"{path}/conversions", event).status_code == 201


def test_with_a_token_for_browsers_the_runtime_routes_are_open_and_no_other(
    app, api, page, checkout
):
    def state():
        paths = (checkout, f"{checkout}/overrides", f"{checkout}/history")
        paths += (f"{checkout}/assignments", f"{checkout}/results", "audiences")
        return [api.get(path).json for path in (*paths, "experiments?archived=true")]

    before, allowed, refused, public, pages = state(), set(), set(), set(), set()
    linked = set()
    for rule in app.url_map.iter_rules():
        for method in rule.methods - {"OPTIONS"}:
            tried = method, rule.rule
            answer = page(method, filled(rule.rule))
            answer.close()
            if rule.rule in PAGES or tried == ("POST", "/ui/sign-in"):
                pages.add(tried)  # without the scope, or without a form of ours
                assert answer.status_code == 403, tried
                assert answer.mimetype == "text/html"
            elif "<link>" in rule.rule:  # which is no link
                linked.add(tried)
                assert answer.status_code == (403 if method == "POST" else 404), tried
            elif not rule.rule.startswith(("/api", "/ofrep")):
                public.add(tried)
                assert answer.status_code in (200, 302, 308), tried
            elif answer.status_code == 403:
                refused.add(tried)
                assert method == "HEAD" or assert_error(answer, 403, "FORBIDDEN")
            else:
                allowed.add(tried)
                # A body that is missing is noticed only behind the door.
                assert answer.status_code in (200, 400), tried

    assert allowed == RUNTIME
    assert {rule for _, rule in public} - {"/docs/<path:path>"} == OPEN
    assert (len(allowed), len(refused), len(public)) == (11, 45, 22)
    assert (len(pages), len(linked)) == (35, 5)
    tries = sum(len(rule.methods - {"OPTIONS"}) for rule in app.url_map.iter_rules())
    assert tries == 118
    assert state() == before


def answers(page, user_id="me"):
    """Return what each runtime route answers to a page, by the route."""
    user, context = {"userId": user_id}, {"context": {"targetingKey": user_id}}
    event = {**user, "metric": "order", "value": 1, "idempotencyKey": f"by-{user_id}"}
    asked = [
        ("POST", "/api/experiments/<id>/assignments", user),
        ("POST", "/api/experiments/<id>/assignments/batch", {"users": [user]}),
        ("POST", "/api/experiments/<id>/conversions", event),
        ("POST", "/api/experiments/<id>/conversions/batch", {"conversions": [event]}),
        (
            "POST",
            "/api/users/<path:user_id>/assignments",
            {"experiments": ["checkout"]},
        ),
        ("POST", "/api/events", event),
        ("POST", "/api/events/batch", {"events": [event]}),
        ("GET", "/api/definitions", None),
        ("HEAD", "/api/definitions", None),
        ("POST", "/ofrep/v1/evaluate/flags/<path:key>", context),
        ("POST", "/ofrep/v1/evaluate/flags", context),
    ]
    assert {(method, rule) for method, rule, _ in asked} == RUNTIME
    found = {}
    for method, rule, body in asked:
        path = filled(rule.replace("<path:user_id>", user_id))
        answer = page(method, path, body)
        assert answer.status_code in (200, 201), answer.text
        found[method, rule] = answer.text
    return found


def test_no_answer_to_a_page_names_or_counts_another_user(api, page, checkout):
    first, again = answers(page), answers(page)  # for a new user, and for a known one
    refused, wrong = [], {"userId": "me", "metric": "order", "note": 1}
    for _, rule in RUNTIME:
        answer = page.post(filled(rule.replace("<path:user_id>", "me")), wrong)
        assert answer.status_code in (400, 405), answer.text
        refused.append(answer.text)

    texts = [*first.values(), *again.values()]
    for text in (*texts, *refused):
        for named in ("other-user", "other-forced", "other-tester", "tester"):
            assert named not in text
    for text in texts:
        for counted in ("_count", "participants", '"conversions"', "history", "total"):
            assert counted not in text


def test_what_a_page_is_told_of_its_user_depends_on_no_other_user(api, page, checkout):
    answers(page)  # enrols the user, and counts the event
    alone = answers(page)
    for number in range(20):
        other_user_acts(api, checkout, f"other-{number}")
    assert api.delete(f"{checkout}/overrides/other-forced").status_code == 200
    assert api.delete("users/other-user").status_code == 200
    among_others = answers(page)

    # The definitions have changed by one override, which is a salted hash.
    definitions = "GET", "/api/definitions"
    before, after = (
        json.loads(found.pop(definitions))["data"] for found in (alone, among_others)
    )
    assert among_others == alone
    assert before.pop("revision") != after.pop("revision")
    hashes = before["experiments"][0].pop("overrides")
    assert len(hashes) == 1 and after["experiments"][0].pop("overrides") != hashes
    assert after == before


def test_a_page_that_knows_a_user_s_id_is_told_what_that_user_would_be(page, checkout):
    """The page says so, because a public token proves nothing about who asks."""
    path = f"/api/{checkout}"
    known = page.post(f"{path}/assignments", {"userId": "other-user"})
    unknown = page.post(f"{path}/assignments", {"userId": "guessed"})
    forced = page.post(f"{path}/assignments", {"userId": "other-forced"})
    key = {"userId": "other-user", "idempotencyKey": "key-of-other-user"}
    used = page.post(f"{path}/conversions", {**key, "metric": "order", "value": 7})

    assert known.json["data"]["reason"] == "EXISTING_ASSIGNMENT"
    assert unknown.json["data"]["reason"] == "NEW_ASSIGNMENT"
    assert forced.json["data"]["reason"] == "OVERRIDE"
    assert used.json["data"]["status"] == "duplicate"
    assert set(known.json["data"]) == {
        *("experimentId", "userId", "enrolled", "reason", "variantId", "variantName"),
        *("flowId", "config", "assignedAt"),
    }


# ---------------------------------------------------------------------------
# Origins

SHOP = "https://shop.example"
OTHERS = [
    "https://evil.example",
    "https://shop.example.evil.example",
    "https://evil-shop.example",
    "https://www.shop.example",
    "https://shop.example:8443",
    "http://shop.example",
    "https://shopxexample",
    "null",
    "*",
]


def cross_origin(answer):
    return {
        name: value
        for name, value in answer.headers.items()
        if name.startswith("Access-Control-")
    }


@pytest.mark.one_engine
@pytest.mark.parametrize(("method", "rule"), sorted(RUNTIME))
def test_each_runtime_route_is_open_to_the_origin_that_is_listed_and_to_no_other(
    app, tmp_path, method, rule
):
    client, path = called_from(SHOP, tmp_path), filled(rule)
    asked = {
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization, content-type, if-none-match",
    }

    def headers(origin):
        """Return those of the preflight, and of the request that it is for."""
        preflight = client.options(path, headers={**asked, "Origin": origin})
        assert preflight.status_code == 200
        answer = client.open(path, method=method, headers={"Origin": origin})
        assert answer.status_code == 401
        return cross_origin(preflight), cross_origin(answer)

    preflight, answer = headers(SHOP)
    assert preflight["Access-Control-Allow-Origin"] == SHOP
    assert method in preflight["Access-Control-Allow-Methods"].split(", ")
    assert answer["Access-Control-Allow-Origin"] == SHOP
    assert "Access-Control-Allow-Credentials" not in preflight
    for origin in OTHERS:
        assert headers(origin) == ({}, {}), origin


@pytest.mark.one_engine
def test_no_other_route_is_open_to_an_origin_that_is_listed(app, tmp_path):
    client = called_from(SHOP, tmp_path)
    paths = {filled(rule.rule) for rule in app.url_map.iter_rules()}
    # A path is open or closed as a whole; to list users there takes the scope `read`.
    closed = paths - {filled(rule) for _, rule in RUNTIME}
    closed.remove("/api/experiments/checkout/assignments/other-user")
    asked = {"Origin": SHOP, "Access-Control-Request-Method": "GET"}

    for path in closed:
        assert cross_origin(client.options(path, headers=asked)) == {}, path
        with client.get(path, headers={"Origin": SHOP}) as answer:
            assert cross_origin(answer) == {}, path
    assert len(closed) == 49


@pytest.mark.one_engine
def test_without_origins_no_page_of_another_site_may_call(app, tmp_path):
    client = called_from("", tmp_path)
    asked = {"Origin": SHOP, "Access-Control-Request-Method": "POST"}

    for _, rule in RUNTIME:
        assert cross_origin(client.options(filled(rule), headers=asked)) == {}
