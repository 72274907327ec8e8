"""Requests to Abacus, each with a time limit, and without redirects."""

from __future__ import annotations

import gzip
import json
import logging
import time
import zlib
from collections.abc import Callable
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

log = logging.getLogger("abacus_openfeature")

Token = str | Callable[[], str]

AGAIN = 600  # seconds until a warning is repeated
WARNINGS = 1_000  # that are remembered
UNANSWERED = " does not answer: "

HINTS = {
    401: ": the token is wrong or has expired",
    403: ": the token has no scope `assign`",
}


class Unavailable(Exception):
    """The service did not answer, or asks to be asked again later."""

    def __init__(self, message: str, retry_after: float = 0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Refused(Exception):
    """The service answered that the request is wrong, and would do so again."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(f"The service answered {status}: {body}")
        self.status, self.body = status, body


class Answer(NamedTuple):
    """What the service answered."""

    status: int
    content: bytes


class NoRedirect(HTTPRedirectHandler):
    """Follows no redirect, which could carry the token to another host."""

    def redirect_request(self, *_: Any) -> None:
        """Return nothing: the redirect itself is the answer."""
        return


class Service:
    """The service at a URL; safe for many threads."""

    def __init__(self, url: str, token: Token, timeout: float) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"{url!r} is not the URL of a service.")
        self.url, self._token, self._timeout = url.rstrip("/"), token, timeout
        self._opener = build_opener(NoRedirect)
        self._ahead = 0.0  # seconds by which the clock of the service is ahead
        self._warned: dict[str, float] = {}

    def now(self) -> float:
        """Return the seconds since 1970 by the clock of the service, as known."""
        return time.time() + self._ahead

    def warn(self, problem: object) -> None:
        """Log what is wrong, and the same again only after ten minutes."""
        message, now = str(problem), time.monotonic()
        # A service that ends resets connections, and then refuses them.
        same = message.partition(UNANSWERED)[0]
        if now - self._warned.get(same, -AGAIN) < AGAIN:
            return
        if len(self._warned) >= WARNINGS:
            self._warned.clear()
        self._warned[same] = now
        log.warning("Abacus: %s", message)

    def post(self, path: str, body: Any) -> dict[str, Any]:
        """Return the JSON object that the service answers to this body."""
        text = json.dumps(body, allow_nan=False, separators=(",", ":")).encode()
        return _object(self.ask("POST", path, text).content)

    def ask(
        self, method: str, path: str, body: bytes | None = None, tag: str = ""
    ) -> Answer:
        """Return a good answer, or 304; else raise Unavailable or Refused."""
        token = self._token if isinstance(self._token, str) else self._token()
        headers = {"Authorization": f"Bearer {token}", "Accept-Encoding": "gzip"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if tag:
            headers["If-None-Match"] = f'"{tag}"'
        request = Request(f"{self.url}{path}", body, headers, method=method)  # noqa: S310
        try:
            with self._opener.open(request, timeout=self._timeout) as answer:
                self._note_time(answer.headers)
                return Answer(answer.status, _unpacked(answer.read(), answer.headers))
        except HTTPError as error:
            with error:
                return self._not_good(error)
        except (OSError, EOFError, HTTPException, zlib.error) as error:
            raise self._unanswered(error) from error

    def _not_good(self, error: HTTPError) -> Answer:
        self._note_time(error.headers)
        if error.code == 304:
            return Answer(304, b"")
        # A token may be renewed, so that 401 and 403 pass. Nothing here redirects.
        passes = error.code < 400 or error.code in (401, 403, 408, 425, 429)
        if passes or error.code >= 500:
            seconds = error.headers.get("Retry-After", "")
            retry_after = float(seconds) if seconds.isdecimal() else 0
            hint = HINTS.get(error.code, "")
            message = f"The service at {self.url} answered {error.code}{hint}."
            raise Unavailable(message, retry_after)
        try:
            content = _unpacked(error.read(), error.headers)
        except (OSError, EOFError, HTTPException, zlib.error) as problem:
            raise self._unanswered(problem) from problem
        raise Refused(error.code, _object(content))

    def _unanswered(self, error: Exception) -> Unavailable:
        cause = getattr(error, "reason", error)  # urllib wraps it
        words = getattr(cause, "strerror", None) or cause
        return Unavailable(f"The service at {self.url}{UNANSWERED}{words}")

    def _note_time(self, headers: Message) -> None:
        try:
            there = parsedate_to_datetime(headers["Date"]).timestamp()
        except (TypeError, ValueError):
            return
        ahead = there - time.time()
        self._ahead = ahead if abs(ahead) > 2 else 0.0  # a date has whole seconds


def _unpacked(content: bytes, headers: Message) -> bytes:
    is_packed = headers.get("Content-Encoding") == "gzip"
    return gzip.decompress(content) if is_packed else content


def _object(content: bytes) -> dict[str, Any]:
    """Return a JSON object; whoever answers something else is not the service."""
    try:
        found = json.loads(content)
    except ValueError as error:
        raise Unavailable("The answer is not JSON.") from error
    if not isinstance(found, dict):
        raise Unavailable("The answer is not a JSON object.")
    return found
