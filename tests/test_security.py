"""Nothing secret is written down, and docs/security.md says nothing that is not so."""

import ast
import json
import re
import socket
from http.client import HTTPConnection
from pathlib import Path

import pytest
import service as real

import app as application
from models import Assignment
from storage.engine import database
from storage.schema import Identity

USER, SUBJECT = "marker-user", "marker-subject"
BROKEN = [
    f"GET /api/users/{USER} with a space/assignments HTTP/1.1\r\n\r\n",
    f"{USER}\r\n\r\n",
    f"{USER.upper()}! / HTTP/1.1\r\n\r\n",
    f"GET /api/users/{USER} HTTP/9.9\r\n\r\n",
    f"GET / HTTP/1.1\r\nAuthorization : Bearer {USER}\r\n\r\n",
    f"GET / HTTP/1.1\r\nAuthorization: Bearer\r\n {USER}\r\n\r\n",
    f"GET / HTTP/1.1\r\nX: {USER}\0\r\n\r\n",
    f"GET /{USER} HTTP/1.1\r\nX: {'y' * 9000}\r\n\r\n",
    f"GET /{USER * 900} HTTP/1.1\r\n\r\n",
    f"GET /{USER} HTTP/1.1\r\nTransfer-Encoding: {USER}\r\n\r\n",
    f"GET /{USER} HTTP/1.1\r\nContent-Length: {USER}\r\n\r\n",
    f"GET /{USER} HTTP/1.1\r\nExpect: {USER}\r\n\r\n",
    f"POST /api/events HTTP/1.1\r\nContent-Type: application/json\r\n"
    f"Authorization: Bearer TOKEN\r\nTransfer-Encoding: chunked\r\n\r\n{USER}\r\n",
    f"POST /api/events HTTP/1.1\r\nContent-Type: application/json\r\n"
    f"Authorization: Bearer TOKEN\r\nContent-Length: 99\r\n\r\n{USER}",
]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    instance = tmp_path_factory.mktemp("instance")
    with real.served(instance, CORS_ORIGINS="https://shop.example") as service:
        yield service


def bodies():
    """Return bodies that name the marked user, right and wrong in many ways."""
    right = {"userId": USER, "metric": USER, "value": 1, "idempotencyKey": USER}
    yield json.dumps(right)
    yield json.dumps({"userId": USER})
    yield json.dumps({"users": [{"userId": USER, "attributes": {USER: USER}}]})
    yield json.dumps({"conversions": [right, {**right, "value": 2}]})
    yield json.dumps({"events": [right]})
    yield json.dumps({"name": USER, "conclusion": USER, "note": USER})
    yield json.dumps({"userId": [USER], USER: USER, "value": USER})
    yield f'{{"userId": "{USER}", "userId": "{USER}"}}'
    yield f'{{"userId": "{USER}'
    yield json.dumps({"userId": USER + "\0"})
    yield json.dumps({"userId": USER, "value": float("nan")})
    yield json.dumps({"userId": USER, "value": 1e300})


def sent(service, method, path, body=None, **headers):
    """Return the status of a request that carries markers wherever it can."""
    connection = HTTPConnection("127.0.0.1", service.port, timeout=30)
    marked = {
        "Authorization": f"Bearer {service.token}",
        "Content-Type": "application/json",
        "Cookie": f"session={USER}",
        "User-Agent": USER,
        "Referer": f"https://shop.example/{USER}",
        "Origin": "https://shop.example",
        "X-Request-ID": USER,
        **headers,
    }
    connection.request(method, path, body, marked)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def statuses_of_every_route(service, path):
    """Yield the status of each request that has markers wherever a route takes them."""
    rules = [
        (rule.rule, method)
        for rule in application.create_app().url_map.iter_rules()
        for method in (*rule.methods, "PUT")
    ]
    for rule, method in rules:
        where = rule.replace("<id>", path.partition("/")[2])
        where = re.sub(r"<(path:)?\w+>", USER, where)
        elsewhere = re.sub(r"<(path:)?\w+>", USER, rule)
        yield sent(service, method, where)
        yield sent(service, method, elsewhere)
        yield sent(service, method, f"{where}?page={USER}&{USER}={USER}")
        yield sent(service, method, where, Authorization=f"Bearer {USER}.x.y")
        yield sent(service, method, where, Authorization=f"Basic {USER}")
    for rule, method in rules:
        if method in ("POST", "PATCH", "PUT") and rule.startswith("/api"):
            where = rule.replace("<id>", path.partition("/")[2])
            for body in bodies():
                yield sent(service, method, where, body)
            kind = {"Content-Type": f"text/{USER}"}
            yield sent(service, method, where, USER, **kind)


def status_of_broken(service, request):
    """Return the status of a request that is not valid HTTP."""
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(request.replace("TOKEN", service.token).encode("latin-1"))
        connection.shutdown(socket.SHUT_WR)
        status = int(connection.recv(65_536).split()[1])
        while connection.recv(65_536):
            pass
    return status


def test_nothing_that_is_logged_names_a_user_or_holds_a_token(service):
    service.token = real.flask(service.instance, "token", SUBJECT).stdout.strip()
    path = service.running(primaryMetric=USER)
    statuses = [
        *statuses_of_every_route(service, path),
        *(status_of_broken(service, request) for request in BROKEN),
    ]

    log = service.log.read_text()
    assert {200, 201, 400, 401, 404, 405, 409, 415} <= set(statuses)
    # 501 is gunicorn's own, for a transfer coding that nobody knows.
    assert {status for status in statuses if status >= 500} <= {501}
    assert log.count('"event": "request"') >= len(statuses) - len(BROKEN)
    assert "Refused what is no HTTP." in log
    for secret in (
        USER,
        SUBJECT,
        service.token,
        service.token.split(".")[1],
        (service.instance / "secret").read_text(),
        "127.0.0.1/",
        "ip=",
    ):
        assert secret.lower() not in log.lower()


def test_a_database_in_trouble_is_logged_without_a_name_too(tmp_path):
    with real.served(tmp_path) as service:
        path = service.running()
        for file in tmp_path.glob("abacus.db*"):
            file.rename(file.with_name(f"away-{file.name}"))
        body = json.dumps({"userId": USER})

        status = sent(service, "POST", f"/api/{path}/assignments", body)

        assert status == 503
        log = service.log.read_text()
        assert "SQLITE_CANTOPEN" in log
        assert USER not in log and service.token not in log


def test_the_service_keeps_what_it_writes_to_its_own_user(service):
    for pid in service.workers():
        told = Path(f"/proc/{pid}/status").read_text()
        assert re.search(r"^Umask:\s+0077$", told, re.MULTILINE)
    for file in service.instance.glob("abacus.db*"):
        assert file.stat().st_mode & 0o077 == 0, file
    assert (service.instance / "secret").stat().st_mode & 0o777 == 0o600


def test_the_server_has_no_door_but_its_port_and_tells_no_version(service):
    connection = HTTPConnection("127.0.0.1", service.port, timeout=10)
    connection.request("GET", "/healthz")
    answer = connection.getresponse()
    assert answer.headers["Server"] == "gunicorn"
    assert json.loads(answer.read()) == {"status": "ok"}
    connection.close()
    # Its management socket, which is on by default, would be among these.
    listening = Path("/proc/net/unix").read_text()
    assert "gunicorn" not in listening and str(service.instance) not in listening


def test_every_requirement_is_pinned_with_a_hash():
    for name in ("requirements.txt", "requirements-dev.txt"):
        text = (real.ROOT / name).read_text().replace("\\\n", " ")
        lines = [line for line in text.splitlines() if line and line[0] not in "#-"]
        assert lines
        for line in lines:
            assert re.match(r"[\w.\[\],-]+==\S+ .*--hash=sha256:", line), line


def rows(text):
    """Return the cells of all rows of a Markdown text's tables."""
    for line in text.splitlines():
        if line.startswith("|") and not line.startswith(
            ("|---", "| threat", "| what the")
        ):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def known_tests():
    for file in (real.ROOT / "tests").rglob("test_*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                yield f"{file.stem}::{node.name}"


def test_each_line_of_the_security_page_names_known_tests_or_a_reason():
    page = (real.ROOT / "docs" / "security.md").read_text()
    there_are = set(known_tests())
    named = 0
    for line in rows(page):
        held = re.findall(r"`(test_\w+::\w+)`", line[-1])
        assert held or line[-1].startswith("Not here: "), line
        assert set(held) <= there_are, set(held) - there_are
        named += len(held)

    assert named > 60
    assert "`" + "test_" not in re.sub(r"`test_\w+::test_\w+`", "", page)


@pytest.mark.sqlite
def test_an_erased_byte_is_overwritten(app, api, running, enrolled, tmp_path):
    enrolled(running(), USER)
    Assignment.delete().execute()
    database.execute_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    assert Identity.select().count() == 1
    assert USER.encode() not in (tmp_path / "abacus.db").read_bytes()
