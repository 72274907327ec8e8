"""What an operator does."""

import csv
import gzip
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import jwt
import pytest
import service as real

import models
import reports
from models import Assignment

TRAFFIC = Path(__file__).parent.parent / "demo" / "open_bandit_men.csv.gz"
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
    real.flask(tmp_path, "init")

    told = real.flask(tmp_path, "token", "web", "--scope", "read assign", "--days", "2")

    claims = jwt.decode(
        told.stdout.strip(), (tmp_path / "secret").read_text(), ["HS256"]
    )
    assert (claims["sub"], claims["scope"]) == ("web", "read assign")
    assert claims["exp"] - claims["iat"] == 2 * 24 * 3600
    assert told.stderr == ""


def test_a_token_of_an_unknown_scope_is_not_made(tmp_path):
    real.flask(tmp_path, "init")

    told = real.flask(tmp_path, "token", "web", "--scope", "admin", check=False)

    assert told.returncode == 1
    assert "admin" in told.stderr and told.stdout == ""


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
    assert list(reports.discrepancies()) == []


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
        closing(models.peewee.sqlite3.connect(place / "abacus.db")) as reader,
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
    assert unknown.output == "Error: There is no experiment 'checkout'.\n"
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


def test_check_says_so_when_a_count_is_wrong(api, running, enrolled, operate):
    enrolled(running(), "u1")
    assert operate("check").output == "Every count is what its rows say.\n"

    models.Variant.update(participants=5).execute()

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


def test_the_demo_ends_with_the_figures_of_its_data():
    told = subprocess.run(
        [sys.executable, "demo/replay.py"],
        cwd=real.ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        check=True,
    ).stdout
    rows = [line.split()[:3] for line in told.splitlines()]

    # Over HTTP, and by import.
    assert rows.count(["random", "10,000", "46"]) == 2
    assert rows.count(["bts", "10,000", "69"]) == 2
    assert "Every count is what its rows say." in told


def test_the_traffic_file_is_what_its_note_says():
    with gzip.open(TRAFFIC, "rt") as file:
        rows = list(csv.DictReader(file))
    clicks = [row["variant"] for row in rows if row["converted_at"]]

    assert len(rows) == len({row["user_id"] for row in rows}) == 20_000
    assert (clicks.count("random"), clicks.count("bts")) == (46, 69)
