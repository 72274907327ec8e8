"""Pictures of estimates with their intervals: where each line of an SVG is.

Coordinates are in the units of the picture's view box, which has a fixed width and
grows by a row for each estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from views.tables import clipped

WIDTH, MARGIN = 400, 6

ROW, HEAD, FOOT = 46, 4, 18

LETTERS = 25  # of a name, as many as fit before the label of its value


class Estimate(NamedTuple):
    """A number of a variant, with its interval and both as text."""

    name: str
    value: float | None
    lower: float | None
    upper: float | None
    text: str


class Mark(NamedTuple):
    """One estimate in a picture."""

    name: str
    text: str
    y: int
    """The top of its row."""
    start: float
    """Where a bar begins: at zero."""
    value: float | None
    lower: float
    upper: float
    is_open_below: bool
    is_open_above: bool

    @property
    def left(self) -> float:
        """Return the left end of the bar, which may lie below zero."""
        return self.start if self.value is None else min(self.start, self.value)

    @property
    def width(self) -> float:
        """Return the width of the bar."""
        return 0.0 if self.value is None else round(abs(self.value - self.start), 2)


class Picture(NamedTuple):
    """Estimates below each other on one scale."""

    title: str
    marks: list[Mark]
    height: int
    zero: float
    low: str
    high: str
    """The two ends of the scale, as text."""
    zero_text: str

    @property
    def alternative(self) -> str:
        """Return the picture in words."""
        return "; ".join(f"{mark.name}: {mark.text}" for mark in self.marks) + "."


def picture(
    title: str, estimates: Sequence[Estimate], ends: tuple[str, str], zero_text: str
) -> Picture:
    """Return the picture of estimates, on a scale that holds zero and all of them.

    *ends* are the texts of the scale's ends, as `scale` returns them.
    """
    low, high = scale(estimates)
    width = high - low

    def place(number: float) -> float:
        return round(MARGIN + (number - low) / width * (WIDTH - 2 * MARGIN), 2)

    marks = [
        Mark(
            clipped(one.name, LETTERS),
            one.text,
            HEAD + ROW * row,
            place(0.0),
            None if one.value is None else place(one.value),
            place(low if one.lower is None else one.lower),
            place(high if one.upper is None else one.upper),
            one.lower is None,
            one.upper is None,
        )
        for row, one in enumerate(estimates)
    ]
    height = HEAD + ROW * len(marks) + FOOT
    return Picture(title, marks, height, place(0.0), *ends, zero_text)


def scale(estimates: Sequence[Estimate]) -> tuple[float, float]:
    """Return the least and the largest number to draw, with zero between them."""
    known = [
        end
        for one in estimates
        for end in (one.value, one.lower, one.upper)
        if end is not None
    ]
    low, high = min([0.0, *known]), max([0.0, *known])
    return (low, high) if low < high else (low, low + 1.0)
