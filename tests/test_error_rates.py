"""Error rates of metrics of every kind at any look, in small.

`bench/metrics.py` measures the same cells with 4,000 runs each. Here a cell has 100
runs of a fixed seed. If the true rate were 5 %, one cell in 1,000 would exceed BOUND.
A test that takes two buyers of a hundred users for a sample of a hundred is wrong in
16 to 50 % of the runs, and does exceed it.
"""

import math
from decimal import Decimal

import numpy as np
import pytest
import scipy.stats

import stats
from bench import metrics as bench
from bench import sums as drawn
from bench.values import SHARES, VALUES
from stats import MEAN, PRIMARY, RATIO, Arm, EventSums, MetricSettings, ValueSums
from stats.evidence import always_valid_limits
from stats.means import always_valid_means, mean_interval
from stats.results import Level
from stats.samples import samples
from stats.scorecard import HARMED, HARMLESS, Measured, Scorecard

RUNS, SEED = 100, 8
BOUND = int(scipy.stats.binom.ppf(0.999, RUNS, 0.05))
SPENT = {kind: MetricSettings("spent", PRIMARY, kind=kind) for kind in (MEAN, RATIO)}

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # no users yet


def seeded():
    return np.random.default_rng(SEED)


# ----------------------------------------------------------------------------
# Values and ratios
# ----------------------------------------------------------------------------


@pytest.mark.parametrize("split", SHARES)
@pytest.mark.parametrize("name", drawn.KINDS)
def test_values_are_right_at_any_look_capped_and_adjusted(name, split):
    looks = drawn.geometric(5_000, 30)

    found = bench.value_cell(seeded(), name, SHARES[split], RUNS, looks)

    assert len(found) == 4
    for way, (alarms, missed) in found.items():
        assert alarms.sum() <= BOUND, way
        assert (missed.sum(axis=1) <= BOUND).all(), way


@pytest.mark.parametrize("split", SHARES)
@pytest.mark.parametrize("buyers", drawn.BUYING)
def test_ratios_are_right_at_any_look(buyers, split):
    looks, share = drawn.geometric(20_000, 30), SHARES[split]

    alarms, missed = bench.ratio_cell(
        seeded(), drawn.BUYING[buyers], share, RUNS, looks
    )

    assert alarms.sum() <= BOUND
    assert (missed.sum(axis=1) <= BOUND).all()


def test_the_looks_that_are_left_out_decide_nothing():
    for kind in (MEAN, RATIO):
        sizes = drawn.dealt(seeded(), 0.3, drawn.geometric(3_000, 12), 15)
        sums = drawn.order_sums(seeded(), 0.3, sizes).raised(0.4)
        for has_covariate in (False, True):
            near = drawn.moments(sums, SPENT[kind], has_covariate)
            may = near.may_exclude(0.0)
            decided = 0
            for run, look in np.ndindex(*may.shape):
                arms = drawn.samples_at(sums, (run, look), SPENT[kind], has_covariate)
                if None in arms.any_look:
                    continue
                means = [one.mean for one in arms.any_look]
                assert means == pytest.approx(list(near.mean[run, look]))
                p_value = always_valid_means(*arms.any_look, 0.95).p_value
                assert may[run, look] or not bench.is_below(p_value)
                decided += bench.is_below(p_value)
            assert 0 < decided < may.sum() < may.size


def test_a_covariate_with_correlation_0_7_saves_almost_half_of_the_users():
    looks, (name, lift) = np.arange(150, 12_001, 150), next(iter(bench.EFFECTS.items()))

    first = bench.first_looks(seeded(), VALUES[name], lift, looks, 150)

    alone, adjusted = np.median(first, axis=1)
    # 1 - 0.7^2 = 0.51 of the variance is left; the standard error is 0.05.
    assert math.isfinite(alone)
    assert adjusted <= 0.55 * alone


# ----------------------------------------------------------------------------
# Few users with a value
# ----------------------------------------------------------------------------


def buyers_of(totals, orders, users):
    """An arm of so many users, of whom some buy."""
    return Arm(
        "v",
        "V",
        Decimal(50),
        users,
        len(totals),
        ValueSums(len(totals), int(totals.sum()), int((totals**2).sum())),
        EventSums(
            int(orders.sum()), int((orders**2).sum()), int((totals * orders).sum())
        ),
    )


def test_at_any_look_a_ratio_is_a_sample_of_its_buyers():
    draw = seeded()
    orders = draw.integers(1, 5, 40)
    totals = orders * draw.integers(5, 50, 40)
    ratio = totals.sum() / orders.sum()
    # The delta method's linear part in a user, which the reference cases have too.
    variance = np.var((totals - ratio * orders) / orders.mean(), ddof=1)

    for users in (40, 100, 100_000):
        arms = [buyers_of(totals, orders, users)] * 2
        found = samples(arms, SPENT[RATIO]).any_look[0]

        assert (found.size, found.mean) == (40, pytest.approx(ratio))
        assert found.variance == pytest.approx(variance)


def test_two_buyers_in_each_arm_show_no_difference_of_their_ratios():
    control, treatment = (
        buyers_of(np.array(totals), np.array([1, 1]), 100)
        for totals in ([20, 21], [30, 31])
    )

    measured = samples([control, treatment], SPENT[RATIO])

    # As samples of a hundred users they would be six standard errors apart.
    assert stats.welch(*measured.arms, 0.95).p_value < 1e-6
    assert always_valid_means(*measured.any_look, 0.95).p_value > 0.05


def test_means_are_adjusted_from_30_users_with_a_value_in_each_arm():
    for count, is_adjusted in ((29, False), (30, True)):
        arms = [
            Arm(
                key,
                key,
                Decimal(50),
                1_000,
                count,
                ValueSums(count, 10 * count, 200 * count),
                covariate=stats.CovariateSums(1_000, 500, 5_000, 90 * count),
            )
            for key in ("v1", "v2")
        ]

        assert (samples(arms, SPENT[MEAN]).adjustment is not None) == is_adjusted


def test_the_interval_of_one_adjusted_mean_holds_it_as_often_as_it_says():
    for share in (0.5, 0.1):
        draw = seeded()
        sizes = drawn.dealt(draw, share, np.array([400]), 2_000)
        (sums,) = drawn.value_sums(draw, VALUES["normal(10, 5)"], sizes)
        missed = np.zeros(2)
        for run in range(2_000):
            own = drawn.samples_at(sums, (run, 0), SPENT[MEAN], True).own
            missed += [bench.is_outside(mean_interval(one, 0.95), 10) for one in own]

        # The standard error is 0.5 %. The error of a difference alone would miss 9 %
        # of the means at an even split, and 15 % of the larger arm's at 90/10.
        assert missed / 2_000 == pytest.approx([0.05, 0.05], abs=0.016)


# ----------------------------------------------------------------------------
# Guardrails, and the whole rule
# ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", bench.GUARDED)
def test_guardrails_are_rarely_wrong_and_often_tell(name):
    looks = drawn.geometric(20_000, 10)

    strict, none, at, twice = bench.guards_of(
        seeded(), bench.GUARDED[name], looks, RUNS
    )

    for wrong in (strict.harmed, none.harmed, at.harmed, at.harmless, twice.harmless):
        assert wrong.any(axis=1).sum() <= BOUND
    # These are fewer users than most need. Both answers are given all the same.
    told = twice.harmed.any(axis=1).sum(), none.harmless.any(axis=1).sum()
    assert min(told) > 0
    assert sum(told) > RUNS / 10


@pytest.mark.parametrize("name", bench.GUARDED)
def test_the_scorecard_says_the_same_of_a_guardrail(name):
    one, looks = bench.GUARDED[name], drawn.geometric(20_000, 8)
    settings, draw = one.settings, seeded()
    sizes = drawn.dealt(draw, one.share, looks, 4)
    seen = set()
    for worse in (0, 3):
        shift = -settings.sign * worse * float(settings.margin)
        if settings.kind == stats.CONVERSION:
            rates = one.base, one.base + shift
            tables = drawn.rate_tables(draw, sizes, rates)
            found = bench.guarded_rates(tables, settings, one.share)
        else:
            sums, mean = bench.sums_of(draw, one, sizes)
            sums = sums.raised(shift / mean)
            found = bench.guarded_means(
                sums, settings, wanted=np.ones((4, len(looks)), bool)
            )
        for place in np.ndindex(4, len(looks)):
            if settings.kind == stats.CONVERSION:
                arms = bench.arms_of(tables, place, one.share)
            else:
                arms = [
                    each._replace(covariate=None) for each in sums.arms(place, settings)
                ]
            status = status_of(Measured(settings, arms))
            assert (status == HARMED) == found.harmed[place], place
            assert (status == HARMLESS) == found.harmless[place], place
            seen.add(status)
    assert len(seen) >= 2


def status_of(measured):
    """What the scorecard says of the treatment."""
    card = Scorecard([measured], Level(0.95, 1), Level(0.95, 1))
    asked = card.questions
    (figures,) = card.figures(always_valid_limits(*asked) if asked else [])
    return figures.variants[1].comparison.status


@pytest.mark.parametrize("name", bench.RULES)
def test_the_whole_rule_rarely_names_a_wrong_winner(name):
    draw, looks = seeded(), drawn.geometric(25_000, 8)

    for one in bench.played(draw, bench.RULES[name], looks, RUNS):
        if name == "primary better, nothing worse":
            assert one.won.any(axis=1).sum() > RUNS / 2
        else:
            assert bench.wins_of(one).sum() <= BOUND
        assert bench.agreement(draw, one, 6) == 6


# ----------------------------------------------------------------------------
# Stored looks
# ----------------------------------------------------------------------------


def looked_at(sums, share, settings, has_covariate, run):
    """Return the status of the verdict at each look until one decides, and at the last.

    As in the service, the first look that decides is stored and given to the last.
    """
    near = drawn.moments(sums, settings, has_covariate).may_exclude(0.0)[run]
    near[-1] = True
    stored, statuses = {}, []
    for look in np.flatnonzero(near).tolist():
        if stored and look < len(near) - 1:
            continue
        splits = Decimal(str(100 - 100 * share)), Decimal(str(100 * share))
        arms = [
            arm._replace(
                split_percentage=split,
                covariate=arm.covariate if has_covariate else None,
            )
            for arm, split in zip(sums.arms((run, look), settings), splits, strict=True)
        ]
        found = stats.analyse(arms, metric=settings, crossings=stored)
        statuses.append(found.verdict.status)
        control, treatment = found.variants
        compared = treatment.value.comparison
        if found.trustworthy and compared.sequential.is_significant and not stored:
            counts = [arms[0].sample_size, arms[0].conversions]
            counts += [arms[1].sample_size, arms[1].conversions]
            stored["1"] = stats.Crossing(
                *("2025-03-03T00:00:00Z", counts[0] + counts[2], *counts),
                *(compared.sequential.adjusted_p_value, control.value.mean),
                compared.difference,
            )
    return statuses


WINS = ("variant_wins", "control_wins")


@pytest.mark.parametrize(
    ("name", "split", "has_cap", "has_covariate"),
    [
        ("normal(10, 5)", "50/50", False, False),
        ("lognormal, 95 % zeros", "90/10", True, True),
        ("Pareto 2.1, 95 % zeros", "50/50", False, True),
    ],
)
def test_a_stored_look_at_a_mean_is_rarely_a_false_alarm_and_stays(
    name, split, has_cap, has_covariate
):
    kind, share = drawn.KINDS[name], SHARES[split]
    settings = SPENT[MEAN]._replace(cap=Decimal(kind.cap) if has_cap else None)
    sizes = drawn.dealt(seeded(), share, drawn.geometric(5_000, 30), RUNS)
    caps = (kind.cap,) if has_cap else (math.inf,)
    (sums,) = drawn.value_sums(seeded(), VALUES[name], sizes, caps)

    found = {
        lift: [
            looked_at(sums.raised(lift), share, settings, has_covariate, run)
            for run in range(runs)
        ]
        for lift, runs in ((0.0, RUNS), (2.0, 20))
    }

    alarms = sum(statuses[-1] in WINS for statuses in found[0.0])
    assert alarms <= BOUND
    for statuses in found[0.0] + found[2.0]:
        won = [status for status in statuses if status in WINS]
        assert not won or statuses[-1] == won[0]
    assert sum(statuses[-1] == "variant_wins" for statuses in found[2.0]) > alarms
