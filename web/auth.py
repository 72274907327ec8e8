"""Who is asking: tokens verified, scopes required."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from flask import Flask, current_app, g, request
from flask_jwt_extended import JWTManager, get_jwt, verify_jwt_in_request
from flask_jwt_extended.exceptions import JWTExtendedException, NoAuthorizationError
from jwt import InvalidSignatureError, PyJWTError
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Forbidden, Unauthorized

from web.keys import Provider, _keys, _secret

SCOPES = ("read", "write", "assign")

# One token has one spelling: base64url without padding, whose last character has no
# bits that nobody reads. The proxy counts by what is sent.
BEARER = re.compile(
    r"(?i:bearer) +([\w-]+\.[\w-]+\."
    r"(?:[\w-]{4})*(?:[\w-][AQgw]|[\w-]{2}[AEIMQUYcgkosw048])?)",
    re.ASCII,
)

Handler = TypeVar("Handler", bound=Callable[..., Any])


class WrongSetting(ValueError):
    """A setting has a value that cannot be used; the message says which and why."""


def requires(scope: str) -> Callable[[Handler], Handler]:
    """Mark a handler with the scope that a token needs for it."""

    def mark(handler: Handler) -> Handler:
        handler.scope = scope  # type: ignore[attr-defined]
        return handler

    return mark


def authenticate() -> None:
    """Answer 401 without a valid token, 403 where it lacks the handler's scope."""
    try:
        _verify()
    except (JWTExtendedException, PyJWTError) as error:
        raise _unauthorized(str(error)) from error
    except (ValueError, ArithmeticError, RecursionError) as error:
        # A token is hostile input too: claims that no number or text can hold.
        raise _unauthorized("The token cannot be read.") from error
    claims = get_jwt()
    if problem := _problem(claims):
        raise _unauthorized(problem)
    handler: Any = current_app.view_functions[str(request.endpoint)]
    scopes = _scopes(claims)
    if scopes is not None and handler.scope not in scopes:
        raise Forbidden(f"The token has no {handler.scope!r} scope.")


def _scopes(claims: dict[str, Any]) -> list[str] | None:
    """Return the scopes that the token names, or None where it names none at all.

    The standard claim is `scope`, one text (RFC 8693). Azure AD and Okta send
    `scp`, a text or an array. Where both are there, the standard one counts.
    """
    for claim in ("scope", "scp"):
        if claim in claims:
            value = claims[claim]
            return value.split(" ") if isinstance(value, str) else list(value)
    return None


def _verify() -> None:
    # One scheme, in any case (RFC 9110), and one token. The library wants just one
    # case, and looks for it among others behind commas.
    given = BEARER.fullmatch(request.headers.get("Authorization", ""))
    if given is None:
        raise NoAuthorizationError("Send one header: Authorization: Bearer <token>.")
    request.environ["HTTP_AUTHORIZATION"] = f"Bearer {given[1]}"
    g.use_previous_key = False
    try:
        verify_jwt_in_request()
    except InvalidSignatureError:
        if not current_app.config["JWT_PREVIOUS_KEY"]:
            raise
        g.use_previous_key = True
        verify_jwt_in_request()


def subject() -> str:
    """Return who the token speaks for."""
    return str(get_jwt()["sub"])


def _unauthorized(message: str) -> Unauthorized:
    return Unauthorized(message, www_authenticate=WWWAuthenticate("bearer"))


def _problem(claims: dict[str, Any]) -> str | None:
    """Return what the libraries let pass and we do not, or None."""
    sub = claims.get("sub")
    if not isinstance(sub, str) or not 1 <= len(sub) <= 255:
        return "The token's sub must be a text of 1 to 255 characters."
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in sub):
        return "The token's sub holds control characters."
    if "exp" not in claims:
        return "The token has no exp; one that never ends is refused."
    if not isinstance(claims.get("scope", ""), str):
        return "The token's scope must be one text."
    listed = claims.get("scp", "")
    if not isinstance(listed, str) and not (
        isinstance(listed, list) and all(isinstance(one, str) for one in listed)
    ):
        return "The token's scp must be a text, or an array of texts."
    for claim, setting in (
        ("iss", "JWT_DECODE_ISSUER"),
        ("aud", "JWT_DECODE_AUDIENCE"),
    ):
        if claim in claims and not current_app.config[setting]:
            return f"The token has an {claim!r} that no setting names."
    return None


def install(app: Flask) -> None:
    """Teach the app to read and make tokens; keys are looked for at first use."""
    manager = JWTManager(app)

    @manager.decode_key_loader
    def _(header: dict[str, Any], payload: dict[str, Any]) -> Any:
        key = _keys(app)[1 if g.get("use_previous_key") else 0]
        return key.key(header.get("kid")) if isinstance(key, Provider) else key

    @manager.encode_key_loader
    def _(identity: Any) -> str:
        return _secret(app)


def settings(setting: Callable[[str, Any], Any]) -> dict[str, Any]:
    """Return flask-jwt-extended's settings from ours; *setting* reads one."""
    algorithm = setting("JWT_ALGORITHM", "HS256")
    issuer, audience = setting("JWT_ISSUER", None), setting("JWT_AUDIENCE", None)
    return {
        "JWT_ALGORITHM": algorithm,
        "JWT_DECODE_ALGORITHMS": [algorithm],
        "JWT_SECRET_KEY": setting("JWT_SECRET_KEY", None),
        "JWT_PUBLIC_KEY": setting("JWT_PUBLIC_KEY", None),
        "JWT_JWKS_URL": setting("JWT_JWKS_URL", None),
        "JWT_PREVIOUS_KEY": setting("JWT_PREVIOUS_KEY", None),
        "JWT_DECODE_ISSUER": issuer,
        "JWT_ENCODE_ISSUER": issuer,
        "JWT_DECODE_AUDIENCE": audience,
        "JWT_ENCODE_AUDIENCE": audience,
        "JWT_DECODE_LEEWAY": _leeway(setting("JWT_LEEWAY", 10)),
        "JWT_TOKEN_LOCATION": ["headers"],
    }


MOST_LEEWAY = 300  # seconds; more would let ended tokens live on


def _leeway(given: Any) -> timedelta:
    """Return the leeway; raise WrongSetting unless it is a sensible number."""
    try:
        seconds = float(given)
    except (TypeError, ValueError):
        seconds = float("nan")
    if not 0 <= seconds <= MOST_LEEWAY or isinstance(given, bool):  # NaN is not either
        raise WrongSetting(
            f"JWT_LEEWAY must be a number of seconds from 0 to {MOST_LEEWAY}, "
            f"not {given!r}."
        )
    return timedelta(seconds=seconds)
