"""Several apps, and what an app does with its database."""

import logging
import os
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from conftest import SECRET, Caller, assert_error, configured, two_variants
from flask_jwt_extended import create_access_token
from test_database import names

from app import create_app
from models import Experiment, ParticipantTally
from storage import engine
from web.logging import log

# ----------------------------------------------------------------------------
# Two apps in one process
# ----------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path, new_database):
    """Return a caller for each of two apps, with two databases and two secrets."""
    with ExitStack() as stack:
        callers = []
        for name in ("first", "second"):
            url = stack.enter_context(new_database(tmp_path / f"{name}.db"))
            secret = {"JWT_SECRET_KEY": f"{name}-{SECRET}"}
            app = create_app({**configured(url), **secret})
            stack.callback(app.extensions["database"].shut)
            with app.app_context():
                callers.append(Caller(app, create_access_token("tester")))
        yield callers


def running_on(api, name):
    """Return the path of an experiment with this name, which runs."""
    made = api.post("experiments", {"name": name, "variants": two_variants()})
    assert made.status_code == 201
    path = f"experiments/{made.json['data']['id']}"
    assert api.post(f"{path}/start").status_code == 200
    return path


def test_two_apps_in_one_process_have_a_database_each(pair):
    paths = [running_on(api, f"On {n}") for n, api in enumerate(pair)]
    for number in range(3):
        for api, path in zip(pair, paths, strict=True):
            one = api.post(f"{path}/assignments", {"userId": f"u{number}"})
            assert one.status_code == 201
    pair[1].post(f"{paths[1]}/conversions", {"userId": "u0"})

    assert [names(api) for api in pair] == [["On 0"], ["On 1"]]
    for api, mine, other, conversions in zip(
        pair, paths, reversed(paths), (0, 1), strict=True
    ):
        assert api.get(mine).json["data"]["_count"] == {"assignments": 3}
        results = api.get(f"{mine}/results").json["data"]
        assert results["quality"]["counted"] == conversions
        assert_error(api.get(other), 404, "NOT_FOUND")
        refused = api.post(f"{other}/assignments", {"userId": "u9"})
        assert_error(refused, 404, "NOT_FOUND")
        assert len(api.get("users/u0/assignments").json["data"]) == 1
        assert api.get("/readyz").status_code == 200


def test_two_apps_are_asked_at_once_by_many_threads_and_share_nothing(pair):
    paths = [running_on(api, f"On {n}") for n, api in enumerate(pair)]

    def ask(thread):
        for number in range(10):
            for place in (0, 1) if thread % 2 else (1, 0):
                user = {"userId": f"app{place}-{thread}-{number}"}
                asked = pair[place].post(f"{paths[place]}/assignments", user)
                assert asked.status_code == 201, asked.text
                assert names(pair[place]) == [f"On {place}"]
        for caller in pair:
            caller.client.application.extensions["database"].close()

    with ThreadPoolExecutor(4) as threads:
        for asked in [threads.submit(ask, thread) for thread in range(4)]:
            asked.result()

    for place, (api, path) in enumerate(zip(pair, paths, strict=True)):
        assert api.get(path).json["data"]["_count"] == {"assignments": 40}
        users = [
            one["userId"]
            for number in range(1, 3)
            for one in api.get(f"{path}/assignments?limit=20&page={number}").json[
                "data"
            ]
        ]
        assert len(users) == 40
        assert {user[:4] for user in users} == {f"app{place}"}


def test_two_apps_may_have_experiments_of_one_key(pair):
    for number, api in enumerate(pair):
        body = {"name": f"On {number}", "key": "same", "variants": two_variants()}
        assert api.post("experiments", body).status_code == 201
        assert api.post("experiments/same/start").status_code == 200
        for user_id in ("u1", "u2"):
            body = {"userId": user_id}
            answer = api.post("experiments/same/assignments", body)
            assert answer.status_code == 201, answer.text

    for api in pair:
        counted = api.get("experiments/same").json["data"]["_count"]
        assert counted == {"assignments": 2}


def test_exports_of_two_apps_are_read_in_turn_each_from_its_own(pair):
    paths = [running_on(api, f"On {n}") for n, api in enumerate(pair)]
    for place, (api, path) in enumerate(zip(pair, paths, strict=True)):
        users = [{"userId": f"app{place}-{number}"} for number in range(2_500)]
        batch = api.post(f"{path}/assignments/batch", {"users": users})
        assert batch.status_code == 200

    answers = [
        api.get(f"{path}/export?format=ndjson", buffered=False)
        for api, path in zip(pair, paths, strict=True)
    ]
    texts = ["", ""]
    for parts in zip(*(answer.iter_encoded() for answer in answers), strict=True):
        texts = [text + part.decode() for text, part in zip(texts, parts, strict=True)]

    for place, text in enumerate(texts):
        assert text.count("\n") == text.count(f'"app{place}-') == 2_500


def test_commands_of_two_apps_see_their_own_databases(tmp_path, pair):
    paths = [running_on(api, f"On {n}") for n, api in enumerate(pair)]
    ids = [path.removeprefix("experiments/") for path in paths]
    lines = tmp_path / "lines.csv"
    lines.write_text("user_id,variant,timestamp\nu1,v1,2026-01-05T10:00:00Z\n")
    apps = [api.client.application for api in pair]

    def operate(app, *words):
        return app.test_cli_runner().invoke(args=[str(word) for word in words])

    assert operate(apps[0], "import", ids[0], lines).exit_code == 0
    other = operate(apps[0], "import", ids[1], lines)
    assert (other.exit_code, "There is no experiment" in other.output) == (1, True)
    pair[1].post(f"{paths[1]}/assignments", {"userId": "u1"})
    with apps[1].app_context():
        ParticipantTally.update(participants=7).execute()
    assert [operate(app, "check").exit_code for app in apps] == [0, 1]
    # Neither was moved to the other's database by what was done.
    assert [names(api) for api in pair] == [["On 0"], ["On 1"]]


@pytest.mark.sqlite
def test_backups_of_two_apps_are_of_their_own_databases(tmp_path, pair):
    for n, api in enumerate(pair):
        api.post(f"{running_on(api, f'On {n}')}/assignments", {"userId": "u1"})
    apps = [api.client.application for api in pair]

    def operate(app, *words):
        return app.test_cli_runner().invoke(args=[str(word) for word in words])

    with apps[1].app_context():
        ParticipantTally.update(participants=7).execute()
    backups = [
        operate(app, "backup", tmp_path / f"{n}.copy") for n, app in enumerate(apps)
    ]

    assert [one.exit_code for one in backups] == [0, 1]
    assert "           1 assignment\n" in backups[0].output
    restored = operate(apps[1], "restore", tmp_path / "0.copy", "--dry-run")
    assert f"It would replace {tmp_path / 'second.db'}" in restored.output
    # Neither was moved to the other's database by what was done.
    assert [names(api) for api in pair] == [["On 0"], ["On 1"]]


@pytest.mark.sqlite
def test_metrics_of_each_app_tell_the_size_of_its_own_file(tmp_path, pair):
    running_on(pair[0], "Small")
    path = running_on(pair[1], "Large")
    users = [{"userId": f"u{number}"} for number in range(5_000)]
    pair[1].post(f"{path}/assignments/batch", {"users": users})

    for name, api in zip(("first", "second"), pair, strict=True):
        page = api.get("/metrics").text
        told = re.findall(r"^abacus_(?:database|wal)_bytes (\S+)$", page, re.MULTILINE)
        files = (tmp_path / f"{name}.db", tmp_path / f"{name}.db-wal")
        assert [float(one) for one in told] == [file.stat().st_size for file in files]


def test_a_damaged_database_stops_the_writes_of_its_own_app_only(pair):
    paths = [running_on(api, f"On {n}") for n, api in enumerate(pair)]
    pair[0].client.application.extensions["database"].damaged = True

    first, second = (
        api.post(f"{path}/assignments", {"userId": "u1"})
        for api, path in zip(pair, paths, strict=True)
    )

    assert_error(first, 503, "UNAVAILABLE")
    assert second.status_code == 201


def test_outside_of_every_app_the_tables_say_that_they_have_no_database():
    def ask():
        with pytest.raises(RuntimeError, match=r"with app\.app_context\(\)"):
            Experiment.select().count()
        with pytest.raises(RuntimeError, match=r"with app\.app_context\(\)"):
            engine.connect()

    with ThreadPoolExecutor(1) as thread:  # in a new one, no app was entered
        thread.submit(ask).result()


@pytest.mark.sqlite  # its locks do not survive a fork
def test_no_handle_of_any_app_is_open_at_a_fork(pair):
    databases = [api.client.application.extensions["database"] for api in pair]
    for database in databases:
        database.connect(reuse_if_open=True)

    child = os.fork()
    if child == 0:
        os._exit(0 if all(one.is_closed() for one in databases) else 1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert all(one.is_closed() for one in databases)


def test_an_app_under_test_does_not_silence_one_that_serves(tmp_path):
    serving = create_app({"INSTANCE": str(tmp_path), "JWT_SECRET_KEY": SECRET})
    create_app({"TESTING": True, "DATABASE_URL": "sqlite:///:memory:"})
    try:
        assert serving.test_client().get("/healthz").status_code == 200
        assert log.isEnabledFor(logging.INFO)
    finally:
        log.setLevel(logging.WARNING)
