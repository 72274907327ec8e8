"""Numbers in words: as many digits as it takes to see the difference that is said.

Nothing here has an exponent, and no two different numbers of one call look alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import floor, log10

#: More decimals than these are the noise of a float.
MOST_DECIMALS = 12


def percent_decimals(shares: Iterable[float | None]) -> int:
    """Return how many decimals these shares need in percent, the same for all.

    Three digits of the largest, two digits of every other from the nearer end (so
    that neither 0.003 % nor 99.997 % is rounded to an end), and two digits of the
    difference between any two.
    """
    known = sorted({100 * float(share) for share in shares if share is not None})
    ends = [min(abs(one), abs(100 - one)) for one in known]
    return max(
        _decimals(max(map(abs, known), default=0.0), 3),
        *(_decimals(one, 2) for one in ends),
        *(_decimals(high - low, 2) for low, high in pairwise(known)),
        0,
    )


def percentages(shares: Sequence[float]) -> list[str]:
    """Return the shares in percent for a sentence, without trailing zeros."""
    decimals = percent_decimals(shares)
    return [f"{_plain(100 * float(share), decimals)} %" for share in shares]


def points(differences: Sequence[float]) -> list[str]:
    """Return differences of rates as bare numbers of percentage points."""
    found = sorted({100 * float(one) for one in differences})
    decimals = max(
        *(_decimals(one, 2) for one in found),
        *(_decimals(high - low, 2) for low, high in pairwise(found)),
        0,
    )
    return [_plain(100 * float(one), decimals) for one in differences]


def brief(number: float) -> str:
    """Return a number to two digits, or all that a larger whole one has."""
    return _plain(number, _decimals(number, 2))


def amounts(numbers: Sequence[float]) -> list[str]:
    """Return mean values for a sentence, to four digits of the largest or more."""
    known = sorted({float(number) for number in numbers})
    decimals = max(
        _decimals(max(map(abs, known)), 4),
        *(_decimals(one, 2) for one in known),
        *(_decimals(high - low, 2) for low, high in pairwise(known)),
    )
    return [_plain(float(number), decimals) for number in numbers]


def change(lift: float) -> str:
    """Return a relative difference in percent, with its sign, to two digits."""
    return f"{'+' if lift > 0 else ''}{brief(100 * lift)} %"


def p_value(value: float) -> str:
    """Return a p-value with its name; one below 0.001 is never printed as 0."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def listed(names: Sequence[str]) -> str:
    """Return the names as a list in a sentence."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


def _decimals(number: float, digits: int) -> int:
    """Return the decimals that show so many digits of a number; 0 for 0."""
    size = abs(number)
    if size < 10**-MOST_DECIMALS:
        return 0
    return min(max(digits - 1 - floor(log10(size)), 0), MOST_DECIMALS)


def _plain(number: float, decimals: int) -> str:
    text = f"{number:,.{decimals}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
