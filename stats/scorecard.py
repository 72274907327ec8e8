"""The metrics beside the primary one: guardrails, which may stop a win, and the rest.

A guardrail has a margin: how much worse a variant may be. It is `harmed` if the
difference is shown to be worse than the margin, and `harmless` if that is ruled out,
each at any look. A win needs every guardrail with a margin to be harmless, so a false
win needs one false test at least: harmlessness is not corrected for the number of
guardrails, and harm is (Bonferroni), because any of them can raise the alarm.

The differences of the secondary metrics are corrected together (Holm), and exploratory:
they decide nothing.

Schultzberg, Ankargren & Frånberg (2024), arXiv 2402.11609; Farrington & Manning (1990),
Stat. Med. 9, p. 1447-1454.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from stats import horizon
from stats.contrasts import tables_of
from stats.evidence import CENTRE, E_PROCESS, Question
from stats.means import always_valid_means, difference, lift
from stats.multiplicity import holm
from stats.numerics import np
from stats.rates import conversion_rate, rate_difference, rate_lift
from stats.results import (
    CONVERSION,
    GUARDRAIL,
    SECONDARY,
    Arm,
    Interval,
    Level,
    MetricComparison,
    MetricFigures,
    MetricOfVariant,
    MetricSettings,
    interval,
)
from stats.samples import Sample, samples
from stats.splits import pair_share

if TYPE_CHECKING:
    from stats.contrasts import Limits

HARMED, HARMLESS, NOT_SHOWN = "harmed", "harmless", "not_shown"
BETTER, WORSE, NOT_COUNTED = "better", "worse", "not_counted"


class Measured(NamedTuple):
    """A metric with the counts of each arm, the control's first."""

    settings: MetricSettings
    arms: Sequence[Arm]


class _Metric(NamedTuple):
    """The same, with the sample of each arm; None for a rate, and without sums."""

    settings: MetricSettings
    arms: Sequence[Arm]
    samples: list[Sample | None]

    @property
    def is_rate(self) -> bool:
        return self.settings.kind == CONVERSION


class _Levels(NamedTuple):
    """The error rates of one comparison that belong to a role.

    *shown* is that of the interval, *deciding* that of the same at the level of the
    verdict, and *harm* that of the alarm of a guardrail.
    """

    shown: float
    deciding: float
    harm: float


class _Test(NamedTuple):
    """A comparison: its p-value, the interval shown, and the two that decide."""

    p_value: float | None
    shown: Interval
    deciding: Interval
    harm: Interval


class Scorecard:
    """The metrics beside the primary one, whose rates are tested together.

    Their intervals are searched with those of the primary metric: *question* asks for
    them, and `figures` takes the answer.
    """

    def __init__(
        self, measured: Sequence[Measured], shown: Level, deciding: Level
    ) -> None:
        self._alpha = 1 - deciding.confidence
        self._levels = _levels([one.settings for one in measured], shown, deciding)
        self._metrics = [_Metric(*one, _samples(one)) for one in measured]
        rates = [one for one in self._metrics if one.is_rate]
        self._rates = _Rates.of(rates, self._levels) if rates else None

    @property
    def questions(self) -> list[Question]:
        """Return what has to be asked: one question, or none without a rate."""
        return [self._rates.question] if self._rates else []

    def figures(self, answers: Sequence[tuple[Limits, Limits]]) -> list[MetricFigures]:
        """Return the figures of each metric, with what they say of a variant."""
        tests: dict[str, list[_Test]] = {}
        if self._rates:
            ((differences, _),) = answers
            tests = self._rates.tests(differences)
        for one in self._metrics:
            if not one.is_rate:
                levels = self._levels[one.settings.role]
                tests[one.settings.name] = _mean_tests(one, levels)
        adjusted = _adjusted(self._metrics, tests)
        return [_figures(one, tests, adjusted, self._alpha) for one in self._metrics]


def _samples(one: Measured) -> list[Sample | None]:
    found = None if one.settings.kind == CONVERSION else samples(one.arms, one.settings)
    return found.any_look if found else [None] * len(one.arms)


def _levels(
    settings: Sequence[MetricSettings], shown: Level, deciding: Level
) -> dict[str, _Levels]:
    """Return the error rates of each role."""
    roles = [one.role for one in settings]
    guardrails, others = (max(roles.count(one), 1) for one in (GUARDRAIL, SECONDARY))
    return {
        GUARDRAIL: _Levels(shown.alpha, deciding.alpha, deciding.alpha / guardrails),
        SECONDARY: _Levels(
            shown.alpha / others, deciding.alpha / others, deciding.alpha / others
        ),
    }


def _mean_tests(one: _Metric, levels: _Levels) -> list[_Test]:
    """Return the tests of a mean or a ratio, for each variant but the control."""
    control, *treatments = one.samples
    tests = []
    for treatment in treatments:
        found = {
            alpha: always_valid_means(control, treatment, 1 - alpha)
            for alpha in set(levels)
        }
        p_value = found[levels.shown].p_value
        ends = (found[alpha].difference_interval for alpha in levels)
        tests.append(_Test(p_value, *ends))
    return tests


class _Rates(NamedTuple):
    """The pairs of some rates, and the error rates of each pair's intervals."""

    metrics: Sequence[_Metric]
    pairs: horizon.Pairs
    alphas: list[_Levels]

    @classmethod
    def of(cls, metrics: Sequence[_Metric], levels: dict[str, _Levels]) -> _Rates:
        sides = [(one.arms[0], arm) for one in metrics for arm in one.arms[1:]]
        shares = np.array([pair_share(*pair) for pair in sides])
        pairs = horizon.pairs_of(tables_of(sides), shares, None, CENTRE, len(sides))
        alphas = [levels[one.settings.role] for one in metrics for _ in one.arms[1:]]
        return cls(metrics, pairs, alphas)

    @property
    def _distinct(self) -> list[tuple[int, float]]:
        """Return the place of a pair, with an error rate, of each interval."""
        every = enumerate(self.alphas)
        return sorted({(row, alpha) for row, levels in every for alpha in levels})

    @property
    def question(self) -> Question:
        """Return what has to be asked for these intervals."""
        rows, alphas = zip(*self._distinct, strict=True)
        many = self.pairs.rows(np.array(rows))
        return horizon.question(many, np.array(alphas))._replace(has_ratios=False)

    def tests(self, limits: Limits) -> dict[str, list[_Test]]:
        """Return the tests of each metric, from the answer."""
        found = {
            place: interval(lower, upper, 1 - place[1], E_PROCESS)
            for place, lower, upper in zip(self._distinct, *limits, strict=True)
        }
        p_values = horizon.p_values(self.pairs, horizon.log_e(self.pairs)).tolist()
        rows = iter(
            _Test(p_values[row], *(found[row, alpha] for alpha in levels))
            for row, levels in enumerate(self.alphas)
        )
        return {
            one.settings.name: [next(rows) for _ in one.arms[1:]]
            for one in self.metrics
        }


def _adjusted(
    metrics: Sequence[_Metric], tests: dict[str, list[_Test]]
) -> dict[tuple[str, int], float]:
    """Return the p-values of all secondary comparisons, corrected together."""
    places = [
        (one.settings.name, place)
        for one in metrics
        if one.settings.role == SECONDARY
        for place in range(len(one.arms) - 1)
    ]
    raw = [tests[name][place].p_value for name, place in places]
    adjusted = holm([1.0 if one is None else one for one in raw])
    return dict(zip(places, adjusted, strict=True))


def _figures(
    one: _Metric,
    tests: dict[str, list[_Test]],
    adjusted: dict[tuple[str, int], float],
    alpha: float,
) -> MetricFigures:
    settings = one.settings
    is_counted = any(arm.conversions for arm in one.arms)
    estimates = _estimates(one)
    comparisons: list[MetricComparison | None] = [None]
    for place, test in enumerate(tests[settings.name]):
        corrected = adjusted.get((settings.name, place))
        apart, relative = _compared(one, place + 1)
        status = NOT_COUNTED
        if is_counted and settings.role == GUARDRAIL:
            status = _guarded(settings, test)
        elif is_counted:
            status = _explored(settings, apart, corrected, alpha)
        comparisons.append(
            MetricComparison(
                apart, relative, test.shown, test.p_value, corrected, status
            )
        )
    return MetricFigures(
        settings.name,
        settings.role,
        settings.direction,
        settings.kind,
        None if settings.margin is None else float(settings.margin),
        settings.role == SECONDARY,
        [
            MetricOfVariant(*arm[:2], arm.sample_size, arm.conversions, estimate, each)
            for arm, estimate, each in zip(
                one.arms, estimates, comparisons, strict=True
            )
        ],
    )


def estimates(arms: Sequence[Arm], settings: MetricSettings) -> list[float | None]:
    """Return the rate, the mean or the ratio of each arm; None without users."""
    one = Measured(settings, arms)
    return _estimates(_Metric(*one, _samples(one)))


def _estimates(one: _Metric) -> list[float | None]:
    """Return the rate, the mean or the ratio of each arm."""
    if not one.is_rate:
        return [each and each.mean for each in one.samples]
    return [
        conversion_rate(arm.conversions, arm.sample_size) if arm.sample_size else None
        for arm in one.arms
    ]


def _compared(one: _Metric, place: int) -> tuple[float | None, float | None]:
    """Return the difference of a variant from the control, and the relative one."""
    if one.is_rate:
        sides = one.arms[0], one.arms[place]
        return rate_difference(*sides), rate_lift(*sides)
    base, own = one.samples[0], one.samples[place]
    return difference(base, own) if base and own else None, lift(base, own)


def _guarded(settings: MetricSettings, test: _Test) -> str:
    """Return what a guardrail says of a variant."""
    margin = float(settings.margin or 0)
    best = settings.gains(test.harm)[1]
    if best is not None and best < -margin:
        return HARMED
    worst = settings.gains(test.deciding)[0]
    if settings.margin is not None and worst is not None and worst > -margin:
        return HARMLESS
    return NOT_SHOWN


def _explored(
    settings: MetricSettings,
    apart: float | None,
    p_value: float | None,
    alpha: float,
) -> str:
    """Return what a secondary metric says of a variant."""
    if not apart or p_value is None or p_value >= alpha:
        return NOT_SHOWN
    return BETTER if apart * settings.sign > 0 else WORSE
