"""The API: a handler for each endpoint, and create_app."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import peewee
from flask import (
    Flask,
    Response,
    appcontext_popped,
    appcontext_pushed,
    current_app,
    redirect,
    request,
)
from flask_cors import CORS
from werkzeug.exceptions import (
    NotFound,
)

import cli
import lifecycle
import listing
import ofrep
import pages
import schemas
from ledger import conversions, enrolment, erasure, published, rows
from ledger.counts import counted, replayed
from looks import look
from models import TABLES, Audience, Change, Experiment, Override
from shortcut import Shortcut
from storage import columns, engine, factory, schema
from storage.columns import utcnow
from storage.table import Row
from targeting.decision import NEW, Decision, User, decide_each, explain
from views import definitions, export, figures, planning, tables
from views.answers import decision_texts, receipt_lists, receipt_texts
from views.tables import readable
from web import auth, metrics, settings
from web.auth import requires
from web.blueprint import (
    Blueprint,
    ExactJson,
    Listed,
    Opaque,
    page,
    refuse_undecodable_path,
    refuse_unknown_query,
    streamed_list,
)
from web.errors import ANSWERS, FAILURE
from web.fields import OwnIds, camel_case
from web.logging import note_arrival, note_departure, note_end, write_lines
from web.openapi import document
from web.slots import Slots, costly

ROOT = Path(__file__).parent
VERSION = "0.1.0"


# ----------------------------------------------------------------------------
# Experiments
# ----------------------------------------------------------------------------

api = Blueprint("abacus", __name__, url_prefix="/api")

EXPERIMENT = schemas.ExperimentSchema()
WARNED = schemas.WarnedExperimentSchema()
NOTHING = schemas.Nothing()
DECISION = schemas.DecisionSchema()
DECISIONS = schemas.DecisionSchema(many=True)
RECEIPT = schemas.ReceiptSchema()
RECEIPTS = schemas.ReceiptSchema(many=True)
EVENT = schemas.EventSchema()
PAGE = schemas.PageQuery()
AUDIENCE = schemas.AudienceSchema()
OVERRIDE = schemas.OverrideSchema()
DEFINITIONS = definitions.DefinitionsSchema()
OWN_IDS = OwnIds()


@api.before_request
def guard() -> None:
    """Verify the token, refuse impossible queries and ids, open the database."""
    if request.method == "OPTIONS":  # a preflight request has no token
        return
    if FAILURE in request.environ:
        raise request.environ.pop(FAILURE)
    auth.authenticate()
    handler: Any = current_app.view_functions[str(request.endpoint)]
    refuse_undecodable_path()
    refuse_unknown_query(handler.reads)
    ids = request.view_args or {}
    OWN_IDS.load({camel_case(name): id for name, id in ids.items()})
    engine.connect()


def find(model: type[Row], name: str) -> Row:
    """Return the row that an id names, or an experiment's key; or answer 404."""
    row = model.named(name)
    if row is None:
        raise NotFound(f"There is no {model.__name__.lower()} {name!r}.")
    return row


@api.get("/experiments")
@api.arguments(schemas.ExperimentsQuery(), location="query")
@api.response(200, Listed(EXPERIMENT))
@requires("read")
def list_experiments(query):
    """List the experiments, newest first; archived ones only where asked for."""
    return page(listing.experiments_page(**query))


@api.post("/experiments")
@api.arguments(EXPERIMENT)
@api.response(201, WARNED)
@api.alt_response(409, "CONFLICT")
@requires("write")
def create_experiment(body):
    """Create a draft; the first variant is the control."""
    return lifecycle.draft(by=auth.subject(), **body)


@api.get("/experiments/<id>")
@api.response(200, EXPERIMENT)
@requires("read")
def get_experiment(id):
    """Return the experiment with all its variants."""
    return find(Experiment, id)


@api.patch("/experiments/<id>")
@api.arguments(schemas.ExperimentChangeSchema())
@api.response(200, EXPERIMENT)
@api.alt_response(409, "CONFLICT")
@requires("write")
def update_experiment(changes, id):
    """Change a draft; fields left out stay as they are."""
    experiment = find(Experiment, id)
    lifecycle.revise(experiment, changes, schemas.whole_variants, auth.subject())
    return experiment


@api.delete("/experiments/<id>")
@api.response(200, EXPERIMENT)
@api.alt_response(409, "CONFLICT")
@requires("write")
def archive_experiment(id):
    """Archive an experiment that is not running; its data stays."""
    experiment = find(Experiment, id)
    lifecycle.archive(experiment, auth.subject())
    return experiment


@api.post("/experiments/<id>/unarchive")
@api.arguments(NOTHING)
@api.response(200, EXPERIMENT)
@requires("write")
def unarchive_experiment(body, id):
    """Undo an archiving; one that is not archived stays as it is."""
    experiment = find(Experiment, id)
    lifecycle.unarchive(experiment, auth.subject())
    return experiment


@api.post("/experiments/<id>/start")
@api.arguments(NOTHING)
@api.response(200, WARNED)
@api.alt_response(409, "CONFLICT")
@requires("write")
def start_experiment(body, id):
    """Start a draft: users are enrolled from now on."""
    experiment = find(Experiment, id)
    lifecycle.start(experiment, auth.subject())
    return experiment


@api.post("/experiments/<id>/stop")
@api.arguments(NOTHING)
@api.response(200, EXPERIMENT)
@api.alt_response(409, "CONFLICT")
@requires("write")
def stop_experiment(body, id):
    """Stop a running experiment: nobody is enrolled any more; conversions count."""
    experiment = find(Experiment, id)
    lifecycle.stop(experiment, auth.subject())
    return experiment


@api.post("/experiments/<id>/resume")
@api.arguments(NOTHING)
@api.response(200, EXPERIMENT)
@api.alt_response(409, "CONFLICT")
@requires("write")
def resume_experiment(body, id):
    """Open a stopped experiment's enrolment again."""
    experiment = find(Experiment, id)
    lifecycle.resume(experiment, auth.subject())
    return experiment


@api.post("/experiments/<id>/complete")
@api.arguments(schemas.ConclusionSchema())
@api.response(200, EXPERIMENT)
@api.alt_response(409, "CONFLICT")
@requires("write")
def complete_experiment(body, id):
    """Make the results final; with a winner, everyone is given its variant."""
    experiment = find(Experiment, id)
    lifecycle.complete(experiment, by=auth.subject(), **body)
    return experiment


@api.post("/experiments/<id>/duplicate")
@api.arguments(NOTHING)
@api.response(201, WARNED)
@requires("write")
def duplicate_experiment(body, id):
    """Create a draft with the same settings."""
    return lifecycle.duplicate(find(Experiment, id), auth.subject())


# ----------------------------------------------------------------------------
# Enrolment
# ----------------------------------------------------------------------------


@api.post("/experiments/<id>/assignments")
@api.arguments(schemas.UserSchema())
@api.response(201, DECISION)
@api.alt_response(200, schema=DECISION, description="The user is not new")
@requires("assign")
def enrol(body, id):
    """Enrol a user, or say why not: 201 where the user is new, 200 otherwise."""
    (decision,) = enrolled(id, [User(**body)])
    return decision, 201 if decision.reason == NEW else 200


@api.post("/experiments/<id>/assignments/batch")
@api.arguments(schemas.UsersSchema())
@api.response(200, DECISIONS)
@requires("assign")
def enrol_batch(body, id):
    """Enrol up to 10,000 users in one transaction; one result a row, in order."""
    users = [User(**user) for user in body["users"]]
    return streamed_list(decision_texts(enrolled(id, users)))


def enrolled(id: str, users: Sequence[User]) -> list[Decision]:
    """Return the decision for each user, in order, enrolling those who are new."""
    definition = find(Experiment, id).definition
    proposed = decide_each(definition, users, utcnow())
    covariates: dict[str, Decimal] = {}
    for user in users:
        if user.covariate is not None:
            covariates.setdefault(user.user_id, user.covariate)
    return metrics.enrolled(enrolment.enrol(definition, proposed, covariates))


@api.get("/experiments/<id>/assignments")
@api.arguments(PAGE, location="query")
@api.response(200, Listed(DECISION))
@requires("read")
def list_assignments(query, id):
    """List the enrolled users, newest first."""
    return page(enrolment.assignments_page(find(Experiment, id), **query))


@api.get("/experiments/<id>/assignments/<path:user_id>")
@api.arguments(schemas.ExplainQuery(), location="query")
@api.response(200, schemas.ExplainedSchema())
@requires("read")
def get_assignment(query, id, user_id):
    """Return the variant of a user, or explain the decision for any user.

    Enrols nobody. The receipt is for everyone, also for those who are not enrolled.
    """
    experiment = find(Experiment, id)
    definition, now = experiment.definition, utcnow()
    if query["explain"]:
        explanation = explain(definition, User(user_id, query["attributes"]), now)
        explanation = enrolment.explained(definition, explanation)
        return schemas.explained(experiment, explanation)
    decision = enrolment.stored_decision(definition, user_id, now)
    if decision is None:
        raise NotFound("The user is not enrolled in this experiment.")
    return decision


@api.get("/users/<path:user_id>/assignments")
@api.arguments(PAGE, location="query")
@api.response(200, Listed(schemas.MembershipSchema()))
@requires("read")
def list_memberships(query, user_id):
    """List the experiments that a user is in, newest first."""
    return page(enrolment.assignments_of(user_id, **query))


@api.post("/users/<path:user_id>/assignments")
@api.arguments(schemas.ExperimentsOfUserSchema())
@api.response(200, DECISIONS)
@requires("assign")
def enrol_in_experiments(body, user_id):
    """Enrol a user in several experiments in one transaction; one result each."""
    user = User(user_id, body["attributes"])
    return metrics.enrolled(enrolment.enrol_in(body["experiments"], user))


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
    """List the forced variants, newest first."""
    return page(Override.page(find(Experiment, id), **query))


@api.put("/experiments/<id>/overrides/<path:user_id>")
@api.arguments(OVERRIDE)
@api.response(200, OVERRIDE)
@api.alt_response(201, schema=OVERRIDE, description="The user had no override")
@requires("write")
def set_override(body, id, user_id):
    """Force a variant for a user, in any state and outside every count."""
    experiment = find(Experiment, id)
    override, is_new = lifecycle.override(
        experiment, user_id, body["variant"], auth.subject()
    )
    return override, 201 if is_new else 200


@api.delete("/experiments/<id>/overrides/<path:user_id>")
@api.response(200, OVERRIDE)
@requires("write")
def remove_override(id, user_id):
    """Remove a forced variant: the hash decides for the user again."""
    override = lifecycle.remove_override(find(Experiment, id), user_id, auth.subject())
    if override is None:
        raise NotFound("No variant is forced for the user.")
    return override


@api.get("/definitions")
@api.response(200, DEFINITIONS, headers={"ETag": {"schema": {"type": "string"}}})
@api.alt_response(304, description="Nothing has changed since the ETag")
@api.doc(
    parameters=[{"in": "header", "name": "If-None-Match", "schema": {"type": "string"}}]
)
@requires("assign")
def get_definitions():
    """Return all that a client needs to decide by itself, unless it has it already."""
    revision = published.revision()
    if request.if_none_match.contains_weak(revision):
        answer = Response(status=304)
    else:
        text = definitions.definitions_text(revision, published.published())
        answer = Response(text, mimetype="application/json")
    answer.set_etag(revision)
    return answer


# ----------------------------------------------------------------------------
# Audiences
# ----------------------------------------------------------------------------


@api.get("/audiences")
@api.arguments(schemas.AudiencesQuery(), location="query")
@api.response(200, Listed(AUDIENCE))
@requires("read")
def list_audiences(query):
    """List the audiences, newest first; with a search, those that have it in them."""
    return page(Audience.page(**query))


@api.post("/audiences")
@api.arguments(AUDIENCE)
@api.response(201, AUDIENCE)
@requires("write")
def create_audience(body):
    """Create an audience."""
    return Audience.define(columns.new_id("aud")(), **body)[0]


@api.get("/audiences/<path:audience_id>")
@api.response(200, AUDIENCE)
@requires("read")
def get_audience(audience_id):
    """Return the audience with its rules."""
    return find(Audience, audience_id)


@api.put("/audiences/<path:audience_id>")
@api.arguments(AUDIENCE)
@api.response(200, AUDIENCE)
@api.alt_response(201, schema=AUDIENCE, description="Created")
@requires("write")
def define_audience(body, audience_id):
    """Create or replace an audience under your own id."""
    audience, is_new = Audience.define(audience_id, **body)
    return audience, 201 if is_new else 200


@api.patch("/audiences/<path:audience_id>")
@api.arguments(schemas.AudienceChangeSchema())
@api.response(200, AUDIENCE)
@requires("write")
def update_audience(changes, audience_id):
    """Change an audience; experiments that have started keep the rules they have."""
    audience = find(Audience, audience_id)
    audience.revise(**changes)
    return audience


@api.delete("/audiences/<path:audience_id>")
@api.response(200, AUDIENCE)
@api.alt_response(409, "CONFLICT")
@requires("write")
def remove_audience(audience_id):
    """Delete an audience that no draft and no running experiment uses."""
    audience = find(Audience, audience_id)
    audience.remove()
    return audience


@api.post("/audiences/<path:audience_id>/test")
@api.arguments(schemas.TrialSchema())
@api.response(200, schemas.TrialResultSchema())
@requires("read")
def try_audience(body, audience_id):
    """Test the rules on a user, and show the truth of each rule."""
    return find(Audience, audience_id).tried(**body)


# ----------------------------------------------------------------------------
# Conversions
# ----------------------------------------------------------------------------


@api.post("/experiments/<id>/conversions")
@api.arguments(EVENT)
@api.response(201, RECEIPT)
@api.alt_response(200, schema=RECEIPT, description="A duplicate")
@api.alt_response(409, "CONFLICT")
@requires("assign")
def convert(body, id):
    """Report a conversion: 201 if it is counted, 200 if it is a duplicate."""
    booked = conversions.record(find(Experiment, id), [conversions.Event(**body)])
    (receipt,) = metrics.converted(booked)
    conversions.refuse_rejected(receipt)
    return receipt, 201 if receipt.status == conversions.ACCEPTED else 200


@api.post("/experiments/<id>/conversions/batch")
@api.arguments(schemas.ConversionsSchema())
@api.response(200, RECEIPTS)
@api.alt_response(409, "CONFLICT")
@requires("assign")
def convert_batch(body, id):
    """Report up to 10,000 conversions in one transaction; good rows are kept."""
    events = [conversions.Event(**row) for row in body["conversions"]]
    receipts = conversions.record(find(Experiment, id), events)
    return streamed_list(receipt_texts(metrics.converted(receipts)))


@api.post("/events")
@api.arguments(EVENT)
@api.response(200, RECEIPTS)
@requires("assign")
def record_event(body):
    """Report an event to every experiment of its user."""
    return metrics.converted(conversions.credit([conversions.Event(**body)])[0])


@api.post("/events/batch")
@api.arguments(schemas.EventsSchema())
@api.response(200, schemas.BookedSchema())
@requires("assign")
def record_events_batch(body):
    """Enrol users, and report up to 10,000 events to every experiment of theirs."""
    pairs = [(row.pop("experiment"), User(**row)) for row in body["enrollments"]]
    metrics.enrolled(enrolment.enrol_pairs(pairs))
    events = [conversions.Event(**row) for row in body["events"]]
    booked = [metrics.converted(receipts) for receipts in conversions.credit(events)]
    return streamed_list(receipt_lists(booked))


# ----------------------------------------------------------------------------
# Results
# ----------------------------------------------------------------------------


@api.get("/experiments/<id>/results")
@api.arguments(schemas.ResultsQuery(), location="query")
@api.response(200, figures.RESULTS)
@api.also_as(tables.FORMS)
@requires("read")
@costly(schemas.is_replay)
def get_results(query, id):
    """Return the counts, a row a metric, and what became of all events received."""
    experiment, metric = find(Experiment, id), query["metric"]
    if schemas.is_replay(query):
        counts = replayed(experiment, query["as_of"])
    else:
        counts = counted(experiment)
    shown = figures.daily_results if query["granularity"] else figures.results
    return readable(experiment.name, shown(counts, metric), tables.counts)


@api.post("/experiments/<id>/compute-results")
@api.arguments(schemas.AnalysisSchema())
@api.response(200, figures.COMPUTED)
@api.also_as(tables.FORMS)
@requires("read")
@costly(schemas.is_replay)
def compute_results(body, id):
    """Return what the counts say, with a verdict that daily looks cannot fool."""
    return computed(find(Experiment, id), **body)


@api.get("/experiments/<id>/compute-results")
@api.arguments(schemas.AnalysisQuery(), location="query")
@api.response(200, figures.COMPUTED)
@api.also_as(tables.FORMS)
@requires("read")
@costly(schemas.is_replay)
def get_computed_results(query, id):
    """Return what the counts say, as the POST does."""
    return computed(find(Experiment, id), **query)


def computed(experiment: Experiment, **asked: Any) -> figures.Computed | Response:
    """Return the analysis that was asked for, in the form that is accepted."""
    return readable(experiment.name, look(experiment, **asked), tables.analysis)


@api.get("/experiments/<id>/export")
@api.arguments(schemas.ExportQuery(), location="query")
@api.response(200, {"type": "string"}, content_type="text/csv")
@api.alt_response(200, schema={"type": "string"}, content_type="application/x-ndjson")
@requires("read")
@costly()
def export_experiment(query, id):
    """Stream a row for each conversion, and for each participant without any."""
    experiment = find(Experiment, id)
    content_type, written = EXPORTS[query["format"]]
    name = f"{experiment.id}.{query['format']}"
    columns = export.columns(bool(experiment.own_sums))
    lines = engine.streamed(written(rows.exported(experiment), columns))
    return Response(
        ("".join(some) for some in peewee.chunked(lines, 500)),
        content_type=content_type,
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


EXPORTS = {
    "csv": ("text/csv; charset=utf-8", export.csv_lines),
    "ndjson": ("application/x-ndjson", export.json_lines),
}


@api.get("/experiments/<id>/history")
@api.arguments(PAGE, location="query")
@api.response(200, Listed(schemas.ChangeSchema()))
@requires("read")
def list_history(query, id):
    """List what was done to an experiment, by whom and when, newest first."""
    experiment = find(Experiment, id)
    lifecycle.notice_end(experiment)
    return page(Change.page(experiment, **query))


@api.post("/sample-size")
@api.arguments(schemas.SizeSchema())
@api.response(200, planning.SIZES)
@requires("read")
def plan_sample_size(body):
    """Return the users and days that a plan needs, for one look and for any look."""
    return planning.sample_sizes(**body)


@api.post("/sample-size/mean")
@api.arguments(schemas.MeanSizeSchema())
@api.response(200, planning.MEAN_SIZES)
@requires("read")
def plan_mean_sample_size(body):
    """Return the users and days that a plan for a mean needs."""
    return planning.mean_sample_sizes(**body)


@api.post("/experiments/<id>/simulate")
@api.arguments(schemas.RehearsalSchema())
@api.response(200, planning.SIMULATED)
@api.alt_response(409, "CONFLICT")
@requires("write")
@costly()
def simulate(body, id):
    """Rehearse a draft: false alarms and power, by the production hash and test."""
    experiment = find(Experiment, id)
    lifecycle.refuse_unless_draft(experiment)
    return planning.simulated(experiment, **body)


# ----------------------------------------------------------------------------
# The application
# ----------------------------------------------------------------------------


def alive() -> dict[str, str]:
    """Answer while the process lives."""
    return {"status": "ok"}


def ready() -> dict[str, str]:
    """Answer if the database can be read and written; else 503."""
    schema.verify()
    schema.probe()
    return {"status": "ok"}


def measured() -> Response:
    """Return the metrics for Prometheus."""
    content = metrics.exposition(current_app.extensions["database"])
    return Response(content, content_type=metrics.CONTENT_TYPE)


FROM_BROWSERS = (
    r"/(ofrep|api/(definitions|events|users/.+/assignments"
    r"|experiments/[^/]+/(assignments|conversions))).*"
)


def create_app(config: dict[str, Any] | None = None) -> Flask:
    """Return the service; *config* takes precedence over the environment.

    Opens no database. With TESTING, a short secret is accepted, and the tables of an
    empty database are created at once.
    """
    values = settings.read(config or {}, ROOT)
    app = Flask(__name__, instance_path=values["INSTANCE"], static_folder=None)
    app.json = ExactJson(app)
    app.config.update(PROPAGATE_EXCEPTIONS=False)
    app.config.update(values)
    write_lines(is_silent=app.testing)
    _attach(app, factory.database_at(app.config["DATABASE_URL"]))
    if app.testing:
        schema.create(app.extensions["database"], TABLES)
    auth.install(app)
    metrics.begin()
    app.extensions["abacus_slots"] = Slots()
    app.url_map.converters["path"] = Opaque
    app.url_map.merge_slashes = False

    app.before_request(note_arrival)
    app.after_request(note_departure)
    app.teardown_request(note_end)
    for kind, answer in ANSWERS.items():
        app.register_error_handler(kind, answer)
    document(app, (api, ofrep.flags), VERSION)
    pages.install(app)
    app.register_blueprint(cli.commands)
    app.add_url_rule("/healthz", view_func=alive)
    app.add_url_rule("/readyz", view_func=ready)
    app.add_url_rule("/metrics", view_func=measured)
    app.add_url_rule("/", "home", lambda: redirect("/docs/"))
    # Werkzeug would name the host and the scheme that it sees, which the proxy sends.
    app.add_url_rule("/docs", "docs", lambda: redirect("/docs/", 308))
    if app.config["CORS_ORIGINS"]:
        CORS(app, resources=FROM_BROWSERS, expose_headers=["ETag", "Retry-After"])
    app.wsgi_app = Shortcut(app)  # type: ignore[method-assign]
    return app


def _attach(app: Flask, database: engine.Engine) -> None:
    """Give the app its database: inside the app's contexts, the tables use it."""
    app.extensions["database"] = database
    appcontext_pushed.connect(_enter_database, app)
    appcontext_popped.connect(_leave_database, app)


def _enter_database(app: Flask) -> None:
    engine.enter(app.extensions["database"])


def _leave_database(app: Flask) -> None:
    engine.leave()
