"""A hash of the inputs of an analysis, which anyone can compute again.

To compute it, write one JSON object in UTF-8 with sorted keys, without
spaces, non-ASCII letters as they are: ``arms`` (a list of objects with
``conversions``, ``sampleSize``, ``splitPercentage``, ``value`` (null, or an
object with ``count``, ``sum``, ``sumSquares``), ``variantId``,
``variantName``), ``confidenceLevel``, ``metric``, ``plan`` (null, or an object
with ``baselineRate``, ``confidenceLevel``, ``minimumEffect``, ``power``), and,
only for an experiment with a horizon, ``horizon`` (its users).
Counts are JSON numbers; every other number is a string in plain decimal
notation without trailing zeros, such as "33.33", "50" or "0.95".

Some keys are there only where they are needed. An arm has ``events`` (``products``,
``sum``, ``sumSquares``) if the metric is a ratio, and ``covariate`` (``count``,
``products``, ``sum``, ``sumSquares``) if it is a mean with a covariate. A metric
with settings other than the usual ones has ``settings`` (``cap``, ``direction``,
``kind``, ``margin``, ``role``, ``window``). The guardrails and the secondary
metrics are in ``others``: a list of objects with ``arms``, ``metric`` and
``settings``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

from stats.results import PRIMARY, Arm, MetricSettings, Number, Plan
from stats.scorecard import Measured


def input_hash(
    arms: Sequence[Arm],
    plan: Plan | None,
    confidence_level: Number,
    settings: MetricSettings,
    horizon: int | None = None,
    others: Sequence[Measured] = (),
) -> str:
    """Return the SHA-256, in hex, of the inputs of an analysis.

    The module's docstring says how to compute it.
    """
    document: dict[str, object] = {
        "arms": [_arm(arm) for arm in arms],
        "confidenceLevel": _decimal(confidence_level),
        "metric": settings.name,
        "plan": plan
        and {
            "baselineRate": _decimal(plan.baseline_rate),
            "confidenceLevel": _decimal(plan.confidence_level),
            "minimumEffect": _decimal(plan.minimum_effect),
            "power": _decimal(plan.power),
        },
    }
    if settings not in (
        MetricSettings(settings.name),
        MetricSettings(settings.name, PRIMARY),
    ):
        document["settings"] = _settings(settings)
    if horizon is not None:
        document["horizon"] = horizon
    if others:
        document["others"] = [_other(one) for one in others]
    text = json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _other(one: Measured) -> dict[str, object]:
    return {
        "arms": [_arm(arm) for arm in one.arms],
        "metric": one.settings.name,
        "settings": _settings(one.settings),
    }


def _settings(settings: MetricSettings) -> dict[str, object]:
    return {
        "cap": None if settings.cap is None else _decimal(settings.cap),
        "direction": settings.direction,
        "kind": settings.kind,
        "margin": None if settings.margin is None else _decimal(settings.margin),
        "role": settings.role,
        "window": settings.window,
    }


def _arm(arm: Arm) -> dict[str, object]:
    written: dict[str, object] = {
        "conversions": arm.conversions,
        "sampleSize": arm.sample_size,
        "splitPercentage": _decimal(arm.split_percentage),
        "value": arm.value and _sums(arm.value),
        "variantId": arm.variant_id,
        "variantName": arm.variant_name,
    }
    if arm.events is not None:
        written["events"] = _sums(arm.events)
    if arm.covariate is not None:
        written["covariate"] = _sums(arm.covariate)
    return written


def _sums(sums: NamedTuple) -> dict[str, object]:
    """Return sums by the names of the JSON; the number of users is a number."""
    names = {"sum_squares": "sumSquares"}
    return {
        names.get(name, name): value if name == "count" else _decimal(value)
        for name, value in sums._asdict().items()
    }


def _decimal(number: Number) -> str:
    """Return a number in plain notation, without trailing zeros."""
    text = format(Decimal(str(number)), "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("", "-0") else text
