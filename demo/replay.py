"""Replay two real experiments, over HTTP and by import, and print their results.

Runs a service of its own, in a folder of its own, and leaves nothing behind. On a
terminal, or on the PORT that the environment names, the pages stay open to the end.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

import click

ROOT = Path(__file__).parent.parent
HEADLINES = ROOT / "demo" / "upworthy_headlines.csv"
TRAFFIC = ROOT / "demo" / "open_bandit_all.csv.gz"
LOOK = "2019-11-26T20:00"  # on the third evening of seven days, in UTC
PLAN = {
    "baselineRate": 0.004,
    "minimumEffect": 0.003,
    "power": 0.8,
    "confidenceLevel": 0.95,
}
BATCH = 500

sys.path.insert(0, str(ROOT))
from targeting import assignment  # noqa: E402


class Service:
    """A service in a folder, its commands, and one connection that speaks JSON."""

    def __init__(self, folder: str, port: int) -> None:
        self.folder, self.port = Path(folder), port
        kept = {
            name: value
            for name, value in os.environ.items()
            if name != "DATABASE_URL" and not name.startswith("JWT_")
        }
        self.environment = {**kept, "INSTANCE": folder}
        self.operate("init")
        self.token = self.operate("token", "demo")
        self.connection = HTTPConnection("127.0.0.1", port, timeout=30)

    def operate(self, *words: str) -> str:
        """Run an operator's command, and return what it prints."""
        command = [sys.executable, "-m", "flask", "--app", "wsgi", *words]
        ended = subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment,
            check=True,
            text=True,
            stdout=subprocess.PIPE,
        )
        return ended.stdout.strip()

    @contextmanager
    def served(self) -> Iterator[subprocess.Popen[bytes]]:
        """Serve inside the block."""
        address = f"127.0.0.1:{self.port}"
        server = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "wsgi:app", "--bind", address],
            cwd=ROOT,
            env=self.environment,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(self.port)
            yield server
        finally:
            server.terminate()
            server.wait()

    def __call__(self, method: str, path: str, body: Any = None) -> Any:
        return json.loads(self.text(method, path, body, "application/json"))["data"]

    def text(
        self, method: str, path: str, body: Any = None, form: str = "text/plain"
    ) -> str:
        sent = None if body is None else json.dumps(body)
        headers = {
            "Authorization": f"Bearer {self.token}",
            "Content-Type": "application/json",
            "Accept": form,
        }
        self.connection.request(method, path, sent, headers)
        answer = self.connection.getresponse()
        text = answer.read().decode()
        if answer.status >= 400:
            raise SystemExit(f"{method} {path}: {answer.status} {text}")
        return text


def main() -> None:
    asked = os.environ.get("PORT")
    port = usable(asked or "0")
    with tempfile.TemporaryDirectory() as folder:
        service = Service(folder, port)
        with service.served() as server:
            winner = headlines(service)
            early, late = recommenders(service)
            print(service.operate("check"))
            print(f"\n{closing(winner, early, late)}\n")
            if not asked and not sys.stdout.isatty():
                print("`make demo PORT=8001` keeps the pages of both open.")
                return
            address = f"http://127.0.0.1:{port}"
            link = service.operate("token", "demo", "--link", address)
            print(f"Open this page within ten minutes: {link}")
            print("Ctrl-C ends the service and removes its data.", flush=True)
            server.wait()


def closing(winner: str, early: Any, late: Any) -> str:
    """Return a sentence that says what the two experiments showed."""
    looks = [one["variants"][1]["comparison"]["fixedHorizon"] for one in (early, late)]
    once, at_last = (f"{look['pValue']:.3f}" for look in looks)
    verdict = early["verdict"]["status"].replace("_", " ")
    return textwrap.fill(
        f"Of the four headlines {winner!r} has won, and of the two recommenders a "
        "single look on the third evening would have declared a winner "
        f"(p = {once}), which the whole week does not confirm (p = {at_last}); "
        f"Abacus had said {verdict!r}.",
        80,
    )


def usable(port: str) -> int:
    """Return the port, or a free one for 0; end if it cannot be used."""
    try:
        with socket.create_server(("127.0.0.1", int(port))) as free:
            number: int = free.getsockname()[1]
            return number
    except (OSError, ValueError, OverflowError):
        raise SystemExit(
            f"Port {port} cannot be used: name another one, as in "
            '"make demo PORT=8001".'
        ) from None


def wait_for(port: int) -> None:
    """Return when the service answers; give up after 30 seconds."""
    for _ in range(300):
        try:
            connection = HTTPConnection("127.0.0.1", port, timeout=1)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise SystemExit("The service did not start.")


def headlines(service: Service) -> str:
    """Send each viewer as an enrolment, and each click; return the winner's name.

    The archive has totals only, so the clicks are spread evenly.
    """
    with HEADLINES.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    variants = [
        {
            "name": row["variant"],
            "splitPercentage": 25,
            "config": {"headline": row["headline"]},
        }
        for row in rows
    ]
    id = started(service, "headlines", "Upworthy: four headlines", variants)
    views = sorted(view for arm, row in enumerate(rows) for view in views_of(arm, row))
    hidden = not sys.stderr.isatty()
    with click.progressbar(
        label="Sending", length=len(views), file=sys.stderr, hidden=hidden
    ) as bar:
        for start in range(0, len(views), BATCH):
            some = views[start : start + BATCH]
            send(service, id, some)
            bar.update(len(some))
    computed = shown(service, id)
    names = {one["variantId"]: one["variantName"] for one in computed["variants"]}
    return str(names[computed["verdict"]["variantId"]])


class View(NamedTuple):
    """A viewer of a headline; they sort as they come."""

    number: int
    arm: int
    is_click: bool


def views_of(arm: int, row: dict[str, str]) -> Iterator[View]:
    """Yield the viewers of a headline, with the clicks evenly between them."""
    viewers, clicks = int(row["viewers"]), int(row["clicks"])
    for number in range(viewers):
        clicked = (number + 1) * clicks // viewers - number * clicks // viewers
        yield View(number, arm, bool(clicked))


def send(service: Service, id: str, views: list[View]) -> None:
    """Enrol viewers, each in the variant that the archive says, and send the clicks."""
    users = [
        {"userId": dealt_to(id, f"viewer-{view.arm}-{view.number}", view.arm)}
        for view in views
    ]
    path = f"/api/experiments/{id}"
    given = service("POST", f"{path}/assignments/batch", {"users": users})
    for view, decision in zip(views, given, strict=True):
        if decision["variantId"] != f"v{view.arm + 1}":
            user, variant = decision["userId"], decision["variantName"]
            raise SystemExit(f"{user} was given {variant}.")
    clicks = [user for user, view in zip(users, views, strict=True) if view.is_click]
    service("POST", f"{path}/conversions/batch", {"conversions": clicks})


def dealt_to(id: str, user_id: str, arm: int) -> str:
    """Return the user id with the suffix that makes the hash deal it this arm."""
    suffixed = (f"{user_id}~{number}" for number in itertools.count())
    return next(
        one for one in suffixed if assignment.dealt(id, one, [2_500] * 4) == arm
    )


def recommenders(service: Service) -> tuple[Any, Any]:
    """Import a week in two parts; return what is computed after each."""
    variants = [{"name": arm, "splitPercentage": 50} for arm in ("random", "bts")]
    name = "Open Bandit: two recommenders"
    id = started(service, "recommenders", name, variants, plan=PLAN)
    with gzip.open(TRAFFIC, "rt", encoding="utf-8") as file:
        head, *lines = file
    part = service.folder / "until_the_look.csv"
    part.write_text(head + "".join(one for one in lines if one.split(",")[2] < LOOK))
    print(f"Until the third evening, {LOOK.replace('T', ' ')} UTC:\n")
    early = imported(service, id, part)
    print("The whole week:\n")
    return early, imported(service, id, TRAFFIC)


def imported(service: Service, id: str, file: Path) -> Any:
    """Import a file, which may be there in part; print and return what is computed."""
    service.operate("import", id, str(file))
    service.connection.close()  # idle meanwhile, it may be closed over there
    return shown(service, id)


def started(service: Service, key: str, name: str, variants: Any, **more: Any) -> str:
    """Return the id of a new experiment that runs."""
    body = {"key": key, "name": name, "primaryMetric": "click", "variants": variants}
    id = service("POST", "/api/experiments", body | more)["id"]
    service("POST", f"/api/experiments/{id}/start")
    return str(id)


def shown(service: Service, id: str) -> Any:
    """Print the computed result as the service draws it, and return it."""
    path = f"/api/experiments/{id}/compute-results"
    print(service.text("GET", path), flush=True)
    return service("GET", path)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
