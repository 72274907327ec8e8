"""Replay a real experiment's traffic, over HTTP and by import; print its results.

Runs a service of its own, in a folder of its own, and leaves nothing behind.
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
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TRAFFIC = ROOT / "demo" / "open_bandit_men.csv.gz"
ARMS = ("random", "bts")  # the control first
BATCH = 500

sys.path.insert(0, str(ROOT))
from targeting import assignment  # noqa: E402


class Client:
    """Speaks JSON to the service, over one connection."""

    def __init__(self, port: int, token: str) -> None:
        self.connection = HTTPConnection("127.0.0.1", port, timeout=30)
        self.headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/json",
        }

    def __call__(self, method: str, path: str, body: Any = None) -> Any:
        return json.loads(self.text(method, path, body, "application/json"))["data"]

    def text(
        self, method: str, path: str, body: Any = None, form: str = "text/plain"
    ) -> str:
        sent = None if body is None else json.dumps(body)
        headers = {**self.headers, "Accept": form}
        self.connection.request(method, path, sent, headers)
        answer = self.connection.getresponse()
        text = answer.read().decode()
        if answer.status >= 400:
            raise SystemExit(f"{method} {path}: {answer.status} {text}")
        return text


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "INSTANCE": folder}
        for name in ("DATABASE_URL", "JWT_SECRET_KEY", "JWT_PUBLIC_KEY"):
            environment.pop(name, None)
        flask = [sys.executable, "-m", "flask", "--app", "wsgi"]
        operate = {"cwd": ROOT, "env": environment, "check": True, "text": True}
        subprocess.run([*flask, "init"], **operate, stdout=subprocess.DEVNULL)
        made = subprocess.run([*flask, "token", "demo"], **operate, capture_output=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        address = f"127.0.0.1:{port}"
        server = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "wsgi:app", "--bind", address],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(port)
            client = Client(port, made.stdout.strip())
            replayed = started(client, "Open Bandit, men, over HTTP")
            replay(client, replayed)
            client.connection.close()  # idle meanwhile, it may be closed over there
            show(client, replayed)
            imported = started(client, "Open Bandit, men, by import")
            subprocess.run([*flask, "import", imported, str(TRAFFIC)], **operate)
            show(client, imported)
            subprocess.run([*flask, "check"], **operate)
        finally:
            server.terminate()
            server.wait()


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


def started(client: Client, name: str) -> str:
    """Return the id of a new experiment that runs."""
    variants = [{"name": arm, "splitPercentage": 50} for arm in ARMS]
    body = {"name": name, "primaryMetric": "click", "variants": variants}
    id = client("POST", "/api/experiments", body)["id"]
    client("POST", f"/api/experiments/{id}/start")
    return str(id)


def replay(client: Client, id: str) -> None:
    """Send each impression as an enrolment, and each click as a conversion."""
    with gzip.open(TRAFFIC, "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    began = time.monotonic()
    path = f"/api/experiments/{id}"
    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        users = [
            {"userId": dealt_to(id, row["user_id"], ARMS.index(row["variant"]))}
            for row in some
        ]
        given = client("POST", f"{path}/assignments/batch", {"users": users})
        for row, decision in zip(some, given, strict=True):
            if decision["variantName"] != row["variant"]:
                user, variant = decision["userId"], decision["variantName"]
                raise SystemExit(f"{user} was given {variant}.")
        clicks = [
            user for row, user in zip(some, users, strict=True) if row["converted_at"]
        ]
        if clicks:
            client("POST", f"{path}/conversions/batch", {"conversions": clicks})
        sent = start + len(some)
        if sent % 5_000 == 0:
            print(f"{sent:,} of {len(rows):,} impressions", flush=True)
    print(f"replayed in {time.monotonic() - began:.0f} s, {BATCH} at a time\n")


def dealt_to(id: str, user_id: str, arm: int) -> str:
    """Return the user id with the suffix that makes the hash deal it this arm."""
    suffixed = (f"{user_id}~{number}" for number in itertools.count())
    return next(
        one for one in suffixed if assignment.dealt(id, one, [5000, 5000]) == arm
    )


def show(client: Client, id: str) -> None:
    """Print the computed result as the service draws it."""
    print(client.text("POST", f"/api/experiments/{id}/compute-results"), flush=True)


if __name__ == "__main__":
    main()
