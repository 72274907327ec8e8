"""Results: what was counted, and the rates."""

import pytest
from conftest import assert_error

import assignment


def test_a_draft_answers_with_zeros(api, draft):
    path = draft()

    raw = api.get(f"{path}/results").json["data"]
    computed = api.post(f"{path}/compute-results").json["data"]

    assert raw["experimentId"] == path.removeprefix("experiments/")
    assert (raw["status"], raw["startDate"], raw["endDate"]) == ("draft", None, None)
    assert [one["participants"] for one in raw["variants"]] == [0, 0]
    assert [one["results"] for one in raw["variants"]] == [[], []]
    assert set(raw["quality"].values()) == {0}
    for variant in computed["variants"]:
        assert variant["conversionRate"] == 0
        interval = variant["confidenceInterval"]
        assert (interval["lower"], interval["upper"]) == (0, 1)


def test_the_seeds_figures_come_out_of_the_seeds_traffic(api, running, enrolled):
    """250 and 250 participants, 45 and 67 conversions, 0.18 and 0.268."""
    path = running()
    id = path.removeprefix("experiments/")
    users = [f"u{number}" for number in range(700)]
    arms = [
        [one for one in users if assignment.dealt(id, one, [5000, 5000]) == arm][:250]
        for arm in (0, 1)
    ]
    enrolled(path, *arms[0], *arms[1])
    rows = [{"userId": user_id} for user_id in arms[0][:45] + arms[1][:67]]
    sent = api.post(f"{path}/conversions/batch", {"conversions": rows})
    assert {one["status"] for one in sent.json["data"]} == {"accepted"}

    computed = api.post(f"{path}/compute-results", {}).json["data"]

    control, detailed = computed["variants"]
    names = ("variantId", "variantName", "sampleSize", "conversions", "conversionRate")
    assert [control[name] for name in names] == ["v1", "Control", 250, 45, 0.18]
    assert [detailed[name] for name in names] == ["v2", "Detailed", 250, 67, 0.268]
    # statsmodels 0.15.0: proportion_confint(method="wilson"), proportions_ztest.
    interval = control["confidenceInterval"]
    assert interval["lower"] == pytest.approx(0.13733343230144174, abs=1e-9)
    assert interval["upper"] == pytest.approx(0.23235187937564278, abs=1e-9)
    against = detailed["comparison"]
    assert against["fixedHorizon"]["pValue"] == pytest.approx(0.018282751455309356)
    # An independent implementation in mpmath, 22 digits.
    assert against["sequential"]["pValue"] == pytest.approx(0.3549669477835293)
    assert control["comparison"] is None
    assert computed["verdict"]["status"] == "keep_running"
    assert computed["metric"] == "conversion"


@pytest.mark.parametrize(
    "body",
    [{"confidenceLevel": 0.995}, {"confidenceLevel": "0.9"}, {"metric": ""}, {"x": 1}],
)
def test_an_analysis_that_cannot_be_is_refused(api, draft, body):
    response = api.post(f"{draft()}/compute-results", body)

    assert_error(response, 400, "VALIDATION_ERROR")


def test_a_metric_with_values_has_means_beside_its_rate(api, running, enrolled):
    path = running(plan={"baselineRate": 0.2, "minimumEffect": 0.05})
    users = [f"u{number}" for number in range(40)]
    seats = enrolled(path, *users)
    rows = [{"userId": one, "metric": "spent", "value": 2.5} for one in users[:20]]
    api.post(f"{path}/conversions/batch", {"conversions": rows})

    body = {"metric": "spent", "confidenceLevel": 0.9}
    computed = api.post(f"{path}/compute-results", body).json["data"]

    assert computed["metric"] == "spent"
    assert computed["analysis"]["confidenceLevel"] == 0.9
    for variant in computed["variants"]:
        mine = [
            one["userId"] for one in seats if one["variantId"] == variant["variantId"]
        ]
        converted = sum(one in users[:20] for one in mine)
        assert variant["conversions"] == variant["value"]["count"] == converted
        assert variant["value"]["sum"] == 2.5 * converted
        assert variant["value"]["mean"] == pytest.approx(2.5 * converted / len(mine))
        assert variant["confidenceInterval"]["level"] == 0.9


def test_a_plan_whose_target_is_above_one_is_refused(api, draft):
    plan = {"baselineRate": 0.9, "minimumEffect": 0.2}

    response = api.patch(draft(), {"plan": plan})

    assert_error(response, 400, "VALIDATION_ERROR")


@pytest.fixture
def split_exactly(api, running, enrolled):
    """Return a running experiment, and as many users as asked for in each arm."""

    def make(size):
        path = running()
        id = path.removeprefix("experiments/")
        arms = {0: [], 1: []}
        for number in range(20 * size):
            user_id = f"u{number}"
            arm = arms[assignment.dealt(id, user_id, [5_000, 5_000])]
            if len(arm) < size:
                arm.append(user_id)
        enrolled(path, *arms[0], *arms[1])
        return path, arms[0], arms[1]

    return make


def test_results_hold_a_row_a_metric_and_the_primary_comes_first(api, split_exactly):
    path, (user_id, *_), _ = split_exactly(2)
    times = []
    for metric, value in (("aaa", 2), ("conversion", 0.1), ("conversion", 0.2)):
        body = {"userId": user_id, "metric": metric, "value": value}
        booked = api.post(f"{path}/conversions", body)
        assert booked.status_code == 201
        if metric == "conversion":
            times.append(booked.json["data"]["occurredAt"])

    control, detailed = api.get(f"{path}/results").json["data"]["variants"]

    assert [row["metric"] for row in control["results"]] == ["conversion", "aaa"]
    assert control["results"][0] == {
        "metric": "conversion",
        "primary": True,
        "conversions": 1,
        "events": 2,
        "value": {"count": 1, "sum": 0.3, "sumSquares": 0.09},
        "firstAt": min(times),
        "lastAt": max(times),
    }
    assert (control["participants"], control["splitPercentage"]) == (2, 50)
    assert (detailed["participants"], detailed["results"]) == (2, [])


def test_an_experiment_that_is_not_there_has_no_results(api):
    assert_error(api.get("experiments/exp_none/results"), 404, "NOT_FOUND")
    refused = api.post("experiments/exp_none/compute-results")
    assert_error(refused, 404, "NOT_FOUND")
