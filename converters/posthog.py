"""Turn events that PostHog exported as JSON lines into lines for `import`.

    posthog.py FLAG EVENT[:PROPERTY] ... < events.jsonl > lines.ndjson

FLAG is the key of the experiment's feature flag. Each EVENT becomes a metric of its
name, and its PROPERTY, if one is given, the value. A user is enrolled at the first
`$feature_flag_called` with a variant. Left out, and counted on stderr, are users who
saw two variants, and events before the user's enrolment.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from typing import Any

Line = dict[str, Any]
CALLED = "$feature_flag_called"


def main() -> None:
    flag, *wanted = sys.argv[1:]
    properties = dict(one.partition(":")[::2] for one in wanted)
    events = list(map(json.loads, sys.stdin))
    variants, enrolled = exposures(events, flag)
    mixed = {user for user, seen in variants.items() if len(seen) > 1}
    users = {user: at for user, at in enrolled.items() if user not in mixed}
    early = 0
    for user, at in users.items():
        print(json.dumps(line(user, variants[user], at)))
    for event in events:
        user, metric = event["distinct_id"], event["event"]
        if metric not in properties or user not in users:
            continue
        if moment(event) < users[user]:
            early += 1
            continue
        converted = line(user, variants[user], users[user])
        converted |= conversion(event, properties[metric])
        print(json.dumps(converted))
    print(
        f"{len(users)} users; left out: {len(mixed)} users with two variants, "
        f"{early} events before the enrolment",
        file=sys.stderr,
    )


def exposures(
    events: Iterable[Line], flag: str
) -> tuple[dict[str, set[str]], dict[str, datetime]]:
    """Return the variants that each user saw, and when the user saw the first one."""
    variants: dict[str, set[str]] = {}
    enrolled: dict[str, datetime] = {}
    for user, variant, at in shown(events, flag):
        variants.setdefault(user, set()).add(variant)
        enrolled[user] = min(at, enrolled.get(user, at))
    return variants, enrolled


def shown(events: Iterable[Line], flag: str) -> Iterator[tuple[str, str, datetime]]:
    """Yield each user with the variant that the flag had, and when."""
    for event in events:
        details = event["properties"]
        variant = details.get("$feature_flag_response")
        is_ours = event["event"] == CALLED and details.get("$feature_flag") == flag
        if is_ours and isinstance(variant, str):  # without a variant it is false
            yield event["distinct_id"], variant, moment(event)


def moment(event: Line) -> datetime:
    """Return when an event occurred; a time without an offset is in UTC."""
    at = datetime.fromisoformat(event["timestamp"].replace("Z", "+00:00"))
    return at if at.tzinfo else at.replace(tzinfo=timezone.utc)


def line(user: str, variants: set[str], at: datetime) -> Line:
    """Return the line of an enrolment."""
    (variant,) = variants
    return {"user_id": user, "variant": variant, "timestamp": at.isoformat()}


def conversion(event: Line, name: str) -> Line:
    """Return what an event adds to the line of its user."""
    value = event["properties"].get(name) if name else None
    return {
        "converted_at": moment(event).isoformat(),
        "metric": event["event"],
        "value": value,
        "idempotency_key": event["uuid"],
    }


if __name__ == "__main__":
    main()
