"""What the statistics promise: reference values, properties, guarantees.

Expected numbers come from publications and independent libraries (see `source` in
`cases/reference_cases.json`), from exact enumeration, or from a symmetry; never
from our own output.
"""

import hashlib
import json
import math
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

import stats
from bench import values as bench
from stats import Arm, Plan, Tables, ValueSums, evidence

HERE = Path(__file__).parent
CASES = json.loads((HERE / "cases" / "reference_cases.json").read_text())["cases"]
REGRESSIONS = json.loads((HERE / "cases" / "value_regressions.json").read_text())
SEED_ARMS = [
    Arm("v1", "Control", Decimal(50), 250, 45),
    Arm("v2", "Detailed", Decimal(50), 250, 67),
]


# ---------------------------------------------------------------------------
# Means


def table(control, treatment):
    """One table of two (users, conversions) pairs."""
    columns = (*control, *treatment)
    return Tables(*(np.array([float(column)]) for column in columns))


def pair(control, treatment, splits=(50, 50)):
    """Two arms from (users, conversions) pairs."""
    return [
        Arm("v1", "Control", Decimal(str(splits[0])), *control),
        Arm("v2", "Detailed", Decimal(str(splits[1])), *treatment),
    ]


def many(*counts, control=(1000, 100)):
    """A control and as many variants as counts, evenly split."""
    every = [control, *counts]
    split = Decimal(100) / len(every)
    return [Arm(f"v{i}", f"V{i}", split, *each) for i, each in enumerate(every, 1)]


def comparison(arms, place=1, **settings):
    return stats.analyse(arms, **settings).variants[place].comparison


def walk(value):
    """Every leaf of a tree of named tuples and lists."""
    if isinstance(value, (tuple, list)):
        for each in value:
            yield from walk(each)
    else:
        yield value


def excludes(interval, point):
    """Whether a point lies outside an interval whose ends may be unbounded."""
    above = interval.lower is not None and interval.lower > point
    below = interval.upper is not None and interval.upper < point
    return above or below


def contains(outer, inner, slack=1e-9):
    """Whether one interval holds another, but for rounding."""
    lower = outer.lower is None or (
        inner.lower is not None and outer.lower <= inner.lower + slack
    )
    upper = outer.upper is None or (
        inner.upper is not None and outer.upper >= inner.upper - slack
    )
    return lower and upper


# ---------------------------------------------------------------------------
# Reference cases: one adapter a category


def arm_counts(inputs):
    return [
        (inputs[name]["n"], inputs[name]["conversions"])
        for name in ("control", "treatment")
    ]


def wilson(inputs):
    n, x = inputs["n"], inputs["conversions"]
    interval = stats.wilson_interval(x, n, 1 - inputs["alpha"])
    return {
        "conversionRate": stats.conversion_rate(x, n),
        "ci": [interval.lower, interval.upper],
    }


def rate_cs(inputs):
    level = 1 - inputs["alpha"]
    interval = stats.always_valid_rate_interval(
        inputs["conversions"], inputs["n"], level
    )
    return {"ci": [interval.lower, interval.upper]}


def score_limits(inputs):
    critical = scipy.stats.norm.isf(inputs["alpha"] / 2)
    return stats.score_limits(table(*arm_counts(inputs)), critical)


def ends(limits, minus=0.0):
    return [
        "Infinity" if math.isnan(end[0]) else end[0] - minus
        for end in (limits.lower, limits.upper)
    ]


def score_diff(inputs):
    return {"diffCi": ends(score_limits(inputs)[0])}


def score_ratio(inputs):
    ratio = score_limits(inputs)[1]
    return {"ratioCi": ends(ratio), "liftCi": ends(ratio, 1.0)}


def z_test(inputs):
    counts = table(*arm_counts(inputs))
    return {
        "z": stats.pooled_score(counts)[0],
        "pValue": stats.fixed_horizon_p_value(counts)[0],
    }


def bayes(inputs):
    assert inputs["prior"] == [1, 1]
    arms = [(arm["conversions"], arm["n"]) for arm in inputs["arms"]]
    result = stats.posterior(arms, stats.Beta(1, 1))
    return {
        "probabilityBest": result.probability_best,
        "expectedLoss": result.expected_loss,
    }


def srm_chi2(inputs):
    result = stats.sample_ratio_mismatch(inputs["counts"], inputs["splits"])
    return {"chi2": result.chi_square, "pValue": result.chi_square_p_value}


def srm_sequential(inputs):
    counts, splits = inputs["counts"], inputs["splits"]
    return {
        "eValue": stats.mismatch_e_value(counts, splits),
        "pValue": stats.sample_ratio_mismatch(counts, splits).p_value,
    }


def holm(inputs):
    return {"adjusted": stats.holm(inputs["pValues"])}


def welch(inputs):
    control, treatment = (
        stats.sample(each["n"], each["sum"], each["sumSquares"])
        for each in (inputs["control"], inputs["treatment"])
    )
    result = stats.welch(control, treatment, 1 - inputs["alpha"])
    return {
        "diff": treatment.mean - control.mean,
        "t": result.t,
        "df": result.degrees_of_freedom,
        "pValue": result.p_value,
        "diffCi": list(result.difference_interval[:2]),
        "liftCi": [
            "Infinity" if end is None else end for end in result.lift_interval[:2]
        ],
    }


def sample_size(inputs):
    rates, alpha = (inputs["p1"], inputs["p2"]), inputs["alpha"]
    ratio = inputs.get("ratio", 1)
    if "nPerArm" in inputs and "power" in inputs:
        n = inputs["nPerArm"]
        effect = stats.minimum_detectable_effect(
            rates[0], n, alpha, inputs["power"], ratio
        )
        return {"mde": effect}
    if "nPerArm" in inputs:
        return {"power": stats.power_at(*rates, inputs["nPerArm"], alpha, ratio)}
    return {"nPerArm": stats.sample_size(*rates, alpha, inputs["power"], ratio)}


def av_exact(inputs):
    counts, null = table(*arm_counts(inputs)), inputs["hypothesis"]
    share, ratio = inputs["treatmentShare"], float(null["ratio"])
    log_e = stats.null_log_e_values(
        counts, np.array([share]), np.array([ratio]), np.array([float(null["shift"])])
    )
    if (ratio, null["shift"]) == (1, 0):
        assert log_e == pytest.approx(stats.log_e_values(counts, share), abs=1e-9)
    return {"logE": log_e[0], "pValue": stats.always_valid_p_value(log_e)[0]}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_a_reference_value_is_met_within_its_tolerance(case):
    got = globals()[case["category"]](case["inputs"])

    tolerance = case["tolerance"]
    for name, expected in case["expected"].items():
        pairs = zip(np.atleast_1d(got[name]), np.atleast_1d(expected), strict=True)
        for ours, theirs in pairs:
            if theirs == "Infinity":
                assert ours == "Infinity"
                continue
            allowed = max(
                tolerance.get("abs", 0), tolerance.get("rel", 0) * abs(float(theirs))
            )
            assert abs(float(ours) - float(theirs)) <= allowed, name


@pytest.mark.parametrize(
    ("n", "p1", "p2", "power"),
    [
        # R 4, power.prop.test(p1 = .50, p2 = .75, power = .90): n = 76.7.
        (76.7, 0.50, 0.75, 0.90),
        # Evan Miller's example with the pooled variance: 20 % to 25 %: 1,094.
        (1093.7, 0.20, 0.25, 0.80),
    ],
)
def test_size_power_and_effect_are_three_views_of_one_formula(n, p1, p2, power):
    assert stats.sample_size(p1, p2, 0.05, power) == pytest.approx(n, abs=0.05)
    assert stats.power_at(p1, p2, n) == pytest.approx(power, abs=1e-3)
    effect = stats.minimum_detectable_effect(p1, n, power=power)
    assert effect == pytest.approx(p2 - p1, abs=1e-4)


def test_probability_to_beat_agrees_with_the_exact_sum():
    # Miller (2015): the sum over i < a_B of B(a_A + i, b_A + b_B) / ((b_B + i)
    # B(1 + i, b_B) B(a_A, b_A)); in whole numbers here.
    def beta(a, b):
        return Fraction(
            math.factorial(a - 1) * math.factorial(b - 1), math.factorial(a + b - 1)
        )

    for control, treatment in [((3, 10), (6, 11)), ((0, 5), (0, 9)), ((7, 7), (6, 7))]:
        a, b = control[0] + 1, control[1] - control[0] + 1
        c, d = treatment[0] + 1, treatment[1] - treatment[0] + 1
        exact = sum(
            beta(a + i, b + d) / ((d + i) * beta(1 + i, d) * beta(a, b))
            for i in range(c)
        )

        result = stats.posterior([control, treatment], stats.Beta(1, 1))

        assert result.probability_best[1] == pytest.approx(float(exact), abs=1e-12)
        assert result.probability_to_beat_control[1] == pytest.approx(
            float(exact), abs=1e-12
        )


def test_the_prior_weighs_two_users_and_is_centred_on_the_pooled_rate():
    # (30 + 1) / (3,030 + 2) of two users.
    prior = stats.pooled_prior([(0, 30), (30, 3_000)])
    assert prior.successes == pytest.approx(2 * 31 / 3_032)
    assert sum(prior) == pytest.approx(2)
    assert stats.pooled_prior([(0, 0), (0, 0)]) == stats.Beta(1, 1)
    for counts in ([(0, 10**6)] * 2, [(10**6, 10**6)] * 2):
        assert min(stats.pooled_prior(counts)) > 0


@pytest.mark.parametrize(
    ("counts", "best"),
    [
        # 1,000,000 draws of numpy's gamma variates, as logs: standard error 0.0003.
        ([(30, 3_000), (0, 30)], [0.9819, 0.0181]),
        ([(30, 3_000), (0, 0)], [0.9272, 0.0728]),
        ([(0, 30), (0, 30), (30, 3_000)], [0.0178, 0.0179, 0.9643]),
        ([(2_970, 3_000), (30, 30)], [0.0181, 0.9819]),
        ([(5, 5), (0, 0)], [0.6531, 0.3469]),
        ([(0, 30), (0, 3_000)], [0.5018, 0.4982]),
        ([(0, 500_000), (0, 500_000)], [0.5, 0.5]),
        ([(0, 0), (0, 0)], [0.5, 0.5]),
    ],
)
def test_a_small_or_an_empty_arm_is_not_likely_to_be_the_best(counts, best):
    result = stats.posterior(counts)

    assert result.probability_best == pytest.approx(best, abs=0.0015)
    assert result.probability_to_beat_control[0] == 0.5
    if len(counts) == 2:
        beats = result.probability_to_beat_control[1]
        assert beats == pytest.approx(result.probability_best[1], abs=1e-9)


@pytest.mark.parametrize("small", [(0, 30), (1, 40), (0, 0), (3, 3)])
def test_the_posterior_is_the_integral_that_scipy_makes(small):
    counts = [(30, 3_000), small]
    a, b = stats.pooled_prior(counts)
    control, other = (
        scipy.stats.beta(a + converted, b + size - converted)
        for converted, size in counts
    )
    nodes = np.linspace(0, 0.05, 20_001)

    result = stats.posterior(counts)

    # The control's density is smooth, and the other's distribution is not.
    expected = scipy.integrate.simpson(control.pdf(nodes) * other.sf(nodes), x=nodes)
    assert result.probability_best[1] == pytest.approx(expected, abs=1e-8)
    # E[max] = E[other] + the integral of F_other (1 - F_control).
    gain = scipy.integrate.quad(
        lambda rate: other.cdf(rate) * control.sf(rate), 0, 0.05, epsabs=1e-13
    )[0]
    assert result.expected_loss[1] == pytest.approx(gain, rel=1e-6)


def test_conversions_and_their_absence_mirror_each_other():
    counts = [(30, 3_000), (0, 30), (5, 400)]
    mirrored = [(size - converted, size) for converted, size in counts]

    two = stats.posterior(counts[:2]), stats.posterior(mirrored[:2])
    there, back = (each.probability_best for each in two)

    assert there == pytest.approx(back[::-1], abs=1e-10)


def test_welch_agrees_with_scipy_on_sums_that_would_cancel():
    values = [
        [Decimal(10**9) + Decimal(k % 7) / 100 for k in range(40)],
        [Decimal(10**9) + Decimal(k % 5) / 50 for k in range(60)],
    ]
    samples = [
        stats.sample(len(v), sum(v), sum(each * each for each in v)) for v in values
    ]
    shifted = [[float(each - 10**9) for each in v] for v in values]
    expected = scipy.stats.ttest_ind(shifted[1], shifted[0], equal_var=False)

    result = stats.welch(*samples, 0.95)

    assert result.t == pytest.approx(expected.statistic, rel=1e-6)
    assert result.p_value == pytest.approx(expected.pvalue, rel=1e-6)


# ---------------------------------------------------------------------------
# Edges, symmetries, coherence


@st.composite
def counts(draw):
    n = draw(st.sampled_from([0, 1, 2, 3, 10, 50, 250, 1000, 10**5, 10**7, 10**8]))
    x = draw(
        st.one_of(
            st.integers(0, n),
            st.integers(0, min(n, 12)),
            st.integers(0, min(n, 2)).map(lambda missed: n - missed),
        )
    )
    return n, x


@st.composite
def close_counts(draw):
    """Two arms of which one may or may not beat the other."""
    n, m = draw(st.integers(1, 5000)), draw(st.integers(1, 5000))
    rate = draw(st.floats(0, 1))
    lift = draw(st.floats(0.5, 1.5))
    return (n, round(n * rate)), (m, min(m, round(m * rate * lift)))


SPLITS = [(50, 50), (90, 10), (10, 90), ("99.99", "0.01"), ("33.33", "66.67")]


@settings(max_examples=50, deadline=None)
@given(counts(), counts(), st.sampled_from(SPLITS), st.sampled_from([0.5, 0.95, 0.99]))
def test_any_counts_give_finite_figures_in_json(control, treatment, splits, level):
    result = stats.analyse(
        pair(control, treatment, splits),
        confidence_level=level,
        plan=Plan(0.1, 0.02, 0.8, 0.9),
    )

    json.dumps(result, allow_nan=False)
    for leaf in walk(result):
        assert not isinstance(leaf, np.generic)
    for variant in result.variants:
        for one in (variant.confidence_interval, variant.always_valid_interval):
            assert 0 <= one.lower <= variant.conversion_rate <= one.upper <= 1
        assert 0 <= variant.probability_best <= 1
        assert variant.expected_loss >= 0
    assert sum(v.probability_best for v in result.variants) == pytest.approx(1)


@pytest.mark.parametrize("size", [10**6, 10**8, 10**10, 10**12])
def test_values_of_any_number_of_equal_users_have_no_difference(size):
    sums = ValueSums(size, Decimal(size) * 3, Decimal(size) * 10)
    arms = [Arm(key, key, Decimal(50), size, size, sums) for key in ("v1", "v2")]

    told = stats.analyse(arms).variants[1].value.comparison.sequential

    assert told.p_value == 1
    assert told.log_e_value < 0


@settings(max_examples=40, deadline=None)
@given(close_counts(), st.sampled_from([0.8, 0.95, 0.99]))
def test_a_p_value_is_below_alpha_exactly_if_both_intervals_exclude_none(arms, level):
    result = comparison(pair(*arms), confidence_level=level)

    for block in (result.fixed_horizon, result.sequential):
        significant = block.p_value < 1 - level
        assert excludes(block.difference_interval, 0) == significant
        if arms[0][1] or arms[1][1]:
            assert excludes(block.lift_interval, 0) == significant


@settings(max_examples=40, deadline=None)
@given(close_counts(), st.sampled_from(SPLITS))
def test_always_valid_intervals_contain_the_fixed_ones(arms, splits):
    result = stats.analyse(pair(*arms, splits))

    found = result.variants[1].comparison
    for name in ("difference_interval", "lift_interval"):
        outer = getattr(found.sequential, name)
        assert contains(outer, getattr(found.fixed_horizon, name), 1e-7)
    for variant in result.variants:
        assert contains(variant.always_valid_interval, variant.confidence_interval)


@settings(max_examples=30, deadline=None)
@given(counts(), counts(), st.sampled_from([(50, 50), (90, 10)]))
def test_swapping_the_arms_turns_the_sign(control, treatment, splits):
    there = comparison(pair(control, treatment, splits))
    back = comparison(pair(treatment, control, splits[::-1]))

    def close(one, other):
        if one is None or other is None:
            return one is other
        return one == pytest.approx(other, rel=1e-6, abs=1e-9)

    for name in ("fixed_horizon", "sequential"):
        here, mirrored = getattr(there, name), getattr(back, name)
        assert close(here.p_value, mirrored.p_value)
        lower, upper = here.difference_interval[:2]
        assert close(lower, _minus(mirrored.difference_interval.upper))
        assert close(upper, _minus(mirrored.difference_interval.lower))
        assert close(here.lift_interval.upper, _inverse(mirrored.lift_interval.lower))
    assert close(there.difference, _minus(back.difference))
    assert there.probability_to_beat_control == pytest.approx(
        1 - back.probability_to_beat_control, abs=1e-8
    )


def _minus(number):
    return None if number is None else -number


def _inverse(lift):
    """The lift seen from the other arm; none where that arm has nothing."""
    return None if lift in (None, -1) else 1 / (1 + lift) - 1


@pytest.mark.parametrize("n", [0, 1, 2, 3, 10, 1000, 10**7])
def test_every_corner_of_the_table_is_finite(n):
    corners = sorted({0, 1, n // 2, n - 1, n} & set(range(n + 1)))
    grid = [
        (n, x, m, y)
        for m in (0, 1, 2, 3, 10, 1000, 10**7)
        for x in corners
        for y in sorted({0, m // 2, m})
    ]
    tables = Tables(*np.array(grid, dtype=float).T)
    empty = (tables.control_size == 0) | (tables.treatment_size == 0)

    low, high = stats.score_limits(tables, 1.96)[0]

    assert (np.isnan(low) == empty).all()
    assert (np.isnan(high) == empty).all()
    assert ((low >= -1) & (low < high) & (high <= 1))[~empty].all()


@pytest.mark.parametrize(
    ("conversions", "users"),
    [(2, 1), (-1, 3), (0, -1), (1.0, 2), (1, 2.5), (True, 2), ("1", 2)],
)
def test_impossible_counts_are_refused(conversions, users):
    with pytest.raises(ValueError, match=r"impossible|whole number"):
        stats.analyse(pair((users, conversions), (10, 1)))


@pytest.mark.parametrize("level", [0.49, 0.991, 1, float("nan")])
def test_a_confidence_level_out_of_range_is_refused(level):
    with pytest.raises(ValueError, match=r"0\.5 to 0\.99"):
        stats.analyse(SEED_ARMS, confidence_level=level)


def test_an_empty_arm_has_a_comparison_that_knows_nothing():
    found = comparison(pair((250, 45), (0, 0)))

    assert (found.difference, found.lift) == (None, None)
    for block in (found.fixed_horizon, found.sequential):
        assert block.p_value == 1
        assert block.difference_interval[:2] == block.lift_interval[:2] == (None, None)
    assert not found.sequential.is_significant


@settings(max_examples=25, deadline=None)
@given(close_counts())
def test_differences_and_lifts_are_rounded_once(arms):
    (users, converted), (others, others_converted) = arms
    rates = Fraction(converted, users), Fraction(others_converted, others)

    found = stats.analyse(pair(*arms)).variants[1].comparison

    assert found.difference == float(rates[1] - rates[0])
    assert found.lift == (float(rates[1] / rates[0] - 1) if converted else None)


def test_the_difference_of_12_and_10_percent_is_0_02():
    found = stats.analyse(pair((1_000, 100), (1_000, 120))).variants[1].comparison

    assert (found.difference, found.lift) == (0.02, 0.2)


def test_a_control_at_zero_leaves_the_lift_open_above():
    found = comparison(pair((250, 0), (250, 12)))

    assert found.lift is None
    # statistics.md, section 7: always-valid lift above +1.3 %.
    assert found.sequential.lift_interval.lower == pytest.approx(0.013, abs=5e-4)
    assert found.sequential.lift_interval.upper is None
    assert found.sequential.difference_interval.lower > 0


def test_a_treatment_at_zero_is_a_lift_of_minus_one():
    found = comparison(pair((250, 12), (250, 0)))

    assert found.lift == -1
    assert found.fixed_horizon.lift_interval.lower == -1
    assert found.sequential.lift_interval.lower == -1


def test_nobody_converting_leaves_the_difference_bounded_and_the_lift_unknown():
    found = comparison(pair((20, 0), (10, 0)))

    # Newcombe (1998), Table II, method 5: -.1611 to .2775.
    assert found.fixed_horizon.difference_interval[:2] == pytest.approx(
        (-0.1611, 0.2775), abs=5e-5
    )
    assert found.fixed_horizon.lift_interval[:2] == (None, None)
    assert found.fixed_horizon.p_value == found.sequential.p_value == 1


def test_twenty_variants_at_the_extremes_stay_finite():
    counts = [(n, x) for n in (1, 10, 10**8) for x in (0, 1, n)] * 2 + [(0, 0)]

    result = stats.analyse(many(*counts, control=(3, 1)), confidence_level=0.99)

    json.dumps(result, allow_nan=False, default=str)
    assert all(v.comparison for v in result.variants[1:])


@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_never_lowers_a_p_value_and_keeps_the_order(p_values):
    adjusted = stats.holm(p_values)

    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    pairs = sorted(zip(p_values, adjusted, strict=True))
    assert [q for _, q in pairs] == sorted(adjusted)


def test_simultaneous_intervals_say_their_own_level():
    found = comparison(many((1000, 120), (1000, 90)))

    assert found.sequential.difference_interval.level == pytest.approx(0.975)
    one = comparison(pair((1000, 100), (1000, 120)), confidence_level=0.975)
    assert found.fixed_horizon.difference_interval[:2] == pytest.approx(
        one.fixed_horizon.difference_interval[:2]
    )


def test_twenty_variants_can_still_be_significant_at_99_percent():
    arms = many(*[(5000, 500)] * 18, (5000, 900), control=(5000, 500))

    result = stats.analyse(arms, plan=Plan(0.1, 0.05, 0.8, 0.99))

    assert result.verdict.variant_id == "v20"
    assert result.verdict.status == "variant_wins"


# ---------------------------------------------------------------------------
# The verdict


def verdict(arms, **settings):
    return stats.analyse(arms, **settings).verdict


def test_a_broken_split_names_no_winner():
    result = stats.analyse(pair((10000, 1000), (11000, 2000)))

    assert result.verdict.status == "broken_split"
    assert result.verdict.variant_id is None
    assert not result.trustworthy
    assert "SRM" in [warning.code for warning in result.warnings]


def test_an_empty_arm_is_not_enough_data():
    assert verdict(pair((3, 1), (0, 0))).status == "not_enough_data"
    assert "Detailed" in verdict(pair((3, 1), (0, 0))).sentence


def test_the_better_variant_wins_and_the_worse_loses():
    wins = verdict(pair((5000, 500), (5000, 700)))
    loses = verdict(pair((5000, 700), (5000, 500)))

    assert (wins.status, wins.variant_id) == ("variant_wins", "v2")
    assert (loses.status, loses.variant_id) == ("control_wins", "v1")


def test_the_best_of_several_winners_is_named():
    arms = many((5000, 700), (5000, 800), (5000, 300), control=(5000, 500))

    assert verdict(arms).variant_id == "v3"


def test_the_control_does_not_win_while_another_variant_may():
    arms = many((5000, 300), (5000, 510), control=(5000, 500))

    assert verdict(arms).status == "keep_running"
    assert "V3" in verdict(arms).sentence


def test_no_difference_is_an_interval_inside_the_planned_effect():
    arms = pair((40000, 4000), (40000, 4010))

    assert verdict(arms, plan=Plan(0.1, 0.02)).status == "no_difference"
    assert verdict(arms).status == "keep_running"


def test_twice_the_planned_users_without_a_conclusion_are_inconclusive():
    # R: power.prop.test(p1 = .10, p2 = .12, power = .80): n = 3841 in each group.
    plan = Plan(0.1, 0.02)

    assert verdict(pair((7600, 760), (7600, 850)), plan=plan).status == "keep_running"
    assert verdict(pair((7690, 769), (7690, 870)), plan=plan).status == "inconclusive"


def test_a_difference_that_one_look_would_find_is_never_called_none():
    arms, plan = pair((8000, 800), (8000, 920)), Plan(0.1, 0.02)

    result = stats.analyse(arms, plan=plan)

    found = result.variants[1].comparison
    # scipy 1.17.1: chi2_contingency([[800, 7200], [920, 7080]], correction=False).
    assert found.fixed_horizon.p_value == pytest.approx(0.002193061604)
    assert found.sequential.difference_interval.upper > 0.02
    assert result.verdict.status == "inconclusive"
    assert result.verdict.variant_id is None
    assert "Detailed converts 11.5 % of 8,000 users" in result.verdict.sentence
    assert "16,000 users where 7,682 were planned" in result.verdict.sentence
    assert "neither shown nor ruled out" in result.verdict.sentence


@settings(max_examples=60, deadline=None)
@given(st.integers(100, 40_000), st.floats(0.05, 0.5), st.floats(0.7, 1.4))
def test_no_difference_is_said_only_inside_the_planned_effect(users, rate, ratio):
    arms = pair((users, round(users * rate)), (users, round(users * rate * ratio)))

    result = stats.analyse(arms, plan=Plan(0.1, 0.02))

    interval = result.variants[1].comparison.sequential.difference_interval
    inside = interval.lower > -0.02 and interval.upper < 0.02
    if result.verdict.status == "no_difference":
        assert inside
    if result.verdict.status == "inconclusive":
        assert not inside


def test_one_open_variant_of_several_leaves_the_whole_inconclusive():
    # The second variant lies inside the planned effect, the third does not.
    arms = many((40_000, 4_010), (40_000, 4_200), control=(40_000, 4_000))

    found = verdict(arms, plan=Plan(0.1, 0.012))

    assert found.status == "inconclusive"
    assert "V3" in found.sentence


def test_the_verdict_uses_the_level_of_the_plan_and_not_the_one_shown():
    arms = pair((5000, 500), (5000, 600))
    p_value = comparison(arms).sequential.p_value
    assert 0.01 < p_value < 0.05

    for shown in (0.5, 0.99):
        assert verdict(arms, confidence_level=shown).status == "variant_wins"
    strict = Plan(0.1, 0.02, 0.8, 0.99)
    assert verdict(arms, plan=strict, confidence_level=0.5).status == "keep_running"


def codes(arms, **settings):
    return {warning.code for warning in stats.analyse(arms, **settings).warnings}


def test_warnings_say_what_to_know_first():
    assert codes(SEED_ARMS) == set()
    assert codes(pair((0, 0), (0, 0))) == {"NO_DATA", "SMALL_SAMPLE"}
    assert codes(pair((250, 0), (250, 12))) == {"ZERO_CONTROL_CONVERSIONS"}
    assert codes(pair((20, 3), (20, 4))) == {"SMALL_SAMPLE"}
    assert codes(pair((5000, 500), (5400, 500))) == {"SRM_SUSPECTED"}
    assert codes(SEED_ARMS, plan=Plan(0.5, 0.1)) == {"NOT_TO_PLAN"}
    assert codes(SEED_ARMS, plan=Plan(0.2, 0.1)) == set()


@pytest.mark.parametrize(
    "plan", [Plan(0, 0.1), Plan(0.5, 0.5), Plan(0.5, 0), Plan(0.5, 0.1, 1)]
)
def test_a_plan_that_cannot_be_is_refused(plan):
    with pytest.raises(ValueError, match="between 0 and 1"):
        stats.analyse(SEED_ARMS, plan=plan)


def test_a_plan_gives_the_bets_their_centre():
    result = stats.analyse(SEED_ARMS, plan=Plan(Decimal("0.1"), Decimal("0.02")))

    # The odds of 12 % are 0.136363..., of 10 % 0.111111...
    assert result.analysis.centre == pytest.approx(math.log(0.12 / 0.88 * 9))


def test_the_input_hash_can_be_made_again_from_its_description():
    arms = [
        Arm("v1", "Zoë", Decimal("33.30"), 4, 1, ValueSums(1, Decimal("2.50"), 6.25)),
        Arm("v2", "B", Decimal("66.7"), 5, 0, ValueSums(0, 0, 0)),
    ]
    text = (
        '{"arms":[{"conversions":1,"sampleSize":4,"splitPercentage":"33.3",'
        '"value":{"count":1,"sum":"2.5","sumSquares":"6.25"},"variantId":"v1",'
        '"variantName":"Zoë"},{"conversions":0,"sampleSize":5,'
        '"splitPercentage":"66.7","value":{"count":0,"sum":"0","sumSquares":"0"},'
        '"variantId":"v2","variantName":"B"}],"confidenceLevel":"0.95",'
        '"metric":"revenue","plan":null}'
    )

    result = stats.analyse(arms, metric="revenue", computed_at="2025-02-01T00:00:00Z")

    assert result.analysis.input_hash == hashlib.sha256(text.encode()).hexdigest()
    assert result.analysis.computed_at == "2025-02-01T00:00:00Z"


# ---------------------------------------------------------------------------
# Numbers in sentences


@pytest.mark.parametrize(
    ("shares", "printed"),
    [
        # 50,095 / 50,119 = 0.99952114..., 49,880 / 49,881 = 0.99997995...
        ((50_095 / 50_119, 49_880 / 49_881), ["99.9521 %", "99.998 %"]),
        ((24 / 50_119, 1 / 49_881), ["0.0479 %", "0.002 %"]),
        ((1 / 29_870, 0), ["0.00335 %", "0 %"]),
        ((0.2, 0.2001), ["20 %", "20.01 %"]),
        ((0.268, 0.18), ["26.8 %", "18 %"]),
        ((1, 0), ["100 %", "0 %"]),
    ],
)
def test_a_sentence_prints_two_rates_with_digits_enough_to_differ(shares, printed):
    assert stats.percentages(shares) == printed


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=5))
def test_different_rates_never_look_alike_and_none_looks_like_an_end(counts):
    shares = [count / 10**6 for count in counts]

    printed = stats.percentages(shares)

    assert len(set(printed)) == len(set(counts))
    for share, text in zip(shares, printed, strict=True):
        assert (text in ("0 %", "100 %")) == (share in (0, 1))
        decimals = len(text.removesuffix(" %").partition(".")[2])
        assert decimals <= stats.percent_decimals(shares)


def test_a_significant_difference_near_100_percent_shows_in_the_verdict():
    found = verdict(pair((50_119, 50_095), (49_881, 49_880)))

    assert found.status == "variant_wins"
    assert "Detailed converts 99.998 % of 49,881 users" in found.sentence
    assert "Control 99.9521 % of 50,119" in found.sentence


def test_mean_values_are_printed_without_an_exponent():
    assert stats.amounts([12_345_678.9, 12_345_679.9]) == [
        "12,345,678.9",
        "12,345,679.9",
    ]
    assert stats.amounts([0.00001, 0]) == ["0.00001", "0"]
    assert stats.amounts([3, 1]) == ["3", "1"]
    assert stats.amounts([-0.0]) == ["0"]


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


def spent(*arms):
    """Arms of (users, buyers, sum, squares), evenly split."""
    split = Decimal(100) / len(arms)
    return [
        Arm(f"v{i}", f"V{i}", split, users, buyers, ValueSums(buyers, total, squares))
        for i, (users, buyers, total, squares) in enumerate(arms, 1)
    ]


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
    always = stats.always_valid_means(control, treatment, 0.95)

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
    assert stats.mean_interval(one, 0.95)[:2] == (None, None)
    assert stats.always_valid_mean_interval(nobody, 0, 0.95)[:2] == (None, None)
    assert stats.always_valid_means(one, nobody, 0.95).p_value is None
    with pytest.raises(ValueError, match="Nobody"):
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
    found = stats.always_valid_means(control, treatment, 0.95)
    lower, upper = found.difference_interval[:2]
    half = (upper - lower) / 2

    k_squared = half**2 * 999 / ((1 / 900 + 1 / 100) * 22_375 + half**2)

    # Student's t with 998 degrees of freedom and a normal quantile, both from scipy,
    # carry k to the scale of the bets; their information is n_c n_t / N * (m / s)^2.
    z = -scipy.stats.norm.ppf(scipy.stats.t.sf(math.sqrt(k_squared), 998))
    variance = (22_375 + (750 / 900) ** 2 * 90) / 999
    log_e = stats.normal_log_e_value(z, 90 * 0.75**2 / variance)
    assert log_e == pytest.approx(math.log(20), abs=1e-6)
    assert (lower + upper) / 2 == pytest.approx(-750 / 900)


@pytest.mark.parametrize(("values", "shown"), [(299, False), (300, True)])
def test_one_arms_value_interval_for_any_look_needs_300_values(values, shown):
    sums = ValueSums(values, values * 10, values * 150)
    arms = [Arm(key, key, Decimal(50), 5_000, values, sums) for key in ("v1", "v2")]

    for variant in stats.analyse(arms).variants:
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


# ---------------------------------------------------------------------------
# The guarantee: exact, then by simulation


def significant(counts, share=0.5, alpha=0.05):
    log_e = stats.log_e_values(counts, share)
    return stats.always_valid_p_value(log_e) < alpha


def chance_of_ever_rejecting(share, rates, users):
    """The exact chance that some look, one after every user, is significant.

    Dynamic programming over (treated, control conversions, treatment conversions),
    for the always-valid test and for the z-test, at each rate.
    """
    size = users + 1
    chances = np.zeros((2, len(rates), size, size, size))
    chances[:, :, 0, 0, 0] = 1
    lost = np.zeros((2, len(rates)))
    rate = np.array(rates)[None, :, None, None, None]
    for n in range(1, users + 1):
        moved = np.zeros_like(chances)
        stay, go = chances * (1 - share), chances * share
        moved += stay * (1 - rate)
        moved[..., :, 1:, :] += (stay * rate)[..., :, :-1, :]
        moved[..., 1:, :, :] += (go * (1 - rate))[..., :-1, :, :]
        moved[..., 1:, :, 1:] += (go * rate)[..., :-1, :, :-1]
        chances = moved
        treated, x_c, x_t = np.nonzero(chances.max(axis=(0, 1)) > 0)
        possible = (x_c <= n - treated) & (x_t <= treated)
        treated, x_c, x_t = treated[possible], x_c[possible], x_t[possible]
        found = Tables(
            *(each.astype(float) for each in (n - treated, x_c, treated, x_t))
        )
        tests = significant(found, share), stats.fixed_horizon_p_value(found) < 0.05
        for kind, rejects in enumerate(tests):
            at = treated[rejects], x_c[rejects], x_t[rejects]
            lost[kind] += chances[kind][:, at[0], at[1], at[2]].sum(axis=-1)
            chances[kind][:, at[0], at[1], at[2]] = 0
    return lost


@pytest.mark.parametrize(("share", "users"), [(0.5, 50), (0.2, 30)])
def test_a_look_after_every_user_almost_never_rejects_a_true_null(share, users):
    lost = chance_of_ever_rejecting(share, [0.02, 0.2, 0.5, 0.8], users)

    # statistics.md, section 4: at most 0.00002, against 0.25 to 0.32.
    assert lost[0].max() <= 0.0001
    assert lost[1].max() > 0.15


def test_no_bet_can_be_expected_to_win_under_the_null():
    sizes, log_weights = evidence.bets(0.2)
    assert np.exp(log_weights).sum() == pytest.approx(1)
    pooled = np.sin((np.arange(48) + 0.5) / 48 * np.pi / 2)[:, None] ** 2
    worst = -1.0
    for share in (0.5, 0.1, 0.9):
        for ratio, shift in [(1, 0), (1, 0.1), (1, -0.3), (1.2, 0), (0.5, 0), (3, 0)]:
            rates = evidence.alternatives(pooled, np.asarray(share), np.exp(sizes))
            null = [np.asarray(float(each)) for each in (share, ratio, shift)]
            s = stats.project(*rates, *null)
            t = ratio * s + shift
            low, high = max(0, -shift / ratio), min(1, (1 - shift) / ratio)
            for true in np.linspace(low, high, 51):
                treated = ratio * true + shift
                expected = (1 - share) * (
                    true * rates[0] / s + (1 - true) * (1 - rates[0]) / (1 - s)
                ) + share * (
                    treated * rates[1] / t + (1 - treated) * (1 - rates[1]) / (1 - t)
                )
                worst = max(worst, float(expected.max()) - 1)

    # statistics.md, section 4: 5e-10 over all bets and 21 null lines.
    assert worst < 1e-8


@pytest.mark.parametrize(
    ("control", "treatment"),
    [
        ((250, 45), (250, 67)),
        ((10, 3), (10, 8)),
        ((3, 0), (4, 1)),
        ((1, 1), (1, 0)),
        ((900, 30), (100, 9)),
        ((20000, 40), (20000, 55)),
        ((400, 396), (400, 380)),
    ],
)
def test_the_accepted_differences_and_lifts_are_an_interval(control, treatment):
    counts, threshold = table(control, treatment), -math.log(0.05 - 1e-4)
    share = np.array([treatment[0] / (control[0] + treatment[0])])
    found = stats.always_valid_limits(counts, share, 0.05)
    differences = np.linspace(-0.999, 0.999, 251)
    ratios = np.exp(np.linspace(-6, 6, 251))

    for kind, points in enumerate((differences, ratios)):
        ones, zeros = np.ones(len(points)), np.zeros(len(points))
        log_e = stats.null_log_e_values(
            counts.rows(np.zeros(len(points), int)),
            share * ones,
            points if kind else ones,
            zeros if kind else points,
        )
        accepted = np.flatnonzero(log_e < threshold)
        low, high = (end[0] for end in found[kind])
        inside = (points > low if not math.isnan(low) else ones > 0) & (
            points < high if not math.isnan(high) else ones > 0
        )

        assert (np.diff(accepted) == 1).all()
        assert (np.flatnonzero(inside) == accepted).all()


def looks_of(draw, rates, users, looks, runs, share=0.5):
    """Cumulative tables of many runs, (runs, looks) each column, by seeded chance."""
    ends = np.linspace(0, users, looks + 1).round().astype(int)
    fresh = np.diff(ends)
    treated = draw.binomial(fresh, share, (runs, looks))
    x_t = draw.binomial(treated, rates[1])
    x_c = draw.binomial(fresh - treated, rates[0])
    columns = (fresh - treated, x_c, treated, x_t)
    return Tables(*(each.cumsum(axis=1).astype(float) for each in columns))


def ever(tables, share):
    """The shares of runs with a significant look: always-valid, and z-test."""
    runs, looks = tables.control_size.shape
    flat = Tables(*(column.ravel() for column in tables))
    ours = significant(flat, share).reshape(runs, looks)
    naive = (stats.fixed_horizon_p_value(flat) < 0.05).reshape(runs, looks)
    return ours.any(axis=1).mean(), naive.any(axis=1).mean(), naive[:, -1].mean()


@pytest.mark.parametrize(
    ("rate", "share"), [(0.1, 0.5), (0.002, 0.5), (0.01, 0.5), (0.5, 0.5), (0.05, 0.1)]
)
def test_fifty_looks_at_no_effect_raise_few_false_alarms(rate, share):
    draw = np.random.default_rng(20250201)

    tables = looks_of(draw, (rate, rate), 20_000, 50, 2000, share)
    ours, naive, single = ever(tables, share)

    # statistics.md, section 8: 0.4 to 1.9 % at every look; z-test 26.9 to 33.7 %.
    assert ours <= 0.03
    assert naive > 0.2
    assert single < 0.065


def test_looking_after_every_percent_of_the_traffic_fools_only_the_z_test():
    result = stats.simulate(
        participants=10_000, baseline_rate=0.1, effect=0.02, looks=100, runs=400, seed=1
    )

    assert result.false_alarms.value <= 0.05
    assert result.naive_false_alarms.value > 0.2
    assert result.single_look_false_alarms.value < 0.09
    assert result.power.value > 0.5
    assert result.mean_stop < 10_000
    assert sum(result.achieved_split) == pytest.approx(1)


def test_a_simulation_deals_with_the_hash_it_is_given_and_keeps_its_budget():
    def assign(salt, user):
        digest = hashlib.sha256(f"{salt}:{user}".encode()).hexdigest()
        return int(int(digest[:13], 16) * 10_000 // 16**13 >= 7_000)

    size = {"participants": 1000, "baseline_rate": 0.2, "effect": 0.1, "looks": 10}
    first, again = (
        stats.simulate(**size, splits=(70, 30), assign=assign, budget=22_100)
        for _ in range(2)
    )

    assert first == again
    assert (first.runs, first.evaluations) == (20, 20_000)
    assert first.achieved_split[0] == pytest.approx(0.7, abs=0.02)
    with pytest.raises(ValueError, match="budget"):
        stats.simulate(**size, budget=10)


def test_the_simulated_decision_is_the_one_that_analyse_makes():
    draw = np.random.default_rng(5)
    tables = looks_of(draw, (0.1, 0.13), 6_000, 6, 5)
    flat = Tables(*(column.ravel() for column in tables))
    expected = significant(flat)

    for place in range(len(expected)):
        n, x, m, y = (int(column[place]) for column in flat)
        found = comparison(pair((n, x), (m, y)))
        assert found.sequential.is_significant == expected[place]
    assert 0 < expected.sum() < len(expected)


def test_always_valid_intervals_cover_the_truth_at_every_look():
    draw, rates, runs, looks = np.random.default_rng(3), (0.1, 0.13), 200, 15
    tables = looks_of(draw, rates, 8_000, looks, runs)
    flat = Tables(*(column.ravel() for column in tables))
    ones, zeros = np.ones(runs * looks), np.zeros(runs * looks)
    threshold = -math.log(0.05 - 1e-4)
    nulls = [(ones, ones * (rates[1] - rates[0])), (ones * rates[1] / rates[0], zeros)]

    for ratio, shift in nulls:
        log_e = stats.null_log_e_values(flat, ones * 0.5, ratio, shift)
        covered = (log_e < threshold).reshape(runs, looks).all(axis=1)

        # statistics.md, section 8: 97.7 to 99.4 %.
        assert covered.mean() >= 0.95


def test_the_planned_sizes_have_the_planned_power():
    rates, runs = (0.1, 0.12), 1500
    plan = stats.plan_sample_size(0.1, 0.02, users_per_day=1000)
    draw = np.random.default_rng(4)
    # R: power.prop.test(p1 = .10, p2 = .12, power = .80): n = 3841 in each group.
    assert plan.fixed_horizon.users_per_variant == [3841, 3841]
    assert (plan.fixed_horizon.days, plan.fixed_horizon.total) == (8, 7682)
    assert 1.5 < plan.always_valid.total / plan.fixed_horizon.total < 2.2
    _, _, single = ever(looks_of(draw, rates, 7682, 20, runs), 0.5)
    assert single == pytest.approx(0.8, abs=0.04)

    centre = stats.planned_centre(Plan(0.1, 0.02))
    for total, least in ((plan.always_valid.total, 0.78), (7682, 0.40)):
        tables = looks_of(draw, rates, total, 20, runs)
        flat = Tables(*(column.ravel() for column in tables))
        p_values = stats.always_valid_p_value(stats.log_e_values(flat, 0.5, centre))
        assert (p_values < 0.05).reshape(runs, 20).any(axis=1).mean() >= least


def test_relative_and_absolute_plans_are_one():
    absolute = stats.plan_sample_size(0.1, 0.02, splits=(33.33, 33.33, 33.34))
    relative = stats.plan_sample_size(
        0.1, relative_effect=0.2, splits=(33.33, 33.33, 33.34)
    )

    for one, other in zip(absolute[2:], relative[2:], strict=True):
        assert one.total == pytest.approx(other.total, abs=3)
    assert absolute.fixed_horizon.total > 1.5 * 7682
    with pytest.raises(ValueError, match="either"):
        stats.plan_sample_size(0.1)


def test_skewed_revenue_raises_few_false_alarms_at_any_look():
    draw, runs, looks, step = np.random.default_rng(6), 100, 20, 400
    alarms = np.zeros((runs, 2), bool)
    for run in range(runs):
        spent = draw.gamma(0.5, 60, (2, looks * step))
        spent *= draw.random((2, looks * step)) < 0.05
        sums = np.cumsum(spent, axis=1)[:, step - 1 :: step]
        squares = np.cumsum(spent**2, axis=1)[:, step - 1 :: step]
        for look in range(looks):
            samples = [
                stats.sample((look + 1) * step, sums[arm, look], squares[arm, look])
                for arm in range(2)
            ]
            found = (
                stats.always_valid_means(*samples, 0.95),
                stats.welch(*samples, 0.95),
            )
            alarms[run] |= [each.p_value < 0.05 for each in found]

    # statistics.md, section 8: 0.7 % against 29.7 % for the peeked Welch test.
    assert alarms[:, 0].mean() <= 0.05
    assert alarms[:, 1].mean() > 0.15


@pytest.mark.parametrize("split", bench.SHARES)
@pytest.mark.parametrize("kind", bench.VALUES)
def test_values_raise_few_false_alarms_at_any_split_and_look(kind, split):
    draw, looks = np.random.default_rng(8), np.geomspace(20, 3_000, 12).astype(int)

    found = [
        bench.alarms(draw, bench.VALUES[kind], bench.SHARES[split], looks=looks)
        for _ in range(40)
    ]

    # At most 5 %. `bench/values.py` measures it with 4,000 runs a cell.
    assert sum(ours for ours, _ in found) <= 2


def test_looking_often_at_a_sound_split_raises_no_alarm():
    draw = np.random.default_rng(7)
    alarms = {"sound": 0, "broken": 0}
    for _ in range(100):
        for name, share in (("sound", 0.5), ("broken", 0.54)):
            treated = np.cumsum(draw.binomial(200, share, 50))
            alarms[name] += any(
                stats.sample_ratio_mismatch([200 * (i + 1) - t, t], (50, 50)).detected
                for i, t in enumerate(treated.tolist())
            )

    assert alarms["sound"] <= 1
    assert alarms["broken"] >= 90


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stats.analyse(SEED_ARMS[:1]), "two variants"),
        (lambda: stats.sample_ratio_mismatch([1, 2], (0, 100)), "above 0"),
        (lambda: stats.plan_sample_size(0.1, 0.02, users_per_day=0), "above 0"),
        (lambda: _simulated(looks=200), "looks"),
        (lambda: _simulated(effect=0.95), "between 0 and 1"),
    ],
)
def test_what_cannot_be_is_refused_with_the_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def _simulated(effect=0.1, looks=10):
    return stats.simulate(
        participants=100, baseline_rate=0.1, effect=effect, looks=looks, runs=1
    )


def test_an_effect_that_too_few_users_can_never_show_is_unknown():
    assert stats.minimum_detectable_effect(0.5, 3) is None


# ---------------------------------------------------------------------------
# What it costs, and what the manual says


def test_importing_costs_neither_numpy_nor_scipy():
    code = (
        "import sys, stats; assert not {'numpy', 'scipy'} & set(sys.modules);"
        "stats.posterior([(1, 2), (1, 2)]);"
        "assert 'scipy.special' in sys.modules;"
        "assert not {'scipy.stats', 'scipy.optimize'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=HERE.parent)


def manual_figures():
    """Each row of the manual's table of checked figures: path and printed text."""
    text = (HERE.parent / "docs" / "statistics.md").read_text(encoding="utf-8")
    block = text.split("<!-- checked -->")[1]
    rows = [line.strip("|").split("|") for line in block.splitlines() if "`" in line]
    return [(row[-2].strip().strip("`"), row[-1].strip()) for row in rows]


@pytest.mark.parametrize(("path", "printed"), manual_figures())
def test_the_manual_prints_the_figures_of_the_worked_example(path, printed):
    value = stats.analyse(SEED_ARMS)
    for step in path.split("."):
        value = value[int(step)] if step.isdigit() else getattr(value, step)

    digits = len(printed.partition(".")[2])
    assert f"{value:.{digits}f}" == printed if digits else str(value) == printed


def test_the_manual_quotes_the_verdict():
    text = (HERE.parent / "docs" / "statistics.md").read_text(encoding="utf-8")

    assert stats.analyse(SEED_ARMS).verdict.sentence in text
