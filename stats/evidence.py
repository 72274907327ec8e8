"""The always-valid test of two arms, whose error rate holds for any number of looks.

The parts are Turner & Grünwald's. Their combination (blocks of one user, a grid of
bets, Berger-Boos over time) is ours, so the tests prove it exactly for small samples
and by simulation for large ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from stats.contrasts import Limits, Tables, accepted, project
from stats.numerics import crossing, np, special

if TYPE_CHECKING:
    from stats.numerics import Flags, Floats, Indices

#: The name of the test and of its intervals.
E_PROCESS = "always_valid_e_process"

#: The log odds ratio on which the bets are centred without a plan: about 20 %.
CENTRE = 0.2

#: The part of alpha that is spent on the unknown pooled rate.
NUISANCE = 1e-4

#: The number of tables computed at once; more would need memory and save no time.
BATCH = 10_000

#: The number of pairs of a table and a cell computed at once. The arrays of more would
#: not fit into the processor's cache.
BLOCK = 200

CELLS = 48
BETS = 28
LEAST_BET, BET_RANGE, BET_SCALE = 0.005, 600.0, 0.8
AROUND_NULL = 0.95
CLIP = 1e-7


def nuisance_level(comparisons: int) -> float:
    """Return the part of alpha that is spent on the unknown pooled rate.

    It is 1e-4 for up to two comparisons. With more, each comparison has only
    alpha / comparisons, and this part is at most one fiftieth of that at alpha = 0.01.
    """
    return min(NUISANCE, 0.01 / 50 / max(comparisons, 1))


def always_valid_p_value(log_e: Floats, nuisance: float = NUISANCE) -> Floats:
    """Return the p-value that is valid at every look: ``beta + 1 / E``, at most 1.

    Berger & Boos (1994), JASA 89, p. 1012-1016; Ville (1939).
    """
    return np.asarray(np.minimum(1.0, nuisance + np.exp(-np.maximum(log_e, 0.0))))


def log_e_values(
    tables: Tables,
    share: float,
    centre: float = CENTRE,
    nuisance: float = NUISANCE,
) -> Floats:
    """Return the log e-value of each table against "no effect".

    *share* is the treatment's planned share of the pair's users. The product over
    users depends on the four counts alone, so neither the order of the users nor
    the number of looks matters. Under the null, the probability that it ever exceeds
    ``1 / alpha`` is at most alpha. The pooled rate is unknown, so the e-value is the
    smallest of all cells that the pooled rate may be in.

    Turner, Ly & Grünwald (2024), JSPI 230, 106116; Turner & Grünwald (2023),
    arXiv 2203.09785; Berger & Boos (1994), JASA 89, p. 1012-1016.
    """
    size = len(tables.control_size)
    if size > BATCH:
        batches = np.array_split(np.arange(size), -(-size // BATCH))
        each = (tables.rows(batch) for batch in batches)
        return np.concatenate(
            [log_e_values(batch, share, centre, nuisance) for batch in each]
        )
    edges, factors, log_weights = _equality_bets(share, centre)
    counts = _counts(tables)
    kept = _kept(tables, edges[:-1], edges[1:], nuisance)
    least = np.full(len(counts), np.inf)
    for cell in range(CELLS):
        index = np.flatnonzero(kept[:, cell])
        if len(index):
            products = counts[index] @ factors[cell] + log_weights
            least[index] = np.minimum(least[index], _log_sum(products))
    return np.asarray(least)


def null_log_e_values(
    tables: Tables,
    share: Floats,
    ratio: Floats,
    shift: Floats,
    centre: float = CENTRE,
    nuisance: float = NUISANCE,
) -> Floats:
    """Return the log e-value of each table against its null line.

    The method is that of `log_e_values`, for ``p_t = ratio * p_c + shift``. Each bet
    is compared with the nearest point of the line, its reverse information
    projection, so that the expectation of every factor is at most 1 on the whole
    line. If no pooled rate on the line is compatible with the counts, the nearest
    cell is kept: a doubt about the split is no evidence of an effect.
    """
    return _null_log_e_values(_pairs(tables, share, centre, nuisance), ratio, shift)


class Question(NamedTuple):
    """Some tables whose always-valid intervals are wanted, at these error rates.

    *alpha* is one number, or one for each table. The ratios are unknown, which takes
    half the work, unless they are wanted.
    """

    tables: Tables
    share: Floats
    alpha: Floats | float
    centre: float = CENTRE
    nuisance: float = NUISANCE
    has_ratios: bool = True


def always_valid_limits(*questions: Question) -> list[tuple[Limits, Limits]]:
    """Return the always-valid intervals for difference and ratio of each question.

    They hold all nulls with ``E < 1 / (alpha - beta)``, and so they exclude "no
    effect" exactly if the always-valid p-value is below alpha. All are computed
    together, because many take little longer than one.
    """
    sizes = [len(one.share) for one in questions]

    def column(values: Sequence[Floats | float]) -> Floats:
        pairs = zip(values, sizes, strict=True)
        return np.concatenate([np.broadcast_to(*each) for each in pairs])

    *columns, has_ratios = (
        column([getattr(one, name) for one in questions])
        for name in ("share", "alpha", "centre", "nuisance", "has_ratios")
    )
    share, alpha, centre, nuisance = columns
    tables = Tables.joined([one.tables for one in questions])
    threshold = -np.log(alpha - nuisance)
    pairs = _pairs(tables, share, centre, nuisance)

    def excess(index: Indices, ratio: Floats, shift: Floats) -> Floats:
        values = _null_log_e_values(pairs.rows(index), ratio, shift)
        return np.asarray(values - threshold[index])

    found = accepted(tables, excess, 3.3, 1e-8, has_ratios.astype(bool))
    ends = np.cumsum(sizes)[:-1].tolist()
    differences, ratios = (limits.parts(ends) for limits in found)
    return list(zip(differences, ratios, strict=True))


class _Pairs(NamedTuple):
    """What the e-values of many tables need, whatever the null line is.

    *kept* are the cells of each table's pooled rate, and *pooled* is that rate. A
    table's *kind* is its share and its centre, and *bets* are those of each kind.
    """

    counts: Floats
    share: Floats
    pooled: Floats
    kept: Flags
    kind: Indices
    bets: _Bets

    def rows(self, index: Indices) -> _Pairs:
        """Return the pairs at these places, in this order."""
        return self._replace(
            counts=self.counts[index],
            share=self.share[index],
            pooled=self.pooled[index],
            kept=self.kept[index],
            kind=self.kind[index],
        )


class _Bets(NamedTuple):
    """The bets of each kind: odds ratios, log weights, and the rates around equality.

    Most of the weight is on bets around the null's point at the middle of the cell's
    possible part, and the rest on bets around equality at the middle of the cell.
    """

    odds: Floats
    log_weights: Floats
    equal: Floats


@lru_cache(maxsize=64)
def _bets(kinds: tuple[tuple[float, float], ...]) -> _Bets:
    """Return the bets of these pairs of a share and a centre."""
    each = [bets(centre) for _, centre in kinds]
    weights = [
        np.concatenate([one + np.log(AROUND_NULL), one + np.log1p(-AROUND_NULL)])
        for _, one in each
    ]
    return _Bets(
        np.stack([np.exp(sizes) for sizes, _ in each]),
        np.stack(weights),
        np.stack([_equal_rates(*kind) for kind in kinds]),
    )


def _pairs(
    tables: Tables, share: Floats, centre: Floats | float, nuisance: Floats | float
) -> _Pairs:
    edges = _edges()
    total = tables.control_size + tables.treatment_size
    converted = tables.control_conversions + tables.treatment_conversions
    centres = np.broadcast_to(centre, len(share))
    every = list(zip(share.tolist(), centres.tolist(), strict=True))
    kinds = {kind: place for place, kind in enumerate(dict.fromkeys(every))}
    return _Pairs(
        counts=_counts(tables),
        share=share,
        pooled=converted / np.maximum(total, 1),
        kept=_kept(tables, edges[:-1], edges[1:], nuisance),
        kind=np.array([kinds[kind] for kind in every]),
        bets=_bets(tuple(kinds)),
    )


def _null_log_e_values(pairs: _Pairs, ratio: Floats, shift: Floats) -> Floats:
    edges = _edges()
    low, high = _pooled_range(pairs.share, ratio, shift)
    lower = np.maximum(edges[:-1], low[:, None])
    upper = np.minimum(edges[1:], high[:, None])
    possible = lower <= upper
    kept = possible & pairs.kept
    none = ~kept.any(axis=1)
    if none.any():
        kept[none] = _nearest(
            pairs.pooled[none], lower[none], upper[none], possible[none]
        )
    values = np.full(kept.shape, np.inf)
    rows, cells = np.nonzero(kept)
    for start in range(0, len(rows), BLOCK):
        row, cell = (each[start : start + BLOCK] for each in (rows, cells))
        kind, tried = pairs.kind[row], pairs.bets
        values[row, cell] = _null_products(
            pairs.counts[row],
            _middle(lower[row, cell], upper[row, cell]),
            _Bets(
                tried.odds[kind], tried.log_weights[kind], tried.equal[kind, :, cell]
            ),
            _Line(pairs.share[row, None], ratio[row, None], shift[row, None]),
        )
    return np.asarray(values.min(axis=1))


def _counts(tables: Tables) -> Floats:
    """Return the counts (converted, not) of control and treatment, a row a table."""
    control_size, control_conversions, treatment_size, treatment_conversions = tables
    return np.column_stack(
        [
            control_conversions,
            control_size - control_conversions,
            treatment_conversions,
            treatment_size - treatment_conversions,
        ]
    ).astype(float)


@lru_cache(maxsize=1)
def _edges() -> Floats:
    """Return the edges of the pooled rate's cells, equidistant in arcsine scale."""
    edges = np.sin(np.linspace(0, np.pi / 2, CELLS + 1)) ** 2
    edges[-1] = 1.0
    return np.asarray(edges)


def _middle(lower: Floats, upper: Floats) -> Floats:
    """Return the rate halfway between two rates in arcsine scale."""
    halfway = (np.arcsin(np.sqrt(lower)) + np.arcsin(np.sqrt(upper))) / 2
    return np.asarray(np.sin(halfway) ** 2)


def _kept(
    tables: Tables, lower: Floats, upper: Floats, nuisance: Floats | float
) -> Flags:
    """Tell which cells overlap the confidence sequence of the pooled rate.

    The beta-binomial likelihood ratio is smallest at the observed rate, so a cell
    overlaps the sequence if its point nearest to that rate is in the sequence.

    Robbins (1970), Ann. Math. Stat. 41, p. 1397-1409.
    """
    total = (tables.control_size + tables.treatment_size)[:, None]
    converted = (tables.control_conversions + tables.treatment_conversions)[:, None]
    nearest = np.clip(converted / np.maximum(total, 1), lower, upper)
    ratio = special.betaln(converted + 0.5, total - converted + 0.5)
    ratio = ratio - special.betaln(0.5, 0.5)
    ratio = ratio - special.xlogy(converted, nearest)
    ratio = ratio - special.xlog1py(total - converted, -nearest)
    return np.asarray(ratio < -np.log(np.reshape(nuisance, (-1, 1))))


def _nearest(pooled: Floats, lower: Floats, upper: Floats, possible: Flags) -> Flags:
    """Tell which of the possible cells is nearest to the observed pooled rate."""
    rate = pooled[:, None]
    distance = np.maximum(lower - rate, rate - upper)
    distance = np.where(possible, distance, np.inf)
    return np.asarray(np.arange(CELLS) == distance.argmin(axis=1)[:, None])


@lru_cache(maxsize=64)
def bets(centre: float) -> tuple[Floats, Floats]:
    """Return the bets on the log odds ratio and the logs of their weights."""
    sizes = LEAST_BET * BET_RANGE ** (np.arange(BETS) / (BETS - 1))
    weights = 1 / (1 + (np.log(sizes / centre) / BET_SCALE) ** 2)
    weights = np.concatenate([weights, weights])
    return np.concatenate([-sizes, sizes]), np.log(weights / weights.sum())


def alternatives(pooled: Floats, share: Floats, odds: Floats) -> tuple[Floats, Floats]:
    """Return both arms' rates for this pooled rate and odds ratio."""
    quadratic = (1 - share) * (odds - 1)
    linear = 1 + (odds - 1) * (share - pooled)
    root = np.sqrt(np.maximum(linear**2 + 4 * quadratic * pooled, 0.0))
    with np.errstate(all="ignore"):
        control = np.where(
            linear > 0, 2 * pooled / (linear + root), (root - linear) / (2 * quadratic)
        )
    treatment = odds * control / (1 - control + odds * control)
    return _clipped(control), _clipped(treatment)


def _clipped(rate: Floats) -> Floats:
    """Return a rate that is neither 0 nor 1; `np.clip` takes three times as long."""
    return np.asarray(np.minimum(np.maximum(rate, CLIP), 1 - CLIP))


@lru_cache(maxsize=64)
def _equality_bets(share: float, centre: float) -> tuple[Floats, Floats, Floats]:
    """Return the edges of the cells, their (4, 56) log factors, and the log weights."""
    control, treatment = _equal_rates(share, centre)
    null = share * treatment + (1 - share) * control
    factors = _log_factors(control, null) + _log_factors(treatment, null)
    return _edges(), np.stack(factors, axis=1), bets(centre)[1]


@lru_cache(maxsize=64)
def _equal_rates(share: float, centre: float) -> Floats:
    """Return both arms' rates of the bets around equality: (2, cells, bets)."""
    edges = _edges()
    pooled = _middle(edges[:-1], edges[1:])[:, None]
    odds = np.exp(bets(centre)[0])
    return np.stack(alternatives(pooled, np.asarray(share), odds))


def _log_factors(rate: Floats, null: Floats) -> tuple[Floats, Floats]:
    """Return the log factors of a user who converts and of one who does not."""
    null = np.minimum(np.maximum(null, 1e-300), 1 - 1e-16)
    return (
        np.log1p((rate - null) / null),
        np.log1p((null - rate) / (1 - null)),
    )


def _pooled_range(share: Floats, ratio: Floats, shift: Floats) -> tuple[Floats, Floats]:
    """Return the lowest and the highest pooled rate on the null line."""
    low = np.maximum(0.0, -shift / ratio)
    high = np.minimum(1.0, (1 - shift) / ratio)
    slope = 1 - share + share * ratio
    ends = low * slope + share * shift, high * slope + share * shift
    first, last = (np.minimum(np.maximum(end, 0), 1) for end in ends)
    return first, last


class _Line(NamedTuple):
    """The null line of each (table, cell), and the pair's share, as columns."""

    share: Floats
    ratio: Floats
    shift: Floats


def _null_products(
    counts: Floats,
    possible_rate: Floats,
    tried: _Bets,
    line: _Line,
) -> Floats:
    """Return the log of the mixture of products, one for each (table, cell)."""
    share, ratio, shift = line
    control_null = (possible_rate[:, None] - share * shift) / (
        1 - share + share * ratio
    )
    treatment_null = _clipped(ratio * control_null + shift)
    control_null = _clipped(control_null)
    odds = treatment_null * (1 - control_null) / ((1 - treatment_null) * control_null)
    near = alternatives(possible_rate[:, None], share, odds * tried.odds)
    control = np.concatenate([near[0], tried.equal[:, 0]], axis=1)
    treatment = np.concatenate([near[1], tried.equal[:, 1]], axis=1)
    s = project(control, treatment, share, ratio, shift)
    factors = _log_factors(control, s) + _log_factors(treatment, ratio * s + shift)
    products = tried.log_weights
    for column, factor in enumerate(factors):
        products = products + counts[:, column, None] * factor
    return _log_sum(products)


def _log_sum(logarithms: Floats) -> Floats:
    """Return the log of the sum of exponentials of each row."""
    top = logarithms.max(axis=-1)
    rest = np.exp(logarithms - top[..., None]).sum(axis=-1)
    return np.asarray(top + np.log(rest))


# ---------------------------------------------------------------------------
# The normal approximation: planning, and means


def normal_log_e_value(z: float, information: float, centre: float = CENTRE) -> float:
    """Return the log e-value of a z statistic: the same bets, asymptotically.

    *information* is the square of the expected z at a log odds ratio of 1:
    ``n_c n_t / N * p (1 - p)`` for two rates. Small samples have no guarantee.

    Robbins (1970), Ann. Math. Stat. 41, p. 1397-1409; Johari, Koomen, Pekelis &
    Walsh (2022), Oper. Res. 70, p. 1806-1821.
    """
    return _normal_log_e_values(information, centre)(z)


def _normal_log_e_values(information: float, centre: float) -> Callable[[float], float]:
    """Return the function from a z statistic to its log e-value."""
    sizes, log_weights = bets(centre)
    drift = sizes * np.sqrt(information)
    half = drift**2 / 2

    def value(z: float) -> float:
        return float(_log_sum(log_weights + drift * z - half))

    return value


def critical_score(
    information: float, alpha: float, centre: float = CENTRE
) -> float | None:
    """Return the |z| that is significant at any look; None if there is none.

    Without information no statistic is significant, because the mixture is still 1.
    """
    drift = np.abs(bets(centre)[0]) * np.sqrt(information)
    if not drift.max() > 1e-6:
        return None
    value, log_alpha = _normal_log_e_values(information, centre), float(np.log(alpha))

    def excess(z: float) -> float:
        return min(value(z) + log_alpha, 1e6)

    highest = 4.0
    while excess(highest) < 0:
        highest *= 2
    return crossing(excess, 0.0, highest)
