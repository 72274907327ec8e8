"""The shapes of audiences."""

from __future__ import annotations

from marshmallow import (
    fields,
)

from schemas.experiments import PageQuery
from web.fields import (
    Answer,
    Id,
    JsonText,
    Moment,
    Name,
    RuleTree,
    Search,
    Text,
    Wire,
)


class AudienceSchema(Wire):
    """The rules that decide which users an experiment is for."""

    id = fields.String(dump_only=True)
    name = Name(200, required=True)
    description = Text(10_000)
    rule_tree = RuleTree(required=True)
    created_at = Moment(dump_only=True)
    updated_at = Moment(dump_only=True)


class AudienceChangeSchema(AudienceSchema):
    """The body of a PATCH of an audience: only the fields in it change."""

    name = Name(200)
    rule_tree = RuleTree()


class AudiencesQuery(PageQuery):
    """A page of the audiences, and a search."""

    search = Search()


class TrialSchema(Wire):
    """A user to test an audience with."""

    user_id = Id(load_default=None)
    attributes = fields.Dict(load_default=dict)


class TrialQuery(Wire):
    """The same in a query string."""

    user_id = Id(load_default=None)
    attributes = JsonText(load_default=dict)


class TrialResultSchema(Answer):
    """Whether the user matches, and the result of each rule."""

    matches = fields.Boolean()
    trace = fields.Raw(metadata={"type": "object"})
