"""What a request costs, beside a bare echo and a bare INSERT, in one run.

Each side runs under gunicorn with the service's own settings, and wrk (a package of
Debian) calls it over loopback. Rounds of all sides are interleaved. The processor time
is what the workers used, in user and in system mode, by /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from flask_jwt_extended import create_access_token  # noqa: E402
from service import Service, served, wait_until  # noqa: E402

from models import TABLES  # noqa: E402
from storage import factory, schema  # noqa: E402
from storage.files import driver  # noqa: E402

TICK = os.sysconf("SC_CLK_TCK")
SECRET = "only-for-this-measurement-0123456789"  # noqa: S105
CONNECTIONS, KNOWN, BATCH = 16, 2_000, 1_000
WORKERS = runpy.run_path(str(ROOT / "gunicorn.conf.py"))["workers"]

# wrk calls `request` for each request; the ids of a round are its own.
SCRIPT = """
local number = 0
local headers = {["Authorization"] = "Bearer %(token)s",
                 ["Content-Type"] = "application/json"}
function request()
  number = number + 1
  %(call)s
  return wrk.format(method, path, headers, body)
end
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format("\\n{\\"requests\\": %%d, \\"seconds\\": %%f, " ..
    "\\"p50\\": %%f, \\"p99\\": %%f, \\"errors\\": %%d}\\n",
    summary.requests, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""


class Server(NamedTuple):
    """A running gunicorn: its port, its workers, and a token for it."""

    port: int
    workers: set[int]
    token: str

    def seconds(self) -> float:
        """Return the processor time that the workers have used."""
        ticks = 0
        for worker in self.workers:
            stat = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()
            ticks += int(stat[11]) + int(stat[12])
        return ticks / TICK


class Side(NamedTuple):
    """One kind of request; the Lua code sets method, path and body."""

    name: str
    server: Server
    call: str


class Round(NamedTuple):
    """What one round of a side showed."""

    throughput: float  # requests a second
    p50: float  # milliseconds
    p99: float
    cpu: float  # microseconds a request


def measured(side: Side, seconds: int, number: int) -> Round:
    """Return what wrk and /proc say of one round."""
    call = side.call.replace("ROUND", str(number))
    script = SCRIPT % {"token": side.server.token, "call": call}
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        before = side.server.seconds()
        finished = subprocess.run(
            [
                *(
                    "wrk",
                    "-t1",
                    f"-c{CONNECTIONS}",
                    f"-d{seconds}s",
                    "--timeout",
                    "20s",
                ),
                *("-s", file.name, f"http://127.0.0.1:{side.server.port}"),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        spent = side.server.seconds() - before
    if finished.returncode:
        raise SystemExit(f"{side.name}: {finished.stdout}{finished.stderr}")
    told = json.loads(finished.stdout.strip().splitlines()[-1])
    if told["errors"] or not told["requests"]:
        raise SystemExit(f"{side.name}: {finished.stdout}")
    requests = told["requests"]
    return Round(
        requests / told["seconds"], told["p50"], told["p99"], spent / requests * 1e6
    )


@contextmanager
def echoing(folder: Path) -> Iterator[Server]:
    """Run the echo under gunicorn with the settings of the service."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (folder / "echo.log").open("w") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn"),
                *("--config", str(ROOT / "bench" / "echo.conf.py")),
                *("--bind", f"127.0.0.1:{port}", "--chdir", str(ROOT / "bench")),
                "echo:app",
            ],
            cwd=ROOT,
            env={**os.environ, "ECHO_SECRET": SECRET},
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_until(lambda: len(children(process.pid)) == WORKERS, 20)
        wait_until(lambda: answers(port), 20)
        os.environ["ECHO_SECRET"] = SECRET
        from echo import app

        with app.app_context():
            token = create_access_token("bench")
        yield Server(port, children(process.pid), token)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def children(pid: int) -> set[int]:
    file = Path(f"/proc/{pid}/task/{pid}/children")
    return set(map(int, file.read_text().split()))


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def lua(method: str, path: str, body: str = '""') -> str:
    """Return the Lua code of a call; *body* and *path* are Lua expressions."""
    return f'local method, path, body = "{method}", {path}, {body}'


def user(prefix: str = "n") -> str:
    """Return the Lua expression of a user id of 20 characters."""
    return f'string.format("{prefix}-ROUND-%014d", number)'


def sides(service: Service, echo: Server) -> list[Side]:
    """Return all sides, with what they need written to the service."""
    abacus = Server(service.port, service.workers(), service.token)
    paths = [service.running(f"Experiment {number}") for number in range(6)]
    keys = [path.rpartition("/")[2] for path in paths]
    known = [{"userId": f"k-{number:018d}"} for number in range(1, KNOWN + 1)]
    for path in paths:
        service.data("POST", f"{path}/assignments/batch", {"users": known})
    rows = [{**one, "value": number} for number, one in enumerate(known)]
    service.data("POST", f"{paths[5]}/conversions/batch", {"conversions": rows})
    a_known = f'string.format("k-%018d", number % {KNOWN} + 1)'
    an_id = "'{\"userId\":\"' .. %s .. '\"'"
    post = f'"/api/{paths[0]}/assignments"'
    many = json.dumps(keys[:5])
    return [
        Side("echo", echo, lua("POST", '"/bare"', an_id % a_known + " .. '}'")),
        Side("echo, token", echo, lua("POST", '"/token"', an_id % a_known + " .. '}'")),
        Side("returning", abacus, lua("POST", post, an_id % a_known + " .. '}'")),
        Side(
            "flag, returning",
            abacus,
            lua(
                "POST",
                f'"/ofrep/v1/evaluate/flags/{keys[0]}"',
                f'\'{{"context":{{"targetingKey":"\' .. {a_known} .. \'"}}}}\'',
            ),
        ),
        Side("new", abacus, lua("POST", post, an_id % user() + " .. '}'")),
        Side(
            "conversion",
            abacus,
            lua(
                "POST",
                f'"/api/{paths[0]}/conversions"',
                f'{an_id % a_known} .. \',"value":12.5,"idempotencyKey":"\' .. '
                f"{user('c')} .. '\"}}'",
            ),
        ),
        *(
            Side(
                name,
                abacus,
                lua(
                    "POST",
                    f'"/api/users/" .. {who} .. "/assignments"',
                    f"'{{\"experiments\":{many}}}'",
                ),
            )
            for name, who in (("five, returning", a_known), ("five, new", user("f")))
        ),
        Side("list", abacus, lua("GET", '"/api/experiments"')),
        Side("results", abacus, lua("GET", f'"/api/{paths[5]}/results"')),
        Side("computed", abacus, lua("GET", f'"/api/{paths[5]}/compute-results"')),
        Side(
            "batch of 1,000",
            abacus,
            "local users = {}\n"
            f"  for row = 1, {BATCH} do users[row] = string.format("
            '\'{"userId":"b-ROUND-%09d-%04d"}\', number, row) end\n'
            + lua(
                "POST",
                f'"/api/{paths[1]}/assignments/batch"',
                "'{\"users\":[' .. table.concat(users, ',') .. ']}'",
            ),
        ),
    ]


def bare_rows(folder: Path) -> Callable[[int], tuple[float, float]]:
    """Return a function that gives the rows a second of pysqlite3 alone.

    The table is the service's own, with its indexes; first a transaction a row, then
    `executemany` of 1,000 rows a transaction.
    """
    database = factory.database_at(f"sqlite:///{folder}/bare.db")
    schema.create(database, TABLES)
    database.close()
    handle = driver.connect(f"{folder}/bare.db", isolation_level=None)
    handle.execute("PRAGMA synchronous = FULL")
    insert = (
        "INSERT INTO assignment (experiment_id, user_id, variant, assigned_at,"
        " received_at) VALUES ('exp_4f0c9ba2d17e86b35a10', ?, 'v1', ?, ?)"
    )

    def rates(number: int) -> tuple[float, float]:
        now = time.time_ns() // 1_000
        began = time.perf_counter()
        for row in range(500):
            handle.execute("BEGIN IMMEDIATE")
            handle.execute(insert, (f"s-{number}-{row:015d}", now, now))
            handle.execute("COMMIT")
        single = 500 / (time.perf_counter() - began)
        began = time.perf_counter()
        for chunk in range(20):
            rows = [
                (f"m-{number}-{chunk:06d}-{row:08d}", now, now) for row in range(BATCH)
            ]
            handle.execute("BEGIN IMMEDIATE")
            handle.executemany(insert, rows)
            handle.execute("COMMIT")
        return single, 20 * BATCH / (time.perf_counter() - began)

    return rates


def prepare(url: str) -> None:
    """Create the tables of a database."""
    database = factory.database_at(url)
    schema.create(database, TABLES)
    database.shut()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=int, default=3)
    options.add_argument("--only", nargs="*", default=[], help="names of sides")
    options.add_argument("--database-url", help="of the service; SQLite without it")
    chosen = options.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("This needs wrk: apt-get install wrk")
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        url = chosen.database_url
        settings = {"DATABASE_URL": url} if url else {}
        if url:
            prepare(url)
        service = opened.enter_context(served(folder / "instance", **settings))
        echo = opened.enter_context(echoing(folder))
        bare = bare_rows(folder)
        run = [
            side
            for side in sides(service, echo)
            if not chosen.only
            or side.name in chosen.only
            or side.name.startswith("echo")
        ]
        rounds: dict[str, list[Round]] = {side.name: [] for side in run}
        singles, manies = [], []
        for number in range(chosen.rounds):
            for side in run:
                shown = measured(side, chosen.seconds, number)
                rounds[side.name].append(shown)
            single, many = bare(number)
            singles.append(single)
            manies.append(many)
    print_table(rounds)
    print_bare(rounds, singles, manies)


def print_table(rounds: dict[str, list[Round]]) -> None:
    """Print the medians of each side, with ratios to the echoes."""
    bare = statistics.median(one.cpu for one in rounds["echo"])
    token = statistics.median(one.throughput for one in rounds["echo, token"])
    late = statistics.median(one.p99 for one in rounds["echo, token"])
    print(
        f"{'side':<16} {'CPU us':>7} {'spread':>13} {'x echo':>6} {'req/s':>6} "
        f"{'x token':>7} {'p50 ms':>6} {'p99 ms':>6} {'x token':>7}"
    )
    for name, shown in rounds.items():
        cpu = sorted(one.cpu for one in shown)
        rate = statistics.median(one.throughput for one in shown)
        p50 = statistics.median(one.p50 for one in shown)
        p99 = statistics.median(one.p99 for one in shown)
        middle = statistics.median(cpu)
        print(
            f"{name:<16} {middle:>7.0f} {f'{cpu[0]:.0f}-{cpu[-1]:.0f}':>13} "
            f"{middle / bare:>6.2f} {rate:>6.0f} {rate / token:>7.2f} "
            f"{p50:>6.1f} {p99:>6.1f} {p99 / late:>7.2f}"
        )


def print_bare(
    rounds: dict[str, list[Round]], singles: list[float], manies: list[float]
) -> None:
    """Print the rows a second of pysqlite3 alone, and of the batch beside it."""
    single, many = statistics.median(singles), statistics.median(manies)
    print(f"\npysqlite3 alone: {single:,.0f} transactions of one row a second,")
    print(f"{many:,.0f} rows a second with executemany of {BATCH:,} a transaction.")
    if "batch of 1,000" in rounds:
        rate = statistics.median(one.throughput for one in rounds["batch of 1,000"])
        rows = rate * BATCH
        print(f"The batch writes {rows:,.0f} rows a second: {rows / many:.2f} x.")


if __name__ == "__main__":
    main()
