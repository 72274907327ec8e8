"""The course of an experiment: what was known at the end of each day."""

import random
from datetime import date, timedelta
from decimal import Decimal

import pytest
from conftest import LINE, ago

import stats
from models import Experiment
from storage.columns import utcnow

PLAN = {"baselineRate": 0.3, "minimumEffect": 0.1}


def lines(days, users, rates, metric="conversion", seed=1):
    """Return the lines of an import: users each day, who convert on the same day."""
    draw = random.Random(seed)
    for day in range(days, 0, -1):
        for number in range(users):
            variant = f"v{1 + number % 2}"
            at = ago(day)
            converted = draw.random() < rates[variant]
            yield f"d{day}u{number},{variant},{at}," + (
                f"{at},{metric}" if converted else ","
            )


def by_day(found):
    return {date.fromisoformat(one["date"]): one["variants"] for one in found["days"]}


@pytest.mark.parametrize("plan", [None, PLAN])
def test_each_day_has_the_figures_that_a_look_at_its_end_would_have_shown(
    running,
    load,
    told,
    plan,
):
    path = running(plan=plan)
    rows = list(lines(6, 60, {"v1": 0.3, "v2": 0.45}))
    load(path, LINE, *rows)

    found = told(path, "?granularity=day")

    days = by_day(found)
    assert len(days) == 6
    control, treatment = days[max(days)]
    now = found["variants"][1]
    compared = now["comparison"]
    assert treatment["sampleSize"] == now["sampleSize"] == 180
    assert treatment["conversions"] == now["conversions"]
    assert treatment["estimate"] == now["conversionRate"]
    assert treatment["difference"] == compared["difference"]
    assert treatment["lift"] == compared["lift"]
    for name in ("differenceInterval", "liftInterval"):
        shown, sure = treatment[name], compared["sequential"][name]
        assert (shown["method"], shown["level"]) == (sure["method"], sure["level"])
        assert shown["lower"] == pytest.approx(sure["lower"], abs=1e-6)
        assert shown["upper"] == pytest.approx(sure["upper"], abs=1e-6)
    assert (control["difference"], control["differenceInterval"]) == (None, None)

    # The days until then alone are what the course says of that day.
    third = sorted(days)[2]
    other = running(plan=plan)
    load(other, LINE, *rows[:180])
    until = told(other, "?granularity=day")
    assert by_day(until)[third] == days[third]
    sizes = [days[day][0]["sampleSize"] for day in sorted(days)]
    assert sizes == [30, 60, 90, 120, 150, 180]
    assert "days" not in told(path)


@pytest.mark.parametrize("users", [None, 2_000])
@pytest.mark.parametrize(
    ("control", "treatment"),
    [((1_000, 500), (1, 1)), ((500, 250), (1, 0)), ((100_000, 2_000), (30, 0))],
)
def test_the_last_day_has_the_intervals_of_the_analysis_to_the_last_digit(
    control, treatment, users
):
    # With one user beside 1,000, a single look's interval reaches further than that of
    # every look, and the latter is widened.
    sides = [("v1", "99", control), ("v2", "1", treatment)]
    last = [stats.Arm(one, one, Decimal(split), *n) for one, split, n in sides]
    earlier = [arm._replace(sample_size=1, conversions=0) for arm in last]
    plan = stats.Plan(0.5, 0.1) if users else None

    whole = stats.analyse(last, plan=plan, horizon_users=users)
    days = stats.course(
        [earlier, last],
        stats.MetricSettings("conversion"),
        stats.Level(0.95, 1),
        whole.analysis.centre,
        users,
    )

    compared = whole.variants[1].comparison
    shown, (point,) = compared.sequential, days[-1]
    assert point.difference_interval == shown.difference_interval
    assert point.lift_interval == shown.lift_interval
    once = compared.fixed_horizon.difference_interval
    assert shown.difference_interval.lower <= once.lower
    assert shown.difference_interval.upper >= once.upper


def test_the_band_narrows_and_a_novelty_shows(running, load, told):
    path = running()
    first = list(lines(8, 200, {"v1": 0.2, "v2": 0.5}))[: 4 * 200]
    later = list(lines(4, 200, {"v1": 0.2, "v2": 0.2}, seed=2))
    load(path, LINE, *first, *later)

    days = by_day(told(path, "?granularity=day"))

    ordered = [days[day][1] for day in sorted(days)]
    widths = [
        one["differenceInterval"]["upper"] - one["differenceInterval"]["lower"]
        for one in ordered
    ]
    assert widths == sorted(widths, reverse=True)
    assert ordered[3]["difference"] > 0.2 > ordered[7]["difference"]


def test_a_day_without_anything_is_there_too(running, load, told):
    path = running()
    load(path, LINE, f"u1,v1,{ago(5)},,", f"u2,v2,{ago(2)},{ago(1)},conversion")

    days = by_day(told(path, "?granularity=day"))

    assert len(days) == 5
    counted = [[one["conversions"] for one in days[day]] for day in sorted(days)]
    assert counted == [[0, 0], [0, 0], [0, 0], [0, 0], [0, 1]]


def test_a_mean_and_a_ratio_have_a_course(running, load, told):
    mean = {"name": "revenue", "role": "primary", "kind": "mean", "cap": 9}
    path = running(metrics=[mean, {"name": "basket", "kind": "ratio"}])
    draw = random.Random(5)
    rows = []
    for day in (3, 2, 1):
        for number in range(40):
            user, known = f"d{day}u{number}", draw.randint(1, 9)
            start = f"{user},v{1 + number % 2},{ago(day)},{ago(day)}"
            rows.append(f"{start},revenue,{known + draw.random():.2f},{known}")
            rows.append(f"{start},basket,{draw.randint(1, 9)},{known}")
    load(path, f"{LINE},value,covariate", *rows)

    for query, name in (("", "revenue"), ("&metric=basket", "basket")):
        found = told(path, f"?granularity=day{query}")
        days = by_day(found)
        assert len(days) == 3
        for place in (0, 1):
            last, now = days[max(days)][place], found["variants"][place]
            assert last["estimate"] == now["value"]["mean"], name
            assert last["sampleSize"] == now["sampleSize"] == 60
        interval = days[max(days)][1]["differenceInterval"]
        compared = found["variants"][1]["value"]["comparison"]["sequential"]
        assert interval == compared["differenceInterval"]


def test_a_window_counts_each_day_the_users_who_are_through(
    running,
    load,
    told,
):
    path = running(metrics=[{"name": "order", "role": "primary", "window": 2}])
    rows = lines(6, 20, {"v1": 0.5, "v2": 0.5}, "order")
    load(path, LINE, *rows)

    days = by_day(told(path, "?granularity=day"))

    sizes = [days[day][0]["sampleSize"] for day in sorted(days)]
    assert sizes == [0, 0, 10, 20, 30, 40]


def test_a_day_that_is_not_split_as_planned_is_a_warning(
    running,
    load,
    told,
):
    path = running()
    rows = [
        f"d{day}u{number},v{1 + number % 2},{ago(day)},,"
        for day in (3, 2, 1)
        for number in range(2_000)
    ]
    crooked = [f"x{number},v1,{ago(2)},," for number in range(200)]
    mended = [f"y{number},v2,{ago(3)},," for number in range(100)]
    load(path, LINE, *rows, *crooked, *mended, *[r.replace("y", "z") for r in mended])

    found = told(path, "?granularity=day")

    (caution,) = (one for one in found["warnings"] if one["code"] == "SRM_ON_A_DAY")
    assert not found["sampleRatioMismatch"]["detected"]
    bad = (utcnow() - timedelta(days=2)).date()
    assert f"{bad.day} {bad:%B} {bad.year}" in caution["message"] or (
        f"{(bad - timedelta(days=1)).day} " in caution["message"]
    )
    assert not [one for one in told(path)["warnings"] if one["code"] == "SRM_ON_A_DAY"]


def test_a_course_of_nothing_is_empty(draft, told, api):
    path = draft()

    assert told(path, "?granularity=day")["days"] == []
    body = {"granularity": "day", "metric": "signup"}
    posted = api.post(f"{path}/compute-results", body).json["data"]
    assert posted["days"] == []
    assert Experiment.select().count() == 1
    wrong = api.get(f"{path}/compute-results?granularity=hour")
    assert wrong.status_code == 400
