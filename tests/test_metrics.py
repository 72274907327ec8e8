"""What Prometheus is told: true counts, of all workers, in words of our own."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import pytest
import service as real
from conftest import assert_error, leave_out
from prometheus_client.parser import text_string_to_metric_families

from app import create_app
from storage import engine


def samples(text):
    """Return each sample's value, by its name and its labels."""
    return {
        (one.name, *sorted(one.labels.items())): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


@pytest.fixture
def gained(anonymous):
    """Return a way to tell what has been counted since the fixture was made."""
    before = samples(anonymous.get("/metrics").text)

    def gained(name, label):
        now = samples(anonymous.get("/metrics").text)
        found = Counter()
        for (what, *labels), value in now.items():
            more = value - before.get((what, *labels), 0)
            if what == name and more:
                found[dict(labels)[label]] += more
        return dict(found)

    return gained


def test_a_request_is_counted_by_its_rule_and_its_status(api, running, gained):
    path = running()
    api.get(path)
    api.get(f"{path}/assignments/nobody")
    api.get("/nowhere")

    assert gained("abacus_requests_total", "route") == {
        "/api/experiments": 1,
        "/api/experiments/<id>/start": 1,
        "/api/experiments/<id>": 1,
        "/api/experiments/<id>/assignments/<path:user_id>": 1,
        "unmatched": 1,
        "/metrics": 1,
    }
    statuses = gained("abacus_requests_total", "status")
    assert (statuses["201"], statuses["404"]) == (1, 2)
    timed = gained("abacus_request_seconds_count", "route")
    assert timed["/api/experiments/<id>"] == 1
    assert gained("abacus_refusals_total", "code") == {"NOT_FOUND": 2}


def test_enrolments_are_counted_by_their_reasons(api, running, draft, gained):
    path = running()
    api.post(f"{path}/assignments", {"userId": "u1"})
    users = [{"userId": user} for user in ("u1", "u2", "u3")]
    api.post(f"{path}/assignments/batch", {"users": users})
    api.post(f"{draft()}/assignments", {"userId": "u1"})

    assert gained("abacus_enrolments_total", "reason") == {
        "NEW_ASSIGNMENT": 3,
        "EXISTING_ASSIGNMENT": 1,
        "NOT_STARTED": 1,
    }


def test_conversions_are_counted_by_what_became_of_them(api, running, enrolled, gained):
    path = running()
    enrolled(path, "u1")
    body = {"userId": "u1", "idempotencyKey": "k1"}
    early = {"userId": "u1", "occurredAt": "2020-01-01T00:00:00Z"}
    single = [body, body, {**body, "value": 1}, {"userId": "u2"}, early]
    told = [api.post(f"{path}/conversions", one).status_code for one in single]
    assert told == [201, 200, 409, 409, 409]
    api.post(f"{path}/conversions/batch", {"conversions": single})
    api.post("events", {"userId": "u1"})
    api.post("events/batch", {"events": [{"userId": "u1"}, {"userId": "u2"}]})

    assert gained("abacus_conversions_total", "status") == {
        "accepted": 3,
        "duplicate": 3,
        "rejected": 6,
    }
    reasons = gained("abacus_conversions_total", "reason")
    del reasons[""]
    assert reasons == {"CONFLICT": 2, "NOT_ENROLLED": 2, "BEFORE_ENROLLMENT": 2}


@pytest.mark.one_engine
def test_no_caller_can_make_a_series_or_leave_an_id_in_one(api, anonymous, running):
    path = running()

    def ask(marker):
        api.get(f"/{marker}")
        api(f"X{marker}".upper(), "experiments")
        api(f"X{marker}".upper(), f"/{marker}")
        api.get(f"experiments/{marker}")
        api.get(f"{path}/assignments/{marker}")
        api.post(f"{path}/assignments", {"userId": marker})
        api.post(f"{path}/conversions", {"userId": marker, "metric": marker})
        api.post(f"{path}/conversions", {"userId": "x", "metric": marker})
        api.get("experiments", query_string={marker: marker})
        anonymous.get("experiments", headers={"Authorization": f"Bearer {marker}"})
        return anonymous.get("/metrics").text

    first, *_, last = (ask(f"marker{number}") for number in range(20))

    assert samples(first).keys() == samples(last).keys()
    assert "marker" not in last.lower()
    assert path.partition("/")[2] not in last


@pytest.mark.sqlite
def test_what_the_database_answers_is_counted_by_its_kind(api, running, gained):
    path = running()
    engine.database.pragma("query_only", 1)
    answer = api.post(f"{path}/assignments", {"userId": "u1"})
    engine.database.close()

    assert_error(answer, 503, "UNAVAILABLE")
    assert gained("abacus_database_errors_total", "error") == {"READ_ONLY": 1}
    assert gained("abacus_refusals_total", "code") == {"UNAVAILABLE": 1}


@pytest.mark.one_engine
def test_an_error_that_is_waited_for_is_there_before_it_happens(anonymous):
    now = samples(anonymous.get("/metrics").text)

    for name in ("FULL", "IO", "DAMAGED"):
        labels = ("error", name)
        assert ("abacus_database_errors_total", labels) in now


@pytest.mark.sqlite
def test_the_sizes_are_those_of_the_files(tmp_path, api, anonymous, running, enrolled):
    enrolled(running(), *[f"u{number}" for number in range(2_000)])

    now = samples(anonymous.get("/metrics").text)

    for name, file in (("database", "abacus.db"), ("wal", "abacus.db-wal")):
        assert now[f"abacus_{name}_bytes",] == (tmp_path / file).stat().st_size > 0


def test_the_sizes_of_a_database_behind_a_link_are_those_of_the_real_files(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    (tmp_path / "abacus.db").symlink_to(folder / "abacus.db")
    url = f"sqlite:///{tmp_path / 'abacus.db'}"
    app = create_app({"TESTING": True, "DATABASE_URL": url})

    assert app.test_client().get("/readyz").status_code == 200
    now = samples(app.test_client().get("/metrics").text)

    for name, file in (("database", "abacus.db"), ("wal", "abacus.db-wal")):
        assert now[f"abacus_{name}_bytes",] == (folder / file).stat().st_size > 0
    app.extensions["database"].close()


def scraped(service):
    connection = HTTPConnection("127.0.0.1", service.port, timeout=10)
    connection.request("GET", "/metrics")
    answer = connection.getresponse()
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    text = answer.read().decode()
    connection.close()
    return samples(text)


def counts_of(pid):
    """Return the file in which a worker keeps its counts."""
    maps = Path(f"/proc/{pid}/maps").read_text().split()
    return next(Path(word) for word in maps if f"counter_{pid}.db" in word)


def test_any_worker_answers_for_all_and_a_killed_one_is_remembered(tmp_path):
    route = "/api/experiments/<id>/assignments"
    key = "abacus_requests_total", ("method", "POST"), ("route", route)
    with real.served(tmp_path) as service:
        path = service.running()
        folder = counts_of(min(service.workers())).parent

        def enrol(number):
            service.data("POST", f"{path}/assignments", {"userId": f"u{number % 50}"})

        with ThreadPoolExecutor(8) as callers:
            list(callers.map(enrol, range(200)))
        counting = {file.stem for file in folder.glob("counter_*")}
        assert counting == {f"counter_{pid}" for pid in service.workers()}
        told = [scraped(service) for _ in range(8)]
        before = service.workers()
        os.kill(min(before), signal.SIGKILL)
        deadline = time.monotonic() + 20
        while len(service.workers() - before) != 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        told += [scraped(service) for _ in range(8)]

        counts = {
            tuple(one[(*key, ("status", status))] for status in ("201", "200"))
            for one in told
        }
        reason = ("abacus_enrolments_total", ("reason", "NEW_ASSIGNMENT"))
        assert counts == {(50, 150)}
        assert {one[reason] for one in told} == {50}
    assert not folder.exists()


def test_only_the_metrics_folder_of_a_killed_service_is_removed(tmp_path):
    with real.served(tmp_path / "other") as other, real.served(tmp_path) as service:
        living, left = (
            counts_of(min(one.workers())).parent for one in (other, service)
        )
        service.kill()
        assert left.exists()

        service.start()

        assert not left.exists()
        assert living.exists() and scraped(other)


@pytest.fixture
def promtool():
    """Return a way to run Prometheus's own checker."""
    if shutil.which("promtool") is None:
        leave_out("promtool is not installed; .ci/run installs it")

    def run(*words, **options):
        told = subprocess.run(
            ["promtool", *words],
            cwd=real.ROOT,
            capture_output=True,
            text=True,
            check=False,
            **options,
        )
        assert told.returncode == 0, told.stdout + told.stderr
        return told.stdout + told.stderr

    return run


def test_the_alerts_are_silent_in_good_times_and_told_in_bad(promtool):
    assert "4 rules found" in promtool("check", "rules", "deploy/alerts.yml")
    assert "SUCCESS" in promtool("test", "rules", "tests/cases/alerts.yml")


@pytest.mark.one_engine
def test_prometheus_reads_what_it_is_told(promtool, anonymous, api, running):
    running()

    assert promtool("check", "metrics", input=anonymous.get("/metrics").text) == ""


@pytest.mark.one_engine
def test_the_alerts_ask_for_series_that_there_are(anonymous, api):
    api.get("experiments")
    text = anonymous.get("/metrics").text
    rules = (real.ROOT / "deploy" / "alerts.yml").read_text()

    asked = set(re.findall(r"abacus_\w+", rules))
    assert len(asked) == 3
    assert asked <= {name for name, *_ in samples(text)}
