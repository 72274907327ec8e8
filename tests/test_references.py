"""The second set of reference cases: CUPED, ratios, caps, non-inferiority, boundaries.

`cases/reference_cases_2.json` names the source of each expected number. Its regressions
are tried by `test_values.py`.
"""

import json
import re
from collections import Counter
from decimal import Decimal

import numpy as np
import pytest
import scipy.stats
from test_stats import HERE, pair
from test_stats import REGRESSIONS as OURS

import stats
from stats import (
    MEAN,
    RATIO,
    Arm,
    CovariateSums,
    EventSums,
    MetricSettings,
    Tables,
    ValueSums,
    horizon,
)
from stats.means import always_valid_means
from stats.samples import samples

STORED = json.loads((HERE / "cases" / "reference_cases_2.json").read_text())
CASES, REGRESSIONS = STORED["cases"], STORED["regressions"]
REAL = json.loads((HERE / "cases" / "real_data.json").read_text())
TRIED = (
    *("cuped", "ratio_delta", "winsorized_mean"),
    *("non_inferiority_rate", "planned_horizon"),
)


def cases_of(category):
    found = [case for case in CASES if case["category"] == category]
    return pytest.mark.parametrize("case", found, ids=lambda case: case["id"])


def arms_of(case, letter="y", has_covariate=True):
    """The two arms of a case; the totals of its users have this letter."""
    return [
        Arm(
            f"v{place}",
            f"V{place}",
            Decimal(50),
            one["n"],
            0,
            ValueSums(
                one["n"],
                Decimal(one[f"sum_{letter}"]),
                Decimal(one[f"sum_{letter * 2}"]),
            ),
            events=events_of(one) if "sum_b" in one else None,
            covariate=covariate_of(one) if has_covariate and "sum_x" in one else None,
        )
        for place, one in enumerate(case["input"]["arms"], 1)
    ]


def events_of(one):
    sums = (int(Decimal(one[name])) for name in ("sum_b", "sum_bb"))
    return EventSums(*sums, Decimal(one["sum_ab"]))


def covariate_of(one):
    sums = (Decimal(one[name]) for name in ("sum_x", "sum_xx", "sum_yx"))
    return CovariateSums(one["n"], *sums)


def assert_equal_to_tea_tasting(arms, kind, expected, tolerance):
    """Compare means and Welch's test with the figures of `tea_tasting`."""
    found = samples(arms, MetricSettings("spent", kind=kind)).arms
    welch = stats.welch(*found, 0.95)
    ours = {
        "control": found[0].mean,
        "treatment": found[1].mean,
        "effect_size": stats.means.difference(*found),
        "effect_size_ci_lower": welch.difference_interval.lower,
        "effect_size_ci_upper": welch.difference_interval.upper,
        "rel_effect_size": stats.means.lift(*found),
        "pvalue": welch.p_value,
        "statistic": welch.t,
    }
    # Its interval for the lift is made of logarithms, and Fieller's is exact for normal
    # means: they differ by little.
    ends = [expected.pop(f"rel_effect_size_ci_{end}") for end in ("lower", "upper")]
    near = pytest.approx(ends, abs=0.02 * (ends[1] - ends[0]))
    assert list(welch.lift_interval[:2]) == near
    assert ours == pytest.approx(expected, rel=tolerance, abs=tolerance)


def test_every_open_case_is_tried():
    assert Counter(case["category"] for case in CASES) == dict.fromkeys(TRIED, 3)
    # The regressions stand in a file of their own, with how far rounding moves one.
    theirs, ours = (
        [(one["id"], one["input"], one["reference_p_least_of_both"]) for one in some]
        for some in (REGRESSIONS, OURS["cases"])
    )
    assert theirs == ours
    assert len(ours) == 16


@cases_of("cuped")
def test_adjusted_means_are_those_of_tea_tasting(case):
    arms = arms_of(case)

    assert_equal_to_tea_tasting(arms, MEAN, dict(case["expected"]), case["tolerance"])


@cases_of("cuped")
def test_means_without_a_covariate_are_those_of_tea_tasting(case):
    arms = arms_of(case, has_covariate=False)

    assert_equal_to_tea_tasting(
        arms, MEAN, dict(case["expected_plain"]), case["tolerance"]
    )


@cases_of("cuped")
def test_adjusted_means_are_near_those_of_a_regression(case):
    # Lin (2013): another slope in each arm. The same for large samples.
    regression = case["lin_2013_ols_hc2"]

    found = samples(arms_of(case), MetricSettings("spent", kind=MEAN)).arms

    apart = stats.means.difference(*found) - regression["effect"]
    assert abs(apart) < 0.05 * regression["se"]


@cases_of("ratio_delta")
def test_ratios_are_those_of_tea_tasting(case):
    arms = arms_of(case, "a")

    assert_equal_to_tea_tasting(arms, RATIO, dict(case["expected"]), case["tolerance"])


@cases_of("winsorized_mean")
def test_capped_means_are_those_of_scipy(case):
    expected, tolerance = case["expected"], case["tolerance"]

    # The sums of the case are those of the capped totals.
    found = samples(arms_of(case), MetricSettings("spent", kind=MEAN)).arms
    welch = stats.welch(*found, 0.95)

    assert [one.mean for one in found] == pytest.approx(
        expected["means"], abs=tolerance
    )
    assert welch.p_value == pytest.approx(expected["p_value"], abs=tolerance)
    assert list(welch.difference_interval[:2]) == pytest.approx(
        expected["difference_interval"], abs=tolerance
    )


@cases_of("non_inferiority_rate")
def test_a_shifted_null_has_the_score_of_farrington_and_manning(case):
    (n_c, n_t), (x_c, x_t) = case["input"]["n"], case["input"]["x"]
    tables = Tables(*(np.array([float(each)]) for each in (n_c, x_c, n_t, x_t)))

    z = float(stats.score(tables, np.ones(1), np.array([-case["input"]["margin"]]))[0])

    expected = case["expected"]
    assert z == pytest.approx(expected["z"], abs=case["tolerance"])
    assert scipy.stats.norm.sf(z) == pytest.approx(
        expected["p_one_sided"], abs=case["tolerance"]
    )


@cases_of("planned_horizon")
def test_the_boundary_is_that_of_a_brownian_motion(case):
    c = horizon.boundary(case["input"]["alpha"])

    assert c == pytest.approx(case["expected"]["c"], abs=case["tolerance"])


# ----------------------------------------------------------------------------
# Real experiments
# ----------------------------------------------------------------------------


@pytest.mark.parametrize("case", REAL["rates"], ids=lambda case: case["id"])
def test_rates_of_real_experiments_are_those_of_spotify_confidence(case):
    arms = pair(*zip(case["users"], case["conversions"], strict=True))

    found = stats.analyse(arms).variants[1].comparison

    expected, one_look = case["expected"], found.fixed_horizon
    assert found.difference == pytest.approx(expected["difference"], rel=1e-9)
    assert one_look.p_value == pytest.approx(expected["p_value"], rel=1e-9)
    # Welch's interval is symmetric, and that of the score is not.
    ends = case["welch"]["interval"]
    near = pytest.approx(ends, abs=0.03 * (ends[1] - ends[0]))
    assert list(one_look.difference_interval[:2]) == near
    assert found.sequential.p_value > one_look.p_value


@pytest.mark.parametrize("case", REAL["means"], ids=lambda case: case["id"])
def test_means_of_a_real_experiment_are_those_of_tea_tasting(case):
    arms = arms_of(case)

    assert_equal_to_tea_tasting(arms, MEAN, dict(case["expected"]), case["tolerance"])


def test_the_manual_prints_our_figures_of_real_experiments():
    manual = (HERE.parent / "docs" / "statistics.md").read_text()
    printed = re.findall(r"\| Abacus \| (.+) \|$", manual, re.MULTILINE)
    bandit = REAL["rates"][0]
    arms = pair(*zip(bandit["users"], bandit["conversions"], strict=True))
    rate = stats.analyse(arms).variants[1].comparison
    one, any_look = rate.fixed_horizon, rate.sequential
    ends = one.difference_interval
    expected = [
        f"{rate.difference:.2%} | {ends.lower:.2%} to {ends.upper:.2%} | "
        f"{one.p_value:.5f} | {any_look.p_value:.3f}"
    ]

    for case in REAL["means"][:2]:
        found = samples(arms_of(case), MetricSettings("spent", kind=MEAN))
        welch = stats.welch(*found.arms, 0.95)
        p_value = always_valid_means(*found.any_look, 0.95).p_value
        ends = welch.difference_interval
        expected.append(
            f"{stats.means.difference(*found.arms):,.0f} | {ends.lower:,.0f} to "
            f"{ends.upper:,.0f} | {welch.p_value:.5f} | {p_value:.3f}"
        )

    assert printed == [row.replace("%", " %") for row in expected]
