"""Who is asking: tokens verified, scopes required."""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
import time
import unicodedata
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar
from urllib.error import HTTPError
from urllib.request import (
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    Request,
    build_opener,
)

from flask import Flask, current_app, g, request
from flask_jwt_extended import JWTManager, get_jwt, verify_jwt_in_request
from flask_jwt_extended.exceptions import JWTExtendedException, NoAuthorizationError
from jwt import (
    InvalidSignatureError,
    InvalidTokenError,
    PyJWK,
    PyJWKClient,
    PyJWTError,
    get_algorithm_by_name,
)
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Forbidden, Unauthorized

SCOPES = ("read", "write", "assign")
# One token has one spelling: base64url without padding, whose last character has no
# bits that nobody reads. The proxy counts by what is sent.
BEARER = re.compile(
    r"(?i:bearer) +([\w-]+\.[\w-]+\."
    r"(?:[\w-]{4})*(?:[\w-][AQgw]|[\w-]{2}[AEIMQUYcgkosw048])?)",
    re.ASCII,
)
PUBLIC = ("RS256", "ES256", "EdDSA")
SECRET_BYTES = 32
# Secrets that stand in tutorials, padded or repeated to any length.
KNOWN_WORDS = ("secret", "change-me", "changeme", "password", "test", "dev", "abacus")

log = logging.getLogger("abacus")
Handler = TypeVar("Handler", bound=Callable[..., Any])


class WeakSecret(Exception):
    """A key is missing, or could be guessed, or does not fit; the message says."""


class WrongSetting(ValueError):
    """A setting has a value that cannot be used; the message says which and why."""


class Unreachable(Exception):
    """The identity provider gives no keys now, so nobody can say who asks."""


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


# ----------------------------------------------------------------------------
# Keys
# ----------------------------------------------------------------------------


def check_secret(secret: str) -> None:
    """Raise WeakSecret where a guess or a search would find the secret."""
    if len(secret.encode()) < SECRET_BYTES:
        raise WeakSecret(f"JWT_SECRET_KEY must have at least {SECRET_BYTES} bytes.")
    letters = "".join(c for c in secret.lower() if c.isalnum())
    for word in KNOWN_WORDS:
        letters = letters.replace(word.replace("-", ""), "")
    if len(set(letters)) < 8:
        raise WeakSecret("JWT_SECRET_KEY is a known word or a repetition.")


def check_public_key(pem: str, algorithm: str) -> None:
    """Raise WeakSecret unless this is a PEM key that is strong and fits."""
    method = get_algorithm_by_name(algorithm)
    try:
        key = method.prepare_key(pem)
    except (PyJWTError, TypeError, ValueError) as error:
        raise WeakSecret(f"The public key is none for {algorithm}: {error}") from error
    if weakness := key_weakness(key, algorithm):
        raise WeakSecret(weakness)


def key_weakness(key: Any, algorithm: str) -> str | None:
    """Return why the key is too weak for the algorithm, or None if it is not."""
    weakness: str | None = get_algorithm_by_name(algorithm).check_key_length(key)
    return weakness


class _Download:
    """One download of a URL, which is cut off when its time is over.

    A timeout of a socket bounds a single wait: a server that sends a byte a second
    never reaches it. So a thread downloads, and whoever waits for it shuts its
    sockets when the time is over, which ends the thread too.
    """

    def __init__(self, url: str, headers: dict[str, str], seconds: float) -> None:
        self._request, self._seconds = Request(url, headers=headers), seconds  # noqa: S310
        self._is_over = threading.Event()
        self._sockets: list[socket.socket] = []
        self._result: SimpleQueue[bytes | Exception] = SimpleQueue()

    def body(self, limit: int) -> bytes:
        """Return the body; raise TimeoutError, or ValueError above *limit* bytes."""
        threading.Thread(target=self._run, args=(limit,), daemon=True).start()
        try:
            result = self._result.get(timeout=self._seconds)
        except Empty:
            self._is_over.set()
            self._shut()
            told = f"The download took more than {self._seconds} seconds."
            raise TimeoutError(told) from None
        if isinstance(result, Exception):
            raise result
        return result

    def _run(self, limit: int) -> None:
        try:
            self._result.put(self._read(limit))
        except Exception as error:  # it is raised where the body is waited for
            self._result.put(error)

    def _read(self, limit: int) -> bytes:
        opener = build_opener(_NoRedirects(), *self._handlers())
        try:
            with opener.open(self._request, timeout=self._seconds) as response:
                body = bytes(response.read(limit + 1))
        except HTTPError as error:
            error.close()  # it holds the connection
            raise
        if len(body) > limit:
            raise ValueError(f"The answer has more than {limit} bytes.")
        return body

    def _handlers(self) -> tuple[HTTPHandler, HTTPSHandler]:
        """Return urllib's handlers, with connections that can be shut from here."""
        download = self

        class Connection(HTTPConnection):
            def connect(self) -> None:
                super().connect()
                download._keep(self.sock)

        class SecureConnection(HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                download._keep(self.sock)

        class Plain(HTTPHandler):
            def http_open(self, req: Request) -> Any:
                return self.do_open(Connection, req)

        class Secure(HTTPSHandler):
            def https_open(self, req: Request) -> Any:
                return self.do_open(SecureConnection, req)

        return Plain(), Secure()

    def _keep(self, connected: socket.socket) -> None:
        self._sockets.append(connected)
        if self._is_over.is_set():  # the time passed while it connected
            self._shut()

    def _shut(self) -> None:
        for connected in list(self._sockets):
            with suppress(OSError):  # it has been closed
                # Not SSLSocket's own, which takes the reader's state away.
                socket.socket.shutdown(connected, socket.SHUT_RDWR)


class _NoRedirects(HTTPRedirectHandler):
    """Follows no redirect: keys come from the address that the settings name."""

    def redirect_request(self, *_: Any) -> None:
        return None


class _KeySetClient(PyJWKClient):
    """PyJWT's client with bounds on the time and the size of an answer."""

    LIMIT = 1024 * 1024  # bytes; a set of 10 keys has about 10,000

    def fetch_data(self) -> Any:
        download = _Download(self.uri, self.headers, self.timeout)
        return json.loads(download.body(self.LIMIT))


class Provider:
    """An identity provider's public keys, each under its kid.

    They are fetched when a kid is unknown and when they are old, but seldom,
    whoever asks for what; fetched ones keep working while the provider is down.
    """

    OLD = 300  # seconds until a key that was withdrawn is no longer taken
    FETCHES, PERIOD = 3, 30  # so many in so many seconds, in each worker
    TIMEOUT = 3  # seconds for a whole fetch, from the name's lookup to the last byte

    def __init__(self, url: str, algorithm: str) -> None:
        try:
            self._client = _KeySetClient(url, cache_jwk_set=False, timeout=self.TIMEOUT)
        except PyJWTError as error:
            raise WeakSecret(f"JWT_JWKS_URL: {error}") from error
        self._algorithm = algorithm
        self._keys: dict[str, Any] = {}
        self._tried: deque[float] = deque(maxlen=self.FETCHES)
        self._fetched = float("-inf")
        self._down = False
        self._lock = threading.Lock()

    def key(self, kid: Any) -> Any:
        """Return the key, or raise InvalidTokenError, or Unreachable."""
        if not isinstance(kid, str):
            raise InvalidTokenError("The token does not name its key (kid).")
        key = self._keys.get(kid)
        # Who has a key does not wait for another who fetches.
        wait = self.TIMEOUT if key is None else 0
        if (key is None or self._old) and self._lock.acquire(timeout=wait):
            try:
                if kid not in self._keys or self._old:
                    self.fetch()
            finally:
                self._lock.release()
            key = self._keys.get(kid)
        if key is None and (self._down or not self._keys):
            raise Unreachable("The identity provider gives no keys.")
        if key is None:
            raise InvalidTokenError("The token's key (kid) is not known.")
        return key

    @property
    def _old(self) -> bool:
        return time.monotonic() - self._fetched > self.OLD

    def fetch(self) -> None:
        """Read the provider's keys, unless that was done too often lately."""
        now = time.monotonic()
        if len(self._tried) == self.FETCHES and now - self._tried[0] < self.PERIOD:
            return
        self._tried.append(now)
        try:
            found = self._client.get_signing_keys()
        except Exception as error:  # whatever it answered, it was no key
            self._down = True
            told = f"{type(error).__name__}: {error}"
            log.error("identity provider", extra={"error": told})
            return
        self._keys = {
            str(one.key_id): one.key for one in found if self._is_trusted(one)
        }
        self._fetched, self._down = now, False

    def _is_trusted(self, one: PyJWK) -> bool:
        """Tell whether the key is for our algorithm and strong; log a weak one."""
        if one.algorithm_name != self._algorithm:
            return False
        weakness = key_weakness(one.key, self._algorithm)
        if weakness:
            told = f"The key {str(one.key_id)[:40]!r} is left out: {weakness}"
            log.error("identity provider", extra={"error": told})
        return weakness is None


def needs_secret(app: Flask) -> bool:
    """Tell whether tokens are made and verified with a secret of our own."""
    return bool(app.config["JWT_ALGORITHM"] == "HS256")


def keys_are_ready(app: Flask) -> None:
    """Raise WeakSecret unless the app has keys that it may trust.

    An identity provider that is down stops no start: until it is back, whoever
    asks is told to try again.
    """
    key, *_ = _keys(app)
    if isinstance(key, Provider):
        key.fetch()


def _keys(app: Flask) -> list[Any]:
    """Return what tokens are verified with, the newest first."""
    if "abacus_keys" not in app.extensions:
        app.extensions.setdefault("abacus_keys", _checked_keys(app))
    return list(app.extensions["abacus_keys"])


def _checked_keys(app: Flask) -> list[Any]:
    names = ("JWT_ALGORITHM", "JWT_PUBLIC_KEY", "JWT_JWKS_URL", "JWT_PREVIOUS_KEY")
    algorithm, public, url, previous = (app.config[name] for name in names)
    if needs_secret(app):
        if public or url:
            raise WeakSecret(f"With a public key, JWT_ALGORITHM is one of {PUBLIC}.")
        if previous and not app.testing:
            check_secret(previous)
        return [_secret(app), previous]
    if algorithm not in PUBLIC:
        raise WeakSecret(f"JWT_ALGORITHM is HS256 or one of {PUBLIC}.")
    if bool(public) == bool(url):
        told = "needs JWT_PUBLIC_KEY or JWT_JWKS_URL, and not both"
        raise WeakSecret(f"JWT_ALGORITHM {algorithm} {told}.")
    if url:
        if previous:
            raise WeakSecret("With JWT_JWKS_URL the provider rotates the keys.")
        return [Provider(url, algorithm)]
    for pem in filter(None, (public, previous)):
        check_public_key(pem, algorithm)
    return [public, previous]


def _secret(app: Flask) -> str:
    """Return the secret, from the settings or from the file that init makes."""
    if not needs_secret(app):
        raise WeakSecret("Tokens are made by whoever has the private key.")
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
