"""The verdict: one sentence for a product manager, and the warnings with it.

The verdict is the first of these that holds:

- `broken_split`: the users are not split as planned; no winner is named.
- `not_enough_data`: a variant has no user yet, or nothing was counted for the
  metric in any variant. Missing events are no evidence: the metric may be
  misspelled, or its events may never have arrived.
- `harm`: a variant is shown to be worse in a guardrail by more than its margin.
- `variant_wins`: a variant is significantly better than the control at any
  look (Holm's always-valid p), and each guardrail with a margin is shown to be
  harmless. Of several, it is the one with the best figure. The first such look is
  stored, and no later one withdraws it. While a guardrail is not shown to be
  harmless, the verdict is `keep_running`.
- `control_wins`: a variant is significantly worse, and no other can still win:
  each is significantly worse too, or its always-valid difference interval
  leaves no room for the planned effect (for any rise, without a plan).
- `no_difference`: with a plan, every always-valid difference interval lies
  inside plus or minus the planned effect.
- `inconclusive`: the users of the horizon came, and none of the above holds. An
  experiment that started before there were horizons needs twice the users that
  one look needs, because its test needs about so many for the planned power.
- `keep_running`: none of these.

The verdict rests on the primary metric, of whatever kind and direction. That of a
conversion rate takes no account of values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from stats.planning import planned_total
from stats.rates import always_valid_rate_interval
from stats.results import (
    CONVERSION,
    GUARDRAIL,
    INCREASE,
    MEAN,
    Arm,
    Caution,
    Crossing,
    Interval,
    Level,
    MetricComparison,
    MetricFigures,
    MetricSettings,
    Plan,
    Received,
    SampleRatioMismatch,
    VariantFigures,
    Verdict,
)
from stats.scorecard import HARMED, HARMLESS, NOT_COUNTED
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
    "AFTER_WINDOW": "from after the window of their metric",
    "TOO_MANY_METRICS": "of metrics beyond the most that an experiment may have",
}


class Bounds(NamedTuple):
    """The always-valid interval of a gain at the deciding level.

    A gain is a difference of which more is better.
    """

    lower: float | None
    upper: float | None

    @classmethod
    def of(cls, one: Interval, settings: MetricSettings) -> Bounds:
        """Return the bounds of the gain in this difference."""
        return cls(*settings.gains(one))


class _Pair(NamedTuple):
    """A variant against the control, and what its guardrails say."""

    variant: VariantFigures
    bounds: Bounds
    gain: float
    standing: float
    """The variant's own figure, of which more is better."""
    is_significant: bool
    adjusted_p_value: float
    crossing: Crossing | None
    harmed: list[MetricFigures]
    not_shown: list[MetricFigures]
    """The guardrails with a margin that are not shown to be harmless."""

    @property
    def is_better(self) -> bool:
        """Tell whether it is significantly better, now or at the stored look."""
        return self.is_significant and self.gain > 0

    @property
    def is_worse(self) -> bool:
        """Tell whether it is significantly worse, now or at the stored look."""
        return self.is_significant and not self.is_better


class Contest(NamedTuple):
    """The variants of an experiment against its control, in the primary metric."""

    settings: MetricSettings
    control: VariantFigures
    pairs: list[_Pair]


def contest_of(
    settings: MetricSettings,
    variants: Sequence[VariantFigures],
    bounds: Sequence[Bounds],
    metrics: Sequence[MetricFigures],
) -> Contest:
    """Return the contest with these figures and these bounds of each gain."""
    guardrails = [one for one in metrics if one.role == GUARDRAIL]
    pairs = [
        _pair(settings, variant, one, guardrails)
        for variant, one in zip(variants[1:], bounds, strict=True)
    ]
    return Contest(settings, variants[0], pairs)


def _pair(
    settings: MetricSettings,
    variant: VariantFigures,
    bounds: Bounds,
    guardrails: Sequence[MetricFigures],
) -> _Pair:
    compared = variant.compared(settings.kind)
    estimate: float | None = variant.conversion_rate
    if settings.kind != CONVERSION:
        estimate = variant.value and variant.value.mean
    crossing = compared and compared.crossing
    gain = settings.sign * ((compared and compared.difference) or 0.0)
    if crossing:
        gain = settings.sign * (1.0 if crossing.is_higher else -1.0)
    p_value = compared and compared.sequential.adjusted_p_value
    statuses = [(one, _status(one, variant)) for one in guardrails]
    return _Pair(
        variant,
        bounds,
        gain,
        settings.sign * (estimate or 0.0),
        bool(compared and compared.sequential.is_significant),
        1.0 if p_value is None else p_value,
        crossing,
        [one for one, status in statuses if status == HARMED],
        [
            one
            for one, status in statuses
            if one.margin is not None and status != HARMLESS
        ],
    )


def _compared(
    metric: MetricFigures, variant: VariantFigures
) -> MetricComparison | None:
    """Return what another metric says of a variant."""
    (found,) = (
        one.comparison
        for one in metric.variants
        if one.variant_id == variant.variant_id
    )
    return found


def _status(metric: MetricFigures, variant: VariantFigures) -> str | None:
    found = _compared(metric, variant)
    return found and found.status


def verdict(
    arms: Sequence[Arm],
    contest: Contest,
    split: SampleRatioMismatch,
    plan: Plan | None,
    horizon: int | None,
) -> Verdict:
    """Return what to do now, as a status and a sentence.

    The module's docstring has the rules.
    """
    problem = _problem(arms, split, contest.settings.name)
    if problem:
        return problem
    effect = abs(float(plan.minimum_effect)) if plan else 0.0
    shown = _harm(contest) or _shown_difference(contest, effect)
    if shown:
        return shown
    pairs = contest.pairs
    if plan and all(_lies_inside(pair.bounds, effect) for pair in pairs):
        return _equivalent(contest, effect)
    open_pairs = [pair for pair in pairs if not pair.is_significant]
    total = sum(arm.sample_size for arm in arms)
    if plan:
        planned = planned_total(plan, [arm.split_percentage for arm in arms])
        planned, enough = (horizon, 1) if horizon else (planned, 2)
        if total >= enough * planned:
            return _inconclusive(
                contest._replace(pairs=open_pairs), (total, planned), effect
            )
    return _keep_running(contest._replace(pairs=open_pairs))


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


def _harm(contest: Contest) -> Verdict | None:
    """Return the verdict if a guardrail is harmed."""
    for pair in contest.pairs:
        for guardrail in pair.harmed:
            name = pair.variant.variant_name
            margin = guardrail.margin or 0.0
            worse = "worse than it may be" if margin else "worse"
            return Verdict(
                "harm",
                pair.variant.variant_id,
                f"{name} does harm: in the guardrail {guardrail.metric!r} it is "
                f"{worse}: {_guarded(guardrail, pair.variant)}. Stop it, whatever the "
                "primary metric says.",
            )
    return None


def _shown_difference(contest: Contest, effect: float) -> Verdict | None:
    """Return the verdict if a significant difference names a winner.

    A variant that is better wins once each of its guardrails is harmless.
    """
    pairs = contest.pairs
    better = [pair for pair in pairs if pair.is_better]
    worse = [pair for pair in pairs if pair.is_worse]
    free = [pair for pair in better if not pair.not_shown]
    if free:
        best = max(free, key=lambda pair: pair.standing)
        return _winner(best, contest)
    if better:
        return _held_back(max(better, key=lambda pair: pair.standing), contest)
    if worse and all(pair in worse or _is_hopeless(pair, effect) for pair in pairs):
        return _control_wins(worse, contest)
    return None


def _held_back(best: _Pair, contest: Contest) -> Verdict:
    """Return the verdict on a variant that is better and may do harm."""
    guardrails = [
        f"{one.metric!r} ({_guarded(one, best.variant)})" for one in best.not_shown
    ]
    number = "guardrail" if len(guardrails) == 1 else "guardrails"
    is_are = "is" if len(guardrails) == 1 else "are"
    name, today = best.variant.variant_name, _against(best, contest)
    shown = f"{today}, which is shown ({_adjusted(best)}), but its"
    if best.crossing:
        # Today's figures may say something else.
        shown = (
            f"{name} was shown to be better {_seen(best.crossing)}, and today {today}. "
            "But its"
        )
    return Verdict(
        "keep_running",
        None,
        f"Keep running: {shown} {number} {listed(guardrails)} {is_are} not yet shown "
        "to be harmless.",
    )


def _guarded(guardrail: MetricFigures, variant: VariantFigures) -> str:
    """Return a guardrail's difference in words, beside its margin."""
    found = _compared(guardrail, variant)
    if found is None or found.status == NOT_COUNTED:
        return "nothing was counted"
    ends = found.difference_interval
    margin = guardrail.margin or 0.0
    unit = ""
    numbers = [ends.lower or 0.0, ends.upper or 0.0, margin]
    texts = amounts(numbers)
    if guardrail.kind == CONVERSION:
        texts, unit = points(numbers), " percentage points"
    low = texts[0] if ends.lower is not None else "anything"
    high = texts[1] if ends.upper is not None else "anything"
    said = f"the difference lies between {low} and {high}{unit}"
    side = "lower" if guardrail.direction == INCREASE else "higher"
    return f"{said}, and it may be {texts[2]} {side}" if margin else said


def with_values(
    decided: Verdict, contest: Contest, alpha: float
) -> tuple[Verdict, list[Caution]]:
    """Return the verdict, and a warning, if mean values contradict it.

    That can only be asked of a rate of which more is better.

    For a winner it is enough that a single look finds its mean below the other's
    (p < *alpha*), because the reader acts on the verdict. If no winner is named, the
    difference of the means must be significant at any look.
    """
    if contest.settings.kind != CONVERSION or contest.settings.sign < 0:
        return decided, []
    against = [
        _value_against(one.variant, contest.control)
        for one in contest.pairs
        if _is_against(decided, one.variant, alpha)
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
    deciding: Level,
    settings: MetricSettings,
) -> list[Caution]:
    """Return what the reader should know first, with the figures.

    `NOT_TO_PLAN` says that the plan's baseline lies outside the control's
    always-valid interval at the *deciding* level: the planned size is then wrong, and
    perhaps the metric is not what was planned.
    """
    is_counted = any(arm.conversions for arm in arms)
    cautions = [*_empty_warnings(arms)]
    if settings.kind == CONVERSION:
        cautions.extend(_rate_warnings(arms))
    cautions.extend(_spread_warnings(arms, variants))
    cautions.extend(_split_warnings(split))
    if plan and is_counted and arms[0].sample_size:
        cautions.extend(_plan_warnings(arms[0], plan, deciding))
    return cautions


def _empty_warnings(arms: Sequence[Arm]) -> Iterator[Caution]:
    """Yield a warning for arms without users."""
    empty = [arm.variant_name for arm in arms if arm.sample_size == 0]
    if empty:
        yield Caution("NO_DATA", f"No user has been enrolled yet in {listed(empty)}.")


def _rate_warnings(arms: Sequence[Arm]) -> Iterator[Caution]:
    """Yield warnings for a control at 0, and if the p-value of one look is rough."""
    is_counted = any(arm.conversions for arm in arms)
    if is_counted and arms[0].sample_size and not arms[0].conversions:
        yield Caution(
            "ZERO_CONTROL_CONVERSIONS",
            f"Nobody of {arms[0].sample_size:,} converted in "
            f"{arms[0].variant_name}: a lift has no value, a difference has.",
        )
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


def _winner(best: _Pair, contest: Contest) -> Verdict:
    name = best.variant.variant_name
    return Verdict("variant_wins", best.variant.variant_id, _won(name, best, contest))


def _control_wins(worse: Sequence[_Pair], contest: Contest) -> Verdict:
    nearest = max(worse, key=lambda pair: pair.standing)
    control = contest.control
    return Verdict(
        "control_wins", control.variant_id, _won(control.variant_name, nearest, contest)
    )


def _won(name: str, pair: _Pair, contest: Contest) -> str:
    """Return the sentence of a win, with the look at which it was shown if known."""
    crossing, today = pair.crossing, _against(pair, contest)
    if contest.settings.sign < 0:
        today = f"{today}, and less is better"
    if crossing is None:
        return (
            f"{name} wins: {today}, and that holds however often you look "
            f"({_adjusted(pair)})."
        )
    return (
        f"{name} won {_seen(crossing)}, and no later look withdraws that: "
        f"today {today}."
    )


def _seen(crossing: Crossing) -> str:
    """Return the stored look in words."""
    at, users = day(crossing.at), f"{crossing.users:,}"
    return f"on {at} at {users} users ({p_value(crossing.p_value)})"


def _equivalent(contest: Contest, effect: float) -> Verdict:
    low, high, planned = _ends_and_effect(contest, effect)
    return Verdict(
        "no_difference",
        None,
        f"No difference that matters: it lies between {low} and {high} percentage "
        f"points, inside the planned {planned} either way.",
    )


def _inconclusive(contest: Contest, users: tuple[int, float], effect: float) -> Verdict:
    best = max(contest.pairs, key=lambda pair: pair.standing)
    total, planned = users
    low, high, wanted = _ends_and_effect(contest, effect)
    return Verdict(
        "inconclusive",
        None,
        f"Inconclusive: {_against(best, contest)}, which may be chance "
        f"({_adjusted(best)}), with {total:,} users where {planned:,.0f} were planned. "
        f"The difference lies between {low} and {high} percentage points: the planned "
        f"{wanted} either way is neither shown nor ruled out.",
    )


def _ends_and_effect(contest: Contest, effect: float) -> list[str]:
    """Return the outermost ends of the differences, and the planned effect."""
    # An end that is unknown is the furthest that a difference of rates can be.
    every = [one.bounds for one in contest.pairs]
    lower = min(-1.0 if one.lower is None else one.lower for one in every)
    upper = max(1.0 if one.upper is None else one.upper for one in every)
    if contest.settings.sign < 0:
        lower, upper = -upper, -lower
    return points([lower, upper, effect])


def _keep_running(contest: Contest) -> Verdict:
    best = max(contest.pairs, key=lambda pair: pair.standing)
    return Verdict(
        "keep_running",
        None,
        f"Keep running: {_against(best, contest)}, which may still be "
        f"chance ({_adjusted(best)}).",
    )


def _against(pair: _Pair, contest: Contest) -> str:
    """Return both figures in words, with their sample sizes."""
    one, control, kind = pair.variant, contest.control, contest.settings.kind
    if kind == CONVERSION:
        rate, other = percentages([one.conversion_rate, control.conversion_rate])
        return (
            f"{one.variant_name} converts {rate} of {one.sample_size:,} users, "
            f"{control.variant_name} {other} of {control.sample_size:,}"
        )
    own, base = (each.value.mean if each.value else None for each in (one, control))
    mean, other = amounts([own or 0.0, base or 0.0])
    unit = "a user" if kind == MEAN else "an event"
    return (
        f"{one.variant_name} has a mean of {mean} {unit} over {one.sample_size:,} "
        f"users, {control.variant_name} {other} over {control.sample_size:,}"
    )


def _adjusted(pair: _Pair) -> str:
    return "always-valid " + p_value(pair.adjusted_p_value)


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


def _plan_warnings(control: Arm, plan: Plan, deciding: Level) -> list[Caution]:
    lower, upper, *_ = always_valid_rate_interval(
        control.conversions, control.sample_size, deciding.confidence
    )
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
