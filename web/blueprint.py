"""Reading requests and wrapping answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from functools import cache
from http import HTTPStatus
from typing import Any

from flask import Response, request
from flask.json.provider import JSONProvider
from flask_smorest import Blueprint as SmorestBlueprint
from marshmallow import Schema, ValidationError, fields
from webargs.flaskparser import FlaskParser
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge, UnsupportedMediaType
from werkzeug.routing import PathConverter

from storage.paging import Listing
from web.fields import Answer, Batch, camel_case
from web.json import dumps, loads

MEBIBYTE = 1024 * 1024


class Parser(FlaskParser):
    """Read JSON once, strictly; refuse unknown query parameters."""

    DEFAULT_VALIDATION_STATUS = 400
    DEFAULT_UNKNOWN_BY_LOCATION = {
        **FlaskParser.DEFAULT_UNKNOWN_BY_LOCATION,
        "query": "raise",
    }

    def parse(self, argmap: Any, *arguments: Any, **options: Any) -> Any:
        """Read what a handler takes; without a query, what its schema makes of none."""
        if options.get("location") == "query" and not request.query_string:
            return deepcopy(_of_no_query(argmap))
        return super().parse(argmap, *arguments, **options)

    def load_json(self, req: Any, schema: Schema) -> Any:
        rows = schema.rows if isinstance(schema, Batch) else None
        body = read_body(10 * MEBIBYTE if rows else MEBIBYTE)
        if not body:
            return {}
        if not req.is_json:
            raise UnsupportedMediaType("The body must be application/json.")
        if req.headers.get("Content-Encoding", "identity") != "identity":
            raise UnsupportedMediaType("The body must not be compressed.")
        return loads(body, rows)

    def handle_error(self, error: ValidationError, *_: Any, **__: Any) -> Any:
        # Without the location that webargs prepends to every path.
        raise ValidationError(*error.messages_dict.values())


@cache
def _of_no_query(schema: Schema) -> Any:
    return schema.load({})


def read_body(limit: int) -> bytes:
    """Return the body; answer 413 above *limit* bytes, 400 if it is cut off."""
    declared = request.content_length
    if declared is not None and declared > limit:
        raise RequestEntityTooLarge(f"A body has at most {limit} bytes.")
    stream = request.environ["wsgi.input"]
    try:
        # One byte more than allowed detects a chunked body that is too long.
        body = bytes(stream.read(limit + 1 if declared is None else declared))
    except Exception as error:  # each server raises its own for a broken body
        raise BadRequest("The body could not be read.") from error
    if len(body) > limit:
        raise RequestEntityTooLarge(f"A body has at most {limit} bytes.")
    if declared is not None and len(body) < declared:
        raise BadRequest("The body was cut off.")
    return body


class Blueprint(SmorestBlueprint):
    """flask-smorest's, with `{"data": …}` answers and all refusals documented."""

    ARGUMENTS_PARSER = Parser()

    @staticmethod
    def _prepare_response_content(data: Any) -> Any:
        return data if isinstance(data, dict) and "data" in data else {"data": data}

    @staticmethod
    def _make_doc_response_schema(schema: Any) -> Any:
        whole = not isinstance(schema, Schema) or "data" in schema.fields
        return schema if whole else envelope(schema)

    def arguments(self, schema: Schema, **options: Any) -> Any:
        """Read a query, or a body that may be absent if no field is required."""
        required = any(field.required for field in schema.fields.values())
        return super().arguments(schema, required=required, **options)

    def also_as(self, forms: Iterable[str]) -> Callable[[Any], Any]:
        """Document that a handler can also answer text of these content types."""

        def mark(handler: Any) -> Any:
            for form in forms:
                text = {"type": "string"}
                document = self.alt_response(200, schema=text, content_type=form)
                handler = document(handler)
            return handler

        return mark

    def add_url_rule(
        self, rule: str, endpoint: Any = None, view_func: Any = None, **options: Any
    ) -> None:
        """Note what a handler reads, and document its name, scope and refusals."""
        parameters = view_func._apidoc.get("arguments", {}).get("parameters", [])
        view_func.reads = {each["in"] for each in parameters}
        documented = view_func._apidoc["response"]["responses"]
        documented |= self.refusals(rule, view_func)
        view_func._apidoc["manual_doc"] = {
            **view_func._apidoc.get("manual_doc", {}),
            "operationId": camel_case(view_func.__name__),
            "security": [{"token": [view_func.scope]}],
        }
        if "<id>" in rule:
            options["parameters"] = [dict(EXPERIMENT_ID)]
        super().add_url_rule(rule, endpoint, view_func, **options)

    def refusals(self, rule: str, handler: Any) -> dict[int, Any]:
        """Return the documentation of each refusal by its status."""
        statuses = [400, 401, 403, 503]
        if "<" in rule:
            statuses.append(404)
        if "json" in handler.reads:
            statuses += [413, 415]
        if hasattr(handler, "is_costly"):
            statuses.append(429)
        return {status: [HTTPStatus(status).name] for status in statuses}


EXPERIMENT_ID = {
    "in": "path",
    "name": "id",
    "description": "An experiment's `id`, which begins with `exp_`, or its `key`.",
}


def refuse_undecodable_path() -> None:
    """Raise ValidationError for a path that is not UTF-8, or contains NUL.

    Werkzeug replaces undecodable bytes by U+FFFD, which would make two users one.
    """
    path = request.environ.get("PATH_INFO", "").encode("latin-1", "replace")
    if b"\0" in path or path.decode(errors="replace").encode() != path:
        raise ValidationError({"path": ["It must be UTF-8, without NUL."]})


def refuse_unknown_query(reads: set[str]) -> None:
    """Raise ValidationError for a parameter that is repeated, or not known."""
    wrong = {}
    for name, values in request.args.lists():
        if "query" not in reads:
            wrong[name] = ["Unknown field."]
        elif len(values) > 1:
            wrong[name] = ["It stands twice."]
    if wrong:
        raise ValidationError(wrong)


_envelopes: dict[tuple[type, bool], type[Schema]] = {}


def envelope(schema: Schema) -> type[Schema]:
    """Return the schema of `{"data": …}`, always the same for the same schema."""
    many = bool(schema.many)
    if (type(schema), many) not in _envelopes:
        name = type(schema).__name__.removesuffix("Schema") + "Envelope"
        held = fields.Nested(type(schema), many=many, required=True)
        made = Schema.from_dict({"data": held}, name=f"{name}s" if many else name)
        _envelopes[type(schema), many] = made
    return _envelopes[type(schema), many]


class Opaque(PathConverter):
    """An id in a path: any characters, including slashes and line feeds."""

    regex = r"[\s\S]+?"
    part_isolating = False


class Meta(Answer):
    """The position of a page in its list."""

    total = fields.Integer()
    page = fields.Integer()
    limit = fields.Integer()
    totalPages = fields.Integer()
    next = fields.String(allow_none=True)


def Listed(schema: Schema) -> Schema:
    """Return the schema of a page of a list."""
    name = type(schema).__name__.removesuffix("Schema") + "List"
    listed = {"data": fields.List(fields.Nested(schema)), "meta": fields.Nested(Meta())}
    return Answer.from_dict(listed, name=name)()


def page(rows: Listing) -> dict[str, Any]:
    """Return a page of a list with its `meta`."""
    meta = {
        "total": rows.total,
        "page": rows.number,
        "limit": rows.limit,
        "totalPages": rows.pages,
        "next": rows.next,
    }
    return {"data": rows.rows, "meta": meta}


def streamed_list(rows: Iterable[str]) -> Response:
    """Return the answer `{"data": [...]}`, with rows of JSON written while it is sent.

    The rows were committed before. 10,000 of them, each with a config of 16 KiB, are
    160 MB of JSON, which no process has to hold at once.
    """
    return Response(pieces(rows), mimetype="application/json")


def pieces(rows: Iterable[str]) -> Iterator[str]:
    """Yield `{"data": [...]}` with these rows of JSON, in pieces of about 64 KiB."""
    texts, size = ['{"data": ['], 0
    for place, row in enumerate(rows):
        if place:
            texts.append(", ")
        texts.append(row)
        size += len(row)
        if size > 64 * 1024:
            yield "".join(texts)
            texts, size = [], 0
    yield "".join([*texts, "]}"])


class ExactJson(JSONProvider):
    """Write numbers exactly; bodies are read by the Parser."""

    def dumps(self, obj: Any, **options: Any) -> str:
        return dumps(obj)

    def loads(self, s: str | bytes, **options: Any) -> Any:
        return json.loads(s)
