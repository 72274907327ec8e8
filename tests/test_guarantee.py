"""The guarantee of the always-valid tests: exact, then by simulation."""

import hashlib
import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
from test_stats import (
    HERE,
    SEED_ARMS,
    comparison,
    pair,
    significant,
    table,
)

import stats
from bench import growthbook
from bench import values as bench
from stats import Plan, Tables, evidence, horizon


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
            s = stats.contrasts.project(*rates, *null)
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
    asked = stats.evidence.Question(counts, share, 0.05)
    (found,) = stats.evidence.always_valid_limits(asked)
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
                stats.means.always_valid_means(*samples, 0.95),
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
        bench.hits(draw, bench.VALUES[kind], bench.SHARES[split], looks=looks)
        for _ in range(40)
    ]

    # At most 5 %. `bench/values.py` measures it with 4,000 runs a cell.
    assert sum(each.ours.any() for each in found) <= 2


PEER = json.loads((HERE / "cases" / "gbstats.json").read_text())


def test_the_benchmarks_show_what_growthbook_says():
    *rates, said_of_rates = np.array(PEER["rates"]).T
    *means, said_of_means = np.array(PEER["means"]).T
    control, treatment = (
        growthbook.group_of_mean(*arm) for arm in (means[:3], means[3:])
    )

    of_rates = growthbook.p_values(*growthbook.groups(Tables(*rates)))
    of_means = growthbook.p_values(control, treatment)

    assert len(of_rates) == len(of_means) == 150
    assert of_rates == pytest.approx(said_of_rates, rel=1e-6, abs=1e-12)
    assert of_means == pytest.approx(said_of_means, rel=1e-6, abs=1e-12)


def test_looking_often_at_a_sound_split_raises_no_alarm():
    draw = np.random.default_rng(7)
    alarms = {"sound": 0, "broken": 0}
    for _ in range(100):
        for name, share in (("sound", 0.5), ("broken", 0.54)):
            treated = np.cumsum(draw.binomial(200, share, 50))
            alarms[name] += any(
                stats.splits.sample_ratio_mismatch(
                    [200 * (i + 1) - t, t], (50, 50)
                ).detected
                for i, t in enumerate(treated.tolist())
            )

    assert alarms["sound"] <= 1
    assert alarms["broken"] >= 90


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stats.analyse(SEED_ARMS[:1]), "two variants"),
        (lambda: stats.splits.sample_ratio_mismatch([1, 2], (0, 100)), "above 0"),
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
    assert stats.planning.minimum_detectable_effect(0.5, 3) is None


# ---------------------------------------------------------------------------
# What it costs, and what the manual says


def test_importing_costs_neither_numpy_nor_scipy():
    code = (
        "import sys, stats; assert not {'numpy', 'scipy'} & set(sys.modules);"
        "stats.posterior.posterior([(1, 2), (1, 2)]);"
        "assert 'scipy.special' in sys.modules;"
        "assert not {'scipy.stats', 'scipy.optimize'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=HERE.parent)


MANUAL = (HERE.parent / "docs" / "statistics.md").read_text(encoding="utf-8")
PLAN = Plan(0.1, 0.02)
WORKED = {
    "without a plan": stats.analyse(SEED_ARMS),
    "with a plan": stats.analyse(
        pair((3_048, 306), (3_072, 385)),
        plan=PLAN,
        horizon_users=stats.planned_horizon(PLAN, (50, 50)),
    ),
}


def manual_figures():
    """Each row of the manual's tables of checked figures: example, path, printed."""
    blocks = MANUAL.split("<!-- checked -->")[1::2]
    return [
        (example, path, printed)
        for example, block in zip(WORKED, blocks, strict=True)
        for path, printed in re.findall(r"\| `(.+)` \| (.+) \|$", block, re.MULTILINE)
    ]


@pytest.mark.parametrize(("example", "path", "printed"), manual_figures())
def test_the_manual_prints_the_figures_of_the_worked_examples(example, path, printed):
    value = WORKED[example]
    for step in path.split("."):
        value = value[int(step)] if step.isdigit() else getattr(value, step)

    digits = len(printed.partition(".")[2])
    assert f"{value:.{digits}f}" == printed if digits else str(value) == printed


def test_the_manual_says_what_its_plan_is_worth():
    planned = WORKED["with a plan"]
    score = scipy.stats.norm.isf(
        planned.variants[1].comparison.fixed_horizon.p_value / 2
    )
    shares = 1 / 4, 1 / 2, 1, 6_120 / planned.analysis.horizon.users
    bounds = [horizon.boundary(0.045) / math.sqrt(share) for share in shares]
    unplanned = stats.analyse(pair((3_048, 306), (3_072, 385)))
    p_value = unplanned.variants[1].comparison.sequential.p_value

    assert [f"{bound:.1f}" for bound in bounds] == ["4.6", "3.2", "2.3", "2.7"]
    assert "4.6 at a quarter of the users, 3.2 at half, and 2.3 at" in MANUAL
    assert f"These are {100 * shares[3]:.0f} % of the\nhorizon" in MANUAL
    assert f"The difference is {score:.1f}, and" in MANUAL
    assert unplanned.verdict.status == "keep_running"
    assert f"would have p = {p_value:.3f}" in MANUAL


def test_the_manual_says_the_users_that_its_plans_need():
    effect = stats.plan_sample_size(0.1, 0.02)
    margins = [stats.plan_harmless_rate(0.1, 0.01, power=power) for power in (0.8, 0.9)]

    for planned in (effect, *margins):
        for size in filter(None, planned[2:]):
            assert f"{size.users_per_variant[0]:,}" in MANUAL


def test_the_manual_quotes_the_verdict():
    assert WORKED["without a plan"].verdict.sentence in MANUAL
