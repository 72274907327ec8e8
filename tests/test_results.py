"""Results: what was counted, and the rates."""

import random
from datetime import datetime, timezone
from decimal import Decimal

import pytest
from conftest import assert_error, paths

from targeting import assignment


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


@pytest.mark.one_engine
@pytest.mark.parametrize(
    "body",
    [{"confidenceLevel": 0.995}, {"confidenceLevel": "0.9"}, {"metric": ""}, {"x": 1}],
)
def test_an_analysis_that_cannot_be_is_refused(api, draft, body):
    response = api.post(f"{draft()}/compute-results", body)

    assert_error(response, 400, "VALIDATION_ERROR")


@pytest.mark.one_engine
@pytest.mark.parametrize("level", [0.5, 0.99])
def test_a_confidence_level_may_be_its_bound(api, draft, level):
    plan = {"baselineRate": 0.2, "minimumEffect": 0.05, "confidenceLevel": level}
    path = draft(plan=plan)
    rehearsal = {"participants": 20, "baselineRate": 0.1, "runs": 1, "looks": 1}

    told = api.post(f"{path}/compute-results", {"confidenceLevel": level})
    size = api.post("sample-size", plan)
    rehearsed = api.post(f"{path}/simulate", rehearsal)

    assert told.status_code == size.status_code == rehearsed.status_code == 200
    analysis = told.json["data"]["analysis"]
    assert analysis["confidenceLevel"] == analysis["verdictConfidenceLevel"] == level


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


# ----------------------------------------------------------------------------
# Nothing counted
# ----------------------------------------------------------------------------

PLAN = {"baselineRate": 0.1, "minimumEffect": 0.02}


@pytest.fixture
def nine_thousand(app, api, running):
    """Return an experiment with a plan and 9,000 users, of whom 900 purchased."""

    def make(tmp_path, *, converted="purchase"):
        path = running(plan=PLAN)
        lines = ["user_id,variant,timestamp,converted_at,metric"]
        for number in range(9_000):
            told = f"u{number},v{1 + number % 2},2025-02-01T09:00:00Z"
            if converted and number < 900:
                told += f",2025-02-01T10:00:00Z,{converted}"
            else:
                told += ",,"
            lines.append(told)
        file = tmp_path / "users.csv"
        file.write_text("\n".join(lines) + "\n")
        command = ["import", path.removeprefix("experiments/"), str(file)]
        imported = app.test_cli_runner().invoke(args=command)
        assert imported.exit_code == 0, imported.output
        return path

    return make


def asked_both_ways(api, path, **asked):
    """Return the answer of POST, which is that of GET but for the clock."""
    posted = api.post(f"{path}/compute-results", asked)
    read = api.get(f"{path}/compute-results", query_string=asked)
    assert posted.status_code == read.status_code == 200, read.text
    answers = [posted.json["data"], read.json["data"]]
    for answer in answers:
        assert answer["analysis"].pop("computedAt")
    assert answers[0] == answers[1]
    return answers[0]


@pytest.mark.parametrize("asked", [{}, {"metric": "purchas"}])
def test_a_metric_that_nobody_sent_is_not_enough_data(
    api, nine_thousand, tmp_path, asked
):
    path = nine_thousand(tmp_path)

    computed = asked_both_ways(api, path, **asked)

    metric = asked.get("metric", "conversion")
    assert computed["verdict"]["status"] == "not_enough_data"
    assert computed["verdict"]["variantId"] is None
    assert repr(metric) in computed["verdict"]["sentence"]
    assert computed["trustworthy"] is False
    (absence,) = (one for one in computed["warnings"] if one["code"] == "NO_EVENTS")
    assert repr(metric) in absence["message"]
    assert "'purchase'" in absence["message"]
    assert "No event was refused." in absence["message"]
    codes = {one["code"] for one in computed["warnings"]}
    assert not codes & {"NOT_TO_PLAN", "ZERO_CONTROL_CONVERSIONS"}
    bought = asked_both_ways(api, path, metric="purchase")
    assert bought["verdict"]["status"] != "not_enough_data"
    assert "NO_EVENTS" not in [one["code"] for one in bought["warnings"]]


@pytest.mark.parametrize("form", ["text/plain", "text/markdown"])
def test_the_text_forms_tell_of_an_absence_of_events(
    api, nine_thousand, tmp_path, form
):
    path = nine_thousand(tmp_path)

    for answer in (
        api.post(f"{path}/compute-results", headers={"Accept": form}),
        api.get(f"{path}/compute-results", headers={"Accept": form}),
    ):
        text = " ".join(answer.text.replace("\\", "").split())
        assert "not_enough_data" in text
        assert "nothing was counted for the metric 'conversion'" in text
        assert "The metrics counted are 'purchase'." in text


def test_events_that_were_all_refused_are_not_enough_data(api, nine_thousand, tmp_path):
    path = nine_thousand(tmp_path, converted=None)
    early = {"occurredAt": "2020-01-01T00:00:00Z"}
    rows = [{"userId": f"u{number}", **early} for number in range(3)]
    rows += [{"userId": "a stranger"}, {"userId": "another"}]
    sent = api.post(f"{path}/conversions/batch", {"conversions": rows})
    assert {one["status"] for one in sent.json["data"]} == {"rejected"}

    computed = asked_both_ways(api, path)

    assert computed["verdict"]["status"] == "not_enough_data"
    (absence,) = (one for one in computed["warnings"] if one["code"] == "NO_EVENTS")
    assert "No event of any other metric was counted either." in absence["message"]
    assert "5 were refused" in absence["message"]
    assert "3 from before the enrolment (BEFORE_ENROLLMENT)" in absence["message"]
    assert "2 of users who are not enrolled (NOT_ENROLLED)" in absence["message"]


def test_refused_events_are_told_of_before_anybody_is_enrolled(api, running):
    path = running()
    silent = asked_both_ways(api, path)
    assert "NO_EVENTS" not in [one["code"] for one in silent["warnings"]]

    api.post(f"{path}/conversions", {"userId": "a stranger"})

    told = asked_both_ways(api, path)
    assert told["verdict"]["status"] == "not_enough_data"
    (absence,) = (one for one in told["warnings"] if one["code"] == "NO_EVENTS")
    assert "1 of users who are not enrolled (NOT_ENROLLED)" in absence["message"]


def test_of_very_many_metrics_ten_are_named(api, running, enrolled):
    path = running()
    enrolled(path, "u1")
    rows = [{"userId": "u1", "metric": f"m{number:02}"} for number in range(12)]
    api.post(f"{path}/conversions/batch", {"conversions": rows})

    computed = api.get(f"{path}/compute-results").json["data"]

    (absence,) = (one for one in computed["warnings"] if one["code"] == "NO_EVENTS")
    assert "'m08', 'm09' and 2 more." in absence["message"]
    assert "'m10'" not in absence["message"]


# ----------------------------------------------------------------------------
# As of when, and by either method
# ----------------------------------------------------------------------------


def test_an_analysis_can_be_replayed(api, traffic):
    path, said = traffic
    for moment, then in said:
        computed = asked_both_ways(api, path, asOf=moment, metric="order")

        assert computed["asOf"] == moment.replace("+00:00", "Z")
        for variant, counted in zip(
            computed["variants"], then["variants"], strict=True
        ):
            row = counted["results"][1]
            assert row["metric"] == "order"
            assert variant["sampleSize"] == counted["participants"]
            assert variant["conversions"] == row["conversions"]
            assert variant["value"]["count"] == row["value"]["count"]
            assert variant["value"]["sum"] == pytest.approx(row["value"]["sum"])
    now = asked_both_ways(api, path, metric="order")
    assert "asOf" not in now
    assert now["variants"] == computed["variants"]
    text = api.get(
        f"{path}/compute-results",
        query_string={"asOf": moment},
        headers={"Accept": "text/plain"},
    ).text
    assert moment.replace("+00:00", "Z") in text


def test_a_replay_from_before_the_first_user_has_no_data(api, traffic):
    path, _ = traffic

    computed = asked_both_ways(api, path, asOf="2020-01-01T00:00:00Z")

    assert computed["verdict"]["status"] == "not_enough_data"
    assert [one["sampleSize"] for one in computed["variants"]] == [0, 0]


@pytest.mark.one_engine
@pytest.mark.parametrize("level", ["0.5", "0.50", "0.9", "0.95", "0.985", "0.99"])
def test_a_query_shapes_the_intervals_as_a_body_does(api, draft, level):
    path = draft()

    computed = api.get(f"{path}/compute-results?confidenceLevel={level}").json["data"]

    assert computed["analysis"]["confidenceLevel"] == float(level)
    assert computed["variants"][0]["confidenceInterval"]["level"] == float(level)
    assert computed["analysis"]["verdictConfidenceLevel"] == 0.95


@pytest.mark.one_engine
@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("confidenceLevel=0.49", "confidenceLevel"),
        ("confidenceLevel=0.991", "confidenceLevel"),
        ("confidenceLevel=1", "confidenceLevel"),
        ("confidenceLevel=95", "confidenceLevel"),
        ("confidenceLevel=nan", "confidenceLevel"),
        ("confidenceLevel=9e-1", "confidenceLevel"),
        ("confidenceLevel=", "confidenceLevel"),
        ("asOf=yesterday", "asOf"),
        ("metric=", "metric"),
        ("metrics=order", "metrics"),
    ],
)
def test_a_wrong_question_about_an_analysis_is_refused(api, draft, query, path):
    response = api.get(f"{draft()}/compute-results?{query}")

    assert paths(assert_error(response, 400, "VALIDATION_ERROR")) == {path}


def intervals_of(answer, name=""):
    """Yield each interval of an answer, wherever it stands."""
    if isinstance(answer, dict):
        if name.endswith("Interval"):
            yield answer
        for key, value in answer.items():
            yield from intervals_of(value, key)
    if isinstance(answer, list):
        for value in answer:
            yield from intervals_of(value)


def test_an_empty_arm_has_a_comparison_and_every_interval_its_four_fields(
    api, app, running, tmp_path
):
    path = running()
    file = tmp_path / "log.csv"
    file.write_text(
        "user_id,variant,timestamp,converted_at,metric,value\n"
        "a,v1,2025-02-01T09:00:00Z,2025-02-01T10:00:00Z,order,2\n"
        "b,v1,2025-02-01T09:00:00Z,,,\n"
    )
    command = ["import", path.removeprefix("experiments/"), str(file)]
    assert app.test_cli_runner().invoke(args=command).exit_code == 0

    computed = asked_both_ways(api, path, metric="order")

    against = computed["variants"][1]["comparison"]
    assert (against["difference"], against["lift"]) == (None, None)
    assert against["controlVariantId"] == "v1"
    found = list(intervals_of(computed))
    # Two a variant of its rate and two of its mean, four a comparison of either.
    assert len(found) == 2 * 4 + 2 * 4
    for one in found:
        assert list(one) == ["lower", "upper", "level", "method"]
    for block in (against["fixedHorizon"], against["sequential"]):
        for name in ("differenceInterval", "liftInterval"):
            assert (block[name]["lower"], block[name]["upper"]) == (None, None)
    for form in TEXTS:
        drawn = api.get(
            f"{path}/compute-results?metric=order", headers={"Accept": form}
        )
        assert drawn.status_code == 200


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


# ----------------------------------------------------------------------------
# Which part, and as of when
# ----------------------------------------------------------------------------


def utcnow():
    return datetime.now(timezone.utc).isoformat()


@pytest.fixture
def traffic(api, running, enrolled):
    """Return an experiment and what its results said after each of five batches."""
    draw = random.Random(20250201)
    path = running(primaryMetric="signup")
    said = []
    for batch in range(5):
        users = [f"u{batch}-{number}" for number in range(20)]
        enrolled(path, *users)
        rows = [
            {
                "userId": draw.choice([*users, "nobody"]),
                "metric": draw.choice(["signup", "order"]),
                "value": draw.choice([None, 0.1, -2, 19.99]),
                "occurredAt": draw.choice([utcnow(), "2020-01-01T00:00:00Z"]),
                "idempotencyKey": f"k{draw.randrange(80)}",
            }
            for _ in range(60)
        ]
        sent = api.post(f"{path}/conversions/batch", {"conversions": rows + rows[:9]})
        assert sent.status_code == 200
        said.append((utcnow(), api.get(f"{path}/results").json["data"]))
    assert min(said[-1][1]["quality"].values()) > 0
    return path, said


def test_a_replay_says_what_the_results_said_at_that_moment(api, traffic):
    path, said = traffic
    for moment, then in said:
        query = {"asOf": moment}
        now = api.get(f"{path}/results", query_string=query).json["data"]

        assert now.pop("asOf") == moment.replace("+00:00", "Z")
        assert now == then


def test_a_replay_of_the_time_before_it_all_is_empty(api, traffic):
    path, _ = traffic
    query = {"asOf": "2020-01-01T01:00:00+01:00"}

    early = api.get(f"{path}/results", query_string=query).json["data"]

    assert early["asOf"] == "2020-01-01T00:00:00Z"
    assert [one["participants"] for one in early["variants"]] == [0, 0]
    assert [one["results"] for one in early["variants"]] == [[], []]
    assert set(early["quality"].values()) == {0}


def test_a_metric_asked_for_comes_alone(api, traffic):
    path, said = traffic
    whole = said[-1][1]

    some = api.get(f"{path}/results?metric=order").json["data"]

    for mine, its in zip(some["variants"], whole["variants"], strict=True):
        assert mine["results"] == [its["results"][1]]
        assert mine["participants"] == its["participants"]
    assert some["quality"] == whole["quality"]
    none = api.get(f"{path}/results?metric=other").json["data"]
    assert [one["results"] for one in none["variants"]] == [[], []]


LOG = """user_id,variant,timestamp,converted_at,metric,value
a,v1,2025-02-01T23:00:00Z,2025-02-01T23:59:59.999999Z,order,1.5
a,v1,2025-02-01T23:00:00Z,2025-02-02T00:00:00Z,order,2
b,v1,2025-02-02T00:30:00+01:00,2025-02-03T09:00:00Z,order,
b,v1,2025-02-02T00:30:00+01:00,2025-02-02T09:00:00Z,order,
b,v1,2025-02-02T00:30:00+01:00,2025-02-03T09:00:00Z,signup,
c,v2,1969-12-31T23:59:59Z,1969-12-31T23:59:59.9Z,order,7
d,v2,2025-02-03T00:00:00Z,,,
"""


def test_a_day_is_the_day_of_occurrence_in_utc(api, app, running, tmp_path):
    path = running(primaryMetric="order")
    file = tmp_path / "log.csv"
    file.write_text(LOG)
    command = ["import", path.removeprefix("experiments/"), str(file)]
    assert app.test_cli_runner().invoke(args=command).exit_code == 0

    told = api.get(f"{path}/results?granularity=day").json["data"]["variants"]

    control, detailed = (
        [
            [day["date"], day["participants"]]
            + [list(row.values()) for row in day["results"]]
            for day in one["series"]
        ]
        for one in told
    )
    assert control == [
        ["2025-02-01", 2, ["order", 1, 1, {"count": 1, "sum": 1.5}]],
        ["2025-02-02", 0, ["order", 1, 2, {"count": 0, "sum": 2}]],
        [
            "2025-02-03",
            0,
            ["order", 0, 1, {"count": 0, "sum": 0}],
            ["signup", 1, 1, {"count": 0, "sum": 0}],
        ],
    ]
    assert detailed == [
        ["1969-12-31", 1, ["order", 1, 1, {"count": 1, "sum": 7}]],
        ["2025-02-03", 1],
    ]
    some = api.get(f"{path}/results?granularity=day&metric=signup").json["data"]
    days = some["variants"][0]["series"]
    assert [day["date"] for day in days] == ["2025-02-01", "2025-02-03"]


def test_the_days_sum_to_the_whole(api, traffic):
    path, _ = traffic
    told = api.get(f"{path}/results?granularity=day").json["data"]
    for variant in told["variants"]:
        days = variant["series"]
        new = [day["participants"] for day in days]
        assert sum(new) == variant["participants"]
        for row in variant["results"]:
            mine = [
                one
                for day in days
                for one in day["results"]
                if one["metric"] == row["metric"]
            ]
            for name in ("conversions", "events"):
                assert sum(one[name] for one in mine) == row[name]
            for name in ("count", "sum"):
                total = sum(Decimal(str(one["value"][name])) for one in mine)
                assert total == Decimal(str(row["value"][name]))


@pytest.mark.one_engine
@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("granularity=hour", "granularity"),
        ("asOf=yesterday", "asOf"),
        ("asOf=2025-02-01T00:00:00", "asOf"),
        ("metric=", "metric"),
        ("metrics=signup", "metrics"),
    ],
)
def test_a_wrong_question_about_results_is_refused(api, draft, query, path):
    error = assert_error(api.get(f"{draft()}/results?{query}"), 400, "VALIDATION_ERROR")
    assert paths(error) == {path}


# ----------------------------------------------------------------------------
# As text
# ----------------------------------------------------------------------------

TEXTS = ("text/plain", "text/markdown", "text/csv")


@pytest.mark.parametrize("form", TEXTS)
def test_results_answer_in_the_text_that_is_accepted(api, traffic, form):
    path, _ = traffic
    headers = {"Accept": form}
    for answer in (
        api.get(f"{path}/results", headers=headers),
        api.get(f"{path}/results?granularity=day", headers=headers),
        api.post(f"{path}/compute-results", headers=headers),
        api.get(f"{path}/compute-results", headers=headers),
    ):
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == f"{form}; charset=utf-8"
        assert "Control" in answer.text


@pytest.mark.one_engine
@pytest.mark.parametrize(
    "accept", ["*/*", "application/json", "image/png", "text/html,*/*;q=0.8"]
)
def test_results_are_json_unless_a_text_is_asked_for(api, draft, accept):
    answer = api.get(f"{draft()}/results", headers={"Accept": accept})
    assert answer.json["data"]["status"] == "draft"


@pytest.mark.one_engine
@pytest.mark.parametrize("form", TEXTS)
def test_an_error_is_json_whatever_is_accepted(api, form):
    answer = api.get("experiments/exp_none/results", headers={"Accept": form})
    assert_error(answer, 404, "NOT_FOUND")
