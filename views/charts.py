"""Pictures of figures over days: where each line of an SVG is.

Coordinates are in the units of the picture's view box, which has a fixed size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import date
from math import ceil, floor, log10
from typing import NamedTuple

WIDTH, HEIGHT = 400, 210

LEFT, RIGHT, TOP, BOTTOM = 58, 392, 8, 186
"""The edges of the plot; the labels are outside of them."""

MOST_TICKS = 5

NOISE = 1e-12  # of a float: no picture shows it

STEPS = (1, 2, 7, 14, 28, 56, 91, 182)
"""Days between two labels."""


class Tick(NamedTuple):
    """A label, and where it is."""

    place: float
    text: str


class Line(NamedTuple):
    """A line through the days; *kind* is how it is drawn."""

    kind: str
    points: str


class Chart(NamedTuple):
    """Lines over days, on a scale with round numbers."""

    title: str
    alternative: str
    rows: list[Tick]
    columns: list[Tick]
    lines: list[Line]
    band: str


Values = Sequence[float | None]

Band = Sequence[tuple[float, float] | None]
"""The lower and the upper end on each day; None where they are not known."""


class Scale:
    """The place of a number in the picture, between round numbers."""

    def __init__(self, numbers: Sequence[float]) -> None:
        low, high = min(numbers), max(numbers)
        size = max(abs(low), abs(high))
        if size < NOISE:
            low, high = 0.0, 1.0
        elif high - low <= NOISE * size:
            low, high = low - size / 2, high + size / 2
        self.step = round_step((high - low) / (MOST_TICKS - 1))
        self._first = floor(low / self.step + 1e-9)
        self._last = ceil(high / self.step - 1e-9)

    @property
    def ticks(self) -> list[float]:
        """Return the round numbers, from the bottom to the top."""
        return [n * self.step for n in range(self._first, self._last + 1)]

    def place(self, number: float) -> float:
        """Return the height of a number, from the top."""
        share = (number / self.step - self._first) / (self._last - self._first)
        # What lies far outside is cut off: no browser has to draw it.
        return round(BOTTOM - min(max(share, -1.0), 2.0) * (BOTTOM - TOP), 1)


def round_step(width: float) -> float:
    """Return the least of 1, 2, 5, 10 and so on that is at least this wide."""
    power: float = 10 ** floor(log10(width))
    return next(n * power for n in (1, 2, 5, 10) if n * power >= width * (1 - 1e-9))


def chart(
    words: tuple[str, str],
    days: Sequence[date],
    lines: Sequence[tuple[str, Values]],
    band: Band,
    label: Callable[[float, float], str],
    within: Sequence[float] = (),
) -> Chart:
    """Return the picture of lines over days; *words* are its title and its text.

    The scale holds each line, and the band of all days but those of the first quarter:
    it is so wide then that nothing else would be seen. *within* are more numbers that
    it holds. *label* returns the text of a round number, from it and the step.
    """
    early = len(days) // 4
    numbers = [one for _, line in lines for one in line[early:] if one is not None]
    numbers += [end for ends in band[early:] if ends for end in ends]
    scale = Scale([*numbers, *within] or [0.0])
    width = (RIGHT - LEFT) / max(len(days) - 1, 1)

    def points(line: Iterable[tuple[int, float | None]]) -> str:
        return " ".join(
            f"{LEFT + day * width:.1f},{scale.place(one):g}"
            for day, one in line
            if one is not None
        )

    known = [(day, ends) for day, ends in enumerate(band) if ends]
    edge = [(day, high) for day, (_, high) in known]
    edge += [(day, low) for day, (low, _) in reversed(known)]
    return Chart(
        *words,
        [Tick(scale.place(one), label(one, scale.step)) for one in scale.ticks],
        [
            Tick(round(LEFT + n * width, 1), f"{days[n].day} {days[n]:%b}")
            for n in range(0, len(days), _step_of(len(days)))
        ],
        [Line(kind, points(enumerate(line))) for kind, line in lines],
        points(edge),
    )


def _step_of(days: int) -> int:
    return next((one for one in STEPS if days <= one * MOST_TICKS), STEPS[-1])
