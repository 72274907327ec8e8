"""Sample sizes and simulations of a draft."""

import math
from decimal import Decimal

import numpy as np
import pytest
from conftest import assert_error, paths
from hypothesis import given, settings
from hypothesis import strategies as st
from marshmallow import ValidationError

import schemas
import stats
from stats.means import always_valid_means
from stats.planning import mean_sample_size
from targeting import assignment
from views import planning

pytestmark = pytest.mark.one_engine

# ----------------------------------------------------------------------------
# Planning
# ----------------------------------------------------------------------------


def test_a_sample_size_is_the_published_one(api):
    # R: power.prop.test(p1 = .50, p2 = .75, power = .90): n = 76.7.
    body = {"baselineRate": 0.5, "minimumEffect": 0.25, "power": 0.9}

    told = api.post("sample-size", {**body, "usersPerDay": 50}).json["data"]

    fixed, always = told["fixedHorizon"], told["alwaysValid"]
    assert fixed == {"usersPerVariant": [77, 77], "total": 154, "days": 4}
    assert always["total"] == sum(always["usersPerVariant"]) > 154
    assert always["days"] == -(-always["total"] // 50)
    assert (told["baselineRate"], told["targetRate"]) == (0.5, 0.75)
    relative = {"baselineRate": 0.5, "relativeEffect": 0.5, "power": 0.9}
    answer = api.post("sample-size", {**relative, "usersPerDay": 50})
    assert answer.json["data"] == told
    unhurried = api.post("sample-size", body).json["data"]
    assert unhurried["fixedHorizon"]["days"] is None


def test_more_variants_and_uneven_splits_need_more_users(api):
    body = {"baselineRate": 0.1, "minimumEffect": 0.02}

    def total(**fields):
        told = api.post("sample-size", {**body, **fields}).json["data"]
        assert len(told["fixedHorizon"]["usersPerVariant"]) == variants
        return told["fixedHorizon"]["total"]

    variants = 2
    even = total()
    assert total(variants=2) == total(splits=[50, 50]) == even
    assert total(splits=[90, 10]) > even
    variants = 5
    assert total(variants=5) > 2.5 * even


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({}, ""),
        ({"minimumEffect": 0.1, "relativeEffect": 0.1}, ""),
        ({"minimumEffect": 0.9}, "minimumEffect"),
        ({"minimumEffect": 0}, "minimumEffect"),
        ({"minimumEffect": 1e-9}, "minimumEffect"),
        ({"relativeEffect": 9}, "relativeEffect"),
        ({"minimumEffect": 0.1, "baselineRate": 1}, "baselineRate"),
        ({"minimumEffect": 0.1, "baselineRate": "0.1"}, "baselineRate"),
        ({"minimumEffect": 0.1, "power": 1}, "power"),
        ({"minimumEffect": 0.1, "confidenceLevel": 0.999}, "confidenceLevel"),
        ({"minimumEffect": 0.1, "variants": 1}, "variants"),
        ({"minimumEffect": 0.1, "variants": 21}, "variants"),
        ({"minimumEffect": 0.1, "splits": [50, 40]}, ""),
        ({"minimumEffect": 0.1, "splits": [100]}, "splits"),
        ({"minimumEffect": 0.1, "variants": 2, "splits": [50, 50]}, "variants"),
        ({"minimumEffect": 0.1, "usersPerDay": 0}, "usersPerDay"),
        ({"minimumEffect": 0.1, "users": 5}, "users"),
        ({"minimumEffect": 0.1, "margin": 0.1}, ""),
        ({"relativeEffect": 0.1, "margin": 0.1}, ""),
        ({"margin": 0.1}, "margin"),
        ({"margin": 0}, "margin"),
        ({"margin": 0.9, "direction": "decrease"}, "margin"),
        ({"minimumEffect": 0.1, "direction": "decrease"}, "minimumEffect"),
        ({"minimumEffect": 0.1, "direction": "up"}, "direction"),
    ],
)
def test_a_size_that_cannot_be_is_refused(api, fields, path):
    response = api.post("sample-size", {"baselineRate": 0.1, **fields})
    assert paths(assert_error(response, 400, "VALIDATION_ERROR")) == {path}


def sized(api, users_per_day):
    body = (
        f'{{"baselineRate": 0.1, "minimumEffect": 0.1, "usersPerDay": {users_per_day}}}'
    )
    told = {"Content-Type": "application/json"}
    return api("POST", "sample-size", data=body, headers=told)


@pytest.mark.parametrize("spelling", ["500.0", "5e2", "5000E-1"])
def test_a_whole_number_may_be_spelled_in_any_way(api, spelling):
    assert sized(api, spelling).json["data"] == sized(api, "500").json["data"]


@pytest.mark.parametrize(
    "spelling", ["500.5", "1e400", "1e999999999", '"500"', "true", "-0.0"]
)
def test_what_is_no_whole_number_within_bounds_is_refused(api, spelling):
    error = assert_error(sized(api, spelling), 400, "VALIDATION_ERROR")
    assert paths(error) == {"usersPerDay"}


@settings(max_examples=40)
@given(
    baseline=st.decimals("0.000001", "0.999998", places=6),
    effect=st.decimals("0.000001", "0.999998", places=6),
    power=st.decimals("0.01", "0.999", places=3),
    level=st.decimals("0.5", "0.99", places=2),
    variants=st.integers(2, 20),
)
def test_every_plan_that_is_taken_has_a_size(baseline, effect, power, level, variants):
    body = {
        "baselineRate": baseline,
        "minimumEffect": effect,
        "power": power,
        "confidenceLevel": level,
        "variants": variants,
    }
    if baseline + effect > Decimal("0.999999"):
        with pytest.raises(ValidationError):
            schemas.SizeSchema().load(body)
        return

    planned = planning.sample_sizes(**schemas.SizeSchema().load(body))

    fixed, always = planned.fixed_horizon, planned.always_valid
    for size in [fixed, always or fixed]:
        assert all(users >= 1 for users in size.users_per_variant)
        assert size.total == sum(size.users_per_variant)
    if always is None:
        low, high = (float(rate) for rate in (baseline, baseline + effect))
        assert math.log(high / (1 - high) * (1 - low) / low) < 0.0026
    else:
        assert always.total >= fixed.total


def test_an_effect_too_small_for_any_look_has_no_size_for_it(api):
    body = {"baselineRate": 0.5, "minimumEffect": 0.0005}

    told = api.post("sample-size", body).json["data"]

    assert told["alwaysValid"] is None
    assert told["fixedHorizon"]["total"] > 10_000_000


def test_a_draft_can_be_rehearsed_with_the_production_hash(api, draft):
    path = draft()
    body = {"participants": 2000, "baselineRate": 0.1, "effect": 0.08, "runs": 60}

    told = api.post(f"{path}/simulate", body).json["data"]

    dealt = [
        assignment.dealt(f"simulation-0-{run}", f"user-{user}", [5000, 5000])
        for run in range(60)
        for user in range(2000)
    ]
    share = sum(dealt) / len(dealt)
    assert told["achievedSplit"] == pytest.approx([1 - share, share])
    assert (told["runs"], told["evaluations"]) == (60, 120_000)
    assert told["falseAlarms"]["value"] <= 0.05 < told["naiveFalseAlarms"]["value"]
    assert told["power"]["value"] > 0.9
    assert told["meanStop"] < 2000
    assert api.post(f"{path}/simulate", body).json["data"] == told
    assert api.get(path).json["data"]["_count"]["assignments"] == 0


def test_a_rehearsal_too_long_is_cut_to_whole_runs(api, draft):
    body = {"participants": 1_000_000, "baselineRate": 0.1, "runs": 10_000, "looks": 2}

    told = api.post(f"{draft()}/simulate", body).json["data"]

    assert (told["runs"], told["evaluations"]) == (3, 3_000_000)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"participants": 1}, "participants"),
        ({"participants": 1_000_001}, "participants"),
        ({"baselineRate": 1.1}, "baselineRate"),
        ({"effect": 0.95}, "effect"),
        ({"effect": -0.2}, "effect"),
        ({"looks": 101}, "looks"),
        ({"looks": 0}, "looks"),
        ({"runs": 0}, "runs"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
    ],
)
def test_a_rehearsal_that_cannot_be_is_refused(api, draft, fields, path):
    body = {"participants": 100, "baselineRate": 0.1, **fields}
    response = api.post(f"{draft()}/simulate", body)
    assert paths(assert_error(response, 400, "VALIDATION_ERROR")) == {path}


def test_only_a_draft_is_rehearsed(api, running):
    path = running()
    body = {"participants": 100, "baselineRate": 0.1}

    error = assert_error(api.post(f"{path}/simulate", body), 409, "INVALID_STATE")

    assert error["details"] == [{"current": "running", "allowed": ["draft"]}]


def test_a_metric_that_no_conversion_can_have_is_refused(api, running):
    refused = api.get(f"{running()}/results?metric=a%00")

    assert paths(assert_error(refused, 400, "VALIDATION_ERROR")) == {"metric"}


# ----------------------------------------------------------------------------
# Means
# ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("effect", "power", "users"),
    # R's manual of power.t.test has the first, with a standard deviation of 1. The
    # others are statsmodels 0.15.0, TTestIndPower().solve_power.
    [(1, 0.9, 22.02110), (0.5, 0.8, 63.76561), (0.2, 0.9, 526.3332)],
)
def test_the_size_for_a_mean_is_the_published_one(effect, power, users):
    found = mean_sample_size(effect, 1.0, power=power)

    assert found == pytest.approx(users, rel=1e-6)


def test_a_mean_has_a_size_and_a_covariate_makes_it_smaller(api):
    body = {"baselineMean": 20, "standardDeviation": 30, "minimumEffect": 1}

    plain = api.post("sample-size/mean", {**body, "usersPerDay": 1_000})
    adjusted = api.post("sample-size/mean", {**body, "covariateCorrelation": 0.7})

    once = plain.json["data"]["fixedHorizon"]
    # 2 (1.96 + 0.8416)^2 30^2 / 1^2, and one user more for the t distribution.
    assert once == {"usersPerVariant": [14_129] * 2, "total": 28_258, "days": 29}
    assert plain.json["data"]["targetMean"] == 21
    assert plain.json["data"]["alwaysValid"]["total"] > once["total"]
    share = adjusted.json["data"]["fixedHorizon"]["total"] / once["total"]
    assert share == pytest.approx(1 - 0.7**2, abs=1e-3)


def test_the_size_for_a_mean_at_any_look_has_its_power():
    plan = stats.MeanPlan(20, 30, 3)
    users = stats.plan_mean_sample_size(plan).always_valid.users_per_variant[0]
    draw = np.random.default_rng(8)
    found = 0
    for _ in range(400):
        arms = [
            stats.sample(users, float(one.sum()), float((one**2).sum()))
            for one in (draw.normal(20, 30, users), draw.normal(23, 30, users))
        ]
        found += stats.means_log_e_value(*arms) > math.log(20)

    # By this single look: 80 % with a standard error of 2 points.
    assert 0.74 <= found / 400 <= 0.86


# ----------------------------------------------------------------------------
# Guardrails
# ----------------------------------------------------------------------------


def test_the_users_that_show_a_guardrail_harmless_are_the_published_ones(api):
    # Farrington & Manning (1990), table 1, first row: 63 and 42 users for rates of
    # 10 %, a rise of 20 points to be ruled out, 5 % on that side and 90 % power.
    body = {"baselineRate": 0.1, "margin": 0.2, "direction": "decrease", "power": 0.9}

    answer = api.post(
        "sample-size",
        {**body, "confidenceLevel": 0.9, "splits": [60, 40], "usersPerDay": 10},
    )

    sizes = answer.json["data"]
    assert sizes["fixedHorizon"] == {
        "usersPerVariant": [63, 42],
        "total": 105,
        "days": 11,
    }
    assert sizes["alwaysValid"]["total"] > 105
    assert sizes["horizon"] is None
    assert sizes["baselineRate"] == sizes["targetRate"] == 0.1


@pytest.mark.parametrize("power", [0.8, 0.9])
@pytest.mark.parametrize(
    ("baseline", "margin", "splits"),
    [
        (0.1, -0.01, (50, 50)),
        (0.1, 0.01, (90, 10)),
        (0.01, 0.003, (50, 50)),
        (0.9, -0.02, (30, 70)),
    ],
)
def test_so_many_users_show_a_harmless_rate_as_often_as_planned(
    baseline, margin, splits, power
):
    planned = stats.plan_harmless_rate(baseline, margin, power=power, splits=splits)
    draw = np.random.default_rng(8)

    def shown(size):
        users = size.users_per_variant
        converted = draw.binomial(users, baseline, (4_000, 2)).T.astype(float)
        rates = [one / n for one, n in zip(converted, users, strict=True)]
        tables = stats.Tables(
            *(np.full(4_000, float(users[0])), converted[0]),
            *(np.full(4_000, float(users[1])), converted[1]),
        )
        ones = np.ones(4_000)
        log_e = stats.null_log_e_values(
            tables, ones * splits[1] / 100, ones, ones * margin
        )
        is_inside = (rates[1] - rates[0] - margin) * margin < 0
        z = stats.score(tables, ones, ones * margin)
        return ((log_e > -math.log(0.05 - 1e-4)) & is_inside).mean(), (
            (np.abs(z) > 1.959964) & is_inside
        ).mean()

    # A standard error of 0.6 points; the sizes are those of the normal distribution.
    assert shown(planned.always_valid)[0] == pytest.approx(power, abs=0.03)
    assert shown(planned.fixed_horizon)[1] == pytest.approx(power, abs=0.03)


def test_a_harmless_mean_needs_the_users_of_one_side_of_the_t_test(api):
    # statsmodels 0.15.0, TTestIndPower().solve_power(1 / 30, alpha=0.025, power=0.9,
    # alternative="larger"): 18,914.32.
    body = {"baselineMean": 20, "standardDeviation": 30, "margin": 1, "power": 0.9}

    sizes = api.post("sample-size/mean", body).json["data"]

    assert sizes["fixedHorizon"]["usersPerVariant"] == [18_915] * 2
    assert sizes["baselineMean"] == sizes["targetMean"] == 20
    assert sizes["alwaysValid"]["total"] > 2 * sizes["fixedHorizon"]["total"]


@pytest.mark.parametrize("power", [0.8, 0.9])
def test_so_many_users_show_a_harmless_mean_as_often_as_planned(power):
    plan = stats.MeanPlan(20, 30, 3, power=power)
    users = stats.plan_harmless_mean(plan).always_valid.users_per_variant[0]
    draw = np.random.default_rng(8)
    shown = 0
    for _ in range(1_000):
        arms = [
            stats.sample(users, float(one.sum()), float((one**2).sum()))
            for one in draw.normal(20, 30, (2, users))
        ]
        shown += always_valid_means(*arms, 0.95).difference_interval.lower > -3

    # The standard error is 1.3 points at most.
    assert shown / 1_000 == pytest.approx(power, abs=0.04)


@settings(max_examples=40)
@given(
    baseline=st.decimals("0.000001", "0.999999", places=6),
    margin=st.decimals("0.000001", "0.999999", places=6),
    direction=st.sampled_from(stats.DIRECTIONS),
    power=st.decimals("0.01", "0.999", places=3),
    level=st.decimals("0.5", "0.99", places=2),
    variants=st.integers(2, 20),
)
def test_every_margin_that_is_taken_has_a_size(
    baseline, margin, direction, power, level, variants
):
    body = {
        "baselineRate": baseline,
        "margin": margin,
        "direction": direction,
        "power": power,
        "confidenceLevel": level,
        "variants": variants,
    }
    limit = baseline + margin if direction == stats.DECREASE else baseline - margin
    if not Decimal("0.000001") <= limit <= Decimal("0.999999"):
        with pytest.raises(ValidationError):
            schemas.SizeSchema().load(body)
        return

    planned = planning.sample_sizes(**schemas.SizeSchema().load(body))

    fixed, always = planned.fixed_horizon, planned.always_valid
    assert all(users >= 1 for users in fixed.users_per_variant)
    assert always is None or always.total >= fixed.total


def test_a_fall_can_be_planned_where_less_is_better(api):
    # R: power.prop.test(p1 = .75, p2 = .50, power = .90): n = 76.7.
    fall = {"baselineRate": 0.75, "minimumEffect": 0.25, "direction": "decrease"}

    sizes = api.post("sample-size", {**fall, "power": 0.9}).json["data"]

    assert sizes["targetRate"] == 0.5
    assert sizes["fixedHorizon"]["usersPerVariant"] == [77, 77]


@pytest.mark.parametrize("change", ["minimumEffect", "margin"])
@pytest.mark.parametrize("level", [0.5, 0.95])
def test_more_power_never_needs_fewer_users(api, change, level):
    # At half of alpha the signal of one look is 0; below it, it is on the other side.
    half = (1 - level) / 2
    powers = [0.01, half / 2, half, half + 0.001, 2 * half, 0.5, 0.8, 0.999]
    body = {"baselineRate": 0.1, change: 0.02, "confidenceLevel": level}

    answers = [
        api.post("sample-size", {**body, "power": round(power, 4)})
        for power in sorted(powers)
    ]

    assert {answer.status_code for answer in answers} == {200}
    for name in ("fixedHorizon", "horizon", "alwaysValid"):
        sizes = [answer.json["data"][name] for answer in answers]
        if name == "horizon" and change == "margin":
            assert sizes == [None] * len(powers)
            continue
        totals = [size["total"] for size in sizes]
        assert totals == sorted(totals), name
        assert totals[0] >= 2 and totals[-1] < 1e6, name


def test_a_plan_with_a_power_of_half_of_alpha_can_be_started(running, api):
    plan = {"baselineRate": 0.1, "minimumEffect": 0.02, "power": 0.025}

    path = running(plan=plan)

    horizon = api.get(f"{path}/compute-results").json["data"]["analysis"]["horizon"]
    assert 2 <= horizon["users"] < 1_000


@pytest.mark.parametrize("deviations", [5, 8.4])
def test_an_effect_of_many_deviations_needs_hardly_any_users(api, deviations):
    # scipy 1.17.1, nct.sf(t, 2 n - 2, deviations * sqrt(n / 2)): the power is 0.72 and
    # 0.970 with 2 users in each variant, 0.993 and more with 3.
    body = {"baselineMean": 20, "standardDeviation": 1, "minimumEffect": deviations}

    sizes = api.post("sample-size/mean", body).json["data"]

    few = {5: [3, 3], 8.4: [2, 2]}[deviations]
    assert sizes["fixedHorizon"]["usersPerVariant"] == few


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"minimumEffect": None}, ""),
        ({"margin": 1}, ""),
        ({"minimumEffect": None, "margin": 1e-4}, "margin"),
        ({"relativeEffect": 0.1}, ""),
        ({"standardDeviation": 0}, "standardDeviation"),
        ({"minimumEffect": 0}, "minimumEffect"),
        ({"minimumEffect": 1e-4}, "minimumEffect"),
        ({"covariateCorrelation": 1}, "covariateCorrelation"),
        (
            {"baselineMean": 0, "minimumEffect": None, "relativeEffect": 0.1},
            "baselineMean",
        ),
        ({"baselineRate": 0.1}, "baselineRate"),
    ],
)
def test_a_size_for_a_mean_that_cannot_be_is_refused(api, fields, path):
    body = {"baselineMean": 20, "standardDeviation": 30, "minimumEffect": 1, **fields}
    given = {name: value for name, value in body.items() if value is not None}

    response = api.post("sample-size/mean", given)

    error = assert_error(response, 400, "VALIDATION_ERROR")
    assert [one["path"] for one in error["details"]] == [
        "" if path == "_schema" else path
    ]
