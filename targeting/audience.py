"""Audiences: rule trees, checked when written, evaluated for each user (pure).

A tree is a leaf ``{"field", "operator", "value"}`` or a group ``{"logicalOperator":
"AND" | "OR", "rules": [...]}``. It holds at most 200 leaves, and groups stand at most
10 deep, the outermost counted.

**Fields.** ``userId`` is the user asked about; where there is none (an audience tried
out on attributes alone) it is the attribute of that name. Any other field is a path
into the attributes: ``traits.plan`` is ``{"traits": {"plan": ...}}``. At each step a
key spelled like the whole rest of the path is taken first, so the attribute
``{"traits.plan": ...}`` is found by its own name. A path steps into objects only,
never into lists or texts. What it does not reach is *missing*.

**Operators.** A leaf is true when ...

    ============  ===================  ================================================
    operator      value                the field is ...
    ============  ===================  ================================================
    eq            any JSON             the same JSON value
    gt lt         number               a number, greater / less than the value
    gte lte       number               a number, at least / at most the value
    contains      text, number, bool   a text that has the value, a text, somewhere in
                                       it, whatever the case; or a list that has it as
                                       an item
    in            list                 the same JSON value as one of the items
    exists        (none)               there, and not null
    regex         text (a pattern)     a text, of 65,536 characters at most, in which
                                       the pattern is found somewhere
    starts_with   text                 a text that starts with the value
    ends_with     text                 a text that ends with the value
    semver_gt     version              a version, later than the value; and so on with
                                       semver_gte, semver_lt, semver_lte, semver_eq
    before after  moment               a moment, before / after the value
    neq           any JSON             not ... what eq asks
    not_contains  as contains          not ... what contains asks
    not_in        list                 not ... what in asks
    not_exists    (none)               not ... what exists asks
    ============  ===================  ================================================

A missing field is none of these things, so it makes a leaf false, and the four
negated operators, which are exact opposites, true. A field of another type than the
operator asks about does the same. Nothing is converted, and nothing raises.

**The same JSON value.** Numbers by their value (1 is 1.0 is 1e0; 0.1 is 0.1, be it a
Decimal or a float); texts character by character, with case and without Unicode
normalisation; true, false and null each only itself (true is not 1, "1" is not 1, and
a null is there to be equal to null, though it does not *exist*); lists item by item in
order; objects key by key in any order.

**Without case** is Unicode's case folding: "STRASSE" is in "Goethestraße".

**Patterns** are RE2's: they take linear time, because there are no backreferences and
no look-around. Case counts, unless ``(?i)`` leads the pattern; ``$`` is the very end;
``\\d``, ``\\w`` and ``\\b`` know ASCII alone, ``\\pL`` is a letter of any script.

**Versions and moments** are texts; `orders` says which. A field that holds any other
text makes the leaf false.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from functools import lru_cache
from itertools import islice
from operator import eq, ge, gt, le, lt
from typing import Any, NamedTuple, TypeVar

import re2

from targeting import orders

DEPTH = 10

RULES = 200

PROBLEMS = 100  # at most so many are reported

FIELD_LENGTH = 255

PATTERN_LENGTH = 256

# Steps of the compiled patterns of one tree. Linear time is not cheap by itself: each
# character can cost as much as the program is long, and a pattern of 256 characters can
# compile to 36,000 steps. This many are enough for 200 ordinary patterns (most have
# under 50; \pL has 1,200), and limit the worst known tree to 0.1 milliseconds for each
# byte of text: see bench/rules.py.
STEPS = 10_000

SEARCHED = 65_536  # characters; a longer text matches no pattern

Entry = TypeVar("Entry")

Join = Callable[[Iterable[bool]], bool]

Test = Callable[[Any, Any], bool]

JOINS: dict[str, Join] = {"AND": all, "OR": any}

GROUP_KEYS = {"logicalOperator", "rules"}

LEAF_KEYS = {"field", "operator", "value"}

MISSING = object()


def _same(left: Any, right: Any) -> bool:
    """Tell whether both are the same JSON value, however deep.

    A list of pairs instead of recursion, so that no depth can exhaust the stack.
    """
    pairs = [(left, right)]
    while pairs:
        left, right = pairs.pop()
        if isinstance(left, list) and isinstance(right, list):
            if len(left) != len(right):
                return False
            pairs.extend(zip(left, right, strict=True))
        elif isinstance(left, dict) and isinstance(right, dict):
            if left.keys() != right.keys():
                return False
            pairs.extend((left[key], right[key]) for key in left)
        elif not _same_scalar(left, right):
            return False
    return True


def _same_scalar(left: Any, right: Any) -> bool:
    number = numeric(left)
    if number is not None:
        return number == numeric(right)
    scalar = left is None or isinstance(left, (str, bool))
    return scalar and type(left) is type(right) and bool(left == right)


def numeric(value: Any) -> int | Decimal | None:
    """Return the value if it is a finite number, else None.

    A float stands for the shortest decimal that it prints as, which is what the JSON
    said; comparing its binary digits would make 0.1 two different numbers.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        value = Decimal(str(value))
    if isinstance(value, Decimal) and value.is_finite():
        return value
    return None


class Indexed(list[Any]):
    """A list with an index, for many membership tests."""

    def __init__(self, items: list[Any]) -> None:
        super().__init__(items)
        self.keys = frozenset(map(_key, items))


def _key(value: Any) -> Any:
    """Return a hashable key that is equal for the same JSON values, and no others.

    The JSON reader has bounded the depth of the value to 64.
    """
    number = numeric(value)
    if number is not None:
        # As text: a caller could choose numbers that all have the same hash.
        sign, digits, exponent = Decimal(number).as_tuple()
        text = "".join(map(str, digits)).lstrip("0")
        kept = text.rstrip("0")
        power = int(exponent) + len(text) - len(kept)
        return "number", f"{sign}{kept}e{power}" if kept else ""
    if isinstance(value, list):
        return "list", tuple(map(_key, value))
    if isinstance(value, dict):
        return "object", frozenset((name, _key(item)) for name, item in value.items())
    if value is None or isinstance(value, (str, bool)):
        return type(value), value
    return object()  # a value that is not JSON, such as NaN, equals nothing


def _is_one_of(actual: Any, items: Any) -> bool:
    if isinstance(items, Indexed):
        return actual is not MISSING and _key(actual) in items.keys
    if not isinstance(items, list):
        return False
    if isinstance(actual, str):
        return actual in items  # fast for thousands of ids
    return any(_same(actual, item) for item in items)


def _contains(actual: Any, wanted: Any) -> bool:
    if isinstance(actual, str) and isinstance(wanted, str):
        return wanted.casefold() in actual.casefold()
    return _is_one_of(wanted, actual)


def _exists(actual: Any, _: Any) -> bool:
    return actual is not MISSING and actual is not None


def _number_is(compared: Test) -> Test:
    def test(actual: Any, bound: Any) -> bool:
        actual, bound = numeric(actual), numeric(bound)
        return actual is not None and bound is not None and compared(actual, bound)

    return test


def _text_is(compared: Test) -> Test:
    def test(actual: Any, wanted: Any) -> bool:
        texts = isinstance(actual, str) and isinstance(wanted, str)
        return texts and compared(actual, wanted)

    return test


def _order_is(read: Callable[[str], orders.Key | None], compared: Test) -> Test:
    known = lru_cache(maxsize=256)(read)  # a rule has one value for all users

    def test(actual: Any, bound: Any) -> bool:
        if not isinstance(actual, str) or not isinstance(bound, str):
            return False
        key, limit = read(actual), known(bound)
        return key is not None and limit is not None and compared(key, limit)

    return test


def _not(test: Test) -> Test:
    return lambda actual, wanted: not test(actual, wanted)


# In the worst case the cached patterns need 128 MiB together.
OPTIONS = re2.Options()

OPTIONS.max_mem = 512 * 1024

OPTIONS.log_errors = False

OPTIONS.never_capture = True


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> Any:
    """Return the compiled pattern; raise ValueError with what is wrong with it."""
    try:
        return re2.compile(_bytes(pattern), OPTIONS)
    except re2.error as error:
        reason = error.args[0].decode(errors="replace")
        raise ValueError(
            f"RE2 refuses the pattern: {reason}. "
            "It has no backreferences and no look-around."
        ) from error


def _matches_pattern(text: str, pattern: str) -> bool:
    if len(text) > SEARCHED:
        return False
    try:
        return _compiled(pattern).search(_bytes(text)) is not None
    except ValueError:
        return False


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def _anything(value: Any) -> str | None:
    return None


def _a_number(value: Any) -> str | None:
    return "It must be a number." if numeric(value) is None else None


def _a_text(value: Any) -> str | None:
    return None if isinstance(value, str) else "It must be a string."


def _a_list(value: Any) -> str | None:
    return None if isinstance(value, list) else "It must be an array."


def _an_item(value: Any) -> str | None:
    if isinstance(value, (str, bool)) or numeric(value) is not None:
        return None
    return "It must be a string, a number or a boolean."


def _a_pattern(value: Any) -> str | None:
    if not isinstance(value, str):
        return "It must be a string."
    if len(value) > PATTERN_LENGTH:
        return f"A pattern has at most {PATTERN_LENGTH} characters, not {len(value)}."
    try:
        _compiled(value)
    except ValueError as error:
        return str(error)
    return None


def _a_version(value: Any) -> str | None:
    if isinstance(value, str) and orders.version(value):
        return None
    return (
        "It must be a version in the form of SemVer 2.0, such as 1.2.3 or 1.2.3-beta.1."
    )


def _a_moment(value: Any) -> str | None:
    if isinstance(value, str) and orders.moment(value):
        return None
    return (
        "It must be a date with a time and a zone in ISO-8601, such as "
        "2025-02-01T00:00:00Z."
    )


class Operator(NamedTuple):
    """The test of a leaf, and the check of its value when it is written."""

    holds: Test
    problem: Callable[[Any], str | None] | None
    """None if the operator takes no value."""


OPERATORS = {
    "eq": Operator(_same, _anything),
    "neq": Operator(_not(_same), _anything),
    "gt": Operator(_number_is(gt), _a_number),
    "lt": Operator(_number_is(lt), _a_number),
    "gte": Operator(_number_is(ge), _a_number),
    "lte": Operator(_number_is(le), _a_number),
    "contains": Operator(_contains, _an_item),
    "not_contains": Operator(_not(_contains), _an_item),
    "in": Operator(_is_one_of, _a_list),
    "not_in": Operator(_not(_is_one_of), _a_list),
    "exists": Operator(_exists, None),
    "not_exists": Operator(_not(_exists), None),
    "regex": Operator(_text_is(_matches_pattern), _a_pattern),
    "starts_with": Operator(_text_is(str.startswith), _a_text),
    "ends_with": Operator(_text_is(str.endswith), _a_text),
    "semver_gt": Operator(_order_is(orders.version, gt), _a_version),
    "semver_gte": Operator(_order_is(orders.version, ge), _a_version),
    "semver_lt": Operator(_order_is(orders.version, lt), _a_version),
    "semver_lte": Operator(_order_is(orders.version, le), _a_version),
    "semver_eq": Operator(_order_is(orders.version, eq), _a_version),
    "before": Operator(_order_is(orders.moment, lt), _a_moment),
    "after": Operator(_order_is(orders.moment, gt), _a_moment),
}


def matches(tree: Any, user_id: str | None, attributes: Any = None) -> bool:
    """Tell whether the user matches.

    This never raises, not even for a tree that `problems` refuses; the answer is then
    undefined.
    """
    return _holds(tree, _facts(user_id, attributes), DEPTH)


def indexed(tree: Any) -> Any:
    """Return an equivalent tree that is faster for many users.

    The work for one user does not grow with the lists of `in` and `not_in`.
    """
    return _indexed(tree, DEPTH)


def _indexed(node: Any, room: int) -> Any:
    group = joined(node, room)
    if group is not None:
        _, rules = group
        return {**node, "rules": [_indexed(rule, room - 1) for rule in rules]}
    value = node.get("value") if isinstance(node, dict) else None
    if isinstance(value, list) and node.get("operator") in ("in", "not_in"):
        return {**node, "value": Indexed(value)}
    return node


def trace(tree: Any, user_id: str | None, attributes: Any = None) -> dict[str, Any]:
    """Return the tree with the result of each node in it, as ``result``."""
    return _traced(tree, _facts(user_id, attributes), DEPTH)


def _facts(user_id: str | None, attributes: Any) -> dict[str, Any]:
    facts = attributes if isinstance(attributes, dict) else {}
    return facts if user_id is None else {**facts, "userId": user_id}


def _holds(node: Any, facts: dict[str, Any], room: int) -> bool:
    group = joined(node, room)
    if group is None:
        return _leaf_holds(node, facts)
    join, rules = group
    return join(_holds(rule, facts, room - 1) for rule in rules)


def _traced(node: Any, facts: dict[str, Any], room: int) -> dict[str, Any]:
    group = joined(node, room)
    if group is None:
        shown = node if isinstance(node, dict) else {}
        return {**shown, "result": _leaf_holds(node, facts)}
    join, rules = group
    traced = [_traced(rule, facts, room - 1) for rule in rules]
    return {
        **node,
        "rules": traced,
        "result": join(rule["result"] for rule in traced),
    }


def joined(node: Any, room: int) -> tuple[Join, list[Any]] | None:
    """Return how a valid group joins its rules, and the rules; else None."""
    if not isinstance(node, dict) or "rules" not in node or not room:
        return None
    join, rules = _named(JOINS, node.get("logicalOperator")), node["rules"]
    return (join, rules) if join and rules and isinstance(rules, list) else None


def _leaf_holds(node: Any, facts: dict[str, Any]) -> bool:
    if not isinstance(node, dict):
        return False
    operator = _named(OPERATORS, node.get("operator"))
    field = node.get("field")
    if operator is None or not isinstance(field, str):
        return False
    if ("value" in node) is (operator.problem is None):
        return False
    return operator.holds(_reached(facts, field), node.get("value"))


def _reached(facts: Any, path: str) -> Any:
    """Return the value at the path, or MISSING."""
    while isinstance(facts, dict):
        if path in facts:
            return facts[path]
        step, _, path = path.partition(".")
        facts = facts.get(step)
    return MISSING


def _named(table: dict[str, Entry], name: Any) -> Entry | None:
    """Return the entry of this name, or None; a list or an object names none."""
    return table.get(name) if isinstance(name, str) else None


def without(tree: Any, user_id: str, tombstone: str) -> Any:
    """Return the tree with *tombstone* in place of each value that is this user id.

    Values are a rule's value and the texts at any depth in it: an item of a list, a
    member of an object, or the name of a member. A version or a moment that a rule
    compares with names no person and stays. Without any change, the same object is
    returned.
    """
    return _without(tree, user_id, tombstone, DEPTH)


def _without(node: Any, user_id: str, tombstone: str, room: int) -> Any:
    group = joined(node, room)
    if group is not None:
        _, rules = group
        new = [_without(rule, user_id, tombstone, room - 1) for rule in rules]
        kept = all(one is other for one, other in zip(rules, new, strict=True))
        return node if kept else {**node, "rules": new}
    if not isinstance(node, dict) or "value" not in node:
        return node
    operator = _named(OPERATORS, node.get("operator"))
    if operator and operator.problem in (_a_version, _a_moment):
        return node
    value = _replaced(node["value"], user_id, tombstone)
    return node if value is node["value"] else {**node, "value": value}


def _replaced(value: Any, user_id: str, tombstone: str) -> Any:
    """Return a JSON value with *tombstone* in place of each *user_id* in it."""
    if isinstance(value, str):
        return tombstone if value == user_id else value
    if isinstance(value, list):
        items = [_replaced(item, user_id, tombstone) for item in value]
        return value if _are_the_same(value, items) else items
    if isinstance(value, dict):
        names = [_replaced(name, user_id, tombstone) for name in value]
        items = [_replaced(item, user_id, tombstone) for item in value.values()]
        if _are_the_same(value, names) and _are_the_same(value.values(), items):
            return value
        return dict(zip(names, items, strict=True))
    return value


def _are_the_same(olds: Iterable[Any], news: Iterable[Any]) -> bool:
    return all(old is new for old, new in zip(olds, news, strict=True))


class Problem(NamedTuple):
    """What is wrong and where: ``rules.0.value``; the tree itself is ``""``."""

    path: str
    message: str


def problems(tree: Any) -> list[Problem]:
    """Return everything that is wrong with a tree, whatever JSON it is.

    The check stops at the 200th rule, at the 10,000th step of the patterns and at the
    100th problem, so that its own cost is bounded.
    """
    named = []
    rules = steps = 0
    for prefix, node, depth in _nodes(tree):
        if depth > DEPTH or not _children(node):
            rules += 1
        if rules > RULES:
            named.append(Problem("", f"A tree holds at most {RULES} rules."))
            break
        own = _group_problems(node, depth) if _is_group(node) else _leaf_problems(node)
        room = PROBLEMS - len(named)
        named += [
            Problem((prefix + key).rstrip("."), message)
            for key, message in islice(own, room)
        ]
        if len(named) == PROBLEMS:
            break
        steps += _steps(node)
        if steps > STEPS:
            named.append(Problem(f"{prefix}value", _too_long(steps)))
            break
    return named


def _nodes(tree: Any) -> Iterator[tuple[str, Any, int]]:
    """Yield each node in reading order, with the prefix of its path and its depth."""
    waiting = [("", tree, 1)]
    enough = RULES + 1
    while waiting:
        prefix, node, depth = waiting.pop()
        yield prefix, node, depth
        if depth <= DEPTH:
            waiting.extend(
                (f"{prefix}rules.{index}.", rule, depth + 1)
                for index, rule in reversed(list(enumerate(_children(node)[:enough])))
            )


def _is_group(node: Any) -> bool:
    return isinstance(node, dict) and not GROUP_KEYS.isdisjoint(node)


def _children(node: Any) -> list[Any]:
    rules = node.get("rules") if isinstance(node, dict) else None
    return rules if isinstance(rules, list) else []


def _group_problems(group: dict[str, Any], depth: int) -> Iterator[tuple[str, str]]:
    if depth > DEPTH:
        yield "", f"Groups stand at most {DEPTH} deep."
    if "logicalOperator" not in group:
        yield "logicalOperator", "A group needs it: AND or OR."
    elif _named(JOINS, group["logicalOperator"]) is None:
        yield "logicalOperator", "It must be AND or OR."
    if "rules" not in group:
        yield "rules", "A group needs them."
    elif not isinstance(group["rules"], list):
        yield "rules", "It must be an array."
    elif not group["rules"]:
        yield "rules", "A group holds at least one rule."
    yield from _unknown_keys(group, GROUP_KEYS)


def _leaf_problems(leaf: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(leaf, dict):
        yield "", "A rule is an object: a field, an operator and a value, or a group."
        return
    if "field" not in leaf:
        yield "field", "A rule needs it."
    elif problem := _field_problem(leaf["field"]):
        yield "field", problem
    operator = _named(OPERATORS, leaf.get("operator"))
    if "operator" not in leaf:
        yield "operator", "A rule needs it."
    elif operator is None:
        yield "operator", f"It must be one of {', '.join(OPERATORS)}."
    elif operator.problem is None:
        if "value" in leaf:
            yield "value", f"{leaf['operator']} takes no value."
    elif "value" not in leaf:
        yield "value", f"{leaf['operator']} needs a value."
    elif problem := operator.problem(leaf["value"]):
        yield "value", problem
    yield from _unknown_keys(leaf, LEAF_KEYS)


def _field_problem(field: Any) -> str | None:
    if not isinstance(field, str):
        return "It must be a string."
    if not 1 <= len(field) <= FIELD_LENGTH:
        return f"It has 1 to {FIELD_LENGTH} characters, not {len(field)}."
    if not all(step.strip() for step in field.split(".")):
        return "A path has a name on either side of each dot."
    return None


def _unknown_keys(node: dict[str, Any], known: set[str]) -> Iterator[tuple[str, str]]:
    for key in node:
        if key not in known:
            yield key, f"There is no such key; there are {', '.join(sorted(known))}."


def _steps(node: Any) -> int:
    """Return the length of a rule's compiled pattern, 0 without one."""
    if not isinstance(node, dict) or node.get("operator") != "regex":
        return 0
    pattern = node.get("value")
    return 0 if _a_pattern(pattern) else int(_compiled(pattern).programsize)


def _too_long(steps: int) -> str:
    return (
        f"The patterns up to this one compile to {steps:,} steps; a tree has at most "
        f"{STEPS:,}. Counted repetitions cost their count, and \\pL costs 1,200."
    )
