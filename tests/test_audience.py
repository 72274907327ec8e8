"""Who is meant: what each operator asks, what a tree may be, and what it costs.

The truth table is `cases/operators.json`: in each row `is` is what the field holds,
left out where there is no such field; `because` says which sentence decides.
"""

import json
from copy import deepcopy
from decimal import Decimal
from pathlib import Path

import pytest

from targeting.audience import (
    MISSING,
    OPERATORS,
    indexed,
    matches,
    problems,
    trace,
    without,
)

ROOT = Path(__file__).parent.parent
CASES = (ROOT / "tests" / "cases" / "operators.json").read_text("utf-8")
# JSON as the service reads it, with decimals, and as Python's own reader does.
TABLES = [json.loads(CASES, parse_float=number) for number in (Decimal, float)]
ROWS = [
    pytest.param(operator, place, id=f"{operator}-{place}")
    for operator, rows in TABLES[0].items()
    for place in range(len(rows))
]
OPPOSITES = {
    "neq": "eq",
    "not_contains": "contains",
    "not_in": "in",
    "not_exists": "exists",
}


def leaf(operator, value=MISSING, field="x"):
    rule = {"field": field, "operator": operator}
    return rule if value is MISSING else rule | {"value": value}


def group(word, *rules):
    return {"logicalOperator": word, "rules": list(rules)}


def nested(depth, rule, word="AND"):
    """So many groups in one another, and the rule in the innermost."""
    for _ in range(depth):
        rule = group(word, rule)
    return rule


def where(tree):
    return [path for path, _ in problems(tree)]


# ---------------------------------------------------------------------------
# What each operator asks


def test_the_table_has_every_operator_of_the_contract():
    contract = {
        *("eq", "neq", "gt", "lt", "gte", "lte", "contains", "not_contains"),
        *("in", "not_in", "exists", "not_exists", "regex", "starts_with", "ends_with"),
        *("semver_gt", "semver_gte", "semver_lt", "semver_lte", "semver_eq"),
        *("before", "after"),
    }

    assert set(TABLES[0]) == set(OPERATORS) == contract


@pytest.mark.parametrize(("operator", "place"), ROWS)
def test_a_rule_holds_as_its_row_in_the_table_says(operator, place):
    for asked in TABLES:
        for held in TABLES:  # a decimal here meets a float there
            row, other = asked[operator][place], held[operator][place]
            tree = leaf(operator, row.get("value", MISSING))
            attributes = {"x": other["is"]} if "is" in other else {}

            assert problems(tree) == []
            assert matches(tree, "u1", attributes) is row["holds"]
            assert matches(indexed(tree), "u1", attributes) is row["holds"]
            assert trace(tree, "u1", attributes) == {**tree, "result": row["holds"]}


@pytest.mark.parametrize(
    ("value", "held", "same"),
    [
        (Decimal("0.1"), 0.1, True),  # though the float's binary digits are others
        (Decimal("1E400"), Decimal("10E399"), True),
        (Decimal("1E999999999"), 1, False),
        (Decimal("0.1000000000000000055511151231257827"), 0.1, False),
        (9007199254740993, Decimal("9007199254740993.0"), True),
        (10**400, Decimal("1E400"), True),
        (float("inf"), Decimal("1E400"), False),
    ],
)
def test_numbers_are_equal_by_their_value_whatever_holds_them(value, held, same):
    assert matches(leaf("eq", value), "u1", {"x": held}) is same
    assert matches(leaf("eq", held), "u1", {"x": value}) is same


def test_what_is_no_finite_number_is_above_and_below_none():
    for odd in (float("nan"), float("inf"), Decimal("NaN"), Decimal("sNaN")):
        for operator in ("gt", "lt", "gte", "lte"):
            assert not matches(leaf(operator, 0), "u1", {"x": odd})
            assert not matches(leaf(operator, odd), "u1", {"x": 0})
            assert where(leaf(operator, odd)) == ["value"]


# ---------------------------------------------------------------------------
# Fields


@pytest.mark.parametrize(
    ("field", "attributes", "reached"),
    [
        ("plan", {"plan": "pro"}, True),
        ("Plan", {"plan": "pro"}, False),
        ("traits.plan", {"traits": {"plan": "pro"}}, True),
        ("a.b.c.d", {"a": {"b": {"c": {"d": "pro"}}}}, True),
        ("a.b.c.d", {"a": {"b": {"c": "pro"}}}, False),
        ("traits", {"traits": {"plan": "pro"}}, False),
        ("traits.plan", {"traits": "pro"}, False),
        ("traits.plan", {"traits": None}, False),
        ("traits.plan", {"plan": "pro"}, False),
        ("traits.plan", {"traits.plan": "pro"}, True),
        ("a.b.c", {"a": {"b.c": "pro"}}, True),
        ("traits.plan", {"traits.plan": "pro", "traits": {"plan": "free"}}, True),
        ("items.0", {"items": ["pro"]}, False),
        ("items.length", {"items": ["pro"]}, False),
        ("name.upper", {"name": "pro"}, False),
        ("__class__", {}, False),
        ("план.イ", {"план": {"イ": "pro"}}, True),
        ("a b", {"a b": "pro"}, True),
        ("userId", {"userId": "pro"}, False),  # the user asked about is u1
        ("userId.x", {"userId": {"x": "pro"}}, False),
        ("user.userId", {"user": {"userId": "pro"}}, True),
    ],
)
def test_a_field_is_a_path_into_objects(field, attributes, reached):
    tree = leaf("eq", "pro", field=field)

    assert problems(tree) == []
    assert matches(tree, "u1", attributes) is reached


def test_user_id_is_the_user_asked_about():
    tree = leaf("in", ["u1", "u2"], field="userId")

    assert matches(tree, "u1")
    assert matches(tree, "u2", {"userId": "u9"})
    assert not matches(tree, "u9", {"userId": "u1"})


def test_with_nobody_asked_about_user_id_is_an_attribute():
    tree = leaf("eq", "u1", field="userId")

    assert matches(tree, None, {"userId": "u1"})
    assert not matches(tree, None, {})


@pytest.mark.parametrize("attributes", [None, [], "x", 1, True, [{"x": 1}]])
def test_attributes_that_are_no_object_have_no_field(attributes):
    assert not matches(leaf("exists"), "u1", attributes)
    assert matches(leaf("not_exists"), "u1", attributes)
    assert matches(leaf("eq", "u1", field="userId"), "u1", attributes)


# ---------------------------------------------------------------------------
# Trees


YES, NO = leaf("exists", field="userId"), leaf("not_exists", field="userId")


@pytest.mark.parametrize(
    ("tree", "holds"),
    [
        (group("AND", YES), True),
        (group("AND", YES, YES), True),
        (group("AND", YES, NO), False),
        (group("AND", NO, NO), False),
        (group("OR", YES), True),
        (group("OR", NO, YES), True),
        (group("OR", NO, NO), False),
        (group("AND", group("OR", NO, YES), group("OR", YES, NO)), True),
        (group("OR", group("AND", NO, YES), group("AND", YES, NO)), False),
        (nested(10, YES), True),
        (nested(10, NO), False),
    ],
)
def test_and_asks_for_all_and_or_for_any(tree, holds):
    assert problems(tree) == []
    assert matches(tree, "u1") is holds


def test_a_trace_tells_the_truth_of_every_node_even_past_the_deciding_one():
    tree = group("OR", YES, group("AND", NO, YES), NO)

    assert trace(tree, "u1") == {
        "logicalOperator": "OR",
        "rules": [
            YES | {"result": True},
            {
                "logicalOperator": "AND",
                "rules": [NO | {"result": False}, YES | {"result": True}],
                "result": False,
            },
            NO | {"result": False},
        ],
        "result": True,
    }


# ---------------------------------------------------------------------------
# What is wrong with a tree


VALUES = {
    "a text": "x",
    "a number": 1,
    "a decimal": Decimal("1.5"),
    "a boolean": True,
    "null": None,
    "a list": ["x"],
    "an object": {"x": 1},
    "a version": "1.2.3",
    "a moment": "2025-02-01T00:00:00Z",
}


TEXTS = ["a text", "a version", "a moment"]


@pytest.mark.parametrize(
    ("operators", "taken"),
    [
        (["eq", "neq"], list(VALUES)),
        (["gt", "lt", "gte", "lte"], ["a number", "a decimal"]),
        (
            ["contains", "not_contains"],
            [*TEXTS, "a number", "a decimal", "a boolean"],
        ),
        (["in", "not_in"], ["a list"]),
        (["exists", "not_exists"], []),
        (["regex", "starts_with", "ends_with"], TEXTS),
        (
            ["semver_gt", "semver_gte", "semver_lt", "semver_lte", "semver_eq"],
            ["a version"],
        ),
        (["before", "after"], ["a moment"]),
    ],
)
def test_an_operator_takes_the_values_it_can_ask_with(operators, taken):
    for operator in operators:
        for name, value in VALUES.items():
            wrong = [] if name in taken else ["value"]
            assert where(leaf(operator, value)) == wrong, (operator, name)
        assert where(leaf(operator)) == (["value"] if taken else [])


GOOD = leaf("eq", 1)


@pytest.mark.parametrize(
    ("tree", "paths"),
    [
        (None, [""]),
        (True, [""]),
        (1, [""]),
        ("eq", [""]),
        ([], [""]),
        ([GOOD], [""]),
        ({}, ["field", "operator"]),
        ({"field": "x"}, ["operator"]),
        ({"operator": "eq", "value": 1}, ["field"]),
        (leaf("EQ", 1), ["operator"]),
        (leaf("equals", 1), ["operator"]),
        (leaf("", 1), ["operator"]),
        (leaf(None, 1), ["operator"]),
        (leaf(["eq"], 1), ["operator"]),
        (leaf({"eq": 1}, 1), ["operator"]),
        (leaf("eq", 1, field=""), ["field"]),
        (leaf("eq", 1, field=" "), ["field"]),
        (leaf("eq", 1, field=None), ["field"]),
        (leaf("eq", 1, field=["x"]), ["field"]),
        (leaf("eq", 1, field="."), ["field"]),
        (leaf("eq", 1, field="a."), ["field"]),
        (leaf("eq", 1, field=".a"), ["field"]),
        (leaf("eq", 1, field="a..b"), ["field"]),
        (leaf("eq", 1, field="a" * 255), []),
        (leaf("eq", 1, field="a" * 256), ["field"]),
        (GOOD | {"negate": True}, ["negate"]),
        ({"field": 1, "operator": "gt", "value": "1", "a": 1}, ["field", "value", "a"]),
        ({"logicalOperator": "AND"}, ["rules"]),
        ({"rules": [GOOD]}, ["logicalOperator"]),
        (group("and", GOOD), ["logicalOperator"]),
        (group("NOT", GOOD), ["logicalOperator"]),
        (group(None, GOOD), ["logicalOperator"]),
        (group(["AND"], GOOD), ["logicalOperator"]),
        (group("AND"), ["rules"]),
        ({"logicalOperator": "AND", "rules": None}, ["rules"]),
        ({"logicalOperator": "AND", "rules": {"0": GOOD}}, ["rules"]),
        ({"logicalOperator": "AND", "rules": "eq"}, ["rules"]),
        (group("AND", GOOD) | GOOD, ["field", "operator", "value"]),
        (group("AND", None, GOOD, 7), ["rules.0", "rules.2"]),
        (group("AND", GOOD, leaf("gt", "1")), ["rules.1.value"]),
        (group("OR", group("AND", GOOD, leaf("no", 1))), ["rules.0.rules.1.operator"]),
        (
            group("AND", leaf("in", 1), group("X", leaf("gt", [])), group("OR")),
            [
                "rules.0.value",
                "rules.1.logicalOperator",
                "rules.1.rules.0.value",
                "rules.2.rules",
            ],
        ),
    ],
)
def test_everything_wrong_with_a_tree_is_told_with_its_path(tree, paths):
    assert where(tree) == paths
    assert all(message for _, message in problems(tree))


def test_groups_stand_ten_deep_and_no_deeper():
    assert where(nested(10, GOOD)) == []
    assert where(nested(11, GOOD)) == [".".join(["rules.0"] * 10)]
    assert where(nested(10, group("AND"))) != []


def test_a_tree_holds_200_rules_and_no_more():
    assert where(group("AND", *[GOOD] * 200)) == []
    assert where(group("AND", *[GOOD] * 201)) == [""]
    assert where(group("OR", *[group("AND", *[GOOD] * 20)] * 10)) == []
    assert where(group("OR", GOOD, *[group("AND", *[GOOD] * 20)] * 10)) == [""]


def test_a_huge_tree_is_refused_after_its_200th_rule_or_its_100th_problem():
    wide = group("AND", *[leaf("no", 1)] * 300_000)

    assert len(problems(wide)) == 100
    assert len(problems(group("AND", *[group("AND")] * 300_000))) == 100
    assert len(problems(dict.fromkeys(map(str, range(300_000))))) == 100
    assert where(group("AND", *[GOOD] * 300_000)) == [""]
    tenth = group("AND", *[group("AND", GOOD)] * 1_000)
    assert len(problems(nested(8, group("AND", *[tenth] * 1_000)))) == 100


def test_a_tree_too_deep_for_the_stack_is_refused():
    assert where(nested(100_000, GOOD)) == [".".join(["rules.0"] * 10)]
    assert matches(nested(100_000, YES), "u1") is False
    assert trace(nested(100_000, YES), "u1")["result"] is False
    tree = nested(100_000, leaf("eq", "u1"))
    assert without(tree, "u1", "gone") is tree


def test_values_too_deep_for_the_stack_compare():
    def lists(innermost):
        for _ in range(100_000):
            innermost = [innermost]
        return innermost

    assert matches(leaf("eq", lists(1)), "u1", {"x": lists(1)})
    assert not matches(leaf("in", [lists(1)]), "u1", {"x": lists(2)})


# ---------------------------------------------------------------------------
# A person erased


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (leaf("eq", "u1"), leaf("eq", "gone")),
        (leaf("regex", "u1"), leaf("regex", "gone")),
        (leaf("in", ["u0", "u1", "u1", 1]), leaf("in", ["u0", "gone", "gone", 1])),
        (leaf("eq", ["u1"]), leaf("eq", ["gone"])),
        (leaf("eq", {"who": "u1", "n": 1}), leaf("eq", {"who": "gone", "n": 1})),
        (leaf("eq", {"u1": "u10"}), leaf("eq", {"gone": "u10"})),
        (leaf("in", [{"a": [["u1"]]}, "u2"]), leaf("in", [{"a": [["gone"]]}, "u2"])),
        (leaf("neq", [[["u1"]]]), leaf("neq", [[["gone"]]])),
        (nested(10, leaf("eq", "u1")), nested(10, leaf("eq", "gone"))),
        (
            group("OR", leaf("eq", "u2"), group("AND", leaf("not_in", ["u1"]))),
            group("OR", leaf("eq", "u2"), group("AND", leaf("not_in", ["gone"]))),
        ),
    ],
)
def test_an_erased_person_is_in_no_rule(before, after):
    kept = deepcopy(before)

    assert without(before, "u1", "gone") == after
    assert before == kept


@pytest.mark.parametrize(
    "tree",
    [
        leaf("eq", "u10"),
        leaf("eq", "U1"),
        leaf("eq", "u1 "),
        leaf("exists", field="u1"),
        leaf("in", ["u", "1", "u11"]),
        leaf("in", []),
        leaf("eq", {"who": "u10", "u": ["1"]}),
        leaf("gt", 1),
        group("OR", leaf("eq", "u2"), group("AND", leaf("in", ["u2", "u3"]))),
        nested(10, GOOD),
    ],
)
def test_a_tree_without_the_person_is_the_same_object(tree):
    kept = deepcopy(tree)

    assert without(tree, "u1", "gone") is tree
    assert tree == kept


def test_a_version_that_is_somebodys_id_stays_and_changes_no_rule():
    for operator, value in (("semver_gte", "1.2.3"), ("before", "2025-02-01T00:00Z")):
        tree = group("AND", leaf(operator, value))

        assert without(tree, value, "gone") is tree


@pytest.mark.parametrize("word", ["x", "eq", "AND"])
def test_an_id_that_is_a_word_of_the_tree_leaves_the_tree_whole(word):
    tree = group("AND", leaf("eq", word))

    assert without(tree, word, "gone") == group("AND", leaf("eq", "gone"))
