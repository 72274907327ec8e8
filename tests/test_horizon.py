"""The test of a planned experiment, and the looks that decide it."""

import math
from datetime import timedelta
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_stats import HERE, comparison, pair

import stats
from models import TABLES, Crossing, Experiment
from stats import Plan, Tables, evidence, horizon, planning
from storage import engine, schema
from storage.columns import utcnow

PLAN = Plan(0.1, 0.02)
# R: power.prop.test(p1 = .50, p2 = .75, power = .90): n = 76.7; 1.115 times as many.
LARGE = {"baselineRate": 0.5, "minimumEffect": 0.25, "power": 0.9}


# ----------------------------------------------------------------------------
# The boundary
# ----------------------------------------------------------------------------


def test_a_random_walk_leaves_the_boundary_as_often_as_it_should():
    steps = np.random.default_rng(3).choice([-1, 1], size=(4_000, 2_500))
    furthest = np.abs(steps.cumsum(axis=1)).max(axis=1) / math.sqrt(2_500)

    for c in (0.6, 1.2, 1.8, 2.4):
        left = (furthest >= c).mean()
        expected = horizon.leaving_probability(np.array([c]))[0]
        assert left == pytest.approx(expected, abs=0.03), c


def test_both_series_say_the_same_where_either_would_do():
    below, above = horizon.leaving_probability(np.array([1.5 - 1e-12, 1.5 + 1e-12]))

    assert below == pytest.approx(above, abs=1e-11)


@pytest.mark.parametrize(("power", "factor"), [(0.8, 1.12), (0.9, 1.11)])
def test_the_horizon_costs_an_eighth_beside_one_look(power, factor):
    planned = stats.plan_sample_size(0.1, 0.02, power=power)

    ratio = planned.horizon.total / planned.fixed_horizon.total
    assert ratio == pytest.approx(factor, abs=0.006)  # statistics.md 13.6
    assert planned.horizon.total < planned.always_valid.total


def test_a_planned_experiment_stops_early_and_rarely_without_reason():
    users = stats.planned_horizon(PLAN, (50, 50))

    found = stats.simulate(
        participants=users,
        baseline_rate=0.1,
        effect=0.02,
        looks=60,
        runs=600,
        centre=stats.planned_centre(PLAN),
        horizon_users=users,
        seed=5,
    )

    # 3.2 to 3.6 % false, 77 to 79 % found, 0.78 to 0.86 of one look's users; the
    # standard errors are 0.8 and 1.7 %.
    assert found.false_alarms.value <= 0.05
    assert 0.72 <= found.power.value <= 0.85
    assert found.mean_stop <= 0.88 * stats.planned_total(PLAN, (50, 50))


# ----------------------------------------------------------------------------
# Its figures
# ----------------------------------------------------------------------------


@given(st.integers(20, 4_000), st.integers(20, 4_000), st.floats(0.02, 0.98), st.data())
def test_p_value_and_intervals_never_disagree(control, treatment, rate, data):
    converted = [
        data.draw(st.integers(int(n * rate * 0.7), min(n, int(n * rate * 1.3) + 1)))
        for n in (control, treatment)
    ]
    arms = pair((control, converted[0]), (treatment, converted[1]))

    found = comparison(arms, horizon_users=6_000).sequential

    for interval in (found.difference_interval, found.lift_interval):
        if interval.lower is None or interval.upper is None:
            continue
        excludes = not interval.lower <= 0 <= interval.upper
        assert excludes == (found.p_value < 0.05)


def test_up_to_the_horizon_the_interval_is_narrower_than_for_ever():
    arms = pair((4_000, 400), (4_000, 470))

    planned = comparison(arms, plan=PLAN, horizon_users=8_616).sequential
    unplanned = comparison(arms, plan=PLAN).sequential

    ends = [planned.difference_interval, unplanned.difference_interval]
    assert ends[0].upper - ends[0].lower < 0.8 * (ends[1].upper - ends[1].lower)
    assert planned.p_value < 0.05 < unplanned.p_value


@pytest.mark.parametrize(
    ("control", "treatment", "users"),
    [((5_000, 500), (5_000, 700), 8_616), ((400, 0), (400, 19), 8_616)],
    ids=["beyond the horizon", "few conversions"],
)
def test_where_the_boundary_does_not_hold_a_tenth_of_alpha_decides(
    control, treatment, users
):
    arms = pair(control, treatment)
    tables = Tables(*(np.array([float(n)]) for n in (*control, *treatment)))
    nuisance = 0.1 * evidence.nuisance_level(1)
    log_e = evidence.log_e_values(tables, 0.5, planning.planned_centre(PLAN), nuisance)

    found = comparison(arms, plan=PLAN, horizon_users=users).sequential

    alone = stats.always_valid_p_value(log_e, nuisance)[0]
    assert found.p_value == pytest.approx(min(10 * alone, 1))
    assert found.p_value < 1


# ----------------------------------------------------------------------------
# Looks
# ----------------------------------------------------------------------------


@pytest.fixture
def planned(api, running):
    """Return the path of a running experiment with a plan."""
    return running(plan=LARGE)


@pytest.fixture
def grow(api, enrolled):
    """Return a way to enrol so many users, of whom some of each variant convert."""

    def more(path, name, number, rates):
        given = enrolled(path, *[f"{name}-{place}" for place in range(number)])
        users = {"v1": [], "v2": []}
        for one in given:
            users[one["variantId"]].append(one["userId"])
        converted = [
            {"userId": user}
            for variant, rate in rates.items()
            for user in users[variant][: round(rate * len(users[variant]))]
        ]
        booked = api.post(f"{path}/conversions/batch", {"conversions": converted})
        assert booked.status_code == 200, booked.text

    return more


@pytest.fixture
def looked(api):
    """Return a way to look at an experiment: the answer's data."""

    def look(path, **query):
        answer = api.get(f"{path}/compute-results", query_string=query)
        assert answer.status_code == 200, answer.text
        return answer.json["data"]

    return look


def crossing_of(told):
    return told["variants"][1]["comparison"].get("crossing")


def test_a_win_is_stored_at_its_look_and_no_later_one_withdraws_it(
    planned, grow, looked
):
    grow(planned, "a", 40, {"v1": 0.5, "v2": 0.6})
    before = looked(planned)
    grow(planned, "b", 100, {"v1": 0.4, "v2": 0.9})
    first = looked(planned)
    grow(planned, "c", 400, {"v1": 0.75, "v2": 0.65})
    later, again = looked(planned), looked(planned)

    assert before["verdict"]["status"] == "keep_running"
    assert crossing_of(before) is None
    assert first["verdict"]["status"] == later["verdict"]["status"] == "variant_wins"
    crossing = crossing_of(first)
    assert crossing["users"] == 140
    variants = first["variants"]
    assert crossing["controlConversions"] == variants[0]["conversions"]
    assert crossing["sampleSize"] == variants[1]["sampleSize"]
    assert crossing["pValue"] < 0.05
    assert crossing_of(later) == crossing_of(again) == crossing
    test = later["variants"][1]["comparison"]["sequential"]
    assert test["isSignificant"] and test["pValue"] > 0.05
    sentence = later["verdict"]["sentence"]
    assert sentence.startswith("Detailed won on ")
    assert " at 140 users (p " in sentence and "today Detailed converts" in sentence


def test_what_was_decided_later_is_not_known_at_an_earlier_moment(
    planned, grow, looked
):
    grow(planned, "a", 40, {"v1": 0.5, "v2": 0.6})
    moment = looked(planned)["analysis"]["computedAt"]
    grow(planned, "b", 100, {"v1": 0.4, "v2": 0.9})
    won = looked(planned)

    then = looked(planned, asOf=moment)
    now = looked(planned, asOf=won["analysis"]["computedAt"])

    assert then["verdict"]["status"] == "keep_running" and not crossing_of(then)
    assert crossing_of(now) == crossing_of(won)


def test_the_moment_of_the_horizon_is_looked_at_if_nobody_asked(planned, grow, looked):
    (row,) = Experiment.select(Experiment.horizon)
    grow(planned, "a", row.horizon - 1, {"v1": 0.5, "v2": 0.9})
    grow(planned, "b", 60, {"v1": 0.6, "v2": 0.6})  # a batch, at one moment
    grow(planned, "c", 240, {"v1": 0.6, "v2": 0.6})

    told = looked(planned)

    assert told["analysis"]["horizon"]["users"] == row.horizon == 171
    assert crossing_of(told)["users"] == 170 + 60
    assert told["verdict"]["status"] == "variant_wins"
    (after,) = Experiment.select(Experiment.horizon_at)
    assert after.horizon_at is not None


def test_a_horizon_that_decided_nothing_is_looked_at_once(planned, grow, looked):
    grow(planned, "a", 171, {"v1": 0.5, "v2": 0.65})
    assert looked(planned)["verdict"]["status"] == "inconclusive"
    grow(planned, "b", 300, {"v1": 0.5, "v2": 0.6})

    told = [looked(planned)["verdict"]["status"] for _ in range(2)]

    assert told == ["inconclusive"] * 2
    assert Crossing.select().count() == 0


def test_another_metric_is_tested_without_a_horizon(planned, grow, looked, api):
    grow(planned, "a", 140, {"v1": 0.4, "v2": 0.9})
    rows = [{"userId": f"a-{place}", "metric": "signup"} for place in range(20)]
    api.post(f"{planned}/conversions/batch", {"conversions": rows})

    told = looked(planned, metric="signup")

    assert told["analysis"]["method"] == "always_valid_e_process"
    assert "horizon" not in told["analysis"]
    assert Crossing.select().count() == 0


def test_an_experiment_keeps_the_method_that_it_started_with(
    planned, running, grow, looked
):
    unplanned = running()
    Experiment.update(horizon=None).execute()  # as the versions before stored it
    grow(planned, "a", 140, {"v1": 0.4, "v2": 0.9})

    for path in (planned, unplanned):
        told = looked(path)
        assert told["analysis"]["method"] == "always_valid_e_process"
        assert "horizon" not in told["analysis"]


def test_a_win_without_a_plan_stays_too(running, grow, looked):
    path = running()
    grow(path, "a", 40, {"v1": 0.5, "v2": 0.6})
    before = looked(path)
    assert crossing_of(before) is None and Crossing.select().count() == 0
    grow(path, "b", 160, {"v1": 0.3, "v2": 0.9})
    other = looked(path, metric="signup")
    first = looked(path, confidenceLevel="0.9")
    grow(path, "c", 600, {"v1": 0.75, "v2": 0.6})

    later = looked(path)

    assert crossing_of(other) is None
    crossing = crossing_of(first)
    assert (crossing["users"], crossing_of(later)) == (200, crossing)
    assert crossing["sampleSize"] == first["variants"][1]["sampleSize"]
    assert first["verdict"]["status"] == later["verdict"]["status"] == "variant_wins"
    assert later["analysis"]["method"] == "always_valid_e_process"
    assert later["variants"][1]["comparison"]["sequential"]["pValue"] > 0.05
    sentence = later["verdict"]["sentence"]
    assert sentence.startswith("Detailed won on ") and " at 200 users (p " in sentence
    then, now = (
        looked(path, asOf=one["analysis"]["computedAt"]) for one in (before, first)
    )
    assert (crossing_of(then), crossing_of(now)) == (None, crossing)


@pytest.mark.parametrize("plan", [LARGE, None])
def test_a_broken_split_decides_nothing(api, running, grow, looked, plan):
    planned = running(plan=plan)
    grow(planned, "a", 60, {"v1": 0.5, "v2": 0.5})
    extra = {"users": [{"userId": f"x{place}"} for place in range(600)]}
    decided = api.post(f"{planned}/assignments/batch", extra).json["data"]
    lost = [one["userId"] for one in decided if one["variantId"] == "v1"]
    with engine.database.obj.atomic():
        engine.database.execute_sql(
            "UPDATE participant_tally SET participants = participants - "
            f"{len(lost)} WHERE variant = 'v1'"
        )
    rows = [{"userId": one["userId"]} for one in decided if one["variantId"] == "v2"]
    api.post(f"{planned}/conversions/batch", {"conversions": rows})

    told = looked(planned)

    assert told["verdict"]["status"] == "broken_split"
    assert Crossing.select().count() == 0


@pytest.mark.sqlite
def test_a_look_is_answered_where_nothing_can_be_written(planned, grow, looked):
    grow(planned, "a", 140, {"v1": 0.4, "v2": 0.9})
    engine.database.execute_sql("PRAGMA query_only = 1")

    told = looked(planned)

    engine.database.execute_sql("PRAGMA query_only = 0")
    assert told["verdict"]["status"] == "variant_wins"
    assert Crossing.select().count() == 0
    stored = crossing_of(looked(planned))
    assert stored and stored == crossing_of(looked(planned))


def test_a_stored_look_cannot_contradict_itself(planned, grow, looked):
    grow(planned, "a", 140, {"v1": 0.4, "v2": 0.9})
    looked(planned)
    row = Crossing.get()

    with pytest.raises(engine.peewee.IntegrityError):
        Crossing.update(conversions=row.sample_size + 1).execute()
    assert isinstance(row.p_value, Decimal)


def test_a_draft_is_rehearsed_with_the_test_that_it_will_have(api, draft):
    path = draft(plan=LARGE)
    body = {"baselineRate": 0.5, "effect": 0.25, "participants": 171, "looks": 20}
    planned = api.post(f"{path}/simulate", {**body, "runs": 400}).json["data"]
    unplanned = api.post(f"{draft()}/simulate", {**body, "runs": 400}).json["data"]

    assert planned["power"]["value"] > unplanned["power"]["value"] + 0.1
    assert planned["falseAlarms"]["value"] <= 0.07


def test_the_document_says_what_a_stored_win_says():
    text = (HERE.parent / "docs" / "statistics.md").read_text()
    then, today = ((3_048, 306), (3_072, 385)), ((4_011, 413), (4_020, 474))
    seen = comparison(pair(*then), plan=PLAN, horizon_users=8_622).sequential
    at = "2026-03-03T09:12:00.000000Z"
    crossing = stats.Crossing(at, 6_120, *then[0], *then[1], seen.p_value)

    told = stats.analyse(
        pair(*today), plan=PLAN, horizon_users=8_622, crossings={"v2": crossing}
    )

    assert told.verdict.status == "variant_wins"
    assert f"> {told.verdict.sentence}\n" in text
    assert not told.variants[1].comparison.sequential.p_value < 0.05


def test_a_control_that_won_stays_the_winner_too():
    crossing = stats.Crossing("2026-03-03", 6_120, 3_048, 385, 3_072, 306, 0.021)

    told = stats.analyse(
        pair((4_011, 474), (4_020, 413)),
        plan=PLAN,
        horizon_users=8_622,
        crossings={"v2": crossing},
    ).verdict

    assert (told.status, told.variant_id) == ("control_wins", "v1")
    assert told.sentence.startswith(
        "Control won on 3 March 2026 at 6,120 users (p = 0."
    )


def test_the_csv_has_every_figure_of_a_crossing(planned, grow, api, looked):
    grow(planned, "a", 140, {"v1": 0.4, "v2": 0.9})
    crossing = crossing_of(looked(planned))

    text = api.get(f"{planned}/compute-results", headers={"Accept": "text/csv"}).text

    for name, value in crossing.items():
        assert f"crossing.{name}" in text, text
        assert str(value) in text


@pytest.mark.postgresql
def test_a_server_of_the_schema_before_is_migrated_with_its_rows(
    api, planned, grow, engine_name
):
    grow(planned, "a", 20, {"v1": 0.5, "v2": 0.5})
    for statement in (
        "DROP TABLE crossing",
        "DROP TABLE cohort",
        "DROP TABLE sums",
        "ALTER TABLE assignment DROP COLUMN covariate",
        "ALTER TABLE experiment DROP COLUMN metrics",
        "ALTER TABLE experiment DROP COLUMN horizon, DROP COLUMN horizon_at",
        "UPDATE identity SET schema_version = 5",
    ):
        engine.database.execute_sql(statement)

    assert schema._migrate()

    assert schema.alterations(TABLES) == []
    assert Experiment.get().horizon is None
    told = api.get(f"{planned}/compute-results").json["data"]
    assert told["analysis"]["method"] == "always_valid_e_process"
    assert sum(one["sampleSize"] for one in told["variants"]) == 20


# ----------------------------------------------------------------------------
# What is left
# ----------------------------------------------------------------------------


def test_a_reader_learns_how_many_users_and_days_are_left(planned, grow, looked):
    grow(planned, "a", 40, {"v1": 0.5, "v2": 0.6})
    first = looked(planned)
    began = utcnow() - timedelta(days=4)
    Experiment.update(start_date=began).execute()

    told = looked(planned)

    assert first["progress"] == {
        "usersLeft": 131,
        "usersPerDay": None,
        "daysLeft": None,
    }
    assert first["verdict"]["sentence"].endswith(" 131 users are left of the plan's.")
    pace = told["progress"].pop("usersPerDay")
    assert pace == pytest.approx(10, abs=0.01)
    assert told["progress"] == {"usersLeft": 131, "daysLeft": 14}
    assert told["verdict"]["sentence"].endswith(
        " 131 users are left of the plan's, about 14 days at this pace."
    )


def test_a_stopped_experiment_has_users_left_and_no_days(api, planned, grow, looked):
    grow(planned, "a", 40, {"v1": 0.5, "v2": 0.6})
    Experiment.update(start_date=utcnow() - timedelta(days=4)).execute()
    assert api.post(f"{planned}/stop").status_code == 200

    told = looked(planned)["progress"]

    assert (told["usersLeft"], told["daysLeft"]) == (131, None)
    assert told["usersPerDay"] == pytest.approx(10, abs=0.01)


def test_an_experiment_without_a_plan_has_no_end_to_count_to(running, grow, looked):
    path = running()
    grow(path, "a", 40, {"v1": 0.5, "v2": 0.6})

    assert "progress" not in looked(path)


@pytest.mark.parametrize("settings", [{}, {"plan": PLAN}, {"horizon_users": 8_616}])
def test_the_smallest_effect_is_one_that_is_found_as_often_as_planned(settings):
    counts = (3_000, 300), (3_000, 300)
    effect = stats.analyse(pair(*counts), **settings).analysis.smallest_effect
    draw, found = np.random.default_rng(11), 0

    for _ in range(200):
        treated = int(draw.binomial(3_000, 0.1 + effect))
        control = int(draw.binomial(3_000, 0.1))
        arms = pair((3_000, control), (3_000, treated))
        found += comparison(arms, **settings).sequential.is_significant

    assert found / 200 == pytest.approx(0.8, abs=0.09)  # three standard errors


def test_nothing_is_known_of_effects_at_an_end_of_the_rates():
    assert stats.analyse(pair((100, 0), (100, 5))).analysis.smallest_effect is None
    assert stats.analyse(pair((100, 100), (100, 5))).analysis.smallest_effect is None
    assert stats.analyse(pair((0, 0), (0, 0))).analysis.smallest_effect is None
