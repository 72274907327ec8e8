"""A shop with one article. The label of its button is a flag, and orders are events.

    ABACUS_TOKEN=... python shop.py

Each visitor has a random id in a cookie, which nobody can guess.
"""

from __future__ import annotations

import os
import signal
import sys
import uuid
from collections import Counter
from typing import Any

from abacus_openfeature import AbacusProvider
from flask import Flask, Response, make_response, redirect, request
from openfeature import api
from openfeature.evaluation_context import EvaluationContext
from openfeature.track import TrackingEventDetails

PRICE = 20
PAGE = """<!doctype html><title>Shop</title><h1>An abacus, 20 €</h1>
<form method="post" action="/orders">
<input type="hidden" name="order" value="{order}"><button>{label}</button></form>"""

shop = Flask(__name__)
flags = api.get_client()
provider = AbacusProvider(
    os.environ.get("ABACUS_URL", "http://127.0.0.1:8000"),
    os.environ["ABACUS_TOKEN"],
    local=True,
    cache_file=os.environ.get("ABACUS_CACHE", "abacus-definitions.json"),
)
labels: dict[str, str] = {}  # the shop's own book: the label that each visitor saw,
orders: dict[str, str] = {}  # and the visitor of each order


@shop.get("/")
def article() -> Response:
    """Show the button, with the label of the visitor's variant."""
    visitor = request.cookies.get("visitor") or uuid.uuid4().hex
    label = flags.get_string_value("buy-button", "Buy", EvaluationContext(visitor))
    labels[visitor] = label
    page = make_response(PAGE.format(order=uuid.uuid4().hex, label=label))
    page.set_cookie("visitor", visitor, httponly=True, samesite="Lax")
    return page


@shop.post("/orders")
def order() -> Any:
    """Take an order. A second click sends the same number, which counts once."""
    visitor, number = request.cookies.get("visitor"), request.form["order"]
    if visitor not in labels:
        return redirect("/")
    if orders.setdefault(number, visitor) == visitor:
        details = TrackingEventDetails(PRICE, {"idempotencyKey": number})
        flags.track("purchase", EvaluationContext(visitor), details)
    return "Thank you."


@shop.get("/book")
def book() -> Any:
    """Return what the shop has counted by itself, to be compared with Abacus."""
    buyers = {visitor: labels[visitor] for visitor in orders.values()}
    counters = provider.counters
    return {
        "visitors": Counter(labels.values()),
        "buyers": Counter(buyers.values()),
        "orders": Counter(labels[visitor] for visitor in orders.values()),
        "waiting": counters["enrolments_waiting"] + counters["events_waiting"],
        "counters": counters,
    }


def main() -> None:
    """Serve the shop until it is stopped; the last reports are sent at the end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    api.set_provider_and_wait(provider)
    shop.run(port=int(os.environ.get("PORT", "5000")))


if __name__ == "__main__":
    main()
