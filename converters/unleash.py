"""Turn flags that Unleash exported as JSON into bodies that create experiments.

    unleash.py < export.json > experiments.ndjson

Each line is a body for `POST /api/experiments`. What cannot be converted is named on
stderr: flags without variants, constraints, segments and overrides.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

Thing = dict[str, Any]
WHOLE = 1000  # the sum of Unleash's weights


def main() -> None:
    exported = json.load(sys.stdin)
    for feature in exported["features"]:
        name = feature["name"]
        strategies = [
            one
            for one in exported["featureStrategies"]
            if one["featureName"] == name and not one.get("disabled")
        ]
        variants = variants_of(exported, name, strategies)
        dealt = [one for one in variants if one["weight"]]
        for problem in problems(strategies, dealt):
            print(f"{name}: {problem}", file=sys.stderr)
        if len(dealt) > 1 and len(strategies) < 2:
            print(json.dumps(body(feature, strategies, dealt)))


def variants_of(exported: Thing, name: str, strategies: list[Thing]) -> list[Thing]:
    """Return a flag's variants: those of its strategy, or else those of the flag."""
    own = [variant for one in strategies for variant in one.get("variants") or []]
    environments = exported.get("featureEnvironments") or []
    of_flag = [one for one in environments if one["featureName"] == name]
    return own or [variant for one in of_flag for variant in one.get("variants") or []]


def problems(strategies: list[Thing], variants: list[Thing]) -> Iterator[str]:
    """Yield what of a flag is not converted."""
    if len(variants) < 2:
        yield "not converted, it has fewer than two variants with a weight"
    if len(strategies) > 1:
        yield "not converted, it has several strategies: choose one"
    for word in ("constraints", "segments"):
        if any(one.get(word) for one in strategies):
            yield f"the {word} of its strategy are left out: define an audience"
    if any(one.get("overrides") for one in variants):
        yield "the overrides of its variants are left out"


def body(feature: Thing, strategies: list[Thing], variants: list[Thing]) -> Thing:
    """Return what creates the experiment of a flag."""
    parameters = [one.get("parameters") or {} for one in strategies]
    rollout = [one["rollout"] for one in parameters if "rollout" in one]
    return {
        "key": feature["name"].lower(),
        "name": feature["name"],
        "description": feature.get("description"),
        "trafficPercentage": float(rollout[0]) if rollout else 100,
        "variants": [variant_of(one) for one in variants],
    }


def variant_of(variant: Thing) -> Thing:
    """Return a variant; a JSON object becomes the config, any other text the flow."""
    made = {
        "name": variant["name"],
        "splitPercentage": variant["weight"] * 100 / WHOLE,
    }
    payload = variant.get("payload")
    if payload and payload["type"] == "json":
        made["config"] = json.loads(payload["value"])
    elif payload:
        made["flowId"] = payload["value"]
    return made


if __name__ == "__main__":
    main()
