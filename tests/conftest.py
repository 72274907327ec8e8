"""The service in this process, on a database file of its own; and callers."""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import peewee
import psycopg
import pytest
import servers
import service as real
from flask import Flask
from flask.testing import FlaskClient
from flask_jwt_extended import create_access_token
from hypothesis import HealthCheck, settings
from reuse import Reused, clear

import models
from app import create_app
from shortcut import Shortcut
from storage import columns, engine, factory, schema, sqlite
from web import html
from web.auth import Tokens
from web.slots import Slots

SECRET = "8Jt2vQm4xZ0pLr7yWc5nKd1sHf6gBa3u"
ENGINES = ("sqlite", "postgresql")
numbers = itertools.count(1)

# Each process of this run, and each that a test starts, would compile all modules anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# The same examples in every run: a change that breaks one is the change under test.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    told = "how often each fault is made (20 where CI is set, else 1); with it, all are"
    parser.addoption("--rounds", type=int, help=told)
    told = "how many examples the contract is tried with; `make contract` says 300"
    parser.addoption("--examples", type=int, default=10, help=told)
    told = "the engines to run on: sqlite, postgresql, or both"
    parser.addoption("--engine", choices=[*ENGINES, "both"], default="both", help=told)
    told = "a PostgreSQL server to make databases on, instead of one that is started"
    parser.addoption("--database-url", help=told)
    told = "where to write the picture of the README, docs/experiment.png"
    parser.addoption("--picture", help=told)


def pytest_configure(config: pytest.Config) -> None:
    """Let hypothesis try what is quick 100 times, and what is not, ten times."""
    if not hasattr(config, "workerinput"):  # the process that reports
        config.pluginmanager.register(Completeness())
    wanted = config.getoption("--examples")
    settings.register_profile(
        "repeatable", settings.get_profile("repeatable"), max_examples=max(100, wanted)
    )
    settings.load_profile("repeatable")
    settings.register_profile(
        "contract",
        max_examples=wanted,
        suppress_health_check=list(HealthCheck),
    )


def leave_out(reason: str) -> None:
    """Skip the rest of a test on a machine that lacks what it needs.

    In CI it fails instead: `.ci/run` installs everything, and a check that never
    runs there would look like one that passes.
    """
    if "CI" in os.environ:
        pytest.fail(f"In CI every check runs: {reason}.")
    pytest.skip(reason)


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("--rounds") or (20 if "CI" in os.environ else 1)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that all processes of this run have in common."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(autouse=True)
def turn(request: pytest.FixtureRequest, shared_folder: Path) -> Iterator[None]:
    """Let a test that is marked `alone` run while the other processes wait.

    It asserts how long the service takes, and a second test would take its processor.
    Whoever waits for the room holds the gate, so that nobody is overtaken for ever.
    """
    alone = request.node.get_closest_marker("alone")
    with (
        (shared_folder / "gate").open("w") as gate,
        (shared_folder / "room").open("w") as room,
    ):
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield


@pytest.fixture
def thorough(request: pytest.FixtureRequest) -> None:
    """Leave out what takes long, or a quiet machine, unless rounds were asked for."""
    if request.config.getoption("--rounds") is None:
        pytest.skip("takes long; `make faults` runs it")


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Return a way to put a figure under the run's report."""

    def tell(fault: str, **figures: Any) -> None:
        shown = ", ".join(
            f"{name.replace('_', ' ')} {value}" for name, value in figures.items()
        )
        request.node.user_properties.append(("figure", f"{fault}: {shown}"))

    return tell


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse two tests with one node id: pytest-xdist would run one of them."""
    twice = [
        id for id, count in Counter(item.nodeid for item in items).items() if count > 1
    ]
    if twice:
        raise pytest.UsageError(f"More than one test has the node id {twice[0]}.")


class Completeness:
    """Fails a run in which fewer tests are reported than were collected."""

    def __init__(self) -> None:
        self.collected: set[str] = set()
        self.reported: set[str] = set()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.collected.update(item.nodeid for item in session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        self.collected.update(ids)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.reported.add(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        whole = not (session.shouldstop or session.shouldfail)
        if whole and not session.config.option.collectonly and self.missing:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if terminalreporter.config.option.collectonly:
            return
        terminalreporter.section("completeness")
        terminalreporter.write_line(
            f"{len(self.collected)} tests collected, {len(self.reported)} reported"
        )
        for id in sorted(self.missing)[:20]:
            terminalreporter.write_line(f"not reported: {id}")

    @property
    def missing(self) -> set[str]:
        return self.collected - self.reported


def pytest_terminal_summary(terminalreporter: Any) -> None:
    ended = [
        report
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "call"
    ]
    told = [line for report in ended for name, line in report.user_properties]
    if told:
        terminalreporter.section("faults")
        for line in told:
            terminalreporter.write_line(line)


class Caller:
    """A client with a token; a path without a slash is below /api."""

    def __init__(self, app: Flask, token: str | None) -> None:
        self.client: FlaskClient = app.test_client()
        self.headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    def __call__(self, method: str, path: str, json: Any = None, **options: Any) -> Any:
        headers = {**self.headers, **options.pop("headers", {})}
        path = path if path.startswith("/") else f"/api/{path}"
        if json is not None:
            options["json"] = json
        return self.client.open(path, method=method, headers=headers, **options)

    def get(self, path: str, **options: Any) -> Any:
        return self("GET", path, **options)

    def post(self, path: str, json: Any = None, **options: Any) -> Any:
        return self("POST", path, json, **options)

    def patch(self, path: str, json: Any) -> Any:
        return self("PATCH", path, json)

    def delete(self, path: str) -> Any:
        return self("DELETE", path)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what uses a database on both engines, unless a marker says otherwise."""
    if "engine_name" not in metafunc.fixturenames:
        return
    wanted = metafunc.config.getoption("--engine")
    engines = ENGINES if wanted == "both" else (wanted,)
    marked = metafunc.definition.get_closest_marker
    if marked("one_engine"):
        engines = engines[:1]
    for name in ENGINES:
        if marked(name):  # where it is not wanted, there is nothing to run
            engines = tuple(one for one in engines if one == name)
    metafunc.parametrize("engine_name", engines, scope="session")


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> str:
    """Return the URL of a PostgreSQL server."""
    return request.config.getoption("--database-url") or servers.started_server()


@pytest.fixture(scope="session")
def template(server: str) -> Iterator[str]:
    """Return the name of a database that has the tables, to be copied."""
    with servers.made(server) as url:
        prepare(url)
        yield servers.name_of(url)


def configured(url: str) -> dict[str, Any]:
    return {"TESTING": True, "JWT_SECRET_KEY": SECRET, "DATABASE_URL": url}


NewDatabase = Callable[..., AbstractContextManager[str]]


@pytest.fixture(scope="session")
def new_database(
    engine_name: str,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> NewDatabase:
    """Return a way to have the URL of a new database with tables, while it is used.

    On SQLite it is the named file. With *original*, the URL of a database that nobody
    has open, it is a copy of that one.
    """
    empty = f"sqlite:///{tmp_path_factory.mktemp('empty') / 'abacus.db'}"
    if engine_name == "sqlite":
        prepare(empty)  # copied for each test

    @contextmanager
    def made(file: Path, original: str | None = None) -> Iterator[str]:
        if engine_name == "sqlite":
            url = f"sqlite:///{file}"
            shutil.copy((original or empty).removeprefix("sqlite:///"), file)
            if not original:
                connection = peewee.sqlite3.connect(file)
                connection.execute("PRAGMA synchronous = 0")
                identify(connection, "?")
            yield url
            return
        server = request.getfixturevalue("server")
        if original:
            with servers.made(server, servers.name_of(original)) as url:
                yield url
            return
        with servers.made(server, request.getfixturevalue("template")) as url:
            identify(psycopg.connect(url), "%s")
            yield url

    return made


def prepare(url: str) -> None:
    """Create the tables of a database."""
    database = factory.database_at(url)
    assert schema.create(database, models.TABLES) == "made"
    database.shut()


def identify(connection: Any, mark: str) -> None:
    """Give a copy an identity of its own, as each database that is created has one."""
    new = (columns.new_id("abacus")(),)
    connection.execute(f"UPDATE identity SET id = {mark}", new)
    connection.commit()
    connection.close()


@pytest.fixture(scope="session")
def reused(request: pytest.FixtureRequest) -> Iterator[Reused]:
    """Return the PostgreSQL database that the tests of this process use in turn."""

    def copied() -> AbstractContextManager[str]:
        return servers.made(*map(request.getfixturevalue, ("server", "template")))

    made = Reused(copied)
    yield made
    made.drop()


@pytest.fixture
def database_url(
    request: pytest.FixtureRequest,
    engine_name: str,
    new_database: NewDatabase,
    reused: Reused,
    tmp_path: Path,
) -> Iterator[str]:
    """Return the URL of an empty database for this test, which has the tables.

    A test that is about PostgreSQL has one that no other test has used.
    """
    if engine_name == "postgresql" and not request.node.get_closest_marker(engine_name):
        yield reused.url()
        return
    with new_database(tmp_path / "abacus.db") as url:
        yield url


ServiceDatabase = Callable[[], AbstractContextManager[dict[str, str]]]


@pytest.fixture(scope="session")
def service_database(
    engine_name: str, request: pytest.FixtureRequest
) -> ServiceDatabase:
    """Return a way to have the settings of a real service with a new database.

    On SQLite there are none: the database is the file in the instance folder.
    """

    @contextmanager
    def settings() -> Iterator[dict[str, str]]:
        if engine_name == "sqlite":
            yield {}
            return
        server, template = map(request.getfixturevalue, ("server", "template"))
        with servers.made(server, template) as url:
            yield {"DATABASE_URL": url}

    return settings


@pytest.fixture(scope="session")
def shared_service(
    tmp_path_factory: pytest.TempPathFactory, service_database: ServiceDatabase
) -> Iterator[tuple[real.Service, str, str]]:
    """Yield the service that the tests of this process use in turn, with the URL of
    its database, and with its token.
    """
    folder = tmp_path_factory.mktemp("service") / "instance"
    with service_database() as settings:
        made = real.Service(folder, **settings)
        url = settings.get("DATABASE_URL", f"sqlite:///{folder / 'abacus.db'}")
        yield made, url, made.token
        made.end()


@pytest.fixture
def service(shared_service: tuple[real.Service, str, str]) -> real.Service:
    """Return a real service with an empty database; a test may change its token, and
    may end it.

    To start one takes a second of a processor, which is more than most tests take.
    """
    made, url, made.token = shared_service
    clear(url)
    if made.process.poll() is not None:
        made.start()
    return made


@pytest.fixture(scope="session")
def compiled() -> Flask:
    """Return the app that the tests of this process use in turn.

    To make one takes longer than most tests, because its routes are compiled.
    """
    made = create_app(configured("sqlite:///:memory:"))
    made.extensions["database"].shut()
    return made


def renewed(app: Flask, url: str) -> Flask:
    """Return the app with another database, and without anything that it remembers."""
    app.config["DATABASE_URL"] = url
    app.extensions["database"] = factory.database_at(url)
    app.extensions["abacus_slots"] = Slots()
    app.extensions["abacus_tokens"] = Tokens(app)
    app.extensions.pop("abacus_keys", None)
    app.__dict__.pop("wsgi_app")  # the short way, with the tokens that it remembers
    app.wsgi_app = Shortcut(app)  # type: ignore[method-assign]
    # Whatever else an app comes to hold has to be renewed here too.
    assert app.extensions.keys() <= {*KEPT, "database", "abacus_slots", "abacus_tokens"}
    return app


KEPT = {"flask-jwt-extended", "flask-smorest"}
"""The extensions that hold nothing but settings and routes."""


@pytest.fixture
def app(compiled: Flask, database_url: str, reused: Reused) -> Iterator[Flask]:
    """Yield an app; what the test itself asks the tables goes to its database."""
    made = renewed(compiled, database_url)
    with engine.using(made.extensions["database"]) as database:
        reused.lend(database)
        yield made
        database.close()
        reused.take_back(database)
        database.shut()


@pytest.fixture
def token(app: Flask) -> Callable[..., str]:
    """Return a maker of tokens; extra claims are its arguments."""

    def make(subject: str = "tester", **claims: Any) -> str:
        with app.app_context():
            return create_access_token(
                subject, expires_delta=timedelta(hours=1), additional_claims=claims
            )

    return make


@pytest.fixture
def api(app: Flask, token: Callable[..., str]) -> Caller:
    return Caller(app, token())


@pytest.fixture
def anonymous(app: Flask) -> Caller:
    return Caller(app, None)


@pytest.fixture
def browser(app: Flask, token: Callable[..., str]) -> FlaskClient:
    """Return a browser that is signed in with all scopes, as maria."""
    client = app.test_client()
    client.set_cookie(html.COOKIE, token("maria"), path=html.PREFIX)
    return client


def two_variants() -> list[dict[str, Any]]:
    return [
        {"name": "Control", "splitPercentage": 50, "flowId": "flow_a"},
        {"name": "Detailed", "splitPercentage": 50, "flowId": "flow_b"},
    ]


@pytest.fixture
def draft(api: Caller) -> Callable[..., str]:
    """Return a maker of drafts, which answers the path of each."""

    def make(**fields: Any) -> str:
        name = f"Onboarding {next(numbers)}"
        body = {"name": name, "variants": two_variants(), **fields}
        response = api.post("experiments", body)
        assert response.status_code == 201, response.text
        return f"experiments/{response.json['data']['id']}"

    return make


@pytest.fixture
def running(api: Caller, draft: Callable[..., str]) -> Callable[..., str]:
    """Return a maker of running experiments, which answers the path of each."""

    def make(**fields: Any) -> str:
        path = draft(**fields)
        assert api.post(f"{path}/start").status_code == 200
        return path

    return make


@pytest.fixture
def enrolled(api: Caller) -> Callable[..., list[dict[str, Any]]]:
    """Return a way to enrol users, which answers the decisions."""

    def enrol(path: str, *user_ids: str) -> list[dict[str, Any]]:
        users = [{"userId": user_id} for user_id in user_ids]
        response = api.post(f"{path}/assignments/batch", {"users": users})
        assert response.status_code == 200, response.text
        assert all(one["enrolled"] for one in response.json["data"])
        return list(response.json["data"])

    return enrol


def assert_error(response: Any, status: int, code: str) -> dict[str, Any]:
    """Assert the one shape of every error; return what is in it."""
    assert response.status_code == status, response.text
    error = dict(response.json["error"])
    assert set(error) == {"statusCode", "code", "message", "details", "requestId"}
    assert (error["statusCode"], error["code"]) == (status, code)
    assert error["message"]
    assert error["requestId"] == response.headers["X-Request-ID"]
    return error


def paths(error: dict[str, Any]) -> set[str]:
    return {detail["path"] for detail in error["details"]}


@contextmanager
def statements() -> Iterator[list[str]]:
    """Yield the list to which each statement that this thread sends is added."""
    database, sent = engine.database.obj, list[str]()
    engine.connect()
    connection = database.connection()
    if isinstance(database, sqlite.Sqlite):
        connection.set_trace_callback(sent.append)
        try:
            yield sent
        finally:
            connection.set_trace_callback(None)
        return
    database.close()  # whoever borrows next has the connection that was used last
    with tempfile.TemporaryFile("w+") as file:
        connection.pgconn.trace(file.fileno())
        try:
            yield sent
        finally:
            connection.pgconn.untrace()
        file.seek(0)
        # A line of libpq's trace: a time, F for what is sent, a length, and the text.
        found = re.findall(r'\tF\t\d+\t(?:Query|Parse)\t (?:"" )?"([^"]*)', file.read())
        sent += [text.strip() for text in found]


def database_steps(act: Callable[[], object]) -> int:
    """Return how much the database does for an act, in its own instructions."""
    count = 0

    def step() -> None:
        nonlocal count
        count += 1

    connection = engine.database.connection()
    connection.set_progress_handler(step, 1)
    try:
        act()
    finally:
        connection.set_progress_handler(None, 0)
    return count


PERSON = "marie.dupont+42@example.org"


@pytest.fixture
def traffic(api, running, enrolled, app):
    """Return two experiments with hundreds of users, a person among them."""
    draw = random.Random(7)
    paths = [running(exclusionGroup=None), running(primaryMetric="order")]
    for path in paths:
        users = [f"user-{draw.random()}" for _ in range(400)]
        enrolled(path, *users[:200])
        enrolled(path, PERSON)
        enrolled(path, *users[200:])
        rows = [
            {
                "userId": draw.choice([PERSON, *users]),
                "metric": draw.choice(["order", "conversion"]),
                "value": draw.choice([None, 0.1, 19.99]),
            }
            for _ in range(600)
        ]
        for number in range(20):
            key = f"{PERSON}/order-{number}"
            rows.append({"userId": PERSON, "value": 0.3, "idempotencyKey": key})
        body = {"conversions": rows}
        assert api.post(f"{path}/conversions/batch", body).status_code == 200
    return paths


LINE = "user_id,variant,timestamp,converted_at,metric"


def ago(days, seconds=0):
    """Return a time so many days ago, as an import has it."""
    moment = datetime.now(timezone.utc) - timedelta(days=days, seconds=seconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.fixture
def load(app, tmp_path):
    """Return a way to import lines of CSV, which answers what was said."""

    def load(path, header, *lines):
        file = tmp_path / "lines.csv"
        file.write_text("\n".join([header, *lines]) + "\n")
        command = ["import", path.removeprefix("experiments/"), str(file)]
        told = app.test_cli_runner().invoke(args=command)
        assert told.exit_code == 0, told.output
        return told.output

    return load


@pytest.fixture
def told(api):
    """Return a way to ask for the figures of an experiment."""

    def told(path, query=""):
        response = api.get(f"{path}/compute-results{query}")
        assert response.status_code == 200, response.text
        return response.json["data"]

    return told
