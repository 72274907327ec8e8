"""Who is asking: tokens verified, scopes required."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from flask import Flask, current_app, request
from flask_jwt_extended import JWTManager, get_jwt, verify_jwt_in_request
from flask_jwt_extended.exceptions import JWTExtendedException
from jwt import PyJWTError
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Forbidden, Unauthorized

SCOPES = ("read", "write", "assign")
SECRET_BYTES = 32
# Secrets that stand in tutorials, padded or repeated to any length.
KNOWN_WORDS = ("secret", "change-me", "changeme", "password", "test", "dev", "abacus")

Handler = TypeVar("Handler", bound=Callable[..., Any])


class WeakSecret(Exception):
    """The secret is missing or could be guessed; the message says which."""


def requires(scope: str) -> Callable[[Handler], Handler]:
    """Mark a handler with the scope that a token needs for it."""

    def mark(handler: Handler) -> Handler:
        handler.scope = scope  # type: ignore[attr-defined]
        return handler

    return mark


def authenticate() -> None:
    """Answer 401 without a valid token, 403 where it lacks the handler's scope."""
    try:
        verify_jwt_in_request()
    except (JWTExtendedException, PyJWTError) as error:
        raise _unauthorized(str(error)) from error
    except (ValueError, ArithmeticError, RecursionError) as error:
        # A token is hostile input too: claims that no number or text can hold.
        raise _unauthorized("The token cannot be read.") from error
    claims = get_jwt()
    if problem := _problem(claims):
        raise _unauthorized(problem)
    handler: Any = current_app.view_functions[str(request.endpoint)]
    scope = handler.scope
    if "scope" in claims and scope not in str(claims["scope"]).split():
        raise Forbidden(f"The token has no {scope!r} scope.")


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
    for claim, setting in (
        ("iss", "JWT_DECODE_ISSUER"),
        ("aud", "JWT_DECODE_AUDIENCE"),
    ):
        if claim in claims and not current_app.config[setting]:
            return f"The token has an {claim!r} that no setting names."
    return None


def check_secret(secret: str) -> None:
    """Raise WeakSecret where a guess or a search would find the secret."""
    if len(secret.encode()) < SECRET_BYTES:
        raise WeakSecret(f"JWT_SECRET_KEY must have at least {SECRET_BYTES} bytes.")
    letters = "".join(c for c in secret.lower() if c.isalnum())
    for word in KNOWN_WORDS:
        letters = letters.replace(word.replace("-", ""), "")
    if len(set(letters)) < 8:
        raise WeakSecret("JWT_SECRET_KEY is a known word or a repetition.")


def keys_are_ready(app: Flask) -> None:
    """Raise WeakSecret unless the app has a key that it may trust."""
    if app.config["JWT_ALGORITHM"].startswith("HS"):
        _secret(app)
    elif not app.config["JWT_PUBLIC_KEY"]:
        told = app.config["JWT_ALGORITHM"]
        raise WeakSecret(f"JWT_ALGORITHM is {told}, and there is no JWT_PUBLIC_KEY.")


def _secret(app: Flask) -> str:
    """Return the secret, from the settings or from the file that init makes."""
    if not app.config["JWT_SECRET_KEY"]:
        file = Path(app.config["SECRET_FILE"])
        if not file.exists():
            raise WeakSecret(
                "There is no JWT_SECRET_KEY: set it, or run `flask --app wsgi init`."
            )
        app.config["JWT_SECRET_KEY"] = file.read_text().strip()
    secret = str(app.config["JWT_SECRET_KEY"])
    if not app.config["TESTING"]:
        check_secret(secret)
    return secret


def install(app: Flask) -> None:
    """Teach the app to read and make tokens; keys are looked for at first use."""
    manager = JWTManager(app)

    @manager.decode_key_loader
    def _(header: dict[str, Any], payload: dict[str, Any]) -> Any:
        return app.config["JWT_PUBLIC_KEY"] or _secret(app)

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
        "JWT_DECODE_ISSUER": issuer,
        "JWT_ENCODE_ISSUER": issuer,
        "JWT_DECODE_AUDIENCE": audience,
        "JWT_ENCODE_AUDIENCE": audience,
        "JWT_DECODE_LEEWAY": timedelta(seconds=float(setting("JWT_LEEWAY", 10))),
        "JWT_TOKEN_LOCATION": ["headers"],
    }
