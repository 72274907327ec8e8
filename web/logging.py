"""The log lines: what was requested, never by whom or about whom."""

from __future__ import annotations

import json
import logging
import secrets
import sys
import time
import traceback

from flask import Response, g, request

from storage import columns, traffic
from web import metrics
from web.json import moment

log = logging.getLogger("abacus")


def write_lines(is_silent: bool) -> None:
    """Write log lines to stderr; a silent app does not silence one that serves."""
    if not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(Lines())
        log.addHandler(handler)
    if not is_silent:
        log.setLevel(logging.INFO)
    elif log.level == logging.NOTSET:
        log.setLevel(logging.WARNING)
    log.propagate = False


def note_arrival() -> None:
    """Give the request an id and a start time, and count it as a quick one."""
    g.request_id = secrets.token_hex(8)
    g.started = request.environ.get(STARTED) or time.perf_counter()
    traffic.traffic.enter()
    g.is_quick = True


def note_end(_: BaseException | None = None) -> None:
    """Stop counting the request as a quick one."""
    if g.pop("is_quick", False):
        traffic.traffic.leave()


# In a request's environ: when it began, if something was tried before.
STARTED = "abacus.started"

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",  # a path may contain a user id
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


def note_departure(response: Response) -> Response:
    """Set the common headers, count the request, and write its log line."""
    response.headers["X-Request-ID"] = g.request_id
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    route = request.url_rule.rule if request.url_rule else None
    # A client can send any word as the method, so unknown ones are not logged.
    method = request.method if request.method in METHODS else "other"
    status = response.status_code
    note_answer(g.request_id, g.started, method, route, status, g.get("code"))
    return response


def note_answer(
    request_id: str,
    started: float,
    method: str,
    route: str | None,
    status: int,
    code: str | None = None,
) -> None:
    """Count a request, and write its log line."""
    seconds = time.perf_counter() - started
    metrics.answered(method, route, status, code, seconds)
    if log.isEnabledFor(logging.INFO):
        # Without the search for the caller, and the copies that info() makes.
        record = logging.LogRecord(log.name, logging.INFO, "", 0, "request", (), None)
        record.requestId, record.method, record.route = request_id, method, route
        record.status, record.code = status, code
        record.ms = round(seconds * 1000, 2)
        log.handle(record)


LINE = json.JSONEncoder(ensure_ascii=False)


class Lines(logging.Formatter):
    """Format a record as one line of JSON."""

    KEPT = ("requestId", "method", "route", "status", "code", "ms", "error")

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": moment(columns.utcnow()), "level": record.levelname}
        line["event"] = record.getMessage()
        given = record.__dict__
        line |= {name: given[name] for name in self.KEPT if name in given}
        if record.exc_info and record.exc_info[0]:
            # Without the message, which may contain a user id.
            kind, _, trace = record.exc_info
            line["error"] = kind.__name__
            line["traceback"] = "".join(traceback.format_tb(trace))
        return LINE.encode(line)
