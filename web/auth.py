"""Authentication: a token is verified, and has the scope of the handler."""

from __future__ import annotations

import re
import threading
import time
import unicodedata
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

from flask import Flask, current_app, g, request
from flask_jwt_extended import JWTManager, create_access_token, decode_token
from flask_jwt_extended.exceptions import JWTExtendedException
from flask_jwt_extended.internal_utils import verify_token_type
from jwt import InvalidSignatureError, PyJWTError
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Forbidden, Unauthorized

from web.keys import Provider, generation, signing_secret, verification_keys

SCOPES = ("read", "write", "assign")

# One scheme in any case (RFC 9110), and one spelling for each token: base64url without
# padding, whose last character has no unused bits. The proxy counts by what is sent.
BEARER = re.compile(
    r"(?i:bearer) +([\w-]+\.[\w-]+\."
    r"(?:[\w-]{4})*(?:[\w-][AQgw]|[\w-]{2}[AEIMQUYcgkosw048])?)",
    re.ASCII,
)

Handler = TypeVar("Handler", bound=Callable[..., Any])


def requires(scope: str) -> Callable[[Handler], Handler]:
    """Mark a handler with the scope that a token needs for it."""

    def mark(handler: Handler) -> Handler:
        handler.scope = scope  # type: ignore[attr-defined]
        return handler

    return mark


class Claims(NamedTuple):
    """What a verified token says."""

    subject: str
    scopes: frozenset[str] | None
    """The scopes that the token names; None if it names none at all."""


class Verified(NamedTuple):
    """A token that was verified, and as long as that holds."""

    claims: Claims
    keys: float
    """The generation of the keys that verified it."""
    begins: float
    ends: float


class Tokens:
    """The headers whose tokens were verified last, each until its token ends.

    To verify a token takes longer than to answer most requests. One is verified anew
    when the keys are fetched anew, and when the clock is set back.
    """

    MOST = 2_000
    LONGEST = 4_096  # characters: at most 8 MiB in all

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._verified: dict[str, Verified] = {}

    def get(self, header: str) -> Claims | None:
        """Return what the token says if it was verified and still holds."""
        known = self._verified.get(header)
        if known is None:
            return None
        holds = known.begins <= time.time() < known.ends
        if holds and known.keys == generation(self._app):
            return known.claims
        self._verified.pop(header, None)
        return None

    def put(self, header: str, verified: Verified) -> None:
        """Remember a header; the one that has been here longest is forgotten."""
        if len(header) <= self.LONGEST:
            with self._lock:
                if len(self._verified) >= self.MOST:
                    self._verified.pop(next(iter(self._verified)))
                self._verified[header] = verified


def authenticate(header: str | None = None) -> None:
    """Answer 401 without a valid token, 403 if it lacks the handler's scope.

    *header* takes the place of the request's own; only the pages have another one.
    """
    if header is None:
        header = request.headers.get("Authorization", "")
    tokens: Tokens = current_app.extensions["abacus_tokens"]
    g.claims = tokens.get(header) or _verify(header, tokens)
    handler: Any = current_app.view_functions[str(request.endpoint)]
    if not has_scope(handler.scope):
        raise Forbidden(f"The token has no {handler.scope!r} scope.")


def _verify(header: str, tokens: Tokens) -> Claims:
    """Return what the header's token says, and remember it; answer 401 for no token."""
    match = BEARER.fullmatch(header)
    if match is None:
        raise _unauthorized("Send one header: Authorization: Bearer <token>.")
    begins, keys = time.time(), generation(current_app)
    said, expires = claims(match[1])
    if keys is not None:
        leeway = current_app.config["JWT_DECODE_LEEWAY"].total_seconds()
        tokens.put(header, Verified(said, keys, begins, min(expires, 1e15) + leeway))
    return said


def claims(token: str) -> tuple[Claims, int]:
    """Return what a valid token says, and when it ends; answer 401 for any other."""
    try:
        decoded = _verified(token)
    except (JWTExtendedException, PyJWTError) as error:
        raise _unauthorized(str(error)) from error
    except (ValueError, ArithmeticError, RecursionError) as error:
        # A token is hostile input too: claims that no number or text can hold.
        raise _unauthorized("The token cannot be read.") from error
    if problem := _problem(decoded):
        raise _unauthorized(problem)
    return Claims(decoded["sub"], _scopes(decoded)), int(decoded["exp"])


def _verified(token: str) -> dict[str, Any]:
    """Return the content of a token that one of our keys has signed."""
    g.use_previous_key = False
    try:
        decoded = decode_token(token)
    except InvalidSignatureError:
        if not current_app.config["JWT_PREVIOUS_KEY"]:
            raise
        g.use_previous_key = True
        decoded = decode_token(token)
    verify_token_type(decoded, refresh=False)
    return decoded


def _scopes(decoded: dict[str, Any]) -> frozenset[str] | None:
    """Return the scopes that the token names, or None if it names none at all.

    The standard claim is `scope`, one text (RFC 8693). Azure AD and Okta send
    `scp`, a text or an array. If both are there, the standard one counts.
    """
    for claim in ("scope", "scp"):
        if claim in decoded:
            value = decoded[claim]
            return frozenset(value.split(" ") if isinstance(value, str) else value)
    return None


def subject() -> str:
    """Return the subject of the request's token."""
    return str(g.claims.subject)


def has_scope(scope: str) -> bool:
    """Tell whether the request's token has this scope; one that names none has all."""
    return g.claims.scopes is None or scope in g.claims.scopes


def new_token(subject: str, scope: str | None, lasts: timedelta) -> str:
    """Return a new token for a subject, with these scopes; None means all of them."""
    claims = {} if scope is None else {"scope": scope}
    made: str = create_access_token(
        subject, expires_delta=lasts, additional_claims=claims
    )
    return made


def _unauthorized(message: str) -> Unauthorized:
    return Unauthorized(message, www_authenticate=WWWAuthenticate("bearer"))


def _problem(decoded: dict[str, Any]) -> str | None:
    """Return why we refuse a token that the libraries accept, or None."""
    sub = decoded.get("sub")
    if not isinstance(sub, str) or not 1 <= len(sub) <= 255:
        return "The token's sub must be a text of 1 to 255 characters."
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in sub):
        return "The token's sub holds control characters."
    if "exp" not in decoded:
        return "The token has no exp; one that never ends is refused."
    if not isinstance(decoded.get("scope", ""), str):
        return "The token's scope must be one text."
    listed = decoded.get("scp", "")
    if not isinstance(listed, str) and not (
        isinstance(listed, list) and all(isinstance(one, str) for one in listed)
    ):
        return "The token's scp must be a text, or an array of texts."
    for claim, setting in (
        ("iss", "JWT_DECODE_ISSUER"),
        ("aud", "JWT_DECODE_AUDIENCE"),
    ):
        if claim in decoded and not current_app.config[setting]:
            return f"The token has an {claim!r} that no setting names."
    return None


def install(app: Flask) -> None:
    """Make the app sign and verify tokens; the keys are read at first use."""
    manager = JWTManager(app)
    app.extensions["abacus_tokens"] = Tokens(app)

    @manager.decode_key_loader
    def _(header: dict[str, Any], payload: dict[str, Any]) -> Any:
        key = verification_keys(app)[1 if g.get("use_previous_key") else 0]
        return key.key(header.get("kid")) if isinstance(key, Provider) else key

    @manager.encode_key_loader
    def _(identity: Any) -> str:
        return signing_secret(app)
