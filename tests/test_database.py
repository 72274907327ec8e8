"""The database: its own rules, its connection, its making."""

import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import peewee
import pytest
from conftest import SECRET, assert_error, two_variants
from flask_jwt_extended import create_access_token

import engine
import models
import reports
from app import create_app
from models import Assignment, Conversion, Experiment, Outcome, Tally, Variant

ROOT = Path(__file__).parent.parent


def test_every_connection_keeps_the_contract(api):
    api.get("experiments")

    def pragmas():
        models.database.connect(reuse_if_open=True)
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        told = [models.database.pragma(name) for name in names]
        models.database.close()
        return told

    with ThreadPoolExecutor(1) as other:
        assert other.submit(pragmas).result() == ["wal", 2, 1, 5000]
    assert models.database.pragma("synchronous") == 2


def test_the_driver_is_the_one_without_the_lost_commit():
    assert peewee.sqlite3.__name__.startswith("pysqlite3")
    engine.refuse_affected(peewee.sqlite3.sqlite_version_info)


@pytest.mark.parametrize(
    ("version", "refused"),
    # https://sqlite.org/wal.html#walresetbug
    [
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 53, 4), False),
    ],
)
def test_an_affected_sqlite_is_refused(version, refused):
    if refused:
        with pytest.raises(engine.NotReady, match="lose commits"):
            engine.refuse_affected(version)
    else:
        engine.refuse_affected(version)


def rows(api, running, enrolled):
    path = running()
    enrolled(path, "u1")
    body = {"userId": "u1", "idempotencyKey": "k1", "value": 1}
    assert api.post(f"{path}/conversions", body).status_code == 201
    return path.removeprefix("experiments/"), Assignment.get(), Conversion.get()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda id, seat, event: Assignment.insert({**seat.__data__, "id": 99}),
        lambda id, seat, event: Assignment.insert(
            {**seat.__data__, "id": 99, "user_id": "u2", "variant": "v9"}
        ),
        lambda id, seat, event: Conversion.insert({**event.__data__, "id": 99}),
        lambda id, seat, event: Conversion.insert(
            {**event.__data__, "id": 99, "idempotency_key": None, "assignment": 99}
        ),
        lambda id, seat, event: Outcome.insert(
            assignment=seat.id, metric="conversion", events=1
        ),
        lambda id, seat, event: Experiment.update(status="paused"),
        lambda id, seat, event: Experiment.update(status="draft"),
        lambda id, seat, event: Experiment.update(end_date=models.EPOCH),
        lambda id, seat, event: Variant.update(split=0),
        lambda id, seat, event: Variant.update(name="Same"),
        lambda id, seat, event: Variant.update(participants=-1),
        lambda id, seat, event: Tally.update(users=2),
        lambda id, seat, event: Tally.update(value_users=2),
        lambda id, seat, event: Experiment.delete(),
    ],
)
def test_the_database_itself_refuses_what_must_never_be(api, running, enrolled, wrong):
    id, seat, event = rows(api, running, enrolled)

    with pytest.raises(peewee.IntegrityError):
        wrong(id, seat, event).execute()

    assert (Assignment.select().count(), Conversion.select().count()) == (1, 1)
    assert list(reports.discrepancies()) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda: Variant.update(participants=7),
        lambda: Tally.update(events=7),
        lambda: Tally.update(value_sum=Decimal(7)),
        lambda: Outcome.update(total=Decimal(7)),
        lambda: Outcome.insert(assignment=1, metric="never done", events=1),
        lambda: models.RefusalTally.update(count=7),
        lambda: Conversion.delete(),
        lambda: models.Refusal.delete(),
    ],
)
def test_check_finds_a_count_that_its_rows_do_not_prove(api, running, enrolled, spoil):
    path, *_ = rows(api, running, enrolled)
    api.post(f"experiments/{path}/conversions", {"userId": "stranger"})
    assert list(reports.discrepancies()) == []

    spoil().execute()

    assert list(reports.discrepancies())


@pytest.mark.parametrize("table", models.TABLES)
def test_rows_of_unequal_columns_are_refused_and_not_cut_to_those_of_the_first(
    table,
):
    first, *_ = columns = list(table._meta.fields)
    whole = dict.fromkeys(columns, 1)
    short = {first: 1}

    for rows in ([short, whole], [whole, short]):
        with pytest.raises(ValueError, match="columns"):
            table.insert_many(rows)
    assert table.insert_many([whole, whole]) is not None


def test_writers_queue_with_begin_immediate(api, running):
    path = running()
    statements = []
    models.database.connection().set_trace_callback(statements.append)

    api.post(f"{path}/assignments", {"userId": "u1"})

    begun = [one for one in statements if one.startswith("BEGIN")]
    assert begun == ["BEGIN IMMEDIATE"]
    assert statements.index("BEGIN IMMEDIATE") < statements.index("COMMIT")


def test_a_longer_list_costs_no_more_queries(api, draft, running, enrolled):
    path = running()

    def queries(what):
        statements = []
        models.database.connection().set_trace_callback(statements.append)
        assert api.get(what).status_code == 200
        models.database.connection().set_trace_callback(None)
        return len(statements)

    api.get("experiments")
    lists = ("experiments", f"{path}/assignments", "users/u1/assignments")
    enrolled(path, "u1")
    before = [queries(one) for one in lists]
    for _ in range(10):
        draft()
        enrolled(running(), "u1")
    enrolled(path, *[f"u{number}" for number in range(20)])

    assert [queries(one) for one in lists] == before
    assert before[0] <= 3


def test_a_missing_database_is_never_made_by_a_request(tmp_path, token, app):
    other = create_app(
        {
            "JWT_SECRET_KEY": app.config["JWT_SECRET_KEY"],
            "DATABASE_URL": f"sqlite:///{tmp_path / 'missing.db'}",
        }
    )
    headers = {"Authorization": f"Bearer {token()}"}

    answer = other.test_client().get("/api/experiments", headers=headers)
    ready = other.test_client().get("/readyz")

    for response in (answer, ready):
        assert_error(response, 503, "UNAVAILABLE")
        assert response.headers["Retry-After"] == "1"
    assert other.test_client().get("/healthz").status_code == 200
    assert not (tmp_path / "missing.db").exists()


def test_a_file_that_is_not_ours_is_refused(tmp_path):
    strange = tmp_path / "strange.db"
    strange.write_bytes(b"")
    engine.bind(f"sqlite:///{strange}")
    with pytest.raises(engine.NotReady, match="never created"):
        models.verify()
    models.database.close()
    strange.write_bytes(b"not a database at all" * 500)
    with pytest.raises(engine.NotReady, match="cannot be read"):
        models.verify()
    models.database.close()


def test_another_version_of_the_schema_is_refused(app):
    models.Identity.update(schema_version=99).execute()

    with pytest.raises(engine.NotReady, match="schema 99"):
        models.verify()


def test_a_first_boot_of_several_at_once_makes_one_database(tmp_path):
    environment = {**os.environ, "INSTANCE": str(tmp_path / "instance")}
    for name in ("DATABASE_URL", "JWT_SECRET_KEY"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "flask", "--app", "wsgi", "init"]
    started = [
        subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE
        )
        for _ in range(4)
    ]
    told = [process.communicate(timeout=60)[0] for process in started]

    assert [process.returncode for process in started] == [0] * 4
    assert (
        sorted(told) == ["The database is made.\n"] + ["The database is there.\n"] * 3
    )
    secret = tmp_path / "instance" / "secret"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "instance" / "abacus.db").stat().st_mode & 0o777 == 0o600


def test_no_handle_is_open_at_a_fork(app):
    models.database.connect(reuse_if_open=True)

    child = os.fork()
    if child == 0:
        os._exit(0 if models.database.is_closed() else 1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert models.database.is_closed()


def test_an_app_can_be_tested_in_memory_in_three_lines():
    app = create_app({"TESTING": True, "DATABASE_URL": "sqlite:///:memory:"})
    assert app.test_client().get("/readyz").status_code == 200
    models.database.close()


def test_two_tests_of_an_embedding_app_do_not_share_a_database():
    settings = {"TESTING": True, "DATABASE_URL": "sqlite:///:memory:"}
    create_app(settings)
    models.Experiment.draft(
        [{"name": "A", "split": 5000}, {"name": "B", "split": 5000}],
        by="tester",
        name="One",
        type="ab_test",
        primary_metric="conversion",
    )
    create_app(settings)
    assert models.Experiment.select().count() == 0
    models.database.close()


def full():
    return f"PRAGMA max_page_count = {models.database.pragma('page_count')}"


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        (lambda: "PRAGMA query_only = 1", "The database is read-only"),
        (full, "The disk of the database is full"),
    ],
)
def test_what_cannot_be_written_is_503_and_not_half_written(
    api, running, trouble, told
):
    path = running()
    models.database.execute_sql(trouble())
    users = [{"userId": f"u{number}-{'x' * 200}"} for number in range(2_000)]

    response = api.post(f"{path}/assignments/batch", {"users": users})

    error = assert_error(response, 503, "UNAVAILABLE")
    assert error["message"].startswith(told)
    assert response.headers["Retry-After"] == "1"
    models.database.close()
    assert api.get(path).json["data"]["_count"] == {"assignments": 0}
    assert list(reports.discrepancies()) == []
    assert api.post(f"{path}/assignments", {"userId": "u1"}).status_code == 201


def test_a_database_that_another_writer_holds_is_503_and_still_read(api, running):
    path = running()
    models.database.pragma("busy_timeout", 0)

    def hold():
        models.database.connect(reuse_if_open=True)
        models.database.begin("IMMEDIATE")

    def let_go():
        models.database.rollback()
        models.database.close()

    with ThreadPoolExecutor(1) as other:
        other.submit(hold).result()
        response = api.post(f"{path}/assignments", {"userId": "u1"})
        read = api.get(path)
        other.submit(let_go).result()

    error = assert_error(response, 503, "UNAVAILABLE")
    assert error["message"].startswith("The database is busy")
    assert read.json["data"]["_count"] == {"assignments": 0}
    assert api.post(f"{path}/assignments", {"userId": "u1"}).status_code == 201


def test_the_service_is_not_ready_while_it_cannot_write(api, anonymous, running):
    running()
    deadline = time.monotonic() + 10

    def ready():
        return anonymous.get("/readyz")

    assert ready().status_code == 200
    models.database.execute_sql("PRAGMA query_only = 1")
    while (red := ready()).status_code == 200:
        assert time.monotonic() < deadline
    error = assert_error(red, 503, "UNAVAILABLE")
    assert error["message"].startswith("The database is read-only")
    assert anonymous.get("/healthz").status_code == 200
    models.database.execute_sql("PRAGMA query_only = 0")
    while ready().status_code != 200:
        assert time.monotonic() < deadline


def test_readiness_writes_at_most_once_a_second(anonymous):
    written = set()
    began = time.monotonic()
    for _ in range(100):
        assert anonymous.get("/readyz").status_code == 200
        written.add(models.Identity.get().probed_at)
    assert len(written) <= 2 + (time.monotonic() - began)


def test_a_damaged_page_stops_writes_and_init_but_not_other_reads(
    tmp_path, app, api, running, enrolled
):
    path = running()
    enrolled(path, *[f"u{number}" for number in range(200)])
    models.database.pragma("wal_checkpoint(TRUNCATE)")
    root = models.database.execute_sql(
        "SELECT rootpage FROM sqlite_master WHERE name = 'assignment'"
    ).fetchone()[0]
    models.database.close()
    with (tmp_path / "abacus.db").open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\xff" * 4096)

    for response in (
        api.get(f"{path}/assignments"),
        api.post(f"{path}/assignments", {"userId": "new"}),
        api.post("experiments", {"name": "A", "variants": two_variants()}),
        api.get("/readyz"),
    ):
        error = assert_error(response, 503, "UNAVAILABLE")
        assert error["message"].startswith("The database is damaged")
    assert api.get(path).status_code == 200
    with pytest.raises(engine.NotReady, match="damaged"):
        models.create(app.config["DATABASE_URL"])


def test_writers_of_a_process_take_turns_in_the_order_in_which_they_came():
    turns, order = engine.Turns(), []
    turns.take(1)

    def write(number):
        turns.take(10)
        order.append(number)
        turns.give()

    waiting = []
    for number in range(8):
        waiting.append(threading.Thread(target=write, args=(number,)))
        waiting[-1].start()
        deadline = time.monotonic() + 5
        while len(turns._line) < number + 2:
            assert time.monotonic() < deadline
    turns.give()
    for thread in waiting:
        thread.join()

    assert order == list(range(8))


def test_no_more_writers_wait_than_a_worker_can_spare():
    turns = engine.Turns()
    turns.most = 2
    turns.take(0)

    def late(seconds):
        with pytest.raises(engine.Refused) as refused:
            turns.take(seconds)
        return engine.trouble(refused.value), str(refused.value)

    with ThreadPoolExecutor(2) as others:
        slow = others.submit(late, 0.2)
        while len(turns._line) < 2:
            assert not slow.done()
        assert others.submit(late, 60).result() == (
            "SQLITE_BUSY",
            "Too many writers wait already.",
        )
        assert slow.result() == ("SQLITE_BUSY", "The other writers took too long.")
    turns.give()
    turns.take(0)  # who gave up stands in nobody's way


def test_every_write_is_in_a_transaction_that_took_its_turn(api, running):
    statements = []
    engine.connect()
    models.database.connection().set_trace_callback(statements.append)

    path = running()
    api.post(f"{path}/assignments", {"userId": "u1"})
    api.post(f"{path}/conversions", {"userId": "u1"})
    for move in ("stop", "resume", "duplicate"):
        assert api.post(f"{path}/{move}").status_code < 300
    api.post(f"{path}/complete", {"conclusion": "lost"})
    assert api.delete(path).status_code == 200

    inside, writes = False, 0
    for statement in statements:
        verb = statement.partition(" ")[0]
        inside = {"BEGIN": statement == "BEGIN IMMEDIATE", "COMMIT": False}.get(
            verb, inside
        )
        if verb in ("INSERT", "UPDATE", "DELETE"):
            writes += 1
            assert inside, statement
    assert writes > 10


def test_no_answer_holds_the_database_while_it_is_sent(app, api, running, enrolled):
    path = running()
    enrolled(path, *[f"u{number}" for number in range(5_000)])
    api.post(f"{path}/conversions", {"userId": "u1"})

    def emptied():
        """Tell whether the write-ahead log can be emptied: no reader holds it."""
        engine.connect()
        models.database.pragma("busy_timeout", 0)
        busy = models.database.pragma("wal_checkpoint(TRUNCATE)")
        models.database.close()
        return busy == 0

    with ThreadPoolExecutor(1) as other:
        for asked in (
            *("experiments", path, f"{path}/assignments", "users/u1/assignments"),
            *(f"{path}/results", f"{path}/results?granularity=day"),
            *(f"{path}/export?format=ndjson", f"{path}/export?format=csv"),
        ):
            answer = api.get(asked, buffered=False)
            assert answer.status_code == 200
            assert next(answer.iter_encoded())  # an export goes on after this
            assert other.submit(emptied).result(), asked
        answer = api.post(f"{path}/compute-results", buffered=False)
        assert answer.status_code == 200
        assert other.submit(emptied).result()


@pytest.mark.parametrize("put_back", [False, True], ids=["gone", "another's"])
def test_nothing_is_acknowledged_into_a_file_that_was_taken_away(
    tmp_path, api, running, put_back
):
    path = running()
    away = tmp_path / "away"
    away.mkdir()
    for file in list(tmp_path.glob("abacus.db*")):
        file.rename(away / file.name)
    if put_back:
        (tmp_path / "abacus.db").touch()

    response = api.post(f"{path}/assignments", {"userId": "u1"})

    assert_error(response, 503, "UNAVAILABLE")


def test_creating_again_keeps_what_is_there(api, app, draft):
    path = draft()
    before = api.get(path).json

    assert models.create(app.config["DATABASE_URL"]) == "there"

    assert api.get(path).json == before
    assert models.Identity.select().count() == 1


def test_eight_that_create_at_once_make_one_database(tmp_path):
    url = f"sqlite:///{tmp_path / 'instance' / 'abacus.db'}"
    program = "import models, sys; print(models.create(sys.argv[1]))"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, url],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
        )
        for _ in range(8)
    ]
    told = [process.communicate(timeout=60)[0].strip() for process in started]

    assert [process.returncode for process in started] == [0] * 8
    assert sorted(told) == ["made"] + ["there"] * 7
    engine.bind(url)
    models.verify()
    assert models.Identity.select().count() == 1
    models.database.close()


# ----------------------------------------------------------------------------
# Migration
# ----------------------------------------------------------------------------


def of_schema_1(path):
    """Write the database of schema 1 that tests/cases has, as version 0.1 made it."""
    database = peewee.sqlite3.connect(path)
    database.executescript((ROOT / "tests/cases/schema_1.sql").read_text())
    database.execute("PRAGMA journal_mode = wal")
    database.close()


def shape(path):
    """Return all that is told of each table but how its text is set."""
    database = peewee.sqlite3.connect(path)
    told = database.execute("SELECT name, tbl_name, sql FROM sqlite_master").fetchall()
    tables = {table for _, table, _ in told}
    kinds = ("table_info", "foreign_key_list", "index_list")
    shapes = {
        (table, kind): sorted(
            row[1:] for row in database.execute(f"PRAGMA {kind}('{table}')").fetchall()
        )
        for table in tables
        for kind in kinds
    }
    # A column that is added stands behind the checks: the clauses, in any order.
    clauses = {
        name: sorted(re.sub(r"[\s)]", "", sql or "").split(","))
        for name, _, sql in told
    }
    database.close()
    return shapes, clauses


def test_a_database_of_schema_1_becomes_what_a_new_one_is(tmp_path):
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    of_schema_1(old)

    assert models.create(f"sqlite:///{old}") == "migrated"

    assert models.create(f"sqlite:///{new}") == "made"
    assert shape(old) == shape(new)
    assert models.create(f"sqlite:///{old}") == "there"


def test_a_migration_keeps_all_that_was_counted(tmp_path):
    old = tmp_path / "old.db"
    of_schema_1(old)
    app = create_app(
        {
            "TESTING": True,
            "DATABASE_URL": f"sqlite:///{old}",
            "JWT_SECRET_KEY": SECRET,
        }
    )

    with app.app_context():
        token = create_access_token("tester")
    client = app.test_client()
    headers = {"Authorization": f"Bearer {token}"}

    def ask(path):
        answer = client.get(f"/api/experiments{path}", headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json["data"]

    running, draft = ask("")
    assert (running["name"], draft["name"]) == ("A running one", "A draft")
    assert running["trafficPercentage"] == 80.5
    assert running["_count"] == {"assignments": 10}
    results = ask(f"/{running['id']}/results")
    assert results["quality"]["counted"] == 7
    assert results["quality"]["notEnrolled"] == 2
    assert len(ask(f"/{running['id']}/history")) == 0
    assert app.test_cli_runner().invoke(args=["check"]).exit_code == 0
    models.database.close()


def test_a_service_does_not_serve_a_database_before_its_migration(tmp_path):
    old = tmp_path / "old.db"
    of_schema_1(old)
    engine.bind(f"sqlite:///{old}")

    with pytest.raises(engine.NotReady, match="schema 1"):
        models.verify()
    models.database.close()


def test_a_migration_that_fails_halfway_leaves_the_old_schema(tmp_path):
    old = tmp_path / "old.db"
    of_schema_1(old)
    database = peewee.sqlite3.connect(old)
    database.execute("CREATE TABLE change (in_the_way TEXT)")  # the last to be made
    database.close()
    before = shape(old)

    with pytest.raises(peewee.OperationalError, match="already exists"):
        models.create(f"sqlite:///{old}")
    assert shape(old) == before
