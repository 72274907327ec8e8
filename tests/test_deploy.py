"""The shipped nginx configuration, run for real in front of a real service."""

import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from http.client import HTTPConnection

import pytest
import service as real

HEAD = "POST /api/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
SLOW = {
    "half a head": HEAD,
    "half a body": HEAD + "Content-Length: 100\r\n\r\n{",
}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with real.served(tmp_path_factory.mktemp("instance")) as service:
        yield service


@pytest.fixture(scope="module")
def port(service, tmp_path_factory):
    """Yield the port of nginx with the shipped configuration."""
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed; .ci/run installs it")
    folder = tmp_path_factory.mktemp("nginx")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shipped = (real.ROOT / "deploy" / "nginx.conf").read_text()
    for theirs, ours in (
        ("listen 8080;", f"listen 127.0.0.1:{port};"),
        ("server 127.0.0.1:8000;", f"server 127.0.0.1:{service.port};"),
    ):
        assert theirs in shipped
        shipped = shipped.replace(theirs, ours)
    paths = "".join(
        f"{name}_temp_path {folder / name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    whole = folder / "nginx.conf"
    whole.write_text(
        # As root, the workers must be able to write below this folder too.
        f"{'user root;' if os.getuid() == 0 else ''}"
        f"daemon off; pid {folder / 'pid'}; worker_processes 1;"
        "events { worker_connections 512; }"
        f"http {{ access_log off; {paths} {shipped} }}"
    )
    log = folder / "error.log"
    nginx = subprocess.Popen(["nginx", "-e", str(log), "-c", str(whole)])
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
        yield port
    finally:
        nginx.terminate()
        nginx.wait(10)


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


def asked(port, method, path, body=None, token="", timeout=10):
    connection = HTTPConnection("127.0.0.1", port, timeout=timeout)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


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

    assert asked(port, "POST", "/api/experiments", large, service.token) == 413
    # 400 is the service's own: it was let through, and it is not JSON.
    assert asked(port, "POST", "/api/events/batch", large, service.token) == 400
    over = b" " * (10 * 1024 * 1024 + 1)
    assert asked(port, "POST", "/api/events/batch", over, service.token) == 413


def test_one_address_has_at_most_100_requests_open(service, port):
    with held(port, 100, SLOW["half a body"]):
        deadline = time.monotonic() + 5
        while asked(port, "GET", "/healthz") != 503:
            assert time.monotonic() < deadline

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
