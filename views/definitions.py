"""The definitions that clients decide with: a published format, version 1."""

from __future__ import annotations

from typing import Any

from marshmallow import fields

from ledger.published import Published, overrides_of
from ledger.standing import Started
from targeting import assignment, hashes
from web.fields import Answer, Moment
from web.json import dumps, moment

VERSION = 1

KEPT = "definition"
"""Under this name an experiment keeps its text, until it is read again."""


class SaltsSchema(Answer):
    """What stands before `:` and the user id in each hash."""

    variant = fields.String()
    traffic = fields.String()
    group = fields.String(allow_none=True)
    user_id = fields.String()


class DefinedVariantSchema(Answer):
    """What a share of the users gets; `split` is a number of buckets."""

    id = fields.String()
    name = fields.String()
    split = fields.Integer()
    flow_id = fields.String(allow_none=True)
    config = fields.Raw(metadata={"type": ["object", "null"]})


class DefinitionSchema(Answer):
    """Everything that decides for an experiment."""

    id = fields.String()
    key = fields.String()
    status = fields.String(
        metadata={"enum": ["running", "stopped", "completed"]},
    )
    end_date = Moment(allow_none=True)
    salts = fields.Nested(SaltsSchema())
    variants = fields.List(fields.Nested(DefinedVariantSchema()))
    traffic = fields.Integer()
    rules = fields.Raw(metadata={"type": ["object", "null"]})
    ranges = fields.List(fields.List(fields.Integer()), allow_none=True)
    winner = fields.String(allow_none=True)
    overrides = fields.Dict(keys=fields.String(), values=fields.String())


class DefinitionsSchema(Answer):
    """All that a client needs to decide by itself, and its revision."""

    version = fields.Integer(metadata={"enum": [VERSION]})
    revision = fields.String()
    omitted = fields.Integer()
    experiments = fields.List(fields.Nested(DefinitionSchema()))


def definitions_text(revision: str, published: Published) -> str:
    """Return the answer as JSON."""
    texts = ", ".join(map(_text, published.experiments))
    head = dumps(
        {"version": VERSION, "revision": revision, "omitted": published.omitted}
    )
    return f'{{"data": {head[:-1]}, "experiments": [{texts}]}}}}'


def _text(one: Started) -> str:
    text: str | None = one.derived.get(KEPT)
    if text is None:
        text = one.derived[KEPT] = dumps(_document(one))
    return text


def _document(one: Started) -> dict[str, Any]:
    definition = one.definition
    id, group, rules = definition.id, definition.group, definition.rules
    return {
        "id": id,
        "key": definition.key,
        "status": definition.status,
        "endDate": definition.end_date and moment(definition.end_date),
        "salts": {
            "variant": id,
            "traffic": assignment.traffic_salt(id),
            "group": assignment.group_salt(group) if group else None,
            "userId": hashes.salt(id),
        },
        "variants": [
            {
                "id": variant.id,
                "name": variant.name,
                "split": variant.split,
                "flowId": variant.flow_id,
                "config": variant.config,
            }
            for variant in definition.variants
        ],
        "traffic": definition.traffic,
        "rules": rules and hashes.without_ids(rules, id),
        "ranges": list(map(list, definition.share)) if group else None,
        "winner": definition.winner,
        "overrides": {
            hashes.hashed(id, user_id): variant
            for user_id, variant in overrides_of(one)
        },
    }
