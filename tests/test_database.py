"""The database: its own rules, its connection, its making."""

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import peewee
import pytest
from conftest import SECRET, assert_error, statements, two_variants
from flask_jwt_extended import create_access_token

import lifecycle
import models
from app import create_app
from ledger import proof
from models import (
    Assignment,
    Conversion,
    Experiment,
    Metric,
    Outcome,
    ParticipantTally,
    Tally,
    Variant,
)
from storage import columns, engine, factory, postgres, schema, sqlite
from storage.files import driver
from storage.table import pieces
from storage.traffic import Traffic
from storage.turns import Turns

ROOT = Path(__file__).parent.parent


@pytest.mark.sqlite
def test_every_connection_keeps_the_contract(api):
    api.get("experiments")

    served = engine.database.obj

    def pragmas():
        served.connect(reuse_if_open=True)
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        told = [served.pragma(name) for name in names]
        served.close()
        return told

    with ThreadPoolExecutor(1) as other:
        assert other.submit(pragmas).result() == ["wal", 2, 1, 5000]
    assert engine.database.pragma("synchronous") == 2


def test_the_driver_is_the_one_without_the_lost_commit():
    assert peewee.sqlite3.__name__.startswith("pysqlite3")
    sqlite.refuse_affected(peewee.sqlite3.sqlite_version_info)


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
            sqlite.refuse_affected(version)
    else:
        sqlite.refuse_affected(version)


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
        lambda id, seat, event: Experiment.update(end_date=columns.EPOCH),
        lambda id, seat, event: Variant.update(split=0),
        lambda id, seat, event: Variant.update(name="Same"),
        lambda id, seat, event: ParticipantTally.update(participants=0),
        lambda id, seat, event: Tally.update(users=2),
        lambda id, seat, event: Tally.update(value_users=2),
        lambda id, seat, event: Metric.insert(
            experiment=id, name="conversion", number=2
        ),
        lambda id, seat, event: Metric.insert(experiment=id, name="signup", number=1),
        lambda id, seat, event: Metric.insert(
            experiment=id, name="signup", number=1001
        ),
        lambda id, seat, event: Metric.update(number=-1),
        lambda id, seat, event: Experiment.delete(),
    ],
)
def test_the_database_itself_refuses_what_must_never_be(api, running, enrolled, wrong):
    id, seat, event = rows(api, running, enrolled)

    with pytest.raises(peewee.IntegrityError):
        wrong(id, seat, event).execute()

    assert (Assignment.select().count(), Conversion.select().count()) == (1, 1)
    assert list(proof.discrepancies()) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda: ParticipantTally.update(participants=7),
        lambda: Tally.update(events=7),
        lambda: Tally.update(value_sum=Decimal(7)),
        lambda: Outcome.update(total=Decimal(7)),
        lambda: Outcome.update(valued=7),
        lambda: Outcome.insert(assignment=1, metric="never done", events=1),
        lambda: models.RefusalTally.update(count=7),
        lambda: Conversion.delete(),
        lambda: models.Refusal.delete(),
        lambda: Metric.delete(),
        lambda: Metric.update(name="signup"),
    ],
)
def test_check_finds_a_count_that_its_rows_do_not_prove(api, running, enrolled, spoil):
    path, *_ = rows(api, running, enrolled)
    api.post(f"experiments/{path}/conversions", {"userId": "stranger"})
    assert list(proof.discrepancies()) == []

    spoil().execute()

    assert list(proof.discrepancies())


@pytest.mark.parametrize("table", models.TABLES)
def test_rows_with_different_columns_are_refused(app, table):
    first, *_ = columns = list(table._meta.fields)
    whole = dict.fromkeys(columns, 1)
    short = {first: 1}

    for rows in ([short, whole], [whole, short]):
        with pytest.raises(ValueError, match="columns"):
            table.insert_many(rows)
    assert table.insert_many([whole, whole]) is not None


@pytest.mark.one_engine
def test_statements_have_few_different_numbers_of_rows():
    sizes = set()
    for number in range(1_200):
        cut = list(pieces(range(number)))
        assert [item for piece in cut for item in piece] == list(range(number))
        assert len(cut) <= 6 + number // 500
        sizes |= set(map(len, cut))

    assert len(sizes) == 21


@pytest.mark.sqlite
def test_writers_queue_with_begin_immediate(api, running):
    path = running()
    statements = []
    engine.database.connection().set_trace_callback(statements.append)

    api.post(f"{path}/assignments", {"userId": "u1"})

    begun = [one for one in statements if one.startswith("BEGIN")]
    assert begun == ["BEGIN IMMEDIATE"]
    assert statements.index("BEGIN IMMEDIATE") < statements.index("COMMIT")


@pytest.mark.sqlite  # BEGIN of PostgreSQL sets its limit
def test_an_enrolment_spends_no_statement_on_how_long_it_waits(api, running):
    path = running()
    statements = []
    engine.database.connection().set_trace_callback(statements.append)

    api.post(f"{path}/assignments", {"userId": "u1"})

    verbs = {one.partition(" ")[0] for one in statements}
    assert verbs == {"BEGIN", "SELECT", "INSERT", "COMMIT"}
    assert engine.database.pragma("busy_timeout") == 5000  # of those who read


def test_a_longer_list_costs_no_more_queries(api, draft, running, enrolled):
    path = running()

    def queries(what):
        with statements() as sent:
            assert api.get(what).status_code == 200
        return sum(one.startswith("SELECT") for one in sent)

    api.get("experiments")
    lists = ("experiments?limit=100", f"{path}/assignments", "users/u1/assignments")
    enrolled(path, "u1")
    before = [queries(one) for one in lists]
    for _ in range(10):
        draft()
        enrolled(running(), "u1")
    enrolled(path, *[f"u{number}" for number in range(20)])

    assert [queries(one) for one in lists] == before
    assert before[0] <= 3


@pytest.mark.sqlite
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
    with engine.using(factory.database_at(f"sqlite:///{strange}")) as database:
        with pytest.raises(engine.NotReady, match="never created"):
            schema.verify()
        database.close()
        strange.write_bytes(b"not a database at all" * 500)
        with pytest.raises(engine.NotReady, match="cannot be read"):
            schema.verify()
        database.close()


def test_another_version_of_the_schema_is_refused(app):
    schema.Identity.update(schema_version=99).execute()

    with pytest.raises(engine.NotReady, match="schema 99"):
        schema.verify()


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


def in_another_thread(work):
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result(20)


def lent(database):
    """Open the database and lend the connection; return it."""
    database.open()
    used = database.connection()
    database.lend()
    return used


@pytest.mark.sqlite  # its locks do not survive a fork
def test_no_handle_is_open_at_a_fork(app):
    engine.database.connect(reuse_if_open=True)
    spare = in_another_thread(lambda: lent(app.extensions["database"]))

    child = os.fork()
    if child == 0:
        os._exit(0 if engine.database.is_closed() else 1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert engine.database.is_closed()
    with pytest.raises(driver.ProgrammingError, match="closed"):
        spare.execute("SELECT 1")


@pytest.mark.sqlite
def test_a_connection_that_was_lent_is_the_next_one_that_is_used(app):
    with engine.using(app.extensions["database"]) as database:
        database.open()
        own = database.connection()
        other = in_another_thread(lambda: lent(database))
        database.lend()

        assert other is not own
        assert in_another_thread(lambda: lent(database)) is own
        database.shut()


@pytest.mark.sqlite
def test_a_connection_is_not_lent_within_a_transaction(app):
    with engine.using(app.extensions["database"]) as database:
        database.open()
        own = database.connection()
        with database.atomic():
            database.lend()
            assert in_another_thread(lambda: lent(database)) is not own
            assert database.connection() is own
        database.shut()


@pytest.mark.sqlite
def test_a_connection_that_nobody_needs_is_closed(app):
    with engine.using(app.extensions["database"]) as database:
        database.open()
        other = in_another_thread(lambda: lent(database))
        usual, sqlite.IDLE = sqlite.IDLE, 0
        try:
            database.lend()
        finally:
            sqlite.IDLE = usual

        with pytest.raises(driver.ProgrammingError, match="closed"):
            other.execute("SELECT 1")
        database.open()
        assert database.pragma("quick_check") == "ok"
        database.shut()


@pytest.mark.sqlite
def test_a_connection_to_a_file_that_was_replaced_is_never_used(app, tmp_path):
    with engine.using(app.extensions["database"]) as database:
        before = lent(database)
        copy = tmp_path / "copy.db"
        shutil.copy(database.file, copy)
        copy.replace(database.file)

        database.open()
        assert database.opened() == database.identity()
        assert database.connection() is not before
        with pytest.raises(driver.ProgrammingError, match="closed"):
            before.execute("SELECT 1")
        database.shut()


@pytest.mark.sqlite
def test_a_folder_that_became_something_else_is_told_as_a_missing_database(app, api):
    assert api.get("experiments").status_code == 200
    folder = app.extensions["database"].file.parent
    aside = folder.with_name("aside")
    folder.rename(aside)
    folder.touch()
    try:
        assert_error(api.get("experiments"), 503, "UNAVAILABLE")
    finally:
        folder.unlink()
        aside.rename(folder)
    assert api.get("experiments").status_code == 200


def test_an_app_can_be_tested_in_memory_in_three_lines():
    app = create_app({"TESTING": True, "DATABASE_URL": "sqlite:///:memory:"})
    assert app.test_client().get("/readyz").status_code == 200
    app.extensions["database"].close()


def test_two_tests_of_an_embedding_app_do_not_share_a_database():
    settings = {"TESTING": True, "DATABASE_URL": "sqlite:///:memory:"}
    first, second = create_app(settings), create_app(settings)
    with first.app_context():
        lifecycle.draft(
            [{"name": "A", "split": 5000}, {"name": "B", "split": 5000}],
            by="tester",
            name="One",
            type="ab_test",
            primary_metric="conversion",
        )

    for app, number in ((first, 1), (second, 0)):
        with app.app_context():
            assert models.Experiment.select().count() == number
            engine.database.close()


def full():
    return f"PRAGMA max_page_count = {engine.database.pragma('page_count')}"


@pytest.mark.sqlite
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
    engine.database.execute_sql(trouble())
    users = [{"userId": f"u{number}-{'x' * 200}"} for number in range(2_000)]

    response = api.post(f"{path}/assignments/batch", {"users": users})

    error = assert_error(response, 503, "UNAVAILABLE")
    assert error["message"].startswith(told)
    assert response.headers["Retry-After"] == "1"
    engine.database.close()
    assert api.get(path).json["data"]["_count"] == {"assignments": 0}
    assert list(proof.discrepancies()) == []
    assert api.post(f"{path}/assignments", {"userId": "u1"}).status_code == 201


def test_a_database_that_another_writer_holds_is_503_and_still_read(
    api, running, monkeypatch
):
    path = running()
    served = engine.database.obj
    served.patience = 0  # on PostgreSQL this is not for locks, which have their own
    begin = postgres.BEGIN[postgres.BESIDE].replace("timeout = '5s'", "timeout = 50")
    monkeypatch.setitem(postgres.BEGIN, postgres.BESIDE, begin)

    def hold():
        served.connect(reuse_if_open=True)
        served.begin()

    def let_go():
        served.rollback()
        served.close()

    with ThreadPoolExecutor(1) as other:
        other.submit(hold).result()
        response = api.post(f"{path}/assignments", {"userId": "u1"})
        read = api.get(path)
        other.submit(let_go).result()

    error = assert_error(response, 503, "UNAVAILABLE")
    assert error["message"].startswith("The database is busy")
    assert read.json["data"]["_count"] == {"assignments": 0}
    assert api.post(f"{path}/assignments", {"userId": "u1"}).status_code == 201


@pytest.mark.sqlite
def test_the_service_is_not_ready_while_it_cannot_write(api, anonymous, running):
    running()
    deadline = time.monotonic() + 10

    def ready():
        return anonymous.get("/readyz")

    assert ready().status_code == 200
    engine.database.execute_sql("PRAGMA query_only = 1")
    while (red := ready()).status_code == 200:
        assert time.monotonic() < deadline
    error = assert_error(red, 503, "UNAVAILABLE")
    assert error["message"].startswith("The database is read-only")
    assert anonymous.get("/healthz").status_code == 200
    engine.database.execute_sql("PRAGMA query_only = 0")
    while ready().status_code != 200:
        assert time.monotonic() < deadline


def test_readiness_writes_at_most_once_a_second(anonymous):
    written = set()
    began = time.monotonic()
    for _ in range(100):
        assert anonymous.get("/readyz").status_code == 200
        written.add(schema.Identity.get().probed_at)
    assert len(written) <= 2 + (time.monotonic() - began)


@pytest.mark.sqlite
def test_a_damaged_page_stops_writes_and_init_but_not_other_reads(
    tmp_path, app, api, running, enrolled
):
    path = running()
    enrolled(path, *[f"u{number}" for number in range(200)])
    engine.database.pragma("wal_checkpoint(TRUNCATE)")
    root = engine.database.execute_sql(
        "SELECT rootpage FROM sqlite_master WHERE name = 'assignment'"
    ).fetchone()[0]
    engine.database.close()
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
        schema.create(factory.database_at(app.config["DATABASE_URL"]), models.TABLES)


def test_writers_of_a_process_take_turns_in_the_order_in_which_they_came():
    turns, order = Turns(), []
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
    turns = Turns()
    turns.most = 2
    turns.take(0)

    def late(seconds):
        with pytest.raises(engine.Refused) as refused:
            turns.take(seconds)
        return refused.value.error_name, str(refused.value)

    with ThreadPoolExecutor(2) as others:
        slow = others.submit(late, 0.2)
        while len(turns._line) < 2:
            assert not slow.done()
        assert others.submit(late, 60).result() == (
            "BUSY",
            "Too many writers wait already.",
        )
        assert slow.result() == ("BUSY", "The other writers took too long.")
    turns.give()
    turns.take(0)  # who gave up stands in nobody's way


@pytest.mark.one_engine
@pytest.mark.alone
def test_no_writer_waits_for_a_request_that_comes_slowly():
    traffic = Traffic()
    traffic.SLOW = 0
    slow = traffic.announce()
    traffic.enter()
    request = traffic.wait_to_write()

    began = time.monotonic()
    traffic.await_others(20)
    assert time.monotonic() - began < 10

    # Each leaves once, and what leaves is forgotten.
    traffic.go_on([request])
    traffic.leave()
    traffic.leave()
    assert traffic.quick == 1
    traffic.take(slow)
    traffic.leave()
    assert (traffic.quick, traffic._coming) == (0, {})


@pytest.mark.sqlite
def test_some_threads_of_a_worker_never_wait_to_write(app):
    app.extensions["database"].serve(32)

    assert app.extensions["database"].turns.most == 28


def test_every_write_is_in_a_transaction_that_took_its_turn(api, running):
    with statements() as sent:
        path = running()
        api.post(f"{path}/assignments", {"userId": "u1"})
        api.post(f"{path}/conversions", {"userId": "u1"})
        for move in ("stop", "resume", "duplicate"):
            assert api.post(f"{path}/{move}").status_code < 300
        api.post(f"{path}/complete", {"conclusion": "lost"})
        assert api.delete(path).status_code == 200

    inside, writes = False, 0
    for statement in sent:
        verb = statement.partition(" ")[0]
        takes_turn = re.search("IMMEDIATE|pg_advisory_xact_lock", statement)
        inside = {"BEGIN": takes_turn, "COMMIT": False}.get(verb, inside)
        if verb in ("INSERT", "UPDATE", "DELETE"):
            writes += 1
            assert inside, statement
    assert writes > 10


@pytest.mark.sqlite  # of its log
def test_no_answer_holds_the_database_while_it_is_sent(app, api, running, enrolled):
    path = running()
    enrolled(path, *[f"u{number}" for number in range(5_000)])
    api.post(f"{path}/conversions", {"userId": "u1"})

    served = engine.database.obj

    def emptied():
        """Tell whether the write-ahead log can be emptied: no reader holds it."""
        served.open()
        served.pragma("busy_timeout", 0)
        busy = served.pragma("wal_checkpoint(TRUNCATE)")
        served.close()
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
            answer.close()  # an export gives its slot back
        answer = api.post(f"{path}/compute-results", buffered=False)
        assert answer.status_code == 200
        assert other.submit(emptied).result()


@pytest.mark.sqlite
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

    assert schema.create(app.extensions["database"], models.TABLES) == "there"

    assert api.get(path).json == before
    assert schema.Identity.select().count() == 1


def test_eight_that_create_at_once_make_one_database(tmp_path):
    url = f"sqlite:///{tmp_path / 'instance' / 'abacus.db'}"
    program = (
        "import models, sys; from storage import factory, schema; "
        "print(schema.create(factory.database_at(sys.argv[1]), models.TABLES))"
    )
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
    with engine.using(factory.database_at(url)) as database:
        schema.verify()
        assert schema.Identity.select().count() == 1
        database.close()


def names(api):
    return [one["name"] for one in api.get("experiments").json["data"]]


def serving(file):
    """Return an app on this database file, and a function that GETs from it."""
    app = create_app(
        {
            "TESTING": True,
            "DATABASE_URL": f"sqlite:///{file}",
            "JWT_SECRET_KEY": SECRET,
        }
    )
    with app.app_context():
        token = create_access_token("tester")
    headers = {"Authorization": f"Bearer {token}"}

    def ask(path):
        answer = app.test_client().get(f"/api/experiments{path}", headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json["data"]

    return app, ask


def served(file, path):
    """Return what a service answers from a database at a path, as a GET."""
    return serving(file)[1](path)
