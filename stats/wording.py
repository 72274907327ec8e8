"""Numbers for sentences: enough digits to see the difference that is stated.

No number has an exponent, and two different numbers of one call never look equal.
"""

from __future__ import annotations

from calendar import month_name
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
        decimals(max(map(abs, known), default=0.0), 3),
        *(decimals(one, 2) for one in ends),
        decimals_apart(known),
    )


def percentages(shares: Sequence[float]) -> list[str]:
    """Return the shares in percent for a sentence, without trailing zeros."""
    places = percent_decimals(shares)
    return [f"{_plain(100 * float(share), places)} %" for share in shares]


def points(differences: Sequence[float]) -> list[str]:
    """Return differences of rates as bare numbers of percentage points."""
    known = [100 * float(one) for one in differences]
    places = max(*(decimals(one, 2) for one in known), decimals_apart(known))
    return [_plain(one, places) for one in known]


def brief(number: float) -> str:
    """Return a number to two digits, or a larger one as a whole number."""
    return _plain(number, decimals(number, 2))


def amounts(numbers: Sequence[float]) -> list[str]:
    """Return mean values for a sentence, to four digits of the largest or more."""
    known = [float(number) for number in numbers]
    places = max(
        decimals(max(map(abs, known)), 4),
        *(decimals(one, 2) for one in known),
        decimals_apart(known),
    )
    return [_plain(number, places) for number in known]


def change(lift: float) -> str:
    """Return a relative difference in percent, with its sign, to two digits."""
    return f"{'+' if lift > 0 else ''}{brief(100 * lift)} %"


def p_value(value: float) -> str:
    """Return a p-value with its name; one below 0.001 is never printed as 0."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def day(moment: str) -> str:
    """Return the day of a time in words, such as 3 March 2026."""
    year, month, number = moment[:10].split("-")
    return f"{int(number)} {month_name[int(month)]} {year}"


def listed(names: Sequence[str]) -> str:
    """Return the names as a list in a sentence."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


def decimals(number: float, digits: int, noise: float = 10**-MOST_DECIMALS) -> int:
    """Return the decimals that show so many digits of a number.

    0 for 0, and for a number that is so small that it is the noise of a float.
    """
    size = abs(number)
    if size < noise:
        return 0
    return min(max(digits - 1 - floor(log10(size)), 0), MOST_DECIMALS)


def decimals_apart(numbers: Iterable[float], noise: float = 10**-MOST_DECIMALS) -> int:
    """Return the decimals that show two digits of each difference of neighbours."""
    gaps = [high - low for low, high in pairwise(sorted(set(numbers)))]
    return max((decimals(gap, 2, noise) for gap in gaps), default=0)


def _plain(number: float, places: int) -> str:
    text = f"{number:,.{places}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
