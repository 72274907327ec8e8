"""What `make demo` shows, against its data."""

import csv
import gzip
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
import service as real
from scipy import stats

pytestmark = pytest.mark.one_engine

DEMO = real.ROOT / "demo"
NOTE = (DEMO / "README.md").read_text()
COMMAND = [sys.executable, "demo/replay.py"]


def environment(place, **settings):
    """Return an environment in which what is left behind would be in this place."""
    kept = {name: value for name, value in os.environ.items() if name != "PORT"}
    return {**kept, "TMPDIR": str(place), **settings}


def impressions():
    with gzip.open(DEMO / "open_bandit_all.csv.gz", "rt") as file:
        return list(csv.DictReader(file))


def until(moment):
    """Return users and clicks of both variants before a moment, the control first."""
    rows = [row for row in impressions() if row["timestamp"] < moment]
    return [
        (len(mine), sum(bool(row["converted_at"]) for row in mine))
        for mine in ([row for row in rows if row["variant"] == arm] for arm in ARMS)
    ]


ARMS = ("random", "bts")


def p_of_one_look(counts):
    """Return the p-value of the z-test of two rates, as scipy has it."""
    table = [(clicks, users - clicks) for users, clicks in counts]
    return stats.chi2_contingency(table, correction=False).pvalue


def headlines():
    with (DEMO / "upworthy_headlines.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_demo_prints_a_winner_and_a_look_that_would_have_lied(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    told = subprocess.run(
        COMMAND,
        cwd=real.ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=400,
        check=True,
    )
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    first, early, late = re.split(
        "^Until the .*|^The whole .*", told.stdout, flags=re.M
    )
    *_, closing, last = late.strip().split("\n\n")

    assert re.findall(r"^(\w.*?)  +([\d,]+)  +(\d+)  ", first, re.M) == [
        (row["variant"], f"{int(row['viewers']):,}", row["clicks"])
        for row in headlines()
    ]
    assert "\nvariant_wins; metric click; " in first
    for shown, moment, status in (
        (early, "2019-11-26T20:00", "keep_running"),
        (late, "2020", "no_difference"),
    ):
        counts = until(moment)
        assert re.findall(r"^(\w+) +([\d,]+) +(\d+)  ", shown, re.M) == [
            (arm, f"{users:,}", str(clicks))
            for arm, (users, clicks) in zip(ARMS, counts, strict=True)
        ]
        assert f" {p_of_one_look(counts):.3f} " in shown
        assert f"\n{status}; metric click; " in shown
    assert "\n\nEvery count is what its rows say.\n\n" in late
    sentence = " ".join(closing.split())
    assert sentence == (
        "Of the four headlines 'zooms out' has won, and of the two recommenders a "
        "single look on the third evening would have declared a winner (p = 0.048), "
        "which the whole week does not confirm (p = 0.654); Abacus had said 'keep "
        "running'."
    )
    assert last == "`make demo PORT=8001` keeps the pages of both open."
    assert told.stderr == ""  # of progress nothing in a pipe
    assert list(tmp_path.iterdir()) == []
    # Not by the clock, which other processes of the machine slow down.
    spent = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    assert spent < 30


def test_the_demo_keeps_its_pages_open_on_the_port_that_it_is_given(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    # As a program that is started in the background of a script, a child may ignore it.
    running = subprocess.Popen(
        COMMAND,
        cwd=real.ROOT,
        env=environment(tmp_path, PORT=port),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    asks = f"Open this page within ten minutes: http://127.0.0.1:{port}/ui/sign-in/"
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    by_hand = {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}
    browser.addheaders = list(by_hand.items())
    try:
        line = next(line for line in running.stdout if line.startswith(asks))
        page = browser.open(line.split()[-1]).read().decode()
        taken = subprocess.run(
            COMMAND,
            cwd=real.ROOT,
            env=environment(tmp_path, PORT=port),
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=60)

    assert "Upworthy: four headlines" in page
    assert "Open Bandit: two recommenders" in page
    assert (running.returncode, errors) == (0, "")
    assert list(tmp_path.iterdir()) == []
    assert taken.returncode == 1 and taken.stdout == ""
    assert taken.stderr == (
        f'Port {port} cannot be used: name another one, as in "make demo PORT=8001".\n'
    )


def test_one_of_the_daily_looks_says_a_difference_that_the_week_does_not():
    days = range(24, 31)
    looks = {day: p_of_one_look(until(f"2019-11-{day}T20:00")) for day in days}
    whole = p_of_one_look(until("2020"))

    assert [day for day, p_value in looks.items() if p_value < 0.05] == [26]
    assert f"finds p = {looks[26]:.3f} on the third" in NOTE
    assert f"At the end of the week it is {whole:.3f}." in NOTE


def test_the_files_of_the_demo_are_what_its_note_says():
    rows = impressions()
    whole, early = until("2020"), until("2019-11-26T20:00")

    assert len(rows) == len({row["user_id"] for row in rows}) == 20_000
    assert {row["timestamp"][:10] for row in rows} == {
        f"2019-11-{day}" for day in range(24, 31)
    }
    for arm, (users, clicks), before in zip(ARMS, whole, early, strict=True):
        told = f"| {before[0]:,} | {before[1]} | {users:,} | {clicks} |\n"
        assert re.search(rf"^\| `{arm}` .*{re.escape(told)}", NOTE, re.M)
    for row in headlines():
        told = f"| {int(row['viewers']):,} | {row['clicks']} | {row['headline']} |\n"
        assert re.search(rf"^\| `{row['variant']}`.*{re.escape(told)}", NOTE, re.M)
