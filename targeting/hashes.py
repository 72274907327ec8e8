"""User ids as salted hashes, for rules and overrides that leave the service (pure).

A client that decides by itself has to recognise the users that an override or a rule
names. It needs no id for this: it hashes the id of the user whom it is asked about.
The hash is SHA-256 of ``users:<experiment id>:<user id>`` in UTF-8, as 64 hex digits.
Each experiment has its own salt, so that the same user has another hash in each.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from targeting import audience

USER_ID = "userId"

# Operators that compare whole ids, and the ones that say the same of a list of hashes.
HASHED = {"eq": "in", "in": "in", "neq": "not_in", "not_in": "not_in"}


def salt(experiment_id: str) -> str:
    """Return what stands before the colon and the user id."""
    return f"users:{experiment_id}"


def hashed(experiment_id: str, user_id: str) -> str:
    """Return the hash that stands for this user in this experiment."""
    return sha256(f"{salt(experiment_id)}:{user_id}".encode()).hexdigest()


def without_ids(rules: Any, experiment_id: str) -> Any:
    """Return equivalent rules in which each user id is its hash.

    A rule that compares `userId` with whole ids becomes ``{"field": "userId",
    "operator": "in" or "not_in", "hashes": [...]}``. A value that is not a text equals
    no id, and is left out.
    """
    return _without_ids(rules, experiment_id, audience.DEPTH)


def _without_ids(node: Any, experiment_id: str, room: int) -> Any:
    group = audience.joined(node, room)
    if group is not None:
        _, rules = group
        hidden = [_without_ids(rule, experiment_id, room - 1) for rule in rules]
        return {**node, "rules": hidden}
    if node.get("field") != USER_ID or node.get("operator") not in HASHED:
        return node
    value = node["value"]
    ids = value if isinstance(value, list) else [value]
    return {
        "field": USER_ID,
        "operator": HASHED[node["operator"]],
        "hashes": sorted(
            {hashed(experiment_id, id) for id in ids if isinstance(id, str)}
        ),
    }
