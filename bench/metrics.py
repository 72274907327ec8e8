"""Error rates of metrics of every kind at any look: values, ratios, guardrails, wins.

Experiments by seeded chance; every look counts. The decisions are those of the
production functions. Takes some twenty minutes.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))
import numpy as np

import stats
from bench.peeking import percent, raveled
from bench.sums import (
    BUYING,
    KINDS,
    LEVEL,
    LOGNORMAL,
    USERS,
    Sums,
    dealt,
    geometric,
    moments,
    order_sums,
    rate_tables,
    samples_at,
    value_sums,
)
from bench.values import SHARES, VALUES, Draw
from stats import (
    CONVERSION,
    DECREASE,
    GUARDRAIL,
    INCREASE,
    MEAN,
    PRIMARY,
    RATIO,
    Arm,
    Measured,
    MetricSettings,
    horizon,
)
from stats.evidence import NUISANCE
from stats.means import always_valid_mean_interval, always_valid_means, least_values

RUNS, SEED, AT_ONCE, LIFT = 4_000, 20250201, 100, 0.2

#: With a cap or without, with a covariate or without.
WAYS = {
    "plain": (False, False),
    "cap": (True, False),
    "CUPED": (False, True),
    "cap, CUPED": (True, True),
}


# ----------------------------------------------------------------------------
# Values and ratios
# ----------------------------------------------------------------------------


class Truth(NamedTuple):
    """The true mean of each arm."""

    control: float
    treatment: float


def alarms(
    sums: Sums, settings: MetricSettings, has_covariate: bool = False
) -> np.ndarray:
    """Return which runs have a look that is significant."""
    may = moments(sums, settings, has_covariate).may_exclude(0.0)
    found = np.zeros(len(may), bool)
    for place in np.argwhere(may):
        run, look = map(int, place)
        if not found[run]:
            any_look = samples_at(sums, (run, look), settings, has_covariate).any_look
            found[run] = is_below(always_valid_means(*any_look, 1 - LEVEL).p_value)
    return found


def misses(
    sums: Sums, truth: Truth, settings: MetricSettings, has_covariate: bool = False
) -> np.ndarray:
    """Return which runs have an interval that leaves out the truth at some look.

    The rows are the difference, the lift, the control's mean and the treatment's.
    """
    near = moments(sums, settings, has_covariate)
    apart, ratio = truth.treatment - truth.control, truth.treatment / truth.control
    may = near.may_exclude(apart) | near.may_exclude(0.0, ratio)
    found = np.zeros((4, len(may)), bool)
    for place in np.argwhere(may):
        run, look = map(int, place)
        if found[:2, run].all():
            continue
        any_look = samples_at(sums, (run, look), settings, has_covariate).any_look
        test = always_valid_means(*any_look, 1 - LEVEL)
        found[0, run] |= is_outside(test.difference_interval, apart)
        found[1, run] |= is_outside(test.lift_interval, ratio - 1)
    least = least_values(settings.cap)
    for arm in (0, 1):
        may = near.may_exclude_mean(arm, truth[arm])
        may &= sums.count[..., arm] >= least
        for place in np.argwhere(may):
            run, look = map(int, place)
            if not found[2 + arm, run]:
                one = samples_at(sums, (run, look), settings, has_covariate).own[arm]
                count = int(sums.count[run, look, arm])
                shown = always_valid_mean_interval(one, count, 1 - LEVEL, least)
                found[2 + arm, run] = is_outside(shown, truth[arm])
    return found


def is_below(p_value: float | None) -> bool:
    return p_value is not None and p_value < LEVEL


def is_outside(one: stats.results.Interval, truth: float) -> bool:
    """Tell whether the truth is outside an interval with open ends."""
    return (one.lower is not None and truth < one.lower) or (
        one.upper is not None and truth > one.upper
    )


def in_parts(runs: int) -> Iterator[int]:
    """Yield so many runs in parts that fit into the memory."""
    for first in range(0, runs, AT_ONCE):
        yield min(AT_ONCE, runs - first)


def value_cell(
    draw: np.random.Generator,
    name: str,
    share: float,
    runs: int,
    looks: np.ndarray,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the alarms without an effect, and the misses with one, of each way."""
    kind = KINDS[name]
    truths = {
        capped: Truth(
            kind.mean(kind.cap if capped else math.inf),
            (1 + LIFT) * kind.mean(kind.cap / (1 + LIFT) if capped else math.inf),
        )
        for capped in (False, True)
    }
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {way: [] for way in WAYS}
    for part in in_parts(runs):
        sizes = dealt(draw, share, looks, part)
        # With an effect, a total is capped after it was raised.
        caps = (math.inf, kind.cap, kind.cap / (1 + LIFT))
        plain, capped, lower = value_sums(draw, VALUES[name], sizes, caps)
        raised = {
            False: plain.raised(LIFT),
            True: lower.raised(LIFT).with_control_of(capped),
        }
        for way, (has_cap, has_covariate) in WAYS.items():
            none = capped if has_cap else plain
            settings = MetricSettings(
                "spent", PRIMARY, kind=MEAN, cap=Decimal(kind.cap) if has_cap else None
            )
            found[way].append(
                (
                    alarms(none, settings, has_covariate),
                    misses(raised[has_cap], truths[has_cap], settings, has_covariate),
                )
            )
    return {way: joined(parts) for way, parts in found.items()}


def ratio_cell(
    draw: np.random.Generator,
    buying: float,
    share: float,
    runs: int,
    looks: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the same of the value of an order."""
    settings, order = MetricSettings("spent", PRIMARY, kind=RATIO), math.exp(3.5)
    truth, parts = Truth(order, (1 + LIFT) * order), []
    for part in in_parts(runs):
        sums = order_sums(draw, buying, dealt(draw, share, looks, part))
        parts.append(
            (alarms(sums, settings), misses(sums.raised(LIFT), truth, settings))
        )
    return joined(parts)


def joined(
    parts: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.concatenate([alarm for alarm, _ in parts]),
        np.concatenate([missed for _, missed in parts], axis=1),
    )


def first_looks(
    draw: np.random.Generator,
    values: Draw,
    lift: float,
    looks: np.ndarray,
    runs: int,
    has_covariate: Sequence[bool] = (False, True),
) -> np.ndarray:
    """Return the users at the first significant look, of each way; inf without one."""
    settings = MetricSettings("spent", PRIMARY, kind=MEAN)
    found = []
    for part in in_parts(runs):
        (sums,) = value_sums(draw, values, dealt(draw, 0.5, looks, part))
        raised = sums.raised(lift)
        found.append(
            [_first_looks(raised, settings, has, looks) for has in has_covariate]
        )
    return np.concatenate(found, axis=1)


def _first_looks(
    sums: Sums, settings: MetricSettings, has_covariate: bool, looks: np.ndarray
) -> np.ndarray:
    may = moments(sums, settings, has_covariate).may_exclude(0.0)
    first = np.full(len(may), math.inf)
    for place in np.argwhere(may):
        run, look = map(int, place)
        if first[run] == math.inf:
            any_look = samples_at(sums, (run, look), settings, has_covariate).any_look
            if is_below(always_valid_means(*any_look, 1 - LEVEL).p_value):
                first[run] = looks[look]
    return first


# ----------------------------------------------------------------------------
# Guardrails
# ----------------------------------------------------------------------------


class Guard(NamedTuple):
    """Which looks show a guardrail harmed, and which harmless: (runs, looks)."""

    harmed: np.ndarray
    harmless: np.ndarray


def guarded_rates(
    tables: stats.Tables, settings: MetricSettings, share: float, guardrails: int = 1
) -> Guard:
    """Return what a rate says as a guardrail, for all looks at once.

    An interval leaves out the margin exactly if the e-value against it is large enough.
    """
    flat, shape = raveled(tables), tables.control_size.shape
    margin = -settings.sign * float(settings.margin or 0)
    ones = np.ones(len(flat.control_size))
    log_e = stats.null_log_e_values(flat, share * ones, ones, margin * ones)
    apart = _rates(flat.treatment_conversions, flat.treatment_size) - _rates(
        flat.control_conversions, flat.control_size
    )
    gain = settings.sign * (apart - margin)
    alarm, calm = (
        log_e > -math.log(alpha - NUISANCE) for alpha in (LEVEL / guardrails, LEVEL)
    )
    return Guard(
        (alarm & (gain < 0)).reshape(shape), (calm & (gain > 0)).reshape(shape)
    )


def _rates(conversions: np.ndarray, users: np.ndarray) -> np.ndarray:
    return conversions / np.maximum(users, 1)


def guarded_means(
    sums: Sums,
    settings: MetricSettings,
    guardrails: int = 1,
    wanted: np.ndarray | None = None,
) -> Guard:
    """Return what a mean or a ratio says as a guardrail.

    Only the *wanted* looks are told; without them, only the first of each kind.
    """
    margin = -settings.sign * float(settings.margin or 0)
    near = moments(sums, settings, False)
    may = near.may_exclude(margin)
    may = may if wanted is None else may & wanted
    gain = settings.sign * (near.mean[..., 1] - near.mean[..., 0] - margin)
    found = Guard(np.zeros(may.shape, bool), np.zeros(may.shape, bool))
    for place in np.argwhere(may):
        run, look = map(int, place)
        # The estimate is in the interval, so that only one side can be excluded.
        is_calm = bool(gain[run, look] > 0)
        if wanted is None and found[is_calm][run].any():
            continue
        arms = samples_at(sums, (run, look), settings, False).any_look
        level = 1 - (LEVEL if is_calm else LEVEL / guardrails)
        ends = always_valid_means(*arms, level).difference_interval
        found[is_calm][run, look] = is_outside(ends, margin)
    return found


def arms_of(tables: stats.Tables, place: tuple[int, int], share: float) -> list[Arm]:
    """Return the arms of one look at a rate."""
    n_c, x_c, n_t, x_t = (int(column[place]) for column in tables)
    parts = 100 * (1 - share), 100 * share
    return [
        Arm(str(arm), str(arm), Decimal(str(round(part, 6))), *counts)
        for arm, (part, counts) in enumerate(
            zip(parts, ((n_c, x_c), (n_t, x_t)), strict=True)
        )
    ]


class Guarded(NamedTuple):
    """A guardrail in a simulation: its settings, and the split of the users.

    *base* is the control's rate, or the name of the values, or the part who buy.
    """

    settings: MetricSettings
    base: float | str
    share: float = 0.5


def _guardrail(kind: str, margin: str, direction: str = INCREASE) -> MetricSettings:
    return MetricSettings("guarded", GUARDRAIL, direction, kind, Decimal(margin))


RATE = _guardrail(CONVERSION, "0.01", DECREASE)
GUARDED = {
    "rate of 10 %, less is better": Guarded(RATE, 0.1),
    "rate of 10 %, more is better": Guarded(_guardrail(CONVERSION, "0.01"), 0.1),
    "rate of 10 %, 90/10": Guarded(RATE, 0.1, 0.1),
    "rate of 1 %": Guarded(_guardrail(CONVERSION, "0.003", DECREASE), 0.01),
    "mean, normal(10, 5)": Guarded(_guardrail(MEAN, "0.3"), "normal(10, 5)"),
    "the same, 90/10": Guarded(_guardrail(MEAN, "0.3"), "normal(10, 5)", 0.1),
    "mean, lognormal, 95 % zeros": Guarded(
        _guardrail(MEAN, "0.6"), "lognormal, 95 % zeros"
    ),
    "the same, less is better": Guarded(
        _guardrail(MEAN, "0.6", DECREASE), "lognormal, 95 % zeros"
    ),
    "ratio, 30 % buyers": Guarded(_guardrail(RATIO, "4"), 0.3),
}
GUARDED_USERS, GUARDED_LOOKS = {CONVERSION: 60_000}, 40


def guards_of(
    draw: np.random.Generator, one: Guarded, looks: np.ndarray, runs: int
) -> list[Guard]:
    """Return what it says if it has no margin, and worse by 0, 1 and 2 margins."""
    settings, found = one.settings, []
    bare = settings._replace(margin=None)
    margin = -settings.sign * float(settings.margin or 0)
    cases = [(bare, 0.0)] + [(settings, by * margin) for by in (0, 1, 2)]
    for part in in_parts(runs):
        sizes = dealt(draw, one.share, looks, part)
        if settings.kind == CONVERSION:
            base = float(one.base)
            tables = [
                rate_tables(draw, sizes, (base, base + by * margin)) for by in (0, 1, 2)
            ]
            found.append(
                [
                    guarded_rates(each, case, one.share)
                    for each, (case, _) in zip([tables[0], *tables], cases, strict=True)
                ]
            )
            continue
        sums, mean = sums_of(draw, one, sizes)
        found.append(
            [guarded_means(sums.raised(by / mean), case) for case, by in cases]
        )
    return [
        Guard(*(np.concatenate(each) for each in zip(*parts, strict=True)))
        for parts in zip(*found, strict=True)
    ]


def sums_of(
    draw: np.random.Generator, one: Guarded, sizes: np.ndarray
) -> tuple[Sums, float]:
    """Return the sums of a guardrail without an effect, and its true mean."""
    if isinstance(one.base, str):
        (sums,) = value_sums(draw, VALUES[one.base], sizes)
        return sums, KINDS[one.base].mean()
    return order_sums(draw, one.base, sizes), LOGNORMAL.mean()


# ----------------------------------------------------------------------------
# The whole rule
# ----------------------------------------------------------------------------


class Rule(NamedTuple):
    """What is true: the primary rates, and by how many margins a guardrail is worse."""

    primary: tuple[float, float]
    rate_worse: float = 0.0
    mean_worse: float = 0.0
    share: float = 0.5


PLAN = stats.Plan(0.1, 0.02)
RULES = {
    "primary without effect": Rule((0.1, 0.1)),
    "primary without effect, 90/10": Rule((0.1, 0.1), share=0.1),
    "primary better, the rate worse by its margin": Rule((0.1, 0.12), rate_worse=1),
    "primary better, the mean worse by its margin": Rule((0.1, 0.12), mean_worse=1),
    "both worse by their margins": Rule((0.1, 0.12), 1, 1),
    "primary better, the mean worse, 90/10": Rule((0.1, 0.12), 0, 1, 0.1),
    "primary better, nothing worse": Rule((0.1, 0.12)),
}
PRIMARY_RATE = MetricSettings("bought", PRIMARY)
GUARD_RATE = MetricSettings(
    "refunded", GUARDRAIL, DECREASE, CONVERSION, Decimal("0.02")
)
GUARD_MEAN = MetricSettings("spent", GUARDRAIL, INCREASE, MEAN, Decimal("0.3"))
REFUNDED, SPENT = 0.05, "normal(10, 5)"
RULE_USERS, RULE_LOOKS = 30_000, 40


class Played(NamedTuple):
    """The looks of some runs of the whole rule, each (runs, looks).

    *won* has a plan and stored crossings, or neither of them.
    """

    primary: stats.Tables
    rate: stats.Tables
    mean: Sums
    better: np.ndarray
    won: np.ndarray
    has_plan: bool
    share: float


def played(
    draw: np.random.Generator, rule: Rule, looks: np.ndarray, runs: int
) -> list[Played]:
    """Return the looks without a plan, and the same looks with one."""
    sizes = dealt(draw, rule.share, looks, runs)
    primary = rate_tables(draw, sizes, rule.primary)
    shift = rule.rate_worse * float(GUARD_RATE.margin or 0)
    rate = rate_tables(draw, sizes, (REFUNDED, REFUNDED + shift))
    (mean,) = value_sums(draw, VALUES[SPENT], sizes)
    shift = -rule.mean_worse * float(GUARD_MEAN.margin or 0)
    mean = mean.raised(shift / KINDS[SPENT].mean())
    better = [_better(primary, rule.share, has_plan) for has_plan in (False, True)]
    wanted = better[0] | better[1]
    guards = (
        guarded_rates(rate, GUARD_RATE, rule.share, 2),
        guarded_means(mean, GUARD_MEAN, 2, wanted),
    )
    is_free = guards[0].harmless & guards[1].harmless
    is_free &= ~(guards[0].harmed | guards[1].harmed)
    return [
        Played(primary, rate, mean, each, each & is_free, has_plan, rule.share)
        for has_plan, each in zip((False, True), better, strict=True)
    ]


def _better(tables: stats.Tables, share: float, has_plan: bool) -> np.ndarray:
    """Return at which looks the variant is better: now, or with a plan at the first."""
    significant = _significant(tables, share, has_plan)
    better = significant & (
        _rates(tables.treatment_conversions, tables.treatment_size)
        > _rates(tables.control_conversions, tables.control_size)
    )
    if not has_plan:
        return better
    first = significant.cumsum(axis=1).cumsum(axis=1) == 1
    return np.asarray((first & better).cumsum(axis=1) > 0)


def _significant(tables: stats.Tables, share: float, has_plan: bool) -> np.ndarray:
    """Return at which looks the primary rate is significant."""
    flat, shape = raveled(tables), tables.control_size.shape
    reached, centre = None, stats.planned_centre(None)
    if has_plan:
        total = flat.control_size + flat.treatment_size
        users = stats.planned_horizon(PLAN, (1 - share, share))
        reached = horizon.reached(flat, total, users, share * (1 - share))
        centre = stats.planned_centre(PLAN)
    pairs = horizon.pairs_of(flat, np.full(len(flat[0]), share), reached, centre, 1)
    p_values = horizon.p_values(pairs, horizon.log_e(pairs))
    return np.asarray(p_values < LEVEL).reshape(shape)


def verdict_at(one: Played, place: tuple[int, int]) -> str:
    """Return the status of the verdict that the service gives at one look."""
    arms = arms_of(one.primary, place, one.share)
    rate = arms_of(one.rate, place, one.share)
    splits = [arm.split_percentage for arm in arms]
    mean = [
        arm._replace(split_percentage=split, covariate=None)
        for arm, split in zip(one.mean.arms(place, GUARD_MEAN), splits, strict=True)
    ]
    others = (Measured(GUARD_RATE, tuple(rate)), Measured(GUARD_MEAN, tuple(mean)))
    if not one.has_plan:
        return stats.analyse(arms, metric=PRIMARY_RATE, others=others).verdict.status
    return stats.analyse(
        arms,
        metric=PRIMARY_RATE,
        others=others,
        plan=PLAN,
        horizon_users=stats.planned_horizon(PLAN, splits),
        crossings=_crossings(one, place),
    ).verdict.status


def _crossings(one: Played, place: tuple[int, int]) -> dict[str, stats.Crossing]:
    """Return the crossing that was stored up to a look."""
    run, look = place
    hits = _significant(
        stats.Tables(*(column[run : run + 1, : look + 1] for column in one.primary)),
        one.share,
        True,
    )[0]
    if not hits.any():
        return {}
    counts = [int(column[run, hits.argmax()]) for column in one.primary]
    return {
        "1": stats.Crossing(
            "2025-03-03T00:00:00Z", counts[0] + counts[2], *counts, 0.04
        )
    }


def wins_of(one: Played) -> np.ndarray:
    """Return which runs have a win at some look, by the verdict of the service."""
    found = np.zeros(len(one.won), bool)
    for run in np.flatnonzero(one.won.any(axis=1)).tolist():
        for look in np.flatnonzero(one.won[run]).tolist():
            if verdict_at(one, (run, look)) == "variant_wins":
                found[run] = True
                break
    return found


def agreement(draw: np.random.Generator, one: Played, number: int) -> int:
    """Return at how many of some random looks the verdict is the same win, or none.

    Half of them are looks at which the primary rate is better, if there are any.
    """
    better = np.argwhere(one.better)
    places = draw.integers((0, 0), one.won.shape, (number, 2))
    if len(better):
        places[: number // 2] = better[draw.integers(0, len(better), number // 2)]
    return sum(
        (verdict_at(one, (run, look)) == "variant_wins") == bool(one.won[run, look])
        for run, look in places.tolist()
    )


# ----------------------------------------------------------------------------
# The report
# ----------------------------------------------------------------------------


def print_values(runs: int) -> None:
    looks = geometric()
    print(
        f"At {len(looks)} looks up to {USERS:,} users. Missed: some look's interval "
        f"does not hold the truth, where the treatment is {LIFT:.0%} better.\n"
    )
    header = "difference missed | lift missed | control missed | treatment missed"
    print(f"| values | split | way | false alarms | {header} |")
    print("|:--|:--|:--|--:|--:|--:|--:|--:|")
    for name in KINDS:
        for split, share in SHARES.items():
            draw = np.random.default_rng(SEED)
            found = value_cell(draw, name, share, runs, looks)
            for way, (alarm, missed) in found.items():
                print_row(name, split, way, *map(percent, (alarm, *missed)))
    for name, buying in BUYING.items():
        for split, share in SHARES.items():
            draw = np.random.default_rng(SEED)
            alarm, missed = ratio_cell(draw, buying, share, runs, looks)
            print_row(
                f"order value, {name}", split, "ratio", *map(percent, (alarm, *missed))
            )


EFFECTS = {"normal(10, 5)": 0.04, "lognormal, 95 % zeros": 0.5}


def print_covariate(runs: int) -> None:
    print("\n| effect | median users | with CUPED | ratio |\n|:--|--:|--:|--:|")
    looks = np.arange(100, USERS + 1, 100)
    for name, lift in EFFECTS.items():
        draw = np.random.default_rng(SEED)
        first = first_looks(draw, VALUES[name], lift, looks, runs)
        alone, adjusted = np.median(first, axis=1)
        picks = draw.integers(0, runs, (200, runs))
        spread = np.std([_ratio_of_medians(first[:, pick]) for pick in picks])
        ratio = f"{adjusted / alone:.3f} ± {spread:.3f}"
        print_row(f"{name}, {lift:+.0%}", f"{alone:,.0f}", f"{adjusted:,.0f}", ratio)


def _ratio_of_medians(first: np.ndarray) -> float:
    alone, adjusted = np.median(first, axis=1)
    return float(adjusted / alone)


def print_guardrails(runs: int) -> None:
    print(
        "\nHarmed and harmless at any look, by the true worsening in margins. Without "
        "a margin, a guardrail is harmed if it is worse at all.\n"
    )
    columns = [
        "harmed: no margin, 0",
        "margin, 0",
        "margin, 1",
        "margin, 2",
        "harmless: 1",
        "0",
        "users until harmless",
    ]
    print(f"| guardrail | users | {' | '.join(columns)} |")
    print(f"|:--|--:|{'--:|' * len(columns)}")
    for name, one in GUARDED.items():
        users = GUARDED_USERS.get(one.settings.kind, 30_000)
        looks = geometric(users, GUARDED_LOOKS)
        draw = np.random.default_rng(SEED)
        strict, none, at, twice = guards_of(draw, one, looks, runs)
        shares = [each.harmed.any(axis=1) for each in (strict, none, at, twice)]
        shares += [each.harmless.any(axis=1) for each in (at, none)]
        first = np.where(
            shares[-1], looks[none.harmless.argmax(axis=1)].astype(float), math.inf
        )
        print_row(name, f"{users:,}", *map(percent, shares), f"{np.median(first):,.0f}")


def print_rule(runs: int) -> None:
    print(
        f"\nA win of the whole rule at any of {RULE_LOOKS} looks up to "
        f"{RULE_USERS:,} users, with a rate and a mean as guardrails.\n"
    )
    looks = geometric(RULE_USERS, RULE_LOOKS)
    print("| truth | wins | median users | with a plan | median users | checked |")
    print("|:--|--:|--:|--:|--:|--:|")
    for name, rule in RULES.items():
        draw, cells, same = np.random.default_rng(SEED), [], 0
        parts = [played(draw, rule, looks, part) for part in in_parts(runs)]
        for plan in (0, 1):
            is_false = name != "primary better, nothing worse"
            wins = [
                wins_of(part[plan]) if is_false else part[plan].won.any(axis=1)
                for part in parts
            ]
            first = np.concatenate([_first_win(part[plan], looks) for part in parts])
            cells += [percent(np.concatenate(wins)), f"{np.median(first):,.0f}"]
            same += sum(agreement(draw, part[plan], 4) for part in parts)
        print_row(name, *cells, f"{same} of {8 * len(parts)}")


def _first_win(one: Played, looks: np.ndarray) -> np.ndarray:
    """Return the users at the first win of each run; inf without one."""
    return np.where(
        one.won.any(axis=1), looks[one.won.argmax(axis=1)].astype(float), math.inf
    )


def print_row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


PARTS = {
    "values": print_values,
    "covariate": print_covariate,
    "guardrails": print_guardrails,
    "rule": print_rule,
}


#: These have a quarter of the runs: a rate against a margin takes 0.2 ms for each look.
SLOW = ("guardrails", "rule")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--runs", type=int, default=RUNS)
    options.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all")
    chosen = options.parse_args()
    print(
        f"{chosen.runs:,} runs a cell, {chosen.runs // 4:,} of guardrails and of the "
        f"whole rule; seed {SEED}; every look counts.\n"
    )
    with np.errstate(all="ignore"):
        for part in chosen.parts or PARTS:
            PARTS[part](chosen.runs // (4 if part in SLOW else 1))


if __name__ == "__main__":
    main()
