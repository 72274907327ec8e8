"""The short way to the answers that a page view or a purchase waits for.

Enrolling users and booking a conversion make nearly all requests of a product. Flask,
webargs and marshmallow take several times as long as the work itself. This door is
before Flask: it knows the plain form of these requests, and hands on everything else,
untouched: any other method, header, token, body or state, and every error. So each rule
and each message exists once, in the handlers of `app`, which are the reference. The
shapes are theirs too: a body is read by the fields of their schemas (a batch of plain
ids by one check of them all), and an answer is what their schema wrote for the first
user, with the next user's values in it. `tests/test_shortcut.py` compares the two ways.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from decimal import Decimal
from io import BytesIO
from typing import Any, NamedTuple

from flask import Flask
from marshmallow import ValidationError

import schemas
from ledger import single
from ledger.conversions import Event
from storage import engine, traffic
from targeting.decision import NEW, User
from views.answers import decision_text, decision_texts, receipt_text
from views.flags import experiment_of, flag_text
from web import metrics
from web.auth import Tokens
from web.blueprint import pieces
from web.errors import FAILURE
from web.fields import Reader, are_plain_ids, is_plain_id
from web.flags import PREFIX, TargetingKeyMissing, flag_user
from web.json import InvalidJson, loads, plain_texts
from web.logging import HEADERS, STARTED, note_answer

Environ = dict[str, Any]
Answer = Iterable[bytes]

# Ids and keys of plain letters, which a URL can spell in one way only.
ROUTE = re.compile(
    r"/api/(experiments|users)/([\w.+@-]{1,255})/(assignments(?:/batch)?|conversions)",
    re.ASCII,
)

FLAG_ROUTE = re.compile(rf"{PREFIX}/v1/evaluate/flags/([\w.-]{{1,255}})", re.ASCII)

# OpenFeature's clients in JavaScript name the encoding of their JSON.
CONTENT_TYPES = {"application/json", "application/json; charset=utf-8"}

LARGEST = 16 * 1024  # bytes of a body; a larger one is worth the whole way

LARGEST_BATCH = 512 * 1024  # for 10,000 users with ids of 36 characters

COMMON = [("Content-Type", "application/json"), *HEADERS.items()]


USER, USERS, EVENT = schemas.UserSchema(), schemas.UsersSchema(), schemas.EventSchema()
USER_ID = str(USER.fields["user_id"].data_key)

ID = r'"([\w.+@:-]{1,255})"'

# What most callers send: one plain id, and nothing else.
ONE_USER = re.compile(rf'\{{"{USER_ID}": ?{ID}\}}'.encode())

NUMBER = r"((?:0|[1-9]\d{0,10})(?:\.\d{1,9})?)"  # far within the bounds of a value

# The fields of an event without a time of its own, in any order.
PLAIN_EVENT = (
    ("user_id", ID),
    ("metric", ID),
    ("value", NUMBER),
    ("idempotency_key", ID),
)

FIELDS = "|".join(
    rf'"{EVENT.fields[name].data_key}": ?{form}' for name, form in PLAIN_EVENT
)

ONE_EVENT = re.compile(rf'\{{(?:(?:{FIELDS})(?:, ?(?=")|(?=\}})))+\}}'.encode())

read_user = Reader(USER)
read_experiments = Reader(schemas.ExperimentsOfUserSchema())
read_event = Reader(EVENT)


class Shortcut:
    """The service as a WSGI application, with the short way before the long one."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._tokens: Tokens = app.extensions["abacus_tokens"]
        self.long_way = app.wsgi_app

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Answer:
        if environ["REQUEST_METHOD"] == "POST":
            way, name = way_of(environ["PATH_INFO"])
            if way and self._is_plain(environ, way.largest):
                answer = self._short_way(environ, way, name)
                if answer is not None:
                    status, headers, content = answer
                    start_response(status, headers)
                    return content
        return self.long_way(environ, start_response)

    def _is_plain(self, environ: Environ, largest: int) -> bool:
        """Tell whether the headers are those of a plain request with a known token."""
        get = environ.get
        length = get("CONTENT_LENGTH", "")
        if (
            get("CONTENT_TYPE") not in CONTENT_TYPES
            or get("QUERY_STRING")
            or "HTTP_CONTENT_ENCODING" in environ
            or "HTTP_ORIGIN" in environ
            or "HTTP_TRANSFER_ENCODING" in environ
            or not (length.isdecimal() and len(length) < 8)
            or not 0 < int(length) <= largest
        ):
            return False
        claims = self._tokens.get(get("HTTP_AUTHORIZATION", ""))
        if claims is None:
            return False
        return claims.scopes is None or "assign" in claims.scopes

    def _short_way(
        self, environ: Environ, way: Way, name: str
    ) -> tuple[str, list[tuple[str, str]], Answer] | None:
        started, answer = time.perf_counter(), None
        length, body = int(environ["CONTENT_LENGTH"]), b""
        traffic.traffic.enter()
        engine.enter(self._app.extensions["database"])
        try:
            with suppress(Exception):  # each server raises its own if a client vanishes
                body = environ["wsgi.input"].read(length)
            if len(body) == length:
                engine.connect()
                answer = way.answer(name, body)
        except (ValidationError, InvalidJson, TargetingKeyMissing):
            pass  # the long way words it
        except Exception as error:  # whatever it is, the long way answers it
            environ[FAILURE] = error
        finally:
            engine.leave()
            traffic.traffic.leave()
        if answer is None:
            environ[STARTED] = started
            environ["wsgi.input"] = BytesIO(body)
            return None
        status, data = answer
        request_id = secrets.token_hex(8)
        headers = [*COMMON, ("X-Request-ID", request_id)]
        content: Answer = map(str.encode, pieces(data))
        if isinstance(data, str):
            whole = (data if way.is_bare else f'{{"data": {data}}}').encode()
            headers.append(("Content-Length", str(len(whole))))
            content = [whole]
        note_answer(request_id, started, "POST", way.route, status)
        return STATUSES[status], headers, content


STATUSES = {200: "200 OK", 201: "201 CREATED"}

Short = tuple[int, str | Iterable[str]] | None
"""A status and the JSON of the data, of each row if it is a list to be streamed.

None if the request is not simple.
"""


def enrol(name: str, body: bytes) -> Short:
    """Enrol one user in the experiment of this name."""
    user_id = plain_user_id(body)
    user = User(user_id) if user_id else User(**read_user(loads(body)))
    decided = single.enrol([name], user)
    if decided is None:
        return None
    ((known, decision),) = decided
    metrics.enrolled([decision])
    return 201 if decision.reason == NEW else 200, decision_text(
        decision, known.derived
    )


def plain_user_id(body: bytes) -> str | None:
    """Return the id of a body with nothing else, if it is plain and `Id` takes it."""
    found = ONE_USER.fullmatch(body)
    user_id = found and found[1].decode()
    return user_id if is_plain_id(user_id) else None


def enrol_batch(name: str, body: bytes) -> Short:
    """Enrol users without attributes in the experiment of this name."""
    user_ids = plain_texts(body, USERS.rows, USER_ID)
    if user_ids is None or not are_plain_ids(user_ids):
        return None
    decided = single.enrol_each(name, user_ids)
    if decided is None:
        return None
    return 200, decision_texts(metrics.enrolled(decided))


def enrol_in_experiments(user_id: str, body: bytes) -> Short:
    """Enrol the user in the experiments that the body names."""
    read = read_experiments(loads(body))
    user = User(USER.fields["user_id"].deserialize(user_id), read["attributes"])
    decided = single.enrol(read["experiments"], user)
    if decided is None:
        return None
    metrics.enrolled([decision for _, decision in decided])
    texts = [decision_text(decision, known.derived) for known, decision in decided]
    return 200, f"[{', '.join(texts)}]"


def convert(name: str, body: bytes) -> Short:
    """Book an event in the experiment of this name."""
    booked = single.book(name, plain_event(body) or Event(**read_event(loads(body))))
    if booked is None:
        return None
    known, receipt = booked
    metrics.converted([receipt])
    return 201, receipt_text(receipt, known.derived)


def plain_event(body: bytes) -> Event | None:
    """Return the event of a body whose fields are plain, each at most once.

    Its texts contain no quotes, so the number of quotes shows that none is repeated.
    """
    found = ONE_EVENT.fullmatch(body)
    if found is None:
        return None
    user_id, metric, value, key = [
        text.decode() if text else None for text in found.groups()
    ]
    texts = [text for text in (user_id, metric, key) if text]
    quotes = 4 * len(texts) + (2 if value else 0)
    if not user_id or body.count(b'"') != quotes or not all(map(is_plain_id, texts)):
        return None
    return Event(user_id, metric, Decimal(value) if value else None, None, key)


def evaluate_flag(key: str, body: bytes) -> Short:
    """Enrol one user in the experiment of the flag of this key."""
    decided = single.enrol([experiment_of(key)], flag_user(loads(body)))
    if decided is None:
        return None
    ((known, decision),) = decided
    metrics.enrolled([decision])
    return 200, flag_text(key, decision, known.derived)


class Way(NamedTuple):
    """One kind of request: what answers it, and its route as the metrics name it."""

    answer: Callable[[str, bytes], Short]
    route: str
    largest: int = LARGEST
    """The most bytes of a body."""
    is_bare: bool = False
    """Whether the answer is sent without `{"data": ...}` around it."""


WAYS = {
    ("experiments", "assignments"): Way(enrol, "/api/experiments/<id>/assignments"),
    ("experiments", "assignments/batch"): Way(
        enrol_batch, "/api/experiments/<id>/assignments/batch", LARGEST_BATCH
    ),
    ("experiments", "conversions"): Way(convert, "/api/experiments/<id>/conversions"),
    ("users", "assignments"): Way(
        enrol_in_experiments, "/api/users/<path:user_id>/assignments"
    ),
}

FLAG_WAY = Way(evaluate_flag, f"{PREFIX}/v1/evaluate/flags/<path:key>", is_bare=True)


def way_of(path: str) -> tuple[Way | None, str]:
    """Return the way of a path, if it has one, and the name in it."""
    if match := ROUTE.fullmatch(path):
        return WAYS.get((match[1], match[3])), match[2]
    if match := FLAG_ROUTE.fullmatch(path):
        return FLAG_WAY, match[1]
    return None, ""
