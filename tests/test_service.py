"""The real service: gunicorn, two workers, one database file."""

import fcntl
import itertools
import json
import os
import re
import resource
import runpy
import shutil
import signal
import socket
import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import SimpleNamespace

import peewee
import pytest
import service as real

# The seed's own request bodies, letter for letter.
CREATE = """{
"name": "Onboarding Flow Test",
"description": "Compare short vs. detailed onboarding",
"type": "ab_test",
"audienceId": "aud_xyz",
"variants": [
{
"name": "Control",
"splitPercentage": 50,
"flowId": "flow_a",
"config": {}
},
{
"name": "Detailed",
"splitPercentage": 50,
"flowId": "flow_b",
"config": {}
}
]
}"""
LISTED = {
    "id",
    "name",
    "description",
    "type",
    "status",
    "audienceId",
    "startDate",
    "endDate",
    "createdAt",
    "updatedAt",
    "variants",
    "_count",
}
RESULTS = {"experimentId", "name", "status", "startDate", "endDate", "variants"}


@pytest.fixture(scope="module")
def service(tmp_path_factory, service_database):
    instance = tmp_path_factory.mktemp("instance")
    with service_database() as settings, real.served(instance, **settings) as service:
        yield service


def created_and_listed(service):
    """Create the experiment of the seed, read it and list it; return its path."""
    meta = {"total": 0, "page": 1, "limit": 20, "totalPages": 0, "next": None}
    assert service("GET", "experiments") == (200, {"data": [], "meta": meta})
    status, made = service("POST", "experiments", CREATE)
    assert status == 201
    sent = json.loads(CREATE)
    assert {name: made["data"][name] for name in sent if name != "variants"} == {
        name: sent[name] for name in sent if name != "variants"
    }
    assert made["data"]["variants"] == [
        {"id": id, **variant}
        for id, variant in zip(("v1", "v2"), sent["variants"], strict=True)
    ]
    path = f"experiments/{made['data']['id']}"

    status, listed = service("GET", "experiments?page=1&limit=20&status=draft")
    assert status == 200
    meta = {"total": 1, "page": 1, "limit": 20, "totalPages": 1, "next": None}
    assert listed["meta"] == meta
    assert set(listed["data"][0]) >= LISTED
    assert listed["data"][0]["_count"] == {"assignments": 0}
    assert service("GET", path) == (200, {"data": listed["data"][0]})
    return path


def enrolled_until(service, path, size):
    """Enrol users until each variant has so many; return the users of each variant."""
    arms, numbers = {"v1": [], "v2": []}, itertools.count()
    while min(map(len, arms.values())) < size:
        users = [{"userId": f"user-{next(numbers)}"} for _ in range(100)]
        for one in service.data("POST", f"{path}/assignments/batch", {"users": users}):
            arms[one["variantId"]].append(one["userId"])
    return arms


def assert_seed_results(service, path, arms):
    """Check the raw results and the computed ones."""
    raw = service.data("GET", f"{path}/results")
    assert set(raw) >= RESULTS
    assert [
        (
            one["variantId"],
            one["variantName"],
            one["splitPercentage"],
            one["participants"],
            one["results"][0]["conversions"],
        )
        for one in raw["variants"]
    ] == [
        ("v1", "Control", 50, len(arms["v1"]), 45),
        ("v2", "Detailed", 50, len(arms["v2"]), 67),
    ]
    computed = service.data("POST", f"{path}/compute-results")
    assert f"experiments/{computed['experimentId']}" == path
    assert [
        (one["variantId"], one["sampleSize"], one["conversions"])
        for one in computed["variants"]
    ] == [("v1", len(arms["v1"]), 45), ("v2", len(arms["v2"]), 67)]
    for one in computed["variants"]:
        assert one["conversionRate"] == one["conversions"] / one["sampleSize"]


def test_every_example_of_the_seed_works_as_written(tmp_path, service_database):
    with (
        service_database() as settings,
        real.served(tmp_path / "empty", **settings) as service,
    ):
        path = created_and_listed(service)
        changed = service.data("PATCH", path, {"description": "Changed"})
        assert changed["description"] == "Changed"
        started = service.data("POST", f"{path}/start")
        assert started["status"] == "running" and started["startDate"].endswith("Z")
        assert service("PATCH", path, {"name": "Too late"})[0] == 409
        arms = enrolled_until(service, path, 250)
        rows = [
            {"userId": user_id}
            for arm, conversions in (("v1", 45), ("v2", 67))
            for user_id in arms[arm][:conversions]
        ]
        service.data("POST", f"{path}/conversions/batch", {"conversions": rows})
        assert_seed_results(service, path, arms)
        stopped = service.data("POST", f"{path}/stop")
        assert stopped["status"] == "stopped" and stopped["endDate"].endswith("Z")
        kept = service.data("GET", path)["_count"]["assignments"]
        assert kept == sum(map(len, arms.values()))
        assert service.data("DELETE", path)["archivedAt"]


def test_eight_callers_enrolling_the_same_new_users_make_one_row_each(service):
    path = service.running()
    users = [f"same-{number}" for number in range(100)]

    def enrol(_):
        return [
            service.data("POST", f"{path}/assignments", {"userId": user})["variantId"]
            for user in users
        ]

    with ThreadPoolExecutor(8) as callers:
        told = list(callers.map(enrol, range(8)))

    assert len({tuple(variants) for variants in told}) == 1
    assert service.data("GET", path)["_count"] == {"assignments": 100}
    _, listed = service("GET", f"{path}/assignments?limit=100")
    stored = {one["userId"]: one["variantId"] for one in listed["data"]}
    assert stored == dict(zip(users, told[0], strict=True))
    assert service.flask("check").returncode == 0


def test_what_was_told_while_a_stop_raced_is_what_is_stored(service):
    path = service.running()

    def enrol(number):
        body = {"userId": f"racer-{number}"}
        answer = service.data("POST", f"{path}/assignments", body)
        return answer["userId"] if answer["enrolled"] else None

    with ThreadPoolExecutor(16) as callers:
        sent = [callers.submit(enrol, number) for number in range(200)]
        stopped = callers.submit(service.data, "POST", f"{path}/stop")
        sent += [callers.submit(enrol, number) for number in range(200, 400)]
        told = {one.result() for one in sent} - {None}
        assert stopped.result()["status"] == "stopped"
    late = service.data("POST", f"{path}/assignments", {"userId": "late"})

    assert late["reason"] == "ENROLLMENT_CLOSED"
    stored = set()
    for page in range(1, 6):
        _, listed = service("GET", f"{path}/assignments?limit=100&page={page}")
        stored |= {one["userId"] for one in listed["data"]}
    assert stored == told
    assert 0 < len(told) < 400
    assert service.data("GET", path)["_count"] == {"assignments": len(told)}


def test_of_eight_racing_starts_one_wins(service):
    made = service.data("POST", "experiments", CREATE)

    def start(_):
        return service("POST", f"experiments/{made['id']}/start")[0]

    with ThreadPoolExecutor(8) as callers:
        assert sorted(callers.map(start, range(8))) == [200] + [409] * 7


def test_all_of_eight_racing_archivings_are_answered_alike(service):
    with ThreadPoolExecutor(8) as callers:
        for _ in range(3):
            made = service.data("POST", "experiments", CREATE)
            path = f"experiments/{made['id']}"
            told = list(callers.map(service.data, ["DELETE"] * 8, [path] * 8))

            assert len({one["archivedAt"] for one in told}) == 1
            history = service.data("GET", f"{path}/history")
            assert [one["action"] for one in history] == ["archive", "create"]


def test_an_override_that_races_with_its_variant_s_removal_is_whole(service):
    left = [{"id": "v1"}, {"name": "New", "splitPercentage": 50}]
    with ThreadPoolExecutor(8) as callers:
        for _ in range(5):
            made = service.data("POST", "experiments", CREATE)
            path = f"experiments/{made['id']}"
            users = [f"{path}/overrides/qa-{number}" for number in range(8)]
            forced = [
                callers.submit(service, "PUT", user, {"variantId": "v2"})
                for user in users
            ]
            assert service("PATCH", path, {"variants": left})[0] == 200

            assert {one.result()[0] for one in forced} <= {201, 400}
            assert service.data("GET", f"{path}/overrides") == []


def test_of_eight_same_conversions_one_counts(service):
    path = service.running()
    service.data("POST", f"{path}/assignments", {"userId": "u1"})
    body = {"userId": "u1", "value": 3, "idempotencyKey": "order-1"}

    def convert(_):
        return service("POST", f"{path}/conversions", body)[0]

    with ThreadPoolExecutor(8) as callers:
        assert sorted(callers.map(convert, range(8))) == [200] * 7 + [201]
    assert service.data("GET", f"{path}/results")["quality"] == {
        "received": 8,
        "counted": 1,
        "duplicates": 7,
        "beforeEnrollment": 0,
        "notEnrolled": 0,
    }


def test_what_was_acknowledged_survives_kill_9(tmp_path, service_database):
    with (
        service_database() as settings,
        real.served(tmp_path / "killed", **settings) as service,
    ):
        path = service.running()
        told = []

        def enrol(number):
            body = {"userId": f"u{number}"}
            status, _ = service("POST", f"{path}/assignments", body)
            if status == 201:
                told.append(f"u{number}")
                if len(told) == 50:
                    service.kill()

        with ThreadPoolExecutor(8) as callers:
            for sent in [callers.submit(enrol, number) for number in range(400)]:
                error = sent.exception()
                # An answer that was cut off in its middle is none.
                cut = OSError, HTTPException
                assert error is None or isinstance(error, cut), error
        service.start()

        assert len(told) >= 50
        for user_id in told:
            assert service("GET", f"{path}/assignments/{user_id}")[0] == 200
        assert service.flask("check").returncode == 0


def test_a_killed_worker_is_replaced_and_nothing_acknowledged_is_lost(service):
    path = service.running()
    before = service.workers()
    victim = min(before)
    told = []

    def enrol(number):
        user_id = f"survivor-{number}"
        try:
            status, _ = service("POST", f"{path}/assignments", {"userId": user_id})
        except (OSError, HTTPException):
            return  # cut off: the caller was told nothing
        assert status == 201
        told.append(user_id)
        if len(told) == 50:
            os.kill(victim, signal.SIGKILL)

    with ThreadPoolExecutor(8) as callers:
        list(callers.map(enrol, range(200)))

    assert len(told) >= 100
    stored = set()
    for page in (1, 2):
        _, listed = service("GET", f"{path}/assignments?limit=100&page={page}")
        stored |= {one["userId"] for one in listed["data"]}
    assert stored >= set(told)
    deadline = time.monotonic() + 10
    while victim in service.workers() or len(service.workers()) != len(before):
        assert time.monotonic() < deadline, service.log.read_text()
        time.sleep(0.05)
    assert service.flask("check").returncode == 0


@contextmanager
def two_processors():
    """Let what is started within the block use two processors."""
    usable = os.sched_getaffinity(0)
    if len(usable) < 2:
        pytest.skip("This machine has one processor.")
    two = set(sorted(usable)[:2])
    os.sched_setaffinity(0, two)
    try:
        yield two
    finally:
        os.sched_setaffinity(0, usable)


def processors(pid):
    """Return the processors that each thread of a process may use."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return {tuple(os.sched_getaffinity(int(thread.name))) for thread in threads}


@pytest.mark.one_engine
def test_two_workers_on_two_processors_have_one_each_also_if_one_is_replaced(tmp_path):
    with two_processors() as two, real.served(tmp_path / "instance") as service:
        path = service.running()
        each = [processors(pid) for pid in service.workers()]
        kept, killed = sorted(service.workers())
        os.kill(killed, signal.SIGKILL)
        real.wait_until(lambda: len(service.workers() - {kept, killed}) == 1, 10)
        service.data("POST", f"{path}/assignments", {"userId": "u1"})
        later = [processors(pid) for pid in service.workers()]

    one_each = [{(processor,)} for processor in sorted(two)]
    assert sorted(each, key=str) == one_each
    assert sorted(later, key=str) == one_each


@pytest.mark.one_engine
def test_a_worker_may_use_all_processors_if_there_are_more_than_workers(tmp_path):
    alone = "--workers 1"
    with (
        two_processors() as two,
        real.served(tmp_path / "instance", GUNICORN_CMD_ARGS=alone) as service,
    ):
        (worker,) = service.workers()
        assert processors(worker) == {tuple(two)}


def copied_tree(folder, more):
    """Return the code with some more lines in gunicorn's settings."""
    tree = folder / "tree"
    tree.mkdir()
    for file in real.ROOT.iterdir():
        (tree / file.name).symlink_to(file)
    settings = tree / "gunicorn.conf.py"
    text = settings.read_text()
    settings.unlink()
    settings.write_text(f"{text}\n{more}")
    return tree


@pytest.mark.one_engine
def test_a_reload_of_newer_settings_replaces_the_workers(tmp_path):
    tree = copied_tree(tmp_path, "del pre_fork, post_fork\nworker_class = 'gthread'\n")
    settings = tree / "gunicorn.conf.py"
    newer = (real.ROOT / settings.name).read_text()
    with (
        two_processors() as two,
        real.served(tmp_path / "instance", tree=tree) as service,
    ):
        before = service.workers()
        settings.write_text(newer)
        os.kill(service.process.pid, signal.SIGHUP)
        real.wait_until(lambda: not before & service.workers(), 20)
        service("GET", "/readyz")
        each = [processors(pid) for pid in service.workers()]

    assert sorted(each, key=str) == [{(processor,)} for processor in sorted(two)]


@pytest.mark.one_engine
def test_a_worker_that_may_not_have_its_processor_uses_the_others():
    usable = os.sched_getaffinity(0)
    settings = runpy.run_path(str(real.ROOT / "gunicorn.conf.py"))

    settings["post_fork"](None, SimpleNamespace(processor=10**6))  # there is none such

    assert os.sched_getaffinity(0) == usable


@contextmanager
def connections(service, number):
    """Open so many connections within a moment; each has a request answered."""
    request = b"GET /healthz HTTP/1.1\r\nHost: abacus\r\n\r\n"
    with ExitStack() as opened:
        sockets = [
            opened.enter_context(socket.create_connection(("127.0.0.1", service.port)))
            for _ in range(number)
        ]
        for one in sockets:
            one.sendall(request)
        for one in sockets:
            one.settimeout(20)
            assert one.recv(4096).startswith(b"HTTP/1.1 200 OK")
        yield sockets


def held(service):
    """Return how many connections each worker has."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    port = f":{service.port:04X}"
    sockets = {
        f"socket:[{row[9]}]" for row in rows if row[1].endswith(port) and row[3] == "01"
    }
    each = []
    for pid in sorted(service.workers()):
        links = set()
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # it was closed meanwhile
                links.add(os.readlink(file))
        each.append(len(sockets & links))
    return each


def shares(service, number):
    """Open connections within a moment; return how many of them each worker has."""
    real.wait_until(lambda: not sum(held(service)), 10)
    with connections(service, number):
        return held(service)


@pytest.mark.one_engine
def test_connections_that_are_opened_at_once_are_shared_by_the_workers(tmp_path):
    with real.served(tmp_path / "instance") as service:
        real.wait_until(lambda: min(shares(service, 16)) > 0, 20)  # both have started
        each = [shares(service, 16) for _ in range(9)]

    assert {sum(share) for share in each} == {16}
    # gunicorn's own worker leaves 0 or 1 to the other one.
    assert statistics.median(map(min, each)) >= 5, each


@pytest.mark.one_engine
def test_a_worker_that_hangs_keeps_no_connection_from_the_other(tmp_path):
    with real.served(tmp_path / "instance") as service:
        hung, _ = sorted(service.workers())
        os.kill(hung, signal.SIGSTOP)
        try:
            with connections(service, 40):
                pass
        finally:
            os.kill(hung, signal.SIGCONT)


LEFT = """
def worker_exit(server, worker):
    from storage.traffic import traffic
    server.log.warning("Requests left: %d", traffic.quick + len(traffic._coming))
"""


@pytest.mark.one_engine
def test_every_request_that_was_announced_is_seen_to_arrive(tmp_path):
    tree = copied_tree(tmp_path, LEFT)
    with real.served(tmp_path / "instance", tree=tree) as service:
        path = service.running()
        body = json.dumps({"userId": "u1"})
        post = (
            f"POST /api/{path}/assignments HTTP/1.1\r\nHost: abacus\r\n"
            f"Authorization: Bearer {service.token}\r\n"
            "Content-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        ).encode()
        seconds = [post, post[:40], b"no HTTP\r\n\r\n", b"", post + post]
        with connections(service, len(seconds)) as opened:
            for one, request in zip(opened, seconds, strict=True):
                one.sendall(request)
                one.shutdown(socket.SHUT_WR)
                while one.recv(4096):
                    pass

    left = re.findall(r"Requests left: (-?\d+)", service.log.read_text())
    assert left == ["0", "0"]


def test_a_worker_that_meets_an_io_error_answers_and_leaves(tmp_path):
    with real.served(tmp_path / "failing") as service:
        path = service.running()
        users = [{"userId": f"u{number}"} for number in range(2_000)]
        service.data("POST", f"{path}/assignments/batch", {"users": users})
        before = service.workers()
        for pid in before:  # no file of theirs can grow: what is written fails
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
        deadline = time.monotonic() + 30
        told = {}

        while service.workers() & before or len(service.workers()) < 2:
            user_id = f"after-{len(told)}"
            body = {"userId": user_id}
            try:
                status, answer = service("POST", f"{path}/assignments", body)
            except (OSError, HTTPException):
                continue  # it went to a worker that was leaving
            told[user_id] = status
            assert status == 201 or "I/O error" in answer["error"]["message"], answer
            assert time.monotonic() < deadline, service.log.read_text()

        assert 503 in told.values()
        assert "SQLITE_IOERR" in service.log.read_text()
        service.data("POST", f"{path}/assignments", {"userId": "u-last"})
        for user_id, status in told.items():
            found = service("GET", f"{path}/assignments/{user_id}")[0]
            assert found == (200 if status == 201 else 404)
        assert service.flask("check").returncode == 0


STOPPED_TOO_EARLY = """
import os, signal

exec(compile(open("gunicorn.conf.py").read(), "gunicorn.conf.py", "exec"))

def post_fork(server, worker):
    os.kill(os.getppid(), signal.SIGTERM)  # the service is stopped
    signal.pause()  # until the master passes it on
"""


@pytest.mark.one_engine
def test_a_service_that_is_stopped_while_its_workers_start_ends_at_once(tmp_path):
    settings = tmp_path / "early.py"
    settings.write_text(STOPPED_TOO_EARLY)
    instance, _ = real.made_ready(real.ROOT)

    began = time.monotonic()
    ended = subprocess.run(
        [*real.GUNICORN, "--config", settings, "--bind", "127.0.0.1:0"],
        cwd=real.ROOT,
        env=real.environment(instance),
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )

    assert "Booting worker" in ended.stderr
    assert ended.returncode == 0, ended.stderr
    assert time.monotonic() - began < real.GRACE


@pytest.mark.one_engine
def test_a_request_line_of_8190_bytes_reaches_the_service(service):
    connection = HTTPConnection("127.0.0.1", service.port, timeout=10)
    path = "/api/experiments/"
    path += "x" * (8190 - len(f"GET {path} HTTP/1.1"))

    connection.request("GET", path)
    answer = connection.getresponse()

    assert answer.status == 401
    assert json.loads(answer.read())["error"]["code"] == "UNAUTHENTICATED"
    connection.close()


@pytest.mark.one_engine
def test_the_log_holds_neither_tokens_nor_users(service):
    path = service.running()
    service.data("POST", f"{path}/assignments", {"userId": "marker-user"})
    service("GET", "users/marker-user/assignments")

    log = service.log.read_text()
    # gunicorn's own few lines, on its start and its workers, begin with "[".
    written = [line for line in log.splitlines() if not line.startswith("[")]
    lines = [json.loads(line) for line in written]

    assert {"/api/experiments/<id>/assignments"} <= {
        line.get("route") for line in lines
    }
    assert "marker-user" not in log
    assert service.token not in log


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"JWT_SECRET_KEY": "short"}, "at least 32 bytes"),
        ({"JWT_SECRET_KEY": "change-me" * 6}, "known word"),
        ({}, "flask --app wsgi init"),
    ],
)
def test_without_a_good_secret_or_a_database_gunicorn_does_not_start(
    tmp_path, settings, told
):
    if settings:
        real.prepare(tmp_path)

    assert told in real.refusal(tmp_path, **settings)
    assert (tmp_path / "abacus.db").exists() is bool(settings)


def test_a_database_whose_schema_was_altered_is_not_served(tmp_path):
    real.prepare(tmp_path)
    with closing(peewee.sqlite3.connect(tmp_path / "abacus.db")) as database:
        database.execute("DROP INDEX assignment_user_id_experiment_id")

    told = real.refusal(tmp_path)

    assert "has no unique index 'assignment_user_id_experiment_id'" in told


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_metrics_in_the_folder_of_a_database_are_refused(
    tmp_path,
):
    instance = tmp_path / "instance"
    real.prepare(instance)
    (instance / "counter_1.db").write_bytes(b"left by a worker")
    before = contents(instance)

    told = real.refusal(instance, PROMETHEUS_MULTIPROC_DIR=str(instance))

    assert f"{instance}, which holds the database abacus.db" in told
    assert "give the metrics a folder of their own" in told
    assert contents(instance) == before


def test_metrics_in_the_folder_of_a_broken_database_are_refused_too(tmp_path):
    instance = tmp_path / "instance"
    real.prepare(instance)
    (instance / "abacus.db").write_bytes(b"no database at all" * 500)
    before = contents(instance)

    told = real.refusal(instance, PROMETHEUS_MULTIPROC_DIR=str(instance))

    assert f"{instance}, the folder of the database" in told
    assert before.items() <= contents(instance).items()


@pytest.mark.parametrize("kind", ["pipe", "nothing"])
def test_metrics_in_what_is_no_folder_are_refused(tmp_path, kind):
    real.prepare(tmp_path / "instance")
    folder = tmp_path / "metrics"
    if kind == "pipe":
        os.mkfifo(folder)

    told = real.refusal(tmp_path / "instance", PROMETHEUS_MULTIPROC_DIR=str(folder))

    assert "PROMETHEUS_MULTIPROC_DIR is of no use" in told
    assert str(folder) in told


def test_only_the_files_of_earlier_workers_are_removed(
    tmp_path,
):
    folder = tmp_path / "abacus-metrics-of-the-operator"
    folder.mkdir()
    ours = ("counter_99999999.db", "gauge_livesum_99999999.db")
    others = ("notes.db", "counter_x.db", "counter_1.db.old", "my_counter_1.db")
    for name in (*ours, *others):
        (folder / name).write_bytes(b"text")

    with real.served(
        tmp_path / "instance", PROMETHEUS_MULTIPROC_DIR=str(folder)
    ) as service:
        counting = {f"counter_{pid}.db" for pid in service.workers()}
        real.wait_until(lambda: counting <= contents(folder).keys(), 10)
        there = contents(folder).keys()

    assert set(others) | counting <= there
    assert not set(ours) & there
    # The folder is the operator's, whatever its name.
    assert set(others) <= contents(folder).keys()


def test_only_what_an_earlier_service_of_this_user_left_is_removed(tmp_path):
    conf = runpy.run_path(str(real.ROOT / "gunicorn.conf.py"))
    made = {}
    for name in ("left", "living", "others", "kept", "database", "target"):
        made[name] = tmp_path / f"{conf['COUNTS'] if name != 'target' else ''}{name}"
        made[name].mkdir()
        (made[name] / "counter_1.db").write_bytes(b"")
    os.mkfifo(tmp_path / f"{conf['COUNTS']}pipe")
    (tmp_path / f"{conf['COUNTS']}link").symlink_to(made["target"])
    (tmp_path / f"{conf['COUNTS']}file").write_bytes(b"text")
    (made["kept"] / "notes.txt").write_bytes(b"text")
    (made["database"] / "abacus.db").write_bytes(b"SQLite format 3\0")
    if os.geteuid() == 0:
        os.chown(made["others"], 65534, -1)
    else:  # nobody else can give a folder away
        shutil.rmtree(made["others"])
    living = os.open(made["living"], os.O_RDONLY)
    fcntl.flock(living, fcntl.LOCK_SH)
    before = set(tmp_path.rglob("*"))

    conf["remove_left_over"](tmp_path)
    os.close(living)

    removed = before - set(tmp_path.rglob("*"))
    assert removed == {
        made["left"],
        made["left"] / "counter_1.db",
        made["kept"] / "counter_1.db",
    }


def test_a_browser_of_an_allowed_origin_asks_first_without_a_token(tmp_path):
    with real.served(
        tmp_path / "instance", CORS_ORIGINS="https://shop.example"
    ) as service:
        path = service.running()
        allowed = {}
        for origin in ("https://shop.example", "https://other.example"):
            connection = HTTPConnection("127.0.0.1", service.port, timeout=10)
            asks = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            connection.request("OPTIONS", f"/api/{path}/assignments", None, asks)
            answer = connection.getresponse()
            answer.read()
            connection.close()
            assert answer.status == 200
            allowed[origin] = answer.headers["Access-Control-Allow-Origin"]

    assert allowed == {
        "https://shop.example": "https://shop.example",
        "https://other.example": None,
    }


@pytest.mark.one_engine
def test_a_path_that_is_not_utf_8_names_nobody(service):
    path = service.running()
    for odd in ("%FF", "%FE", "%ED%A0%80", "a%00b"):
        status, answer = service("PUT", f"{path}/overrides/{odd}", {"variantId": "v1"})
        assert (status, answer["error"]["details"][0]["path"]) == (400, "path")
    assert service.data("GET", f"{path}/overrides") == []
    replaced = service.data("PUT", f"{path}/overrides/%EF%BF%BD", {"variantId": "v1"})
    assert replaced["userId"] == "\ufffd"
