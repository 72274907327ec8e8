"""A real service for a test: gunicorn with two workers, on a free port."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SHARED = {"DATABASE_URL"}  # settings that the operator's commands need too
GRACE = 30  # gunicorn.conf.py's graceful_timeout
GUNICORN = (sys.executable, "-m", "gunicorn", "wsgi:app")


def environment(instance: Path) -> dict[str, str]:
    """Return this environment with our settings left out but for the instance."""
    ours = ("DATABASE_URL", "CORS_ORIGINS")
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ours and not name.startswith("JWT_")
    }
    return {**kept, "INSTANCE": str(instance)}


def flask(
    instance: Path,
    *words: str,
    check: bool = True,
    tree: Path = ROOT,
    **settings: str,
) -> Any:
    """Run an operator's command with these settings, and return what it said."""
    return subprocess.run(
        [sys.executable, "-m", "flask", "--app", "wsgi", *words],
        cwd=tree,
        env={**environment(instance), **settings},
        check=check,
        capture_output=True,
        text=True,
    )


def on_a_terminal(instance: Path, *words: str, stdin: Any = None) -> tuple[Any, str]:
    """Run a command with a terminal as stderr; return its result and that text."""
    screen, terminal = os.openpty()
    with open(screen, "rb", buffering=0) as shown, open(terminal, "wb") as stderr:
        told = subprocess.run(
            [sys.executable, "-m", "flask", "--app", "wsgi", *words],
            cwd=ROOT,
            env=environment(instance),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            check=False,
        )
        stderr.write(b"\n")  # a terminal without a text would have no end
        stderr.flush()
        return told, shown.read(65_536).decode()


def refusal(instance: Path, *words: str, **settings: str) -> str:
    """Start gunicorn, which must end by itself; return what it says.

    It ends with 3, and with 1 where two workers refuse at once.
    """
    started = subprocess.run(
        [*GUNICORN, "--bind", "127.0.0.1:0", *words],
        cwd=ROOT,
        env={**environment(instance), **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert started.returncode in (1, 3), started.stderr
    return started.stderr


def wait_until(done: Callable[[], Any], seconds: float) -> float:
    """Return how long it took; fail after so many seconds."""
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < seconds
        time.sleep(0.01)
    return time.monotonic() - began


@cache
def made_ready(tree: Path) -> tuple[Path, str]:
    """Return an instance folder as `init` leaves it, to be copied, and a token.

    The two commands take longer than a service takes to start. *tree* has the code
    that runs: one that was broken on purpose may have another schema.
    """
    made = Path(tempfile.mkdtemp(prefix="abacus-"))
    atexit.register(shutil.rmtree, made)
    flask(made, "init", tree=tree)
    return made, flask(made, "token", "tester", tree=tree).stdout.strip()


def prepare(instance: Path) -> None:
    """Make an instance folder as `init` leaves it, with a database and a secret."""
    shutil.copytree(made_ready(ROOT)[0], instance, dirs_exist_ok=True)


ENDING: list[subprocess.Popen[bytes]] = []


@atexit.register
def ended() -> None:
    """Wait for the services that were told to end; none may take longer than this."""
    while ENDING:
        ENDING.pop().wait(GRACE)


class Service:
    """A running service; called, it answers status and body.

    Its database is the file in the instance folder, or the one that a setting names,
    which has the tables.
    *tree* has the code that runs, and *wrapper* the command that it runs under.
    """

    def __init__(
        self,
        instance: Path,
        tree: Path = ROOT,
        wrapper: Sequence[str] = (),
        **settings: str,
    ) -> None:
        ended()
        self.instance, self.tree, self.wrapper = instance, tree, wrapper
        self.settings = settings
        assert not (instance / "abacus.db").exists()
        empty, self.token = made_ready(tree)
        shutil.copytree(empty, instance, dirs_exist_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = instance.with_name(f"{instance.name}.log")
        self.start()

    def flask(self, *words: str) -> Any:
        """Run an operator's command where the service runs; return what it said."""
        settings = {name: self.settings[name] for name in SHARED & set(self.settings)}
        return flask(self.instance, *words, tree=self.tree, **settings)

    def start(self, awaited: str = "/readyz") -> None:
        """Start it, and wait until this path answers 200."""
        address = f"127.0.0.1:{self.port}"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.wrapper, *GUNICORN, "--bind", address],
                cwd=self.tree,
                env={**environment(self.instance), **self.settings},
                stderr=log,
                start_new_session=True,
            )
        try:
            self._wait(awaited)
        except BaseException:
            if self.process.poll() is None:
                self.kill()  # nobody else could
            raise

    def restarted(self) -> float:
        """Start it, and return the seconds until it was ready."""
        began = time.monotonic()
        self.start()
        return time.monotonic() - began

    def _wait(self, awaited: str) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                if self("GET", awaited)[0] == 200:
                    return
            except (OSError, HTTPException):
                pass
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)

    def end(self) -> None:
        """Stop it as `stop` does, and let the next service wait for that."""
        self.process.terminate()
        ENDING.append(self.process)

    def workers(self) -> set[int]:
        """Return the process ids of the service's workers."""
        listed = subprocess.run(
            ["ps", "--ppid", str(self.process.pid), "-o", "pid="],
            capture_output=True,
            text=True,
            check=False,  # 1 where there is none
        )
        return {int(pid) for pid in listed.stdout.split()}

    def kill(self) -> None:
        """Kill master and workers at once, as a power cut would."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def __call__(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        path = path if path.startswith("/") else f"/api/{path}"
        headers = {"Authorization": f"Bearer {self.token}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
            body = body if isinstance(body, str) else json.dumps(body)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def data(self, method: str, path: str, body: Any = None) -> Any:
        """Return the data of an answer that must be good."""
        status, answer = self(method, path, body)
        assert status < 300, answer
        return answer["data"]

    def running(self, name: str = "Experiment", **fields: Any) -> str:
        """Return the path of a new experiment that runs."""
        variants = [
            {"name": "Control", "splitPercentage": 50},
            {"name": "Detailed", "splitPercentage": 50},
        ]
        made = self.data(
            "POST", "experiments", {"name": name, "variants": variants, **fields}
        )
        self.data("POST", f"experiments/{made['id']}/start")
        return f"experiments/{made['id']}"


@contextmanager
def served(instance: Path, **settings: Any) -> Iterator[Service]:
    """Yield a service with these settings in its environment; stop it at the end."""
    service = Service(instance, **settings)
    try:
        yield service
    finally:
        service.stop()
