"""Migration of a database to the present schema."""

import re

import peewee
import pytest
from test_database import ROOT, served, serving

import models
from ledger import proof
from models import Assignment, Metric
from storage import engine, factory, migrations, schema

pytestmark = pytest.mark.sqlite

# ----------------------------------------------------------------------------
# Migration
# ----------------------------------------------------------------------------


def created(path):
    """Create the database at this path, or migrate it; return which was done."""
    return schema.create(factory.database_at(f"sqlite:///{path}"), models.TABLES)


def of_schema(version, path):
    """Write the database of an older schema that tests/cases has, as it was made."""
    database = peewee.sqlite3.connect(path)
    script = ROOT / f"tests/cases/schema_{version}.sql"
    database.executescript(script.read_text())
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


@pytest.mark.parametrize("version", range(1, migrations.SCHEMA_VERSION))
def test_a_database_of_an_older_schema_becomes_what_a_new_one_is(tmp_path, version):
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    of_schema(version, old)

    assert created(old) == "migrated"

    assert created(new) == "made"
    assert shape(old) == shape(new)
    with engine.using(factory.database_at(f"sqlite:///{old}")) as database:
        assert schema.alterations(models.TABLES) == []
        database.close()
    assert created(old) == "there"


def test_a_migration_keeps_all_that_was_counted(tmp_path):
    old = tmp_path / "old.db"
    of_schema(1, old)
    app, ask = serving(old)

    running, draft = ask("")
    assert (running["name"], draft["name"]) == ("A running one", "A draft")
    assert running["trafficPercentage"] == 80.5
    assert running["_count"] == {"assignments": 10}
    results = ask(f"/{running['id']}/results")
    assert results["quality"]["counted"] == 7
    assert results["quality"]["notEnrolled"] == 2
    assert len(ask(f"/{running['id']}/history")) == 0
    assert app.test_cli_runner().invoke(args=["check"]).exit_code == 0
    app.extensions["database"].close()


def test_a_migration_numbers_the_metrics_that_were_counted(tmp_path):
    old = tmp_path / "old.db"
    of_schema(2, old)

    created(old)

    with engine.using(factory.database_at(f"sqlite:///{old}")) as database:
        id = Assignment.get().experiment_id
        rows = {row.name: (row.experiment_id, row.number) for row in Metric.select()}
        assert rows == {"conversion": (id, 1), "signup": (id, 2)}
        assert list(proof.discrepancies()) == []
        database.close()
    results = served(old, f"/{id}/results")
    assert (results["quality"]["counted"], results["quality"]["notEnrolled"]) == (8, 1)


def test_a_migration_keeps_more_metrics_than_an_experiment_may_have_now(tmp_path):
    old = tmp_path / "old.db"
    of_schema(2, old)
    database = peewee.sqlite3.connect(old)
    (seat, id, at), *_ = database.execute(
        "SELECT id, experiment_id, assigned_at FROM assignment"
    ).fetchall()
    (variant,) = database.execute(
        "SELECT variant FROM assignment WHERE id = ?", [seat]
    ).fetchone()
    for number in range(1_000):
        name = f"m{number}"
        database.execute(
            "INSERT INTO conversion (experiment_id, assignment_id, metric, "
            "occurred_at, received_at) VALUES (?, ?, ?, ?, ?)",
            [id, seat, name, at, at],
        )
        database.execute(
            "INSERT INTO outcome (assignment_id, metric, events) VALUES (?, ?, 1)",
            [seat, name],
        )
        database.execute(
            "INSERT INTO tally VALUES (?, ?, ?, 1, 1, 0, '0', '0', ?, ?)",
            [id, variant, name, at, at],
        )
    database.commit()
    database.close()

    assert created(old) == "migrated"

    with engine.using(factory.database_at(f"sqlite:///{old}")) as database:
        names = {row.name for row in Metric.select()}
        assert len(names) == 1_000
        assert "conversion" in names
        assert list(proof.discrepancies()) == []
        database.close()
    rows = served(old, f"/{id}/results")["variants"]
    assert len({row["metric"] for one in rows for row in one["results"]}) == 1_002


def test_a_service_does_not_serve_a_database_before_its_migration(tmp_path):
    old = tmp_path / "old.db"
    of_schema(1, old)
    with engine.using(factory.database_at(f"sqlite:///{old}")) as database:
        with pytest.raises(engine.NotReady, match="schema 1"):
            schema.verify()
        database.close()


def test_a_migration_that_fails_halfway_leaves_the_old_schema(tmp_path):
    old = tmp_path / "old.db"
    of_schema(1, old)
    database = peewee.sqlite3.connect(old)
    database.execute("CREATE TABLE change (in_the_way TEXT)")  # the last to be made
    database.close()
    before = shape(old)

    with pytest.raises(peewee.OperationalError, match="already exists"):
        created(old)
    assert shape(old) == before
