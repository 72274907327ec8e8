"""The bad lines of a file, with equal problems grouped."""

from __future__ import annotations

from collections.abc import Iterator

MOST = 20  # different problems that are shown

FIRST = 5  # numbers of lines that are shown with each

LONGEST = 500  # characters of a problem


class Problems:
    """The bad lines of a file; memory does not grow with their number."""

    def __init__(self) -> None:
        self.lines = 0
        """How many lines are bad."""
        self._shown: dict[str, list[int]] = {}
        self._times: dict[str, int] = {}

    def add(self, line: int, problem: str) -> None:
        """Note what is wrong with a line."""
        self.lines += 1
        if len(problem) > LONGEST:
            problem = f"{problem[: LONGEST - 1]}…"
        if problem not in self._times:
            if len(self._times) == MOST:
                return
            self._times[problem], self._shown[problem] = 0, []
        self._times[problem] += 1
        if len(self._shown[problem]) < FIRST:
            self._shown[problem].append(line)

    def sentences(self) -> Iterator[str]:
        """Yield a sentence for each different problem, and one for those left out."""
        for problem, times in self._times.items():
            yield f"{_named(self._shown[problem], times)}: {problem}"
        if left := self.lines - sum(self._times.values()):
            yield f"{_lines(left)} more, with other problems than these {MOST}."


def _named(first: list[int], times: int) -> str:
    """Name the lines by their numbers, or how many they are and the first ones."""
    numbers = ", ".join(map(str, first))
    if times == 1:
        return f"line {numbers}"
    if times == len(first):
        return f"lines {numbers}"
    return f"{_lines(times)}, the first are {numbers}"


def _lines(number: int) -> str:
    return f"{number:,} line{'' if number == 1 else 's'}"
