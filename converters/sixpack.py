"""Turn the CSV file that sixpack's dashboard exported into lines for `import`.

    sixpack.py < sixpack_export_NAME.csv > lines.ndjson

The file has counts for each day and each alternative, and no ids. So the participants
get made-up ids, and those who came first convert first. The counts of each day and of
each alternative are those of the file.
"""

import csv
import json
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator

Row = list[str]


def main() -> None:
    rows = list(csv.reader(sys.stdin))
    days = sorted(section(rows, "Alternative Details"))
    made: Counter[str] = Counter()
    waiting: dict[str, deque[str]] = {}
    for day, name, participants, conversions in days:
        at = f"{day}T00:00:00Z"
        queue = waiting.setdefault(name, deque())
        for _ in range(whole(participants)):
            made[name] += 1
            queue.append(at)
        if whole(conversions) > len(queue):
            sys.exit(f"{day}: more conversions of {name} than participants")
        for _ in range(whole(conversions)):
            emit(name, made[name] - len(queue) + 1, queue.popleft(), at)
    for name, queue in waiting.items():
        for number, enrolled_at in enumerate(queue, made[name] - len(queue) + 1):
            emit(name, number, enrolled_at, None)
    for name, participants, conversions in section(rows, "Alternative Summary"):
        converted = made[name] - len(waiting.get(name, ()))
        if (made[name], converted) != (whole(participants), whole(conversions)):
            sys.exit(f"{name}: its days and its summary differ; do not import this")


def section(rows: Iterable[Row], title: str) -> Iterator[Row]:
    """Yield the rows below a title and its header, up to an empty row."""
    rest = iter(rows)
    for row in rest:
        if row == [title]:
            next(rest)
            for found in rest:
                if not found:
                    return
                yield found


def whole(cell: str) -> int:
    """Return a count, which sixpack writes as `12` or as `12.0`."""
    return int(float(cell))


def emit(name: str, number: int, at: str, converted_at: str | None) -> None:
    """Print the line of a participant."""
    user = f"sixpack-{name}-{number}"
    line = {"user_id": user, "variant": name, "timestamp": at}
    if converted_at is not None:
        line["converted_at"] = converted_at
    print(json.dumps(line))


if __name__ == "__main__":
    main()
