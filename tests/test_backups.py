"""Backups: whole, proved, of one moment; put back only where nobody is disturbed."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import peewee
import pytest
import service as real

from models import ParticipantTally
from storage import engine, schema

pytestmark = pytest.mark.sqlite

WHOLE = "is whole, and every count in it is what its rows say."


@pytest.fixture
def operate(app):
    """Return a way to run a command; it answers click's result."""

    def operate(*words):
        engine.database.close()
        answer = app.test_cli_runner().invoke(args=[str(word) for word in words])
        engine.database.close()  # as its process would at its end
        return answer

    return operate


@pytest.fixture
def traffic(api, running, enrolled):
    """Have 30 users enrolled, of whom 20 converted; return the path."""
    path = running()
    enrolled(path, *[f"u{number}" for number in range(30)])
    rows = [{"userId": f"u{number}", "value": 1} for number in range(20)]
    booked = api.post(f"{path}/conversions/batch", {"conversions": rows})
    assert booked.status_code == 200
    return path


def listed(folder):
    return {file.name for file in folder.iterdir()}


def rows(file, query):
    """Return what a file answers, read as it lies there."""
    uri = f"file:{file}?mode=ro&immutable=1"
    connection = peewee.sqlite3.connect(uri, uri=True)
    found = connection.execute(query).fetchall()
    connection.close()
    return found


def counted(text):
    """Return the counts that a command printed."""
    words = [line.split() for line in text.splitlines()]
    return {line[1]: int(line[0]) for line in words if len(line) == 2}


def test_a_backup_says_what_it_holds_and_only_its_owner_reads_it(
    tmp_path, traffic, operate
):
    before = listed(tmp_path)

    told = operate("backup", tmp_path / "copy.db")

    assert told.exit_code == 0, told.output
    held = counted(told.output)
    assert (held["experiment"], held["variant"]) == (1, 2)
    assert (held["assignment"], held["conversion"]) == (30, 20)
    assert told.output.endswith(f"copy.db {WHOLE}\n")
    assert (tmp_path / "copy.db").stat().st_mode & 0o777 == 0o600
    # One file, without a log or a draft beside it.
    assert listed(tmp_path) - before == {"copy.db"}


def test_what_is_there_is_never_written_over(tmp_path, traffic, operate):
    (tmp_path / "copy.db").write_text("precious")
    before = listed(tmp_path)

    told = operate("backup", tmp_path / "copy.db")

    assert told.exit_code == 1 and "is there already" in told.output
    assert (tmp_path / "copy.db").read_text() == "precious"
    assert listed(tmp_path) - before == set()


def test_a_copy_that_cannot_be_proved_is_not_kept(tmp_path, traffic, operate):
    spoilt = ParticipantTally.variant == "v1"
    ParticipantTally.update(participants=5).where(spoilt).execute()

    told = operate("backup", tmp_path / "copy.db")

    assert told.exit_code == 1 and "participants" in told.output
    assert not {name for name in listed(tmp_path) if "copy" in name}


def test_a_folder_that_is_not_there_is_told_in_one_line(tmp_path, traffic, operate):
    told = operate("backup", tmp_path / "nowhere" / "copy.db")

    assert told.exit_code == 1
    assert told.output.startswith("Error: ") and told.output.count("\n") == 1


def spoilt(file, how):
    whole = file.read_bytes()
    if how == "cut off":
        file.write_bytes(whole[: len(whole) // 2])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "a page of zeros":
        file.write_bytes(whole[:4096] + bytes(4096) + whole[8192:])
    elif how == "no database":
        file.write_bytes(b"no database at all" * 500)
    else:
        assert b"u17" in whole
        file.write_bytes(whole.replace(b"u17", b"u71"))


@pytest.mark.parametrize(
    "how", ["cut off", "empty", "a page of zeros", "no database", "another user"]
)
def test_a_spoilt_file_is_refused_and_nothing_is_replaced(
    tmp_path, api, traffic, operate, how
):
    assert operate("backup", tmp_path / "copy.db").exit_code == 0
    spoilt(tmp_path / "copy.db", how)
    before = api.get(f"{traffic}/results").json
    engine.database.close()
    files = listed(tmp_path)

    told = [
        operate("restore", tmp_path / "copy.db", *words)
        for words in ((), ("--dry-run",))
    ]

    for one in told:
        assert one.exit_code == 1, one.output
        assert one.output.startswith("Error: ") and one.output.count("\n") == 1
    assert listed(tmp_path) == files
    assert api.get(f"{traffic}/results").json == before


def changed(file, script):
    """Run a script on a file, which may also write the text of its schema."""
    connection = peewee.sqlite3.connect(file)
    connection.executescript(f"PRAGMA writable_schema = 1; {script}")
    connection.close()


def rewritten(table, old, new):
    """Return the statement that puts another text into the definition of a table."""
    old, new = (text.replace("'", "''") for text in (old, new))
    return (
        f"UPDATE sqlite_master SET sql = replace(sql, '{old}', '{new}') "
        f"WHERE name = '{table}'"
    )


PARTICIPANTS = "CHECK (participants >= 1)"
ALTERED = {
    "a trigger": (
        "CREATE TRIGGER twice AFTER INSERT ON assignment "
        "BEGIN UPDATE participant_tally SET participants = participants + 1; END",
        "a trigger 'twice' of 'assignment'",
    ),
    "a view in place of a table": (
        "ALTER TABLE refusal RENAME TO moved; "
        "CREATE VIEW refusal AS SELECT * FROM moved",
        "a view 'refusal'",
    ),
    "a view without an end in place of a table": (
        "DROP TABLE identity; CREATE VIEW identity AS WITH RECURSIVE n(id) AS "
        "(SELECT 1 UNION ALL SELECT id + 1 FROM n) SELECT id, 2 AS schema_version, "
        "0 AS created_at, 0 AS probed_at FROM n ORDER BY 1",
        "a view 'identity'",
    ),
    "a virtual table": (
        "CREATE VIRTUAL TABLE words USING fts5(word)",
        "a virtual table 'words'",
    ),
    "another table": ("CREATE TABLE other (id)", "there is a table 'other'"),
    "a table less": ("DROP TABLE refusal", "there is no table 'refusal'"),
    "without a unique index": (
        "DROP INDEX assignment_user_id_experiment_id",
        "table 'assignment' has no unique index 'assignment_user_id_experiment_id' "
        "('user_id', 'experiment_id')",
    ),
    "an index that is not unique any more": (
        "DROP INDEX experiment_key; CREATE INDEX experiment_key ON experiment (key)",
        "table 'experiment' has no unique index 'experiment_key' ('key')",
    ),
    "an index of some rows": (
        "DROP INDEX experiment_key; CREATE UNIQUE INDEX experiment_key "
        "ON experiment (key) WHERE key > 'm'",
        "table 'experiment' has no unique index 'experiment_key' ('key')",
    ),
    "another index": (
        "CREATE UNIQUE INDEX one ON audience (name)",
        "table 'audience' has a unique index 'one' ('name')",
    ),
    "another column": (
        "ALTER TABLE tally ADD COLUMN more TEXT",
        "table 'tally' has a column 'more' TEXT",
    ),
    "a column that may be null": (
        rewritten("variant", '"name" TEXT NOT NULL', '"name" TEXT'),
        "table 'variant' has no column 'name' TEXT NOT NULL",
    ),
    "without a check": (
        rewritten("participant_tally", f", {PARTICIPANTS}", ""),
        "table 'participant_tally' has no rule check ( participants > = 1 )",
    ),
    "a check in a comment": (
        rewritten("participant_tally", f", {PARTICIPANTS}", f" /* , {PARTICIPANTS} */"),
        "table 'participant_tally' has no rule check ( participants > = 1 )",
    ),
    "another check": (
        rewritten("participant_tally", PARTICIPANTS, "CHECK (participants >= -9)"),
        "table 'participant_tally' has no rule check ( participants > = 1 )",
    ),
    "another foreign key": (
        rewritten("variant", " ON DELETE CASCADE", ""),
        "table 'variant' has no foreign key to 'experiment' "
        "('experiment_id' = 'id') NO ACTION / CASCADE / NONE",
    ),
    "a rule that drops rows in silence": (
        rewritten("change", '"actor" TEXT NOT NULL', '"actor" TEXT NOT NULL '
        "ON CONFLICT IGNORE"),
        "table 'change' has a rule conflict ignore",
    ),
    "letters without their case": (
        rewritten("assignment", '"variant" TEXT', '"variant" TEXT COLLATE NOCASE'),
        "table 'assignment' has a rule collate nocase",
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", ALTERED)
def test_a_file_whose_schema_was_altered_is_refused_with_what_differs(
    tmp_path, api, traffic, operate, how
):
    script, told = ALTERED[how]
    assert operate("backup", tmp_path / "copy.db").exit_code == 0
    changed(tmp_path / "copy.db", script)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    answers = [
        operate("restore", tmp_path / "copy.db", *words)
        for words in ((), ("--dry-run",))
    ]

    for answer in answers:
        assert answer.exit_code == 1, answer.output
        assert told in answer.output and answer.output.count("\n") == 1
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("how", ["a trigger", "without a unique index"])
def test_check_init_and_backup_report_an_altered_schema(
    tmp_path, api, traffic, operate, how
):
    script, told = ALTERED[how]
    engine.database.close()
    changed(tmp_path / "abacus.db", script)
    before = listed(tmp_path)

    answers = [
        operate(*words)
        for words in (["check"], ["init"], ["backup", tmp_path / "copy.db"])
    ]

    for answer in answers:
        assert answer.exit_code == 1, answer.output
        assert told in answer.output and answer.output.count("\n") == 1
    assert listed(tmp_path) == before


def test_what_sqlite_and_litestream_add_alters_no_schema(tmp_path, traffic, operate):
    engine.database.close()
    changed(
        tmp_path / "abacus.db",
        "ANALYZE; CREATE TABLE _litestream_seq (id INTEGER PRIMARY KEY, seq INTEGER);"
        "CREATE TABLE _litestream_lock (id INTEGER)",
    )

    for words in (
        ["check"],
        ["init"],
        ["backup", tmp_path / "copy.db"],
        ["restore", tmp_path / "copy.db"],
    ):
        assert operate(*words).exit_code == 0, words


def test_a_live_database_is_not_taken_for_a_copy(tmp_path, api, traffic, operate):
    with real.served(tmp_path / "other") as service:
        service.running()
        live = tmp_path / "other" / "abacus.db"

        told = operate("restore", live, "--dry-run")

    assert told.exit_code == 1 and "live database" in told.output


def test_a_live_database_behind_a_link_is_not_taken_for_a_copy(
    tmp_path, api, traffic, operate
):
    api.get(traffic)
    (tmp_path / "copy.db").symlink_to(tmp_path / "abacus.db")
    connection = peewee.sqlite3.connect(tmp_path / "abacus.db")
    connection.execute("SELECT * FROM identity").fetchall()  # and has its log

    told = operate("restore", tmp_path / "copy.db", "--dry-run")
    connection.close()

    assert told.exit_code == 1 and "live database" in told.output


def test_a_dry_run_proves_the_file_and_changes_nothing(tmp_path, api, traffic, operate):
    operate("backup", tmp_path / "copy.db")
    api.post(f"{traffic}/assignments", {"userId": "later"})
    engine.database.close()
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    told = operate("restore", tmp_path / "copy.db", "--dry-run")

    assert told.exit_code == 0, told.output
    assert counted(told.output)["assignment"] == 30
    assert told.output.endswith(
        f"It would replace {tmp_path / 'abacus.db'}, which would be kept.\n"
    )
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_backup_is_put_back_and_what_was_there_is_kept(
    tmp_path, api, traffic, operate
):
    results = api.get(f"{traffic}/results").json
    operate("backup", tmp_path / "copy.db")
    api.post(f"{traffic}/assignments", {"userId": "later"})

    told = operate("restore", tmp_path / "copy.db")

    assert told.exit_code == 0, told.output
    assert api.get(f"{traffic}/results").json == results
    schema.verify()  # WAL again, and of this version
    (kept,) = tmp_path.glob("abacus.db.*Z")
    assert f"What was there is now {kept}\n" in told.output
    assert kept.stat().st_mode & 0o777 == 0o600
    # It can be put back in turn.
    assert operate("restore", kept).exit_code == 0
    assert api.get(f"{traffic}/assignments/later").status_code == 200
    assert (tmp_path / "abacus.db").stat().st_mode & 0o777 == 0o600


def test_a_backup_is_put_where_nothing_is(tmp_path, api, traffic, operate):
    results = api.get(f"{traffic}/results").json
    operate("backup", tmp_path / "copy.db")
    for file in tmp_path.glob("abacus.db*"):
        file.unlink()

    dry = operate("restore", tmp_path / "copy.db", "--dry-run")
    told = operate("restore", tmp_path / "copy.db")

    assert "where there is none" in dry.output
    assert told.exit_code == 0, told.output
    assert api.get(f"{traffic}/results").json == results


def test_a_broken_database_is_replaced_with_its_log_set_aside(
    tmp_path, api, traffic, operate
):
    results = api.get(f"{traffic}/results").json
    operate("backup", tmp_path / "copy.db")
    (tmp_path / "abacus.db").write_bytes(b"no database at all" * 500)
    (tmp_path / "abacus.db-wal").write_bytes(b"a log of whatever")

    told = operate("restore", tmp_path / "copy.db")

    assert told.exit_code == 0, told.output
    assert api.get(f"{traffic}/results").json == results
    (kept,) = tmp_path.glob("abacus.db.*Z")
    assert kept.read_bytes().startswith(b"no database")
    log = kept.with_name(f"{kept.name}-wal")
    assert log.read_bytes() == b"a log of whatever"


def test_restore_refuses_a_running_service_and_keeps_a_killed_one_s_log(
    tmp_path,
):
    copy = tmp_path / "copy.db"
    instance = tmp_path / "instance"
    with real.served(instance) as service:
        path = service.running()
        real.flask(instance, "backup", str(copy))
        service.data("POST", f"{path}/assignments", {"userId": "later"})
        files = listed(instance)

        dry = real.flask(instance, "restore", str(copy), "--dry-run")
        told = real.flask(instance, "restore", str(copy), check=False)

        assert "stop the service" in dry.stdout
        assert told.returncode == 1 and "stop the service" in told.stderr
        assert listed(instance) == files
        assert service("GET", f"{path}/assignments/later")[0] == 200
        service.kill()
        assert (instance / "abacus.db-wal").stat().st_size > 0

        real.flask(instance, "restore", str(copy))

        service.start()
        assert service("GET", f"{path}/assignments/later")[0] == 404
        (kept,) = instance.glob("abacus.db.*Z")
        assert rows(kept, "SELECT user_id FROM assignment") == [("later",)]


def test_whatever_was_acknowledged_before_a_backup_is_in_it(tmp_path):
    copies = [tmp_path / f"copy-{number}.db" for number in range(2)]
    acknowledged = []
    numbers = itertools.count()
    over = threading.Event()
    with real.served(tmp_path / "instance") as service:
        path = service.running()
        users = [{"userId": f"u{number}"} for number in range(100)]
        service.data("POST", f"{path}/assignments/batch", {"users": users})

        def convert(_):
            while not over.is_set():
                number = next(numbers)
                body = {"userId": f"u{number % 100}", "idempotencyKey": f"k{number}"}
                service.data("POST", f"{path}/conversions", body)
                acknowledged.append(f"k{number}")

        with ThreadPoolExecutor(4) as callers:
            sent = [callers.submit(convert, one) for one in range(4)]
            try:
                promised = []
                for copy in copies:
                    promised.append(set(acknowledged))
                    told = real.flask(service.instance, "backup", str(copy)).stdout
                    promised.append(counted(told)["conversion"])
                after = len(acknowledged)
            finally:
                over.set()
            for one in sent:
                one.result()

    for copy, before, said in zip(copies, promised[::2], promised[1::2], strict=True):
        stored = rows(copy, "SELECT idempotency_key FROM conversion")
        assert before <= {key for (key,) in stored}
        assert len(stored) == said
    # They wrote all the while.
    assert len(promised[0]) < len(promised[2]) < after
