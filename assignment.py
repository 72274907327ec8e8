"""Who is in, and which variant they get: the published hash (pure).

Changing one line of this file re-deals every running experiment.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

BUCKETS = 10_000


def bucket(salt: str, user_id: str) -> int:
    """Return the bucket, 0 to 9,999, that *salt* deals to this user.

    SHA-256 of ``salt:userId`` in UTF-8; of its hex digits the first 13, 52 bits. The
    product takes 66 bits: where integers have 64, ``(digits * 625) >> 48`` is the same.
    """
    digest = sha256(f"{salt}:{user_id}".encode()).hexdigest()
    return int(digest[:13], 16) * BUCKETS // 16**13


def in_traffic(experiment_id: str, user_id: str, traffic: int) -> bool:
    """Tell whether the user is in the first *traffic* buckets of the traffic draw.

    The draw has a salt of its own, so that it says nothing about the variant.
    """
    return bucket(f"{experiment_id}:traffic", user_id) < traffic


def dealt(experiment_id: str, user_id: str, splits: Sequence[int]) -> int:
    """Return the position, in *splits*, of the variant dealt to this user.

    Each split is a number of buckets (hundredths of a percent); together they are
    10,000. Variants take consecutive ranges in the order given.
    """
    place = bucket(experiment_id, user_id)
    for position, split in enumerate(splits):
        if place < split:
            return position
        place -= split
    raise ValueError(f"The splits take {sum(splits)} of {BUCKETS} buckets.")
