"""Why a request is refused although its shape is right."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from targeting.decision import STATUSES

ARCHIVED = "archived"  # in the place of the state, which stays beneath it


class Conflict(Exception):
    """The request contradicts what is stored.

    *current* is the value that stands in the way, *allowed* lists the values that
    would be accepted. Both are Python values (a time is a datetime); the answer
    formats them.
    """

    code = "CONFLICT"

    def __init__(self, message: str, current: Any, allowed: Iterable[Any] = ()) -> None:
        self.current, self.allowed = current, list(allowed)
        super().__init__(message)


class InvalidState(Conflict):
    """The move is not allowed in the present state."""

    code = "INVALID_STATE"

    def __init__(self, current: str, allowed: Iterable[str]) -> None:
        wanted = sorted(allowed, key=(*STATUSES, ARCHIVED).index)
        message = f"The experiment is {current}; it must be {' or '.join(wanted)}."
        super().__init__(message, current, wanted)


class Invalid(Exception):
    """A value refers to something that the experiment does not have."""

    def __init__(self, path: str, message: str) -> None:
        self.path = path
        super().__init__(message)
