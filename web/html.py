"""The pages' own plumbing: their headers, their cookie, and how they refuse."""

from __future__ import annotations

import hmac
import re
from hashlib import sha256
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from flask import Response, g, redirect, render_template, request
from werkzeug.exceptions import Forbidden

PREFIX = "/ui"
SIGN_IN = f"{PREFIX}/sign-in"
FIRST = f"{PREFIX}/"

COOKIE = "abacus_token"

# Without the token and without a host: a path of these pages, as a browser writes it.
# No step is of dots alone, with which a browser would leave them.
DOTS = r"(\.|%2[eE]){1,2}(/|\?|$)"
OUR_PATH = re.compile(rf"{PREFIX}(/(?!{DOTS})[\w\-.~%]*)+(\?[\w\-.~%=&+]*)?", re.ASCII)

LONGEST_RETURN = 1_000

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
        "frame-ancestors 'none'; base-uri 'none'"
    ),
    # With no-referrer, browsers send `Origin: null` with our own forms.
    "Referrer-Policy": "same-origin",
}

TITLES = {
    400: "The request was not understood",
    401: "Sign in first",
    403: "This is not allowed",
    404: "There is nothing here",
    405: "This page does not take that",
    409: "This cannot be done now",
    410: "This has ended",
    413: "That is too much",
    429: "Too many requests",
    500: "Something went wrong",
    503: "Not available now",
}


def is_page(path: str) -> bool:
    """Tell whether whoever requests this path reads pages."""
    return path == PREFIX or path.startswith(f"{PREFIX}/")


def page(template: str, status: int = 200, **values: Any) -> Response:
    """Return a page, with headers that let it load its stylesheet and nothing else."""
    return Response(
        render_template(template, **values),
        status,
        headers=HEADERS,
        content_type="text/html; charset=utf-8",
    )


def failure(status: int, message: str) -> Response:
    """Return the page of an error; without a valid token, lead to the sign-in page."""
    if request.path == SIGN_IN and status in (400, 401, 403, 413):
        return sign_in_page(status, message)
    if status == HTTPStatus.UNAUTHORIZED:
        where = quote(_here(), safe="/")
        response = redirect(f"{SIGN_IN}?next={where}", HTTPStatus.SEE_OTHER)
        # The strict cookie of a visitor who follows a link of another site is not sent,
        # and must not be removed.
        if COOKIE in request.cookies:
            response.delete_cookie(COOKIE, path=PREFIX)
        return response  # type: ignore[return-value]  # werkzeug names its base class
    title = TITLES.get(status, HTTPStatus(status).phrase)
    request_id = g.get("request_id", "")
    values = {"title": title, "message": message, "request_id": request_id}
    # What cannot be done to an experiment now leaves its reader with the experiment.
    id = (request.view_args or {}).get("id") if status == HTTPStatus.CONFLICT else None
    return page("error.html", status, number=status, experiment=id, **values)


def sign_in_page(status: int = 200, problem: str = "") -> Response:
    """Return the page that asks for a token."""
    values = {
        "problem": problem,
        "next": where_to_return(),
        # The strict cookie is not sent with a link of another site.
        "comes_from_elsewhere": request.args.get("next") is not None,
        "request_id": g.get("request_id", ""),
    }
    return page("sign_in.html", status, **values)


def where_to_return() -> str:
    """Return the page to show after the sign-in, which is always one of ours."""
    wanted = request.args.get("next", "")
    return wanted if OUR_PATH.fullmatch(wanted) else FIRST


def _here() -> str:
    """Return the path of this request, or of the first page if it is not a page's."""
    path = quote(request.path, safe="/")
    query = request.query_string.decode("ascii", "ignore")
    here = f"{path}?{query}" if query else path
    is_short = len(here) <= LONGEST_RETURN
    return here if request.method in ("GET", "HEAD") and is_short else FIRST


def refuse_foreign_form() -> None:
    """Answer 403 to a form that another site has sent.

    A browser says where a form comes from, and no page can change what it says. So no
    secret has to be put into each form and kept for each session, and the sign-in,
    before which there is no session, is protected too. `Sec-Fetch-Site` counts if it
    is there. Browsers leave it out on plain HTTP (but for localhost), and then `Origin`
    has to name our host, which the proxy passes on. Its scheme is not compared, because
    only the proxy knows ours. A request with neither is not from a browser of this
    decade, and is refused. The cookie is `SameSite=Strict` besides.
    """
    site = request.headers.get("Sec-Fetch-Site")
    origin = request.headers.get("Origin", "").partition("://")[2]
    is_ours = site == "same-origin" if site else bool(origin) and origin == request.host
    if not is_ours:
        raise Forbidden("This form was not sent by a page of Abacus.")


def credential() -> str:
    """Return the header that signs this request in; a browser has it in the cookie."""
    cookie = f"Bearer {request.cookies.get(COOKIE, '')}"
    return request.headers.get("Authorization", cookie)


def form_secret(act: str) -> str:
    """Return what a form must send back to do this act, in this session alone.

    It is derived from the token that is signed in, which no other site knows. So
    nothing is stored, and no key of the service is needed, which has none if tokens are
    made elsewhere.
    """
    return hmac.new(credential().encode(), act.encode(), sha256).hexdigest()


def refuse_forged_form(act: str, secret: str) -> None:
    """Answer 403 to a form that was not made for this act, or in another session."""
    refuse_foreign_form()
    if not hmac.compare_digest(secret.encode(), form_secret(act).encode()):
        raise Forbidden(
            "This form is not of your present sign-in. Open its page again, and send "
            "it from there."
        )


def is_opened_by_hand() -> bool:
    """Tell whether a person entered this address, and no page led to it.

    So a browser says of what is typed, pasted, bookmarked or opened from another
    program, and no page can make it say so. Older browsers, and all on plain HTTP (but
    for localhost), say nothing.
    """
    site = request.headers.get("Sec-Fetch-Site")
    mode = request.headers.get("Sec-Fetch-Mode")
    return request.method == "GET" and (site, mode) == ("none", "navigate")


def scheme() -> str:
    """Return the scheme that the browser uses, also if only the proxy speaks https."""
    origin = request.headers.get("Origin", "")
    return "https" if request.is_secure or origin.startswith("https://") else "http"
