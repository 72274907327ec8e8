"""The API: a handler for each endpoint, one shape for every error, create_app."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import sys
import time
import traceback
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import peewee
from flask import Flask, Response, current_app, g, jsonify, redirect, request
from flask.json.provider import JSONProvider
from flask_cors import CORS
from flask_smorest import Api as SmorestApi
from flask_smorest import Blueprint as SmorestBlueprint
from flask_swagger_ui import get_swaggerui_blueprint
from marshmallow import Schema, ValidationError, fields
from webargs.flaskparser import FlaskParser
from werkzeug.exceptions import (
    BadRequest,
    HTTPException,
    InternalServerError,
    NotFound,
    RequestEntityTooLarge,
    UnsupportedMediaType,
)
from werkzeug.routing import PathConverter

import auth
import cli
import erasure
import ledger
import metrics
import models
import reports
import schemas
import tables
from auth import requires
from models import (
    Audience,
    Change,
    Conflict,
    Experiment,
    Invalid,
    InvalidState,
    NoRoom,
    Override,
)

ROOT = Path(__file__).parent
VERSION = "0.1.0"
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
        body = read_body(10 * MEBIBYTE if req.path.endswith("/batch") else MEBIBYTE)
        if not body:
            return {}
        if not req.is_json:
            raise UnsupportedMediaType("The body must be application/json.")
        if req.headers.get("Content-Encoding", "identity") != "identity":
            raise UnsupportedMediaType("The body must not be compressed.")
        return schemas.loads(body)

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
    """flask-smorest's, with answers in `{"data": …}`."""

    ARGUMENTS_PARSER = Parser()

    @staticmethod
    def _prepare_response_content(data: Any) -> Any:
        if isinstance(data, dict) and "meta" in data:
            return data
        return {"data": data}

    @staticmethod
    def _make_doc_response_schema(schema: Any) -> Any:
        return schema if schema is None or "meta" in schema.fields else envelope(schema)


_envelopes: dict[tuple[type, bool], type[Schema]] = {}


def envelope(schema: Schema) -> type[Schema]:
    """Return the schema of `{"data": …}`, one for each schema that it holds."""
    many = bool(schema.many)
    if (type(schema), many) not in _envelopes:
        name = type(schema).__name__.removesuffix("Schema") + "Envelope"
        held = fields.Nested(type(schema), many=many)
        made = Schema.from_dict({"data": held}, name=f"{name}s" if many else name)
        _envelopes[type(schema), many] = made
    return _envelopes[type(schema), many]


class Opaque(PathConverter):
    """Werkzeug's path, also one that begins with a slash: an id is opaque."""

    regex = ".+?"
    part_isolating = False


class Meta(Schema):
    """Where a page stands in its list."""

    total = fields.Integer()
    page = fields.Integer()
    limit = fields.Integer()
    totalPages = fields.Integer()


def Listed(schema: Schema) -> Schema:
    """Return the schema of a page of a list."""
    name = type(schema).__name__.removesuffix("Schema") + "List"
    listed = {"data": fields.List(fields.Nested(schema)), "meta": fields.Nested(Meta())}
    return Schema.from_dict(listed, name=name)()


def page(rows: list[Any], total: int, number: int, limit: int) -> dict[str, Any]:
    """Return a page of a list with its meta."""
    pages = -(-total // limit)
    meta = {"total": total, "page": number, "limit": limit, "totalPages": pages}
    return {"data": rows, "meta": meta}


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
    500: "INTERNAL_ERROR",
    503: "UNAVAILABLE",
}


class ErrorDetail(Schema):
    path = fields.String()
    message = fields.String()
    current = fields.String()
    allowed = fields.List(fields.String())


class ErrorBody(Schema):
    statusCode = fields.Integer(required=True)
    code = fields.String(required=True)
    message = fields.String(required=True)
    details = fields.List(fields.Nested(ErrorDetail()), required=True)
    requestId = fields.String(required=True)


class Error(Schema):
    error = fields.Nested(ErrorBody(), required=True)


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
        if name in ("Allow", "WWW-Authenticate", "Location"):
            response.headers[name] = value
    return response


def answer_validation(error: ValidationError) -> Response:
    details = list(schemas.flattened(error.messages))
    told = "; ".join(
        f"{one['path']}: {one['message']}" if one["path"] else one["message"]
        for one in details[:3]
    )
    return problem(400, told, "VALIDATION_ERROR", details[:100])


def answer_invalid(error: Invalid) -> Response:
    details = [{"path": error.path, "message": str(error)}]
    return problem(400, str(error), "VALIDATION_ERROR", details)


def answer_invalid_json(error: schemas.InvalidJson) -> Response:
    return problem(400, str(error), "INVALID_JSON")


def answer_invalid_state(error: InvalidState) -> Response:
    details = [{"current": error.current, "allowed": error.allowed}]
    return problem(409, str(error), "INVALID_STATE", details)


def answer_conflict(error: Conflict) -> Response:
    code = {
        models.NotEnrolled: "NOT_ENROLLED",
        models.BeforeEnrollment: "BEFORE_ENROLLMENT",
    }.get(type(error))
    response = problem(409, str(error), code)
    if request.endpoint == f"{api.name}.{convert.__name__}":
        metrics.conversions.labels(ledger.REJECTED, g.code).inc()
    return response


def answer_no_room(error: NoRoom) -> Response:
    wanted, left = models.percent(error.wanted), models.percent(error.left)
    details = [{"current": wanted, "allowed": [left]}]
    return problem(409, str(error), details=details)


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
    name = models.trouble(error) or type(error).__name__
    kind = name.removeprefix("SQLITE_").partition("_")[0]
    if kind in ("CORRUPT", "NOTADB"):
        models.database.obj.damaged = True
    if kind == "IOERR" or (kind == "READONLY" and models.can_be_written()):
        request.environ[LEAVE] = True
    metrics.database_errors.labels(name).inc()
    log.error("database", extra={"error": f"{name}: {error}"})
    told = TROUBLES.get(kind, "The database does not answer now; try again.")
    return problem(503, told)


def answer_keyless(error: Exception) -> Response:
    log.error("keys", extra={"error": f"{type(error).__name__}: {error}"})
    return problem(503, "No token can be verified now; try again.")


def answer_crash(error: Exception) -> Response:
    if name := models.trouble(error):
        metrics.database_errors.labels(name).inc()
    log.exception("crash")
    return problem(500, "Something went wrong here, and it has been written down.")


ANSWERS: dict[type[Exception], Callable[[Any], Response]] = {
    HTTPException: answer_http,
    ValidationError: answer_validation,
    Invalid: answer_invalid,
    schemas.InvalidJson: answer_invalid_json,
    InvalidState: answer_invalid_state,
    NoRoom: answer_no_room,
    Conflict: answer_conflict,
    models.NotReady: answer_unavailable,
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


class Api(SmorestApi):
    """flask-smorest's, with our errors in its document."""

    ERROR_SCHEMA = Error

    def _register_error_handlers(self) -> None:
        """Leave the errors to ANSWERS."""


# ----------------------------------------------------------------------------
# Experiments
# ----------------------------------------------------------------------------

api = Blueprint("abacus", __name__, url_prefix="/api", description="Experiments")

EXPERIMENT = schemas.ExperimentSchema()
WARNED = schemas.WarnedExperimentSchema()
NOTHING = schemas.Nothing()
DECISION = schemas.DecisionSchema()
DECISIONS = schemas.DecisionSchema(many=True)
RECEIPT = schemas.ReceiptSchema()
RECEIPTS = schemas.ReceiptSchema(many=True)
EVENT = schemas.EventSchema()
PAGE = schemas.Page()
AUDIENCE = schemas.AudienceSchema()
OVERRIDE = schemas.OverrideSchema()
OWN_IDS = schemas.OwnIds()


@api.before_request
def guard() -> None:
    """Know who asks, refuse ids that cannot be, and open the database."""
    if request.method == "OPTIONS":  # a preflight carries no token, and asks nothing
        return
    auth.authenticate()
    ids = request.view_args or {}
    for name, value in ids.items():
        if "\0" in value:
            raise ValidationError({name: ["An id holds no NUL."]})
    OWN_IDS.load({schemas.camel_case(name): id for name, id in ids.items()})
    models.connect()


def find(id: str) -> Experiment:
    """Return the experiment with this id, or answer 404."""
    experiment = Experiment.get_or_none(id=id)
    if experiment is None:
        raise NotFound(f"There is no experiment {id!r}.")
    return experiment


def find_audience(id: str) -> Audience:
    """Return the audience with this id, or answer 404."""
    audience = Audience.get_or_none(id=id)
    if audience is None:
        raise NotFound(f"There is no audience {id!r}.")
    return audience


@api.get("/experiments")
@api.arguments(schemas.ExperimentPage(), location="query")
@api.response(200, Listed(EXPERIMENT))
@requires("read")
def list_experiments(query):
    """List the experiments, newest first; archived ones only where asked for."""
    number, limit = query["page"], query["limit"]
    rows, total = Experiment.page(number, limit, query["status"], query["archived"])
    return page(rows, total, number, limit)


@api.post("/experiments")
@api.arguments(EXPERIMENT)
@api.response(201, WARNED)
@requires("write")
def create_experiment(body):
    """Create a draft; the first variant is the control."""
    return Experiment.draft(by=auth.subject(), **body)


@api.get("/experiments/<id>")
@api.response(200, EXPERIMENT)
@requires("read")
def get_experiment(id):
    """Return the experiment with all its variants."""
    return find(id)


@api.patch("/experiments/<id>")
@api.arguments(schemas.ExperimentChangeSchema())
@api.response(200, EXPERIMENT)
@requires("write")
def update_experiment(changes, id):
    """Change a draft; fields left out stay as they are."""
    experiment = find(id)
    variants = changes.pop("variants", None)
    if variants is not None:
        variants = schemas.whole_variants(experiment.merged(variants))
    experiment.revise(variants, auth.subject(), **changes)
    return experiment


@api.delete("/experiments/<id>")
@api.response(200, EXPERIMENT)
@requires("write")
def archive_experiment(id):
    """Archive an experiment that is not running; its data stays."""
    experiment = find(id)
    experiment.archive(auth.subject())
    return experiment


@api.post("/experiments/<id>/start")
@api.arguments(NOTHING)
@api.response(200, WARNED)
@requires("write")
def start_experiment(body, id):
    """Start a draft: users are enrolled from now on."""
    experiment = find(id)
    experiment.start(auth.subject())
    return experiment


@api.post("/experiments/<id>/stop")
@api.arguments(NOTHING)
@api.response(200, EXPERIMENT)
@requires("write")
def stop_experiment(body, id):
    """Stop a running experiment: nobody is enrolled any more; conversions count."""
    experiment = find(id)
    experiment.stop(auth.subject())
    return experiment


@api.post("/experiments/<id>/resume")
@api.arguments(NOTHING)
@api.response(200, EXPERIMENT)
@requires("write")
def resume_experiment(body, id):
    """Open a stopped experiment's enrolment again."""
    experiment = find(id)
    experiment.resume(auth.subject())
    return experiment


@api.post("/experiments/<id>/complete")
@api.arguments(schemas.ConclusionSchema())
@api.response(200, EXPERIMENT)
@requires("write")
def complete_experiment(body, id):
    """Make the results final; with a winner, everyone is given its variant."""
    experiment = find(id)
    experiment.complete(by=auth.subject(), **body)
    return experiment


@api.post("/experiments/<id>/duplicate")
@api.arguments(NOTHING)
@api.response(201, WARNED)
@requires("write")
def duplicate_experiment(body, id):
    """Create a draft like this one."""
    return find(id).duplicate(auth.subject())


# ----------------------------------------------------------------------------
# Enrolment
# ----------------------------------------------------------------------------


@api.post("/experiments/<id>/assignments")
@api.arguments(schemas.UserSchema())
@api.response(201, DECISION)
@api.alt_response(200, schema=envelope(DECISION), description="Nobody new")
@requires("assign")
def enrol(body, id):
    """Enrol a user, or say why not: 201 where the user is new, 200 otherwise."""
    user = ledger.User(**body)
    decision = metrics.enrolled(ledger.enrol(find(id), [user]))[0]
    return decision, 201 if decision.reason == ledger.NEW else 200


@api.post("/experiments/<id>/assignments/batch")
@api.arguments(schemas.UsersSchema())
@api.response(200, DECISIONS)
@requires("assign")
def enrol_batch(body, id):
    """Enrol up to 10,000 users in one transaction; one result a row, in order."""
    users = [ledger.User(**user) for user in body["users"]]
    return metrics.enrolled(ledger.enrol(find(id), users))


@api.get("/experiments/<id>/assignments")
@api.arguments(PAGE, location="query")
@api.response(200, Listed(DECISION))
@requires("read")
def list_assignments(query, id):
    """List who is enrolled, newest first."""
    rows, total = ledger.assignments_page(find(id), query["page"], query["limit"])
    return page(rows, total, query["page"], query["limit"])


@api.get("/experiments/<id>/assignments/<path:user_id>")
@api.arguments(schemas.ExplainQuery(), location="query")
@api.response(200, schemas.ExplainedSchema())
@requires("read")
def get_assignment(query, id, user_id):
    """Return what a user is given already, or explain what they are and why.

    Enrols nobody. The receipt is for everyone, also for those who are not enrolled.
    """
    experiment = find(id)
    if query["explain"]:
        user = ledger.User(user_id, query["attributes"])
        return schemas.explained(experiment, ledger.explained(experiment, user))
    decision = ledger.decision(experiment, user_id)
    if decision is None:
        raise NotFound("The user is not enrolled in this experiment.")
    return decision


@api.get("/users/<path:user_id>/assignments")
@api.arguments(PAGE, location="query")
@api.response(200, Listed(schemas.MembershipSchema()))
@requires("read")
def list_memberships(query, user_id):
    """List the experiments that a user is in, newest first."""
    rows, total = ledger.assignments_of(user_id, query["page"], query["limit"])
    return page(rows, total, query["page"], query["limit"])


@api.delete("/users/<path:user_id>")
@api.response(200, schemas.ErasureSchema())
@requires("write")
def erase_user(user_id):
    """Erase a person everywhere; no result moves, as the counts show."""
    return erasure.erase(user_id, auth.subject())


@api.get("/experiments/<id>/overrides")
@api.arguments(PAGE, location="query")
@api.response(200, Listed(OVERRIDE))
@requires("read")
def list_overrides(query, id):
    """List whose variants are forced, by user."""
    rows, total = Override.page(find(id), query["page"], query["limit"])
    return page(rows, total, query["page"], query["limit"])


@api.put("/experiments/<id>/overrides/<path:user_id>")
@api.arguments(OVERRIDE)
@api.response(200, OVERRIDE)
@api.alt_response(201, schema=envelope(OVERRIDE), description="Not forced before")
@requires("write")
def set_override(body, id, user_id):
    """Force a variant for a user, in any state and outside every count."""
    experiment = find(id)
    override, is_new = experiment.override(user_id, body["variant"], auth.subject())
    return override, 201 if is_new else 200


@api.delete("/experiments/<id>/overrides/<path:user_id>")
@api.response(200, OVERRIDE)
@requires("write")
def remove_override(id, user_id):
    """Let the hash decide for a user again."""
    override = find(id).remove_override(user_id, auth.subject())
    if override is None:
        raise NotFound("No variant is forced for the user.")
    return override


# ----------------------------------------------------------------------------
# Audiences
# ----------------------------------------------------------------------------


@api.get("/audiences")
@api.arguments(schemas.AudiencePage(), location="query")
@api.response(200, Listed(AUDIENCE))
@requires("read")
def list_audiences(query):
    """List the audiences, newest first; with a search, those that have it in them."""
    rows, total = Audience.page(query["page"], query["limit"], query["search"])
    return page(rows, total, query["page"], query["limit"])


@api.post("/audiences")
@api.arguments(AUDIENCE)
@api.response(201, AUDIENCE)
@requires("write")
def create_audience(body):
    """Create an audience."""
    return Audience.define(models.new_id("aud")(), **body)[0]


@api.get("/audiences/<path:audience_id>")
@api.response(200, AUDIENCE)
@requires("read")
def get_audience(audience_id):
    """Return the audience with its rules."""
    return find_audience(audience_id)


@api.put("/audiences/<path:audience_id>")
@api.arguments(AUDIENCE)
@api.response(200, AUDIENCE)
@api.alt_response(201, schema=envelope(AUDIENCE), description="Created")
@requires("write")
def define_audience(body, audience_id):
    """Write an audience whole, under your own id."""
    audience, is_new = Audience.define(audience_id, **body)
    return audience, 201 if is_new else 200


@api.patch("/audiences/<path:audience_id>")
@api.arguments(schemas.AudienceChangeSchema())
@api.response(200, AUDIENCE)
@requires("write")
def update_audience(changes, audience_id):
    """Change an audience; experiments that have started keep the rules they have."""
    audience = find_audience(audience_id)
    audience.revise(**changes)
    return audience


@api.delete("/audiences/<path:audience_id>")
@api.response(200, AUDIENCE)
@requires("write")
def remove_audience(audience_id):
    """Delete an audience that no draft and no running experiment uses."""
    audience = find_audience(audience_id)
    audience.remove()
    return audience


@api.post("/audiences/<path:audience_id>/test")
@api.arguments(schemas.TrialSchema())
@api.response(200, schemas.TrialResultSchema())
@requires("read")
def try_audience(body, audience_id):
    """Say whether somebody is meant, with the truth of each rule."""
    return find_audience(audience_id).tried(**body)


# ----------------------------------------------------------------------------
# Conversions
# ----------------------------------------------------------------------------


@api.post("/experiments/<id>/conversions")
@api.arguments(EVENT)
@api.response(201, RECEIPT)
@api.alt_response(200, schema=envelope(RECEIPT), description="Counted already")
@requires("assign")
def convert(body, id):
    """Book a conversion: 201 where it counts, 200 where it was there already."""
    (receipt,) = metrics.converted([ledger.convert(find(id), ledger.Event(**body))])
    return receipt, 201 if receipt.status == ledger.ACCEPTED else 200


@api.post("/experiments/<id>/conversions/batch")
@api.arguments(schemas.ConversionsSchema())
@api.response(200, RECEIPTS)
@requires("assign")
def convert_batch(body, id):
    """Book up to 10,000 conversions in one transaction; good rows are kept."""
    events = [ledger.Event(**row) for row in body["conversions"]]
    return metrics.converted(ledger.record(find(id), events))


@api.post("/events")
@api.arguments(EVENT)
@api.response(200, RECEIPTS)
@requires("assign")
def record_event(body):
    """Book an event in every experiment that its user is in."""
    return metrics.converted(ledger.credit([ledger.Event(**body)])[0])


@api.post("/events/batch")
@api.arguments(schemas.EventsSchema())
@api.response(200)
@requires("assign")
def record_events_batch(body):
    """Book up to 10,000 events; for each, one result an experiment."""
    events = [ledger.Event(**row) for row in body["events"]]
    booked = ledger.credit(events)
    return [RECEIPTS.dump(metrics.converted(receipts)) for receipts in booked]


# ----------------------------------------------------------------------------
# Results
# ----------------------------------------------------------------------------


@api.get("/experiments/<id>/results")
@api.arguments(schemas.ResultsQuery(), location="query")
@api.response(200)
@requires("read")
def get_results(query, id):
    """Return what was counted, a row a metric, and what became of all received."""
    experiment, metric = find(id), query["metric"]
    if query["granularity"] or query["as_of"]:
        counts = reports.replayed(experiment, query["as_of"])
    else:
        counts = reports.counts(experiment)
    shown = schemas.daily_results if query["granularity"] else schemas.results
    return readable(experiment.name, shown(counts, metric), tables.counts)


@api.post("/experiments/<id>/compute-results")
@api.arguments(schemas.AnalysisSchema())
@api.response(200)
@requires("read")
def compute_results(body, id):
    """Return what the counts say, with a verdict that daily looks cannot fool."""
    experiment = find(id)
    result = schemas.computed_results(reports.counts(experiment), **body)
    return readable(experiment.name, result, tables.analysis)


@api.get("/experiments/<id>/export")
@api.arguments(schemas.ExportQuery(), location="query")
@api.response(200, content_type="text/csv")
@api.alt_response(200, content_type="application/x-ndjson", description="As NDJSON")
@requires("read")
def export_experiment(query, id):
    """Stream a row for each conversion, and for each participant without any."""
    experiment = find(id)
    content_type, written = EXPORTS[query["format"]]
    name = f"{experiment.id}.{query['format']}"
    lines = written(reports.exported(experiment))
    return Response(
        ("".join(some) for some in peewee.chunked(lines, 500)),
        content_type=content_type,
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


EXPORTS = {
    "csv": ("text/csv; charset=utf-8", schemas.csv_lines),
    "ndjson": ("application/x-ndjson", schemas.json_lines),
}


@api.get("/experiments/<id>/history")
@api.arguments(PAGE, location="query")
@api.response(200, Listed(schemas.ChangeSchema()))
@requires("read")
def list_history(query, id):
    """List what was done to an experiment, by whom and when, newest first."""
    rows, total = Change.page(find(id), query["page"], query["limit"])
    return page(rows, total, query["page"], query["limit"])


@api.post("/sample-size")
@api.arguments(schemas.SizeSchema())
@api.response(200)
@requires("read")
def plan_sample_size(body):
    """Return the users and days that a plan needs, for one look and for any look."""
    return schemas.sample_sizes(**body)


@api.post("/experiments/<id>/simulate")
@api.arguments(schemas.RehearsalSchema())
@api.response(200)
@requires("write")
def simulate(body, id):
    """Rehearse a draft: false alarms and power, by the production hash and test."""
    experiment = find(id)
    experiment.refuse_unless_draft()
    return schemas.rehearsed(experiment, **body)


# ----------------------------------------------------------------------------
# The application
# ----------------------------------------------------------------------------


def note_arrival() -> None:
    """Give the request its id and its clock."""
    g.request_id, g.started = secrets.token_hex(8), time.perf_counter()


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


def alive() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "ok"}


def ready() -> dict[str, str]:
    """Say that the database answers and takes a write; 503 where it does not."""
    models.verify()
    models.database.probe()
    return {"status": "ok"}


def measured() -> Response:
    """Tell Prometheus what was counted, and how large the files are."""
    file = models.source(current_app.config["DATABASE_URL"]).file
    return Response(metrics.exposition(file), content_type=metrics.CONTENT_TYPE)


def create_app(config: dict[str, Any] | None = None) -> Flask:
    """Return the service; *config* wins over the environment.

    Opens no database. With TESTING, a short secret will do, and the tables of an
    empty database are made on the spot.
    """
    given = config or {}

    def setting(name: str, default: Any) -> Any:
        return given[name] if name in given else os.environ.get(name) or default

    instance = Path(setting("INSTANCE", ROOT / "instance"))
    app = Flask(__name__, instance_path=str(instance.absolute()), static_folder=None)
    app.json = Json(app)
    app.config.update(
        DATABASE_URL=f"sqlite:///{instance.absolute() / 'abacus.db'}",
        SECRET_FILE=str(instance / "secret"),
        PROPAGATE_EXCEPTIONS=False,
        API_TITLE="Abacus",
        API_VERSION=VERSION,
        OPENAPI_VERSION="3.1.0",
        OPENAPI_URL_PREFIX="/",
    )
    app.config.update(given)
    app.config.update(auth.settings(setting))
    app.config["DATABASE_URL"] = setting("DATABASE_URL", app.config["DATABASE_URL"])

    if not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(Lines())
        log.addHandler(handler)
    log.setLevel(logging.WARNING if app.testing else logging.INFO)
    log.propagate = False

    models.bind(app.config["DATABASE_URL"])
    if app.testing:
        models.create(app.config["DATABASE_URL"])
    auth.install(app)
    app.url_map.converters["path"] = Opaque
    app.url_map.merge_slashes = False

    app.before_request(note_arrival)
    app.after_request(note_departure)
    for kind, answer in ANSWERS.items():
        app.register_error_handler(kind, answer)
    _document(app)
    app.register_blueprint(cli.commands)
    app.add_url_rule("/healthz", view_func=alive)
    app.add_url_rule("/readyz", view_func=ready)
    app.add_url_rule("/metrics", view_func=measured)
    app.add_url_rule("/", "home", lambda: redirect("/docs/"))
    if origins := str(setting("CORS_ORIGINS", "")).split():
        CORS(
            app,
            origins=[origin.strip(",") for origin in origins],
            resources=r"/api/(experiments/[^/]+/(assignments|conversions)|events).*",
            expose_headers=["ETag", "Retry-After"],
        )
    return app


def _document(app: Flask) -> None:
    """Serve the API, its OpenAPI document, and the page that shows it."""
    token = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
    document = Api(
        app,
        spec_kwargs={
            "info": {"description": "A/B tests whose counts are right."},
            "security": [{"token": []}],
        },
    )
    document.spec.components.security_scheme("token", token)
    for field in (schemas.Number, schemas.Percentage, schemas.Between):
        document.register_field(field, "number", None)
    document.register_field(schemas.Moment, "string", "date-time")
    document.register_field(schemas.Whole, "string", None)
    document.register_field(schemas.Flag, "string", None)
    document.register_blueprint(api)
    config = {
        # A fixed address: or the page would repeat the Host header in its script.
        "oauth2RedirectUrl": "/docs/oauth2-redirect.html",
        "validatorUrl": None,  # of another host, which would learn of this one
    }
    docs = get_swaggerui_blueprint("/docs", "/openapi.json", config=config)
    docs.after_request(_guard_page)
    app.register_blueprint(docs)


def _guard_page(response: Response) -> Response:
    """Let the page run its own files, and the one script that is written in it."""
    if response.mimetype == "text/html" and not response.direct_passthrough:
        scripts = re.findall(rb"<script>(.*?)</script>", response.get_data(), re.DOTALL)
        hashes = [b64encode(sha256(one).digest()).decode() for one in scripts]
        allowed = " ".join(f"'sha256-{one}'" for one in hashes)
        response.headers["Content-Security-Policy"] = (
            f"default-src 'none'; script-src 'self' {allowed}; "
            "style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
            "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
            "form-action 'self'"
        )
    return response
