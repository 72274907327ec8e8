"""All errors: their codes, their messages, and their one shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import peewee
from flask import Response, g, jsonify, request
from marshmallow import ValidationError, fields
from werkzeug.exceptions import HTTPException, InternalServerError

from models import Conflict, Invalid
from storage import engine
from storage.engine import Trouble
from storage.paging import BadCursor
from web import flags, html, keys, metrics
from web.fields import Answer
from web.json import ERRORS, InvalidJson, as_text, cut
from web.logging import log


def flattened(messages: Any, path: tuple[str, ...] = ()) -> Iterator[dict[str, str]]:
    """Yield one {path, message} for each of marshmallow's nested messages."""
    if isinstance(messages, dict):
        for step, inner in messages.items():
            named = path if step == "_schema" else (*path, cut(str(step)))
            yield from flattened(inner, named)
    elif isinstance(messages, list):
        for inner in messages:
            yield from flattened(inner, path)
    else:
        yield {"path": ".".join(path), "message": cut(str(messages), 1_000)}


def sentence(details: Iterable[dict[str, str]]) -> str:
    """Return these messages in one line, each after its path."""
    return "; ".join(
        f"{one['path']}: {one['message']}" if one["path"] else one["message"]
        for one in details
    )


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


class ErrorDetail(Answer):
    """A field that is wrong, or the present value and the allowed ones."""

    sometimes = ("path", "message", "current", "allowed")

    path = fields.String()
    message = fields.String()
    current = fields.String()
    allowed = fields.List(fields.String())


class ErrorBody(Answer):
    status_code = fields.Integer()
    code = fields.String()
    message = fields.String()
    details = fields.List(fields.Nested(ErrorDetail()))
    request_id = fields.String()


class Error(Answer):
    error = fields.Nested(ErrorBody())


def problem(
    status: int,
    message: str,
    code: str | None = None,
    details: list[dict[str, Any]] | None = None,
) -> Response:
    """Return an error in the common shape, in OpenFeature's own, or as a page."""
    g.code = (
        code or CODES.get(status) or ("BAD_REQUEST" if status < 500 else CODES[500])
    )
    if flags.speaks_ofrep(request.path):
        status = flags.status_of(status)
        response = jsonify(flags.failure(request.path, g.code, message))
    elif html.is_page(request.path):
        response = html.failure(status, message)
        status = response.status_code
    else:
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
    details = list(islice(flattened(error.messages), ERRORS))
    return problem(400, sentence(details[:3]), "VALIDATION_ERROR", details)


def answer_invalid(error: Invalid) -> Response:
    details = [{"path": error.path, "message": str(error)}]
    return problem(400, str(error), "VALIDATION_ERROR", details)


def answer_bad_cursor(error: BadCursor) -> Response:
    return answer_invalid(Invalid("cursor", str(error)))


def answer_invalid_json(error: InvalidJson) -> Response:
    return problem(400, str(error), "INVALID_JSON")


def answer_targeting_key(_: flags.TargetingKeyMissing) -> Response:
    message = "The context needs a targetingKey: the id of the user."
    return problem(400, message, "TARGETING_KEY_MISSING")


def answer_conflict(error: Conflict) -> Response:
    current, *allowed = map(as_text, (error.current, *error.allowed))
    details = [{"current": current, "allowed": allowed}]
    return problem(409, str(error), error.code, details)


TROUBLES = {
    Trouble.BUSY: "The database is busy with other writes; try again.",
    Trouble.FULL: "The disk of the database is full; nothing was written.",
    Trouble.READ_ONLY: "The database is read-only; nothing was written.",
    Trouble.GONE: "The database cannot be opened.",
    Trouble.DAMAGED: "The database is damaged; nothing is written to it any more.",
    Trouble.IO: "The disk of the database failed (I/O error); try again.",
}

# In a request's environ: the error that the short way ended with.
FAILURE = "abacus.failure"

LEAVE = "abacus.leave"  # in a request's environ: this worker should be replaced


def answer_unavailable(error: Exception) -> Response:
    database = engine.database.obj
    trouble = database.trouble(error)
    if trouble is Trouble.DAMAGED:
        database.damaged = True
    if trouble is Trouble.IO or (
        trouble is Trouble.READ_ONLY and database.can_be_written()
    ):
        request.environ[LEAVE] = True
    name = type(error).__name__
    metrics.database_errors.labels(trouble.name if trouble else name).inc()
    name = database.error_name(error) or name
    log.error("database", extra={"error": f"{name}: {error}"})
    message = "The database does not answer now; try again."
    return problem(503, TROUBLES.get(trouble, message) if trouble else message)


def answer_keyless(error: Exception) -> Response:
    log.error("keys", extra={"error": f"{type(error).__name__}: {error}"})
    return problem(503, "No token can be verified now; try again.")


def answer_crash(error: Exception) -> Response:
    if trouble := engine.database.obj.trouble(error):
        metrics.database_errors.labels(trouble.name).inc()
    log.exception("crash")
    return problem(500, "Something went wrong here, and it has been written down.")


ANSWERS: dict[type[Exception], Callable[[Any], Response]] = {
    HTTPException: answer_http,
    ValidationError: answer_validation,
    Invalid: answer_invalid,
    BadCursor: answer_bad_cursor,
    InvalidJson: answer_invalid_json,
    flags.TargetingKeyMissing: answer_targeting_key,
    Conflict: answer_conflict,
    engine.NotReady: answer_unavailable,
    keys.WeakSecret: answer_keyless,
    keys.Unreachable: answer_keyless,
    peewee.OperationalError: answer_unavailable,
    peewee.InterfaceError: answer_unavailable,
    peewee.DatabaseError: answer_unavailable,
    peewee.IntegrityError: answer_crash,
    peewee.ProgrammingError: answer_crash,
    Exception: answer_crash,
    InternalServerError: answer_http,
}

# The description of each refusal in the OpenAPI document, and its headers.
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
