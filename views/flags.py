"""Decisions as OpenFeature's flags: a variant's flow or name, and its config."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import Any, NamedTuple

from marshmallow import fields

from targeting.decision import (
    ARCHIVED,
    EXISTING,
    NEW,
    NOT_STARTED,
    OVERRIDE,
    Decision,
)
from web.fields import CONFIG_FLAG, Answer, Quick
from web.flags import NOT_ENROLLED
from web.json import dumps

SPLIT, TARGETING_MATCH = "SPLIT", "TARGETING_MATCH"
DISABLED, DEFAULT = "DISABLED", "DEFAULT"

# OpenFeature's own reasons. Every other decision has DEFAULT, that of a winner too:
# everyone gets its variant, and nobody is enrolled.
REASONS = {
    NEW: SPLIT,
    EXISTING: SPLIT,
    OVERRIDE: TARGETING_MATCH,
    NOT_STARTED: DISABLED,
    ARCHIVED: DISABLED,
}

EVENTS = "/api/events"


class Flag(NamedTuple):
    """A flag as one user gets it; without a value, the application's default holds."""

    key: str
    value: Any
    variant: str
    reason: str
    metadata: dict[str, str]


class FlagSchema(Quick, Answer):
    """A flag as one user gets it; without `value`, the application's default holds.

    `value` is the variant's `flowId`, or its name if it has none. In the flag whose key
    ends in `.config`, it is the variant's `config`.
    """

    sometimes = ("value",)

    key = fields.String()
    value = fields.Raw(metadata={"type": ["string", "object"]})
    variant = fields.String()
    reason = fields.String(
        metadata={"enum": [SPLIT, TARGETING_MATCH, DISABLED, DEFAULT]}
    )
    metadata = fields.Dict()


class FlagsSchema(Answer):
    """All flags of one user, and where events are sent."""

    flags = fields.List(fields.Nested(FlagSchema()))
    metadata = fields.Dict()


FLAG = FlagSchema()


def experiment_of(key: str) -> str:
    """Return the key or the id of the experiment that a flag belongs to."""
    return key.removesuffix(CONFIG_FLAG)


def flag(key: str, decision: Decision) -> Flag:
    """Return the flag of this key.

    It says nothing that changes once the user is enrolled, so that the ETag of all
    flags stays as it is.
    """
    variant, reason = decision.variant, REASONS.get(decision.reason, DEFAULT)
    metadata = {"experimentId": decision.experiment_id}
    if reason != SPLIT:
        metadata["decision"] = decision.reason
    if variant is None:
        return Flag(key, None, NOT_ENROLLED, reason, metadata)
    is_config = key.endswith(CONFIG_FLAG)
    value = variant.config if is_config else variant.flow_id or variant.name
    return Flag(key, value, variant.id, reason, metadata)


def flag_text(key: str, decision: Decision, texts: dict[Any, Any]) -> str:
    """Return a flag as JSON, and keep it: other users of the variant get the same."""
    kind = "flag", key, decision.reason, decision.variant and decision.variant.id
    text: str | None = texts.get(kind)
    if text is None:
        text = texts[kind] = dumps(FLAG.dump(flag(key, decision)))
    return text


class Flags(NamedTuple):
    """All flags of one user as JSON, and the tag of exactly this answer."""

    text: str
    etag: str


def all_flags(decisions: Iterable[tuple[str, Decision, dict[Any, Any]]]) -> Flags:
    """Return the flags of experiments, each with its key and its kept texts."""
    texts = [
        flag_text(name, decision, kept)
        for key, decision, kept in decisions
        for name in (key, key + CONFIG_FLAG)
    ]
    metadata = dumps({"eventsUrl": EVENTS})
    text = f'{{"flags": [{", ".join(texts)}], "metadata": {metadata}}}'
    return Flags(text, sha256(text.encode()).hexdigest()[:32])
