"""numpy and scipy.special, loaded at their first use, and one root finder.

The two libraries cost half a second and 65 MB, which a worker that only enrols users
should not need. So they are imported only here, at the first use of either name.
``scipy.stats`` and ``scipy.optimize`` would double the cost and are not used.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

__all__ = ["crossings", "normal_quantile", "np", "special"]

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


def normal_quantile(probability: float) -> float:
    """Return the quantile of the standard normal distribution."""
    return float(special.ndtri(probability))


def crossings(
    excess: Callable[[Floats, Indices], Floats],
    inside: Floats,
    outside: Floats,
    precision: float = 1e-11,
) -> Floats:
    """Return, for each pair, the last point from *inside* on where *excess* < 0.

    *excess*, called with points and the indices of their pairs, is negative at *inside*
    and not at *outside*. The answer is on the inner side of the crossing, so an
    interval between answers includes a tested value exactly if the test accepts it.
    """
    active = np.arange(len(inside))
    first, second = outside.astype(float), inside.astype(float)
    at_first, at_second = excess(first, active), excess(second, active)
    tolerance = precision * np.abs(first - second)
    answer, fraction = second.copy(), np.full(len(inside), 0.5)
    for _ in range(200 if len(active) else 0):
        trial = first + fraction * (second - first)
        at_trial = excess(trial, active)
        stays = (at_trial >= 0) == (at_first >= 0)
        third = np.where(stays, first, second)
        at_third = np.where(stays, at_first, at_second)
        second = np.where(stays, second, first)
        at_second = np.where(stays, at_second, at_first)
        first, at_first = trial, at_trial
        width = np.abs(second - first)
        limit = np.maximum(tolerance[active], 4e-16 * np.abs(first))
        answer[active] = np.where(at_first < 0, first, second)
        points, values = (first, second, third), (at_first, at_second, at_third)
        smallest = np.minimum(0.5, 0.5 * limit / np.maximum(width, 1e-300))
        fraction = np.clip(_next_fraction(points, values), smallest, 1 - smallest)
        going = width > limit
        first, second, at_first, at_second, fraction, active = (
            each[going]
            for each in (first, second, at_first, at_second, fraction, active)
        )
        if not len(active):
            break
    return np.asarray(answer)


def _next_fraction(
    points: tuple[Floats, Floats, Floats], values: tuple[Floats, Floats, Floats]
) -> Floats:
    """Return the next step: by inverse interpolation if safe, else halfway.

    Chandrupatla (1997), "A new hybrid quadratic/bisection algorithm for finding
    the zero of a nonlinear function", Adv. Eng. Software 28, p. 145-149.
    """
    first, second, third = points
    at_first, at_second, at_third = values
    with np.errstate(all="ignore"):
        place = (first - second) / (third - second)
        height = (at_first - at_second) / (at_third - at_second)
        safe = (height**2 < place) & ((1 - height) ** 2 < 1 - place)
        jump = at_first / (at_second - at_first) * at_third / (at_second - at_third)
        jump += (
            (third - first)
            / (second - first)
            * (at_first / (at_third - at_first))
            * (at_second / (at_third - at_second))
        )
    return np.asarray(np.where(safe & np.isfinite(jump), jump, 0.5))
