"""What requests cost as the work grows: assignments, experiments, metrics.

The assignments are loaded by `import` into databases in a temporary folder (about 2 GB
for 10,000,000). Each kind of request is sent to the databases in turn, in this process,
and the medians of its wall time are compared. On the largest database, the pages are
compared with the JSON that they show.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from flask import Flask  # noqa: E402
from flask_jwt_extended import create_access_token  # noqa: E402

from app import create_app  # noqa: E402
from stats.analysis import figures  # noqa: E402
from storage import engine  # noqa: E402

EXPERIMENTS = 10  # that the imported assignments are divided among
METRICS = (1, 1_000)
MANY = (100, 10_000)  # experiments


class Instance:
    """A service in this process with a database of its own."""

    def __init__(self, folder: Path, name: str) -> None:
        self.file = folder / f"{name}.db"
        self.app: Flask = create_app(
            {
                "TESTING": True,
                "JWT_SECRET_KEY": "only-for-this-measurement-0123456789",
                "DATABASE_URL": f"sqlite:///{self.file}",
            }
        )
        with self.app.app_context():
            token = create_access_token("bench")
        self.headers = {"Authorization": f"Bearer {token}"}
        self.client = self.app.test_client()
        self.ids: list[str] = []
        self.users = 0
        self.numbers = itertools.count()

    def __call__(self, method: str, path: str, body: Any = None) -> Any:
        """Return the answer's data; stop if the request fails."""
        path = path if path.startswith("/") else f"/api/{path}"
        answer = self.client.open(path, method=method, json=body, headers=self.headers)
        if answer.status_code >= 400:
            raise SystemExit(answer.text)
        return answer.json["data"] if answer.is_json else answer.text

    def started(self, count: int) -> None:
        """Start so many experiments."""
        variants = [{"name": name, "splitPercentage": 50} for name in ("A", "B")]
        for number in range(count):
            body = {"name": f"Experiment {number}", "variants": variants}
            self.ids.append(self("POST", "experiments", body)["id"])
            self("POST", f"experiments/{self.ids[-1]}/start", {})

    def enrol(self, users: int) -> None:
        """Enrol so many users in each of the first experiments."""
        self.started(EXPERIMENTS)
        for place, id in enumerate(self.ids):
            rows = [{"userId": name(place, number)} for number in range(users)]
            self("POST", f"experiments/{id}/assignments/batch", {"users": rows})
        self.users = users

    def convert(self) -> None:
        """Book a conversion of some users, so that each variant has a tally."""
        for place, id in enumerate(self.ids):
            rows = [{"userId": name(place, number), "value": 1} for number in range(20)]
            self("POST", f"experiments/{id}/conversions/batch", {"conversions": rows})

    def load(self, users: int) -> float:
        """Import so many assignments; return the seconds."""
        self.started(EXPERIMENTS)
        share, spent = users // EXPERIMENTS, 0.0
        for place, id in enumerate(self.ids):
            file = self.file.with_suffix(".csv")
            with file.open("w") as lines:
                lines.write("user_id,variant,timestamp\n")
                for number in range(share):
                    user, variant = name(place, number), number % 2 + 1
                    lines.write(f"{user},v{variant},2026-01-01T00:00:00Z\n")
            began = time.perf_counter()
            done = self.app.test_cli_runner().invoke(args=["import", id, str(file)])
            spent += time.perf_counter() - began
            if done.exit_code or f" {share} users enrolled" not in done.output:
                raise SystemExit(done.output)
            file.unlink()
        self.users = share
        return spent

    def size(self) -> int:
        """Return the bytes of the database, its log moved into it."""
        with engine.using(self.app.extensions["database"]) as database:
            database.execute_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        return self.file.stat().st_size


def name(experiment: int, number: int) -> str:
    """Return a user id of 20 characters, in no order."""
    return f"{number * 2_654_435_761 % 2**32:010d}-{experiment:02d}-{number:06x}"[:20]


Act = Callable[[Instance], Any]


def kinds() -> Iterator[tuple[str, Act]]:
    """Yield every kind of request that reads or writes one experiment or one user."""
    draw = random.Random(7)

    def here(one: Instance) -> tuple[int, str]:
        place = draw.randrange(EXPERIMENTS)
        return place, f"experiments/{one.ids[place]}"

    def known(one: Instance, place: int) -> str:
        return name(place, draw.randrange(one.users))

    def new(one: Instance) -> str:
        return f"new-{next(one.numbers):016d}"

    def get(path: str) -> Act:
        def act(one: Instance) -> Any:
            place, root = here(one)
            user = known(one, place)
            return one("GET", path.format(root=root, user=user))

        return act

    def enrol_known(one: Instance) -> Any:
        place, root = here(one)
        return one("POST", f"{root}/assignments", {"userId": known(one, place)})

    def enrol_new(one: Instance) -> Any:
        return one("POST", f"{here(one)[1]}/assignments", {"userId": new(one)})

    def enrol_many(one: Instance) -> Any:
        users = [{"userId": new(one)} for _ in range(100)]
        return one("POST", f"{here(one)[1]}/assignments/batch", {"users": users})

    def enrol_everywhere(one: Instance) -> Any:
        body = {"experiments": one.ids[:5]}
        return one("POST", f"users/{new(one)}/assignments", body)

    def event(one: Instance) -> dict[str, Any]:
        return {"value": 12.5, "idempotencyKey": new(one)}

    def convert(one: Instance) -> Any:
        place, root = here(one)
        body = {"userId": known(one, place), **event(one)}
        return one("POST", f"{root}/conversions", body)

    def convert_many(one: Instance) -> Any:
        place, root = here(one)
        rows = [{"userId": known(one, place), **event(one)} for _ in range(100)]
        return one("POST", f"{root}/conversions/batch", {"conversions": rows})

    def convert_everywhere(one: Instance) -> Any:
        place, _ = here(one)
        return one("POST", "events", {"userId": known(one, place), **event(one)})

    def compute(one: Instance) -> Any:
        figures.cache_clear()
        return one("POST", f"{here(one)[1]}/compute-results", {})

    def force(one: Instance) -> Any:
        _, root = here(one)
        return one("PUT", f"{root}/overrides/{new(one)}", {"variantId": "v1"})

    def move(one: Instance) -> Any:
        _, root = here(one)
        one("POST", f"{root}/stop", {})
        return one("POST", f"{root}/resume", {})

    yield "enrol a known user", enrol_known
    yield "enrol a new user", enrol_new
    yield "enrol 100 new users", enrol_many
    yield "enrol one in five experiments", enrol_everywhere
    yield "book a conversion", convert
    yield "book 100 conversions", convert_many
    yield "book an event everywhere", convert_everywhere
    yield "read an assignment", get("{root}/assignments/{user}")
    yield "list assignments", get("{root}/assignments?limit=20")
    yield "list a user's experiments", get("users/{user}/assignments")
    yield "list experiments", get("experiments")
    yield "read an experiment", get("{root}")
    yield "read the history", get("{root}/history")
    yield "read results", get("{root}/results")
    yield "compute results", compute
    yield "stop and resume", move
    # Last: an override sends its experiment's enrolments the long way.
    yield "force a variant", force


def compare(
    grown: str, sizes: Sequence[int], instances: list[Instance], rounds: int
) -> None:
    """Print the medians of each kind of request, and the last beside the first."""
    shown = "".join(f"{size:>11,}" for size in sizes)
    print(f"\n{grown + ', ms':<30}{shown}   ratio")
    for what, act in kinds():
        spent: list[list[float]] = [[] for _ in instances]
        for turn in range(rounds + 3):
            for place, one in enumerate(instances):
                began = time.perf_counter()
                act(one)
                if turn >= 3:  # the first turns warm up
                    spent[place].append(time.perf_counter() - began)
        medians = [statistics.median(times) * 1e3 for times in spent]
        shown = "".join(f"{median:>11.2f}" for median in medians)
        print(f"{what:<30}{shown}{medians[-1] / medians[0]:>8.2f}", flush=True)


def compare_pages(one: Instance, rounds: int) -> None:
    """Print the processor time of each page, and that of the JSON that it shows."""
    path = f"experiments/{one.ids[0]}"
    has_days = "Count the days" not in one("GET", f"/ui/{path}")
    computed = f"{path}/compute-results{'?granularity=day' if has_days else ''}"
    figures_of_one = [computed, f"{path}/results", f"{path}/history"]
    shown = {"/ui/": ["experiments"], f"/ui/{path}": figures_of_one}
    print(f"\n{'pages, CPU ms':<30}{'JSON':>11}{'page':>11}   ratio")
    for (page, answers), what in zip(
        shown.items(), ("the list", "an experiment"), strict=True
    ):
        spent: dict[str, list[float]] = {"JSON": [], "page": []}
        for _ in range(rounds):
            for side, paths in (("JSON", answers), ("page", [page])):
                figures.cache_clear()
                began = time.thread_time()
                for each in paths:
                    one("GET", each)
                spent[side].append(time.thread_time() - began)
        json, html = (statistics.median(times) * 1e3 for times in spent.values())
        print(f"{what:<30}{json:>11.2f}{html:>11.2f}{html / json:>8.2f}", flush=True)


def with_assignments(folder: Path, size: int) -> Instance:
    """Return an instance with so many imported assignments."""
    one = Instance(folder, f"assignments-{size}")
    empty = one.size()
    spent = one.load(size)
    each = (one.size() - empty) / size
    print(f"import of {size:,}: {size / spent:,.0f} lines a second, ", end="")
    print(f"{each:.0f} bytes an assignment", flush=True)
    one.convert()
    return one


def with_experiments(folder: Path, size: int) -> Instance:
    """Return an instance with so many experiments; requests go to the first ones."""
    one = Instance(folder, f"experiments-{size}")
    one.enrol(1_000)
    one.convert()
    one.started(size - EXPERIMENTS)
    return one


def with_metrics(folder: Path, size: int) -> Instance:
    """Return an instance whose experiments have so many metrics each."""
    one = Instance(folder, f"metrics-{size}")
    one.enrol(100)
    one.convert()
    for place, id in enumerate(one.ids):
        events = [  # the primary metric is one more
            {"userId": name(place, user), "metric": f"m{number}"}
            for number in range(size - 1)
            for user in range(2)
        ]
        for some in range(0, len(events), 1_000):
            body = {"conversions": events[some : some + 1_000]}
            one("POST", f"experiments/{id}/conversions/batch", body)
    return one


GROWN = {
    "assignments": with_assignments,
    "experiments": with_experiments,
    "metrics": with_metrics,
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--sizes", type=int, nargs="+", default=[10**4, 10**6, 10**7])
    options.add_argument("--rounds", type=int, default=40)
    options.add_argument("--only", nargs="*", choices=GROWN, default=list(GROWN))
    chosen = options.parse_args()
    sizes = {"assignments": chosen.sizes, "experiments": MANY, "metrics": METRICS}
    for what in chosen.only:
        with tempfile.TemporaryDirectory() as folder:
            instances = [GROWN[what](Path(folder), size) for size in sizes[what]]
            compare(what, sizes[what], instances, chosen.rounds)
            compare_pages(instances[-1], chosen.rounds)


if __name__ == "__main__":
    main()
