"""What a computed result costs: at 1,000 and at 10,000,000 participants; at start.

And what an export of 1,000,000 rows takes. Eleven million real rows are written to a
database in a temporary folder (about 2 GB).
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from flask_jwt_extended import create_access_token  # noqa: E402

from app import create_app  # noqa: E402
from stats.analysis import figures  # noqa: E402
from storage import engine  # noqa: E402

SIZES = (1_000, 10_000_000)
EXPORTED = 1_000_000
ROUNDS = 60
# What a worker pays for the statistics: before the first computation, and for it.
LOADED = """
import os, time
import flask, peewee, marshmallow, simplejson
def now():
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1])
    return time.perf_counter(), resident * os.sysconf("SC_PAGE_SIZE") / 2**20
before = now(); import stats; after = now()
from decimal import Decimal
half = Decimal(50)
arms = [stats.Arm("v1", "A", half, 250, 45), stats.Arm("v2", "B", half, 250, 67)]
start = now(); stats.analyse(arms); end = now()
print(after[0] - before[0], after[1] - before[1], end[0] - start[0])
"""


def main() -> None:
    print_loads()
    with tempfile.TemporaryDirectory() as folder:
        app = create_app(
            {
                "TESTING": True,
                "JWT_SECRET_KEY": "only-for-this-measurement-0123456789",
                "DATABASE_URL": f"sqlite:///{folder}/abacus.db",
            }
        )
        engine.enter(app.extensions["database"])
        with app.app_context():
            token = create_access_token("bench")
        headers = {"Authorization": f"Bearer {token}"}
        client = app.test_client()

        def post(path: str, body: dict | None = None) -> dict:
            answer = client.post(f"/api/{path}", json=body or {}, headers=headers)
            if answer.status_code >= 400:
                raise SystemExit(answer.text)
            return answer.json["data"]

        print_results(post)
        path = filled(post, EXPORTED)
        for form in ("csv", "ndjson"):
            url = f"/api/{path}/export?format={form}"
            print_export(form, client.get(url, headers=headers, buffered=False))
        engine.database.close()


def print_loads() -> None:
    """Print what a worker pays for the statistics."""
    loads = [
        subprocess.run(
            [sys.executable, "-c", LOADED],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
        for _ in range(7)
    ]
    added, memory, first = (
        statistics.median(float(load[place]) for load in loads) for place in range(3)
    )
    print(f"import stats: {added * 1000:.0f} ms, {memory:.1f} MB; ", end="")
    print(f"first computation {first:.2f} s (medians of {len(loads)} processes)")


def print_results(post: Callable[..., dict]) -> None:
    """Print how long a computed result takes with few and with many participants."""
    paths = [filled(post, size) for size in SIZES]
    spent: list[list[float]] = [[] for _ in SIZES]
    for _ in range(ROUNDS):  # interleaved, so that both meet the same noise
        for place, path in enumerate(paths):
            figures.cache_clear()  # a new computation is measured
            start = time.perf_counter()
            post(f"{path}/compute-results")
            spent[place].append(time.perf_counter() - start)
    for path, size in zip(paths, SIZES, strict=True):
        variants = post(f"{path}/compute-results")["variants"]
        if sum(one["sampleSize"] for one in variants) != size:
            raise SystemExit(f"{path} does not have {size} participants.")
    small, large = (statistics.median(times) * 1000 for times in spent)
    print(f"compute-results: {small:.1f} ms at {SIZES[0]:,} participants, ", end="")
    print(f"{large:.1f} ms at {SIZES[1]:,}: ratio {large / small:.2f}")


def print_export(form: str, answer: Any) -> None:
    """Print how long an export takes, and by how much the memory grows."""
    start, rows = time.perf_counter(), 0
    before = most = resident()
    for page in answer.response:
        rows += page.count(b"\n")
        most = max(most, resident())
    took = time.perf_counter() - start
    print(f"export as {form}: {rows:,} lines in {took:.1f} s, ", end="")
    print(f"{most - before:.1f} MiB of growth")


def resident() -> float:
    """Return the memory that this process holds, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def filled(post: Callable[..., dict], size: int) -> str:
    """Return an experiment with so many participants, one in ten converted."""
    variants = [{"name": name, "splitPercentage": 50} for name in ("A", "B")]
    made = post("experiments", {"name": f"{size} users", "variants": variants})
    id = made["id"]
    post(f"experiments/{id}/start")
    write = engine.database.execute_sql
    with engine.database.atomic():
        write(
            "WITH RECURSIVE n(i) AS "
            "(SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
            "INSERT INTO assignment (experiment_id, user_id, variant, assigned_at, "
            "received_at) SELECT ?, 'u' || i, 'v' || (1 + i % 2), 0, 0 FROM n",
            (size, id),
        )
        write(
            "INSERT INTO conversion "
            "(experiment_id, assignment_id, metric, occurred_at, received_at) "
            "SELECT experiment_id, id, 'conversion', 0, 0 FROM assignment "
            "WHERE experiment_id = ? AND (id / 2) % 10 = 0",
            (id,),
        )
        write(
            "INSERT INTO tally SELECT c.experiment_id, a.variant, 'conversion', "
            "COUNT(*), COUNT(*), 0, '0', '0', 0, 0 FROM conversion c "
            "JOIN assignment a ON a.id = c.assignment_id "
            "WHERE c.experiment_id = ? GROUP BY a.variant",
            (id,),
        )
        write(
            "UPDATE variant SET participants = (SELECT COUNT(*) FROM assignment a "
            "WHERE a.experiment_id = variant.experiment_id "
            "AND a.variant = variant.key) WHERE experiment_id = ?",
            (id,),
        )
    return f"experiments/{id}"


if __name__ == "__main__":
    main()
