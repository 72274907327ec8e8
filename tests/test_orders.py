"""Versions and moments: which texts are some, and in which order they come.

`cases/versions.json` has 400 random pairs of versions with the order that an
independent library gives them: python-semver 3, `Version.compare`.
"""

import json
import time
from datetime import datetime, timedelta, timezone
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_audience import ROOT, leaf, where

from targeting import orders
from targeting.audience import matches

COMPARED = json.loads((ROOT / "tests" / "cases" / "versions.json").read_text())


def order(key, left, right):
    """Return -1, 0 or 1, as the left text comes before, with or after the right."""
    return (key(left) > key(right)) - (key(left) < key(right))


# ---------------------------------------------------------------------------
# Versions

# The test cases of the pattern that semver.org gives for versions.
VALID = """
0.0.4 1.2.3 10.20.30 1.1.2-prerelease+meta 1.1.2+meta 1.1.2+meta-valid 1.0.0-alpha
1.0.0-beta 1.0.0-alpha.beta 1.0.0-alpha.beta.1 1.0.0-alpha.1 1.0.0-alpha0.valid
1.0.0-alpha.0valid 1.0.0-alpha-a.b-c-somethinglong+build.1-aef.1-its-okay
1.0.0-rc.1+build.1 2.0.0-rc.1+build.123 1.2.3-beta 10.2.3-DEV-SNAPSHOT
1.2.3-SNAPSHOT-123 1.0.0 2.0.0 1.1.7 2.0.0+build.1848 2.0.1-alpha.1227
1.0.0-alpha+beta 1.2.3----RC-SNAPSHOT.12.9.1--.12+788 1.2.3----R-S.12.9.1--.12+meta
1.2.3----RC-SNAPSHOT.12.9.1--.12 1.0.0+0.build.1-rc.10000aaa-kk-0.1
99999999999999999999999.999999999999999999.99999999999999999 1.0.0-0A.is.legal
"""
INVALID = """
1.2.3-0123 1.2.3-0123.0123 1.1.2+.123 +invalid -invalid -invalid+invalid -invalid.01
alpha alpha.beta alpha.beta.1 alpha.1 alpha+beta alpha_beta alpha. alpha.. beta
1.0.0-alpha_beta -alpha. 1.0.0-alpha.. 1.0.0-alpha..1 1.0.0-alpha...1 1.0.0-alpha....1
01.1.1 1.01.1 1.1.01 1.2.3.DEV 1.2.31.2.3----RC-SNAPSHOT.12.09.1--..12+788
-1.0.3-gamma+b7718 +justmeta 9.8.7+meta+meta 9.8.7-whatever+meta+meta
"""
SHORT = "1 1.2 1.2-SNAPSHOT 1.2-RC-SNAPSHOT"  # which semver.org counts as invalid


def test_a_version_is_what_semver_says_it_is_or_a_short_one():
    assert [text for text in VALID.split() if orders.version(text) is None] == []
    assert [text for text in INVALID.split() if orders.version(text)] == []
    assert [text for text in SHORT.split() if orders.version(text) is None] == []


def test_the_examples_of_section_11_are_in_their_order():
    examples = [
        *("1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta"),
        *("1.0.0-beta.2", "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0"),
        *("2.0.0", "2.1.0", "2.1.1"),
    ]

    for (here, left), (there, right) in product(enumerate(examples), repeat=2):
        assert order(orders.version, left, right) == (here > there) - (here < there)


def test_random_versions_are_in_the_order_of_an_independent_library():
    assert len(COMPARED) == 400
    assert {expected for _, _, expected in COMPARED} == {-1, 0, 1}
    for left, right, expected in COMPARED:
        for one, other in product((left, f"v{left}"), (right, f"V{right}")):
            held = {
                name: matches(leaf(f"semver_{name}", other), "u1", {"x": one})
                for name in ("gt", "gte", "lt", "lte", "eq")
            }
            assert held == {
                "gt": expected > 0,
                "gte": expected >= 0,
                "lt": expected < 0,
                "lte": expected <= 0,
                "eq": expected == 0,
            }, (one, other)


def test_a_version_has_at_most_256_characters():
    assert orders.version("1.2.3-" + "a" * 250)
    assert orders.version("1.2.3-" + "a" * 251) is None
    assert where(leaf("semver_eq", "1.2.3-" + "a" * 250)) == []
    assert where(leaf("semver_eq", "1.2.3-" + "a" * 251)) == ["value"]


@pytest.mark.parametrize("length", [256, 10_000_000])
@pytest.mark.parametrize("letters", ["1", "0", "1.", "-", "1.2.3-1", "1.2.3-a.", "v"])
def test_a_hostile_text_costs_next_to_nothing(letters, length):
    text = (letters * length)[: length - 1] + "!"
    began = time.thread_time()

    assert orders.version(text) is orders.moment(text) is None

    assert time.thread_time() - began < 0.01


# ---------------------------------------------------------------------------
# Moments

zones = st.integers(-1439, 1439).map(lambda east: timezone(timedelta(minutes=east)))
# Near the end of a leap February, and anywhere but where UTC has no such year.
zoned = st.datetimes(
    datetime(2024, 2, 27), datetime(2024, 3, 3), timezones=zones
) | st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29), timezones=zones)


@given(zoned, zoned)
def test_moments_are_in_the_order_of_pythons_own(left, right):
    texts = left.isoformat(), right.isoformat()

    assert order(orders.moment, *texts) == (left > right) - (left < right)
    for text, moment in zip(texts, (left, right), strict=True):
        utc = moment.astimezone(timezone.utc).isoformat()
        assert orders.moment(text) == orders.moment(utc)
        assert orders.moment(text[:10]) is orders.moment(text[:19]) is None


def test_every_day_of_400_years_follows_the_one_before():
    days = [
        f"{datetime.fromordinal(day).date()}T00:00Z"
        for day in range(
            datetime(1800, 1, 1).toordinal(), datetime(2200, 1, 2).toordinal()
        )
    ]
    keys = [orders.moment(day) for day in days]

    assert {after[0] - before[0] for before, after in pairwise(keys)} == {86_400}


def test_a_date_that_the_calendar_does_not_have_is_no_moment():
    for year, month, day in product((1900, 2000, 2023, 2024), range(14), range(33)):
        try:
            there = bool(datetime(year, month, day))
        except ValueError:
            there = False
        text = f"{year}-{month:02}-{day:02}T00:00Z"
        assert (orders.moment(text) is not None) is there, text
