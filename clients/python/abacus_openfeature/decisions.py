"""Which variant a user gets: the published document, evaluated in this process."""

from __future__ import annotations

import json
from bisect import bisect_right
from datetime import datetime
from decimal import Decimal
from hashlib import sha256
from itertools import accumulate
from typing import Any, NamedTuple

from abacus_openfeature.patterns import TooCostly
from abacus_openfeature.rules import Holds, compiled

VERSION = 1
BUCKETS = 10_000

NEW, EXISTING = "NEW_ASSIGNMENT", "EXISTING_ASSIGNMENT"
OVERRIDE, WINNER = "OVERRIDE", "WINNER"
ENROLLMENT_CLOSED, NOT_IN_AUDIENCE = "ENROLLMENT_CLOSED", "NOT_IN_AUDIENCE"
EXCLUDED, HELD_OUT = "EXCLUDED", "HELD_OUT"

NOT_IDS = {"undefined", "null", "none", "nan", "[object object]"}
ID_LENGTH = 255


class UnknownVersion(Exception):
    """The definitions are of a version that this client does not know."""


class AskService(Exception):
    """Only the service can decide about this user."""


class Variant(NamedTuple):
    """What a user gets."""

    id: str
    name: str
    flow_id: str | None
    config: Any


class Decision(NamedTuple):
    """Which variant a user gets, if any, and why."""

    reason: str
    variant: Variant | None = None


def encoded(user_id: str) -> bytes | None:
    """Return the id of a user in UTF-8, or None if the service refuses it as an id."""
    try:
        user = user_id.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return None
    mark = user_id.strip().casefold()
    is_refused = not mark or mark in NOT_IDS or b"\0" in user
    return None if is_refused or len(user_id) > ID_LENGTH else user


def bucket(prefix: bytes, user: bytes) -> int:
    """Return the bucket, 0 to 9,999, of a user; the prefix is a salt and a colon."""
    digits = int.from_bytes(sha256(prefix + user).digest()[:7], "big") >> 4
    return digits * BUCKETS >> 52


class Experiment:
    """An experiment as the definitions have it."""

    __slots__ = (
        *("asked", "denied", "document", "end", "holds", "id", "is_open", "key"),
        *("kept", "new", "needs_service", "overrides", "ranges", "traffic"),
        *("_ends", "_group", "_salt", "_split", "_users", "winner"),
    )

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.id: str = document["id"]
        self.key: str = document["key"]
        variants = [
            Variant(one["id"], one["name"], one["flowId"], _plain(one["config"]))
            for one in document["variants"]
        ]
        self.new = [Decision(NEW, variant) for variant in variants]
        self.kept = {variant.id: Decision(EXISTING, variant) for variant in variants}
        self._ends = list(accumulate(one["split"] for one in document["variants"]))
        self.is_open = document["status"] == "running"
        end = document["endDate"]
        self.end = float("inf") if end is None else _seconds(end)
        self.traffic: int = document["traffic"]
        self.ranges: list[list[int]] | None = document["ranges"]
        winner = self.kept.get(document["winner"])
        self.winner = winner and winner._replace(reason=WINNER)
        self.overrides = {
            hash: self.kept[variant]._replace(reason=OVERRIDE)
            for hash, variant in document["overrides"].items()
            if variant in self.kept
        }
        salts = document["salts"]
        self._split, self._salt = _prefix(salts["variant"]), _prefix(salts["traffic"])
        self._group, self._users = _prefix(salts["group"]), _prefix(salts["userId"])
        self.holds: Holds | None = None
        self.needs_service = False
        self.asked = Denial(self, None)
        self.denied: dict[str, Denial] = {}
        if document["rules"] is not None:
            try:
                self.holds = compiled(document["rules"], salts["userId"])
            except Exception:  # whatever a later service may publish
                self.needs_service = True

    def general(self, user: bytes) -> Decision | None:
        """Return the decision that no row overrules: an override, or a winner."""
        if self.overrides:
            hash = sha256(self._users + user).hexdigest()
            if hash in self.overrides:
                return self.overrides[hash]
        return self.winner

    def decided(
        self, user_id: str, user: bytes, attributes: dict[str, Any], now: float
    ) -> Decision:
        """Return the decision for a user without a row, whom `general` leaves open.

        Raise AskService if the rules cannot be evaluated here.
        """
        if not self.is_open or self.end <= now:
            return CLOSED
        if self.needs_service:
            raise AskService
        if self.holds is not None:
            try:
                if not self.holds(user_id, attributes):
                    return OUTSIDE
            except (TooCostly, RecursionError) as error:
                raise AskService from error
        if self.ranges is not None:
            place = bucket(self._group, user)
            if not any(first <= place <= last for first, last in self.ranges):
                return OTHER_RANGE
        elif self.traffic < BUCKETS and bucket(self._salt, user) >= self.traffic:
            return OUT
        return self.new[bisect_right(self._ends, bucket(self._split, user))]

    def denial(self, reason: str) -> Denial:
        """Return the mark of users to whom the service said this, and no variant."""
        return self.denied.setdefault(reason, Denial(self, reason))


class Denial(NamedTuple):
    """What the service said of a user without a row, until the definition changes."""

    experiment: Experiment
    reason: str | None
    """None if it said what the client decides by itself."""


CLOSED, OUTSIDE = Decision(ENROLLMENT_CLOSED), Decision(NOT_IN_AUDIENCE)
OTHER_RANGE, OUT = Decision(EXCLUDED), Decision(HELD_OUT)


class Definitions:
    """All experiments, by id and by key, as of one revision."""

    def __init__(self, document: Any, earlier: Definitions | None = None) -> None:
        if document["version"] != VERSION:
            raise UnknownVersion(document["version"])
        self.revision: str = document["revision"]
        self.omitted: int = document["omitted"]
        known = earlier.by_name if earlier else {}
        self.by_name: dict[str, Experiment] = {}
        for one in document["experiments"]:
            before = known.get(one["id"])
            # The same object says that nothing has changed.
            is_same = before is not None and before.document == one
            experiment = before if before and is_same else Experiment(one)
            self.by_name[experiment.id] = self.by_name[experiment.key] = experiment

    @classmethod
    def read(cls, text: bytes, earlier: Definitions | None = None) -> Definitions:
        """Return the definitions of an answer; numbers in rules are exact."""
        return cls(json.loads(text, parse_float=Decimal)["data"], earlier)

    def decide(
        self, name: str, user_id: str, attributes: dict[str, Any], now: float
    ) -> Decision:
        """Return the decision for a user without a row; *now* is seconds since 1970.

        Raise KeyError for an unknown experiment, AskService if only the service knows.
        """
        experiment, user = self.by_name[name], user_id.encode()
        return experiment.general(user) or experiment.decided(
            user_id, user, attributes, now
        )


def _prefix(salt: str | None) -> bytes:
    return f"{salt}:".encode()


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def _plain(value: Any) -> Any:
    """Return a config with floats, as every reader of JSON has them."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value
