"""A hash of the inputs of an analysis, which anyone can compute again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from decimal import Decimal

from stats.results import Arm, Number, Plan


def input_hash(
    arms: Sequence[Arm],
    plan: Plan | None,
    confidence_level: Number,
    metric: str,
    horizon: int | None = None,
) -> str:
    """Return the SHA-256, in hex, of the inputs of an analysis.

    To compute it, write one JSON object in UTF-8 with sorted keys, without
    spaces, non-ASCII letters as they are: ``arms`` (a list of objects with
    ``conversions``, ``sampleSize``, ``splitPercentage``, ``value`` (null, or an
    object with ``count``, ``sum``, ``sumSquares``), ``variantId``,
    ``variantName``), ``confidenceLevel``, ``metric``, ``plan`` (null, or an object
    with ``baselineRate``, ``confidenceLevel``, ``minimumEffect``, ``power``), and,
    only for an experiment with a horizon, ``horizon`` (its users).
    Counts are JSON numbers; every other number is a string in plain decimal
    notation without trailing zeros, such as "33.33", "50" or "0.95".
    """
    document: dict[str, object] = {
        "arms": [_arm(arm) for arm in arms],
        "confidenceLevel": _decimal(confidence_level),
        "metric": metric,
        "plan": plan
        and {
            "baselineRate": _decimal(plan.baseline_rate),
            "confidenceLevel": _decimal(plan.confidence_level),
            "minimumEffect": _decimal(plan.minimum_effect),
            "power": _decimal(plan.power),
        },
    }
    if horizon is not None:
        document["horizon"] = horizon
    text = json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _arm(arm: Arm) -> dict[str, object]:
    return {
        "conversions": arm.conversions,
        "sampleSize": arm.sample_size,
        "splitPercentage": _decimal(arm.split_percentage),
        "value": arm.value
        and {
            "count": arm.value.count,
            "sum": _decimal(arm.value.sum),
            "sumSquares": _decimal(arm.value.sum_squares),
        },
        "variantId": arm.variant_id,
        "variantName": arm.variant_name,
    }


def _decimal(number: Number) -> str:
    """Return a number in plain notation, without trailing zeros."""
    text = format(Decimal(str(number)), "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("", "-0") else text
