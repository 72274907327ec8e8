"""What the statistics promise: reference values, properties, guarantees.

Expected numbers come from publications and independent libraries (see `source` in
`cases/reference_cases.json`), from exact enumeration, or from a symmetry; never
from our own output.
"""

import json
import math
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
from stats import Arm, Plan, Tables, ValueSums, planning
from stats.posterior import Beta

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
    interval = stats.rates.wilson_interval(x, n, 1 - inputs["alpha"])
    return {
        "conversionRate": stats.rates.conversion_rate(x, n),
        "ci": [interval.lower, interval.upper],
    }


def rate_cs(inputs):
    level = 1 - inputs["alpha"]
    interval = stats.rates.always_valid_rate_interval(
        inputs["conversions"], inputs["n"], level
    )
    return {"ci": [interval.lower, interval.upper]}


def score_limits(inputs):
    critical = scipy.stats.norm.isf(inputs["alpha"] / 2)
    return stats.contrasts.score_limits(table(*arm_counts(inputs)), critical)


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
        "z": stats.contrasts.pooled_score(counts)[0],
        "pValue": stats.fixed_horizon_p_value(counts)[0],
    }


def bayes(inputs):
    assert inputs["prior"] == [1, 1]
    arms = [(arm["conversions"], arm["n"]) for arm in inputs["arms"]]
    result = stats.posterior.posterior(arms, Beta(1, 1))
    return {
        "probabilityBest": result.probability_best,
        "expectedLoss": result.expected_loss,
    }


def srm_chi2(inputs):
    result = stats.splits.sample_ratio_mismatch(inputs["counts"], inputs["splits"])
    return {"chi2": result.chi_square, "pValue": result.chi_square_p_value}


def srm_sequential(inputs):
    counts, splits = inputs["counts"], inputs["splits"]
    return {
        "eValue": stats.splits.mismatch_e_value(counts, splits),
        "pValue": stats.splits.sample_ratio_mismatch(counts, splits).p_value,
    }


def holm(inputs):
    return {"adjusted": stats.multiplicity.holm(inputs["pValues"])}


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
        effect = planning.minimum_detectable_effect(
            rates[0], n, alpha, inputs["power"], ratio
        )
        return {"mde": effect}
    if "nPerArm" in inputs:
        return {"power": planning.power_at(*rates, inputs["nPerArm"], alpha, ratio)}
    return {"nPerArm": planning.sample_size(*rates, alpha, inputs["power"], ratio)}


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
    assert planning.sample_size(p1, p2, 0.05, power) == pytest.approx(n, abs=0.05)
    assert planning.power_at(p1, p2, n) == pytest.approx(power, abs=1e-3)
    effect = planning.minimum_detectable_effect(p1, n, power=power)
    assert effect == pytest.approx(p2 - p1, abs=1e-4)


def test_where_less_is_better_the_lowest_rate_is_the_best():
    left = many((240, 20), (260, 90), control=(250, 45))
    stayed = many((240, 220), (260, 170), control=(250, 205))

    fall = stats.MetricSettings("left", "primary", "decrease")
    falling = stats.analyse(left, metric=fall).variants
    rising = stats.analyse(stayed, metric="stayed").variants

    assert falling[1].probability_best > 0.99
    assert falling[1].comparison.probability_to_beat_control > 0.99
    assert falling[2].comparison.probability_to_beat_control < 0.01
    for one, other in zip(falling, rising, strict=True):
        assert one.probability_best == pytest.approx(other.probability_best)
        assert one.expected_loss == pytest.approx(other.expected_loss)


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

        result = stats.posterior.posterior([control, treatment], Beta(1, 1))

        assert result.probability_best[1] == pytest.approx(float(exact), abs=1e-12)
        assert result.probability_to_beat_control[1] == pytest.approx(
            float(exact), abs=1e-12
        )


def test_the_prior_weighs_two_users_and_is_centred_on_the_pooled_rate():
    # (30 + 1) / (3,030 + 2) of two users.
    prior = stats.posterior.pooled_prior([(0, 30), (30, 3_000)])
    assert prior.successes == pytest.approx(2 * 31 / 3_032)
    assert sum(prior) == pytest.approx(2)
    assert stats.posterior.pooled_prior([(0, 0), (0, 0)]) == Beta(1, 1)
    for counts in ([(0, 10**6)] * 2, [(10**6, 10**6)] * 2):
        assert min(stats.posterior.pooled_prior(counts)) > 0


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
    result = stats.posterior.posterior(counts)

    assert result.probability_best == pytest.approx(best, abs=0.0015)
    assert result.probability_to_beat_control[0] == 0.5
    if len(counts) == 2:
        beats = result.probability_to_beat_control[1]
        assert beats == pytest.approx(result.probability_best[1], abs=1e-9)


@pytest.mark.parametrize("small", [(0, 30), (1, 40), (0, 0), (3, 3)])
def test_the_posterior_is_the_integral_that_scipy_makes(small):
    counts = [(30, 3_000), small]
    a, b = stats.posterior.pooled_prior(counts)
    control, other = (
        scipy.stats.beta(a + converted, b + size - converted)
        for converted, size in counts
    )
    nodes = np.linspace(0, 0.05, 20_001)

    result = stats.posterior.posterior(counts)

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

    two = stats.posterior.posterior(counts[:2]), stats.posterior.posterior(mirrored[:2])
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

    low, high = stats.contrasts.score_limits(tables, 1.96)[0]

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


def test_without_conversions_the_difference_is_bounded_and_no_lift():
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
    adjusted = stats.multiplicity.holm(p_values)

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


def spent(*arms):
    """Arms of (users, buyers, sum, squares), evenly split."""
    split = Decimal(100) / len(arms)
    return [
        Arm(f"v{i}", f"V{i}", split, users, buyers, ValueSums(buyers, total, squares))
        for i, (users, buyers, total, squares) in enumerate(arms, 1)
    ]


# ---------------------------------------------------------------------------
# The guarantee: exact, then by simulation


def significant(counts, share=0.5, alpha=0.05):
    log_e = stats.log_e_values(counts, share)
    return stats.always_valid_p_value(log_e) < alpha
