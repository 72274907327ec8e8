"""The client for Python decides as the service does, which it shares no code with."""

import json
import random
from collections import Counter
from datetime import datetime, timezone
from decimal import Decimal
from functools import cache
from pathlib import Path

import pytest
import re2
from abacus_openfeature import decisions, orders, rules
from abacus_openfeature.decisions import AskService, Definitions
from abacus_openfeature.patterns import Pattern, TooCostly, UnsupportedPattern
from hypothesis import given
from hypothesis import strategies as st
from marshmallow import ValidationError

from ledger.published import Published
from ledger.standing import Started
from models import NOT_IDS
from targeting import audience, hashes
from targeting.assignment import BUCKETS
from targeting.decision import DefinedVariant, Definition, User, decide
from views.definitions import definitions_text
from web.fields import ID_LENGTH, Id
from web.json import dumps

CASES = Path(__file__).parent / "cases"
TABLE = (CASES / "operators.json").read_text("utf-8")
NOW = datetime(2025, 6, 1, tzinfo=timezone.utc)


# ---------------------------------------------------------------------------
# Rules


def client_holds(tree, user_id, attributes):
    """Return what the client makes of rules that the service publishes."""
    published = json.loads(
        dumps(hashes.without_ids(tree, "exp_1")), parse_float=Decimal
    )
    return rules.compiled(published, hashes.salt("exp_1"))(user_id, attributes)


ROWS = [
    pytest.param(operator, place, id=f"{operator}-{place}")
    for operator, rows in json.loads(TABLE).items()
    for place in range(len(rows))
]


@cache
def table(number):
    return json.loads(TABLE, parse_float=number)


@pytest.mark.parametrize(("operator", "place"), ROWS)
def test_each_row_of_the_truth_table_holds_in_the_client_too(operator, place):
    row = table(Decimal)[operator][place]
    tree = {"field": "x", "operator": operator}
    tree |= {"value": row["value"]} if "value" in row else {}
    for number in (Decimal, float):
        other = table(number)[operator][place]
        attributes = {"x": other["is"]} if "is" in other else {}
        try:
            holds = client_holds(tree, "u1", attributes)
        except UnsupportedPattern:
            assert operator == "regex" and "\\p{" in tree["value"]
            continue
        assert holds is row["holds"]


def test_the_client_has_every_operator():
    assert set(rules.OPERATORS) == set(audience.OPERATORS)


def test_versions_come_in_the_order_of_their_table():
    for one, other, order in json.loads((CASES / "versions.json").read_text()):
        left, right = orders.version(one), orders.version(other)
        assert ((left > right) - (left < right)) == order


@pytest.mark.parametrize(
    "tree",
    [
        {"field": "x", "operator": "later", "value": 1},
        {"field": "x", "operator": "eq", "value": 1, "unless": 2},
        {"logicalOperator": "XOR", "rules": [{"field": "x", "operator": "exists"}]},
        {"field": "x", "operator": "eq", "hashes": []},
        {"field": "x", "operator": "regex", "value": r"\p{Greek}"},
        {"field": "x", "operator": "regex", "value": r"a\Bb"},
    ],
)
def test_what_the_client_does_not_know_is_left_to_the_service(tree):
    definition = definition_of(random.Random(1), 0)._replace(rules=None, winner=None)
    definition = definition._replace(status="running", end_date=None)
    document = published([definition])
    document["experiments"][0]["rules"] = tree
    definitions = Definitions(document)

    with pytest.raises(AskService):
        definitions.decide(definition.id, "u1", {}, 0)


# ---------------------------------------------------------------------------
# Patterns

PIECES = st.sampled_from(
    [
        *("a", "b", "k", "S", "ß", "é", "Σ", "İ", "1", "_", " ", "-", "."),
        *(r"\d", r"\D", r"\w", r"\W", r"\s", r"\S", r"\b", r"\B", "^", "$"),
        *(r"\A", r"\z", "[a-c]", "[^a-c]", r"[\w-]", "[]a]", "[^]a]", "[a-]"),
        *("[[:alpha:]]", "[[:^digit:]]", r"\pL", r"\PL", r"\p{Lu}", r"\p{^Nd}"),
        *(r"\n", r"\x41", r"\x{3a3}", r"\101", r"\.", r"\Qa.b\E", "[k-s]"),
    ]
)


def grown(inner):
    """Return patterns that are made of smaller ones."""
    several = st.lists(inner, min_size=1, max_size=4)
    marks = st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{0,}", "*?", "+?"])
    groups = st.sampled_from(["(", "(?:", "(?i:", "(?s:", "(?m:", "(?-i:", "(?P<n>"])
    return st.one_of(
        several.map("".join),
        several.map("|".join),
        st.builds(lambda opened, text: f"{opened}{text})", groups, inner),
        st.builds(lambda text, mark: f"(?:{text}){mark}", inner, marks),
        st.builds(lambda flags, text: f"{flags}{text}", FLAGS, inner),
    )


FLAGS = st.sampled_from(["(?i)", "(?m)", "(?s)", "(?im)", "(?U)"])
PATTERNS = st.recursive(PIECES, grown, max_leaves=8)
TEXTS = st.text("abckKsSßéÉΣ1_ -.\nA\u017f\u212a\u03c3\u03c2\u0130\u0131", max_size=12)


@given(PATTERNS, st.lists(TEXTS, min_size=1, max_size=8))
def test_a_pattern_is_found_where_re2_finds_it(pattern, texts):
    try:
        compiled = re2.compile(pattern.encode(), audience.OPTIONS)
    except re2.error:
        return
    ours = Pattern(pattern)

    for text in texts:
        found = compiled.search(text.encode()) is not None
        assert ours.is_in(text) is found, (pattern, text)
        assert ours.is_in(text) is found  # with the states that it has made


def test_a_pattern_that_would_take_forever_elsewhere_takes_linear_time():
    pattern = Pattern("(a+)+$")
    assert not pattern.is_in("a" * 60_000 + "b")
    assert pattern.is_in("b" + "a" * 60_000)
    with pytest.raises(TooCostly):
        Pattern("a[ab]{200}c").is_in("".join(random.Random(1).choices("ab", k=9_999)))


# ---------------------------------------------------------------------------
# Users


@given(st.text(max_size=300) | st.sampled_from(sorted(NOT_IDS)).map(str.upper))
def test_the_client_refuses_the_ids_that_the_service_refuses(user_id):
    try:
        Id().deserialize(user_id)
        is_refused = False
    except ValidationError:
        is_refused = True

    assert (decisions.encoded(user_id) is None) is is_refused
    assert decisions.NOT_IDS == NOT_IDS
    assert decisions.ID_LENGTH == ID_LENGTH


# ---------------------------------------------------------------------------
# Decisions

WORDS = ["pro", "Pro", "free", "", "DE", "Straße", "STRASSE", "用户", "user-7", "true"]
VALUES = [
    *(None, True, False, 0, 1, -1, 1.0, 0.1, 0.30000000000000004, 10**20, 2.5e-7),
    *WORDS,
    *([], ["pro", 1], [0.1, None], {"a": 1}, {"a": [1, True]}),
    *("1.2.3", "v1.2", "1.2.3-beta.2", "2.0.0+x", "1.10", "01.2"),
    *("2025-02-01T00:00:00Z", "2025-02-01T01:00:00.5+01:00", "2025-02-30T00:00:00Z"),
]
FIELDS = ["plan", "n", "traits.plan", "traits.n", "a.b.c", "userId", "userId.x"]
REGEXES = [r"^pro$", r"(?i)stra(ß|ss)e", r"\d+", r"^\PL", r"-7\b", r"^[a-f]{2,}", "ss"]


def value_for(draw, operator):
    """Return a value that the service takes for this operator."""
    if operator in ("eq", "neq"):
        return draw.choice([*VALUES, *(f"user-{n}" for n in range(5))])
    if operator in ("gt", "gte", "lt", "lte"):
        return draw.choice([0, 1, 0.1, 0.3, -5, 10**20])
    if operator in ("in", "not_in"):
        return draw.sample([*VALUES, *(f"user-{n}" for n in range(30))], 9)
    if operator.startswith("semver"):
        return draw.choice(["1.2.3", "v1.2", "1.2.3-beta.2", "2.0.0-rc.1", "0.9"])
    if operator in ("before", "after"):
        return draw.choice(["2025-02-01T00:00:00Z", "2025-02-01T00:30:00+00:30"])
    if operator == "regex":
        return draw.choice(REGEXES)
    if operator in ("contains", "not_contains"):
        return draw.choice([*WORDS, 1, 0.1, True])
    return draw.choice(WORDS)


def tree_of(draw, depth=3):
    """Return rules that the service takes."""
    if depth and draw.random() < 0.5:
        inner = [tree_of(draw, depth - 1) for _ in range(draw.randint(1, 4))]
        return {"logicalOperator": draw.choice(["AND", "OR", "OR"]), "rules": inner}
    operator = draw.choice(list(audience.OPERATORS))
    leaf = {"field": draw.choice(FIELDS), "operator": operator}
    if audience.OPERATORS[operator].problem is not None:
        leaf["value"] = value_for(draw, operator)
    return leaf


def definition_of(draw, number):
    """Return an experiment of any kind that can be published."""
    cuts = sorted(draw.sample(range(1, BUCKETS), draw.randint(1, 5)))
    splits = [b - a for a, b in zip([0, *cuts], [*cuts, BUCKETS], strict=True)]
    group = draw.choice([None, None, "checkout", "Größe"])
    edges = sorted(draw.sample(range(BUCKETS), 4))
    return Definition(
        id=f"exp_{draw.randrange(16**20):020x}",
        key=f"test-{number}",
        status=draw.choice([*["running"] * 8, "stopped", "completed"]),
        is_archived=False,
        end_date=draw.choice(
            [None, None, NOW, NOW.replace(microsecond=1), NOW.replace(year=2024)]
        ),
        variants=tuple(
            DefinedVariant(f"v{place + 1}", f"Variant {place}", split)
            for place, split in enumerate(splits)
        ),
        traffic=draw.choice([BUCKETS, BUCKETS, 1, 2_500, 9_999]),
        rules=tree_of(draw) if draw.random() < 0.7 else None,
        group=group,
        share=((edges[0], edges[1]), (edges[2], edges[3])) if group else (),
        winner=draw.choice([*[None] * 9, "v2"]),
    )


def published(definitions):
    """Return the document of these definitions, as the service writes it."""
    started = [Started(one, frozenset(), False, {}) for one in definitions]
    text = definitions_text("r", Published(started, 0))
    return json.loads(text, parse_float=Decimal)["data"]


def user_of(draw):
    """Return a user id and attributes, which may lack any field."""
    facts = {
        name: draw.choice(VALUES)
        for name in ("plan", "n", "traits.plan", "userId.x")
        if draw.random() < 0.7
    }
    traits = {name: draw.choice(VALUES) for name in ("plan", "n", "b.c")}
    facts |= {"traits": traits, "a": draw.choice([{"b": {"c": "pro"}}, traits, 7])}
    user_id = draw.choice(
        [f"user-{draw.randrange(40)}", f"{draw.random()}", f"Zoë-{draw.random()}"]
    )
    return user_id, facts


PAIRS = 100_000


def test_the_client_and_the_service_agree_about_every_pair(figure):
    draw = random.Random(2025)
    compared, disagreements, reasons = 0, 0, Counter()
    while compared < PAIRS:
        definition = definition_of(draw, compared)
        assert not definition.rules or not audience.problems(definition.rules)
        client = Definitions(published([definition]))
        name = draw.choice([definition.id, definition.key])
        for _ in range(200):
            user_id, attributes = user_of(draw)
            wanted = decide(definition, User(user_id, attributes), NOW)
            got = client.decide(name, user_id, attributes, NOW.timestamp())
            variant = got.variant and got.variant.id
            wanted_id = wanted.variant and wanted.variant.id
            disagreements += (got.reason, variant) != (wanted.reason, wanted_id)
            reasons[wanted.reason] += 1
            compared += 1

    assert (compared, disagreements) == (PAIRS, 0)
    assert set(reasons) == {
        *("NEW_ASSIGNMENT", "WINNER", "ENROLLMENT_CLOSED", "NOT_IN_AUDIENCE"),
        *("EXCLUDED", "HELD_OUT"),
    }
    assert min(reasons.values()) > 1_000
    figure("client for Python", pairs=compared, disagreements=disagreements)
