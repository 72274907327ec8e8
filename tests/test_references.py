"""The second set of reference cases: CUPED, ratios, capped means, non-inferiority.

`cases/reference_cases_2.json` names the source of each expected number. Its boundaries
are tried by `test_horizon.py`, and its regressions by `test_values.py`.
"""

import json
from collections import Counter
from decimal import Decimal

import numpy as np
import pytest
import scipy.stats
from test_stats import HERE

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
)
from stats.samples import samples

CASES = json.loads((HERE / "cases" / "reference_cases_2.json").read_text())["cases"]
TRIED = {"cuped": 3, "ratio_delta": 3, "winsorized_mean": 3, "non_inferiority_rate": 3}
ELSEWHERE = {"planned_horizon": 3}


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
    assert Counter(case["category"] for case in CASES) == {**TRIED, **ELSEWHERE}
    assert len(CASES) == 15


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
