"""What the pages of audiences show: the rules in words, and who would match."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple
from urllib.parse import quote

import schemas
from models import Audience, Experiment
from storage.paging import Listing, Page
from views.screens import ListScreen, list_screen
from web.json import cut, dumps

TRIAL = schemas.TrialQuery()

FEW = 10  # items of a list, in words

LONGEST, LONGEST_TREE = 200, 4_000  # characters of a value, and of a tree as JSON

EXPERIMENTS = 20  # that are listed with an audience

WORDS = {
    "eq": "is",
    "neq": "is not",
    "gt": "is greater than",
    "lt": "is less than",
    "gte": "is at least",
    "lte": "is at most",
    "contains": "contains",
    "not_contains": "does not contain",
    "in": "is one of",
    "not_in": "is none of",
    "exists": "is there",
    "not_exists": "is missing, or null",
    "regex": "matches the pattern",
    "starts_with": "starts with",
    "ends_with": "ends with",
    "semver_gt": "is a version after",
    "semver_gte": "is a version from",
    "semver_lt": "is a version before",
    "semver_lte": "is a version up to",
    "semver_eq": "is the version",
    "before": "is a time before",
    "after": "is a time after",
}
"""Each operator in words."""

JOINS = {"AND": "All of these hold", "OR": "At least one of these holds"}


class Line(NamedTuple):
    """An audience in the list."""

    path: str
    name: str
    id: str
    created_at: datetime


class Rule(NamedTuple):
    """A condition, or a group of them, in words."""

    field: str
    words: str
    value: str
    rules: list[Rule]
    """Those of a group; a condition has none."""
    result: bool | None
    """Whether it holds for the user who is tried; None if nobody is."""


class Screen(NamedTuple):
    """One audience."""

    audience: Audience
    rule: Rule
    tree: str
    """The rules as JSON, cut if they are long."""
    path: str
    experiments: list[Experiment]
    more_experiments: int
    asked: dict[str, str]
    problems: dict[str, str]
    """What is wrong with the user who is tried, by the field."""
    matches: bool | None
    failed: list[Rule]
    """The conditions that do not hold for that user."""


def listed(listing: Listing, asked: dict[str, str]) -> ListScreen:
    """Return the screen of a page of audiences; *asked* are its parameters."""
    rows = listing.rows
    lines = [Line(_path(row), row.name, row.id, row.created_at) for row in rows]
    return list_screen(lines, listing, asked)


def audience(row: Audience, asked: dict[str, str]) -> Screen:
    """Return the screen of an audience; *asked* are the user who is tried."""
    problems = TRIAL.validate(asked)
    tried: dict[str, Any] = {"trace": row.rule_tree, "matches": None}
    if asked and not problems:
        tried = row.tried(**TRIAL.load(asked))
    rule = in_words(tried["trace"])
    users = row.experiments(Page(1, EXPERIMENTS))
    return Screen(
        row,
        rule,
        cut(dumps(row.rule_tree), LONGEST_TREE),
        _path(row),
        users.rows,
        users.total - len(users.rows),
        asked,
        {name: " ".join(texts) for name, texts in problems.items()},
        tried["matches"],
        [] if tried["matches"] else _failed(rule),
    )


def _path(row: Audience) -> str:
    return f"/ui/audiences/{quote(row.id, safe='')}"


def in_words(node: dict[str, Any]) -> Rule:
    """Return a tree of rules, or its trace, in words."""
    result = node.get("result")
    if "rules" in node:
        join = JOINS[node["logicalOperator"]]
        return Rule("", join, "", [in_words(one) for one in node["rules"]], result)
    words = WORDS[node["operator"]]
    value = _value(node["value"]) if "value" in node else ""
    return Rule(node["field"], words, value, [], result)


def _value(value: Any) -> str:
    """Return a value as JSON; of a list the first items, and how many follow."""
    if not isinstance(value, list):
        return cut(dumps(value), LONGEST)
    text = ", ".join(cut(dumps(one), LONGEST) for one in value[:FEW])
    more = len(value) - FEW
    return f"{text} and {more:,} more" if more > 0 else text or "nothing"


def _failed(rule: Rule) -> list[Rule]:
    """Return the conditions that do not hold, in groups that do not hold."""
    if rule.result is not False:
        return []
    return [one for each in rule.rules for one in _failed(each)] or [rule]
