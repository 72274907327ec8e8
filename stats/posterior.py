"""The probability that each variant is the best, and the expected loss.

These figures do not allow for repeated looks: a probability of 95 % at some look does
not mean significance.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from stats.numerics import np, special

if TYPE_CHECKING:
    from stats.numerics import Floats

#: The weight of the prior in users.
PRIOR_USERS = 2.0

#: Tail probabilities at which each posterior breaks the range into panels.
TAILS = (1e-14, 1e-9, 1e-6, 1e-4, 0.01, 0.15)

#: The number of Gauss-Legendre nodes on each panel.
NODES = 32

#: The largest ratio of a panel's two ends, and the end of the lowest panel times the
#: number of users. On the lowest panel every posterior is a power of x.
PANEL, LOWEST = 1e3, 1e-9


class Beta(NamedTuple):
    """A prior of a rate, as a number of users who converted and who did not."""

    successes: float
    failures: float


class Posterior(NamedTuple):
    """The figures of each arm, in the order of the arms."""

    probability_best: list[float]
    expected_loss: list[float]
    probability_to_beat_control: list[float]


def pooled_prior(counts: Sequence[tuple[int, int]]) -> Beta:
    """Return a prior with the weight of two users, centred on the pooled rate.

    Beta(1, 1) is centred on 50 %, and so favours an arm with few users if rates are
    low: 0 of 30 would beat 30 of 3,000 with a probability of 73 %. The pooled rate
    includes one more user who converted and one who did not, so that it is never 0
    or 1. Without users the prior is Beta(1, 1).
    """
    conversions = sum(converted for converted, _ in counts) + 1
    users = sum(size for _, size in counts) + 2
    return Beta(
        PRIOR_USERS * conversions / users, PRIOR_USERS * (users - conversions) / users
    )


def posterior(
    counts: Sequence[tuple[int, int]], prior: Beta | None = None
) -> Posterior:
    """Return the posterior figures of arms with these (conversions, sample size) pairs.

    The default of *prior* is `pooled_prior`. P(best) is the integral of
    ``f_k prod F_j``. The expected loss of choosing an arm is ``E[max] - E[p_k]``, with
    ``E[max]`` the integral of ``1 - prod F_j``. Both use Gauss-Legendre quadrature on
    panels between the quantiles of all posteriors, so that the same counts always give
    the same digits. An arm beats itself with probability 0.5.

    Stucchio (2015), "Bayesian A/B Testing at VWO", white paper; checked against
    the closed forms of Miller (2015).
    """
    own = prior or pooled_prior(counts)
    successes = np.array([converted + own.successes for converted, _ in counts])
    failures = np.array([size - converted + own.failures for converted, size in counts])
    # A density may be infinite at the end that is nearer to the prior's centre. That
    # end must be 0, because floats are finest there. So with a centre above 50 % the
    # rates of not converting are integrated, and the best arm has the lowest rate.
    is_mirrored = own.successes > own.failures
    a, b = (failures, successes) if is_mirrored else (successes, failures)
    grid = _grid(a, b, min(own))
    beyond = 1 - grid.below if is_mirrored else grid.below
    everyone = beyond.prod(axis=0)
    best = [
        float((grid.mass[k] * np.delete(beyond, k, axis=0).prod(axis=0)).sum())
        for k in range(len(counts))
    ]
    beats = (grid.mass @ beyond[0]) / np.maximum(grid.mass.sum(axis=1), 1e-300)
    highest = float(((1 - everyone) * grid.widths).sum())
    if is_mirrored:
        highest = 1 - float((everyone * grid.widths).sum())
    loss = highest - successes / (successes + failures)
    return Posterior(
        probability_best=[share / sum(best) for share in best],
        expected_loss=[max(0.0, float(value)) for value in loss],
        probability_to_beat_control=[0.5, *(min(1.0, float(p)) for p in beats[1:])],
    )


class _Grid(NamedTuple):
    """The nodes of an integral over rates.

    *widths* has the weight of dx at each node, *mass* the weight of each posterior,
    and *below* each posterior's probability of a rate below the node.
    """

    widths: Floats
    mass: Floats
    below: Floats


def _grid(a: Floats, b: Floats, least: float) -> _Grid:
    """Return the nodes for these posteriors; *least* is the exponent of the prior.

    Below `LOWEST` divided by the users, a posterior without a conversion is
    ``c x^least``, and half of its mass may be below the smallest float. That panel
    is integrated over ``x^least``, and all others over ``log x``.
    """
    start = LOWEST / float((a + b).max())
    lowest = _lowest_panel(a, b, least, start)
    points = _breakpoints(a, b)
    edges = _filled(np.log(np.concatenate([[start], points[points > start]])))
    nodes, weights = _legendre()
    half = np.diff(edges)[:, None] / 2
    logs = (edges[:-1, None] + half * (1 + nodes)).ravel()
    rates, weights = np.exp(logs), (half * weights).ravel()
    column = (slice(None), None)
    density = np.exp(
        a[column] * logs
        + special.xlog1py(b[column] - 1, -rates)
        - special.betaln(a, b)[column]
    )
    below = special.betainc(a[column], b[column], rates)
    return _Grid(
        np.concatenate([lowest.widths, rates * weights]),
        np.concatenate([lowest.mass, density * weights], axis=1),
        np.concatenate([lowest.below, below], axis=1),
    )


def _lowest_panel(a: Floats, b: Floats, least: float, end: float) -> _Grid:
    """Return the nodes from 0 to *end*, where rates are too small for floats.

    With ``x = end * t^(1 / least)`` the mass of an arm without a conversion is spread
    evenly over t. The series of the incomplete beta function is cut after its second
    term: *end* is that small.
    """
    nodes, weights = _legendre()
    t, weights = (1 + nodes) / 2, weights / 2
    logs = np.log(end) + np.log(t) / least
    rates = np.exp(logs)
    a, b = a[:, None], b[:, None]
    whole = special.betaln(a, b)
    series = np.log1p(a * (1 - b) * rates / (a + 1))
    mass = np.exp(a * logs + (b - 1) * np.log1p(-rates) - whole)
    return _Grid(
        rates * weights / (least * t),
        mass * weights / (least * t),
        np.exp(a * logs - np.log(a) - whole + series),
    )


def _filled(logs: Floats) -> Floats:
    """Return the edges, as logs, with further edges between distant ones."""
    parts = np.ceil(np.diff(logs) / np.log(PANEL)).astype(int)
    places = np.concatenate([[0], np.cumsum(parts)])
    return np.asarray(np.interp(np.arange(places[-1] + 1), places, logs))


def _breakpoints(successes: Floats, failures: Floats) -> Floats:
    """Return the quantiles of all posteriors, sorted."""
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
    """Return the Gauss-Legendre nodes and weights on (-1, 1)."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    return nodes, weights
