"""The pages for people: server-rendered, without scripts, behind a sign-in."""

from __future__ import annotations

import time
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qsl

from flask import Blueprint, Flask, Response, make_response, redirect, request
from werkzeug.exceptions import BadRequest, NotFound

import listing
import schemas
from ledger.counts import Counts, counted, replayed
from looks import LEVEL, look_at
from models import Audience, Change, Experiment
from storage import engine
from storage.paging import Page
from targeting.decision import STATUSES
from views import audiences, planner, screens
from views.course import points_of
from views.figures import Computed, with_days
from web import auth, html
from web.auth import requires
from web.blueprint import read_body, refuse_undecodable_path, refuse_unknown_query
from web.slots import costly

STYLE = (Path(__file__).parent / "static" / "abacus.css").read_bytes()

LARGEST_FORM = 16 * 1024

LONGEST_TOKEN = 3_800  # browsers ignore a cookie of more than 4,096 bytes

LONGEST_COOKIE = 400 * 24 * 3600  # seconds; browsers keep none for longer

ENTRIES = 10  # of the history, on the page of an experiment

# What the page of an experiment does without asking, in about 0.3 seconds at most.
FEW_ROWS = 5_000  # users and events, which are read and counted day by day
FEW_POINTS = 50  # intervals

QUERY = schemas.ExperimentsQuery()

AUDIENCES = schemas.AudiencesQuery()

# What a page must be signed in for, and what leads there. Two blueprints, so that a
# new page is behind the sign-in unless somebody moves it out.
pages = Blueprint("pages", __name__, url_prefix=html.PREFIX)
door = Blueprint("door", __name__, url_prefix=html.PREFIX)


def install(app: Flask) -> None:
    """Add the pages to the app."""
    app.jinja_env.filters.update(screens.FILTERS)
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.register_blueprint(door)
    app.register_blueprint(pages)


# ----------------------------------------------------------------------------
# Sign-in
# ----------------------------------------------------------------------------


@pages.before_request
def guard() -> None:
    """Verify the token of the header, or else of the cookie; open the database.

    The API never reads the cookie, which browsers send to the pages only.
    """
    cookie = f"Bearer {request.cookies.get(html.COOKIE, '')}"
    auth.authenticate(request.headers.get("Authorization", cookie))
    refuse_undecodable_path()
    engine.connect()


@door.get("/sign-in")
def sign_in_page() -> Response:
    """Ask for a token."""
    return html.sign_in_page()


@door.post("/sign-in")
@requires("read")
def sign_in() -> Response:
    """Verify a token as the API does, and keep it in a cookie until it ends."""
    html.refuse_foreign_form()
    token = pasted_token()
    auth.authenticate(f"Bearer {token}")
    if len(token) > LONGEST_TOKEN:
        raise BadRequest(
            f"A token of more than {LONGEST_TOKEN:,} characters fits in no cookie."
        )
    _, ends = auth.claims(token)
    response = make_response(redirect(html.where_to_return(), HTTPStatus.SEE_OTHER))
    response.set_cookie(
        html.COOKIE,
        token,
        max_age=min(max(ends - int(time.time()), 0), LONGEST_COOKIE),
        path=html.PREFIX,
        secure=html.is_secure(),
        httponly=True,
        samesite="Strict",
    )
    return response


def pasted_token() -> str:
    """Return the token of the form, without what is often copied with it."""
    text = read_body(LARGEST_FORM).decode(errors="replace")
    token = dict(parse_qsl(text)).get("token", "").strip()
    return token.removeprefix("Bearer ").strip()


@door.post("/sign-out")
def sign_out() -> Response:
    """Forget the token of this browser."""
    html.refuse_foreign_form()
    response = make_response(redirect(html.SIGN_IN, HTTPStatus.SEE_OTHER))
    response.delete_cookie(html.COOKIE, path=html.PREFIX)
    return response


@door.get("/abacus.css")
def stylesheet() -> Response:
    """Return the one stylesheet, unless the browser has it."""
    response = Response(STYLE, mimetype="text/css")
    response.headers["Cache-Control"] = "no-cache"  # ask each time whether it holds
    response.add_etag()
    return response.make_conditional(request)  # type: ignore[return-value]


# ----------------------------------------------------------------------------
# Pages
# ----------------------------------------------------------------------------


@pages.get("")
@requires("read")
def start() -> Response:
    """Lead to the first page."""
    return make_response(redirect(html.FIRST))


def filled_in() -> dict[str, str]:
    """Return the query; a form sends what is not filled in as an empty text."""
    return {name: value for name, value in request.args.items() if value}


@pages.get("/")
@requires("read")
def list_experiments() -> Response:
    """List the experiments, newest first, by the filters of the API."""
    refuse_unknown_query({"query"})
    asked = filled_in()
    query = QUERY.load(asked)
    shown = screens.listed(listing.experiments_page(**query), asked)
    return html.page("experiments.html", screen=shown, asked=asked, statuses=STATUSES)


@pages.get("/experiments/<id>")
@requires("read")
def show_experiment(id: str) -> Response:
    """Show one experiment: what its figures say, and the figures.

    Its days need every row, and an interval each, so they are here if there are few.
    """
    counts = counted(find(id))
    if counts.rows <= FEW_ROWS:
        counts = replayed(counts.experiment)
    computed = look_at(counts, None, LEVEL)
    if 0 < points_of(counts) <= FEW_POINTS:
        computed = with_days(computed, counts, LEVEL)
    return shown(computed, counts)


@pages.get("/experiments/<id>/days")
@requires("read")
@costly()
def show_days(id: str) -> Response:
    """Show one experiment with its days, however many there are."""
    counts = replayed(find(id))
    computed = look_at(counts, None, LEVEL)
    return shown(with_days(computed, counts, LEVEL), counts)


def find(id: str) -> Experiment:
    """Return the experiment with this id or key, or answer 404."""
    experiment = Experiment.named(id)
    if experiment is None:
        raise NotFound(f"There is no experiment {id!r}.")
    return experiment


def shown(computed: Computed, counts: Counts) -> Response:
    """Return the page of an experiment."""
    history = Change.page(counts.experiment, Page(1, ENTRIES))
    screen = screens.experiment(computed, counts, history)
    return html.page("experiment.html", screen=screen)


@pages.get("/audiences")
@requires("read")
def list_audiences() -> Response:
    """List the audiences, newest first, by the search of the API."""
    refuse_unknown_query({"query"})
    asked = filled_in()
    found = Audience.page(**AUDIENCES.load(asked))
    screen = audiences.listed(found, asked)
    return html.page("audiences.html", screen=screen, asked=asked)


@pages.get("/audiences/<path:audience_id>")
@requires("read")
def show_audience(audience_id: str) -> Response:
    """Show an audience, and whether somebody is in it."""
    refuse_unknown_query({"query"})
    audience = Audience.get_or_none(id=audience_id)
    if audience is None:
        raise NotFound(f"There is no audience {audience_id!r}.")
    screen = audiences.audience(audience, filled_in())
    return html.page("audience.html", 400 if screen.problems else 200, screen=screen)


@pages.get("/planner")
@requires("read")
def show_planner() -> Response:
    """Say how many users and days a plan needs; the address holds the plan."""
    refuse_unknown_query({"query"})
    screen = planner.screen(filled_in())
    is_wrong = screen.others or any(one.problem for one in screen.fields)
    values = {"screen": screen, "credentials": screens.CREDENTIALS}
    return html.page("planner.html", 400 if is_wrong else 200, **values)
