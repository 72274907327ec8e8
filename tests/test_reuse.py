"""The database that tests use in turn is like a new one for each of them."""

import psycopg
import pytest
import servers
from conftest import Caller, renewed, two_variants
from flask_jwt_extended import create_access_token
from reuse import Reused, clear

import models
from storage import engine


@pytest.fixture
def own(server, template):
    """Return a database that only this test uses, again and again."""
    made = Reused(lambda: servers.made(server, template))
    yield made
    made.drop()


def content(url):
    """Return what a test can find: all rows, the numbers that are next, and locks."""
    with psycopg.connect(url) as connection:
        found = {}
        for table in models.TABLES:
            name = table._meta.table_name
            found[name] = connection.execute(f"SELECT * FROM {name}").fetchall()
        sequences = connection.execute("SELECT sequencename FROM pg_sequences")
        for (name,) in sequences.fetchall():
            query = f"SELECT last_value, is_called FROM {name}"
            found[name] = connection.execute(query).fetchall()
        found["locks"] = connection.execute(
            "SELECT locktype, mode FROM pg_locks JOIN pg_database "
            "ON pg_database.oid = database AND datname = current_database() "
            "WHERE pid <> pg_backend_pid()"
        ).fetchall()
        return found


def used(app):
    """Write to the database of an app; return the id of the first enrolment."""
    with app.app_context():
        api = Caller(app, create_access_token("tester"))
    body = {"name": "Used", "variants": two_variants()}
    path = f"experiments/{api.post('experiments', body).json['data']['id']}"
    assert api.post(f"{path}/start").status_code == 200
    assert api.post(f"{path}/assignments", {"userId": "u1"}).status_code == 201
    event = {"userId": "u1", "value": 19.99}
    assert api.post(f"{path}/conversions", event).status_code == 201
    assert api("PUT", f"{path}/overrides/u2", {"variantId": "v1"}).status_code == 201
    with engine.using(app.extensions["database"]):
        return models.Assignment.get().id


@pytest.mark.postgresql
def test_each_use_finds_the_same_rows_and_numbers_and_no_locks(own, compiled):
    pid, found, others = "SELECT pg_backend_pid()", [], []
    for _ in range(3):
        url = own.url()
        found.append(content(url))
        database = renewed(compiled, url).extensions["database"]
        own.lend(database)
        found[-1]["pid"] = database.execute_sql(pid).fetchone()
        found[-1]["wait"] = database.execute_sql("SHOW lock_timeout").fetchone()
        found[-1]["enrolment"] = used(compiled)
        # What a test may leave behind: a setting, locks, and a write without its end.
        database.execute_sql("SET lock_timeout = 7")
        database.execute_sql("SELECT pg_advisory_lock(7)")
        others.append(psycopg.connect(url))
        others[-1].execute("LOCK TABLE experiment")
        others[-1].execute("DELETE FROM identity")
        own.take_back(database)
        database.shut()

    for other in others:
        other.close()
    identities = [one["identity"][0] for one in found]
    assert len({id for id, *_ in identities}) == 3
    first, *later = [{**one, "identity": one["identity"][0][1:]} for one in found]
    assert later == [first, first]
    assert first["enrolment"] == 1
    assert first["locks"] == []
    assert first["experiment"] == []


def ended(url):
    """End every connection to the database, as a server that restarts does."""
    with psycopg.connect(servers.named(url, "postgres"), autocommit=True) as session:
        session.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = %s",
            [servers.name_of(url)],
        )


def altered(statement):
    def alter(url):
        with psycopg.connect(url, autocommit=True) as connection:
            name = servers.name_of(url)
            connection.execute(statement.format(name=name))

    return alter


@pytest.mark.parametrize(
    "change",
    [
        ended,
        *map(
            altered,
            [
                "INSERT INTO audience SELECT i, repeat('x', 200), '', '', '', 0, 0 "
                "FROM generate_series(1, 20000) AS i",
                "CREATE TABLE more (id INT)",
                "CREATE SCHEMA more",
                "CREATE VIEW more AS SELECT 1",
                "CREATE FUNCTION more() RETURNS INT LANGUAGE sql AS 'SELECT 1'",
                "DROP TABLE crossing",
                "ALTER TABLE experiment ADD more INT",
                "ALTER TABLE experiment ALTER COLUMN name DROP NOT NULL",
                "ALTER TABLE crossing SET UNLOGGED",
                "ALTER TABLE experiment DISABLE TRIGGER ALL",
                "ALTER DATABASE {name} SET default_transaction_read_only = on",
                "CREATE INDEX more ON experiment (name)",
                "UPDATE pg_index SET indisvalid = false "
                "WHERE indrelid = 'experiment'::regclass",
                "CREATE TRIGGER more BEFORE UPDATE ON experiment "
                "FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
            ],
        ),
    ],
)
@pytest.mark.postgresql
def test_a_database_that_was_altered_is_not_used_again(own, change):
    url = own.url()
    first = content(url)
    change(url)

    after = own.url()

    assert after != url
    assert content(after).keys() == first.keys()
    assert own.url() == after


def test_a_service_forgets_what_is_cleared_while_it_runs(service, shared_service):
    _, url, _ = shared_service
    enrolled = {}
    for turn in range(2):
        path = service.running(key="checkout")
        forced = {"variantId": "v2"}
        service.data("PUT", f"{path}/overrides/u2", forced)
        for _ in range(20):  # so that each worker remembers it
            made = service.data("POST", f"{path}/assignments", {"userId": "u1"})
            enrolled.setdefault((turn, made["experimentId"]), made["reason"])
            service.data("POST", f"{path}/conversions", {"userId": "u1"})
            assert len(service.data("GET", "definitions")["experiments"]) == 1
            context = {"context": {"targetingKey": "u2"}}
            flag = service("POST", "/ofrep/v1/evaluate/flags/checkout", context)
            assert (flag[0], flag[1]["variant"]) == (200, "v2")

        clear(url)

        for _ in range(20):
            assert service.data("GET", "definitions")["experiments"] == []
            assert service.data("GET", "experiments") == []
            assert service("GET", path)[0] == 404
            assert service("POST", f"{path}/assignments", {"userId": "u1"})[0] == 404
            flag = service("POST", "/ofrep/v1/evaluate/flags/checkout", context)
            assert flag[0] == 404
    assert list(enrolled.values()) == ["NEW_ASSIGNMENT", "NEW_ASSIGNMENT"]
