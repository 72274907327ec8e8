"""Value metrics: means, their tests and their intervals."""

import json
import math
from decimal import Decimal

import pytest
import scipy.integrate
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from test_stats import REGRESSIONS, contains, excludes, pair, spent

import stats
from stats import Arm, Plan, ValueSums

# ---------------------------------------------------------------------------
# Value metrics


def valued(*sums, users=100):
    return [
        Arm(f"v{i}", f"V{i}", Decimal(100) / len(sums), users, 10, ValueSums(10, *each))
        for i, each in enumerate(sums, 1)
    ]


def test_the_lift_of_two_means_is_rounded_once():
    arms = valued((Decimal(100), Decimal(2_000)), (Decimal(120), Decimal(2_000)))

    found = stats.analyse(arms).variants[1].value.comparison

    assert (found.difference, found.lift) == (0.2, 0.2)


@pytest.mark.parametrize("control", ["1e-330", "1e-299", "1e-150", "1e-145"])
def test_a_lift_that_no_float_holds_is_not_known(control):
    """Values have up to 340 decimals, and whoever may enrol may send one."""
    low, high = Decimal(control), Decimal("1e12")
    arms = valued((low * 100, low**2 * 101), (high * 100, high**2 * 101))

    found = stats.analyse(arms).variants[1].value.comparison

    spans = found.fixed_horizon.lift_interval, found.sequential.lift_interval
    lifts = [found.lift, *(end for span in spans for end in span[:2])]
    assert found.difference == 1e12
    assert all(one is None or abs(one) < 1e300 for one in lifts)
    assert (found.lift is None) == (control in ("1e-330", "1e-299"))


def test_values_stand_beside_the_rate_and_do_not_decide():
    arms = valued((Decimal(100), Decimal(1100)), (Decimal(900), Decimal(8200)))

    result = stats.analyse(arms)

    value = result.variants[1].value
    assert (value.mean, value.count, value.sum) == (9.0, 10, 900.0)
    assert value.comparison.lift == 8
    assert value.comparison.fixed_horizon.p_value < 1e-9
    assert value.comparison.sequential.is_significant
    assert result.verdict.status == "keep_running"
    assert "VALUE_DISAGREES" in [one.code for one in result.warnings]


def disagreement(result):
    """The message of the warning that values speak against the verdict, or None."""
    found = [one.message for one in result.warnings if one.code == "VALUE_DISAGREES"]
    assert len(found) <= 1
    return found[0] if found else None


def test_a_winner_whose_revenue_fell_is_told_of_in_the_verdict():
    # 500 and 750 buyers: means of 3 and 1 a user, which is 67 % less.
    arms = spent((5_000, 500, 15_000, 500_000), (5_000, 750, 5_000, 40_000))

    result = stats.analyse(arms)

    assert (result.verdict.status, result.verdict.variant_id) == ("variant_wins", "v2")
    told = "the mean value of a user is 1 in V2 and 3 in V1 (-67 %, always-valid p <"
    assert told in result.verdict.sentence
    assert told in disagreement(result)


def test_a_fall_that_one_look_finds_is_told_of_beside_a_winner():
    # Means of 3 and 1 again, with squares so large that only one look finds it:
    # Welch's t is -2 / sqrt(2 * 1,500 / 5,000), about -2.6.
    squares = 1_500 * 5_000
    arms = spent((5_000, 500, 15_000, squares), (5_000, 750, 5_000, squares))

    result = stats.analyse(arms)

    value = result.variants[1].value.comparison
    assert not value.sequential.is_significant
    assert value.fixed_horizon.p_value < 0.05
    assert "one look p = 0.01" in disagreement(result)


@pytest.mark.parametrize("plan", [Plan(0.1, 0.02), Plan(0.1, 0.005), None])
def test_equal_rates_and_half_the_revenue_are_told_of_whatever_the_verdict(plan):
    arms = spent((20_000, 2_000, 40_000, 1_200_000), (20_000, 2_000, 20_000, 300_000))

    result = stats.analyse(arms, plan=plan)

    statuses = {0.02: "no_difference", 0.005: "keep_running"}
    expected = statuses[plan.minimum_effect] if plan else "keep_running"
    assert result.verdict.status == expected
    assert "1 in V2 and 2 in V1 (-50 %, always-valid p <" in result.verdict.sentence
    assert "-50 %" in disagreement(result)


def test_a_control_that_wins_with_less_revenue_is_told_of():
    arms = spent((5_000, 750, 5_000, 40_000), (5_000, 500, 15_000, 500_000))

    result = stats.analyse(arms)

    assert result.verdict.status == "control_wins"
    assert "+200 %" in disagreement(result)


@pytest.mark.parametrize(
    "arms",
    [
        # A winner with more revenue; no difference in either; a broken split.
        spent((5_000, 500, 5_000, 60_000), (5_000, 750, 7_500, 90_000)),
        spent((20_000, 2_000, 40_000, 1_200_000), (20_000, 2_000, 40_000, 1_200_000)),
        spent((10_000, 500, 15_000, 500_000), (5_000, 750, 5_000, 40_000)),
    ],
)
def test_values_that_agree_raise_no_warning(arms):
    result = stats.analyse(arms, plan=Plan(0.1, 0.02))

    assert disagreement(result) is None
    assert " But the mean value" not in result.verdict.sentence


def test_values_without_spread_have_no_test():
    result = stats.analyse(valued((0, 0), (0, 0)))

    found = result.variants[1].value.comparison
    assert (found.difference, found.lift) == (0, None)
    assert found.fixed_horizon.p_value is None
    assert found.fixed_horizon.difference_interval[:2] == (None, None)
    assert found.sequential.p_value is None
    json.dumps(result, allow_nan=False, default=str)


@pytest.mark.parametrize(
    "arms",
    [
        # Every user 5 in one arm and 10 in the other.
        spent((1_000, 1_000, 5_000, 25_000), (1_000, 1_000, 10_000, 100_000)),
        spent((1_000, 1_000, 5_000, 25_000), (1_000, 1_000, 5_000, 25_000)),
        spent((1_000, 10, 0, 0), (1_000, 10, 0, 0)),
        spent((1, 1, 5, 25), (1, 1, 10, 100)),
        spent((3, 3, 15, 77), (1, 1, 10, 100)),
        spent((1, 1, 10, 100), (3, 3, 15, 77)),
    ],
)
def test_means_without_a_known_spread_have_no_p_value_and_a_caution(arms):
    result = stats.analyse(arms)

    found = result.variants[1].value.comparison
    for block in (found.fixed_horizon, found.sequential):
        assert block.p_value is None
        assert block.difference_interval[:2] == block.lift_interval[:2] == (None, None)
    assert found.sequential.adjusted_p_value is found.sequential.log_e_value is None
    assert found.sequential.is_significant is False
    cautions = [one for one in result.warnings if one.code == "NO_VALUE_SPREAD"]
    assert len(cautions) == 1
    assert "V1" in cautions[0].message and "V2" in cautions[0].message


def test_a_variant_whose_mean_is_unknown_does_not_hide_the_others():
    arms = spent((1_000, 100, 500, 2_600), (1, 1, 5, 25), (1_000, 100, 900, 8_300))

    result = stats.analyse(arms)

    lone, other = (variant.value.comparison for variant in result.variants[1:])
    assert lone.sequential.adjusted_p_value is None
    assert other.sequential.p_value < other.sequential.adjusted_p_value < 1
    (caution,) = (one for one in result.warnings if one.code == "NO_VALUE_SPREAD")
    assert "V2" in caution.message and "V3" not in caution.message


@pytest.mark.parametrize(
    "arms",
    [
        # One arm without values is compared: the other's spread is known.
        spent((1_000, 100, 500, 2_600), (1_000, 0, 0, 0)),
        # An empty arm is told of already.
        spent((1_000, 100, 500, 2_600), (0, 0, 0, 0)),
    ],
)
def test_no_caution_about_spread_where_there_is_some_or_nobody(arms):
    result = stats.analyse(arms)

    assert "NO_VALUE_SPREAD" not in [one.code for one in result.warnings]
    known = arms[1].sample_size > 0
    p_value = result.variants[1].value.comparison.sequential.p_value
    assert (p_value is not None) == known


@pytest.mark.parametrize(
    ("total", "squares"), [(Decimal(50), Decimal(1)), (Decimal(0), Decimal(-1))]
)
def test_impossible_sums_are_refused(total, squares):
    with pytest.raises(ValueError, match="squares"):
        stats.analyse(valued((total, squares), (0, 0)))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_tests_of_means_agree_with_their_intervals(data):
    def one():
        values = data.draw(st.lists(st.integers(0, 50), min_size=1, max_size=30))
        return stats.sample(len(values), sum(values), sum(v * v for v in values))

    control, treatment = one(), one()
    fixed = stats.welch(control, treatment, 0.95)
    always = stats.means.always_valid_means(control, treatment, 0.95)

    json.dumps([fixed, always], allow_nan=False)
    for block in (fixed, always):
        significant = block.p_value is not None and block.p_value < 0.05
        assert excludes(block.difference_interval, 0) == significant
        if block.lift_interval.lower is not None:
            assert excludes(block.lift_interval, 0) == significant
    if always.difference_interval.lower is not None:
        assert contains(always.difference_interval, fixed.difference_interval)


def test_one_user_and_nobody_have_no_variance():
    one, nobody = stats.sample(1, 5, 25), stats.sample(0, 0, 0)

    assert (one.mean, one.variance, nobody) == (5, None, None)
    assert stats.means.mean_interval(one, 0.95)[:2] == (None, None)
    assert stats.means.always_valid_mean_interval(nobody, 0, 0.95)[:2] == (None, None)
    assert stats.means.always_valid_means(one, nobody, 0.95).p_value is None
    with pytest.raises(ValueError, match="empty sample"):
        stats.sample(0, 5, 25)


def arms_of(case):
    """The two arms of a regression: every user with a value has converted."""
    return [
        Arm(
            key,
            name,
            Decimal(split),
            arm["n"],
            arm["count"],
            ValueSums(arm["count"], Decimal(arm["sum"]), Decimal(arm["sumSquares"])),
        )
        for key, name, split, arm in zip(
            ("v1", "v2"),
            ("Control", "Detailed"),
            case["input"]["split"],
            case["input"]["arms"],
            strict=True,
        )
    ]


@pytest.mark.parametrize("case", REGRESSIONS["cases"], ids=lambda case: case["id"])
def test_values_without_an_effect_are_not_significant_at_uneven_splits(case):
    found = stats.analyse(arms_of(case)).variants[1].value.comparison.sequential

    assert found.is_significant is False
    assert not excludes(found.difference_interval, 0)
    assert not excludes(found.lift_interval, 0)
    # The p-value of an independent implementation on sums that were not rounded.
    expected = case["reference_p_least_of_both"]
    assert found.p_value == pytest.approx(expected, abs=case.get("rounding", 1e-9))


def test_the_pooled_interval_is_the_published_formula():
    # D +- k sqrt(h SSW / (N - 1 - k^2)) with h = 1/900 + 1/100, SSW = 22,375, and k
    # such that "D excluded" and "p < alpha" are the same statement.
    (case,) = (one for one in REGRESSIONS["cases"] if one["id"].endswith("90_10"))
    control, treatment = (
        stats.sample(arm["n"], Decimal(arm["sum"]), Decimal(arm["sumSquares"]))
        for arm in case["input"]["arms"]
    )
    found = stats.means.always_valid_means(control, treatment, 0.95)
    lower, upper = found.difference_interval[:2]
    half = (upper - lower) / 2

    k_squared = half**2 * 999 / ((1 / 900 + 1 / 100) * 22_375 + half**2)

    # Student's t with 998 degrees of freedom and a normal quantile, both from scipy,
    # carry k to the scale of the bets; their information is n_c n_t / N * (m / s)^2.
    z = -scipy.stats.norm.ppf(scipy.stats.t.sf(math.sqrt(k_squared), 998))
    variance = (22_375 + (750 / 900) ** 2 * 90) / 999
    log_e = stats.evidence.normal_log_e_value(z, 90 * 0.75**2 / variance)
    assert log_e == pytest.approx(math.log(20), abs=1e-6)
    assert (lower + upper) / 2 == pytest.approx(-750 / 900)


@pytest.mark.parametrize(
    ("cap", "values", "shown"),
    [(500, 299, False), (500, 300, True), (None, 1_999, False), (None, 2_000, True)],
)
def test_one_arms_value_interval_for_any_look_needs_values(cap, values, shown):
    sums = ValueSums(values, values * 10, values * 150)
    arms = [Arm(key, key, Decimal(50), 5_000, values, sums) for key in ("v1", "v2")]

    for variant in stats.analyse(
        arms, metric=stats.MetricSettings("spent", "primary", kind="mean", cap=cap)
    ).variants:
        interval = variant.value.always_valid_interval
        assert (interval.lower is not None) == (interval.upper is not None) == shown
        assert interval.method == "normal_mixture_asymptotic"


def test_rounded_sums_may_contradict_each_other_by_the_rounding():
    # Two users at -1.0125 each have the sum -2.025 and the squares 2.0503125.
    rounded = stats.sample(2, Decimal("-2.03"), Decimal("2.05"))

    assert rounded.variance == 0
    with pytest.raises(ValueError, match="squares"):
        stats.sample(2, Decimal("-2.03"), Decimal("2.02"))
    with pytest.raises(ValueError, match="squares"):
        stats.sample(2, 5, 12)


def test_more_values_than_users_are_refused():
    with pytest.raises(ValueError, match="11 values of 10 users"):
        stats.analyse(
            [arm._replace(value=ValueSums(11, 1, 1)) for arm in pair((10, 1), (10, 1))]
        )
