"""The pages for people: server-rendered, without scripts, behind a sign-in."""

from __future__ import annotations

import mimetypes
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from flask import Blueprint, Flask, Response, make_response, redirect, request
from marshmallow import Schema
from werkzeug.exceptions import BadRequest, NotFound

import lifecycle
import listing
import schemas
from ledger.counts import Counts, counted, replayed
from looks import LEVEL, look_at
from models import CONCLUSIONS, Audience, Change, Experiment
from storage import engine
from storage.columns import utcnow
from storage.paging import Page
from targeting.decision import STATUSES
from views import audiences, moves, planner, screens
from views.course import points_of
from views.figures import Computed, with_days
from web import auth, html, links
from web.auth import requires
from web.blueprint import read_body, refuse_undecodable_path, refuse_unknown_query
from web.slots import costly

FILES = {
    file.name: file.read_bytes()
    for file in (Path(__file__).parent / "static").glob("abacus.*")
}
"""The stylesheet and the icon."""

LARGEST_FORM = 16 * 1024

LARGEST_MOVE = 160 * 1024  # a note of 10,000 characters, each percent-encoded

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
    auth.authenticate(html.credential())
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
    return signed_in(pasted_token(), html.where_to_return(), html.scheme())


@door.get("/sign-in/<link>")
@requires("read")
def open_sign_in_link(link: str) -> Response:
    """Sign in whoever opened a link by hand; ask whoever was led to it."""
    claims = links.opened(links.SIGN_IN, link)
    if html.is_opened_by_hand():
        return signed_in_by(claims)
    response = html.page("sign_in_link.html", link=link, subject=claims["sub"])
    response.headers["Referrer-Policy"] = "origin"  # without the path
    return response


@door.post("/sign-in/<link>")
@requires("read")
def sign_in_by_link(link: str) -> Response:
    """Sign in whoever was asked."""
    html.refuse_foreign_form()
    return signed_in_by(links.opened(links.SIGN_IN, link))


def signed_in_by(claims: dict[str, Any]) -> Response:
    """Sign the browser in with a new token, as the claims of a link say."""
    left = timedelta(seconds=claims["until"] - time.time())
    token = auth.new_token(claims["sub"], claims["scope"], left)
    # If only the proxy speaks https, the address of the link says so.
    scheme = "https" if "https" in (html.scheme(), claims["scheme"]) else "http"
    return signed_in(token, html.FIRST, scheme)


def signed_in(token: str, to: str, scheme: str) -> Response:
    """Verify a token, keep it in a cookie until it ends, and lead to a page."""
    auth.authenticate(f"Bearer {token}")
    if len(token) > LONGEST_TOKEN:
        raise BadRequest(
            f"A token of more than {LONGEST_TOKEN:,} characters fits in no cookie."
        )
    _, ends = auth.claims(token)
    response = make_response(redirect(to, HTTPStatus.SEE_OTHER))
    response.set_cookie(
        html.COOKIE,
        token,
        max_age=min(max(ends - int(time.time()), 0), LONGEST_COOKIE),
        path=html.PREFIX,
        secure=scheme == "https",
        httponly=True,
        samesite="Strict",
    )
    return response


def pasted_token() -> str:
    """Return the token of the form, without what is often copied with it."""
    token = form(LARGEST_FORM).get("token", "").strip()
    return token.removeprefix("Bearer ").strip()


def form(largest: int) -> dict[str, str]:
    """Return the fields of the form that are filled in; 413 above *largest* bytes."""
    text = read_body(largest).decode(errors="replace")
    # A browser sends each line's end as two characters.
    return {name: value.replace("\r\n", "\n") for name, value in parse_qsl(text)}


@door.post("/sign-out")
def sign_out() -> Response:
    """Forget the token of this browser."""
    html.refuse_foreign_form()
    response = make_response(redirect(html.SIGN_IN, HTTPStatus.SEE_OTHER))
    response.delete_cookie(html.COOKIE, path=html.PREFIX)
    return response


@door.get("/abacus.css", defaults={"name": "abacus.css"})
@door.get("/abacus.svg", defaults={"name": "abacus.svg"})
def file(name: str) -> Response:
    """Return the stylesheet or the icon, unless the browser has it."""
    response = Response(FILES[name], mimetype=mimetypes.guess_type(name)[0])
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
    """Show one experiment: what its figures say, and the figures."""
    experiment = named(id)
    return shown(experiment, screen_of(experiment))


@pages.get("/experiments/<id>/days")
@requires("read")
@costly()
def show_days(id: str) -> Response:
    """Show one experiment with its days, however many there are."""
    experiment = named(id)
    counts = replayed(experiment)
    computed = with_days(look_at(counts, None, LEVEL), counts, LEVEL)
    return shown(experiment, screen_with(computed, counts))


def named(id: str) -> Experiment:
    """Return the experiment with this id or key, or answer 404."""
    experiment = Experiment.named(id)
    if experiment is None:
        raise NotFound(f"There is no experiment {id!r}.")
    return experiment


def screen_of(experiment: Experiment) -> screens.Screen:
    """Return what is shown of an experiment; it is a look, as one by the API.

    Its days need every row, and an interval each, so they are here if there are few.
    """
    counts = counted(experiment)
    if counts.rows <= FEW_ROWS:
        counts = replayed(experiment)
    computed = look_at(counts, None, LEVEL)
    if 0 < points_of(counts) <= FEW_POINTS:
        computed = with_days(computed, counts, LEVEL)
    return screen_with(computed, counts)


def screen_with(computed: Computed, counts: Counts) -> screens.Screen:
    """Return what is shown of an experiment with these figures."""
    history = Change.page(counts.experiment, Page(1, ENTRIES))
    return screens.experiment(computed, counts, history)


def shown(experiment: Experiment, screen: screens.Screen) -> Response:
    """Return the page of an experiment, with what its reader may do."""
    may_act = auth.has_scope("write")
    may_share = may_act and links.are_possible()
    return html.page(
        "experiment.html",
        screen=screen,
        moves=moves.possible(experiment) if may_act else [],
        most_days=schemas.MOST_DAYS,
        share=html.form_secret(f"share {experiment.id}") if may_share else None,
    )


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


# ----------------------------------------------------------------------------
# Moves
# ----------------------------------------------------------------------------

ACTS: dict[str, tuple[Callable[..., None], Schema]] = {
    "start": (lifecycle.start, schemas.Nothing()),
    "stop": (lifecycle.stop, schemas.Nothing()),
    "resume": (lifecycle.resume, schemas.Nothing()),
    "complete": (lifecycle.complete, schemas.ConclusionSchema()),
    "archive": (lifecycle.archive, schemas.Nothing()),
    "unarchive": (lifecycle.unarchive, schemas.Nothing()),
}
"""What does each move, as in the API, and what it reads."""


@requires("write")
def ask_to_move(id: str, move: str) -> Response:
    """Say what a move will do, before it is made."""
    experiment = named(id)
    lifecycle.refuse_impossible(experiment, move)
    return html.page(
        "move.html",
        experiment=experiment,
        move=move,
        effects=moves.effects(experiment, move),
        warnings=moves.warnings(experiment, move),
        conclusions=CONCLUSIONS,
        secret=html.form_secret(f"{move} {experiment.id}"),
    )


@requires("write")
def make_move(id: str, move: str) -> Response:
    """Make a move, and lead back to the experiment."""
    experiment = named(id)
    fields = form(LARGEST_MOVE)
    html.refuse_forged_form(f"{move} {experiment.id}", fields.pop("secret", ""))
    act, schema = ACTS[move]
    act(experiment, by=auth.subject(), **schema.load(fields))
    where = f"{html.PREFIX}/experiments/{experiment.id}"
    return make_response(redirect(where, HTTPStatus.SEE_OTHER))


for move in ACTS:
    path, told = f"/experiments/<id>/{move}", {"move": move}
    pages.add_url_rule(path, f"ask_to_{move}", ask_to_move, defaults=told)
    pages.add_url_rule(
        path, f"{move}_experiment", make_move, defaults=told, methods=["POST"]
    )


# ----------------------------------------------------------------------------
# Shared results
# ----------------------------------------------------------------------------

SHARE = schemas.ShareSchema()


@pages.post("/experiments/<id>/share")
@requires("write")
def share(id: str) -> Response:
    """Make a link that shows the results of one experiment without a sign-in."""
    experiment = named(id)
    if not links.are_possible():
        raise NotFound("No link can be signed here, because tokens are made elsewhere.")
    fields = form(LARGEST_FORM)
    html.refuse_forged_form(f"share {experiment.id}", fields.pop("secret", ""))
    lasts = timedelta(days=SHARE.load(fields)["days"])
    link = links.signed(links.SHARE, lasts, sub=experiment.id)
    address = f"{html.scheme()}://{request.host}{html.PREFIX}/shared/{link}"
    ends = utcnow() + lasts
    return html.page("link.html", experiment=experiment, address=address, ends=ends)


@door.get("/shared/<link>")
def show_shared(link: str) -> Response:
    """Show the results of the experiment that a link shares, and nobody's name."""
    claims = links.opened(links.SHARE, link)
    engine.connect()
    screen = screen_of(named(claims["sub"]))
    ends = datetime.fromtimestamp(claims["exp"], timezone.utc)
    response = html.page("shared.html", screen=screen, ends=ends)
    response.headers["Referrer-Policy"] = "no-referrer"
    return response
