"""The planner: a plan is a link, and what it needs is what the API says."""

import json

import pytest
from test_pages import HOSTILE, read

import stats

RATE = "baselineRate=10&effect=2&usersPerDay=1,000&variants=2&power=80"


def problems(page):
    """Return what the page says beside each field that is wrong."""
    wrong = {one["id"] for tag, one in page.tags if "aria-invalid" in one}
    notes = {one["id"] for tag, one in page.tags if one.get("class") == "wrong"}
    assert notes == {f"{name}-note" for name in wrong}
    return wrong


@pytest.mark.one_engine
def test_a_plan_is_a_link_and_the_same_as_in_the_api(api):
    page = read(api.get(f"/ui/planner?{RATE}&confidenceLevel=95 %"))
    body = {"baselineRate": 0.1, "minimumEffect": 0.02, "usersPerDay": 1000}
    size = api.post("sample-size", body).json["data"]

    # R: power.prop.test(p1 = 0.1, p2 = 0.12, power = 0.8) says n = 3840.847.
    place = page.cells.index("One look, at the end")
    assert page.cells[place + 1 : place + 4] == ["3,841", "7,682", "8"]
    for name, key in (
        ("Looks at any time, with this plan", "horizon"),
        ("Looks at any time, and no plan", "alwaysValid"),
    ):
        place = page.cells.index(name)
        shown = [int(one.replace(",", "")) for one in page.cells[place + 1 : place + 4]]
        each, total, days = size[key].values()
        assert shown == [each[0], total, days]
    needed = size["horizon"]
    assert f"from 10 % to 12 %, {needed['total']:,} users are needed" in page.text
    assert f"{needed['days']} days." in page.text
    # The form still has the plan, and what the page says to send is accepted.
    values = {one["name"]: one["value"] for tag, one in page.tags if tag == "input"}
    assert values["baselineRate"] == "10" and values["usersPerDay"] == "1,000"
    sent = json.loads(page.text.partition("-d '")[2].partition("'")[0])
    assert api.post("sample-size", sent).json["data"] == size
    plan = json.loads(page.text.partition("any time: ")[2].partition(" curl")[0])
    assert plan["plan"]["minimumEffect"] == 0.02


@pytest.mark.one_engine
def test_without_an_effect_the_days_say_which_one_is_found(api):
    page = read(api.get("/ui/planner?baselineRate=10&usersPerDay=500&days=14"))

    place = page.cells.index("Looks at any time, with this plan")
    assert page.cells[place + 2 : place + 4] == ["7,000", "14"]
    assert "In 14 days, with 500 users a day, the smallest rise" in page.text


@pytest.mark.parametrize("variants", [2, 4])
@pytest.mark.parametrize("users", [700, 20_000, 3_000_000])
def test_the_smallest_planned_effect_is_the_inverse_of_the_horizon(users, variants):
    effect = stats.smallest_planned_effect(0.2, users, variants=variants)

    plan = stats.Plan(0.2, effect)
    assert stats.planned_horizon(plan, [1] * variants) in (users, users + 1)
    assert stats.smallest_planned_effect(0.5, 2) is None


@pytest.mark.one_engine
def test_a_mean_has_its_own_plan(api):
    query = "baselineMean=20&standardDeviation=40&effect=10&effectIs=relative"
    page = read(api.get(f"/ui/planner?kind=mean&{query}&usersPerDay=100"))
    body = {"baselineMean": 20, "standardDeviation": 40, "relativeEffect": 0.1}
    size = api.post("sample-size/mean", body).json["data"]

    # R: power.t.test(delta = 2, sd = 40, power = 0.8) says n = 6280.064.
    place = page.cells.index("One look, at the end")
    assert page.cells[place + 1] == "6,281"
    assert f"{size['alwaysValid']['total']:,} users are needed" in page.text


@pytest.mark.one_engine
def test_an_empty_planner_complains_of_nothing(api):
    for query in ("", "?kind=mean"):
        page = read(api.get(f"/ui/planner{query}"))
        assert not problems(page) and page.number_of("table") == 0


@pytest.mark.one_engine
@pytest.mark.parametrize(
    ("query", "wrong", "said"),
    [
        ("effect=2", "baselineRate", "Write the conversion rate of today"),
        ("baselineRate=ten&effect=2", "baselineRate", "such as 12.5"),
        ("baselineRate=12,5&effect=2", "baselineRate", "with a point"),
        ("baselineRate=100&effect=2", "baselineRate", "at most 99.9999"),
        ("baselineRate=10&effect=-2", "effect", "at least 0.0001"),
        ("baselineRate=10", "effect", "or else the users of a day"),
        ("baselineRate=10&effect=95", "effect", "above 100 %"),
        ("baselineRate=10&effect=2&variants=2.5", "variants", "a whole number"),
        ("baselineRate=50&usersPerDay=1&days=1", "days", "Take more days"),
        ("kind=mean&effect=1", "standardDeviation", "Write the mean of today."),
        (
            "kind=mean&baselineMean=0&standardDeviation=1&effect=1&effectIs=relative",
            "effect",
            "no relative effect",
        ),
    ],
)
def test_a_mistake_is_said_beside_its_field(api, query, wrong, said):
    page = read(api.get(f"/ui/planner?{query}"), 400)

    assert wrong in problems(page)
    assert said in page.text
    assert page.number_of("table") == 0


@pytest.mark.one_engine
def test_what_is_typed_is_never_markup(api):
    for name in ("baselineRate", "effect", "kind", "effectIs", "strange"):
        response = api.get("/ui/planner", query_string={name: HOSTILE})
        read(response, 400)
        assert "<script" not in response.text and "<img" not in response.text
