"""Whether the hash deals fairly: each split, and each pair of draws, by chi-square.

A million users in each of 100 experiments, always the same ones: two minutes of CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import pairwise
from multiprocessing import Pool
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))
import numpy as np
from scipy.stats import chi2, chi2_contingency, chisquare

from targeting import assignment

USERS, EXPERIMENTS, ENTRIES = 1_000_000, 100, 10
SPLITS = {
    "50 / 50": [5_000, 5_000],
    "90 / 10": [9_000, 1_000],
    "1 / 99": [100, 9_900],
    "33.33 / 33.33 / 33.34": [3_333, 3_333, 3_334],
    "each bucket alike": [1] * assignment.BUCKETS,
}
ABOUT = """
p is that of all tables of a row together, their chi-squares and degrees added: one
test a row. Looked at one by one, the smallest p of 100 tables is near 0.01 by luck
alone, so it means something only below 0.001 / 100 (Bonferroni): the last column is
the smallest p times the tables. Both stay above 0.001. A p above 0.999 would be too
good to be a fair deal.
"""


class Row(NamedTuple):
    """One question, put to many tables."""

    question: str
    tables: int
    statistic: float
    freedom: int
    p: float
    bonferroni: float


def main() -> None:
    print(f"{USERS:,} users in each of {EXPERIMENTS} experiments.{ABOUT}")
    print("| question | tables | chi-square | freedom | p | smallest p x tables |")
    print("|:--|--:|--:|--:|--:|--:|")
    with Pool() as pool:
        for row in rows(USERS, EXPERIMENTS, ENTRIES, pool.imap):
            print(
                f"| {row.question} | {row.tables} | {row.statistic:,.1f} "
                f"| {row.freedom:,} | {row.p:.4f} | {row.bonferroni:.4f} |"
            )


def rows(
    users: int, experiments: int, entries: int, each: Callable[..., Iterable] = map
) -> Iterator[Row]:
    """Yield the answers; *entries* experiments have a traffic draw and a group."""
    ids = [f"exp_{number:03}" for number in range(experiments)]
    draw = partial(buckets, users)
    splits = list(each(draw, ids))
    traffic = list(each(draw, [f"{id}:traffic" for id in ids[:entries]]))
    groups = list(each(draw, [f"group:{id}" for id in ids[:entries]]))

    counts = [np.bincount(split, minlength=assignment.BUCKETS) for split in splits]
    for name, shares in SPLITS.items():
        starts = np.cumsum([0, *shares[:-1]])
        expected = np.array(shares) * users / assignment.BUCKETS
        yield answer(
            name,
            [
                (*chisquare(np.add.reduceat(one, starts), expected), len(shares) - 1)
                for one in counts
            ],
        )
    pairs = {
        "experiment and next": pairwise(splits),
        "traffic and split": zip(traffic, splits),  # noqa: B905 (fewer have a draw)
        "group and split": zip(groups, splits),  # noqa: B905
        "group and traffic": zip(groups, traffic, strict=True),
    }
    for name, both in pairs.items():
        found = [chi2_contingency(tenths(one, other)) for one, other in both]
        yield answer(name, [(one.statistic, one.pvalue, one.dof) for one in found])


def buckets(users: int, salt: str) -> np.ndarray:
    """Return what the salt deals to each user."""
    dealt = (assignment.bucket(salt, f"user-{number}") for number in range(users))
    return np.fromiter(dealt, np.uint16, users)


def tenths(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return how many users are in each tenth of the one and of the other draw."""
    tenth = assignment.BUCKETS // 10
    places = one // tenth * 10 + other // tenth
    return np.bincount(places, minlength=100).reshape(10, 10)


def answer(question: str, tables: list[tuple[float, float, int]]) -> Row:
    statistics, ps, freedoms = zip(*tables, strict=True)
    total, freedom = sum(statistics), sum(freedoms)
    p = chi2.sf(total, freedom)
    return Row(question, len(tables), total, freedom, p, min(1, min(ps) * len(ps)))


if __name__ == "__main__":
    main()
