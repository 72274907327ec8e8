"""Decisions and receipts as JSON: what their schema wrote for the first user of a kind.

A schema takes ten times as long for one answer as the rest of an enrolment. Answers to
different users differ in a few values only, so what the schema wrote is kept as a
template, and the values of the next user are put into it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from json.encoder import encode_basestring
from typing import Any

from ledger.conversions import Receipt
from schemas import DecisionSchema, ReceiptSchema
from targeting.decision import Decision
from web.json import as_text, dumps, moment

DECISION, RECEIPT = DecisionSchema(), ReceiptSchema()


class Template:
    """An answer as JSON, with holes for what differs between users."""

    def __init__(self, data: Mapping[str, Any], holes: Iterable[str]) -> None:
        texts = [
            f"{dumps(name)}: %s"
            if name in holes
            else f"{dumps(name)}: {dumps(value)}".replace("%", "%%")
            for name, value in data.items()
        ]
        self._text = "{" + ", ".join(texts) + "}"

    def filled(self, *values: str) -> str:
        """Return the JSON with these JSON texts in the holes, in their order."""
        return self._text % values


Templates = dict[Any, Template]
"""Templates by all that is in them. Keep one no longer than a definition holds."""


def decision_text(decision: Decision, templates: Templates) -> str:
    """Return a decision as JSON, and keep a template of its kind."""
    return _decision_text(decision, encode_basestring(decision.user_id), templates)


def _decision_text(decision: Decision, user: str, templates: Templates) -> str:
    variant, time = decision.variant, decision.assigned_at
    key = decision.experiment_id, decision.reason, variant and variant.id
    template = templates.get(key)
    if template is None:
        data: Any = DECISION.dump(decision)
        template = templates[key] = Template(data, ("userId", "assignedAt"))
    return template.filled(user, f'"{moment(time)}"' if time else "null")


def receipt_text(receipt: Receipt, templates: Templates) -> str:
    """Return a receipt as JSON, and keep a template of its kind."""
    key = receipt.experiment_id, receipt.status, receipt.reason, receipt.variant_id
    template = templates.get(key)
    if template is None:
        data: Any = RECEIPT.dump(receipt)
        holes = "userId", "metric", "value", "occurredAt", "idempotencyKey"
        template = templates[key] = Template(data, holes)
    own, value = receipt.idempotency_key, receipt.value
    return template.filled(
        encode_basestring(receipt.user_id),
        encode_basestring(receipt.metric),
        "null" if value is None else as_text(value),
        f'"{moment(receipt.occurred_at)}"',
        "null" if own is None else encode_basestring(own),
    )


def decision_texts(decisions: Iterable[Decision]) -> Iterator[str]:
    """Yield each decision of one call as JSON.

    New users of a variant have the same time, so only the user differs.
    """
    templates: Templates = {}
    last: dict[Any, tuple[datetime | None, list[str]]] = {}
    for one in decisions:
        id, user_id, reason, variant, time = one
        kind = id, reason, variant and variant.id
        known = last.get(kind)
        if known is None or known[0] != time:
            # No JSON text contains NUL.
            around = _decision_text(one, "\0", templates).split("\0")
            known = last[kind] = time, around
        yield encode_basestring(user_id).join(known[1])


def receipt_texts(receipts: Iterable[Receipt]) -> Iterator[str]:
    """Yield each receipt of one call as JSON."""
    templates: Templates = {}
    return (receipt_text(one, templates) for one in receipts)


def receipt_lists(booked: Iterable[Sequence[Receipt]]) -> Iterator[str]:
    """Yield the receipts of each event of one call as a JSON list."""
    templates: Templates = {}
    for receipts in booked:
        texts = (receipt_text(one, templates) for one in receipts)
        yield f"[{', '.join(texts)}]"
