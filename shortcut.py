"""The short way to the answers that a page view or a purchase waits for.

Enrolling a user and booking a conversion make nearly all requests of a product. Flask,
webargs and marshmallow take several times as long as the work itself. This door is
before Flask: it knows the plain form of these requests, and hands on everything else,
untouched: any other method, header, token, body or state, and every error. So each rule
and each message exists once, in the handlers of `app`, which are the reference. The
shapes are theirs too: a body is read by the fields of their schemas, and an answer is
what their schema wrote for the first user, with the next user's values in it.
`tests/test_shortcut.py` compares the two ways.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from io import BytesIO
from json.encoder import encode_basestring
from typing import Any

from flask import Flask
from marshmallow import Schema, ValidationError
from peewee import PeeweeException

import schemas
from ledger import single
from ledger.conversions import Event, Receipt
from ledger.single import Known
from storage import engine, traffic
from storage.engine import NotReady
from targeting.decision import NEW, Decision, User
from web import metrics
from web.auth import Tokens
from web.json import InvalidJson, dumps, loads, moment
from web.logging import HEADERS, STARTED, note_answer

Environ = dict[str, Any]
Answer = Iterable[bytes]

FAILURE = "abacus.failure"  # in a request's environ: the error that it ended with

# An id or a key, and nothing that a URL may spell in two ways.
ROUTE = re.compile(r"/api/experiments/([\w.-]{1,255})/(assignments|conversions)", re.A)

LARGEST = 16 * 1024  # bytes of a body; a larger one is worth the whole way

COMMON = [("Content-Type", "application/json"), *HEADERS.items()]


class Reader:
    """Reads a body with the fields of a schema, as the schema would.

    It does for one flat object what Schema.load does for anything, and leaves every
    refusal to it.
    """

    def __init__(self, schema: Schema) -> None:
        self._fields = {
            str(field.data_key): (name, field) for name, field in schema.fields.items()
        }
        self._required = {
            name for name, field in schema.fields.items() if field.required
        }

    def __call__(self, body: bytes) -> dict[str, Any]:
        """Return the values by name; raise ValidationError if it refuses the body."""
        document = loads(body)
        if not isinstance(document, dict):
            raise ValidationError("It is no object.")
        values = {}
        for key, value in document.items():
            if key not in self._fields:
                raise ValidationError("Unknown field.")
            name, field = self._fields[key]
            values[name] = field.deserialize(value)
        if not self._required <= values.keys():
            raise ValidationError("A field is missing.")
        return values


DECISION = schemas.DecisionSchema()
RECEIPT = schemas.ReceiptSchema()

read_user = Reader(schemas.UserSchema())
read_event = Reader(schemas.EventSchema())


class Template:
    """An answer of a schema, as JSON with holes for what differs between users."""

    def __init__(self, data: Mapping[str, Any], holes: Iterable[str]) -> None:
        texts = [
            f"{dumps(name)}: %s"
            if name in holes
            else f"{dumps(name)}: {dumps(value)}".replace("%", "%%")
            for name, value in data.items()
        ]
        self._text = '{"data": {' + ", ".join(texts) + "}}"

    def filled(self, *values: str) -> bytes:
        """Return the answer with these JSON texts in the holes, in their order."""
        return (self._text % values).encode()


class Shortcut:
    """The service as a WSGI application, with the short way before the long one."""

    def __init__(self, app: Flask) -> None:
        self._tokens: Tokens = app.extensions["abacus_tokens"]
        self._database: engine.Engine = app.extensions["database"]
        self.long_way = app.wsgi_app

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Answer:
        if environ["REQUEST_METHOD"] == "POST":
            match = ROUTE.fullmatch(environ["PATH_INFO"])
            if match and self._is_plain(environ):
                answer = self._short_way(environ, *match.groups())
                if answer is not None:
                    status, headers, body = answer
                    start_response(status, headers)
                    return [body]
        return self.long_way(environ, start_response)

    def _is_plain(self, environ: Environ) -> bool:
        """Tell whether the headers are those of a plain request with a known token."""
        get = environ.get
        length = get("CONTENT_LENGTH", "")
        if (
            get("CONTENT_TYPE") != "application/json"
            or get("QUERY_STRING")
            or "HTTP_CONTENT_ENCODING" in environ
            or "HTTP_ORIGIN" in environ
            or "HTTP_TRANSFER_ENCODING" in environ
            or not (length.isdecimal() and 0 < int(length[:6]) <= LARGEST)
            or len(length) > 5
        ):
            return False
        claims = self._tokens.get(get("HTTP_AUTHORIZATION", ""))
        if claims is None:
            return False
        return claims.scopes is None or "assign" in claims.scopes

    def _short_way(
        self, environ: Environ, name: str, kind: str
    ) -> tuple[str, list[tuple[str, str]], bytes] | None:
        started = time.perf_counter()
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        answer = None
        traffic.traffic.enter()
        engine.enter(self._database)
        try:
            engine.connect()
            answer = WAYS[kind](name, body)
        except (ValidationError, InvalidJson):
            pass  # the long way words it
        except (PeeweeException, NotReady) as error:
            environ[FAILURE] = error
        finally:
            engine.leave()
            traffic.traffic.leave()
        if answer is None:
            environ[STARTED] = started
            environ["wsgi.input"] = BytesIO(body)
            return None
        is_new, content = answer
        request_id = secrets.token_hex(8)
        headers = [
            *COMMON,
            ("Content-Length", str(len(content))),
            ("X-Request-ID", request_id),
        ]
        note_answer(
            request_id,
            started,
            "POST",
            f"/api/experiments/<id>/{kind}",
            201 if is_new else 200,
        )
        return "201 CREATED" if is_new else "200 OK", headers, content


def enrol(name: str, body: bytes) -> tuple[bool, bytes] | None:
    """Return whether the user is new, and the answer; None if it is not simple."""
    read = read_user(body)
    decided = single.enrol_one(name, User(**read))
    if decided is None:
        return None
    known, decision = decided
    metrics.enrolled([decision])
    time = decision.assigned_at
    content = decision_template(known, decision).filled(
        encode_basestring(decision.user_id), f'"{moment(time)}"' if time else "null"
    )
    return decision.reason == NEW, content


def decision_template(known: Known, decision: Decision) -> Template:
    """Return the template of all answers with this reason and this variant."""
    key = decision.reason, decision.variant and decision.variant.id
    template: Template | None = known.derived.get(key)
    if template is None:
        data: Any = DECISION.dump(decision)
        template = known.derived[key] = Template(data, ("userId", "assignedAt"))
    return template


def convert(name: str, body: bytes) -> tuple[bool, bytes] | None:
    """Return True and the receipt of an accepted event; None if it is not simple."""
    booked = single.book_one(name, Event(**read_event(body)))
    if booked is None:
        return None
    known, receipt = booked
    metrics.converted([receipt])
    key = receipt.idempotency_key
    content = receipt_template(known, receipt).filled(
        encode_basestring(receipt.user_id),
        encode_basestring(receipt.metric),
        dumps(RECEIPT.fields["value"].serialize("value", receipt)),
        f'"{moment(receipt.occurred_at)}"',
        "null" if key is None else encode_basestring(key),
    )
    return True, content


HOLES = ("userId", "metric", "value", "occurredAt", "idempotencyKey")


def receipt_template(known: Known, receipt: Receipt) -> Template:
    """Return the template of all accepted events of this variant."""
    template: Template | None = known.derived.get(receipt.variant_id)
    if template is None:
        data: Any = RECEIPT.dump(receipt)
        template = known.derived[receipt.variant_id] = Template(data, HOLES)
    return template


WAYS = {"assignments": enrol, "conversions": convert}
