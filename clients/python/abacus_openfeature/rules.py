"""The rules of an audience, compiled to one function of a user."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from hashlib import sha256
from operator import eq, ge, gt, le, lt
from typing import Any

from abacus_openfeature.orders import Key, moment, version
from abacus_openfeature.patterns import Pattern

Holds = Callable[[str, dict[str, Any]], bool]
"""Tells whether rules hold for a user id and the attributes."""

Reads = Callable[[str, dict[str, Any]], Any]

MISSING = object()
SEARCHED = 65_536  # characters; a longer text matches no pattern


class UnknownRule(Exception):
    """A rule of a later version, which only the service can evaluate."""


# ----------------------------------------------------------------------------
# Values
# ----------------------------------------------------------------------------


def numeric(value: Any) -> int | Decimal | None:
    """Return the value if it is a finite number, else None.

    A float is the shortest decimal that it prints as, which is what the JSON said.
    """
    kind = type(value)
    if kind is int:
        return int(value)
    if kind is float:
        value = Decimal(repr(value))
    elif kind is not Decimal:
        return None
    return value if value.is_finite() else None


def same(left: Any, right: Any) -> bool:
    """Tell whether both are the same JSON value."""
    if isinstance(left, list):
        return (
            isinstance(right, list)
            and len(left) == len(right)
            and all(map(same, left, right))
        )
    if isinstance(left, dict):
        return (
            isinstance(right, dict)
            and left.keys() == right.keys()
            and all(same(value, right[name]) for name, value in left.items())
        )
    number = numeric(left)
    if number is not None:
        return number == numeric(right)
    is_scalar = left is None or isinstance(left, (str, bool))
    return is_scalar and type(left) is type(right) and bool(left == right)


# ----------------------------------------------------------------------------
# Operators: from the value of a rule to a test of the field
# ----------------------------------------------------------------------------

Test = Callable[[Any], bool]
Operator = Callable[[Any], Test]


def _equals(value: Any) -> Test:
    if isinstance(value, str):
        return lambda actual: isinstance(actual, str) and actual == value
    return lambda actual: same(actual, value)


def _number(compared: Callable[[Any, Any], bool]) -> Operator:
    def made(value: Any) -> Test:
        bound = numeric(value)

        def test(actual: Any) -> bool:
            number = numeric(actual)
            return number is not None and bound is not None and compared(number, bound)

        return test

    return made


def _contains(value: Any) -> Test:
    part = value.casefold() if isinstance(value, str) else None

    def test(actual: Any) -> bool:
        if isinstance(actual, str):
            return part is not None and part in actual.casefold()
        return isinstance(actual, list) and any(same(value, item) for item in actual)

    return test


def _is_in(value: Any) -> Test:
    texts = frozenset(item for item in value if isinstance(item, str))
    others = [item for item in value if not isinstance(item, str)]

    def test(actual: Any) -> bool:
        if isinstance(actual, str):
            return actual in texts
        return any(same(actual, item) for item in others)

    return test


def _exists(_: Any) -> Test:
    return lambda actual: actual is not MISSING and actual is not None


def _matches(value: str) -> Test:
    pattern = Pattern(value)

    def test(actual: Any) -> bool:
        is_text = isinstance(actual, str) and len(actual) <= SEARCHED
        return is_text and pattern.is_in(actual)

    return test


def _starts(value: str) -> Test:
    return lambda actual: isinstance(actual, str) and actual.startswith(value)


def _ends(value: str) -> Test:
    return lambda actual: isinstance(actual, str) and actual.endswith(value)


def _order(
    read: Callable[[str], Key | None], compared: Callable[[Any, Any], bool]
) -> Operator:
    def made(value: str) -> Test:
        bound = read(value)

        def test(actual: Any) -> bool:
            key = read(actual) if isinstance(actual, str) else None
            return key is not None and bound is not None and compared(key, bound)

        return test

    return made


def _not(made: Operator) -> Operator:
    def opposite(value: Any) -> Test:
        test = made(value)
        return lambda actual: not test(actual)

    return opposite


OPERATORS: dict[str, Operator] = {
    "eq": _equals,
    "neq": _not(_equals),
    "gt": _number(gt),
    "lt": _number(lt),
    "gte": _number(ge),
    "lte": _number(le),
    "contains": _contains,
    "not_contains": _not(_contains),
    "in": _is_in,
    "not_in": _not(_is_in),
    "exists": _exists,
    "not_exists": _not(_exists),
    "regex": _matches,
    "starts_with": _starts,
    "ends_with": _ends,
    "semver_gt": _order(version, gt),
    "semver_gte": _order(version, ge),
    "semver_lt": _order(version, lt),
    "semver_lte": _order(version, le),
    "semver_eq": _order(version, eq),
    "before": _order(moment, lt),
    "after": _order(moment, gt),
}


# ----------------------------------------------------------------------------
# Trees
# ----------------------------------------------------------------------------


def compiled(rules: Any, salt: str) -> Holds:
    """Return the function that tells whether the rules hold for a user.

    *salt* is that of the hashes of user ids. Raise UnknownRule or UnsupportedPattern
    if only the service can tell.
    """
    if "rules" in rules:
        parts = [compiled(rule, salt) for rule in rules["rules"]]
        if rules.get("logicalOperator") == "AND":
            return lambda user, facts: all(part(user, facts) for part in parts)
        if rules.get("logicalOperator") == "OR":
            return lambda user, facts: any(part(user, facts) for part in parts)
        raise UnknownRule(rules.get("logicalOperator"))
    if "hashes" in rules:
        return _hashed(rules, salt)
    operator = OPERATORS.get(rules.get("operator"))
    if operator is None or not rules.keys() <= {"field", "operator", "value"}:
        raise UnknownRule(rules)
    test, read = operator(rules.get("value")), _reader(rules["field"])
    return lambda user, facts: test(read(user, facts))


def _hashed(rule: Any, salt: str) -> Holds:
    hashes, prefix = frozenset(rule["hashes"]), f"{salt}:".encode()
    wanted = {"in": True, "not_in": False}.get(rule["operator"])
    if wanted is None or rule["field"] != "userId":
        raise UnknownRule(rule)
    return lambda user, facts: (
        (sha256(prefix + user.encode()).hexdigest() in hashes) is wanted
    )


def _reader(field: str) -> Reads:
    """Return the function that reads a path; `userId` is the user asked about."""
    if field == "userId":
        return lambda user, facts: user
    if "." not in field:
        return lambda user, facts: facts.get(field, MISSING)

    def read(user: str, facts: Any) -> Any:
        path = field
        if path.startswith("userId."):
            return facts.get(path, MISSING)
        while isinstance(facts, dict):
            if path in facts:
                return facts[path]
            step, _, path = path.partition(".")
            facts = facts.get(step)
        return MISSING

    return read
