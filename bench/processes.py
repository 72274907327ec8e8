"""What a second service on one PostgreSQL brings, and what one busy experiment costs.

Each service is a gunicorn with one worker process. wrk (a package of Debian) enrols
new users with 8 connections a service over loopback, in one experiment or in sixteen.
Rounds are interleaved. Without `--database-url` the server of the tests is started,
whose commits are flushed into memory: the figures are of processors, not of a disk.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import servers  # noqa: E402
from service import Service, served  # noqa: E402
from speed import prepare  # noqa: E402

CONNECTIONS = 8  # of wrk, for each service
COOL = 16  # experiments

SCRIPT = """
local number, paths = 0, {%(paths)s}
local headers = {["Authorization"] = "Bearer %(token)s",
                 ["Content-Type"] = "application/json"}
function request()
  number = number + 1
  local body = string.format('{"userId": "%(prefix)s-%%014d"}', number)
  return wrk.format("POST", paths[number %% #paths + 1], headers, body)
end
function done(summary, latency)
  local errors = summary.errors
  io.write(string.format("\\nresult %%f %%f %%d\\n",
    summary.requests / summary.duration * 1e6, latency:percentile(99) / 1e3,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""


def started(
    service: Service, paths: Sequence[str], prefix: str, seconds: int, folder: Path
) -> subprocess.Popen[str]:
    """Start wrk on a service, with users of this prefix in these experiments."""
    script = folder / f"{prefix}.lua"
    quoted = ", ".join(f'"/api/{path}/assignments"' for path in paths)
    script.write_text(
        SCRIPT % {"paths": quoted, "token": service.token, "prefix": prefix}
    )
    address = f"http://127.0.0.1:{service.port}"
    words = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(script)]
    return subprocess.Popen([*words, address], stdout=subprocess.PIPE, text=True)


def result(process: subprocess.Popen[str]) -> tuple[float, float]:
    """Return the requests a second and the p99 in milliseconds."""
    output = process.communicate()[0]
    (line,) = [line for line in output.splitlines() if line.startswith("result")]
    rate, late, errors = line.split()[1:]
    if int(errors):
        raise SystemExit(output)
    return float(rate), float(late)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=int, default=4)
    options.add_argument("--database-url", help="a PostgreSQL server")
    chosen = options.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("This needs wrk: apt-get install wrk")
    with ExitStack() as opened:
        server = chosen.database_url or servers.started_server()
        url = opened.enter_context(servers.made(server))
        prepare(url)
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        settings = {"DATABASE_URL": url, "GUNICORN_CMD_ARGS": "--workers 1"}
        services = [opened.enter_context(served(folder / "one", **settings))]
        (folder / "two").mkdir()
        shutil.copy(folder / "one" / "secret", folder / "two")
        services.append(opened.enter_context(served(folder / "two", **settings)))
        cool = [services[0].running(f"Experiment {number}") for number in range(COOL)]
        rounds: dict[tuple[int, int], list[tuple[float, float]]] = {}
        for number in range(chosen.rounds):
            for many in (1, 2):
                for paths in (cool[:1], cool):
                    running = [
                        started(
                            service,
                            paths,
                            f"p{number}-{many}-{len(paths)}-{place}",
                            chosen.seconds,
                            folder,
                        )
                        for place, service in enumerate(services[:many])
                    ]
                    each = [result(one) for one in running]
                    shown = sum(rate for rate, _ in each), max(late for _, late in each)
                    rounds.setdefault((many, len(paths)), []).append(shown)
    print_table(rounds)


def print_table(rounds: dict[tuple[int, int], list[tuple[float, float]]]) -> None:
    """Print the medians, with their spread, and the two ratios."""
    names = "services", "experiments", "users/s", "spread", "p99 ms"
    print("{:>8} {:>11} {:>8} {:>11} {:>7}".format(*names))
    middle = {}
    for (many, paths), shown in rounds.items():
        rates = sorted(rate for rate, _ in shown)
        middle[many, paths] = statistics.median(rates)
        late = statistics.median(late for _, late in shown)
        print(
            f"{many:>8} {paths:>11} {middle[many, paths]:>8.0f} "
            f"{f'{rates[0]:.0f}-{rates[-1]:.0f}':>11} {late:>7.0f}"
        )
    print(f"\ntwo services: {middle[2, COOL] / middle[1, COOL]:.2f} x one")
    print(f"one experiment: {middle[2, 1] / middle[2, COOL]:.2f} x sixteen")


if __name__ == "__main__":
    main()
