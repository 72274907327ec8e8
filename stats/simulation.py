"""Simulation: how the production statistics behave on experiments of your size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from typing import TYPE_CHECKING, NamedTuple

from stats import horizon
from stats.contrasts import Tables, fixed_horizon_p_value
from stats.evidence import CENTRE
from stats.numerics import np
from stats.results import Number, check_level
from stats.splits import shares

if TYPE_CHECKING:
    from stats.numerics import Flags, Floats, Indices

#: (salt, user id) to the position of the user's variant.
Assign = Callable[[str, str], int]

#: The measured cost of one look at one treatment, in simulated users.
LOOK = 10


class Share(NamedTuple):
    """A share of the runs, with its standard error."""

    value: float
    standard_error: float


class Simulation(NamedTuple):
    """The results of the runs that the budget allowed.

    A false alarm is a run without any effect in which some look was significant;
    power is the share of the runs with the effect in which some look was. Beside
    each, the ordinary z-test: looked at as often, and looked at once at the end.
    *mean_stop* is the users at the first significant look, or all, on average.
    """

    runs: int
    evaluations: int
    achieved_split: list[float]
    false_alarms: Share
    naive_false_alarms: Share
    single_look_false_alarms: Share
    power: Share
    naive_power: Share
    single_look_power: Share
    mean_stop: float


def simulate(
    *,
    participants: int,
    baseline_rate: float,
    effect: float,
    looks: int = 50,
    runs: int = 1000,
    splits: Sequence[Number] = (50, 50),
    seed: int = 0,
    assign: Assign | None = None,
    confidence_level: float = 0.95,
    centre: float = CENTRE,
    horizon_users: int | None = None,
    budget: int = 50_000_000,
) -> Simulation:
    """Return false alarms and power of the production test and of the z-test.

    *assign* is the production hash (without it users are assigned at random). The test
    is that of a planned experiment if there are *horizon_users*. *budget* is the work
    allowed, in simulated users: runs that do not fit are left out.
    """
    parts, rates = shares(splits), (baseline_rate, baseline_rate + effect)
    _check(participants, looks, rates)
    runs = _affordable(runs, budget, participants + LOOK * looks * (len(parts) - 1))
    ends = np.linspace(0, participants, looks + 1).round().astype(int)[1:]
    sizes, null, real = _counts(runs, parts, ends, rates, seed, assign)
    test = 1 - check_level(confidence_level), centre, horizon_users
    alarms, hits = (_significant(sizes, each, parts, *test) for each in (null, real))
    first = np.where(_ever(hits[0]), hits[0].argmax(axis=1), looks - 1)
    return Simulation(
        runs=runs,
        evaluations=runs * participants,
        achieved_split=_achieved(sizes),
        **_shares("false_alarms", alarms),
        **_shares("power", hits),
        mean_stop=float(ends[first].mean()),
    )


def _shares(name: str, hits: tuple[Flags, Flags]) -> dict[str, Share]:
    """Return the shares of this name, the last one for a single look at the end."""
    always, naive = hits
    return {
        name: _share(_ever(always)),
        f"naive_{name}": _share(_ever(naive)),
        f"single_look_{name}": _share(naive[:, -1]),
    }


def _achieved(sizes: Floats) -> list[float]:
    """Return each variant's share of all users at the last look."""
    users = sizes[:, -1].sum(axis=0)
    return [float(share) for share in users / users.sum()]


def _affordable(runs: int, budget: int, cost: int) -> int:
    if budget < cost:
        raise ValueError(f"A budget of {budget} allows no run that costs {cost}")
    return min(runs, budget // cost)


def _check(participants: int, looks: int, rates: tuple[float, float]) -> None:
    if not 1 <= looks <= participants:
        raise ValueError(f"{looks} looks at {participants} participants is impossible")
    if not all(0 <= rate <= 1 for rate in rates):
        raise ValueError(f"Rates lie between 0 and 1: {rates}")


def _counts(
    runs: int,
    parts: Sequence[float],
    ends: Indices,
    rates: tuple[float, float],
    seed: int,
    assign: Assign | None,
) -> tuple[Floats, Floats, Floats]:
    """Return users, and conversions without and with the effect.

    Each is an array of run, look and variant.
    """
    draw, participants = np.random.default_rng(seed), int(ends[-1])
    sizes = np.zeros((runs, len(ends), len(parts)))
    null, real = np.zeros_like(sizes), np.zeros_like(sizes)
    for run in range(runs):
        dealt = _dealt(draw, parts, participants, f"simulation-{seed}-{run}", assign)
        luck = draw.random(participants)
        sizes[run] = _cumulative(dealt, np.ones(participants, bool), ends, len(parts))
        null[run] = _cumulative(dealt, luck < rates[0], ends, len(parts))
        better = luck < np.where(dealt == 0, rates[0], rates[1])
        real[run] = _cumulative(dealt, better, ends, len(parts))
    return sizes, null, real


def _dealt(
    draw: np.random.Generator,
    parts: Sequence[float],
    participants: int,
    salt: str,
    assign: Assign | None,
) -> Indices:
    """Return the position of each user's variant, by the hash or at random."""
    if assign is None:
        return draw.choice(len(parts), size=participants, p=parts).astype(np.intp)
    places = (assign(salt, f"user-{user}") for user in range(participants))
    return np.fromiter(places, dtype=np.intp, count=participants)


def _cumulative(dealt: Indices, chosen: Flags, ends: Indices, arms: int) -> Floats:
    """Return how many chosen users each arm has at each look."""
    look = np.searchsorted(ends, np.arange(len(dealt)), side="right")
    places = look[chosen] * arms + dealt[chosen]
    counts = np.bincount(places, minlength=len(ends) * arms)
    return np.asarray(counts.reshape(len(ends), arms).cumsum(axis=0), dtype=float)


def _significant(
    sizes: Floats,
    conversions: Floats,
    parts: Sequence[float],
    alpha: float,
    centre: float,
    horizon_users: int | None,
) -> tuple[Flags, Flags]:
    """Tell at which looks the production test, and the z-test, is significant.

    Of several comparisons one is significant after Holm's adjustment exactly if
    the smallest p-value passes Bonferroni's bound.
    """
    comparisons = len(parts) - 1
    shape, users = sizes.shape[:2], sizes.sum(axis=-1).ravel()
    always, naive = np.zeros(shape, bool), np.zeros(shape, bool)
    for place in range(1, len(parts)):
        tables = Tables(
            sizes[..., 0].ravel(),
            conversions[..., 0].ravel(),
            sizes[..., place].ravel(),
            conversions[..., place].ravel(),
        )
        share = parts[place] / (parts[0] + parts[place])
        pairs = horizon.pairs_of(
            tables,
            np.full(len(tables.control_size), share),
            None
            if horizon_users is None
            else horizon.reached(tables, users, horizon_users, parts[0] * share),
            centre,
            comparisons,
        )
        p_values = horizon.p_values(pairs, horizon.log_e(pairs))
        always |= p_values.reshape(shape) < alpha / comparisons
        naive |= fixed_horizon_p_value(tables).reshape(shape) < alpha
    return always, naive


def _ever(hits: Flags) -> Flags:
    """Tell which runs were significant at some look."""
    return np.asarray(hits.any(axis=1))


def _share(hits: Flags) -> Share:
    """Return the share of hits with its binomial standard error."""
    value = float(hits.mean())
    return Share(value, sqrt(value * (1 - value) / len(hits)))
