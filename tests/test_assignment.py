"""Which variant they get: ranges, shares of a group, receipts, and a fair hash.

The hash's own vectors are asked in `test_enrolment.py`; here shells compute them.
"""

import json
import shutil
import subprocess
from fractions import Fraction
from hashlib import sha256
from pathlib import Path

import pytest
from conftest import leave_out
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from bench.hash import SPLITS, rows
from targeting.assignment import (
    BUCKETS,
    allotted,
    bucket,
    dealt,
    dealt_each,
    draws,
    first_hash,
    in_share,
    in_traffic,
    room,
)

CASES = Path(__file__).parent / "cases" / "buckets.json"
VECTORS = json.loads(CASES.read_text(encoding="utf-8"))
HALVES = [5_000, 5_000]

user_ids = st.text(min_size=1, max_size=20)
widths = st.integers(1, BUCKETS)
splits = st.lists(st.integers(1, BUCKETS - 1), max_size=19, unique=True).map(
    lambda cuts: [
        end - start
        for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), BUCKETS], strict=True)
    ]
)


# ---------------------------------------------------------------------------
# Variants and traffic


@given(user_ids, splits)
def test_a_variant_takes_the_buckets_after_those_before_it(user_id, splits):
    position = dealt("exp_1", user_id, splits)

    before = sum(splits[:position])
    assert before <= bucket("exp_1", user_id) < before + splits[position]


@given(st.lists(user_ids), splits, widths)
def test_a_batch_is_dealt_what_each_of_its_users_is_dealt(users, splits, traffic):
    alone = [
        dealt("exp_1", user, splits) if in_traffic("exp_1", user, traffic) else None
        for user in users
    ]

    assert list(dealt_each("exp_1", users, splits, traffic)) == alone


def test_the_first_hash_of_a_bucket_is_in_it_and_the_one_before_is_not():
    for place in range(1, BUCKETS):
        digits = int(first_hash(place).hex()[:13], 16)
        # As the format is published, in exact fractions.
        assert Fraction(digits, 16**13) * BUCKETS >= place
        assert Fraction(digits - 1, 16**13) * BUCKETS < place
        assert first_hash(place).hex()[13:] == "0"


def test_splits_that_leave_buckets_out_deal_nothing_to_them():
    last = next(f"u{n}" for n in range(10**6) if bucket("exp_1", f"u{n}") == 9_999)

    assert dealt("exp_1", last, [9_999, 1]) == 1
    with pytest.raises(ValueError, match="9999 of 10000"):
        dealt("exp_1", last, [5_000, 4_999])


@given(user_ids, st.integers(0, BUCKETS), st.integers(0, BUCKETS))
def test_more_traffic_keeps_everyone_who_was_in(user_id, one, other):
    less, more = sorted([one, other])

    assert in_traffic("exp_1", user_id, less) <= in_traffic("exp_1", user_id, more)
    assert not in_traffic("exp_1", user_id, 0)
    assert in_traffic("exp_1", user_id, BUCKETS)


@given(user_ids, widths)
def test_each_draw_has_the_salt_that_is_published(user_id, width):
    inside = in_traffic("exp_1", user_id, width)
    shared = in_share("Größe", user_id, [(0, width - 1)])

    assert inside is (bucket("exp_1:traffic", user_id) < width)
    assert shared is (bucket("group:Größe", user_id) < width)


@given(user_ids, st.lists(st.tuples(widths, widths).map(sorted)))
def test_a_share_holds_the_buckets_from_first_to_last(user_id, others):
    place = bucket("group:checkout", user_id)
    outside = [(first, last) for first, last in others if not first <= place <= last]

    assert not in_share("checkout", user_id, outside)
    assert not in_share("checkout", user_id, [(0, place - 1), (place + 1, BUCKETS)])
    for edge in [(place, place), (0, place), (place, BUCKETS - 1)]:
        assert in_share("checkout", user_id, [*outside, edge])


# ---------------------------------------------------------------------------
# Exclusion groups


@pytest.mark.parametrize(
    ("taken", "width", "share"),
    [
        ([], 10_000, [(0, 9_999)]),
        ([], 1, [(0, 0)]),
        ([(0, 4_999)], 5_000, [(5_000, 9_999)]),
        ([(5_000, 9_999)], 2_500, [(0, 2_499)]),
        # In the first gap that is wide enough, whatever the order of those taken,
        ([(2_000, 2_999)], 2_000, [(0, 1_999)]),
        ([(2_000, 2_999)], 2_001, [(3_000, 5_000)]),
        ([(8_000, 9_999), (2_000, 2_999)], 5_000, [(3_000, 7_999)]),
        # and in pieces, from the first gap on, where none is.
        ([(1_000, 1_999), (3_000, 9_999)], 1_500, [(0, 999), (2_000, 2_499)]),
        ([(1_000, 1_999), (3_000, 9_999)], 2_000, [(0, 999), (2_000, 2_999)]),
        ([(1, 9_998)], 2, [(0, 0), (9_999, 9_999)]),
        ([(0, 9), (20, 29), (30, 39), (50, 9_999)], 15, [(10, 19), (40, 44)]),
    ],
)
def test_a_newcomer_takes_one_range_or_else_the_pieces_that_are_free(
    taken, width, share
):
    assert allotted(taken, width) == share


@pytest.mark.parametrize(
    ("taken", "width"),
    [
        ([], 0),
        ([], -1),
        ([], 10_001),
        ([(0, 9_999)], 1),
        ([(0, 4_999), (5_000, 9_999)], 1),
        ([(0, 4_999)], 5_001),
        ([(100, 9_899)], 201),
    ],
)
def test_more_room_than_there_is_is_refused(taken, width):
    with pytest.raises(ValueError, match=f"{width} buckets"):
        allotted(taken, width)


def test_room_is_how_many_buckets_ranges_hold():
    assert room([]) == 0
    assert room([(0, 0)]) == 1
    assert room([(0, 9_999)]) == 10_000
    assert room([(0, 999), (2_000, 2_499)]) == 1_500


class Group(RuleBasedStateMachine):
    """Experiments come and go in a group, in any order."""

    def __init__(self):
        super().__init__()
        self.shares = []
        self.kept = []

    def taken(self):
        return [one for share in self.shares for one in share]

    @rule(width=widths | st.integers(1, 1_500))
    def come(self, width):
        free = BUCKETS - room(self.taken())
        if width > free:
            with pytest.raises(ValueError, match=f"of {free} free"):
                allotted(self.taken(), width)
            return
        share = allotted(self.taken(), width)
        assert room(share) == width
        assert all(first <= last for first, last in share)
        self.shares.append(share)
        self.kept.append(list(share))

    @rule()
    def fill_to_the_last_bucket(self):
        if free := BUCKETS - room(self.taken()):
            self.come(free)
        assert room(self.taken()) == BUCKETS

    @rule(place=st.integers(0, 50))
    def go(self, place):
        if self.shares:
            del self.shares[place % len(self.shares)], self.kept[place % len(self.kept)]

    @invariant()
    def no_bucket_is_taken_twice_and_none_lies_outside(self):
        buckets = [n for first, last in self.taken() for n in range(first, last + 1)]
        assert len(set(buckets)) == len(buckets)
        assert set(buckets) <= set(range(BUCKETS))

    @invariant()
    def whoever_is_there_stays_where_they_are(self):
        assert self.shares == self.kept

    @invariant()
    def a_user_is_in_one_share_or_where_nobody_is(self):
        free = BUCKETS - room(self.taken())
        for user_id in ("user-1", "user-2", "Zoë", "用户42"):
            ins = sum(in_share("checkout", user_id, share) for share in self.shares)
            assert ins <= 1
            assert ins == 1 or free


TestGroup = Group.TestCase


# ---------------------------------------------------------------------------
# Receipts


def test_a_receipt_shows_both_draws():
    shown = draws("exp_abc123", "user-1", [3_333, 3_333, 3_334], 2_000)

    # The contract's vector, and SHA-256 from the library.
    assert shown.split.bucket == 3520
    assert shown.split.salt == "exp_abc123"
    assert shown.split.sha256 == sha256(b"exp_abc123:user-1").hexdigest()
    assert shown.split.ranges == [(0, 3_332), (3_333, 6_665), (6_666, 9_999)]
    assert shown.split.position == 1
    assert shown.entry.salt == "exp_abc123:traffic"
    assert shown.entry.sha256 == sha256(b"exp_abc123:traffic:user-1").hexdigest()
    assert shown.entry.ranges == [(0, 1_999)]


def test_in_a_group_the_share_takes_the_place_of_the_traffic():
    share = [(0, 999), (2_000, 2_499)]

    shown = draws("exp_1", "user-1", HALVES, 1_500, "checkout", share)

    assert shown.entry.salt == "group:checkout"
    assert shown.entry.sha256 == sha256(b"group:checkout:user-1").hexdigest()
    assert shown.entry.ranges == share
    assert shown.split == draws("exp_1", "user-1", HALVES, 1_500).split


@given(user_ids, splits, st.integers(0, BUCKETS), widths, widths)
def test_a_receipt_says_what_was_decided(user_id, splits, traffic, others, width):
    taken = [(BUCKETS - others, BUCKETS - 1)]
    share = allotted(taken, min(width, BUCKETS - others)) if others < BUCKETS else []

    alone = draws("exp_1", user_id, splits, traffic)
    grouped = draws("exp_1", user_id, splits, traffic, "checkout", share)

    assert alone.split.position == dealt("exp_1", user_id, splits)
    assert (alone.entry.position is not None) is in_traffic("exp_1", user_id, traffic)
    in_group = in_share("checkout", user_id, share)
    assert (grouped.entry.position is not None) is in_group
    for draw in (*alone, *grouped):
        assert draw.bucket == bucket(draw.salt, user_id)
        assert int(draw.sha256[:13], 16) * 625 >> 48 == draw.bucket
        if draw.position is not None:
            first, last = draw.ranges[draw.position]
            assert first <= draw.bucket <= last


SHELLS = [name for name in ("sh", "dash", "bash", "zsh") if shutil.which(name)]
NASTY = [
    *("'", '"', "it's", "''", "'\"'\"'", "`id`", "$(id)", "$HOME", "${x}", "$'a'"),
    *("a\nb", "\n", "a\n", "\r\n", "\t", " ", " a ", "a\\", "\\n", "\\0", "%s", "%d%%"),
    *("-n", "-e x", "--", "-", "--help", "!", "!!", "*", "?", "~", "#", "; exit 1"),
    *("|", "&&", ">x", "<x", "(", "}", "]]", "\x01", "\x1b[31m", "\x7f", "\u0085"),
    *("Zoë", "Zoe\u0308", "用户42", "👩🏽‍🚀", "\u202eabc", "\ufeff", "\U0010ffff"),
    "x" * 255,
    "é" * 255,
]


def printed(shell, commands, **environment):
    """What a shell prints when it runs the commands, in a locale of bytes."""
    script = "set -u\n" + "\n".join(commands) + "\n"
    done = subprocess.run(
        [shutil.which(shell)],
        input=script.encode(),
        capture_output=True,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", **environment},
        check=True,
    )
    assert done.stderr == b""
    return done.stdout.decode().splitlines()


def test_there_is_a_plain_shell_and_bash_to_ask():
    assert {"sh", "bash"} <= set(SHELLS)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_command_of_a_receipt_prints_the_bucket_whatever_the_id(shell):
    explained = [draws("exp_1", user_id, HALVES, 1) for user_id in NASTY]
    explained += [draws(name, "-n", HALVES, 1, name) for name in NASTY]
    every = [draw for one in explained for draw in one]

    lines = printed(shell, [draw.command for draw in every])

    assert lines == [str(draw.bucket) for draw in every]


def test_the_command_of_a_receipt_agrees_with_node_on_320_vectors():
    shown = [draws(one["salt"], one["userId"], HALVES, 1) for one in VECTORS]

    lines = printed("sh", [one.split.command for one in shown])

    assert lines == [str(one["bucket"]) for one in VECTORS]
    assert [one.split.sha256 for one in shown] == [one["sha256"] for one in VECTORS]


def test_the_command_of_a_receipt_makes_do_with_shasum(tmp_path):
    if shutil.which("shasum") is None:
        leave_out("shasum is not installed; it comes with Perl")
    for program in ("shasum", "cut", "perl"):
        (tmp_path / program).symlink_to(shutil.which(program))

    lines = printed(
        "sh",
        [draws("exp_abc123", "Zoë", HALVES, 1).split.command],
        PATH=str(tmp_path),
    )

    assert not (tmp_path / "sha256sum").exists()
    assert lines == ["8203"]


# ---------------------------------------------------------------------------
# A fair hash


@pytest.fixture(scope="module")
def asked():
    """What bench/hash.py asks of 100 million draws, asked of a million and a bit.

    10,000 users in 100 experiments. A row's p is of all its tables together, so there
    is one test a row; looked at one by one, the smallest of 100 tables' p is multiplied
    by 100 (Bonferroni). The ids are always the same, and so are the p: no luck is left.
    """
    return list(rows(users=10_000, experiments=100, entries=10))


def test_every_split_gets_its_share_in_100_experiments(asked):
    split = [row for row in asked if row.question in SPLITS]

    assert {"50 / 50", "90 / 10", "1 / 99", "33.33 / 33.33 / 33.34"} <= set(SPLITS)
    assert len(split) == len(SPLITS)
    for row in split:
        assert row.tables == 100
        assert 0.001 < row.p < 0.999, row  # above: too even to be a deal of luck
        assert row.bonferroni > 0.001, row


def test_no_draw_says_anything_about_another(asked):
    pairs = [row for row in asked if row.question not in SPLITS]

    assert [row.question for row in pairs] == [
        "experiment and next",
        "traffic and split",
        "group and split",
        "group and traffic",
    ]
    for row in pairs:
        assert 0.001 < row.p < 0.999, row
        assert row.bonferroni > 0.001, row


def test_sixty_and_forty_percent_of_a_group_share_none_of_200_000_users():
    sixty = allotted([], 6_000)
    forty = allotted(sixty, 4_000)

    shares = [
        [in_share("page", f"user-{number}", share) for share in (sixty, forty)]
        for number in range(200_000)
    ]

    assert all(sum(one) == 1 for one in shares)
    inside = sum(one[0] for one in shares)
    assert abs(inside - 120_000) < 5 * (200_000 * 0.6 * 0.4) ** 0.5
    with pytest.raises(ValueError, match="of 0 free"):
        allotted([*sixty, *forty], 1)
