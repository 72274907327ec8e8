"""Rules that can never be true, found in the tree alone (pure).

The search is certain and not complete: whatever is found is true for no user, and
other impossible rules are not found. It compares rules about the same field that must
hold together: those of an AND group and of the AND groups in it. An OR group can
never be true if none of its rules can. Patterns count as texts only. Values of over
1,000 characters or items are not compared, and neither is what would take the search of
one tree over 10,000 steps, so that it stays cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from targeting import orders
from targeting.audience import DEPTH, OPERATORS, Indexed, joined, numeric, problems

COMPARED = 1_000

STEPS = 10_000
"""Of one search. A step compares two short values, in a few microseconds."""

STEP_LENGTH = 32  # characters of two texts that count as one step more

TEXTS = frozenset({"text", "version", "moment"})
"""No text is both: each moment has a colon, and no version has one."""

ABSENT = frozenset({"missing", "null"})

EVERY = TEXTS | ABSENT | {"number", "boolean", "list", "object"}

# What a field can hold if the rule is true; rules that are not here allow anything.
KINDS = {
    **dict.fromkeys(["gt", "gte", "lt", "lte"], frozenset({"number"})),
    **dict.fromkeys(["regex", "starts_with", "ends_with"], TEXTS),
    **dict.fromkeys(
        ["semver_gt", "semver_gte", "semver_lt", "semver_lte", "semver_eq"],
        frozenset({"version"}),
    ),
    **dict.fromkeys(["before", "after"], frozenset({"moment"})),
    "exists": EVERY - ABSENT,
    "not_exists": ABSENT,
}

LOWER = {"gt", "gte", "semver_gt", "semver_gte", "semver_eq", "after"}

UPPER = {"lt", "lte", "semver_lt", "semver_lte", "semver_eq", "before"}

STRICT = {"gt", "lt", "semver_gt", "semver_lt", "before", "after"}


class NeverTrue(NamedTuple):
    """A rule or a group that is true for no user, and why."""

    path: str
    reason: str


class Rule(NamedTuple):
    """A valid rule, and where it stands in the tree."""

    path: str
    field: str
    operator: str
    value: Any


class Work:
    """The steps that a search may still take."""

    def __init__(self) -> None:
        self._left = STEPS

    def allows(self, steps: int) -> bool:
        """Take these steps, or tell that they are too many."""
        if steps > self._left:
            return False
        self._left -= steps
        return True


def never_true(tree: Any, root: str = "ruleTree") -> list[NeverTrue]:
    """Return the outermost rules and groups that are true for no user with an id."""
    reason, inside = _examined(root, tree, DEPTH, Work())
    return [NeverTrue(root, reason)] if reason else inside


def _examined(
    path: str, node: Any, room: int, work: Work
) -> tuple[str | None, list[NeverTrue]]:
    """Return why a node is never true, or else which nodes inside it are not."""
    group = joined(node, room)
    if group is None or group[0] is all:
        return _examined_together(path, node, room, work)
    inside, reasons = [], []
    _, rules = group
    for place, rule in enumerate(rules):
        own = f"{path}.rules.{place}"
        reason, deeper = _examined(own, rule, room - 1, work)
        reasons.append(reason)
        inside += [NeverTrue(own, reason)] if reason else deeper
    if all(reasons):
        return f"no rule of {path} can be true: {reasons[0]}", []
    return None, inside


def _examined_together(
    path: str, node: Any, room: int, work: Work
) -> tuple[str | None, list[NeverTrue]]:
    """Return the same for a rule alone, or for all that an AND group asks together."""
    fields: dict[str, list[Rule]] = {}
    choices = []
    for own, part, left in _flattened(path, node, room):
        if joined(part, left):
            choices.append((own, part, left))
        elif rule := _rule(own, part):
            fields.setdefault(rule.field, []).append(rule)
    for field, rules in fields.items():
        if conflict := _conflict(field, rules, work):
            return _sentence(field, conflict), []
    inside: list[NeverTrue] = []
    for choice in choices:
        reason, deeper = _examined(*choice, work)
        if reason:
            return reason, []
        inside += deeper
    return None, inside


def _flattened(path: str, node: Any, room: int) -> Iterator[tuple[str, Any, int]]:
    """Yield the rules and the OR groups that must be true if the node is."""
    group = joined(node, room)
    if group is None or group[0] is any:
        yield path, node, room
        return
    for place, rule in enumerate(group[1]):
        yield from _flattened(f"{path}.rules.{place}", rule, room - 1)


def _rule(path: str, node: Any) -> Rule | None:
    """Return a valid rule; of any other, nothing is said."""
    if not isinstance(node, dict) or "operator" not in node or problems(node):
        return None
    return Rule(path, node["field"], node["operator"], node.get("value"))


def _sentence(field: str, rules: Sequence[Rule]) -> str:
    paths = list(dict.fromkeys(rule.path for rule in rules))
    named = " and ".join(paths[:3])
    more = f" and {len(paths) - 3} more rules" if len(paths) > 3 else ""
    kind = ", which is always a string," if field == "userId" else ""
    return f"no value of {field!r}{kind} satisfies {named}{more}"


# ----------------------------------------------------------------------------
# Rules about one field
# ----------------------------------------------------------------------------


def _conflict(field: str, rules: list[Rule], work: Work) -> list[Rule]:
    """Return rules that no value of the field satisfies together, if any are found."""
    kinds = [(rule, _kinds(rule)) for rule in rules]
    possible = TEXTS if field == "userId" else EVERY
    for place, (rule, own) in enumerate(kinds):
        if not possible & own:
            others = [other for other, kind in kinds[:place] if not kind & own]
            return [*others[:1], rule]
        possible &= own
    return (
        _without_candidates(rules, possible, work)
        or _out_of_bounds(rules)
        or _apart(rules, "starts_with", str.startswith)
        or _apart(rules, "ends_with", str.endswith)
        or _contradicted(rules, possible, work)
    )


def _kinds(rule: Rule) -> frozenset[str]:
    """Return the kinds of values for which a rule may be true."""
    if rule.operator == "contains":
        return TEXTS | {"list"} if isinstance(rule.value, str) else frozenset({"list"})
    if rule.operator in ("eq", "in"):
        return EVERY - {"missing"}
    return KINDS.get(rule.operator, EVERY)


def _without_candidates(
    rules: list[Rule], possible: frozenset[str], work: Work
) -> list[Rule]:
    """Return rules that refuse, together, every value that `eq` or `in` allows."""
    pins = [rule for rule in rules if rule.operator in ("eq", "in")]
    if not pins:
        return []
    source = min(pins, key=lambda pin: len(_values(pin)))
    values = _values(source)
    if len(values) > COMPARED or not all(map(_is_small, values)):
        return []
    fit = {
        place
        for place, value in enumerate(values)
        if isinstance(value, str) or not possible <= TEXTS
    }
    if not fit:
        return [source]
    for rule in rules:
        own = _fitting(rule, values, work)
        if not own:
            return [source, rule]
        fit &= own
    return [] if fit else rules


def _values(rule: Rule) -> list[Any]:
    values: list[Any] = rule.value if rule.operator == "in" else [rule.value]
    return values


def _is_small(value: Any) -> bool:
    number = numeric(value)
    if isinstance(number, int):
        return number.bit_length() <= 3 * COMPARED  # nearly as many digits
    if isinstance(number, Decimal):
        return len(number.as_tuple().digits) <= COMPARED
    if isinstance(value, str):
        return len(value) <= COMPARED
    return value is None or isinstance(value, bool)


def _length(value: Any) -> int:
    """Return about how many characters a value has."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, int):
        return value.bit_length() // 3
    if isinstance(value, Decimal):
        return len(value.as_tuple().digits)
    if isinstance(value, list):
        return sum(map(_length, value))
    return 0


def _fitting(rule: Rule, values: Sequence[Any], work: Work) -> set[int]:
    """Return the places of the values for which a rule is true, or may be."""
    value = rule.value
    everywhere = set(range(len(values)))
    is_long = isinstance(value, (str, list, dict)) and len(value) > COMPARED
    if rule.operator == "regex" or is_long:
        return everywhere
    items = value if isinstance(value, list) else [value]
    # First for the number of values: to measure them takes as many steps.
    if not work.allows(len(values) + len(items)) or not all(map(_is_small, items)):
        return everywhere
    length = _length(values) + _length(items)
    if isinstance(value, str):
        length += len(values) * len(value)
    if not work.allows(length // STEP_LENGTH):
        return everywhere
    if rule.operator in ("in", "not_in"):
        value = Indexed(value)
    holds = OPERATORS[rule.operator].holds
    return {place for place, actual in enumerate(values) if holds(actual, value)}


def _out_of_bounds(rules: list[Rule]) -> list[Rule]:
    """Return a lower and an upper bound with nothing between them.

    The kinds agree, so that all bounds are numbers, or versions, or moments.
    """
    lower = [rule for rule in rules if rule.operator in LOWER]
    upper = [rule for rule in rules if rule.operator in UPPER]
    if not lower or not upper:
        return []
    low = max(lower, key=lambda rule: (_bound(rule), rule.operator in STRICT))
    high = min(upper, key=lambda rule: (_bound(rule), rule.operator not in STRICT))
    is_open = not STRICT.isdisjoint((low.operator, high.operator))
    least, most = _bound(low), _bound(high)
    return [low, high] if least > most or (least == most and is_open) else []


def _bound(rule: Rule) -> Any:
    if rule.operator in ("before", "after"):
        return orders.moment(rule.value)
    is_version = rule.operator.startswith("semver_")
    return orders.version(rule.value) if is_version else numeric(rule.value)


def _apart(
    rules: list[Rule], operator: str, agrees: Callable[[str, str], bool]
) -> list[Rule]:
    """Return two rules that demand different starts, or ends, of the same text."""
    own = [rule for rule in rules if rule.operator == operator]
    if not own:
        return []
    longest = max(own, key=lambda rule: len(rule.value))
    for rule in own:
        if not agrees(longest.value, rule.value):
            return [longest, rule]
    return []


def _contradicted(
    rules: list[Rule], possible: frozenset[str], work: Work
) -> list[Rule]:
    """Return a rule that demands a part of the value, and one that forbids it."""
    small = [rule for rule in rules if _is_small(rule.value)]
    demanding = ("contains", "starts_with", "ends_with")
    demanded = [rule for rule in small if rule.operator in demanding]
    forbidden = [rule for rule in small if rule.operator == "not_contains"]
    same, contains = OPERATORS["eq"].holds, OPERATORS["contains"].holds
    for rule in demanded:
        for other in forbidden:
            lengths = _length(rule.value) + _length(other.value)
            if not work.allows(1 + lengths // STEP_LENGTH):
                return []
            if rule.operator == "contains" and same(rule.value, other.value):
                return [rule, other]
            if possible <= TEXTS and contains(rule.value, other.value):
                return [rule, other]
    return []
