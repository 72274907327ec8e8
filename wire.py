"""HTTP: how a body is read, an answer wrapped, an error told, a request logged."""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import wraps
from http import HTTPStatus
from itertools import islice
from typing import Any

import peewee
from flask import Response, current_app, g, jsonify, request
from flask.json.provider import JSONProvider
from flask_smorest import Api as SmorestApi
from flask_smorest import Blueprint as SmorestBlueprint
from marshmallow import Schema, ValidationError, fields
from webargs.flaskparser import FlaskParser
from werkzeug.exceptions import (
    BadRequest,
    HTTPException,
    InternalServerError,
    RequestEntityTooLarge,
    TooManyRequests,
    UnsupportedMediaType,
)
from werkzeug.routing import PathConverter

import auth
import engine
import metrics
import models
import schemas
import tables
from models import Conflict, Invalid
from paging import BadCursor, Listing

MEBIBYTE = 1024 * 1024
log = logging.getLogger("abacus")


# ----------------------------------------------------------------------------
# How a body is read, and an answer wrapped
# ----------------------------------------------------------------------------


class Parser(FlaskParser):
    """Reads JSON once, strictly; unknown query parameters are errors too."""

    DEFAULT_VALIDATION_STATUS = 400
    DEFAULT_UNKNOWN_BY_LOCATION = {
        **FlaskParser.DEFAULT_UNKNOWN_BY_LOCATION,
        "query": "raise",
    }

    def load_json(self, req: Any, schema: Schema) -> Any:
        rows = schema.rows if isinstance(schema, schemas.Batch) else None
        body = read_body(10 * MEBIBYTE if rows else MEBIBYTE)
        if not body:
            return {}
        if not req.is_json:
            raise UnsupportedMediaType("The body must be application/json.")
        if req.headers.get("Content-Encoding", "identity") != "identity":
            raise UnsupportedMediaType("The body must not be compressed.")
        return schemas.loads(body, rows)

    def handle_error(self, error: ValidationError, *_: Any, **__: Any) -> Any:
        # Without the location that webargs puts before every path.
        raise ValidationError(*error.messages_dict.values())


def read_body(limit: int) -> bytes:
    """Return the body; answer 413 over *limit* bytes, 400 where it is cut off."""
    declared = request.content_length
    if declared is not None and declared > limit:
        raise RequestEntityTooLarge(f"A body has at most {limit} bytes.")
    stream = request.environ["wsgi.input"]
    try:
        # One byte more than is allowed tells a chunked body that is too long.
        body = bytes(stream.read(limit + 1 if declared is None else declared))
    except Exception as error:  # each server has its own for a broken body
        raise BadRequest("The body could not be read.") from error
    if len(body) > limit:
        raise RequestEntityTooLarge(f"A body has at most {limit} bytes.")
    if declared is not None and len(body) < declared:
        raise BadRequest("The body was cut off.")
    return body


class Blueprint(SmorestBlueprint):
    """flask-smorest's, with answers in `{"data": …}` and every refusal documented."""

    ARGUMENTS_PARSER = Parser()

    @staticmethod
    def _prepare_response_content(data: Any) -> Any:
        return data if isinstance(data, dict) and "data" in data else {"data": data}

    @staticmethod
    def _make_doc_response_schema(schema: Any) -> Any:
        whole = not isinstance(schema, Schema) or "data" in schema.fields
        return schema if whole else envelope(schema)

    def arguments(self, schema: Schema, **options: Any) -> Any:
        """Read a body, which may be absent where nothing is required, or a query."""
        required = any(field.required for field in schema.fields.values())
        return super().arguments(schema, required=required, **options)

    def texts(self, handler: Any) -> Any:
        """Say that a handler answers with tables too, as `readable` does."""
        for form in tables.FORMS:
            told = self.alt_response(200, schema={"type": "string"}, content_type=form)
            handler = told(handler)
        return handler

    def add_url_rule(
        self, rule: str, endpoint: Any = None, view_func: Any = None, **options: Any
    ) -> None:
        """Note what a handler reads, and what any of its kind may be refused with."""
        taken = view_func._apidoc.get("arguments", {}).get("parameters", [])
        view_func.reads = {each["in"] for each in taken}
        statuses = [400, 401, 403, 503]
        if "<" in rule:
            statuses.append(404)
        if "json" in view_func.reads:
            statuses += [413, 415]
        if hasattr(view_func, "is_costly"):
            statuses.append(429)
        documented = view_func._apidoc["response"]["responses"]
        documented |= {status: [HTTPStatus(status).name] for status in statuses}
        if "<id>" in rule:
            options["parameters"] = [dict(EXPERIMENT_ID)]
        super().add_url_rule(rule, endpoint, view_func, **options)


EXPERIMENT_ID = {
    "in": "path",
    "name": "id",
    "description": "An experiment's `id`, which begins with `exp_`, or its `key`.",
}


def refuse_odd_path() -> None:
    """Raise ValidationError for a path that is not UTF-8, or holds NUL.

    Werkzeug reads what it cannot as U+FFFD, and two users would be one.
    """
    path = request.environ.get("PATH_INFO", "").encode("latin-1", "replace")
    if b"\0" in path or path.decode(errors="replace").encode() != path:
        raise ValidationError({"path": ["It must be UTF-8, without NUL."]})


def refuse_odd_query(reads: set[str]) -> None:
    """Raise ValidationError for a parameter that stands twice, or that nobody reads."""
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
    """Return the schema of `{"data": …}`, one for each schema that it holds."""
    many = bool(schema.many)
    if (type(schema), many) not in _envelopes:
        name = type(schema).__name__.removesuffix("Schema") + "Envelope"
        held = fields.Nested(type(schema), many=many, required=True)
        made = Schema.from_dict({"data": held}, name=f"{name}s" if many else name)
        _envelopes[type(schema), many] = made
    return _envelopes[type(schema), many]


class Opaque(PathConverter):
    """An id in a path: any characters, slashes and line feeds (not `.`) among them."""

    regex = r"[\s\S]+?"
    part_isolating = False


class Meta(schemas.Answer):
    """Where a page stands in its list."""

    total = fields.Integer()
    page = fields.Integer()
    limit = fields.Integer()
    totalPages = fields.Integer()
    next = fields.String(allow_none=True)


def Listed(schema: Schema) -> Schema:
    """Return the schema of a page of a list."""
    name = type(schema).__name__.removesuffix("Schema") + "List"
    listed = {"data": fields.List(fields.Nested(schema)), "meta": fields.Nested(Meta())}
    return schemas.Answer.from_dict(listed, name=name)()


def page(rows: Listing) -> dict[str, Any]:
    """Return a page of a list with its meta."""
    meta = {
        "total": rows.total,
        "page": rows.number,
        "limit": rows.limit,
        "totalPages": rows.pages,
        "next": rows.next,
    }
    return {"data": rows.rows, "meta": meta}


def readable(
    name: str, result: dict[str, Any], drawn: Callable[[str, Any], tables.Sheet]
) -> Any:
    """Return the result as JSON, or as the text that the caller accepts rather."""
    accepted = request.accept_mimetypes
    form = accepted.best_match(["application/json", *tables.FORMS])
    if form not in tables.FORMS:
        return result
    text = tables.FORMS[form](drawn(name, result))
    return Response(text, content_type=f"{form}; charset=utf-8")


def streamed_list(schema: Schema, rows: Iterable[Any]) -> Response:
    """Return the answer `{"data": [...]}` whose rows are written as they are sent.

    The rows are values that were committed before: 10,000 of them, each with a
    config of 16 KiB, are 160 MB of JSON, which no process has to hold at once.
    """
    return Response(_pieces(schema, rows), mimetype="application/json")


def _pieces(schema: Schema, rows: Iterable[Any]) -> Iterator[str]:
    texts, size = ['{"data": ['], 0
    for place, row in enumerate(rows):
        if place:
            texts.append(", ")
        texts.append(schemas.dumps(schema.dump(row)))
        size += len(texts[-1])
        if size > 64 * 1024:
            yield "".join(texts)
            texts, size = [], 0
    yield "".join([*texts, "]}"])


# ----------------------------------------------------------------------------
# Work that takes seconds
# ----------------------------------------------------------------------------


class Slots:
    """How many pieces of costly work run at once in this process, and whose.

    An export holds a thread for as long as its reader likes. A token has one slot, so
    that one caller cannot keep all of them. Of those that have a slot, one works at a
    time: two would be no sooner done, and take the interpreter from all other requests
    twice as often.
    """

    MOST = 2
    RETRY_AFTER = 5  # seconds; about as long as such work takes

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()
        self.turn = threading.Lock()

    def take(self, owner: str) -> Slot:
        """Return a slot, or answer 429 where none is free for this owner."""
        with self._lock:
            if self._held[owner] or self._held.total() >= self.MOST:
                raise TooManyRequests(
                    "Other work that takes seconds is running; try again later.",
                    retry_after=self.RETRY_AFTER,
                )
            self._held[owner] += 1
        return Slot(self, owner)

    def give(self, owner: str) -> None:
        """Let others have the owner's slot."""
        with self._lock:
            self._held[owner] -= 1
            self._held += Counter()  # forget owners without a slot


class Slot:
    """A place among the costly work, until it is given back."""

    def __init__(self, slots: Slots, owner: str) -> None:
        self._slots, self._owner = slots, owner
        self._is_held = threading.Lock()
        self._is_held.acquire()

    def give(self) -> None:
        """Give the slot back; a second time changes nothing."""
        with suppress(RuntimeError):  # given back already
            self._is_held.release()
            self._slots.give(self._owner)

    def over(self, chunks: Iterable[Any]) -> Iterator[Any]:
        """Yield the chunks, each made in its turn; give the slot back at the end."""
        following, end = iter(chunks), object()
        try:
            while True:
                with self._slots.turn:
                    chunk = next(following, end)
                if chunk is end:
                    return
                yield chunk
        finally:
            self.give()


def always(_: Any) -> bool:
    """Hold for whatever is asked."""
    return True


def costly(when: Callable[[Any], bool] = always) -> Callable[[Any], Any]:
    """Mark a handler as one that takes seconds: it runs in a slot, or answers 429.

    *when* tells, of what the handler reads, whether this request is a costly one. A
    stream keeps its slot until it is closed, also where the reader has gone away.
    """

    def mark(handler: Any) -> Any:
        @wraps(handler)
        def bounded(*read: Any, **ids: Any) -> Any:
            if read and not when(read[0]):
                return handler(*read, **ids)
            slots: Slots = current_app.extensions["abacus_slots"]
            slot = slots.take(auth.subject())
            note_end()  # it is no quick one
            try:
                with slots.turn:
                    answer = handler(*read, **ids)
            except BaseException:
                slot.give()
                raise
            if isinstance(answer, Response) and answer.is_streamed:
                answer.response = slot.over(answer.response)
                # A stream that nobody began to read is closed without its `finally`.
                answer.call_on_close(slot.give)
            else:
                slot.give()
            return answer

        bounded.is_costly = True  # type: ignore[attr-defined]
        return bounded

    return mark


class Json(JSONProvider):
    """Answers with numbers that nobody rounds; bodies are read by the Parser."""

    def dumps(self, obj: Any, **options: Any) -> str:
        return schemas.dumps(obj)

    def loads(self, s: str | bytes, **options: Any) -> Any:
        return json.loads(s)


# ----------------------------------------------------------------------------
# Errors: one shape, made here
# ----------------------------------------------------------------------------

CODES = {
    401: "UNAUTHENTICATED",
    403: "FORBIDDEN",
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    409: "CONFLICT",
    413: "PAYLOAD_TOO_LARGE",
    415: "UNSUPPORTED_MEDIA_TYPE",
    429: "TOO_MANY_REQUESTS",
    500: "INTERNAL_ERROR",
    503: "UNAVAILABLE",
}


class ErrorDetail(schemas.Answer):
    """A field that is wrong, or what is and what would be allowed."""

    sometimes = ("path", "message", "current", "allowed")

    path = fields.String()
    message = fields.String()
    current = fields.String()
    allowed = fields.List(fields.String())


class ErrorBody(schemas.Answer):
    status_code = fields.Integer()
    code = fields.String()
    message = fields.String()
    details = fields.List(fields.Nested(ErrorDetail()))
    request_id = fields.String()


class Error(schemas.Answer):
    error = fields.Nested(ErrorBody())


def problem(
    status: int,
    message: str,
    code: str | None = None,
    details: list[dict[str, Any]] | None = None,
) -> Response:
    """Return an answer in the one shape of every error."""
    g.code = (
        code or CODES.get(status) or ("BAD_REQUEST" if status < 500 else CODES[500])
    )
    error = {
        "statusCode": status,
        "code": g.code,
        "message": message,
        "details": details or [],
        "requestId": g.get("request_id", ""),
    }
    response = jsonify({"error": error})
    response.status_code = status
    if status == 503:
        response.headers["Retry-After"] = "1"
    return response


def answer_http(error: HTTPException) -> Response:
    response = problem(error.code or 500, error.description or error.name)
    for name, value in error.get_headers():
        if name in ("Allow", "WWW-Authenticate", "Retry-After"):
            response.headers[name] = value
    return response


def answer_validation(error: ValidationError) -> Response:
    details = list(islice(schemas.flattened(error.messages), schemas.ERRORS))
    return problem(400, schemas.sentence(details[:3]), "VALIDATION_ERROR", details)


def answer_invalid(error: Invalid) -> Response:
    details = [{"path": error.path, "message": str(error)}]
    return problem(400, str(error), "VALIDATION_ERROR", details)


def answer_bad_cursor(error: BadCursor) -> Response:
    return answer_invalid(Invalid("cursor", str(error)))


def answer_invalid_json(error: schemas.InvalidJson) -> Response:
    return problem(400, str(error), "INVALID_JSON")


def answer_conflict(error: Conflict) -> Response:
    current, *allowed = map(schemas.as_text, (error.current, *error.allowed))
    details = [{"current": current, "allowed": allowed}]
    return problem(409, str(error), error.code, details)


TROUBLES = {
    "BUSY": "The database is busy with other writes; try again.",
    "PROTOCOL": "The database is busy with other writes; try again.",
    "FULL": "The disk of the database is full; nothing was written.",
    "READONLY": "The database is read-only; nothing was written.",
    "CANTOPEN": "The database cannot be opened.",
    "CORRUPT": "The database is damaged; nothing is written to it any more.",
    "NOTADB": "The database is damaged; nothing is written to it any more.",
    "IOERR": "The disk of the database failed (I/O error); try again.",
}
LEAVE = "abacus.leave"  # in a request's environ: another process would do better


def answer_unavailable(error: Exception) -> Response:
    name = engine.trouble(error) or type(error).__name__
    kind = name.removeprefix("SQLITE_").partition("_")[0]
    if kind in ("CORRUPT", "NOTADB"):
        models.database.obj.damaged = True
    if kind == "IOERR" or (kind == "READONLY" and engine.can_be_written()):
        request.environ[LEAVE] = True
    metrics.database_errors.labels(name).inc()
    log.error("database", extra={"error": f"{name}: {error}"})
    told = TROUBLES.get(kind, "The database does not answer now; try again.")
    return problem(503, told)


def answer_keyless(error: Exception) -> Response:
    log.error("keys", extra={"error": f"{type(error).__name__}: {error}"})
    return problem(503, "No token can be verified now; try again.")


def answer_crash(error: Exception) -> Response:
    if name := engine.trouble(error):
        metrics.database_errors.labels(name).inc()
    log.exception("crash")
    return problem(500, "Something went wrong here, and it has been written down.")


ANSWERS: dict[type[Exception], Callable[[Any], Response]] = {
    HTTPException: answer_http,
    ValidationError: answer_validation,
    Invalid: answer_invalid,
    BadCursor: answer_bad_cursor,
    schemas.InvalidJson: answer_invalid_json,
    Conflict: answer_conflict,
    engine.NotReady: answer_unavailable,
    auth.WeakSecret: answer_keyless,
    auth.Unreachable: answer_keyless,
    peewee.OperationalError: answer_unavailable,
    peewee.InterfaceError: answer_unavailable,
    peewee.DatabaseError: answer_unavailable,
    peewee.IntegrityError: answer_crash,
    peewee.ProgrammingError: answer_crash,
    Exception: answer_crash,
    InternalServerError: answer_http,
}


# What the document says of each refusal, and the headers that come with it.
REFUSALS: dict[int, tuple[str, dict[str, Any]]] = {
    400: ("Not understood: `details` has every field that is wrong.", {}),
    401: (
        "No token, or one that proves nothing.",
        {"WWW-Authenticate": {"required": True, "schema": {"type": "string"}}},
    ),
    403: ("The token lacks a scope, which the message names.", {}),
    404: ("There is no such thing.", {}),
    409: ("The wrong moment, or it contradicts what is stored.", {}),
    413: ("The body is over 1 MiB, or 10 MiB on a batch.", {}),
    415: ("The body is not plain `application/json`.", {}),
    429: (
        "Other work that takes seconds is running; try again later.",
        {"Retry-After": {"required": True, "schema": {"type": "string"}}},
    ),
    503: (
        "The database, or the provider of the keys, does not answer now.",
        {"Retry-After": {"required": True, "schema": {"type": "string"}}},
    ),
}


class Api(SmorestApi):
    """flask-smorest's, with our errors and our fields in its document."""

    DEFAULT_ERROR_RESPONSE_NAME = None  # every status that is answered is named

    def _init_spec(self, **options: Any) -> None:
        super()._init_spec(**options)
        token = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
        self.spec.components.security_scheme("token", token)
        self.spec.components.schema("RuleTree", schemas.RULE_TREE)
        converter = self.ma_plugin.converter
        converter.add_attribute_function(_without_null)
        converter.add_parameter_attribute_function(_as_json)
        self.register_converter(Opaque, lambda _: OWN_ID)

    def _register_responses(self) -> None:
        for status, (told, headers) in REFUSALS.items():
            content = {"application/json": {"schema": Error}}
            said = {"description": told, "content": content, "headers": headers}
            self.spec.components.response(HTTPStatus(status).name, said, lazy=True)

    def _register_pagination_header(self) -> None:
        """Have none: `meta` says where a page stands."""

    def _register_error_handlers(self) -> None:
        """Leave the errors to ANSWERS."""


OWN_ID = {"type": "string", "minLength": 1, "maxLength": 255, **schemas.AN_ID}


def _without_null(converter: Any, field: Any, ret: Any) -> dict[str, Any]:
    """Leave out the default of a field that may be absent but never null."""
    if ret.get("default", ...) is None and not field.allow_none:
        del ret["default"]
    return {}


def _as_json(converter: Any, field: Any, ret: Any) -> dict[str, Any]:
    """Say of a JSON text in a query what is in it."""
    if not isinstance(field, schemas.JsonText):
        return {}
    return {"content": {"application/json": {"schema": ret.pop("schema")}}}


# ----------------------------------------------------------------------------
# What is written down of a request
# ----------------------------------------------------------------------------


def note_arrival() -> None:
    """Give the request its id and its clock, and count it as a quick one."""
    g.request_id, g.started = secrets.token_hex(8), time.perf_counter()
    engine.traffic.enter()
    g.is_quick = True


def note_end(_: BaseException | None = None) -> None:
    """Count the request out, however it ended."""
    if g.pop("is_quick", False):
        engine.traffic.leave()


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",  # a path names users
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


def note_departure(response: Response) -> Response:
    """Write the log line: what was asked, never by whom or about whom."""
    response.headers["X-Request-ID"] = g.request_id
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    seconds = time.perf_counter() - g.started
    route = request.url_rule.rule if request.url_rule else None
    code = g.get("code")
    # Any word can be sent as a method; the log and the counts have none that is sent.
    method = request.method if request.method in METHODS else "other"
    metrics.answered(method, route, response.status_code, code, seconds)
    log.info(
        "request",
        extra={
            "requestId": g.request_id,
            "method": method,
            "route": route,
            "status": response.status_code,
            "code": code,
            "ms": round(seconds * 1000, 2),
        },
    )
    return response


class Lines(logging.Formatter):
    """One JSON object a line."""

    KEPT = ("requestId", "method", "route", "status", "code", "ms", "error")

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": schemas.moment(models.utcnow()), "level": record.levelname}
        line["event"] = record.getMessage()
        line |= {
            name: getattr(record, name) for name in self.KEPT if hasattr(record, name)
        }
        if record.exc_info and record.exc_info[0]:
            # Without the message, in which there may be a user's id.
            kind, _, trace = record.exc_info
            line["error"] = kind.__name__
            line["traceback"] = "".join(traceback.format_tb(trace))
        return schemas.dumps(line)
