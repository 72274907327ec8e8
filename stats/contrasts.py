"""Two arms compared at a planned end: score test, difference and lift.

A null hypothesis is a line ``p_t = ratio * p_c + shift``: a difference is a
shift at ratio 1, a lift is a ratio at shift 0, and no effect is (1, 0).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from stats.numerics import crossings, np, special

if TYPE_CHECKING:
    from stats.numerics import Flags, Floats, Indices
    from stats.results import Arm

#: How far rates are kept from 0 and 1 where a logarithm or a division needs it.
EDGE = 1e-15

#: The farthest ratio looked at; beyond it an interval counts as unbounded.
FARTHEST = 27.6  # ln(1e12)

#: The farthest difference looked at; if it is accepted, so is 1.
ALMOST_ONE = 1 - 1e-12


class Tables(NamedTuple):
    """Many two-arm tables side by side: one array a column."""

    control_size: Floats
    control_conversions: Floats
    treatment_size: Floats
    treatment_conversions: Floats

    @classmethod
    def joined(cls, parts: Sequence[Tables]) -> Tables:
        """Return the tables of all parts, in their order."""
        return cls(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def rows(self, index: Indices) -> Tables:
        """Return the tables at these places, in this order."""
        return Tables(*(column[index] for column in self))


def tables_of(pairs: Sequence[Sequence[Arm]]) -> Tables:
    """Return the tables of many pairs of a control and a treatment."""
    return Tables(
        *(
            np.array([float(getattr(pair[side], name)) for pair in pairs])
            for side in (0, 1)
            for name in ("sample_size", "conversions")
        )
    )


class Limits(NamedTuple):
    """The ends of many intervals; NaN where an end is unbounded or unknown."""

    lower: Floats
    upper: Floats

    def parts(self, ends: Sequence[int]) -> list[Limits]:
        """Return the intervals in parts, cut at these places."""
        lower, upper = (np.split(one, ends) for one in self)
        return [Limits(*each) for each in zip(lower, upper, strict=True)]

    def with_all_of(self, other: Limits) -> Limits:
        """Return the intervals widened to hold the other ones too."""
        return Limits(
            np.minimum(self.lower, other.lower), np.maximum(self.upper, other.upper)
        )


def project(
    control_rate: Floats,
    treatment_rate: Floats,
    share: Floats,
    ratio: Floats,
    shift: Floats,
) -> Floats:
    """Return the control rate of the null line's point nearest to these rates.

    Nearest is ``(1-w) KL(p_c || s) + w KL(p_t || ratio s + shift)`` with *w* the
    treatment's share, so with ``w = n_t / N`` this is the maximum likelihood
    estimate under the null. The closed form of the cubic (quadratic where the
    shift is 0) starts a safeguarded Newton iteration on the score, which is strictly
    decreasing, so it has exactly one root.

    Miettinen & Nurminen (1985), Stat. Med. 4, p. 213-226.
    """
    low = np.maximum(0.0, -shift / ratio)
    high = np.minimum(1.0, (1 - shift) / ratio)
    control_rate = np.minimum(np.maximum(control_rate, EDGE), 1 - EDGE)
    treatment_rate = np.minimum(np.maximum(treatment_rate, EDGE), 1 - EDGE)
    s = _start(control_rate, treatment_rate, share, ratio, shift)
    s = np.where((s > low) & (s < high), s, (low + high) / 2)
    is_found = np.zeros(np.shape(s), dtype=bool)
    for _ in range(100):
        step = _newton(s, (control_rate, treatment_rate), share, ratio, shift)
        moved = s + step.length
        is_last = _is_last(s, moved, step)
        # Rounding alone can turn a step against its slope.
        is_last &= (step.length * step.slope >= 0) & (moved >= low) & (moved <= high)
        if (is_found | is_last).all():
            return np.where(is_found, s, moved)
        rising = step.slope > 0
        low, high = np.where(rising, s, low), np.where(rising, high, s)
        is_safe = (moved >= low) & (moved <= high)
        moved = np.where(is_last | is_safe, moved, (low + high) / 2)
        is_last |= _is_last(s, moved, step) | (high - low <= 1e-17)
        # A root that is found stays, whatever the others beside it need.
        s, is_found = np.where(is_found, s, moved), is_found | is_last
    return s


class _Step(NamedTuple):
    """A step of Newton, with the slope of the likelihood where it starts.

    *room* is how far the start is from the ends of its range, about.
    """

    length: Floats
    slope: Floats
    room: Floats


def _is_last(s: Floats, moved: Floats, step: _Step) -> Flags:
    """Tell which steps are so small that they are the last ones.

    Newton converges quadratically.
    """
    enough = np.maximum(1e-9 * step.room, 2e-16 * s)
    return np.asarray(np.abs(moved - s) <= enough)


def _newton(
    s: Floats,
    rates: tuple[Floats, Floats],
    share: Floats,
    ratio: Floats,
    shift: Floats,
) -> _Step:
    """Return Newton's step from the point of the null line at s."""
    control_rate, treatment_rate = rates
    t = ratio * s + shift
    control_spread, treatment_spread = s * (1 - s), t * (1 - t)
    other, tilted = 1 - share, share * ratio
    slope = other * (control_rate - s) * treatment_spread
    slope += tilted * (treatment_rate - t) * control_spread
    curve = other * (control_rate * (1 - 2 * s) + s * s) * treatment_spread**2
    curve += (
        share * ratio**2 * (treatment_rate * (1 - 2 * t) + t * t)
    ) * control_spread**2
    with np.errstate(all="ignore"):
        length = slope * control_spread * treatment_spread / curve
    return _Step(length, slope, np.minimum(control_spread, treatment_spread / ratio))


def _start(
    control_rate: Floats,
    treatment_rate: Floats,
    share: Floats,
    ratio: Floats,
    shift: Floats,
) -> Floats:
    """Return the closed-form root, exact but for cancellation.

    The sines take longer than all else, and only the rows of differences need them.
    """
    columns = (control_rate, treatment_rate, share, ratio, shift)
    is_shifted = np.ravel(shift) != 0
    if is_shifted.all():
        return _cubic_root(*columns)
    if not is_shifted.any():
        return _quadratic_root(*columns)
    root = np.empty(np.shape(control_rate))
    for rows, root_of in ((is_shifted, _cubic_root), (~is_shifted, _quadratic_root)):
        root[rows] = root_of(*(each[rows] for each in columns))
    return root


def _quadratic_root(
    control_rate: Floats,
    treatment_rate: Floats,
    share: Floats,
    ratio: Floats,
    _: Floats,
) -> Floats:
    """Return the root where the shift is 0."""
    other = 1 - share
    linear = other * (1 + ratio * control_rate) + share * (treatment_rate + ratio)
    constant = other * control_rate + share * treatment_rate
    inner = np.maximum(linear * linear - 4 * ratio * constant, 0.0)
    return np.asarray(2 * constant / (linear + np.sqrt(inner)))


def _cubic_root(
    control_rate: Floats,
    treatment_rate: Floats,
    share: Floats,
    ratio: Floats,
    shift: Floats,
) -> Floats:
    """Return the root where the shift is not 0."""
    other = 1 - share
    tilt, level = ratio * (1 - 2 * shift), shift * (1 - shift)
    gap = treatment_rate - shift
    square = ratio * ratio
    two = -other * (control_rate * square + tilt) - share * ratio * (gap + ratio)
    one = other * (control_rate * tilt - level) + share * ratio * gap
    two, one = two / square, one / square
    zero = other * control_rate * level / square
    middle = -two / 3
    radius = np.sqrt(np.maximum(middle * middle - one / 3, 1e-300))
    height = ((middle + two) * middle + one) * middle + zero
    sine = np.minimum(np.maximum(height / (2 * radius**3), -1), 1)
    return np.asarray(middle + 2 * radius * np.sin(np.arcsin(sine) / 3))


def score(tables: Tables, ratio: Floats, shift: Floats) -> Floats:
    """Return the score statistic of each table against its null line.

    Positive where the treatment does better than the null says. Tables without
    spread carry no evidence: 0.

    Mee (1984), Biometrics 40, p. 1175-1176 (difference); Koopman (1984),
    Biometrics 40, p. 513-517 (ratio); no continuity correction, no N/(N-1).
    """
    control_size, control_conversions, treatment_size, treatment_conversions = tables
    control_rate = control_conversions / np.maximum(control_size, 1)
    treatment_rate = treatment_conversions / np.maximum(treatment_size, 1)
    total = np.maximum(control_size + treatment_size, 1)
    s = project(control_rate, treatment_rate, treatment_size / total, ratio, shift)
    t = ratio * s + shift
    with np.errstate(all="ignore"):
        variance = t * (1 - t) / treatment_size + ratio**2 * s * (1 - s) / control_size
        z = (treatment_rate - ratio * control_rate - shift) / np.sqrt(variance)
    return np.where(np.isfinite(z), z, 0.0)


def pooled_score(tables: Tables) -> Floats:
    """Return the score statistic against "no effect": the pooled z-test.

    The same number as ``score(tables, 1, 0)``, in closed form.
    """
    control_size, control_conversions, treatment_size, treatment_conversions = tables
    total = control_size + treatment_size
    pooled = (control_conversions + treatment_conversions) / np.maximum(total, 1)
    with np.errstate(all="ignore"):
        spread = pooled * (1 - pooled) * (1 / control_size + 1 / treatment_size)
        difference = (
            treatment_conversions / treatment_size - control_conversions / control_size
        )
        z = difference / np.sqrt(spread)
    return np.where(np.isfinite(z), z, 0.0)


def fixed_horizon_p_value(tables: Tables) -> Floats:
    """Return the two-sided p-value of one look at the planned end.

    Equal to R's ``prop.test(correct = FALSE)``; 1 where an arm is empty or every
    user did the same.
    """
    return np.asarray(2 * special.ndtr(-np.abs(pooled_score(tables))))


def score_limits(tables: Tables, critical: Floats | float) -> tuple[Limits, Limits]:
    """Return the intervals for difference and ratio: all nulls with |z| < critical.

    *critical* is one number, or one for each table.

    Both come from the statistic that the p-value comes from, so the three agree:
    the p-value is below alpha exactly if each interval leaves out "no effect".

    Mee (1984) and Koopman (1984), as in `score`; Newcombe (1998), Stat. Med. 17,
    p. 873-890, method 5.
    """

    bound = np.broadcast_to(critical, len(tables.control_size))

    def excess(index: Indices, ratio: Floats, shift: Floats) -> Floats:
        rows = tables.rows(index)
        z = score(rows, ratio, shift)
        none = (ratio == 1) & (shift == 0)
        if none.any():
            z = np.where(none, pooled_score(rows), z)
        return np.asarray(np.abs(z) - bound[index])

    return accepted(tables, excess, bound, 1e-11)


def accepted(
    tables: Tables,
    excess: Callable[[Indices, Floats, Floats], Floats],
    critical: Floats | float,
    precision: float,
    has_ratios: Flags | bool = True,
) -> tuple[Limits, Limits]:
    """Return all differences and all ratios at which *excess* is negative.

    The ratios of a table are unknown, which takes half the work, unless it has them.

    *excess* is called with many nulls at once: the indices of their tables, ratios,
    shifts. The search goes outwards from the estimate in steps of about *critical*
    standard errors and then narrows down; "no effect" is always one of the points.
    """
    count = len(tables.control_size)
    searches = _searches(tables, critical)
    searches.unknown[2 * count :] |= ~np.tile(np.broadcast_to(has_ratios, count), 2)

    def at(point: Floats, search: Indices) -> Floats:
        scaled = searches.on_ratio[search]
        ratio = np.where(scaled, np.exp(np.where(scaled, point, 0.0)), 1.0)
        shift = np.where(scaled, 0.0, point)
        return np.minimum(excess(searches.table[search], ratio, shift), 1e6)

    ends = _walk(searches, at, precision)
    difference_low, difference_high, ratio_low, ratio_high = ends.reshape(4, count)
    return (
        Limits(difference_low, difference_high),
        Limits(np.exp(ratio_low), np.exp(ratio_high)),
    )


class _Searches(NamedTuple):
    """The interval ends to find: four for each table."""

    table: Indices
    on_ratio: Flags
    sign: Floats
    start: Floats
    step: Floats
    limit: Floats
    closed: Floats
    unknown: Flags


def _searches(tables: Tables, critical: Floats | float) -> _Searches:
    """Return where each search starts, its first step, and where it must stop."""
    control_size, control_conversions, treatment_size, treatment_conversions = tables
    count = len(control_size)
    empty = (control_size == 0) | (treatment_size == 0)
    with np.errstate(all="ignore"):
        control_rate = control_conversions / np.maximum(control_size, 1)
        treatment_rate = treatment_conversions / np.maximum(treatment_size, 1)
        logarithm = np.log(treatment_rate) - np.log(control_rate)
    logarithm = np.nan_to_num(logarithm, nan=0.0, posinf=FARTHEST, neginf=-FARTHEST)
    smaller = np.maximum(np.minimum(control_size, treatment_size), 1)
    rough = (treatment_conversions + control_conversions + 1) / (
        control_size + treatment_size + 2
    )
    error = critical * np.sqrt(rough * (1 - rough) / smaller)
    fewer = np.maximum(np.minimum(control_conversions, treatment_conversions), 0.5)
    relative = np.maximum(critical * np.sqrt((1 - rough) / fewer), 1e-9)
    nothing = (control_conversions == 0) & (treatment_conversions == 0)
    ones = np.ones(count)
    # A ratio of 0 is a lift of -1, which is an end; an infinite one is none.
    no_upper = np.where(control_conversions == 0, np.nan, np.inf)
    return _Searches(
        table=np.tile(np.arange(count), 4),
        on_ratio=np.repeat([False, False, True, True], count),
        sign=np.repeat([-1.0, 1.0, -1.0, 1.0], count),
        start=np.concatenate([*[treatment_rate - control_rate] * 2, *[logarithm] * 2]),
        step=np.concatenate([error, error, relative, relative]),
        limit=np.repeat([-ALMOST_ONE, ALMOST_ONE, -FARTHEST, FARTHEST], count),
        closed=np.concatenate([-ones, ones, -np.inf * ones, no_upper]),
        unknown=np.concatenate([empty, empty, empty | nothing, empty | nothing]),
    )


def _walk(
    searches: _Searches, at: Callable[[Floats, Indices], Floats], precision: float
) -> Floats:
    """Return the end that each search finds, NaN where there is none."""
    ends = np.full(len(searches.start), np.nan)
    going = np.flatnonzero(~searches.unknown)
    sign, limit = searches.sign, searches.limit
    # Points, and the excess at each: it is not computed again when the ends are found.
    inside = np.stack([np.clip(searches.start, -np.abs(limit), np.abs(limit)), ends])
    outside = np.full_like(inside, np.nan)

    def rejects(points: Floats, index: Indices) -> Flags:
        values = at(points, index)
        tried, rejected = np.stack([points, values]), values >= 0
        outside[:, index[rejected]] = tried[:, rejected]
        inside[:, index[~rejected]] = tried[:, ~rejected]
        return np.asarray(rejected)

    ahead = going[(sign * inside[0] < 0)[going]]
    if len(ahead):
        rejects(np.zeros(len(ahead)), ahead)
    step = searches.step.copy()
    walking = going[np.isnan(outside[0, going])]
    while len(walking):
        trial = inside[0, walking] + sign[walking] * step[walking]
        past = sign[walking] * (trial - limit[walking]) >= 0
        accepts = ~rejects(np.where(past, limit[walking], trial), walking)
        ends[walking[past & accepts]] = searches.closed[walking[past & accepts]]
        step[walking] *= 1.5
        walking = walking[accepts & ~past]
    found = np.flatnonzero(~np.isnan(outside[0]))
    ends[found] = crossings(
        lambda point, index: at(point, found[index]),
        inside[:, found],
        outside[:, found],
        precision,
    )
    return ends
