"""The API: a handler for each endpoint, one shape for every error, create_app."""

from __future__ import annotations

import json
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peewee
from flask import Flask, Response, g, jsonify, redirect, request
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
import ledger
import models
import reports
import schemas
import tables
from auth import requires
from models import Conflict, Experiment, Invalid, InvalidState

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
    return problem(409, str(error), code)


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
    log.error("database", extra={"error": f"{name}: {error}"})
    told = TROUBLES.get(kind, "The database does not answer now; try again.")
    return problem(503, told)


def answer_crash(error: Exception) -> Response:
    log.exception("crash")
    return problem(500, "Something went wrong here, and it has been written down.")


ANSWERS: dict[type[Exception], Callable[[Any], Response]] = {
    HTTPException: answer_http,
    ValidationError: answer_validation,
    Invalid: answer_invalid,
    schemas.InvalidJson: answer_invalid_json,
    InvalidState: answer_invalid_state,
    Conflict: answer_conflict,
    models.NotReady: answer_unavailable,
    auth.WeakSecret: answer_unavailable,
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


@api.before_request
def guard() -> None:
    """Know who asks, refuse ids that cannot be, and open the database."""
    if request.method == "OPTIONS":  # a preflight carries no token, and asks nothing
        return
    auth.authenticate()
    for name, value in (request.view_args or {}).items():
        if "\0" in value:
            raise ValidationError({name: ["An id holds no NUL."]})
        if name == "user_id":
            schemas.Id().deserialize(value, "userId", {"userId": value})
    models.connect()


def find(id: str) -> Experiment:
    """Return the experiment with this id, or answer 404."""
    experiment = Experiment.get_or_none(id=id)
    if experiment is None:
        raise NotFound(f"There is no experiment {id!r}.")
    return experiment


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
    return Experiment.draft(**body)


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
    experiment.revise(variants, **changes)
    return experiment


@api.delete("/experiments/<id>")
@api.response(200, EXPERIMENT)
@requires("write")
def archive_experiment(id):
    """Archive an experiment that is not running; its data stays."""
    experiment = find(id)
    experiment.archive()
    return experiment


@api.post("/experiments/<id>/start")
@api.arguments(NOTHING)
@api.response(200, WARNED)
@requires("write")
def start_experiment(body, id):
    """Start a draft: users are enrolled from now on."""
    experiment = find(id)
    experiment.start()
    return experiment


@api.post("/experiments/<id>/stop")
@api.arguments(NOTHING)
@api.response(200, EXPERIMENT)
@requires("write")
def stop_experiment(body, id):
    """Stop a running experiment: nobody is enrolled any more; conversions count."""
    experiment = find(id)
    experiment.stop()
    return experiment


@api.post("/experiments/<id>/resume")
@api.arguments(NOTHING)
@api.response(200, EXPERIMENT)
@requires("write")
def resume_experiment(body, id):
    """Open a stopped experiment's enrolment again."""
    experiment = find(id)
    experiment.resume()
    return experiment


@api.post("/experiments/<id>/complete")
@api.arguments(schemas.ConclusionSchema())
@api.response(200, EXPERIMENT)
@requires("write")
def complete_experiment(body, id):
    """Make the results final; with a winner, everyone is given its variant."""
    experiment = find(id)
    experiment.complete(**body)
    return experiment


@api.post("/experiments/<id>/duplicate")
@api.arguments(NOTHING)
@api.response(201, WARNED)
@requires("write")
def duplicate_experiment(body, id):
    """Create a draft like this one."""
    return find(id).duplicate()


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
    decision = ledger.enrol(find(id), [body["user_id"]])[0]
    return decision, 201 if decision.reason == ledger.NEW else 200


@api.post("/experiments/<id>/assignments/batch")
@api.arguments(schemas.UsersSchema())
@api.response(200, DECISIONS)
@requires("assign")
def enrol_batch(body, id):
    """Enrol up to 10,000 users in one transaction; one result a row, in order."""
    return ledger.enrol(find(id), [user["user_id"] for user in body["users"]])


@api.get("/experiments/<id>/assignments")
@api.arguments(PAGE, location="query")
@api.response(200, Listed(DECISION))
@requires("read")
def list_assignments(query, id):
    """List who is enrolled, newest first."""
    rows, total = ledger.assignments_page(find(id), query["page"], query["limit"])
    return page(rows, total, query["page"], query["limit"])


@api.get("/experiments/<id>/assignments/<path:user_id>")
@api.response(200, DECISION)
@requires("read")
def get_assignment(id, user_id):
    """Return what a user is given already, enrolling nobody."""
    decision = ledger.decision(find(id), user_id)
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
    receipt = ledger.convert(find(id), ledger.Event(**body))
    return receipt, 201 if receipt.status == ledger.ACCEPTED else 200


@api.post("/experiments/<id>/conversions/batch")
@api.arguments(schemas.ConversionsSchema())
@api.response(200, RECEIPTS)
@requires("assign")
def convert_batch(body, id):
    """Book up to 10,000 conversions in one transaction; good rows are kept."""
    events = [ledger.Event(**row) for row in body["conversions"]]
    return ledger.record(find(id), events)


@api.post("/events")
@api.arguments(EVENT)
@api.response(200, RECEIPTS)
@requires("assign")
def record_event(body):
    """Book an event in every experiment that its user is in."""
    return ledger.credit([ledger.Event(**body)])[0]


@api.post("/events/batch")
@api.arguments(schemas.EventsSchema())
@api.response(200)
@requires("assign")
def record_events_batch(body):
    """Book up to 10,000 events; for each, one result an experiment."""
    events = [ledger.Event(**row) for row in body["events"]]
    return [RECEIPTS.dump(receipts) for receipts in ledger.credit(events)]


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


def note_departure(response: Response) -> Response:
    """Write the log line: what was asked, never by whom or about whom."""
    response.headers["X-Request-ID"] = g.request_id
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers.setdefault("Cache-Control", "no-store")
    log.info(
        "request",
        extra={
            "requestId": g.request_id,
            "method": request.method,
            "route": request.url_rule.rule if request.url_rule else None,
            "status": response.status_code,
            "code": g.get("code"),
            "ms": round((time.perf_counter() - g.started) * 1000, 2),
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
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return schemas.dumps(line)


def alive() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "ok"}


def ready() -> dict[str, str]:
    """Say that the database answers and takes a write; 503 where it does not."""
    models.verify()
    models.database.probe()
    return {"status": "ok"}


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
    app.register_blueprint(
        get_swaggerui_blueprint(
            "/docs", "/openapi.json", config={"persistAuthorization": True}
        )
    )
