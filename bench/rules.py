"""What an audience's rules cost: hostile patterns against long texts, and big trees.

Times are this thread's own CPU time, so others on the machine count for little.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import numpy as np

from targeting.audience import STEPS, matches, problems, trace

LENGTHS = (1_000, 4_000, 16_000, 64_000)
HAN = "".join(map(chr, range(0x4E00, 0x9FFF)))
FACES = "".join(map(chr, range(0x1F300, 0x1F5FF)))
# Patterns that take a backtracking engine for ever, or RE2 to its slowest, with the
# letters of the text that brings this out; a "!" ends the text, and none is found.
HOSTILE = {
    "nested quantifiers": ("(a*)*b", "a"),
    "deeply nested": ("((((a+)+)+)+)+b", "a"),
    "overlapping alternatives": ("(a|aa)+c", "a"),
    "overlapping sums": ("(x+x+)+y", "x"),
    "big alternation": ("(?:" + "|".join("ab" * n for n in range(1, 15)) + ")+c", "ab"),
    "many dots": ("(.*)(.*)(.*)(.*)(.*)x", "é"),
    "counted repetition": ("(?:a?){900}c", "a"),
    "counted dots": ("(?:.?){200}c", HAN),
    "more states than fit": ("[ab]*a[ab]{300}c", "ab"),
    "counted bytes": (r"(?:\C?){900}c", FACES),
}
MIXED = [
    {"field": "traits.plan", "operator": "neq", "value": "free"},
    {"field": "traits.age", "operator": "gte", "value": Decimal("17.5")},
    {"field": "agent", "operator": "contains", "value": "CHROME"},
    {"field": "country", "operator": "in", "value": ["FR", "BE", "NL"]},
    {
        "field": "traits.email",
        "operator": "regex",
        "value": r"^[^@]+@(example|acme)\.com$",
    },
]
ZOE = {
    "traits": {"plan": "pro", "age": 18, "email": "zoe@example.com"},
    "agent": "Mozilla/5.0 (X11; Linux x86_64) Chrome/120.0 Safari/537.36",
    "country": "NL",
}


def main() -> None:
    print("| hostile pattern | ", end="")
    print(" | ".join(f"{length:,} characters" for length in LENGTHS), "| exponent |")
    print("|:--|" + "--:|" * (len(LENGTHS) + 1))
    for name, (pattern, letters) in HOSTILE.items():
        tree = searching(pattern)
        times = [spent_searching(tree, text_of(letters, size)) for size in LENGTHS]
        cells = [f"{taken * 1e6:,.0f} µs" for taken in times]
        exponent = np.polyfit(np.log(LENGTHS), np.log(times), 1)[0]
        print(f"| {name} | {' | '.join(cells)} | {exponent:.2f} |", flush=True)

    print(f"\n| as many as {STEPS:,} steps allow | patterns | a character | a byte |")
    print("|:--|--:|--:|--:|")
    for name, (pattern, letters) in HOSTILE.items():
        tree = fullest(pattern)
        text = text_of(letters, 4_000)
        taken = spent_searching(tree, text, rounds=3)
        each = (taken / len(held) * 1e6 for held in (text, text.encode()))
        cells = " | ".join(f"{cost:.2f} µs" for cost in each)
        print(f"| {name} | {len(tree['rules'])} | {cells} |", flush=True)

    print("\n| 200 rules, 10 deep, all asked | median |")
    print("|:--|--:|")
    ways = {
        "matches, mixed operators": (matches, mixed_tree(MIXED), "zoe", ZOE),
        "matches, regex alone": (matches, mixed_tree(MIXED[4:] * 5), "zoe", ZOE),
        "trace, mixed operators": (trace, mixed_tree(MIXED), "zoe", ZOE),
        "problems, mixed operators": (problems, mixed_tree(MIXED)),
    }
    for name, (ask, *given) in ways.items():
        taken = spent(lambda ask=ask, given=given: ask(*given), rounds=301)
        print(f"| {name} | {taken * 1e6:.0f} µs |")


def searching(pattern: str) -> dict:
    return {"field": "text", "operator": "regex", "value": pattern}


def fullest(pattern: str) -> dict:
    """Return a tree that asks the pattern as often as a tree may."""
    tree: dict = {"logicalOperator": "OR", "rules": []}
    while not problems({**tree, "rules": [*tree["rules"], searching(pattern)]}):
        tree["rules"].append(searching(pattern))
    return tree


def mixed_tree(rules: list[dict]) -> dict:
    """Return ten groups in one another, each asking the five rules four times."""
    tree: dict = {"logicalOperator": "AND", "rules": rules * 4}
    for _ in range(9):
        tree = {"logicalOperator": "AND", "rules": [*rules * 4, tree]}
    return tree


def text_of(letters: str, length: int) -> str:
    return "".join(random.Random(length).choices(letters, k=length)) + "!"


def spent_searching(tree: dict, text: str, rounds: int = 5) -> float:
    """Return the seconds that one search takes, repeated until there are some."""
    attributes = {"text": text}
    if problems(tree) or matches(tree, "u1", attributes):
        raise SystemExit(f"{tree} is found, or refused.")
    times = round(max(1, 2e-3 / spent(lambda: matches(tree, "u1", attributes), 1)))
    return (
        spent(lambda: [matches(tree, "u1", attributes) for _ in range(times)], rounds)
        / times
    )


def spent(act: Callable[[], object], rounds: int) -> float:
    """Return the median of this thread's seconds."""
    times = []
    for _ in range(rounds):
        start = time.thread_time()
        act()
        times.append(time.thread_time() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
