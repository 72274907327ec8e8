"""Patterns of audiences, and trees of any content."""

import json
import subprocess
import sys
import time
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_audience import GOOD, OPPOSITES, ROOT, group, leaf, where

from bench import rules
from targeting import audience
from targeting.audience import (
    MISSING,
    indexed,
    matches,
    problems,
    trace,
    without,
)

# ---------------------------------------------------------------------------
# Patterns


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a)\1",
        "(?=a)",
        "(?!a)",
        "(?<=a)b",
        "(?<!a)b",
        "(?>a)",
        "a++",
        "(",
        ")",
        "[",
        "[z-a]",
        "*",
        "a**",
        "a{1001}",
        "(a{100}){100}",
        r"\pX",
        "\\",
        r"\Z",
        "a" * 257,
    ],
)
def test_a_pattern_that_takes_no_linear_time_or_makes_no_sense_is_refused(pattern):
    tree = group("AND", leaf("regex", pattern))

    assert where(tree) == ["rules.0.value"]
    assert matches(tree, "u1", {"x": "aa"}) is False


def test_a_pattern_has_at_most_256_characters():
    assert where(leaf("regex", "é" * 256)) == []
    assert where(leaf("regex", "é" * 257)) == ["value"]


def test_a_text_that_is_no_unicode_is_searched_all_the_same():
    assert matches(leaf("regex", "a"), "u1", {"x": "\ud800a"})
    assert not matches(leaf("regex", "b"), "u1", {"x": "\ud800a"})


ORDINARY = [
    r"^[^@]+@(example|acme)\.com$",
    r"(?i)^chrome/\d+",
    r"\.(nl|de|be)$",
    r"^v\d+\.\d+\.\d+$",
    r"^(\+31|0031)\d{9}$",
    r"^[\w.+-]+@[\w-]+\.[\w.]+$",
    r"iPhone|iPad|iPod",
    r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$",
]


def test_200_ordinary_patterns_fit_in_one_tree():
    rules = [leaf("regex", ORDINARY[number % 8]) for number in range(200)]

    assert problems(group("OR", *rules)) == []


def test_a_tree_refuses_patterns_that_cost_too_much_together():
    # RE2 says itself how long each program is; some steps come with every pattern.
    costly = leaf("regex", r"(?:a?){900}c")
    one = audience._compiled(costly["value"]).programsize
    assert 1_800 <= one < 2_000

    assert where(group("OR", *[costly] * 5)) == []
    assert where(group("OR", *[costly] * 6)) == ["rules.5.value"]
    assert where(group("OR", group("OR", *[costly] * 5), GOOD, costly)) == [
        "rules.2.value"
    ]
    assert where(leaf("regex", "x{1000}" * 9)) == []
    assert where(leaf("regex", "x{1000}" * 10)) == ["value"]


def test_patterns_past_the_bound_are_not_even_compiled():
    costly = [leaf("regex", f"(?:a?){{{900 + number}}}c") for number in range(200)]
    audience._compiled.cache_clear()

    problems(group("OR", *costly))

    assert audience._compiled.cache_info().misses == 6


@pytest.mark.parametrize("name", rules.HOSTILE)
def test_a_hostile_pattern_takes_linear_time(name):
    pattern, letters = rules.HOSTILE[name]
    tree = rules.searching(pattern)

    texts = [rules.text_of(letters, length) for length in (2_000, 8_000)]

    # This thread's own time, the least of turns: what else runs here only adds to it.
    turns = [[rules.spent_searching(tree, text, 1) for text in texts] for _ in range(4)]
    shorter, longer = (min(times) for times in zip(*turns, strict=True))

    # Four times the text takes at most 4 times as long; 16 times if it were quadratic.
    assert longer < 8 * shorter


def test_200_rules_ten_deep_take_under_a_millisecond():
    tree = rules.mixed_tree(rules.MIXED)
    assert problems(tree) == []
    assert json.dumps(tree, default=str).count('"operator"') == 200
    assert json.dumps(tree, default=str).count('"rules"') == 10
    assert matches(tree, "zoe", rules.ZOE)  # AND asks for all, and all hold

    # In a process of its own, because a coverage run traces every line in this one.
    asked = (
        "from bench.rules import *; tree = mixed_tree(MIXED); "
        "print(spent(lambda: matches(tree, 'zoe', ZOE), rounds=101))"
    )
    median = subprocess.run(
        [sys.executable, "-c", asked],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout

    assert 0 < float(median) < 1e-3


# ---------------------------------------------------------------------------
# Whatever it is given


VERSIONS = ["1.0.0", "v1.0", "1.0.0-rc.1+5", "2.0.0-0", "10.0.0"]
MOMENTS = ["2025-02-01T00:00Z", "2025-02-01T01:00:00+01:00", "2024-12-31 23:59:59.9z"]
WORDS = ["u1", "\ud800", "a.b", "AND", "eq", *VERSIONS, *MOMENTS]
texts = st.text(max_size=8) | st.sampled_from(WORDS)
numbers = st.integers() | st.floats() | st.decimals() | st.sampled_from([0, 1, 1.0])
scalars = st.none() | st.booleans() | numbers | texts
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4)
    ),
    max_leaves=8,
)
fields = st.sampled_from(["userId", "a", "b", "a.b", "a.b.c", "nowhere"])
facts = st.dictionaries(fields | texts, anything, max_size=4)
patterns = st.sampled_from(["", "a", "^a*$", "(a|b)+", "[^u]", "."])
versions, moments = st.sampled_from(VERSIONS), st.sampled_from(MOMENTS)
VALID = {
    **dict.fromkeys(["eq", "neq"], anything),
    **dict.fromkeys(
        ["gt", "lt", "gte", "lte"], st.integers() | st.just(Decimal("0.5"))
    ),
    **dict.fromkeys(["contains", "not_contains"], texts | st.booleans()),
    **dict.fromkeys(["in", "not_in"], st.lists(anything, max_size=3)),
    **dict.fromkeys(["exists", "not_exists"], st.just(MISSING)),
    **dict.fromkeys(["starts_with", "ends_with"], texts),
    "regex": patterns,
    **dict.fromkeys(
        ["semver_gt", "semver_gte", "semver_lt", "semver_lte", "semver_eq"], versions
    ),
    **dict.fromkeys(["before", "after"], moments),
}


def leaves(operators):
    return st.sampled_from(sorted(operators)).flatmap(
        lambda operator: st.builds(leaf, st.just(operator), VALID[operator], fields)
    )


def trees(operators=frozenset(VALID)):
    """Sound trees; they are never so deep or wide as to be refused."""
    return st.recursive(
        leaves(operators),
        lambda inner: st.builds(
            lambda word, rules: group(word, *rules),
            st.sampled_from(["AND", "OR"]),
            st.lists(inner, min_size=1, max_size=4),
        ),
        max_leaves=12,
    ).filter(lambda tree: not problems(tree))


broken = st.recursive(
    anything,
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "field": fields | anything,
            "operator": st.sampled_from(sorted(VALID)) | anything,
            "value": anything | patterns,
            "logicalOperator": st.sampled_from(["AND", "OR"]) | anything,
            "rules": st.lists(inner, max_size=4) | anything,
            "more": anything,
        },
    ),
    max_leaves=12,
)


@settings(max_examples=200)
@given(broken, anything, facts | anything, st.none() | texts)
def test_nothing_raises(tree, other, attributes, user_id):
    for one in (tree, other):
        assert all(type(path) is type(said) is str for path, said in problems(one))
        held = matches(one, user_id, attributes)
        assert held in (True, False)
        assert trace(one, user_id, attributes)["result"] is held
        without(one, "u1", "gone")
        assert matches(indexed(one), user_id, attributes) is held


@given(trees(), facts)
def test_an_indexed_tree_says_the_same(tree, attributes):
    assert indexed(tree) == tree
    assert matches(indexed(tree), "u1", attributes) is matches(tree, "u1", attributes)


@pytest.mark.parametrize("step", [1, 2**61 - 1], ids=["any", "of equal hashes"])
def test_a_long_list_costs_a_user_of_a_batch_no_more_than_a_short_one(step):
    tree = indexed(leaf("in", [number * step for number in range(40_000)]))
    began = time.process_time()

    held = [matches(tree, "u1", {"x": -number}) for number in range(10_000)]

    assert held == [True] + [False] * 9_999
    assert time.process_time() - began < 2


@given(trees(), facts)
def test_a_sound_tree_is_true_as_pythons_all_and_any_of_its_leaves(tree, attributes):
    def held(node):
        if "rules" not in node:
            return matches(node, "u1", attributes)
        join = all if node["logicalOperator"] == "AND" else any
        return join([held(rule) for rule in node["rules"]])

    def told(node):
        assert node["result"] is held({**node})
        for rule in node.get("rules", []):
            told(rule)

    assert matches(tree, "u1", attributes) is held(tree)
    told(trace(tree, "u1", attributes))


@given(trees({*OPPOSITES, *OPPOSITES.values()}), facts)
def test_the_opposite_of_a_tree_is_the_tree_of_opposites(tree, attributes):
    # De Morgan: not (a and b) is (not a) or (not b).
    turned = OPPOSITES | {positive: no for no, positive in OPPOSITES.items()}
    turned |= {"AND": "OR", "OR": "AND"}

    def opposite(node):
        if "rules" in node:
            rules = [opposite(rule) for rule in node["rules"]]
            return group(turned[node["logicalOperator"]], *rules)
        return node | {"operator": turned[node["operator"]]}

    assert matches(opposite(tree), "u1", attributes) is not matches(
        tree, "u1", attributes
    )


@given(anything, anything)
def test_eq_asks_the_same_both_ways_round(one, other):
    assert matches(leaf("eq", one), "u1", {"x": other}) is matches(
        leaf("eq", other), "u1", {"x": one}
    )


@given(st.lists(anything | numbers), anything | numbers)
def test_in_is_eq_with_any_of_its_items(items, held):
    one_by_one = any(matches(leaf("eq", item), "u1", {"x": held}) for item in items)

    assert matches(leaf("in", items), "u1", {"x": held}) is one_by_one
    for operator, expected in (("in", one_by_one), ("not_in", not one_by_one)):
        tree = indexed(group("AND", leaf(operator, items)))
        assert matches(tree, "u1", {"x": held}) is expected
    if isinstance(held, str | bool):
        assert matches(leaf("contains", held), "u1", {"x": items}) is one_by_one


@given(anything | numbers, numbers)
def test_numbers_have_one_order_and_nothing_else_has_any(held, value):
    def holds(operator, left=held, right=value):
        return matches(leaf(operator, right), "u1", {"x": left})

    number = [bool(where(leaf("gt", one))) for one in (held, value)] == [False, False]
    assert holds("gt") + holds("lte") == number == holds("lt") + holds("gte")
    assert holds("gte") is (number and (holds("gt") or holds("eq")))
    assert holds("gt") is holds("lt", value, held)


@given(texts, texts)
def test_a_text_has_each_of_its_parts(before, after):
    whole = {"x": before + after}

    assert matches(leaf("starts_with", before), "u1", whole)
    assert matches(leaf("ends_with", after), "u1", whole)
    assert matches(leaf("contains", after.lower()), "u1", {"x": after.lower()})
    assert matches(leaf("in", [before + after]), "u1", whole)


@given(trees(), facts)
def test_an_erased_person_is_gone_and_asking_again_changes_nothing(tree, attributes):
    once = without(tree, "u1", "gone")

    assert without(once, "u1", "other") is once
    assert where(once) == []
    # Back again: but for what was the tombstone before, nothing else was touched.
    back = without(once, "gone", "u1")
    assert back == without(tree, "gone", "u1")
    assert trace(back, "u2", attributes) == trace(tree, "u2", attributes)


@given(trees({"eq", "neq", "in", "not_in"}), st.text(min_size=1))
def test_erasing_one_person_moves_nobody_else(tree, other):
    erased = without(tree, "u1", "gone")

    if other not in ("u1", "gone"):
        assert matches(erased, other) is matches(tree, other)


def test_a_text_too_long_to_search_holds_no_pattern():
    rule = {"field": "text", "operator": "regex", "value": "needle$"}
    room = audience.SEARCHED - len("needle")

    assert audience.matches(rule, None, {"text": "-" * room + "needle"})
    assert not audience.matches(rule, None, {"text": "-" * (room + 1) + "needle"})
