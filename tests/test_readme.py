"""The README promises nothing that is not so."""

import json
import os
import re
import shutil
import socket
import subprocess
import time
from http.client import HTTPConnection
from pathlib import Path

import pytest
import service as real

import app as application
import assignment
from models import STATUSES

README = (real.ROOT / "README.md").read_text()


def test_every_curl_line_works_when_pasted_in_order(tmp_path):
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    with real.served(tmp_path / "instance") as service:
        script = "\n".join(blocks)
        script = script.replace("127.0.0.1:8000", f"127.0.0.1:{service.port}")
        script = script.replace(".venv/bin/flask", f"{real.sys.executable} -m flask")
        script = script.replace("/tmp/abacus.json", str(tmp_path / "abacus.json"))
        told = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=real.ROOT,
            env=real.environment(service.instance),
            capture_output=True,
            text=True,
            check=False,
        )
        routes = {
            (method, re.sub("<.*?>", "<>", rule.rule))
            for rule in application.create_app().url_map.iter_rules()
            if rule.rule.startswith("/api")
            for method in rule.methods - {"HEAD", "OPTIONS"}
        }
        lines = [one for one in service.log.read_text().splitlines() if "{" in one]
        asked = {
            (line["method"], re.sub("<.*?>", "<>", line["route"]))
            for line in map(json.loads, lines)
            if line.get("route", "").startswith("/api")
        }

    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stdout.count('{"data": ') == script.count("\nask ")
    assert asked == routes, "an endpoint has no curl line"


@pytest.mark.parametrize(
    ("salt", "user_id", "bucket"),
    re.findall(r"\| `(exp_\w+)` \| `(.+?)` \| (\d+) \|", README),
)
def test_the_vectors_are_those_of_the_hash(salt, user_id, bucket):
    assert assignment.bucket(salt, user_id) == int(bucket)


def test_every_setting_that_is_read_is_in_the_table_and_no_other():
    table = README.partition("| setting (environment)")[2].partition("\n\n")[0]
    first = [line.split("|")[1] for line in table.splitlines()[2:]]
    written = {name for cell in first for name in re.findall(r"`(\w+)`", cell)}
    sources = [(real.ROOT / name).read_text() for name in ("app.py", "auth.py")]
    read = {name for text in sources for name in re.findall(r'setting\("(\w+)"', text)}

    assert written == read


def test_every_code_and_every_state_is_in_the_manual():
    for word in (*application.CODES.values(), *STATUSES):
        assert word in README or word == "INTERNAL_ERROR", word


def test_the_lines_for_embedding_work():
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    scope = {}

    exec(code, scope)  # noqa: S102  (it is what the reader pastes)

    assert scope["client"].get("/readyz").status_code == 200


@pytest.fixture
def proxied(tmp_path):
    """Yield the port of nginx with the shipped configuration, and the service."""
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed; .ci/run installs it")
    with real.served(tmp_path / "instance") as service:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        shipped = (real.ROOT / "deploy" / "nginx.conf").read_text()
        shipped = shipped.replace("listen 8080", f"listen 127.0.0.1:{port}")
        shipped = shipped.replace("127.0.0.1:8000", f"127.0.0.1:{service.port}")
        paths = "".join(
            f"{name}_temp_path {tmp_path / name};"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        whole = tmp_path / "nginx.conf"
        whole.write_text(
            # As root, the workers must be able to write below this folder too.
            f"{'user root;' if os.getuid() == 0 else ''}"
            f"daemon off; pid {tmp_path / 'pid'}; worker_processes 1;"
            "events { worker_connections 512; }"
            f"http {{ access_log off; {paths} {shipped} }}"
        )
        nginx = subprocess.Popen(
            ["nginx", "-e", str(tmp_path / "error.log"), "-c", str(whole)]
        )
        try:
            deadline = time.monotonic() + 10
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            yield port, service
        finally:
            nginx.terminate()
            nginx.wait(10)


def asked(port, method, path, body=None, token=""):
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def test_behind_the_shipped_proxy_slow_clients_hold_up_nobody(proxied):
    port, service = proxied
    half = b"POST /api/events HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n"
    held = [socket.create_connection(("127.0.0.1", port)) for _ in range(64)]
    for connection in held:
        connection.sendall(half)
    try:
        began = time.monotonic()
        assert asked(port, "GET", "/healthz") == 200
        assert asked(port, "GET", "/api/experiments", token=service.token) == 200
        assert time.monotonic() - began < 2
    finally:
        for connection in held:
            connection.close()
    large = b" " * 2_000_000
    assert asked(port, "POST", "/api/experiments", large) == 413
    assert asked(port, "POST", "/api/events/batch", large, service.token) == 400


def test_nothing_in_the_repository_names_where_it_was_made():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=real.ROOT, capture_output=True, text=True, check=False
    )
    for name in listed.stdout.splitlines():
        path = Path(real.ROOT / name)
        if path.suffix != ".gz" and path.name != "test_readme.py":
            assert "/work/" not in path.read_text(), name
