"""The verdict: one sentence for a product manager, and the warnings with it.

The verdict is the first of these that holds:

- `broken_split`: the users are not split as planned; no winner is named.
- `not_enough_data`: a variant has no user yet, or nothing was counted for the
  metric in any variant. Missing events are no evidence: the metric may be
  misspelled, or its events may never have arrived.
- `variant_wins`: a variant is significantly better than the control at any
  look (Holm's always-valid p); of several, the one with the highest rate. The
  first such look is stored, and no later one withdraws it.
- `control_wins`: a variant is significantly worse, and no other can still win:
  each is significantly worse too, or its always-valid difference interval
  leaves no room for the planned effect (for any rise, without a plan).
- `no_difference`: with a plan, every always-valid difference interval lies
  inside plus or minus the planned effect.
- `inconclusive`: the users of the horizon came, and none of the above holds. An
  experiment that started before there were horizons needs twice the users that
  one look needs, because its test needs about so many for the planned power.
- `keep_running`: none of these.

The verdict rests on conversion rates, also if the metric has values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from stats.planning import planned_total
from stats.results import (
    Arm,
    Caution,
    Comparison,
    Interval,
    Plan,
    Received,
    SampleRatioMismatch,
    VariantFigures,
    Verdict,
)
from stats.splits import DETECTED, SUSPECTED
from stats.wording import (
    amounts,
    brief,
    change,
    day,
    listed,
    p_value,
    percentages,
    points,
)

#: Below this many expected users in any cell the fixed-horizon p is approximate.
LEAST_EXPECTED = 5

#: How many metrics a warning names at most.
MOST_NAMED = 10

#: Why an event is refused, in words.
REFUSALS = {
    "BEFORE_ENROLLMENT": "from before the enrolment",
    "NOT_ENROLLED": "of users who are not enrolled",
    "TOO_MANY_METRICS": "of metrics beyond the most that an experiment may have",
}


class Bounds(NamedTuple):
    """The always-valid interval of a difference at the deciding level."""

    lower: float | None
    upper: float | None


class _Pair(NamedTuple):
    """A variant with its comparison and the bounds of its difference."""

    variant: VariantFigures
    comparison: Comparison
    bounds: Bounds

    @property
    def is_better(self) -> bool:
        """Tell whether it is significantly better, now or at the stored look."""
        crossing = self.comparison.crossing
        if crossing:
            return crossing.is_better
        return self.is_significant and (self.comparison.difference or 0.0) > 0

    @property
    def is_significant(self) -> bool:
        return self.comparison.sequential.is_significant


def verdict(
    arms: Sequence[Arm],
    variants: Sequence[VariantFigures],
    split: SampleRatioMismatch,
    plan: Plan | None,
    bounds: Sequence[Bounds],
    metric: str,
    horizon: int | None,
) -> Verdict:
    """Return what to do now, as a status and a sentence.

    The module's docstring has the rules.
    """
    problem = _problem(arms, split, metric)
    if problem:
        return problem
    pairs = [
        _Pair(variant, variant.comparison, one)
        for variant, one in zip(variants[1:], bounds, strict=True)
        if variant.comparison
    ]
    effect = abs(float(plan.minimum_effect)) if plan else 0.0
    shown = _shown_difference(pairs, variants[0], effect)
    if shown:
        return shown
    if plan and all(_lies_inside(pair.bounds, effect) for pair in pairs):
        return _equivalent(pairs, effect)
    open_pairs = [pair for pair in pairs if not pair.is_significant]
    total = sum(arm.sample_size for arm in arms)
    if plan:
        planned = planned_total(plan, [arm.split_percentage for arm in arms])
        planned, enough = (horizon, 1) if horizon else (planned, 2)
        if total >= enough * planned:
            return _inconclusive(open_pairs, variants[0], (total, planned), effect)
    return _keep_running(open_pairs, variants[0])


def _problem(
    arms: Sequence[Arm], split: SampleRatioMismatch, metric: str
) -> Verdict | None:
    """Return the verdict if the data allow no other one."""
    if split.detected:
        return _broken_split(arms, split)
    if any(arm.sample_size == 0 for arm in arms):
        return _not_enough_data(arms)
    if not any(arm.conversions for arm in arms):
        return _nothing_counted(arms, metric)
    return None


def _shown_difference(
    pairs: Sequence[_Pair], control: VariantFigures, effect: float
) -> Verdict | None:
    """Return the verdict if a significant difference names a winner."""
    better = [pair for pair in pairs if pair.is_better]
    worse = [pair for pair in pairs if pair.is_significant and not pair.is_better]
    if better:
        best = max(better, key=lambda pair: pair.variant.conversion_rate)
        return _winner(best, control)
    if worse and all(pair in worse or _is_hopeless(pair, effect) for pair in pairs):
        return _control_wins(worse, control)
    return None


def with_values(
    decided: Verdict, variants: Sequence[VariantFigures], alpha: float
) -> tuple[Verdict, list[Caution]]:
    """Return the verdict, and a warning, if mean values contradict it.

    For a winner it is enough that a single look finds its mean below the other's
    (p < *alpha*), because the reader acts on the verdict. If no winner is named, the
    difference of the means must be significant at any look.
    """
    against = [
        _value_against(one, variants[0])
        for one in variants[1:]
        if _is_against(decided, one, alpha)
    ]
    if not against:
        return decided, []
    means = listed(against)
    caution = Caution(
        "VALUE_DISAGREES",
        f"The verdict rests on conversion rates, and mean values disagree: {means}. "
        "Decide which of the two counts before you act on it.",
    )
    return decided._replace(sentence=f"{decided.sentence} But {means}."), [caution]


def _is_against(decided: Verdict, variant: VariantFigures, alpha: float) -> bool:
    """Tell whether a variant's mean value contradicts the verdict."""
    value = variant.value and variant.value.comparison
    if not value or not value.difference:
        return False
    one_look = value.fixed_horizon.p_value
    is_lower = value.difference < 0
    is_doubtful = one_look is not None and one_look < alpha
    if decided.status == "variant_wins":
        is_winner = variant.variant_id == decided.variant_id
        is_shown = value.sequential.is_significant or is_doubtful
        return is_winner and is_lower and is_shown
    if decided.status == "control_wins":
        return not is_lower and (value.sequential.is_significant or is_doubtful)
    if decided.status in ("no_difference", "inconclusive", "keep_running"):
        return value.sequential.is_significant
    return False


def _value_against(variant: VariantFigures, control: VariantFigures) -> str:
    """Return both means in words, with the p-value of their difference."""
    own, other = variant.value, control.value
    compared = own and own.comparison
    if own is None or other is None or compared is None:
        raise ValueError(f"{variant.variant_name} has no mean values to compare")
    mean, base = amounts([own.mean or 0.0, other.mean or 0.0])
    sure = f"one look {p_value(compared.fixed_horizon.p_value or 0.0)}"
    if compared.sequential.is_significant:
        sure = "always-valid " + p_value(compared.sequential.adjusted_p_value or 0.0)
    if compared.lift is not None:
        sure = f"{change(compared.lift)}, {sure}"
    return (
        f"the mean value of a user is {mean} in {variant.variant_name} and {base} in "
        f"{control.variant_name} ({sure})"
    )


def nothing_counted(
    arms: Sequence[Arm], metric: str, received: Received
) -> list[Caution]:
    """Return a warning if nothing was counted for the metric, with what did arrive.

    Before any user is enrolled or any event is refused, there is none.
    """
    refused = sum(received.refused.values())
    if any(arm.conversions for arm in arms):
        return []
    if not refused and not any(arm.sample_size for arm in arms):
        return []
    others = list(received.metrics)
    named = [repr(one) for one in others[:MOST_NAMED]]
    if others[MOST_NAMED:]:
        named.append(f"{len(others) - MOST_NAMED:,} more")
    seen = f"The metrics counted are {listed(named)}." if named else ""
    reasons = [
        f"{count:,} {REFUSALS.get(reason, 'for another reason')} ({reason})"
        for reason, count in sorted(received.refused.items())
    ]
    why = f"Of this experiment's events {refused:,} were refused: {listed(reasons)}."
    return [
        Caution(
            "NO_EVENTS",
            f"Nothing was counted for the metric {metric!r} in any variant. "
            + (seen or "No event of any other metric was counted either.")
            + f" {why if refused else 'No event was refused.'}",
        )
    ]


def warnings(
    arms: Sequence[Arm],
    variants: Sequence[VariantFigures],
    split: SampleRatioMismatch,
    plan: Plan | None,
    control_interval: Interval,
) -> list[Caution]:
    """Return what the reader should know first, with the figures.

    `NOT_TO_PLAN` says that the plan's baseline lies outside the control's
    always-valid interval (*control_interval*): the planned size is then wrong, and
    perhaps the metric is not what was planned.
    """
    is_counted = any(arm.conversions for arm in arms)
    cautions = [*_empty_warnings(arms), *_small_warnings(arms)]
    cautions.extend(_spread_warnings(arms, variants))
    cautions.extend(_split_warnings(split))
    if plan and is_counted and arms[0].sample_size:
        cautions.extend(_plan_warnings(arms[0], plan, control_interval))
    return cautions


def _empty_warnings(arms: Sequence[Arm]) -> Iterator[Caution]:
    """Yield a warning for arms without users, and for a control at 0."""
    empty = [arm.variant_name for arm in arms if arm.sample_size == 0]
    if empty:
        yield Caution("NO_DATA", f"No user has been enrolled yet in {listed(empty)}.")
    is_counted = any(arm.conversions for arm in arms)
    if is_counted and arms[0].sample_size and not arms[0].conversions:
        yield Caution(
            "ZERO_CONTROL_CONVERSIONS",
            f"Nobody of {arms[0].sample_size:,} converted in "
            f"{arms[0].variant_name}: a lift has no value, a difference has.",
        )


def _small_warnings(arms: Sequence[Arm]) -> Iterator[Caution]:
    """Yield a warning if the fixed-horizon p-value is approximate."""
    smallest = min(_expected(arms[0], arm) for arm in arms[1:])
    if smallest < LEAST_EXPECTED:
        yield Caution(
            "SMALL_SAMPLE",
            f"An expected count is {brief(smallest)}, below {LEAST_EXPECTED}: the "
            "fixed-horizon p-value is approximate, the always-valid one is not.",
        )


# ---------------------------------------------------------------------------
# Sentences


def _broken_split(arms: Sequence[Arm], split: SampleRatioMismatch) -> Verdict:
    far = [
        abs(arm.sample_size - expected) / expected**0.5
        for arm, expected in zip(arms, split.expected, strict=True)
    ]
    place = far.index(max(far))
    return Verdict(
        "broken_split",
        None,
        f"The split is broken, so no winner is named: {arms[place].variant_name} has "
        f"{arms[place].sample_size:,} users where {split.expected[place]:,.0f} were "
        f"planned ({p_value(split.p_value)}). Find the cause first.",
    )


def _not_enough_data(arms: Sequence[Arm]) -> Verdict:
    empty = [arm.variant_name for arm in arms if arm.sample_size == 0]
    return Verdict(
        "not_enough_data",
        None,
        f"There is not enough data: nobody has been enrolled yet in {listed(empty)}.",
    )


def _nothing_counted(arms: Sequence[Arm], metric: str) -> Verdict:
    total = sum(arm.sample_size for arm in arms)
    return Verdict(
        "not_enough_data",
        None,
        f"There is not enough data: nothing was counted for the metric {metric!r}, "
        f"with {total:,} users enrolled.",
    )


def _winner(best: _Pair, control: VariantFigures) -> Verdict:
    name = best.variant.variant_name
    return Verdict("variant_wins", best.variant.variant_id, _won(name, best, control))


def _control_wins(worse: Sequence[_Pair], control: VariantFigures) -> Verdict:
    nearest = max(worse, key=lambda pair: pair.variant.conversion_rate)
    return Verdict(
        "control_wins",
        control.variant_id,
        _won(control.variant_name, nearest, control),
    )


def _won(name: str, pair: _Pair, control: VariantFigures) -> str:
    """Return the sentence of a win, with the look at which it was shown if known."""
    crossing, today = pair.comparison.crossing, _against(pair, control)
    if crossing is None:
        return (
            f"{name} wins: {today}, and that holds however often you look "
            f"({_adjusted(pair)})."
        )
    return (
        f"{name} won on {day(crossing.at)} at {crossing.users:,} users "
        f"({p_value(crossing.p_value)}), and no later look withdraws that: "
        f"today {today}."
    )


def _equivalent(pairs: Sequence[_Pair], effect: float) -> Verdict:
    low, high, planned = _ends_and_effect(pairs, effect)
    return Verdict(
        "no_difference",
        None,
        f"No difference that matters: it lies between {low} and {high} percentage "
        f"points, inside the planned {planned} either way.",
    )


def _inconclusive(
    pairs: Sequence[_Pair],
    control: VariantFigures,
    users: tuple[int, float],
    effect: float,
) -> Verdict:
    best = max(pairs, key=lambda pair: pair.variant.conversion_rate)
    total, planned = users
    low, high, wanted = _ends_and_effect(pairs, effect)
    return Verdict(
        "inconclusive",
        None,
        f"Inconclusive: {_against(best, control)}, which may be chance "
        f"({_adjusted(best)}), with {total:,} users where {planned:,.0f} were planned. "
        f"The difference lies between {low} and {high} percentage points: the planned "
        f"{wanted} either way is neither shown nor ruled out.",
    )


def _ends_and_effect(pairs: Sequence[_Pair], effect: float) -> list[str]:
    """Return the outermost ends of the differences, and the planned effect."""
    # An end that is unknown is the furthest that a difference of rates can be.
    lower = [-1.0 if one.bounds.lower is None else one.bounds.lower for one in pairs]
    upper = [1.0 if one.bounds.upper is None else one.bounds.upper for one in pairs]
    return points([min(lower), max(upper), effect])


def _keep_running(pairs: Sequence[_Pair], control: VariantFigures) -> Verdict:
    best = max(pairs, key=lambda pair: pair.variant.conversion_rate)
    return Verdict(
        "keep_running",
        None,
        f"Keep running: {_against(best, control)}, which may still be "
        f"chance ({_adjusted(best)}).",
    )


def _against(pair: _Pair, control: VariantFigures) -> str:
    """Return both rates in words, with their sample sizes."""
    one = pair.variant
    rate, other = percentages([one.conversion_rate, control.conversion_rate])
    return (
        f"{one.variant_name} converts {rate} of {one.sample_size:,} users, "
        f"{control.variant_name} {other} of {control.sample_size:,}"
    )


def _adjusted(pair: _Pair) -> str:
    return "always-valid " + p_value(pair.comparison.sequential.adjusted_p_value)


# ---------------------------------------------------------------------------
# Conditions


def _is_hopeless(pair: _Pair, effect: float) -> bool:
    """Tell whether the variant can no longer be better by the planned effect."""
    return pair.bounds.upper is not None and pair.bounds.upper <= effect


def _lies_inside(bounds: Bounds, effect: float) -> bool:
    """Tell whether both ends are closer to 0 than the effect."""
    if bounds.lower is None or bounds.upper is None:
        return False
    return -effect < bounds.lower and bounds.upper < effect


def _expected(control: Arm, treatment: Arm) -> float:
    """Return the smallest expected count of the pair's table under "no effect"."""
    total = control.sample_size + treatment.sample_size
    if total == 0:
        return 0.0
    converted = control.conversions + treatment.conversions
    smaller = min(control.sample_size, treatment.sample_size)
    return smaller * min(converted, total - converted) / total


def _spread_warnings(
    arms: Sequence[Arm], variants: Sequence[VariantFigures]
) -> list[Caution]:
    """Return a warning if every arm has users but means cannot be compared."""
    unknown = [
        (arm, variant.value)
        for arm, variant in zip(arms, variants, strict=True)
        if variant.value
        and variant.value.comparison
        and variant.value.comparison.fixed_horizon.p_value is None
    ]
    control = variants[0].value
    if not unknown or control is None or not all(arm.sample_size for arm in arms):
        return []
    compared = [(arms[0], control), *unknown]
    means = amounts([value.mean or 0.0 for _, value in compared])
    stated = [
        f"{arm.variant_name} has a mean of {mean} over {arm.sample_size:,} users"
        for (arm, _), mean in zip(compared, means, strict=True)
    ]
    return [
        Caution(
            "NO_VALUE_SPREAD",
            f"{listed(stated)}: with a single user in an arm, or without two different "
            "values in any, mean values have no p-value. Check how values are sent.",
        )
    ]


def _split_warnings(split: SampleRatioMismatch) -> list[Caution]:
    if split.p_value < DETECTED:
        return [
            Caution(
                "SRM",
                f"The users did not fall as the split says ({p_value(split.p_value)}):"
                " no figure here is trustworthy until the cause is found.",
            )
        ]
    if split.p_value < SUSPECTED:
        return [
            Caution(
                "SRM_SUSPECTED",
                "The users may not have fallen as the split says "
                f"({p_value(split.p_value)}; below {DETECTED} it is a fact).",
            )
        ]
    return []


def _plan_warnings(
    control: Arm, plan: Plan, control_interval: Interval
) -> list[Caution]:
    lower, upper = control_interval.lower, control_interval.upper
    if lower is None or upper is None or lower <= plan.baseline_rate <= upper:
        return []
    low, high, planned = percentages([lower, upper, float(plan.baseline_rate)])
    return [
        Caution(
            "NOT_TO_PLAN",
            f"{control.variant_name} converts between {low} and {high}, the plan says "
            f"{planned}: the planned number of users is wrong.",
        )
    ]
