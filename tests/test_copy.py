"""A copy between engines: whole, equal to the last digit, and continued if cut off."""

import re
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from decimal import Decimal

import pytest
import servers
import service as real
from conftest import Caller, assert_error, configured, two_variants

from app import create_app
from ledger import proof
from models import TABLES, Assignment, Crossing, ParticipantTally
from operations import copier
from operations.backups import NotProved
from storage import engine, factory, schema
from storage.columns import utcnow
from storage.engine import NotReady, using
from storage.schema import Identity

WHOLE = "The target is whole, and every count in it is what its rows say."
CUT_OFF = "interrupted copy"
ENGINES = ("sqlite", "postgresql")
# As a client writes them. The square of the longest one has 1,020 digits.
ODD_VALUES = [
    "0.10",
    "0.1",
    "-7",
    "1e2",
    "0.00",
    "-123456789012.340",
    f"99999999999.{'1234567890' * 34}",
    f"-0.{'0' * 339}1",
    "null",
]
ODD_RULES = """
{"logicalOperator": "OR", "rules": [
    {"value": 1.10, "operator": "gt", "field": "zeta"},
    {"operator": "eq", "field": "alpha", "value": 0.1000000000000000000000000000001},
    {"field": "name", "operator": "in", "value": ["ß", "\\ud83d\\ude00", "\\t\\u0001"]}
]}
"""
TINY = Decimal("0.000012345678901234567")
ODD_USERS = ["u", "U", "ü", "u\u0308", "\uffee", "\U0001f600", "a b", "%s", "'; --"]
# A copy in a process of its own, which is killed after so many rows.
KILLED = """
import os, signal, sys
from operations import copier
from storage import factory

source, target = map(factory.database_at, sys.argv[1:3])
left = int(sys.argv[3])

def progress(rows):
    global left
    left -= rows
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)

with copier.copying(source, target) as copy:
    copy.fill(progress)
    copy.prove(progress)
"""


@pytest.fixture
def empty(tmp_path, server):
    """Return a maker of URLs at which an engine has nothing yet."""
    with ExitStack() as databases:

        def make(name):
            number = next(numbers)
            if name == "sqlite":
                return f"sqlite:///{tmp_path / 'copies' / f'{number}.db'}"
            return databases.enter_context(servers.made(server))

        numbers = iter(range(1_000))
        yield make


@pytest.fixture(params=ENGINES)
def target(request, empty):
    """Return a URL at which an engine has nothing yet."""
    return empty(request.param)


@pytest.fixture
def copy(app, database_url):
    """Return the command that copies; it answers click's result."""

    def copy(target, source=None):
        engine.database.shut()  # as a service that was stopped
        words = ["copy", source or database_url, target]
        return app.test_cli_runner().invoke(args=words)

    return copy


@pytest.fixture
def served(token):
    """Return a way to serve another database; it answers a caller."""
    with ExitStack() as entered:

        def serve(url):
            app = create_app(configured(url))
            entered.callback(app.extensions["database"].shut)
            return Caller(app, token())

        yield serve


@contextmanager
def opened(url):
    """Use the database at a URL inside the block."""
    database = factory.database_at(url)
    with using(database):
        try:
            engine.connect()
            yield database
        finally:
            database.shut()


def assert_unserved(url):
    """Assert that the service and `init` refuse a database."""
    with opened(url) as database:
        with pytest.raises(NotReady, match=CUT_OFF):
            schema.verify()
        with pytest.raises(NotReady, match=CUT_OFF):
            schema.create(database, TABLES)


def everything(url):
    """Return every row of every table, as its engine says it."""
    with opened(url) as database:
        texts = {table: f'SELECT * FROM "{table._meta.table_name}"' for table in TABLES}
        return {
            table: sorted(map(repr, database.execute_sql(text).fetchall()))
            for table, text in texts.items()
        }


def digits(url):
    """Return every row of every table as values of Python, with all digits."""
    with opened(url):
        return {
            table: sorted(repr(list(row.__data__.items())) for row in table.select())
            for table in TABLES
        }


def shape(url):
    with opened(url) as database:
        return database.shape()


def change(url, work):
    """Do some work in the database at a URL."""
    with opened(url) as database, database.atomic():
        work()


@pytest.fixture
def odd(api, running, enrolled):
    """Have at least a row in each table, and what an engine might change."""
    described = {"description": "\t\x01\u202e\U0001f600 '\" \\"}
    running(**described)
    audience = f'{{"name": "Ünïcode", "ruleTree": {ODD_RULES}}}'
    made = api("PUT", "audiences/aud_b", data=audience, content_type="application/json")
    assert made.status_code == 201, made.text
    variants = two_variants()
    variants[0]["config"] = {"z": [1, None, {"ß": ""}], "a": {"B": True, "A": False}}
    path = running(variants=variants, exclusionGroup="group", trafficPercentage=50)
    free = running(plan={"baselineRate": 0.1, "minimumEffect": 0.02})
    enrolled(free, *ODD_USERS)
    mean = {"name": "revenue", "kind": "mean", "cap": 0.1}
    measured = running(metrics=[mean, {"name": "late", "window": 1}])
    users = [{"userId": one, "covariate": -0.1} for one in ODD_USERS]
    api.post(f"{measured}/assignments/batch", {"users": users})
    for metric in ("revenue", "late"):
        event = {"userId": ODD_USERS[0], "metric": metric, "value": 0.3}
        assert api.post(f"{measured}/conversions", event).status_code == 201
    assert api("PUT", f"{path}/overrides/ü", {"variantId": "v2"}).status_code == 201
    rows = [
        f'{{"userId": "u", "metric": "m{number % 3}", "value": {value}}}'
        for number, value in enumerate(ODD_VALUES)
    ]
    rows.append('{"userId": "nobody"}')
    body = f'{{"conversions": [{", ".join(rows)}]}}'
    booked = api.post(
        f"{free}/conversions/batch", data=body, content_type="application/json"
    )
    assert booked.status_code == 200, booked.text
    Crossing.create(
        **{"experiment": free.removeprefix("experiments/"), "variant": "v2"},
        **dict.fromkeys(Crossing.COUNTS, 0) | {"users": 1, "p_value": TINY},
        **dict.fromkeys(Crossing.MEANS, -TINY),
        at=utcnow(),
    )
    return free


@pytest.fixture
def many(running, enrolled):
    """Have more users than a copy writes in two transactions."""
    path = running()
    for start in range(0, 25_000, 5_000):
        enrolled(path, *[f"u{number}" for number in range(start, start + 5_000)])
    return path


def test_a_copy_has_every_row_to_the_last_digit_and_says_what_it_holds(
    odd, copy, database_url, target
):
    before = everything(database_url)

    told = copy(target)

    assert told.exit_code == 0, told.output
    assert told.output.endswith(f"{WHOLE}\n")
    lines = [line.split() for line in told.output.splitlines()[:-1]]
    held = {table._meta.table_name: len(before[table]) for table in TABLES}
    assert {name: int(number) for number, name in lines} == held
    assert all(held.values())
    assert digits(target) == digits(database_url)
    assert everything(database_url) == before
    with opened(target):
        schema.verify()
        schema.refuse_altered(TABLES)
        assert list(proof.discrepancies()) == []


def test_a_copy_of_a_copy_on_the_first_engine_has_equal_rows(
    odd, copy, engine_name, database_url, empty
):
    (other,) = set(ENGINES) - {engine_name}
    there, back = empty(other), empty(engine_name)

    assert copy(there).exit_code == 0
    assert copy(back, there).exit_code == 0

    assert everything(back) == everything(database_url)
    assert shape(back) == shape(database_url)


def test_a_zero_with_a_sign_is_copied_as_a_zero(
    api, running, enrolled, copy, database_url, target
):
    path = running()
    enrolled(path, "u")
    api.post(
        f"{path}/conversions",
        data='{"userId": "u", "value": -0.00}',
        content_type="application/json",
    )

    assert copy(target).exit_code == 0

    unsigned = repr(digits(database_url)).replace("'-0.00'", "'0.00'")
    assert repr(digits(target)).replace("'-0.00'", "'0.00'") == unsigned


def test_the_target_answers_as_the_source_does_and_takes_new_writes(
    api, odd, enrolled, copy, served, target
):
    paths = ["", "/results", "/history", "/assignments", "/export?format=ndjson"]
    before = [api.get(f"{odd}{path}").get_data() for path in paths]
    assert copy(target).exit_code == 0

    there = served(target)

    assert [there.get(f"{odd}{path}").get_data() for path in paths] == before
    for user in ODD_USERS:
        body = {"userId": user}
        decided = api.post(f"{odd}/assignments", body).json["data"]
        assert there.post(f"{odd}/assignments", body).json["data"] == decided
    users = {"users": [{"userId": f"new{number}"} for number in range(10)]}
    assert there.post(f"{odd}/assignments/batch", users).status_code == 200
    event = {"userId": "new3", "metric": "m0", "value": 5}
    assert there.post(f"{odd}/conversions", event).status_code == 201
    assert there.post(f"{odd}/conversions", {"userId": "no"}).status_code == 409
    assert there.post(f"{odd}/stop").status_code == 200
    new = {"name": "New", "variants": two_variants()}
    assert there.post("experiments", new).status_code == 201
    history = there.get(f"{odd}/history").json["data"]
    assert len(history) == len(api.get(f"{odd}/history").json["data"]) + 1
    with using(there.client.application.extensions["database"]):
        assert list(proof.discrepancies()) == []


def test_an_empty_database_of_abacus_may_be_the_target(odd, copy, database_url, target):
    database = factory.database_at(target)
    schema.create(database, TABLES)
    database.shut()

    assert copy(target).exit_code == 0

    assert digits(target) == digits(database_url)


def test_a_target_that_has_rows_is_refused_and_stays(odd, copy, served, target):
    there = served(target)
    there.post("experiments", {"name": "Precious", "variants": two_variants()})
    before = everything(target)

    told = copy(target)

    assert told.exit_code == 1
    assert "The target: It is not empty: its table experiment has rows." in told.output
    assert told.output.count("\n") == 1
    assert everything(target) == before


def test_a_finished_copy_is_not_copied_again(odd, copy, target):
    assert copy(target).exit_code == 0
    before = everything(target)

    told = copy(target)

    assert told.exit_code == 1 and "or a complete copy of it" in told.output
    assert everything(target) == before


def test_a_database_is_not_copied_into_itself(odd, copy, database_url):
    before = everything(database_url)

    told = copy(database_url)

    assert told.exit_code == 1 and "It is the source itself" in told.output
    assert everything(database_url) == before


def foreign_table(database):
    database.execute_sql("CREATE TABLE theirs (id INTEGER)")


def foreign_view(database):
    database.execute_sql("CREATE VIEW theirs AS SELECT 1 AS id")


def older(database):
    schema.create(database, TABLES)
    engine.connect()
    Identity.update(schema_version=3).execute()


def altered(database):
    schema.create(database, TABLES)
    engine.connect()
    database.execute_sql("ALTER TABLE tally ADD COLUMN theirs INTEGER")


@pytest.mark.parametrize("make", [foreign_table, foreign_view, older, altered])
def test_a_target_that_is_something_else_is_refused_and_stays(odd, copy, target, make):
    if target.startswith("sqlite"):
        file = real.Path(target.removeprefix("sqlite:///"))
        file.parent.mkdir()
        file.touch()
    with opened(target) as database:
        make(database)
    before = shape(target)

    told = copy(target)

    assert told.exit_code == 1 and "Error: The target: " in told.output, told.output
    assert told.output.count("\n") == 1
    assert shape(target) == before


def test_a_file_that_is_no_database_is_refused_and_stays(odd, copy, tmp_path):
    (tmp_path / "text").write_text("precious " * 1_000)

    told = copy(f"sqlite:///{tmp_path / 'text'}")

    assert told.exit_code == 1 and "The target cannot be used" in told.output
    assert (tmp_path / "text").read_text() == "precious " * 1_000


def test_a_source_that_is_not_there_makes_no_target(copy, empty, target, tmp_path):
    source = empty("sqlite")

    told = copy(target, source)

    assert told.exit_code == 1 and "Error: The source: " in told.output
    assert not (tmp_path / "copies").exists()
    if not target.startswith("sqlite"):
        assert shape(target) == {}


def test_an_address_of_no_engine_is_refused(copy, target):
    told = copy("mysql://host/abacus")

    assert told.exit_code == 1 and "'mysql'" in told.output


@pytest.mark.parametrize("moment", ["filled", "proved"])
def test_a_copy_that_was_killed_is_served_by_nobody_and_continued(
    many, copy, served, running, database_url, empty, engine_name, target, moment
):
    with opened(database_url):
        rows = sum(table.select().count() for table in TABLES)
    after = 12_000 if moment == "filled" else rows + 12_000
    words = [sys.executable, "-c", KILLED, database_url, target, str(after)]
    killed = subprocess.run(words, cwd=real.ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    begun = everything(target)
    assert len(begun[Assignment]) == (20_000 if moment == "filled" else 25_000)

    assert_unserved(target)
    other = empty(engine_name)
    served(other)
    assert "copy of another database" in copy(target, other).output
    assert CUT_OFF in copy(empty("sqlite"), target).output
    assert everything(target) == begun

    told = copy(target)

    assert told.exit_code == 0 and told.output.endswith(f"{WHOLE}\n"), told.output
    assert digits(target) == digits(database_url)
    there = served(target)
    assert there.post(f"{many}/assignments", {"userId": "new"}).status_code == 201


def cut_off(source, target):
    """Begin a copy, and end it when all experiments are copied."""

    class Stop(Exception):
        pass

    copied = []

    def progress(rows):
        copied.append(rows)
        with opened(target):
            if Assignment.select().count():
                raise Stop

    pair = map(factory.database_at, (source, target))
    with pytest.raises(Stop), copier.copying(*pair) as copy:
        copy.fill(progress)


def test_a_copy_whose_source_was_changed_meanwhile_is_never_completed(
    odd, api, copy, served, database_url, target
):
    cut_off(database_url, target)
    assert api.post(f"{odd}/stop").status_code == 200

    told = copy(target)

    assert told.exit_code == 1
    assert "The table experiment of the target differs" in told.output
    assert told.output.count("\n") == 1
    assert_unserved(target)


def test_what_was_added_to_the_source_meanwhile_is_copied_too(
    odd, enrolled, copy, database_url, target
):
    cut_off(database_url, target)
    enrolled(odd, "later")

    told = copy(target)

    assert told.exit_code == 0, told.output
    assert digits(target) == digits(database_url)


def test_a_row_that_differs_is_found_by_its_table(odd, served, database_url, target):
    def spoil():
        row = Assignment.select().first()
        Assignment.update(user_id="other").where(Assignment.id == row.id).execute()

    engine.database.shut()
    pair = map(factory.database_at, (database_url, target))
    with pytest.raises(NotProved, match="table assignment"), copier.copying(*pair) as c:
        c.fill()
        change(target, spoil)
        c.prove()

    assert_unserved(target)


def test_counts_that_are_wrong_in_the_source_are_not_passed_on(
    odd, copy, served, target
):
    ParticipantTally.update(participants=77).execute()

    told = copy(target)

    assert told.exit_code == 1 and "The counts of the source are wrong" in told.output
    assert_unserved(target)


def test_nothing_is_acknowledged_while_the_source_is_copied(
    odd, api, app, database_url, empty, engine_name
):
    app.extensions["database"].patience = 0.1
    before = everything(database_url)
    target = empty(engine_name)

    engine.database.shut()
    pair = map(factory.database_at, (database_url, target))
    with copier.copying(*pair) as copy:
        refused = api.post(f"{odd}/assignments", {"userId": "too late"})
        copy.fill()
        copy.prove()

    assert_error(refused, 503, "UNAVAILABLE")
    assert everything(database_url) == before
    assert api.post(f"{odd}/assignments", {"userId": "later"}).status_code == 201


def test_a_pipe_gets_the_counts_and_no_progress(odd, database_url, target, tmp_path):
    engine.database.shut()

    told = real.flask(tmp_path / "instance", "copy", database_url, target)

    assert told.stderr == ""
    assert re.search(r"^ +18 assignment$", told.stdout, re.MULTILINE)
