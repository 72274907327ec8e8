"""Rules that can never be true: which are found, and that no user matches any."""

import random
import sys
import time
from itertools import product

import pytest
from hypothesis import given
from test_audience import group, leaf, nested
from test_patterns import anything, broken

from targeting.audience import MISSING, OPERATORS, matches, problems
from targeting.contradictions import never_true

PRO, FREE = leaf("eq", "pro"), leaf("eq", "free")
OTHER = leaf("eq", "pro", field="y")
NEVER = leaf("in", [])


def everything(*rules):
    return group("AND", *rules)


def paths(tree):
    """Return where the rules stand that can never be true."""
    assert problems(tree) == []
    return [path for path, _ in never_true(tree)]


@pytest.mark.parametrize(
    "rules",
    [
        [NEVER],
        [PRO, FREE],
        [leaf("eq", 1), leaf("eq", "1")],
        [leaf("eq", 1), leaf("neq", 1.0)],
        [leaf("eq", 1), leaf("gt", 1)],
        [leaf("eq", None), leaf("exists")],
        [leaf("eq", "3"), leaf("gt", 1)],
        [leaf("eq", "pro"), leaf("starts_with", "f")],
        [leaf("eq", "1.0.0-rc.1"), leaf("semver_gte", "1.0.0")],
        [leaf("eq", "2025-02-01"), leaf("after", "2024-01-01T00:00Z")],
        [PRO, leaf("in", ["free", "basic"])],
        [PRO, leaf("not_in", ["free", "pro"])],
        [leaf("in", [1, 2]), leaf("in", [3, 4])],
        [leaf("in", [1, 2]), leaf("neq", 1), leaf("neq", 2)],
        [leaf("in", [1, 5]), leaf("gt", 1), leaf("lt", 5)],
        [leaf("gt", 5), leaf("lt", 5)],
        [leaf("gte", 5), leaf("lt", 5)],
        [leaf("gt", 5), leaf("lte", 5)],
        [leaf("gte", 6), leaf("lte", 5)],
        [leaf("gt", 1), leaf("lt", 9), leaf("gt", 7), leaf("lt", 3)],
        [leaf("semver_gt", "1.0.0"), leaf("semver_lt", "v1.0.0-rc.1")],
        [leaf("semver_gt", "1.0"), leaf("semver_lte", "1.0.0+5")],
        [leaf("semver_eq", "1.0.0"), leaf("semver_eq", "1.0.1")],
        [leaf("semver_eq", "1.0.0"), leaf("semver_gt", "1.0.0")],
        [leaf("after", "2025-02-01T00:00Z"), leaf("before", "2025-01-01T00:00Z")],
        [leaf("after", "2025-02-01T00:00Z"), leaf("before", "2025-02-01T01:00+01:00")],
        [leaf("exists"), leaf("not_exists")],
        [leaf("not_exists"), leaf("gt", 1)],
        [leaf("not_exists"), leaf("contains", "x")],
        [leaf("gt", 1), leaf("starts_with", "x")],
        [leaf("gt", 1), leaf("semver_gt", "1.0.0")],
        [leaf("before", "2025-01-01T00:00Z"), leaf("semver_gt", "1.0.0")],
        [leaf("regex", "x"), leaf("lt", 1)],
        [leaf("contains", 1), leaf("ends_with", "1")],
        [leaf("starts_with", "ab"), leaf("starts_with", "b")],
        [
            leaf("starts_with", "abc"),
            leaf("starts_with", "a"),
            leaf("starts_with", "ac"),
        ],
        [leaf("ends_with", "@a.com"), leaf("ends_with", "@b.com")],
        [leaf("contains", "x"), leaf("not_contains", "x")],
        [leaf("contains", 1), leaf("not_contains", 1.0)],
        [leaf("starts_with", "Straße"), leaf("not_contains", "SS")],
        [leaf("contains", "pro"), leaf("not_contains", "PR"), leaf("regex", "o")],
        [leaf("eq", 7, field="userId")],
        [leaf("in", [7, 8], field="userId")],
        [leaf("not_exists", field="userId")],
        [leaf("gt", 7, field="userId")],
    ],
)
def test_rules_that_contradict_each_other_are_found_wherever_they_stand(rules):
    assert paths(everything(*rules)) == ["ruleTree"]
    assert paths(everything(OTHER, *reversed(rules))) == ["ruleTree"]
    first, *rest = rules
    assert paths(everything(OTHER, nested(3, first), everything(*rest, OTHER))) == [
        "ruleTree"
    ]
    assert paths(group("OR", OTHER, everything(*rules))) == ["ruleTree.rules.1"]
    assert paths(group("OR", *[everything(*rules)] * 3)) == ["ruleTree"]
    if len(rules) > 1:
        assert paths(group("OR", *rules)) == []


@pytest.mark.parametrize(
    "tree",
    [
        PRO,
        everything(PRO, PRO, OTHER),
        everything(PRO, leaf("eq", "free", field="y")),
        group("OR", PRO, FREE),
        everything(leaf("neq", "pro"), leaf("neq", "free"), leaf("not_in", ["x"])),
        everything(leaf("gte", 5), leaf("lte", 5)),
        everything(leaf("in", [1, 2]), leaf("in", [2, 3])),
        everything(leaf("eq", None), leaf("not_exists")),
        everything(leaf("not_exists"), leaf("neq", 1), leaf("not_contains", "")),
        everything(leaf("contains", "pro"), leaf("not_contains", "p")),  # ["pro"]
        everything(leaf("contains", "1"), leaf("contains", 1)),  # ["1", 1]
        everything(leaf("starts_with", "ab"), leaf("ends_with", "ba")),  # "aba"
        everything(leaf("starts_with", "1.2"), leaf("semver_gt", "1.2.0")),
        everything(leaf("semver_gte", "1.0.0"), leaf("semver_lte", "v1")),
        everything(leaf("semver_gt", "1.0.0-rc"), leaf("semver_lt", "1.0.0")),
        everything(
            leaf("after", "2025-01-01T00:00Z"), leaf("before", "2025-01-02T00:00Z")
        ),
        leaf("eq", 7, field="user.userId"),
    ],
)
def test_rules_that_may_be_true_are_not_found(tree):
    assert paths(tree) == []


def test_the_outermost_are_named_each_with_its_reason():
    tree = group(
        "OR",
        OTHER,
        NEVER,
        everything(OTHER, group("OR", everything(PRO, OTHER, FREE), NEVER)),
        everything(OTHER, group("OR", PRO, leaf("in", [], field="z"))),
    )

    assert never_true(tree) == [
        ("ruleTree.rules.1", "no value of 'x' satisfies ruleTree.rules.1"),
        (
            "ruleTree.rules.2",
            "no rule of ruleTree.rules.2.rules.1 can be true: no value of 'x' "
            "satisfies ruleTree.rules.2.rules.1.rules.0.rules.0 and "
            "ruleTree.rules.2.rules.1.rules.0.rules.2",
        ),
        (
            "ruleTree.rules.3.rules.1.rules.1",
            "no value of 'z' satisfies ruleTree.rules.3.rules.1.rules.1",
        ),
    ]
    assert never_true(leaf("eq", 7, field="userId"), "rules") == [
        ("rules", "no value of 'userId', which is always a string, satisfies rules")
    ]
    listed = leaf("in", [1, 2, 3])
    rules = [listed, *(leaf("neq", number) for number in (1, 2, 3))]
    assert never_true(everything(*rules))[0].reason == (
        "no value of 'x' satisfies ruleTree.rules.0 and ruleTree.rules.1 and "
        "ruleTree.rules.2 and 1 more rules"
    )


# ---------------------------------------------------------------------------
# What is called impossible never matches

HELD = [
    *(MISSING, None, True, False, 0, 1, 1.5, 2, 3, "", "a", "A", "ab", "abc", "b"),
    *("ba", "aba", "1", "1.0.0", "v1.0.0", "1.0.0-rc.1", "1.0.0+5", "1.5", "2.0.0"),
    *("2025-01-01T00:00Z", "2025-01-01T01:00:00+01:00", "2025-01-02T00:00:00.5Z"),
    *("2025-02-01T00:00Z", "2025-01-01", [], ["a"], ["ab", 1], [1], [True, "b"]),
    *({}, {"a": 1}, [None], ["1.0.0"], "abcba", "baab", 2.5, -1, "aB"),
]
NUMBERS = [0, 1, 1.5, 2, 3]
PARTS = ["", "a", "A", "ab", "b", "ba", "1"]
PARTS_AND_ITEMS = [*PARTS, 1, True]
VERSIONS = ["1.0.0", "v1", "1.0.0-rc.1", "1.5.0", "2.0.0+1"]
MOMENTS = ["2025-01-01T00:00Z", "2025-01-01T01:00:00+01:00", "2025-01-02T00:00Z"]
ASKED = {
    **dict.fromkeys(["eq", "neq"], HELD[1:]),
    **dict.fromkeys(["gt", "lt", "gte", "lte"], NUMBERS),
    **dict.fromkeys(["contains", "not_contains"], PARTS_AND_ITEMS),
    **dict.fromkeys(["starts_with", "ends_with"], PARTS),
    **dict.fromkeys(
        ["semver_gt", "semver_gte", "semver_lt", "semver_lte", "semver_eq"], VERSIONS
    ),
    **dict.fromkeys(["before", "after"], MOMENTS),
    "regex": ["a", "^b", "[0-9]", "^$"],
}


def random_leaf(draw, fields):
    operator = draw.choice(sorted(OPERATORS))
    if operator in ("in", "not_in"):
        value = draw.sample(HELD[1:], draw.randrange(4))
    else:
        value = draw.choice(ASKED.get(operator, [MISSING]))
    return leaf(operator, value, draw.choice(fields))


def random_tree(draw, fields, room=3):
    if room == 0 or draw.random() < 0.3:
        return random_leaf(draw, fields)
    rules = [random_tree(draw, fields, room - 1) for _ in range(draw.randint(1, 3))]
    return group(draw.choice(["AND", "AND", "OR"]), *rules)


def at(tree, path):
    for step in path.split(".")[2::2]:
        tree = tree["rules"][int(step)]
    return tree


def test_of_thousands_of_impossible_rules_none_matches_any_user():
    draw = random.Random(15)
    users = [(user_id, {}) for user_id in ("a", "1.0.0", "2025-01-01T00:00Z")]
    users += [
        (draw.choice(["", "a", "ab", "1", "v1"]), {"x": x} if x is not MISSING else {})
        for x in HELD
    ]
    for x, y in product(HELD, repeat=2):
        held = {"x": x, "y": y}
        attributes = {name: held[name] for name in held if held[name] is not MISSING}
        users.append((draw.choice(HELD[9:20]), attributes))
    impossible = matched = 0
    for _ in range(4_000):
        fields = draw.choice([["x"], ["x", "y"], ["x", "userId"]])
        tree = random_tree(draw, fields)
        assert problems(tree) == []
        asked = draw.sample(users, 200)
        found = paths(tree)
        for path in found:
            impossible += 1
            node = at(tree, path)
            assert not any(matches(node, *user) for user in asked), (path, tree)
        matched += any(matches(tree, *user) for user in asked)

    print(f"{impossible} impossible rules; {matched} of 4,000 trees match somebody")
    assert impossible > 1_000 and matched > 1_000


@given(broken, anything)
def test_of_any_json_nothing_raises(tree, other):
    for one in (tree, other, group("AND", tree, other, tree)):
        assert all(not matches(at(one, path), "u1") for path, _ in never_true(one))


def test_a_tree_too_deep_for_the_stack_is_searched_as_far_as_it_counts():
    assert never_true(nested(100_000, NEVER)) == []
    assert paths(nested(10, NEVER)) == ["ruleTree"]


def calls_of(search):
    """Return how many functions a search calls, and how many characters it folds."""
    calls = folded = 0

    def note(_, event, function):
        nonlocal calls, folded
        calls += event in ("call", "c_call")
        if event == "c_call" and function.__name__ == "casefold":
            folded += len(function.__self__)

    sys.setprofile(note)
    try:
        search()
    finally:
        sys.setprofile(None)
    return calls, folded


def test_the_search_gives_up_where_it_would_take_long_and_still_finds_the_rest():
    listed, refused = (leaf(name, list(range(1_000))) for name in ("in", "not_in"))
    own = [leaf("eq", "pro", "z"), leaf("eq", "free", "z")]

    assert paths(everything(listed, *[leaf("neq", -1)] * 2, refused)) == ["ruleTree"]
    assert paths(everything(listed, *[leaf("neq", -1)] * 30, refused)) == []
    assert paths(everything(listed, *[leaf("neq", -1)] * 30, *own)) == ["ruleTree"]


@pytest.mark.parametrize(
    "rules",
    [
        [leaf("in", list(range(1_000))), *[leaf("not_in", list(range(-999, 0)))] * 199],
        [leaf("in", ["İ" * 990 + str(n) for n in range(1_000)])]
        + [leaf("not_contains", "b" * 1_000)] * 199,
        [leaf("in", [n + 0.5 for n in range(1_000)])]
        + [leaf("gt", -n - 0.5) for n in range(199)],
        [leaf("in", [f"1.0.{n}" for n in range(1_000)])]
        + [leaf("semver_gt", f"0.0.{n}") for n in range(199)],
        [leaf("in", [10**4_000 + n for n in range(250)])] + [leaf("not_in", [7])] * 199,
        [leaf("starts_with", "İ" * 999)] * 100
        + [leaf("not_contains", "b" * 999)] * 100,
    ],
    ids=["candidates", "texts", "numbers", "versions", "digits", "parts"],
)
def test_the_search_of_the_largest_trees_takes_a_bounded_number_of_steps(rules):
    tree = everything(*rules)

    calls, folded = calls_of(lambda: never_true(tree))

    assert calls < 400_000
    assert folded < 1_000_000


@pytest.mark.parametrize(
    "rules",
    [
        [leaf("in", list(range(n, n + 50_000))) for n in range(200)],
        [leaf("in", list(range(1_000))), *[leaf("not_in", [1] * 1_000)] * 199],
        [leaf("in", ["a" * 990 + str(n) for n in range(1_000)])]
        + [leaf("not_contains", "b" * 1_000)] * 199,
        [leaf("eq", "a" * 100_000), *[leaf("contains", "a" * 90_000)] * 199],
        [leaf("contains", "a" * 999)] * 100 + [leaf("not_contains", "b" * 999)] * 100,
        [leaf("eq", "a"), *[leaf("regex", "(?:a?){20}c")] * 199],
        [leaf("starts_with", "a" * 50_000)] * 200,
    ],
    ids=["lists", "candidates", "texts", "long", "parts", "patterns", "starts"],
)
def test_the_search_is_quick_for_the_largest_trees(rules):
    tree = everything(*rules)
    began = time.thread_time()

    never_true(tree)

    assert time.thread_time() - began < 5
