"""How likely each variant is the best, and what is lost if it is not.

Not proof against peeking: "95 % likely to be best" at some look is no significance.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from stats.numerics import np, special

if TYPE_CHECKING:
    from stats.numerics import Floats

#: Tail probabilities at which each posterior breaks the range into panels.
TAILS = (1e-14, 1e-9, 1e-6, 1e-4, 0.01, 0.15)

#: Gauss-Legendre nodes on each panel.
NODES = 32


class Posterior(NamedTuple):
    """One number for each arm, in the order given."""

    probability_best: list[float]
    expected_loss: list[float]
    probability_to_beat_control: list[float]


def posterior(counts: Sequence[tuple[int, int]]) -> Posterior:
    """Return what Beta(1, 1) priors and (conversions, sample size) pairs imply.

    P(best) is the integral of ``f_k prod F_j``, the expected loss of choosing an
    arm is ``E[max] - E[p_k]`` with ``E[max]`` the integral of ``1 - prod F_j``;
    both by Gauss-Legendre quadrature on panels cut at every posterior's quantiles,
    so the same counts always give the same digits. An arm beats itself with
    probability 0.5.

    Stucchio (2015), "Bayesian A/B Testing at VWO", white paper; checked against
    the closed forms of Miller (2015).
    """
    successes = np.array([conversions + 1.0 for conversions, _ in counts])
    failures = np.array([size - conversions + 1.0 for conversions, size in counts])
    nodes, weights, start = _quadrature(_breakpoints(successes, failures))
    column = (slice(None), None)
    below = special.betainc(successes[column], failures[column], nodes)
    density = np.exp(
        special.xlogy(successes[column] - 1, nodes)
        + special.xlog1py(failures[column] - 1, -nodes)
        - special.betaln(successes, failures)[column]
    )
    everyone = below.prod(axis=0)
    best = [
        float((weights * density[k] * np.delete(below, k, axis=0).prod(axis=0)).sum())
        for k in range(len(counts))
    ]
    beats = (density * below[0]) @ weights
    beats = beats / np.maximum(density @ weights, 1e-300)
    highest = start + float(((1 - everyone) * weights).sum())
    loss = highest - successes / (successes + failures)
    return Posterior(
        probability_best=[share / sum(best) for share in best],
        expected_loss=[max(0.0, float(value)) for value in loss],
        probability_to_beat_control=[0.5, *(min(1.0, float(p)) for p in beats[1:])],
    )


def _breakpoints(successes: Floats, failures: Floats) -> Floats:
    """Return where the panels meet: every posterior's quantiles, sorted."""
    tails = np.array([*TAILS, 0.5])
    a, b = successes[:, None], failures[:, None]
    mean = a / (a + b)
    deviation = np.sqrt(mean * (1 - mean) / (a + b + 1))
    lower, upper = special.betaincinv(a, b, tails), special.betainccinv(a, b, tails)
    points = np.concatenate([lower, upper], axis=1)
    normal = special.ndtri(tails)
    rough = mean + deviation * np.concatenate([normal, -normal])
    points = np.where(np.isfinite(points), points, rough)
    return np.unique(np.clip(points, 0.0, 1.0))


@lru_cache(maxsize=1)
def _legendre() -> tuple[Floats, Floats]:
    """Return the nodes and weights on (-1, 1)."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    return nodes, weights


def _quadrature(points: Floats) -> tuple[Floats, Floats, float]:
    """Return nodes and weights of all panels, and where the first panel starts."""
    nodes, weights = _legendre()
    half = np.diff(points)[:, None] / 2
    middle = (points[1:] + points[:-1])[:, None] / 2
    return (middle + half * nodes).ravel(), (half * weights).ravel(), float(points[0])
