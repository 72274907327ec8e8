"""What an analysis costs that is asked for again, and that it is never an old one."""

from decimal import Decimal

import pytest
from conftest import database_steps
from test_event_cost import in_metrics, numbered

import stats
from stats.analysis import REMEMBERED, figures

PLAN = {"baselineRate": 0.1, "minimumEffect": 0.02}


@pytest.fixture
def sold(api, running, enrolled):
    """Return a maker of experiments with a plan, 60 users, and purchases of 20."""

    def make(**fields):
        path = running(plan=PLAN, **fields)
        users = [f"u{number}" for number in range(60)]
        enrolled(path, *users)
        rows = [
            {"userId": user_id, "metric": "purchase", "value": 0.1 + number}
            for number, user_id in enumerate(users[:20])
        ]
        api.post(f"{path}/conversions/batch", {"conversions": rows})
        return path

    return make


def answer(api, path, **asked):
    """Return an answer without its time."""
    response = api.post(f"{path}/compute-results", {"metric": "purchase", **asked})
    assert response.status_code == 200, response.text
    computed = response.json["data"]
    assert computed["analysis"].pop("computedAt")
    return computed


def fresh(api, path, **asked):
    """Return the answer of a service that remembers nothing."""
    figures.cache_clear()
    return answer(api, path, **asked)


def arms(conversions, value=None):
    return [
        stats.Arm("v1", "Control", Decimal(50), 1_000, 100, value),
        stats.Arm("v2", "Detailed", Decimal(50), 1_000, conversions, value),
    ]


def test_an_answer_that_is_remembered_is_the_one_that_was_computed(api, sold):
    path = sold()

    computed = fresh(api, path)
    remembered = answer(api, path)

    assert figures.cache_info()[:2] == (1, 1)  # hits and misses
    assert remembered == computed == fresh(api, path)


def test_whatever_is_new_changes_the_answer_at_once(api, sold, enrolled):
    path = sold()
    before = answer(api, path)

    enrolled(path, "one more")
    enrolment = answer(api, path)
    api.post(f"{path}/conversions", {"userId": "u50", "metric": "purchase"})
    conversion = answer(api, path)
    api.post(f"{path}/conversions", {"userId": "u50", "metric": "purchase", "value": 7})
    value = answer(api, path)

    seen = [before, enrolment, conversion, value]
    sizes, conversions, sums = (
        [round(sum(read(variant) for variant in one["variants"])) for one in seen]
        for read in (
            lambda variant: variant["sampleSize"],
            lambda variant: variant["conversions"],
            lambda variant: variant["value"]["sum"],
        )
    )
    assert sizes == [60, 61, 61, 61]
    assert conversions == [20, 20, 21, 21]
    assert sums == [192, 192, 192, 199]
    hashes = [one["analysis"]["inputHash"] for one in seen]
    assert len(set(hashes)) == 4
    assert value == fresh(api, path)


def test_one_more_refused_event_is_in_the_answer_at_once(api, sold):
    path = sold()
    warnings = []

    for number in range(3):
        body = {"userId": f"stranger{number}", "metric": "click"}
        assert api.post(f"{path}/conversions", body).status_code == 409
        computed = answer(api, path, metric="click")
        (absence,) = (one for one in computed["warnings"] if one["code"] == "NO_EVENTS")
        warnings.append(absence["message"])
        assert computed["trustworthy"] is False

    for number, message in enumerate(warnings, 1):
        assert f"{number} of users who are not enrolled" in message
        assert "'purchase'" in message


@pytest.mark.parametrize(
    "other", [{"confidenceLevel": 0.9}, {"metric": "conversion"}, {"metric": "click"}]
)
def test_another_question_has_another_answer(api, sold, other):
    path = sold()
    api.post(f"{path}/conversions", {"userId": "u3", "metric": "conversion"})
    first = answer(api, path)

    second = answer(api, path, **other)

    assert second != first
    assert second == fresh(api, path, **other)
    assert answer(api, path) == first


def test_experiments_with_equal_counts_keep_their_own_names_and_plans(api, draft):
    names = ["One", "Another"]
    paths = [
        draft(
            plan={**PLAN, "minimumEffect": effect},
            variants=[
                {"name": "Control", "splitPercentage": 50, "flowId": "a"},
                {"name": name, "splitPercentage": 50, "flowId": "b"},
            ],
        )
        for name, effect in zip(names, (0.02, 0.03), strict=True)
    ]

    answers = [answer(api, path) for path in paths * 2]

    for computed, path, name in zip(answers, paths * 2, names * 2, strict=True):
        assert computed["experimentId"] == path.removeprefix("experiments/")
        assert computed["variants"][1]["variantName"] == name
    effects = [one["analysis"]["plan"]["minimumEffect"] for one in answers]
    assert effects == [0.02, 0.03] * 2


def test_equal_plans_are_each_returned_as_they_were_written():
    plans = [stats.Plan(Decimal(text), Decimal("0.02")) for text in ("0.1", "0.10")]

    first, second = (stats.analyse(arms(120), plan=plan) for plan in plans)

    assert [str(one.analysis.plan.baseline_rate) for one in (first, second)] == [
        "0.1",
        "0.10",
    ]
    assert first == second


def test_what_is_said_of_one_call_is_not_remembered_for_the_next():
    received = stats.Received(["purchase"], {"NOT_ENROLLED": 2})
    nothing = [arm._replace(conversions=0) for arm in arms(0)]

    told = stats.analyse(nothing, received=received, computed_at="2025-02-01")
    untold = stats.analyse(nothing, received=stats.Received())

    assert (told.analysis.computed_at, untold.analysis.computed_at) == (
        "2025-02-01",
        None,
    )
    assert "2 of users who are not enrolled" in told.warnings[0].message
    assert "No event was refused." in untold.warnings[0].message


def test_counts_that_cannot_be_are_refused_however_they_equal_remembered_ones():
    stats.analyse(arms(1))

    for wrong in (True, 1.0, Decimal(1)):
        with pytest.raises(ValueError, match="whole number"):
            stats.analyse(arms(wrong))


def test_only_so_many_analyses_are_remembered():
    for conversions in range(REMEMBERED + 10):
        stats.analyse(arms(conversions))

    assert figures.cache_info().currsize == figures.cache_info().maxsize == REMEMBERED


# ----------------------------------------------------------------------------
# What it costs
# ----------------------------------------------------------------------------


def test_nothing_is_computed_twice_while_nothing_has_changed(api, sold):
    path = sold()
    fresh(api, path)

    for _ in range(5):
        answer(api, path)
        api.get(f"{path}/compute-results?metric=purchase")
        api.post(
            f"{path}/compute-results",
            {"metric": "purchase"},
            headers={"Accept": "text/plain"},
        )

    assert figures.cache_info().misses == 1


def steps(api, path):
    """Return how much the database does for an answer."""
    return database_steps(lambda: answer(api, path))


@pytest.mark.sqlite  # counts the steps of SQLite
def test_an_analysis_reads_as_much_for_a_thousand_metrics_as_for_one(api, sold):
    few, many = sold(), sold()
    for user_id in ("u1", "u2"):
        rows = [{**row, "userId": user_id} for row in in_metrics(*numbered(990))]
        api.post(f"{many}/conversions/batch", {"conversions": rows})
    answer(api, few)

    cost_of_few, cost_of_many = steps(api, few), steps(api, many)

    assert 0 < cost_of_many < cost_of_few * 1.2
