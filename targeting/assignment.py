"""The published hash, and the ranges of buckets it falls into (pure).

Changing the hash would move the users of every running experiment.

Every draw is the same: SHA-256 of ``salt:userId`` in UTF-8, of which the first 13 hex
digits (52 bits) are scaled to 10,000 buckets. Only the salt differs:

    the variant         <experiment id>
    the traffic         <experiment id>:traffic
    a group's share     group:<name>

Shares are whole buckets, hundredths of a percent: 33.33 % is 3,333 of them.
"""

from __future__ import annotations

import shlex
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from itertools import accumulate
from typing import NamedTuple

BUCKETS = 10_000


class Range(NamedTuple):
    """Consecutive buckets, both ends included."""

    first: int
    last: int


def bucket(salt: str, user_id: str) -> int:
    """Return the bucket, 0 to 9,999, of this user under a salt.

    The product needs 66 bits; with 64-bit integers, ``(digits * 625) >> 48`` is equal.
    """
    digest = sha256(f"{salt}:{user_id}".encode()).digest()
    digits = int.from_bytes(digest[:7], "big") >> 4  # the first 13 of the hash
    return digits * BUCKETS >> 52


def _digest(salt: str, user_id: str) -> str:
    return sha256(f"{salt}:{user_id}".encode()).hexdigest()


def dealt(experiment_id: str, user_id: str, splits: Sequence[int]) -> int:
    """Return the position, in *splits*, of this user's variant.

    Each split is a number of buckets; together they are 10,000. Variants take
    consecutive ranges in the order given.
    """
    place = bucket(experiment_id, user_id)
    for position, split in enumerate(splits):
        if place < split:
            return position
        place -= split
    raise ValueError(f"The splits take {sum(splits)} of {BUCKETS} buckets.")


def dealer(splits: Sequence[int]) -> Callable[[str, str], int]:
    """Return `dealt` for these splits, faster, for many users."""
    ends = list(accumulate(splits))
    return lambda experiment_id, user_id: bisect_right(
        ends, bucket(experiment_id, user_id)
    )


def dealt_each(
    experiment_id: str, user_ids: Sequence[str], splits: Sequence[int], traffic: int
) -> Sequence[int | None]:
    """Return `dealt` for each of these users, None for those outside the traffic."""
    bounds = [first_hash(end) for end in accumulate(splits[:-1])]
    places = [bisect_right(bounds, one) for one in _hashes(experiment_id, user_ids)]
    if traffic == BUCKETS:
        return places
    end, drawn = first_hash(traffic), _hashes(traffic_salt(experiment_id), user_ids)
    return [
        place if one < end else None for place, one in zip(places, drawn, strict=True)
    ]


def _hashes(salt: str, user_ids: Iterable[str]) -> list[bytes]:
    head = f"{salt}:".encode()
    return [sha256(head + user_id.encode()).digest() for user_id in user_ids]


def first_hash(place: int) -> bytes:
    """Return the smallest hash in this bucket, cut after its first 13 hex digits.

    Hashes are in the order of their buckets, so those of many users are compared with
    the first one of a range, and none is scaled.
    """
    digits = -(-(place << 52) // BUCKETS)
    return (digits << 4).to_bytes(7, "big")


def in_traffic(experiment_id: str, user_id: str, traffic: int) -> bool:
    """Tell whether the user is in the first *traffic* buckets of the traffic draw.

    The draw has its own salt, so that it is independent of the variant. Where all
    buckets are taken, nothing is drawn.
    """
    return traffic == BUCKETS or bucket(traffic_salt(experiment_id), user_id) < traffic


def traffic_salt(experiment_id: str) -> str:
    """Return the salt of the draw that admits users to an experiment."""
    return f"{experiment_id}:traffic"


def in_share(group: str, user_id: str, share: Iterable[tuple[int, int]]) -> bool:
    """Tell whether the user falls into an experiment's share of the group."""
    place = bucket(group_salt(group), user_id)
    return any(first <= place <= last for first, last in share)


def room(share: Iterable[tuple[int, int]]) -> int:
    """Return how many buckets the ranges hold."""
    return sum(last - first + 1 for first, last in share)


def overlap(share: Iterable[tuple[int, int]], taken: Iterable[tuple[int, int]]) -> int:
    """Return how many buckets of a share are taken; the ranges of each are disjoint."""
    others = list(taken)
    return sum(
        max(0, min(last, end) - max(first, start) + 1)
        for first, last in share
        for start, end in others
    )


def allotted(taken: Iterable[tuple[int, int]], width: int) -> list[Range]:
    """Return the share of a group that a new experiment of this width takes.

    It is one range in the first gap that is wide enough, or else several ranges from
    the first gap on. So no other share moves. Raise ValueError only if less room is
    left than *width*.
    """
    gaps = _gaps(taken)
    if not 1 <= width <= room(gaps):
        raise ValueError(f"{width} buckets of {room(gaps)} free ones is impossible.")
    wide_enough = [gap for gap in gaps if room([gap]) >= width]

    share, pieces = [], iter(wide_enough or gaps)
    while width:
        first, last = next(pieces)
        share.append(Range(first, min(last, first + width - 1)))
        width -= room(share[-1:])
    return share


def _gaps(taken: Iterable[tuple[int, int]]) -> list[Range]:
    """Return the free ranges between those that are taken, in order."""
    gaps, start = [], 0
    for first, last in sorted(taken):
        if start < first:
            gaps.append(Range(start, first - 1))
        start = max(start, last + 1)
    if start < BUCKETS:
        gaps.append(Range(start, BUCKETS - 1))
    return gaps


def group_salt(group: str) -> str:
    """Return the salt of the draw that shares a group out."""
    return f"group:{group}"


class Draw(NamedTuple):
    """One draw, with everything that is needed to repeat it."""

    salt: str
    sha256: str
    bucket: int
    ranges: list[Range]
    position: int | None
    """The position of the range that contains the bucket, or None."""
    command: str
    """A shell command that prints the bucket."""


class Draws(NamedTuple):
    """The draw that admits a user or not, and the draw of the variant."""

    entry: Draw
    split: Draw


def draws(
    experiment_id: str,
    user_id: str,
    splits: Sequence[int],
    traffic: int,
    group: str | None = None,
    share: Iterable[tuple[int, int]] = (),
) -> Draws:
    """Return both draws: whether the hash admits the user, and which variant it gives.

    In a group, the share replaces the traffic draw.
    """
    if group is None:
        entry = _draw(traffic_salt(experiment_id), user_id, [(0, traffic - 1)])
    else:
        entry = _draw(group_salt(group), user_id, share)
    ends = accumulate(splits)
    ranges = [(end - split, end - 1) for split, end in zip(splits, ends, strict=True)]
    return Draws(entry, _draw(experiment_id, user_id, ranges))


def _draw(salt: str, user_id: str, pairs: Iterable[tuple[int, int]]) -> Draw:
    place = bucket(salt, user_id)
    ranges = [Range(first, last) for first, last in pairs]
    holding = (
        position
        for position, (first, last) in enumerate(ranges)
        if first <= place <= last
    )
    return Draw(
        salt=salt,
        sha256=_digest(salt, user_id),
        bucket=place,
        ranges=ranges,
        position=next(holding, None),
        command=_command(salt, user_id),
    )


def _command(salt: str, user_id: str) -> str:
    """Return the command that prints the bucket in any POSIX shell with 64-bit numbers.

    52 bits times 10,000 would overflow 64 bits, so both numbers are divided by 16:
    times 625, shifted by 48. The brackets are for zsh, where ``>>`` binds tighter than
    ``*``. A Mac may have only shasum.
    """
    text = shlex.quote(f"{salt}:{user_id}")
    return (
        f"printf %s {text} | (sha256sum || shasum -a 256) 2>/dev/null | cut -c1-13"
        " | { read -r hex; echo $(( (0x$hex * 625) >> 48 )); }"
    )
