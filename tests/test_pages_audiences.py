"""The pages of audiences: the rule in words, who uses it, and who would match."""

import json
from urllib.parse import quote

import pytest
from test_pages import HOSTILE, TURNED, read

from targeting.audience import OPERATORS
from views.audiences import WORDS, in_words

RULE = {
    "logicalOperator": "AND",
    "rules": [
        {"field": "country", "operator": "in", "value": ["FR", "DE"]},
        {
            "logicalOperator": "OR",
            "rules": [
                {"field": "plan", "operator": "eq", "value": "pro"},
                {"field": "traits.age", "operator": "gte", "value": 18},
            ],
        },
    ],
}


@pytest.fixture
def define(api):
    """Return a way to write an audience, which answers the path of its page."""

    def define(id, **fields):
        body = {"name": "Adults", "ruleTree": RULE, **fields}
        answer = api("PUT", f"audiences/{quote(id, safe='')}", body)
        assert answer.status_code == 201, answer.text
        return f"/ui/audiences/{quote(id, safe='')}"

    return define


def tried(api, path, attributes, **fields):
    query = {"attributes": json.dumps(attributes), **fields}
    return read(api.get(path, query_string=query))


def test_the_list_has_what_the_list_of_the_api_has(api, define):
    for number in range(3):
        define(f"aud_{number}", name=f"Audience {number}")

    for query in ("", "?limit=2", "?limit=2&page=2", "?search=audience+1"):
        page = read(api.get(f"/ui/audiences{query}"))
        rows = api.get(f"audiences{query}").json
        links = [one["href"] for tag, one in page.tags if tag == "a"]
        shown = [link for link in links if "/audiences/" in link]
        assert shown == [f"/ui/audiences/{row['id']}" for row in rows["data"]], query
        for row in rows["data"]:
            place = page.cells.index(row["name"])
            assert page.cells[place + 1] == row["id"]
    page = read(api.get("/ui/audiences?limit=1&page=2&search=audience"))
    ways = {one["rel"]: one["href"] for tag, one in page.tags if one.get("rel")}
    assert ways["next"] == "/ui/audiences?limit=1&page=3&search=audience"
    assert "No audience has this" in read(api.get("/ui/audiences?search=x")).text
    assert "past the end" in read(api.get("/ui/audiences?page=9")).text
    read(api.get("/ui/audiences?page=0"), 400)


@pytest.mark.one_engine
def test_the_navigation_says_which_page_this_is(api, define, draft):
    path, experiment = define("aud_1"), f"/ui/{draft()}"

    for where, here in (
        ("/ui/", ["/ui/"]),
        ("/ui/audiences", ["/ui/audiences"]),
        (path, ["/ui/audiences"]),
        ("/ui/planner?kind=mean", ["/ui/planner", "/ui/planner?kind=mean"]),
        (experiment, ["/ui/"]),
    ):
        page = read(api.get(where))
        marked = [one["href"] for tag, one in page.tags if "aria-current" in one]
        assert marked == here, where
        links = [one["href"] for tag, one in page.tags if tag == "a"]
        assert links[0] == "#main"
        assert {"/ui/", "/ui/audiences", "/ui/planner"} <= set(links)
    assert "There is no audience" in read(api.get("/ui/audiences/aud_2"), 404).text


def test_an_audience_has_its_rule_in_words_and_who_uses_it(api, define, draft, running):
    path = define("aud_1", description="Who may see it.")
    define("aud_2")
    mine = [draft(audienceId="aud_1", name="First"), running(audienceId="aud_1")]
    draft(audienceId="aud_2")

    page = read(api.get(path))

    assert "Who may see it." in page.text
    assert 'All of these hold: country is one of "FR", "DE"' in page.text
    assert "At least one of these holds: plan is" in page.text
    assert "traits.age is at least 18" in page.text
    links = [one["href"] for tag, one in page.tags if tag == "a"]
    shown = [link for link in links if "/experiments/" in link]
    assert shown == [f"/ui/{one}" for one in reversed(mine)]
    assert "First draft" in page.text and "does not hold" not in page.text


def test_the_conditions_that_fail_are_named(api, define):
    path = define("aud_1")

    young = tried(api, path, {"country": "FR", "traits": {"age": 17}})
    adult = tried(api, path, {"country": "FR", "traits": {"age": 18}})
    nobody = tried(api, path, {})

    assert "This user matches." in adult.text
    assert "These conditions" not in adult.text
    failed = young.text.partition("These conditions do not hold:")[2]
    failed = failed.partition("Attributes of a user")[0].strip()
    assert failed == 'plan is "pro" traits.age is at least 18'
    assert "holds country is one of" in young.text
    assert 'do not hold: country is one of "FR", "DE" plan' in nobody.text
    # What was typed is still in the form, and what the API says is the same.
    assert '{"country": "FR", "traits": {"age": 17}}' in young.text
    body = {"attributes": {"country": "FR", "traits": {"age": 17}}}
    assert not api.post("audiences/aud_1/test", body).json["data"]["matches"]


@pytest.mark.one_engine
def test_a_user_id_is_tried_too(api, define):
    rule = {"field": "userId", "operator": "starts_with", "value": "test-"}
    path = define("aud_1", ruleTree=rule)

    for user, said in (("test-1", "matches."), ("u1", "does not match.")):
        page = read(api.get(path, query_string={"userId": user}))
        assert f"This user {said}" in page.text


@pytest.mark.one_engine
@pytest.mark.parametrize(
    ("query", "name"),
    [
        ({"attributes": "country: FR"}, "attributes"),
        ({"attributes": "[1]"}, "attributes"),
        ({"attributes": '{"a": NaN}'}, "attributes"),
        ({"userId": "null"}, "userId"),
    ],
)
def test_what_cannot_be_tried_is_said_beside_its_field(api, define, query, name):
    page = read(api.get(define("aud_1"), query_string=query), 400)

    wrong = [one for tag, one in page.tags if "aria-invalid" in one]
    assert [one["id"] for one in wrong] == [name]
    assert "This user" not in page.text
    read(api.get("/ui/audiences/aud_1?strange=1"), 400)


@pytest.mark.one_engine
def test_nothing_that_was_written_is_markup_or_turns_the_text(api, define, draft):
    for id, text in ((HOSTILE, HOSTILE), ("a/b", TURNED)):
        rule = {"field": text, "operator": "in", "value": [text] * 30}
        path = define(id, name=text, description=text, ruleTree=rule)
        draft(audienceId=id, name=text)
        attributes = json.dumps({text: "x"})

        for where in ("/ui/audiences", path, f"{path}?attributes={quote(attributes)}"):
            response = api.get(where)
            read(response)
            assert "<script" not in response.text and "<img" not in response.text
            assert "\u202e" not in response.text, where
        assert "and 20 more" in response.text
        link = {"href": path}
        assert ("a", link) in read(api.get("/ui/audiences")).tags


@pytest.mark.one_engine
def test_the_page_of_a_large_audience_is_small(api, define):
    ids = [f"user-{number}" for number in range(10_000)]
    rule = {"field": "userId", "operator": "in", "value": ids}
    path = define("aud_1", ruleTree=rule)

    response = api.get(f"{path}?userId=user-9999")

    assert "This user matches." in read(response).text
    assert "and 9,990 more" in response.text and len(response.data) < 15_000


def test_each_operator_has_words():
    assert WORDS.keys() == OPERATORS.keys()
    words = in_words({"field": "a", "operator": "exists"})
    assert (words.field, words.words, words.value) == ("a", "is there", "")
