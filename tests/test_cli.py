"""What an operator does."""

import csv
import gzip
import json
import os
import re
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import jwt
import peewee
import pytest
import service as real
from wcwidth import wcswidth

import models
from ledger import proof
from models import Assignment
from operations import importer
from operations.problems import Problems
from operations.staging import staging
from storage import engine

TRAFFIC = Path(__file__).parent / "cases" / "open_bandit_men.csv.gz"
ARMS = [
    {"name": "random", "splitPercentage": 50},
    {"name": "bts", "splitPercentage": 50},
]
# flask, which says at its end how much memory it ever had.
WEIGHED = """
import atexit, flask.cli
atexit.register(lambda: print(open("/proc/self/status").read()))
flask.cli.main()
"""


@pytest.fixture
def operate(app):
    """Return a way to run a command; it answers click's result."""
    return lambda *words: app.test_cli_runner().invoke(args=words)


@pytest.fixture
def load(operate, tmp_path):
    """Return a way to import lines, or a file, into an experiment."""

    def load(path, lines, name="lines.csv"):
        file = tmp_path / name
        file.write_text(lines)
        return operate("import", path.removeprefix("experiments/"), str(file))

    return load


def counted(api, path):
    computed = api.post(f"{path}/compute-results").json["data"]["variants"]
    return [(one["sampleSize"], one["conversions"]) for one in computed]


def test_init_makes_what_is_missing_and_keeps_what_is_there(tmp_path):
    first = real.flask(tmp_path / "instance", "init").stdout
    secret = (tmp_path / "instance" / "secret").read_text()
    second = real.flask(tmp_path / "instance", "init").stdout

    assert first == "The database is made.\n"
    assert second == "The database is there.\n"
    assert (tmp_path / "instance" / "secret").read_text() == secret
    assert len(secret) >= 32


def test_a_token_is_printed_and_nothing_else(tmp_path):
    real.prepare(tmp_path)

    told = real.flask(tmp_path, "token", "web", "--scope", "read assign", "--days", "2")

    claims = jwt.decode(
        told.stdout.strip(), (tmp_path / "secret").read_text(), ["HS256"]
    )
    assert (claims["sub"], claims["scope"]) == ("web", "read assign")
    assert claims["exp"] - claims["iat"] == 2 * 24 * 3600
    assert told.stderr == ""


@pytest.mark.one_engine
def test_a_token_of_an_unknown_scope_is_not_made(operate):
    told = operate("token", "web", "--scope", "admin")

    assert told.exit_code == 1 and told.stdout == ""
    assert told.stderr == (
        "Error: There is no scope 'admin': give any of read, write, assign, with "
        "spaces between them, or leave --scope out for all of them.\n"
    )


def test_the_real_traffic_is_imported_and_a_second_run_adds_nothing(
    api, running, operate
):
    path = running(variants=ARMS)
    id = path.removeprefix("experiments/")

    first = operate("import", id, str(TRAFFIC))
    once = api.get(f"{path}/results").json
    second = operate("import", id, str(TRAFFIC))

    # 10,000 impressions each; 46 and 69 clicks: the data's own note.
    assert counted(api, path) == [(10_000, 46), (10_000, 69)]
    assert first.output == "20000 lines: 20000 users enrolled, 115 conversions.\n"
    assert second.output == "20000 lines: 0 users enrolled, 0 conversions.\n"
    assert api.get(f"{path}/results").json == once
    assert list(proof.discrepancies()) == []


def test_a_run_that_was_cut_off_is_completed_by_the_next(
    api, running, operate, tmp_path
):
    path = running(variants=ARMS)
    id = path.removeprefix("experiments/")
    with gzip.open(TRAFFIC, "rt") as file:
        lines = file.readlines()
    part = tmp_path / "part.csv"
    part.write_text("".join(lines[:7_001]))
    assert operate("import", id, str(part)).exit_code == 0
    assert sum(size for size, _ in counted(api, path)) == 7_000

    assert operate("import", id, str(TRAFFIC)).exit_code == 0

    assert counted(api, path) == [(10_000, 46), (10_000, 69)]


def weighed_import(service, file, lines):
    """Import so many long lines as a command; return its peak of memory in KiB."""
    with file.open("w") as text:
        text.write("user_id,variant,timestamp\n")
        for number in range(lines):
            user = number * 7_919 % lines  # a prime: each once, in no order
            text.write(f"{user:0250},v1,2024-01-01T00:00:00Z\n")
    id = service.running(file.name).removeprefix("experiments/")
    command = [sys.executable, "-c", WEIGHED, "--app", "wsgi", "import", id, str(file)]
    told = subprocess.run(
        command,
        cwd=real.ROOT,
        env=real.environment(service.instance),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert told.startswith(f"{lines} lines: {lines} users enrolled, ")
    return int(re.search(r"^VmHWM:\s*(\d+) kB$", told, re.MULTILINE)[1])


def test_neither_memory_nor_the_log_grows_with_the_file(tmp_path):
    place = tmp_path / "instance"
    with (
        real.served(place) as service,
        closing(peewee.sqlite3.connect(place / "abacus.db")) as reader,
    ):
        reader.execute("SELECT id FROM identity").fetchall()  # it keeps the log there
        few = weighed_import(service, tmp_path / "few.csv", 1_000)
        beside = set(place.iterdir())
        many = weighed_import(service, tmp_path / "many.csv", 20_000)
        left = set(place.iterdir())
        log = (place / "abacus.db-wal").stat().st_size

    # The page caches fill, and no more; in memory, the lines take thrice their 5 MB.
    assert many - few < 16 * 1024
    assert log < 32 * 1024 * 1024  # it is emptied between the transactions
    assert left == beside  # what was staged went with the command


@pytest.mark.parametrize("lines", ["", "u2,v9,2024-01-01T00:00:00Z,,,,\n"])
def test_an_import_shows_its_progress_on_a_terminal_only(tmp_path, lines):
    place, file = tmp_path / "instance", tmp_path / "lines.csv"
    file.write_text(HEAD + GOOD + lines)
    with real.served(place) as service:
        id = service.running("one").removeprefix("experiments/")
        elsewhere = real.flask(place, "import", id, str(file), check=False)
        told, text = real.on_a_terminal(place, "import", id, str(file))

    assert "Checking" in text and "100%" in text
    assert "Checking" not in told.stdout + elsewhere.stdout + elsewhere.stderr
    assert ("Writing" in text) == (not lines)
    if lines:
        assert "\nline 3: " in text and elsewhere.stderr.startswith("line 3: ")


def test_ndjson_says_the_same_as_csv(api, running, load):
    header = ("user_id", "variant", "timestamp", "converted_at", "metric", "value")
    rows = [
        ("u1", "v1", "2024-01-01T00:00:00Z", "2024-01-02T00:00:00Z", "buy", "0.1"),
        ("u1", "v1", "2024-01-01T00:00:00Z", "2024-01-03T00:00:00Z", "buy", "0.2"),
        ("u2", "Detailed", "2024-01-01T01:00:00+02:00", "", "", ""),
    ]
    table, document = running(), running()
    text = "\n".join(",".join(row) for row in (header, *rows))
    objects = [
        {name: cell for name, cell in zip(header, row, strict=True) if cell}
        for row in rows
    ]
    for one in objects[:2]:
        one["value"] = float(one["value"])
    lines = "\n".join(json.dumps(one) for one in objects)

    assert load(table, text).exit_code == 0
    assert load(document, lines, "lines.ndjson").exit_code == 0

    one, two = (api.get(f"{path}/results").json["data"] for path in (table, document))
    assert one["variants"] == two["variants"]
    assert one["variants"][0]["results"][0]["value"]["sum"] == 0.3
    assert one["variants"][0]["results"][0]["firstAt"] == "2024-01-02T00:00:00Z"
    assert [variant["participants"] for variant in one["variants"]] == [1, 1]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("u2,v3,2024-01-01T00:00:00Z,,,,", "v3"),
        (",v1,2024-01-01T00:00:00Z,,,,", "user_id"),
        ("u2,v1,2024-01-01,,,,", "timestamp"),
        ("u2,v1,2024-01-01T00:00:00Z,2023-01-01T00:00:00Z,,,", "converted_at"),
        ("u2,v1,2126-01-01T00:00:00Z,,,,", "timestamp"),
        ("u2,v1,2024-01-01T00:00:00Z,2024-01-02T00:00:00Z,,much,", "value"),
        ("u1,v2,2024-01-01T00:00:00Z,,,,", "v1"),
        ("u3,v1,2024-01-01T00:00:00Z,,,,", "v2"),
        ("u1,v1,2024-01-01T00:00:00Z,2024-01-02T00:00:00Z,,2,k1", "key"),
        ("u4,v1,2024-01-01T00:00:00Z,2024-01-02T00:00:00Z,,,stored", "key"),
        ("u3,v2,2024-01-01T00:00:00Z,2024-01-02T00:00:00Z,,7,stored", "key"),
        ("u2,v1,2024-01-01T00:00:00Z,,,,,extra", "more"),
        ("u2,v1,2024-01-01T00:00:00Z,2024-01-02T00:00:00Z,,NaN,", "value"),
        ("u2,v1,2024-01-01T00:00:00Z,2024-01-02T00:00:00Z,,1_0,", "value"),
        ("u2,v1,2024-01-01T00:00:00Z,2024-01-02T00:00:00Z,,\uff15,", "value"),
        ("u2,v1,2024-01-01T00:00:00Z,2024-01-02T00:00:00Z,, 5 ,", "value"),
        ("u2,v1,2024-01-01T00:00:00Z,2024-01-02T00:00:00Z,,+5,", "value"),
        ("u2,v1,2024-01-01T00:00:00Z,2024-01-02T00:00:00Z,,05,", "value"),
        ("u2,v1,2024-01-01T00:00:00Z,2024-01-02T00:00:00Z,,5.,", "value"),
        (f"u2,v1,2024-01-01T00:00:00Z,2024-01-02T00:00:00Z,,1e{10**19},", "value"),
        ("u2,v1,2024-01-01T00:00:00Z,2024-01-02T00:00:00Z,,-Infinity,", "value"),
        # Before Python 3.11 the csv module itself refuses the line.
        ("u\0,v1,2024-01-01T00:00:00Z,,,,", "NUL"),
        ("u2,v1,2024-01-01T00:00:00Z,2024-01-02T00:00:00Z,,,k\0", "NUL"),
        ('"u2" x,v1,2024-01-01T00:00:00Z,,,,', "cannot be read"),
        ('"u2,v1,2024-01-01T00:00:00Z,,,,', "cannot be read"),
        (f"{'u' * 200_000},v1,2024-01-01T00:00:00Z,,,,", "cannot be read"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_written(api, running, load, line, told):
    path = running()
    head = "user_id,variant,timestamp,converted_at,metric,value,idempotency_key\n"
    before = "u3,v2,2024-01-01T00:00:00Z,2024-01-02T00:00:00Z,,,stored\n"
    assert load(path, head + before).exit_code == 0
    stored = api.get(f"{path}/results").json
    good = "u1,v1,2024-01-01T00:00:00Z,2024-01-02T00:00:00Z,,1,k1\n"

    result = load(path, f"{head}{good}{line}\n")

    assert result.exit_code == 1
    assert "line 3: " in result.output and told in result.output
    assert "1 bad lines; nothing was written" in result.output
    assert api.get(f"{path}/results").json == stored


@pytest.mark.parametrize("spoilt", ["cut off", "not UTF-8"])
def test_a_file_that_cannot_be_read_is_told_in_a_line(
    api, running, operate, tmp_path, spoilt
):
    path = running()
    line = b"u%d,v1,2024-01-01T00:00:00Z\n"
    text = b"user_id,variant,timestamp\n" + b"".join(line % n for n in range(2_000))
    file = tmp_path / "lines.csv"
    file.write_bytes(
        gzip.compress(text)[:-20]
        if spoilt == "cut off"
        else text + "Zoë,v1,2024-01-01T00:00:00Z\n".encode("latin-1")
    )

    result = operate("import", path.removeprefix("experiments/"), str(file))

    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert "cannot be read" in result.output
    assert "nothing was written" in result.output
    assert Assignment.select().count() == 0


HEAD = "user_id,variant,timestamp,converted_at,metric,value,idempotency_key\n"
GOOD = "u1,v1,2024-01-01T00:00:00Z,,,,\n"


def problems(result):
    """Return what an import that was refused said of each line."""
    assert result.exit_code == 1, result.output
    *lines, last = result.output.splitlines()
    numbers = [number for line in lines for number in line.split(":")[0].split(",")]
    assert last == f"Error: {len(numbers)} bad lines; nothing was written."
    assert Assignment.select().count() == 0
    return [line.partition(": ") for line in lines]


def test_equal_problems_of_many_lines_are_told_once(running, load):
    rows = "".join(
        f"u{number},Contrl,2024-01-01T00:00:00Z,,,,\n" for number in range(3_000)
    )
    late = "x,v1,now,,,,\n"

    result = load(running(), HEAD + rows + late + late)

    assert result.exit_code == 1 and Assignment.select().count() == 0
    first, second, last = result.output.splitlines()
    assert first == (
        "3,000 lines, the first are 2, 3, 4, 5, 6: variant: There is no variant "
        "'Contrl'."
    )
    assert second.startswith("lines 3002, 3003: timestamp: ")
    assert last == "Error: 3,002 bad lines; nothing was written."


def test_of_many_different_problems_twenty_are_told_and_the_others_counted(
    running, load
):
    rows = "".join(
        f"u1,w{number % 50},2024-01-01T00:00:00Z,,,,\n" for number in range(500)
    )

    *told, left, last = load(running(), HEAD + rows).output.splitlines()

    assert [line.rpartition(" ")[2] for line in told] == [
        f"'w{number}'." for number in range(20)
    ]
    assert told[3].startswith("10 lines, the first are 5, 55, 105, 155, 205: ")
    assert left == "300 lines more, with other problems than these 20."
    assert last == "Error: 500 bad lines; nothing was written."


def test_the_memory_of_problems_does_not_grow_with_them():
    noted = Problems()
    for number in range(30):
        noted.add(number, f"{number}: {'x' * 10_000}")
    tracemalloc.start()
    for number in range(20_000):
        noted.add(number, f"{number % 10_000}: {'x' * 10_000}")
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()

    assert noted.lines == 20_030 and grown < 64 * 1024
    assert max(map(len, noted.sentences())) < 600


def test_a_byte_that_is_not_utf_8_is_reported_with_its_line(running, operate, tmp_path):
    file = tmp_path / "lines.csv"
    rows = [f"u{number},v1,2024-01-01T00:00:00Z,,,,\n" for number in range(100)]
    rows[20] = "Zoë,v1,2024-01-01T00:00:00Z,,,,\n"
    rows[40] = "u40,v9,2024-01-01T00:00:00Z,,,,\n"
    file.write_bytes((HEAD + "".join(rows)).encode("latin-1"))

    result = operate("import", running().removeprefix("experiments/"), str(file))

    first, second = problems(result)
    assert (first[0], second[0]) == ("line 22", "line 42")
    assert first[2] == "it cannot be read: byte 0xeb is not UTF-8"


def test_a_record_of_several_lines_is_told_with_its_first(running, load):
    long = '"a\nb\r\nc",v1,2024-01-01T00:00:00Z,,,,\n'
    bad = '"d\ne",v9,2024-01-01T00:00:00Z,,,,\n'

    told = problems(load(running(), HEAD + long + "\n" + bad + GOOD + bad))

    # Lines 2 to 4, an empty one, 6 and 7, 8, 9 and 10.
    assert [one[0] for one in told] == ["lines 6, 9"]


def test_lines_may_end_as_any_system_ends_them(running, load, tmp_path, operate):
    for end in ("\n", "\r\n", "\r"):
        file = tmp_path / "ends.csv"
        text = HEAD + GOOD + "u2,v9,2024-01-01T00:00:00Z,,,,\n"
        file.write_bytes(text.replace("\n", end).encode())
        result = operate("import", running().removeprefix("experiments/"), str(file))
        assert [one[0] for one in problems(result)] == ["line 3"]


@pytest.mark.parametrize("name", ["lines.csv", "lines.ndjson"])
def test_a_bad_line_is_told_once_with_all_that_is_wrong(running, load, name):
    rows = [
        {"user_id": "u1", "variant": "v1", "timestamp": "2024-01-01T00:00:00Z"},
        {"user_id": " ", "variant": "v9", "timestamp": "now", "metric": " "},
    ]
    if name.endswith("csv"):
        text = f"user_id,variant,timestamp,metric\n{','.join(rows[0].values())},\n"
        text += ",".join(rows[1].values())
    else:
        text = "".join(f"{json.dumps(row)}\n" for row in rows)

    ((line, _, told),) = problems(load(running(), text, name))

    assert line == ("line 3" if name.endswith("csv") else "line 2")
    assert [told.count(name) for name in ("user_id:", "variant:", "timestamp:")] == [
        1
    ] * 3
    assert told.count("metric:") == 1


def test_a_line_that_contradicts_two_others_is_told_once(running, load, api):
    path = running()
    text = (
        HEAD
        + "u1,v1,2024-01-01T00:00:00Z,2024-01-02T00:00:00Z,,1,k1\n"
        + "u2,v1,2024-01-01T00:00:00Z,,,,\n"
        + "u1,v2,2024-01-01T00:00:00Z,2024-01-02T00:00:00Z,,2,k1\n"
        + "u2,v2,2024-01-01T00:00:00Z,,,,\n"
    )

    first, second = problems(load(path, text))

    assert (first[0], second[0]) == ("line 4", "line 5")
    assert "has the user in v1; the idempotency_key of line 2" in first[2]


@pytest.mark.parametrize("name", ["lines.csv", "lines.ndjson"])
@pytest.mark.parametrize("quote", ["", '"', '"\n'])
def test_a_line_without_an_end_is_named_and_not_kept(running, load, name, quote):
    text = (HEAD + GOOD) if name.endswith("csv") else "\n\n"

    told = problems(load(running(), f"{text}{quote}{'x,' * 600_000}", name))

    is_next = quote == '"\n' and name == "lines.ndjson"  # no text of it goes on there
    assert told[-1][0] == ("line 4" if is_next else "line 3")
    assert "cannot be read" in told[-1][2]


def test_a_device_without_an_end_is_refused(running, operate):
    result = operate("import", running().removeprefix("experiments/"), "/dev/zero")

    ((line, _, told),) = problems(result)
    assert line == "line 1" and "longer than 1 MiB" in told


def test_a_header_that_names_a_column_twice_is_refused(running, load):
    text = "user_id,variant,timestamp,user_id\nu1,v1,2024-01-01T00:00:00Z,u2\n"

    ((line, _, told),) = problems(load(running(), text))

    assert line == "line 1" and "'user_id' twice" in told


@pytest.mark.parametrize("compressed", [False, True])
def test_a_named_pipe_is_read_once(running, operate, tmp_path, compressed):
    pipe = tmp_path / "lines.csv"
    os.mkfifo(pipe)
    text = (HEAD + GOOD).encode()

    with ThreadPoolExecutor(1) as other:
        other.submit(pipe.write_bytes, gzip.compress(text) if compressed else text)
        result = operate("import", running().removeprefix("experiments/"), str(pipe))

    assert result.output == "1 lines: 1 users enrolled, 0 conversions.\n"


@pytest.mark.parametrize("file", ["{here}", "{here}/none.csv", "/proc/self/mem"])
def test_a_file_that_cannot_be_opened_is_named_in_plain_words(
    running, operate, tmp_path, file
):
    file = file.format(here=tmp_path)

    result = operate("import", running().removeprefix("experiments/"), file)

    assert result.exit_code == 1
    assert result.output.startswith(f"Error: {file} cannot be read (")
    assert "name a CSV or NDJSON file" in result.output
    assert "Errno" not in result.output


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("words", "named", "step"),
    [
        (["backup", "{here}/none/b.db"], "{here}/none/b.db", "Create its folder"),
        (["backup", "{here}/text/b.db"], "{here}/text/b.db", "in a folder"),
        (["backup", "{here}"], "{here}", "name a new file"),
        (["backup", "{link}"], "{link} is there already", "name a new file"),
        (["restore", "{here}/text"], "{here}/text", "that `flask --app wsgi backup`"),
        (["restore", "{here}/none"], "{here}/none", "does not exist"),
        (["restore", "{here}"], "{here}", "is a directory"),
        (["restore", "{link}"], "{link} cannot be read (it does not", "name a file"),
        (["restore", "--dry-run", "{here}/text/t"], "{here}/text/t", "name a file"),
        (["restore", "/dev/null"], "/dev/null", "name a file"),
        (["copy", "sqlite:///{here}/none", "{new}"], "{here}/none", "Create it with"),
        (["copy", "sqlite:///{here}", "{new}"], "{here}", "Check that it is there"),
        (["copy", "sqlite:///{here}/text", "{new}"], "{here}/text", "restore a backup"),
        (["copy", "{own}", "sqlite:///{here}/text"], "{here}/text", "Name a database"),
        (["copy", "{own}", "sqlite:///{here}/text/t"], "{here}/text/t", "in a folder"),
        (["copy", "{here}/text", "{new}"], "SOURCE_URL starts with", "postgresql://"),
        (["copy", "{own}", "mysql://x/y"], "TARGET_URL starts with 'mysql'", "sqlite:"),
    ],
)
def test_a_file_of_no_use_is_named_with_the_next_step(
    operate, database_url, tmp_path, words, named, step
):
    here = tmp_path / "here"
    here.mkdir()
    (here / "text").write_text("precious")
    link = tmp_path / "link"
    link.symlink_to("nowhere")
    filled = {
        "link": str(link),
        "here": str(here),
        "own": database_url,
        "new": f"sqlite:///{here / 'new.db'}",
    }
    engine.database.shut()  # as a service that was stopped

    told = operate(*(word.format(**filled) for word in words))

    assert told.exit_code == 1 and told.stdout == ""
    assert told.stderr.count("\n") == 1 and told.stderr.startswith("Error: ")
    assert named.format(**filled) in told.stderr and step in told.stderr
    assert "Errno" not in told.stderr and "Traceback" not in told.stderr
    assert (here / "text").read_text() == "precious"
    assert [file.name for file in here.iterdir()] == ["text"]


@pytest.mark.one_engine
@pytest.mark.parametrize("command", ["check", "vacuum", "init"])
def test_a_database_that_cannot_be_opened_is_named_with_the_next_step(
    tmp_path, command
):
    (tmp_path / "abacus.db").mkdir()

    told = real.flask(tmp_path, command, check=False)

    assert told.returncode == 1 and told.stderr.count("\n") == 1
    assert f"The database {tmp_path / 'abacus.db'} answers: " in told.stderr
    assert "Check that it is there" in told.stderr


@pytest.mark.one_engine
def test_a_backup_that_its_disk_does_not_take_is_named_and_not_kept(tmp_path):
    place, file = tmp_path / "instance", tmp_path / "b.db"
    real.prepare(place)
    words = ["-m", "flask", "--app", "wsgi", "backup", str(file)]

    told = subprocess.run(
        ["sh", "-c", f'ulimit -f 128; exec {sys.executable} "$@"', "sh", *words],
        cwd=real.ROOT,
        env=real.environment(place) | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert told.returncode == 1 and told.stderr.count("\n") == 1
    assert f"{file} cannot be written (" in told.stderr
    assert "name a file on another disk" in told.stderr
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.one_engine
@pytest.mark.parametrize("days", ["nan", "inf", "-inf", "0", "-1", "36501", "1e300"])
def test_a_token_that_lasts_no_number_of_days_is_not_made(operate, days):
    result = operate("token", "web", f"--days={days}")

    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert result.output == "Error: --days is above 0 and at most 36,500.\n"


@pytest.mark.parametrize("name", ["lines.csv", "lines.ndjson"])
def test_a_byte_order_mark_before_a_file_is_passed_over(running, load, name):
    text = HEAD + GOOD
    if not name.endswith("csv"):
        text = '{"user_id":"u1","variant":"v1","timestamp":"2024-01-01T00:00:00Z"}\n'

    assert load(running(), f"\ufeff{text}", name).exit_code == 0


def test_a_time_up_to_ten_seconds_before_the_enrolment_counts_as_of_it(
    api, running, load
):
    path = running()
    text = HEAD + (
        "u1,v1,2024-01-01T00:00:16.894Z,2024-01-01T00:00:16Z,,1,k1\n"
        "u2,v1,2024-01-01T00:00:10Z,2024-01-01T00:00:00Z,,,\n"
    )

    first, second = load(path, text), load(path, text)

    assert first.output == "2 lines: 2 users enrolled, 2 conversions.\n"
    assert second.output == "2 lines: 0 users enrolled, 0 conversions.\n"
    (row,) = api.get(f"{path}/results").json["data"]["variants"][0]["results"]
    assert row["firstAt"] == "2024-01-01T00:00:10Z"
    assert row["lastAt"] == "2024-01-01T00:00:16.894000Z"
    early = "u3,v1,2024-01-01T00:00:10.000001Z,2024-01-01T00:00:00Z,,,\n"
    refused = load(path, HEAD + early)
    assert refused.exit_code == 1 and "line 2: converted_at" in refused.output


def test_a_time_shortly_before_an_enrolment_of_here_counts_as_of_it(
    api, running, load, enrolled
):
    path = running()
    (seat,) = enrolled(path, "u1")
    since = datetime.fromisoformat(seat["assignedAt"].replace("Z", "+00:00"))

    def lines(seconds, key):
        at = (since - timedelta(seconds=seconds)).isoformat()
        return f"{HEAD}u1,{seat['variantId']},2024-01-01T00:00:00Z,{at},,,{key}\n"

    for key in ("", "k1"):
        assert load(path, lines(9.9, key)).output.endswith(" 1 conversions.\n")
        assert load(path, lines(9.9, key)).output.endswith(" 0 conversions.\n")
        early = load(path, lines(10.1, key or "k2"))
        assert early.exit_code == 1 and "before the user's enrolment" in early.output

    variants = api.get(f"{path}/results").json["data"]["variants"]
    (row,) = [row for one in variants for row in one["results"]]
    assert (row["events"], row["firstAt"]) == (2, seat["assignedAt"])


def test_an_import_brings_no_more_metrics_than_an_experiment_may_have(
    api, running, load
):
    path = running(primaryMetric="purchase")
    row = "u1,v1,2024-01-01T00:00:00Z,2024-01-02T00:00:00Z,{},,\n"
    full = "".join(row.format(f"m{number}") for number in range(1_000))
    primary = row.format("purchase")

    refused = load(path, HEAD + full + primary + row.format("one-more"))

    ((line, _, told),) = problems(refused)
    assert line == "line 1003" and "1,000 metrics" in told and "'one-more'" in told
    assert load(path, HEAD + full).exit_code == 0
    again = load(path, HEAD + row.format("m5") + row.format("one-more"))
    assert again.exit_code == 1 and "line 3: metric: " in again.output
    assert load(path, HEAD + primary).exit_code == 0


def test_a_user_of_another_experiment_of_the_exclusion_group_is_a_bad_line(
    api, running, load
):
    group = {"exclusionGroup": "checkout", "trafficPercentage": 50}
    one, other, apart = running(**group), running(**group), running()
    answers = {
        user: api.post(f"{one}/assignments", {"userId": user}).json["data"]
        for user in map(str, range(20))
    }
    theirs = [user for user, answer in answers.items() if answer["enrolled"]]
    mine = [user for user in answers if user not in theirs]
    lines = [f"{user},v1,2024-01-01T00:00:00Z\n" for user in (*mine, *theirs)]
    text = "user_id,variant,timestamp\n" + "".join(lines)

    refused = load(other, text)

    assert refused.exit_code == 1
    told, last = refused.output.splitlines()
    id = one.removeprefix("experiments/")
    numbers = range(len(mine) + 2, len(answers) + 2)
    first = ", ".join(map(str, numbers[:5]))
    shown = f"{len(numbers)} lines, the first are" if numbers[5:] else "lines"
    assert told == (
        f"{shown} {first}: the user is in {id}, which is of the same exclusion group "
        "'checkout'"
    )
    assert last == f"Error: {len(theirs)} bad lines; nothing was written."
    assert api.get(other).json["data"]["_count"]["assignments"] == 0
    # Elsewhere, into their own, and once that one has given its room back.
    assert load(apart, text).exit_code == 0
    seat = answers[theirs[0]]
    own = f"{theirs[0]},{seat['variantId']},2024-01-01T00:00:00Z\n"
    assert load(one, f"user_id,variant,timestamp\n{own}").exit_code == 0
    assert api.post(f"{one}/complete", {"conclusion": "invalid"}).status_code == 200
    assert load(other, text).exit_code == 0


def test_who_is_enrolled_elsewhere_after_the_check_stops_the_import(
    api, running, enrolled, tmp_path
):
    group = {"exclusionGroup": "checkout", "trafficPercentage": 50}
    one, other = running(**group), running(**group)
    experiment = models.Experiment.get_by_id(other.removeprefix("experiments/"))
    file = tmp_path / "lines.csv"
    users = [str(number) for number in range(20)]
    rows = [f"{user},v1,2024-01-01T00:00:00Z\n" for user in users]
    file.write_text("user_id,variant,timestamp\n" + "".join(rows))
    asked = {"users": [{"userId": user} for user in users]}
    with staging(tmp_path) as staged:
        assert list(importer.stage(experiment, file, staged)) == []
        assert api.post(f"{one}/assignments/batch", asked).status_code == 200

        with pytest.raises(models.Conflict, match="run the import again"):
            importer.write(experiment, staged)

    assert api.get(other).json["data"]["_count"]["assignments"] == 0


def test_who_was_imported_is_enrolled_in_no_other_experiment_of_the_group(
    api, running, load
):
    group = {"exclusionGroup": "checkout", "trafficPercentage": 50}
    one, other = running(**group), running(**group)
    users = [str(number) for number in range(20)]
    rows = [f"{user},v1,2024-01-01T00:00:00Z\n" for user in users]
    text = "user_id,variant,timestamp\n" + "".join(rows)
    assert load(other, text).exit_code == 0

    asked = {"users": [{"userId": user} for user in users]}
    answers = api.post(f"{one}/assignments/batch", asked).json["data"]

    assert {answer["reason"] for answer in answers} == {"EXCLUDED"}
    assert api.get(one).json["data"]["_count"]["assignments"] == 0
    # Asked one by one, and why, and once the other has given its room back.
    single = api.post(f"{one}/assignments", {"userId": "1"})
    assert (single.status_code, single.json["data"]["enrolled"]) == (200, False)
    assert api.post(f"{other}/complete", {"conclusion": "invalid"}).status_code == 200
    answers = api.post(f"{one}/assignments/batch", asked).json["data"]
    assert {answer["reason"] for answer in answers} == {"EXCLUDED", "NEW_ASSIGNMENT"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "u1,v1,2024-01-01T00:00:00Z\n",
        "u1,v1,2024-01-01T00:00:00Z\nu2,v2,2024-01-01T00:00:00Z\n",
        "user_id,variant\n",
        "user_id;variant;timestamp\nu1;v1;2024-01-01T00:00:00Z\n",
    ],
)
def test_a_csv_without_its_header_is_refused(running, load, text):
    result = load(running(), text)

    assert result.exit_code == 1
    assert "line 1: " in result.output
    assert "the header is missing" in result.output
    assert "user_id, variant, timestamp" in result.output
    assert "1 bad lines; nothing was written" in result.output
    assert Assignment.select().count() == 0


@pytest.mark.parametrize("value", ["0", "-1", "1.50", "2e2", "1E-2", "10"])
def test_a_csv_holds_the_numbers_of_json(api, running, load, value):
    path = running()
    head = "user_id,variant,timestamp,converted_at,value\n"

    result = load(
        path, f"{head}u1,v1,2024-01-01T00:00:00Z,2024-01-01T00:00:00Z,{value}"
    )

    assert result.exit_code == 0
    (metric,) = api.get(f"{path}/results").json["data"]["variants"][0]["results"]
    assert metric["value"]["sum"] == json.loads(value)


def test_an_import_finds_its_experiment_by_its_key_too(api, running, load):
    path = running(key="checkout-button")
    lines = "user_id,variant,timestamp\nu1,v1,2024-01-01T00:00:00Z\n"

    loaded = load("checkout-button", lines)
    unknown = load("checkout", lines)

    assert loaded.output == "1 lines: 1 users enrolled, 0 conversions.\n"
    assert api.get(f"{path}/assignments/u1").json["data"]["variantId"] == "v1"
    assert unknown.exit_code == 1 and unknown.output == (
        "Error: There is no experiment 'checkout': `flask --app wsgi list --archived` "
        "prints the keys of all.\n"
    )
    assert Assignment.select().count() == 1


def test_what_is_wrong_with_a_line_is_not_said_of_a_body(running, load):
    for line in ("{", '{"a": 1, "a": 1}', "[" * 65 + "]" * 65, "\ufeff{}"):
        result = load(running(), f"\n{line}\n", "lines.ndjson")

        assert result.exit_code == 1
        assert result.output.startswith("line 2: ")
        assert "body" not in result.output.lower()
    assert Assignment.select().count() == 0


def test_a_draft_takes_no_import(api, draft, load):
    path = draft()

    result = load(path, "user_id,variant,timestamp\nu1,v1,2024-01-01T00:00:00Z\n")

    assert result.exit_code == 1 and "draft" in result.output
    assert Assignment.select().count() == 0


def test_results_prints_the_tables_of_the_api(api, running, enrolled, operate):
    path = running(key="checkout-button", name="Ein Knopf für die 决定")
    enrolled(path, *map(str, range(30)))
    api.post(f"{path}/conversions", {"userId": "1"})
    plain = {"headers": {"Accept": "text/plain"}}

    shown = operate("results", "checkout-button")

    computed = api.get(f"{path}/compute-results", **plain).text
    counts = api.get(f"{path}/results", **plain).text
    assert shown.exit_code == 0 and shown.output == f"{computed}\n{counts}"
    assert "Keep running: " in computed and " conversions received: " in counts
    assert operate("results", path.removeprefix("experiments/")).output == shown.output


def test_results_of_a_draft_are_printed_and_of_no_experiment_refused(draft, operate):
    assert operate("results", draft().removeprefix("experiments/")).exit_code == 0

    unknown = operate("results", "checkout")

    assert unknown.exit_code == 1 and unknown.output.startswith("Error: There is no ")
    assert "`flask --app wsgi list --archived` prints the keys" in unknown.output


def test_list_prints_the_experiments_newest_first_in_80_columns(
    api, draft, running, enrolled, operate
):
    first = running(key="first", name="决" * 150)
    enrolled(first, *map(str, range(1_200)))
    long = draft(key="k" * 64, name="\x1b[31mred")
    archived = draft(key="archived")
    assert api.delete(archived).status_code == 200

    shown = operate("list").output
    running_only = operate("list", "--status", "running").output
    everything = operate("list", "--archived").output

    title, _, lead, _, heads, rule, *rows = shown.splitlines()
    assert (title, lead) == ("Experiments, newest first", "2 experiments")
    assert heads.split() == ["key", "state", "users", "name"] and set(rule) == {
        "-",
        " ",
    }
    id = long.removeprefix("experiments/")
    assert [row.split()[:3] for row in rows] == [
        [id, "draft", "0"],
        ["first", "running", "1,200"],
    ]
    assert "决…" in rows[1] and "\x1b" not in shown
    assert max(map(wcswidth, shown.splitlines())) in (79, 80)
    assert "1 experiment\n" in running_only and id not in running_only
    assert "\narchived " in everything and " archived " in everything
    unknown = operate("list", "--status", "open")
    assert unknown.exit_code == 2 and "running" in unknown.output


def test_list_walks_all_pages_and_an_empty_list_says_so(draft, operate):
    assert operate("list").output == "Experiments, newest first\n\n0 experiments\n"
    for number in range(101):
        draft(key=f"key-{number}")

    rows = operate("list").output.splitlines()[6:]

    newest_first = [f"key-{number}" for number in reversed(range(101))]
    assert [row.split()[0] for row in rows] == newest_first


def test_check_says_so_when_a_count_is_wrong(api, running, enrolled, operate):
    enrolled(running(), "u1")
    assert operate("check").output == "Every count is what its rows say.\n"

    models.ParticipantTally.update(participants=5).execute()

    assert operate("check").exit_code == 1


def test_check_raises_no_false_alarm_while_conversions_are_counted(
    app, api, running, enrolled, operate
):
    path = running()
    users = [f"user-{number}" for number in range(500)]
    enrolled(path, *users)

    def convert():
        for number in range(40):
            rows = [{"userId": user} for user in users[number % 50 :: 50]]
            answer = api.post(f"{path}/conversions/batch", {"conversions": rows})
            assert answer.status_code == 200
        app.extensions["database"].close()

    with ThreadPoolExecutor(1) as other:
        writing, told = other.submit(convert), []
        while not writing.done():
            told.append(operate("check"))
        writing.result()

    assert {one.output for one in told} == {"Every count is what its rows say.\n"}


def test_the_traffic_file_is_what_its_note_says():
    with gzip.open(TRAFFIC, "rt") as file:
        rows = list(csv.DictReader(file))
    clicks = [row["variant"] for row in rows if row["converted_at"]]

    assert len(rows) == len({row["user_id"] for row in rows}) == 20_000
    assert (clicks.count("random"), clicks.count("bts")) == (46, 69)
