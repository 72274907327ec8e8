"""The keys that verify tokens."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections import deque
from contextlib import suppress
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any
from urllib.error import HTTPError
from urllib.request import (
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    Request,
    build_opener,
)

from flask import Flask
from jwt import InvalidTokenError, PyJWK, PyJWKClient, PyJWTError, get_algorithm_by_name

PUBLIC = ("RS256", "ES256", "EdDSA")

SECRET_BYTES = 32

# Secrets from tutorials, which are refused also padded or repeated.
KNOWN_WORDS = ("secret", "change-me", "changeme", "password", "test", "dev", "abacus")

log = logging.getLogger("abacus")


class WeakSecret(Exception):
    """A key is missing, weak, or not one of its algorithm; the message says which."""


class Unreachable(Exception):
    """The identity provider gives no keys now, so no token can be verified."""


def check_secret(secret: str) -> None:
    """Raise WeakSecret if the secret could be guessed or searched."""
    if len(secret.encode()) < SECRET_BYTES:
        raise WeakSecret(f"JWT_SECRET_KEY must have at least {SECRET_BYTES} bytes.")
    letters = "".join(c for c in secret.lower() if c.isalnum())
    for word in KNOWN_WORDS:
        letters = letters.replace(word.replace("-", ""), "")
    if len(set(letters)) < 8:
        raise WeakSecret("JWT_SECRET_KEY is a known word or a repetition.")


def check_public_key(pem: str, algorithm: str) -> None:
    """Raise WeakSecret unless this is a strong PEM key for the algorithm."""
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
    """One download of a URL with a bound on its whole time.

    The timeout of a socket bounds a single read, so a server that sends a byte a
    second never exceeds it. Therefore a thread downloads, and the caller shuts down
    its sockets when the time is over, which also ends the thread.
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
            message = f"The download took more than {self._seconds} seconds."
            raise TimeoutError(message) from None
        if isinstance(result, Exception):
            raise result
        return result

    def _run(self, limit: int) -> None:
        try:
            self._result.put(self._read(limit))
        except Exception as error:  # `body` raises it
            self._result.put(error)

    def _read(self, limit: int) -> bytes:
        opener = build_opener(_NoRedirects(), *self._handlers())
        try:
            with opener.open(self._request, timeout=self._seconds) as response:
                body = bytes(response.read(limit + 1))
        except HTTPError as error:
            error.close()  # it keeps the connection open
            raise
        if len(body) > limit:
            raise ValueError(f"The answer has more than {limit} bytes.")
        return body

    def _handlers(self) -> tuple[HTTPHandler, HTTPSHandler]:
        """Return urllib's handlers, with connections that `_shut` can end."""
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
            with suppress(OSError):  # it is closed already
                # Not SSLSocket.shutdown, which would break the reading thread.
                socket.socket.shutdown(connected, socket.SHUT_RDWR)


class _NoRedirects(HTTPRedirectHandler):
    """Follow no redirect: keys come only from the configured address."""

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

    They are fetched when a kid is unknown and when they are old, but rarely, whatever
    the requests are. Fetched keys keep working while the provider is down.
    """

    OLD = 300  # seconds after which a withdrawn key is refused
    FETCHES, PERIOD = 3, 30  # at most so many in so many seconds, in each worker
    TIMEOUT = 3  # seconds for a whole fetch, from the DNS lookup to the last byte

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
        # A request with a known key does not wait for another that fetches.
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
    def fetched(self) -> float | None:
        """When the present keys were fetched; None if they are old."""
        return None if self._old else self._fetched

    @property
    def _old(self) -> bool:
        return time.monotonic() - self._fetched > self.OLD

    def fetch(self) -> None:
        """Read the provider's keys, unless there were too many recent tries."""
        now = time.monotonic()
        if len(self._tried) == self.FETCHES and now - self._tried[0] < self.PERIOD:
            return
        self._tried.append(now)
        try:
            fetched = self._client.get_signing_keys()
        except Exception as error:  # any failure means that there are no keys
            self._down = True
            message = f"{type(error).__name__}: {error}"
            log.error("identity provider", extra={"error": message})
            return
        self._keys = {
            str(one.key_id): one.key for one in fetched if self._is_trusted(one)
        }
        self._fetched, self._down = now, False

    def _is_trusted(self, one: PyJWK) -> bool:
        """Tell whether the key is for our algorithm and strong; log a weak one."""
        if one.algorithm_name != self._algorithm:
            return False
        weakness = key_weakness(one.key, self._algorithm)
        if weakness:
            message = f"The key {str(one.key_id)[:40]!r} is left out: {weakness}"
            log.error("identity provider", extra={"error": message})
        return weakness is None


def needs_secret(app: Flask) -> bool:
    """Tell whether tokens are signed and verified with our own secret."""
    return bool(app.config["JWT_ALGORITHM"] == "HS256")


def keys_are_ready(app: Flask) -> None:
    """Raise WeakSecret unless the app has strong keys.

    An identity provider that is down does not prevent the start: until it is back,
    requests get 503.
    """
    key, *_ = verification_keys(app)
    if isinstance(key, Provider):
        key.fetch()


def verification_keys(app: Flask) -> list[Any]:
    """Return the keys that verify tokens, the newest first."""
    if "abacus_keys" not in app.extensions:
        app.extensions.setdefault("abacus_keys", _checked_keys(app))
    return list(app.extensions["abacus_keys"])


def generation(app: Flask) -> float | None:
    """Return what changes with the keys; None if they must be asked for again."""
    key, *_ = verification_keys(app)
    return key.fetched if isinstance(key, Provider) else 0.0


def _checked_keys(app: Flask) -> list[Any]:
    names = ("JWT_ALGORITHM", "JWT_PUBLIC_KEY", "JWT_JWKS_URL", "JWT_PREVIOUS_KEY")
    algorithm, public, url, previous = (app.config[name] for name in names)
    if needs_secret(app):
        if public or url:
            raise WeakSecret(f"With a public key, JWT_ALGORITHM is one of {PUBLIC}.")
        if previous and not app.testing:
            check_secret(previous)
        return [signing_secret(app), previous]
    if algorithm not in PUBLIC:
        raise WeakSecret(f"JWT_ALGORITHM is HS256 or one of {PUBLIC}.")
    if bool(public) == bool(url):
        raise WeakSecret(
            f"JWT_ALGORITHM {algorithm} needs JWT_PUBLIC_KEY or JWT_JWKS_URL, and not "
            "both."
        )
    if url:
        if previous:
            raise WeakSecret("With JWT_JWKS_URL the provider rotates the keys.")
        return [Provider(url, algorithm)]
    for pem in filter(None, (public, previous)):
        check_public_key(pem, algorithm)
    return [public, previous]


def signing_secret(app: Flask) -> str:
    """Return the secret from the settings, or from the file that `init` creates."""
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
