"""numpy and scipy.special, loaded at their first use, and one root finder.

The two libraries cost half a second and 65 MB, which a worker that only enrols users
should not need. So they are imported only here, at the first use of either name.
``scipy.stats`` and ``scipy.optimize`` would double the cost and are not used.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from importlib import import_module
from math import isfinite, isnan, nan
from typing import TYPE_CHECKING, Any, TypeAlias

__all__ = ["crossing", "crossings", "normal_quantile", "np", "special"]

#: The bytes of arrays that an analysis needs at once, at most.
WORKSPACE = 4 << 20

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from scipy import special  # type: ignore[import-untyped, unused-ignore]

    Floats: TypeAlias = NDArray[np.float64]
    Flags: TypeAlias = NDArray[np.bool_]
    Indices: TypeAlias = NDArray[np.intp]
else:

    class _Library:
        """A module that is imported when one of its names is first used."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            value = getattr(import_module(self._name), attribute)
            setattr(self, attribute, value)
            return value

    np = _Library("numpy")
    special = _Library("scipy.special")


# The C library returns free memory to the kernel above a limit, by default 128 KB. The
# arrays of an analysis take more, so it would be fetched again, page by page, thousands
# of times: a third of the time. glibc raises the limit to twice the largest block that
# was ever mapped and released, as this one is; see M_TRIM_THRESHOLD in mallopt(3).
bytes(WORKSPACE)


def normal_quantile(probability: float) -> float:
    """Return the quantile of the standard normal distribution."""
    return float(special.ndtri(probability))


def crossing(
    excess: Callable[[float], float],
    inside: float,
    outside: float,
    precision: float = 1e-11,
) -> float:
    """Return the last point from *inside* on where *excess* < 0.

    *excess* is negative at *inside* and not at *outside*. The answer is on the inner
    side of the crossing, so an interval between answers includes a tested value
    exactly if the test accepts it.
    """
    search = _search((inside, nan), (outside, nan), precision)
    point = next(search)
    while True:
        try:
            point = search.send(excess(point))
        except StopIteration as end:
            return float(end.value)


def crossings(
    excess: Callable[[Floats, Indices], Floats],
    inside: Floats,
    outside: Floats,
    precision: float = 1e-11,
) -> Floats:
    """Return the `crossing` of each pair of points.

    Two rows are the points and the excess at each, NaN where it is unknown. *excess*
    is called with further points and the indices of their pairs, for all pairs at once:
    many points cost little more than one.
    """
    ends = zip(inside.T.tolist(), outside.T.tolist(), strict=True)
    searches = [_search(*pair, precision) for pair in ends]
    answers = np.zeros(len(searches))
    trials = [(place, next(search)) for place, search in enumerate(searches)]
    while trials:
        places, points = zip(*trials, strict=True)
        values = excess(np.array(points), np.array(places)).tolist()
        trials = []
        for place, value in zip(places, values, strict=True):
            try:
                trials.append((place, searches[place].send(value)))
            except StopIteration as end:
                answers[place] = end.value
    return answers


def _search(
    inside: Sequence[float], outside: Sequence[float], precision: float
) -> Generator[float, float, float]:
    """Yield the points at which the excess is needed; return the crossing.

    Each end is a point and the excess at it, NaN where it is unknown.

    For the few pairs of an analysis, floats are several times faster than arrays.

    Chandrupatla (1997), "A new hybrid quadratic/bisection algorithm for finding
    the zero of a nonlinear function", Adv. Eng. Software 28, p. 145-149.
    """
    (first, at_first), (second, at_second) = outside, inside
    if isnan(at_first):
        at_first = yield first
    if isnan(at_second):
        at_second = yield second
    tolerance, fraction = precision * abs(first - second), 0.5
    for _ in range(200):
        trial = first + fraction * (second - first)
        at_trial = yield trial
        if (at_trial >= 0) == (at_first >= 0):
            third, at_third = first, at_first
        else:
            third, at_third = second, at_second
            second, at_second = first, at_first
        first, at_first = trial, at_trial
        width, limit = abs(second - first), max(tolerance, 4e-16 * abs(first))
        if not width > limit:
            break
        smallest = min(0.5, 0.5 * limit / width)
        points, values = (first, second, third), (at_first, at_second, at_third)
        fraction = min(max(_next_fraction(points, values), smallest), 1 - smallest)
    return first if at_first < 0 else second


def _next_fraction(
    points: tuple[float, float, float], values: tuple[float, float, float]
) -> float:
    """Return the next step: by inverse interpolation if safe, else halfway."""
    first, second, third = points
    at_first, at_second, at_third = values
    try:
        place = (first - second) / (third - second)
        height = (at_first - at_second) / (at_third - at_second)
        if not (height * height < place and (1 - height) * (1 - height) < 1 - place):
            return 0.5
        jump = at_first / (at_second - at_first) * at_third / (at_second - at_third)
        jump += (
            (third - first)
            / (second - first)
            * (at_first / (at_third - at_first))
            * (at_second / (at_third - at_second))
        )
    except ZeroDivisionError:
        return 0.5
    return jump if isfinite(jump) else 0.5
