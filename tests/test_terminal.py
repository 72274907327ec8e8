"""What the operator's commands show on a terminal, and what in a pipe."""

import subprocess
import sys

import pytest
import service as real
from hypothesis import given
from hypothesis import strategies as some
from test_tables import NAMES, analyses
from wcwidth import wcswidth

import cli
import models
from app import create_app
from operations.problems import MOST
from views import tables

LINES = "user_id,variant,timestamp\nu1,v1,2024-01-01T00:00:00Z\n"

# Each command that reads or writes many rows, and what stands before its progress.
LONG = {
    "import": (["one", "{here}/lines.csv"], ["Checking", "Writing"]),
    "check": ([], ["Checking"]),
    "vacuum": ([], ["Writing anew"]),
    "backup": (["{here}/{name}.db"], ["Backing up"]),
    "copy": (["{own}", "sqlite:///{here}/{name}-copy.db"], ["Copying", "Proving"]),
    "restore": (["{here}/kept.db"], ["Verifying"]),
}
SHORT = {"init", "list", "results", "token"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return an instance folder with an experiment; its service has ended."""
    place = tmp_path_factory.mktemp("terminal") / "instance"
    with real.served(place) as service:
        body = {"key": "one", "name": "One", "variants": [HALF, {**HALF, "name": "B"}]}
        service.data("POST", "experiments", body)
        service.data("POST", "experiments/one/start")
        users = [{"userId": str(number)} for number in range(50)]
        service.data("POST", "experiments/one/assignments/batch", {"users": users})
        path = "experiments/one/conversions/batch"
        service.data("POST", path, {"conversions": users})
    (place.parent / "lines.csv").write_text(LINES)
    real.flask(place, "backup", str(place.parent / "kept.db"))
    return place


HALF = {"name": "A", "splitPercentage": 50}


def words_of(command, place, name):
    words, _ = LONG[command]
    own = f"sqlite:///{place / 'abacus.db'}"
    here = place.parent
    return [command, *(word.format(here=here, own=own, name=name) for word in words)]


def test_each_command_is_known_to_be_long_or_short():
    assert cli.commands.cli.commands.keys() == LONG.keys() | SHORT


@pytest.mark.one_engine
@pytest.mark.parametrize("command", LONG)
def test_a_long_command_shows_its_progress_on_a_terminal_only(place, command):
    quiet = real.flask(place, *words_of(command, place, "quiet"))
    told, shown = real.on_a_terminal(place, *words_of(command, place, "shown"))

    for label in LONG[command][1]:
        assert label in shown and label not in quiet.stdout
    assert quiet.stderr == "" and told.returncode == 0
    assert "\x1b" not in told.stdout and told.stdout.count("\n") == quiet.stdout.count(
        "\n"
    )


@pytest.mark.one_engine
def test_an_import_from_a_pipe_shows_on_a_terminal_that_it_works(place):
    words = ["import", "one", "/dev/stdin"]
    with subprocess.Popen(["cat", place.parent / "lines.csv"], stdout=-1) as lines:
        told, shown = real.on_a_terminal(place, *words, stdin=lines.stdout)

    assert told.returncode == 0 and told.stdout.startswith("1 lines: ")
    assert "Checking" in shown


@pytest.mark.one_engine
@pytest.mark.parametrize("words", [["init"], ["token", "me"], ["list"], ["check"]])
def test_an_output_that_cannot_be_written_is_told_in_a_line(place, words):
    with open("/dev/full", "w") as full:
        told = subprocess.run(
            [sys.executable, "-m", "flask", "--app", "wsgi", *words],
            cwd=real.ROOT,
            env=real.environment(place),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert (told.returncode, told.stderr) == (
        1,
        "Error: The output cannot be written (No space left on device). Free some "
        "space, or write it elsewhere.\n",
    )


@pytest.mark.one_engine
@pytest.mark.parametrize("kind", ["missing", "folder", "text", "server"])
def test_each_command_names_a_database_of_no_use_and_the_next_step(tmp_path, kind):
    file = tmp_path / "abacus.db"
    if kind == "folder":
        file.mkdir()
    if kind == "text":
        file.write_text("precious")
    url = "postgresql://127.0.0.1:1/none" if kind == "server" else f"sqlite:///{file}"
    (tmp_path / "lines.csv").write_text(LINES)
    secret = {"JWT_SECRET_KEY": "8Jt2vQm4xZ0pLr7yWc5nKd1sHf6gBa3u"}
    run = create_app({**secret, "DATABASE_URL": url}).test_cli_runner().invoke
    commands = {
        "import": ["one", str(tmp_path / "lines.csv")],
        "results": ["one"],
        "backup": [str(tmp_path / "new.db")],
        "check": [],
        "vacuum": [],
        "list": [],
    }
    if kind != "missing":
        commands["init"] = []

    for command, words in commands.items():
        ended = run(args=[command, *words])

        assert ended.exit_code == 1, command
        assert isinstance(ended.exception, SystemExit), command
        assert ended.output.startswith("Error: ") and ended.output.count("\n") == 1
        assert (str(file) if kind != "server" else "127.0.0.1") in ended.output
        assert "Errno" not in ended.output
        steps = ("Check that it is there", "flask --app wsgi init", "restore a backup")
        assert any(step in ended.output for step in steps), ended.output
    assert {one.name for one in tmp_path.iterdir()} <= {"abacus.db", "lines.csv"}


def test_of_many_wrong_counts_the_first_are_told_and_the_others_counted(
    app, running, enrolled
):
    for _ in range(MOST + 3):
        enrolled(running(), "u1")
    models.ParticipantTally.update(participants=5).execute()

    *told, left, last = app.test_cli_runner().invoke(args=["check"]).output.splitlines()

    assert len(told) == MOST == 20
    assert all(line.startswith("participants ") for line in told)
    assert left == "3 more are wrong."
    assert last == "Error: 23 counts are not what their rows say."


@given(NAMES, analyses(), some.integers(40, 79))
def test_a_table_fits_a_narrow_terminal(name, result, width):
    text = tables.plain(tables.analysis(name, result), width)

    for line in text.splitlines():
        assert wcswidth(line) <= width or " " not in line.strip()


def test_no_line_ends_between_a_number_and_its_unit():
    lead = "Detailed converts 3.18 % of 3,900 users, Control 1.71 % of 3,862."
    for width in range(20, 80):
        lines = tables.plain(tables.Sheet("", lead, [], [], []), width).splitlines()
        assert " ".join(lines).split() == lead.split()
        assert not [line for line in lines if line.startswith(("%", "users"))]


@pytest.mark.one_engine
def test_a_narrow_terminal_gets_a_list_for_each_row_that_is_too_wide(place):
    wide = real.flask(place, "results", "one").stdout
    narrow = real.flask(place, "results", "one", COLUMNS="50").stdout
    listed = real.flask(place, "list", COLUMNS="50").stdout

    assert max(map(wcswidth, wide.splitlines())) in range(51, 81)
    assert max(map(wcswidth, narrow.splitlines())) <= 50
    assert "\nlift at any look  " in narrow and "lift at any look" in wide
    assert max(map(wcswidth, listed.splitlines())) <= 50
    assert "\none " in listed
