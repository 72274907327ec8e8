"""The verdict, and the sentences that state it."""

import hashlib
import math
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_stats import SEED_ARMS, comparison, many, pair

import stats
from stats import Arm, Plan, ValueSums

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
    assert stats.wording.percentages(shares) == printed


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=5))
def test_different_rates_never_look_alike_and_none_looks_like_an_end(counts):
    shares = [count / 10**6 for count in counts]

    printed = stats.wording.percentages(shares)

    assert len(set(printed)) == len(set(counts))
    for share, text in zip(shares, printed, strict=True):
        assert (text in ("0 %", "100 %")) == (share in (0, 1))
        decimals = len(text.removesuffix(" %").partition(".")[2])
        assert decimals <= stats.wording.percent_decimals(shares)


def test_a_significant_difference_near_100_percent_shows_in_the_verdict():
    found = verdict(pair((50_119, 50_095), (49_881, 49_880)))

    assert found.status == "variant_wins"
    assert "Detailed converts 99.998 % of 49,881 users" in found.sentence
    assert "Control 99.9521 % of 50,119" in found.sentence


def test_mean_values_are_printed_without_an_exponent():
    assert stats.wording.amounts([12_345_678.9, 12_345_679.9]) == [
        "12,345,678.9",
        "12,345,679.9",
    ]
    assert stats.wording.amounts([0.00001, 0]) == ["0.00001", "0"]
    assert stats.wording.amounts([3, 1]) == ["3", "1"]
    assert stats.wording.amounts([-0.0]) == ["0"]
