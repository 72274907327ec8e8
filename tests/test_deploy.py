"""The shipped nginx configuration, run for real in front of a real service."""

import json
import os
import re
import shutil
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import NamedTuple

import pytest
import service as real
from conftest import leave_out

HEAD = "POST /api/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
SLOW = {
    "half a head": HEAD,
    "half a body": HEAD + "Content-Length: 100\r\n\r\n{",
}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with real.served(tmp_path_factory.mktemp("instance")) as service:
        yield service


class Proxy(NamedTuple):
    """A running nginx: its port, and the folder of its logs."""

    port: int
    folder: Path

    def logged(self, *words):
        """Return all that it wrote, once these words are in it.

        A line is written after its answer was sent.
        """
        deadline = time.monotonic() + 5
        while True:
            files = self.folder.glob("*.log")
            written = "".join(file.read_text() for file in files)
            if all(word in written for word in words):
                return written
            assert time.monotonic() < deadline, written
            time.sleep(0.02)


def configured(folder, port, upstream, listen):
    """Write the shipped configuration for these ports and folder; return the file.

    *listen* are the lines in the place of `listen 8080;`.
    """
    shipped = (real.ROOT / "deploy" / "nginx.conf").read_text()
    for theirs, ours in (
        ("listen 8080;", listen.replace("PORT", f"127.0.0.1:{port}")),
        ("server 127.0.0.1:8000;", f"server 127.0.0.1:{upstream};"),
        ("/var/log/nginx/", f"{folder}/"),
    ):
        assert theirs in shipped
        shipped = shipped.replace(theirs, ours)
    paths = "".join(
        f"{name}_temp_path {folder / name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    file = folder / "nginx.conf"
    file.write_text(
        # As root, the workers must be able to write below this folder too.
        f"{'user root;' if os.getuid() == 0 else ''}"
        f"daemon off; pid {folder / 'pid'}; worker_processes 1;"
        "events { worker_connections 512; }"
        f"http {{ {paths} {shipped} }}"
    )
    return file


@contextmanager
def proxied(folder, upstream, listen="listen PORT;"):
    """Yield nginx with the shipped configuration, in front of this port."""
    if shutil.which("nginx") is None:
        leave_out("nginx is not installed; .ci/run installs it")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    file, log = configured(folder, port, upstream, listen), folder / "error.log"
    nginx = subprocess.Popen(["nginx", "-e", str(log), "-c", str(file)])
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert nginx.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
        yield Proxy(port, folder)
    finally:
        nginx.terminate()
        nginx.wait(10)


@pytest.fixture(scope="module")
def proxy(service, tmp_path_factory):
    with proxied(tmp_path_factory.mktemp("nginx"), service.port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def port(proxy):
    return proxy.port


@contextmanager
def held(port, number, sent):
    """Hold that many connections open, each with only this much sent."""
    connections = []
    try:
        for _ in range(number):
            connections.append(socket.create_connection(("127.0.0.1", port)))
            connections[-1].sendall(sent.encode())
        yield
    finally:
        for connection in connections:
            connection.close()


def answered(port, method, path, body=None, token="", timeout=10):
    """Return the answer's status, its headers, and its body."""
    connection = HTTPConnection("127.0.0.1", port, timeout=timeout)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def asked(*words, **options):
    return answered(*words, **options)[0]


def assert_shape(answer, status, code):
    """Assert that nginx's own refusal has the one shape of every error."""
    assert answer[0] == status, answer
    assert answer[1]["Content-Type"] == "application/json"
    error = json.loads(answer[2])["error"]
    assert set(error) == {"statusCode", "code", "message", "details", "requestId"}
    assert (error["statusCode"], error["code"]) == (status, code)
    assert error["requestId"] == answer[1]["X-Request-ID"]
    assert answer[1]["Retry-After"] == ("1" if status in (429, 503) else None)


@pytest.mark.parametrize("sent", SLOW.values(), ids=SLOW)
def test_behind_the_proxy_64_slow_clients_hold_up_nobody(service, port, sent):
    with held(port, 64, sent):
        began = time.monotonic()
        assert asked(port, "GET", "/healthz") == 200
        assert asked(port, "GET", "/api/experiments", token=service.token) == 200
        assert time.monotonic() - began < 2


def test_without_the_proxy_they_do_hold_it_up(service):
    """What the proxy is for; should this fail, the manual may stop demanding one."""
    with (
        held(service.port, 64, SLOW["half a body"]),
        pytest.raises(TimeoutError),
    ):
        # Connections are taken in turn: soon there is no thread left to answer.
        for _ in range(50):
            asked(service.port, "GET", "/healthz", timeout=2)


def test_only_a_batch_may_be_larger_than_a_mebibyte(service, port):
    large = b" " * 2_000_000

    refused = answered(port, "POST", "/api/experiments", large, service.token)
    assert_shape(refused, 413, "PAYLOAD_TOO_LARGE")
    # 400 is the service's own: it was let through, and it is not JSON.
    assert asked(port, "POST", "/api/events/batch", large, service.token) == 400
    over = b" " * (10 * 1024 * 1024 + 1)
    assert asked(port, "POST", "/api/events/batch", over, service.token) == 413
    for path in (
        "/api/experiments/exp_1/assignments/batch",
        "/api/experiments/exp_1/conversions/batch",
    ):
        assert asked(port, "POST", path, large, service.token) == 400
    for path in (
        "/api/audiences/x/batch",
        "/api/experiments/exp_1/overrides/batch",
        "/api/experiments/exp_1/overrides/assignments/batch",
        "/api/users/u1/assignments/batch",
        "/api/experiments/batch",
    ):
        refused = answered(port, "PUT", path, large, service.token)
        assert_shape(refused, 413, "PAYLOAD_TOO_LARGE")


DEPLOYING = (real.ROOT / "docs" / "deploying.md").read_text()


def test_the_documented_request_through_the_proxy_is_answered(service, port):
    (line,) = re.findall(r"^curl .*abacus\.example:8080/.*$", DEPLOYING, re.MULTILINE)
    line = line.replace("abacus.example:8080", f"127.0.0.1:{port}")
    told = subprocess.check_output(
        ["bash", "-c", line], env={**os.environ, "TOKEN": service.token}, text=True
    )

    assert list(json.loads(told)) == ["data", "meta"]


def test_with_the_documented_lines_the_proxy_speaks_tls(service, tmp_path):
    (lines,) = re.findall(r"```nginx\n(.*?)```", DEPLOYING, re.DOTALL)
    theirs = "/etc/letsencrypt/live/abacus.example/"
    assert lines.count(theirs) == 2 and lines.count("listen 443 ssl;") == 1
    lines = lines.replace(theirs, f"{tmp_path}/")
    certificate, key = tmp_path / "fullchain.pem", tmp_path / "privkey.pem"
    made = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=abacus.example "
        f"-addext subjectAltName=DNS:abacus.example -out {certificate} -keyout {key}"
    )
    subprocess.run(made.split(), check=True, capture_output=True)
    listen = lines.replace("listen 443 ssl;", "listen PORT ssl;")
    with proxied(tmp_path, service.port, listen) as proxy:
        host = f"abacus.example:{proxy.port}"
        request = (
            f"curl --fail --silent --show-error --include --cacert {certificate} "
            f"--resolve {host}:127.0.0.1 https://{host}/readyz"
        )
        answer = subprocess.check_output(request.split(), text=True)

    assert answer.startswith("HTTP/1.1 200")
    assert "Strict-Transport-Security: max-age=63072000" in answer
    assert '{"status": "ok"}' in answer


def test_the_page_of_the_api_stays_at_its_host_and_port(port):
    status, headers, _ = answered(port, "GET", "/docs")

    assert (status, headers["Location"]) == (308, "/docs/")


def test_one_address_has_at_most_100_requests_open(service, port):
    with held(port, 100, SLOW["half a body"]):
        deadline = time.monotonic() + 5
        while (refused := answered(port, "GET", "/healthz"))[0] != 503:
            assert time.monotonic() < deadline
        assert_shape(refused, 503, "UNAVAILABLE")

    deadline = time.monotonic() + 5
    while asked(port, "GET", "/healthz") != 200:
        assert time.monotonic() < deadline


def test_what_the_service_answers_passes_the_proxy_unchanged(service, port):
    through = HTTPConnection("127.0.0.1", port, timeout=10)
    through.request("GET", "/api/experiments")
    answer = through.getresponse()
    body = answer.read()
    through.close()

    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.headers["X-Request-ID"].encode() in body


def test_a_request_line_of_8190_bytes_passes_the_proxy(port):
    path = "/api/experiments/"
    path += "x" * (8190 - len(f"GET {path} HTTP/1.1"))

    assert asked(port, "GET", path) == 401


@pytest.mark.alone
def test_a_token_that_asks_too_often_is_429_and_no_other_is(port):
    spellings = (  # of one token
        *("Bearer {}", "bearer {}", "BEARER {}", "Bearer  {}"),
        *("Bearer {}\t", "Bearer {}=", "Bearer {}==\t \t", "Bearer {},", "Bearer {}~"),
    )

    def ask(number):
        connection = HTTPConnection("127.0.0.1", port, timeout=10)
        told = []
        for place in range(300):
            spelling = spellings[(number + place) % len(spellings)]
            headers = {"Authorization": spelling.format("hasty.token.x")}
            connection.request("GET", "/healthz", headers=headers)
            answer = connection.getresponse()
            told.append((answer.status, answer.headers, answer.read()))
        connection.close()
        return told

    began = time.monotonic()
    with ThreadPoolExecutor(4) as callers:
        told = [one for many in callers.map(ask, range(4)) for one in many]
        other = asked(port, "GET", "/healthz", token="patient.token.x")
    took = time.monotonic() - began

    assert other == 200
    assert {one[0] for one in told} == {200, 429}
    for one in told:
        if one[0] == 429:
            assert_shape(one, 429, "TOO_MANY_REQUESTS")
    # The burst at once, and then 200 a second.
    passed = [one[0] for one in told].count(200)
    assert 400 <= passed <= 401 + 200 * took
    deadline = time.monotonic() + 5
    while asked(port, "GET", "/healthz", token="hasty.token.x") != 200:
        assert time.monotonic() < deadline


@pytest.mark.alone
def test_an_address_that_asks_too_often_without_a_token_is_429(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = free.getsockname()[1]  # so that every answer is the proxy's own

    def ask(port):
        connection = HTTPConnection("127.0.0.1", port, timeout=10)
        told = []
        for place in range(500):
            # None is a token, and each would be a caller of its own.
            sent = ["", "Basic eDp5", f"Bearer x{place}", "Bearer"][place % 4]
            connection.request("GET", "/docs/", headers={"Authorization": sent})
            answer = connection.getresponse()
            answer.read()
            told.append(answer.status)
        connection.close()
        return told

    with proxied(tmp_path, nobody) as proxy, ThreadPoolExecutor(4) as callers:
        told = [one for many in callers.map(ask, [proxy.port] * 4) for one in many]
        other = asked(proxy.port, "GET", "/docs/", token="patient.token.x")

    assert set(told) == {503, 429}
    assert other == 503


def test_without_the_service_the_proxy_answers_in_its_shape(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = free.getsockname()[1]
    with proxied(tmp_path, nobody) as proxy:
        refused = answered(proxy.port, "GET", "/api/users/marker-user/assignments")

        assert_shape(refused, 503, "UNAVAILABLE")
        assert "marker" not in proxy.logged(" 503 ", " 502 ")


def test_the_proxy_refuses_flags_in_the_shape_of_their_protocol(
    service, port, tmp_path
):
    place, token = "/ofrep/v1/evaluate/flags", service.token
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = free.getsockname()[1]

    def hastily(_):
        return [answered(port, "POST", place, b"{}", "hasty.x.y") for _ in range(300)]

    large = answered(port, "POST", f"{place}/checkout", b" " * 2_000_000, token)
    with ThreadPoolExecutor(4) as callers:
        told = [one for some in callers.map(hastily, range(4)) for one in some]
    with proxied(tmp_path, nobody) as proxy:
        gone = answered(proxy.port, "POST", place, b"{}", token)

    many = {one[0]: one for one in told}
    assert set(many) == {401, 429}
    for status, code, answer in (
        (400, "PARSE_ERROR", large),
        (401, "GENERAL", many[401]),
        (429, "GENERAL", many[429]),
        (503, "GENERAL", gone),
    ):
        assert answer[0] == status
        assert answer[1]["Content-Type"] == "application/json"
        assert answer[1]["Retry-After"] == ("1" if status in (429, 503) else None)
        body = json.loads(answer[2])
        assert set(body) == {"key", "reason", "variant", "errorCode", "errorDetails"}
        assert (body["errorCode"], body["variant"]) == (code, "not_enrolled")


def test_the_metrics_are_not_for_the_open_network(service, port):
    assert_shape(answered(port, "GET", "/metrics"), 404, "NOT_FOUND")
    assert b"abacus_" in answered(service.port, "GET", "/metrics")[2]


def hasty(asked):
    """Ask for a path 500 times on one connection; return the statuses told."""
    port, path = asked
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    told = set()
    for _ in range(500):
        headers = {"Authorization": "Bearer marker.token.x"}
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        answer.read()
        told.add(answer.status)
    connection.close()
    return told


def test_what_the_proxy_writes_down_names_no_user_and_no_token(service, proxy):
    path = "/api/users/marker-user/assignments"

    assert asked(proxy.port, "GET", path, token="marker.token.x") == 401
    assert asked(proxy.port, "GET", path, token=service.token) == 200
    assert asked(proxy.port, "POST", path, b" " * 2_000_000) == 413
    with ThreadPoolExecutor(4) as callers:
        assert 429 in set().union(*callers.map(hasty, [(proxy.port, path)] * 4))
    with held(proxy.port, 100, SLOW["half a body"].replace("/events", path[4:])):
        deadline = time.monotonic() + 5
        while asked(proxy.port, "GET", path) != 503:
            assert time.monotonic() < deadline

    written = proxy.logged(" 401 ", " 200 ", " 413 ", " 429 ", " 503 ")
    assert "marker" not in written and service.token not in written
    assert "127.0.0.1" not in written
