"""What the service said about users, for as many of them as there is room."""

from __future__ import annotations

from typing import Any

Known = dict[tuple[str, str], Any]


class Memory:
    """What is known of (experiment, user) pairs; the longest unused are forgotten.

    There are two generations. When the young one is full it becomes the old one, which
    is forgotten, so that nothing has to be searched for what is oldest. A single step
    on a dictionary is safe between threads.
    """

    def __init__(self, most: int) -> None:
        self._half = max(1, most // 2)
        self._young: Known = {}
        self._old: Known = {}

    def get(self, pair: tuple[str, str]) -> Any:
        """Return what is known of a pair, or None."""
        known = self._young.get(pair)
        if known is None:
            known = self._old.get(pair)
            if known is not None:
                self.put(pair, known)
        return known

    def put(self, pair: tuple[str, str], known: Any) -> None:
        """Keep this of a pair."""
        if len(self._young) >= self._half:
            self._old, self._young = self._young, {}
        self._young[pair] = known

    def forget(self, pair: tuple[str, str]) -> None:
        """Forget what is known of a pair."""
        self._young.pop(pair, None)
        self._old.pop(pair, None)
