"""Let 300 users visit the shop, with Abacus away in between; compare the two books.

Starts an Abacus and a shop of its own, in a folder of its own, and leaves nothing
behind. On a terminal, the shop stays open until Ctrl-C.

    python visits.py [SHOP]

The shop is the one for Python, or a program of Node, whose page 12 more users visit in
a headless Chromium if there is one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

SHOP = Path(__file__).with_name("shop.py")
CLIENT, ROOT = SHOP.parents[1], SHOP.parents[3]
EXPERIMENT = {
    "name": "The label of the button",
    "key": "buy-button",
    "primaryMetric": "purchase",
    "variants": [
        {"name": "Buy", "splitPercentage": 50},
        {"name": "Buy now", "splitPercentage": 50},
    ],
}


class Server:
    """A program on a free port of this machine, which can be stopped and started."""

    def __init__(self, awaited: str, *command: str, **environment: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url, self._awaited = f"http://127.0.0.1:{self.port}", awaited
        port = str(self.port)
        self._command = [
            *(one.replace("{port}", port) for one in command),
        ]
        self.environment = {**environment, "PORT": port}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait for 30 seconds at most until it answers."""
        self._process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(300):
            with suppress(OSError):
                self.ask("GET", self._awaited)
                return
            time.sleep(0.1)
        raise SystemExit(f"{self._command} does not start.")

    def stop(self) -> None:
        """End it as a shutdown does."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)

    def ask(self, method: str, path: str, body: str = "", **headers: str) -> str:
        """Return the text of a good answer."""
        return self.asked(method, path, body, **headers)[0]

    def asked(
        self, method: str, path: str, body: str = "", **headers: str
    ) -> tuple[str, str]:
        """Return the text of a good answer, and its cookie."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body or None, headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        if answer.status >= 400:
            raise SystemExit(f"{method} {path}: {answer.status} {text}")
        return text, (answer.headers["Set-Cookie"] or "").partition(";")[0]


def shop_of(url: str, token: str, folder: Path, shop: Path = SHOP) -> Server:
    """Return a shop that asks the Abacus at this URL; its file is in the folder."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(CLIENT),
        "ABACUS_URL": url,
        "ABACUS_TOKEN": token,
        "ABACUS_CACHE": str(folder / "definitions.json"),
    }
    interpreter = "node" if shop.suffix == ".js" else sys.executable
    return Server("/book", interpreter, str(shop), **environment)


def visit(shop: Server, numbers: Iterable[int]) -> None:
    """Let users visit the shop: each third one buys, and some buy twice.

    Of the orders, each third one is sent twice, as by a double click.
    """
    for number in numbers:
        page, cookie = shop.asked("GET", "/")
        sent = [number] * (number % 3 == 0) + [number] * (number % 15 == 0)
        for _ in sent:
            found = re.search(r'name="order" value="([\w-]+)"', page)
            clicks = 2 if number % 9 == 0 else 1
            for _click in range(clicks):
                form = {"Content-Type": "application/x-www-form-urlencoded"}
                body = f"order={found[1] if found else ''}"
                shop.ask("POST", "/orders", body, Cookie=cookie, **form)
            page = shop.ask("GET", "/", Cookie=cookie)


def book_of(shop: Server) -> dict[str, Any]:
    """Return the shop's own book once Abacus has everything that it was sent."""
    until(lambda: read(shop)["waiting"] == 0)
    return read(shop)


def read(shop: Server) -> dict[str, Any]:
    """Return the shop's own book as it is now."""
    book: dict[str, Any] = json.loads(shop.ask("GET", "/book"))
    return book


def until(holds: Callable[[], bool]) -> None:
    """Wait for 30 seconds at most."""
    for _ in range(300):
        if holds():
            return
        time.sleep(0.1)
    raise SystemExit("The reports did not arrive.")


def flask(folder: str, *words: str) -> str:
    """Run a command of Abacus's operator; return what it prints."""
    command = [sys.executable, "-m", "flask", "--app", "wsgi", *words]
    environment = environment_of(folder)
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )
    return ended.stdout.strip()


def environment_of(folder: str) -> dict[str, str]:
    """Return this environment with nothing that names another Abacus."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name != "DATABASE_URL" and not name.startswith("JWT_")
    }
    return {**kept, "INSTANCE": folder}


def counted(results: dict[str, Any]) -> dict[str, Any]:
    """Return what Abacus has counted, in the shape of the shop's book."""
    rows = {each["variantName"]: each for each in results["variants"]}
    purchases = {name: each["results"][0] for name, each in rows.items()}
    return {
        "visitors": {name: each["participants"] for name, each in rows.items()},
        "buyers": {name: each["conversions"] for name, each in purchases.items()},
        "orders": {name: each["events"] for name, each in purchases.items()},
    }


def clicked(results: dict[str, Any]) -> dict[str, int]:
    """Return how many clicks Abacus has counted of each variant, without none."""
    return {
        each["variantName"]: row["events"]
        for each in results["variants"]
        for row in each["results"]
        if row["metric"] == "click"
    }


def main() -> None:
    """Play it, and print the books and the result."""
    program = Path(sys.argv[1]).resolve() if sys.argv[1:] else SHOP
    for ending in (signal.SIGTERM, signal.SIGHUP):  # the servers are stopped then too
        signal.signal(ending, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory() as folder:
        flask(folder, "init")
        token = {"Authorization": f"Bearer {flask(folder, 'token', 'me')}"}
        gunicorn = ("-m", "gunicorn", "wsgi:app", "--bind", "127.0.0.1:{port}")
        abacus = Server("/readyz", sys.executable, *gunicorn, **environment_of(folder))
        shop_token = flask(folder, "token", "shop", "--scope", "assign")
        shop = shop_of(abacus.url, shop_token, Path(folder), program)
        abacus.environment["CORS_ORIGINS"] = shop.url
        try:
            abacus.start()
            body, path = json.dumps(EXPERIMENT), "/api/experiments"
            form = {**token, "Content-Type": "application/json"}
            abacus.ask("POST", path, body, **form)
            abacus.ask("POST", f"{path}/buy-button/start", **token)
            shop.start()
            print(f"Abacus is at {abacus.url}, and the shop at {shop.url}.", flush=True)
            played(abacus, shop)

            def results() -> dict[str, Any]:
                answer = abacus.ask("GET", f"{path}/buy-button/results", **token)
                data = json.loads(answer)["data"]
                return {**counted(data), "clicks": clicked(data)}

            if program != SHOP:
                browsed(abacus, shop, folder, results)
            agree(book_of(shop), results())
            accept = {**token, "Accept": "text/plain"}
            print(abacus.ask("GET", f"{path}/buy-button/compute-results", **accept))
            stay_open(shop)
        finally:
            shop.stop()
            abacus.stop()


def played(abacus: Server, shop: Server) -> None:
    """Let 100 users visit before a stop of Abacus, 100 during it, and 100 after it."""
    visit(shop, range(100))
    abacus.stop()
    print("100 users have visited the shop. Abacus is stopped.", flush=True)
    visit(shop, range(100, 200))
    print("200 users have visited the shop. Abacus starts again.", flush=True)
    abacus.start()
    visit(shop, range(200, 300))
    print("300 users have visited the shop.\n", flush=True)


def browsed(
    abacus: Server, shop: Server, folder: str, results: Callable[[], dict[str, Any]]
) -> None:
    """Let 12 users visit the shop in Chromium; Abacus is away when one of them buys."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print("There is no Chromium, so no browser visits the shop.\n", flush=True)
        return
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    browser = subprocess.Popen(
        [chromium, *flags, f"--user-data-dir={folder}/browser", f"{shop.url}/walk"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: read(shop)["isWaiting"])
        abacus.stop()
        until(lambda: sum(read(shop)["clicks"].values()) == 11)
        abacus.start()
        until(lambda: sum(results()["clicks"].values()) == 12)
    finally:
        browser.terminate()
        browser.wait(30)
    print(
        "12 users have visited it in Chromium, one while Abacus was away.\n", flush=True
    )


def agree(book: dict[str, Any], abacus: dict[str, Any]) -> None:
    """Print the counts of the shop beside those of Abacus; they must be equal."""
    print(f"{'':24}{'shop':>8}{'Abacus':>8}")
    for kind, counts in abacus.items():
        for label, number in counts.items():
            own = book[kind].get(label, 0)
            print(f"{kind + ', ' + label:24}{own:8}{number:8}")
            if own != number:
                raise SystemExit("The books differ.")
    print(flush=True)


def stay_open(shop: Server) -> None:
    """Keep the shop open for a person, until Ctrl-C."""
    if sys.stdin.isatty():
        print(f"The shop stays open at {shop.url}. Ctrl-C closes it.", flush=True)
        with suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)


if __name__ == "__main__":
    main()
