"""Prometheus metrics: request counts, latency, database size.

A label is always one of this program's own words and never sent by a caller: the rule
of a route, not its path. So no caller can create endless series, and no metric contains
an id. Under gunicorn each worker counts in its own file, and any worker can answer for
all (`gunicorn.conf.py` creates the folder).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from storage.engine import Engine, Trouble
from web import settings

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

Answer = TypeVar("Answer", bound=Sequence[Any])

own = CollectorRegistry()

requests = Counter(
    "abacus_requests",
    "Requests that were answered.",
    ("method", "route", "status"),
    registry=own,
)

latency = Histogram(
    "abacus_request_seconds",
    "How long the service took to answer.",
    ("route",),
    buckets=SECONDS,
    registry=own,
)

refusals = Counter(
    "abacus_refusals",
    "Requests that were refused, by the code of the error.",
    ("code",),
    registry=own,
)

enrolments = Counter(
    "abacus_enrolments",
    "Users who asked for a variant, by what they were told.",
    ("reason",),
    registry=own,
)

conversions = Counter(
    "abacus_conversions",
    "Conversions, by what became of them.",
    ("status", "reason"),
    registry=own,
)

database_errors = Counter(
    "abacus_database_errors",
    "Errors of the database, by kind.",
    ("error",),
    registry=own,
)


def begin() -> None:
    """Show each kind of database error as 0, in the file of this process.

    A counter that first appears as 1 has not increased.
    """
    for trouble in Trouble:
        database_errors.labels(trouble.name)


def answered(
    method: str, route: str | None, status: int, code: str | None, seconds: float
) -> None:
    """Count a request; *route* is the rule that it matched, if any."""
    route = route or "unmatched"
    _series(requests, method, route, status).inc()
    _series(latency, route).observe(seconds)
    if code:
        refusals.labels(code).inc()


@cache  # as bounded as the labels; the library's own lookup takes a lock each time
def _series(metric: Any, *labels: Any) -> Any:
    return metric.labels(*labels)


def enrolled(decisions: Answer) -> Answer:
    """Count the decisions by their reasons, and return them."""
    reasons = [decision.reason for decision in decisions]
    for reason in set(reasons):
        _series(enrolments, reason).inc(reasons.count(reason))
    return decisions


def converted(receipts: Answer) -> Answer:
    """Count the receipts by status and reason, and return them."""
    kinds = [(receipt.status, receipt.reason or "") for receipt in receipts]
    for kind in set(kinds):
        _series(conversions, *kind).inc(kinds.count(kind))
    return receipts


class Sizes(Collector):
    """The present sizes of the database and of its write-ahead log."""

    def __init__(self, database: Engine) -> None:
        self.database = database

    def collect(self) -> Iterator[GaugeMetricFamily]:
        database, log = self.database.sizes()
        for name, text, size in (
            ("abacus_database_bytes", "Size of the database.", database),
            ("abacus_wal_bytes", "Size of its write-ahead log.", log),
        ):
            yield GaugeMetricFamily(name, text, value=size)


def exposition(database: Engine) -> bytes:
    """Return the metrics of all workers in Prometheus's text format."""
    registry = CollectorRegistry()
    counts: Iterable[Collector] = [own]
    if settings.metrics_folder() is not None:
        counts = [MultiProcessCollector(None)]
    for collector in (*counts, Sizes(database)):
        registry.register(collector)
    return generate_latest(registry)
