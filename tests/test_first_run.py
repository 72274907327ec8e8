"""What `make run` does, and what it says where it cannot."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import service as real

pytestmark = pytest.mark.one_engine

# The Python of this test, which says that it is an older one; it makes a folder if it
# is told to make an environment.
OLDER = f"""#!/bin/sh
[ "$1" = -c ] || exec mkdir .venv
exec {sys.executable} -c '
import sys
sys.version_info = (3, 9, 18, "final", 0)
exec(sys.argv[1])' "$2"
"""


def terminal(environment, **settings):
    """Return an environment as a terminal has it, also where `make test` runs this."""
    # With what was set for that make, as in `make test PYTHON=python3.10`.
    inherited = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "PYTHON", "PORT"}
    kept = {name: environment[name] for name in environment.keys() - inherited}
    return {**kept, **settings}


def made(place, *words, tree=real.ROOT, **settings):
    """Start `make run`, as if .venv were there: with the programs of this Python."""
    programs = f"BIN={Path(sys.executable).parent}"
    return subprocess.Popen(
        ["make", "--no-print-directory", "-o", ".venv/ready", programs, "run", *words],
        cwd=tree,
        env=terminal(real.environment(place), **settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("kind", ["older", "missing"])
def test_a_python_that_is_too_old_is_refused_before_it_makes_anything(tmp_path, kind):
    programs, tree = tmp_path / "bin", tmp_path / "abacus"
    programs.mkdir()
    tree.mkdir()
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(real.ROOT / name, tree)
    python = programs / "python3"
    python.write_text(OLDER if kind == "older" else "#!/bin/sh\nexit 127\n")
    python.chmod(0o755)

    told = subprocess.run(
        ["make", "run"],
        cwd=tree,
        env=terminal(os.environ, PATH=f"{programs}:{os.environ['PATH']}"),
        capture_output=True,
        text=True,
        check=False,
    )

    assert told.returncode != 0 and told.stdout == ""
    said, of_make = told.stderr.splitlines()
    assert said.startswith('Abacus needs Python 3.10 or newer, and "python3" is none: ')
    assert 'as in "make run PYTHON=python3.12"' in said
    assert of_make.startswith("make: ***")
    assert sorted(path.name for path in tree.iterdir()) == [
        "Makefile",
        "requirements.txt",
    ]


@pytest.mark.parametrize("where", ["environment", "words"])
def test_make_run_serves_on_the_port_that_it_is_given(tmp_path, where):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    if where == "words":
        running = made(tmp_path, f"PORT={port}")
    else:
        running = made(tmp_path, PORT=port)
    try:
        line = next(line for line in running.stdout if line.startswith("curl "))
        assert line.endswith(f" http://127.0.0.1:{port}/api/experiments\n")
        command = line.replace("curl ", "curl -sS --retry-connrefused --retry 20 ")
        answer = subprocess.check_output(["sh", "-c", command], text=True)
        words, link = next(running.stdout).rstrip().split(": ")
        page = f"curl -sS -D - -o /dev/null -H 'Sec-Fetch-Site: none' {link}"
        page = f"{page} -H 'Sec-Fetch-Mode: navigate'"
        signed_in = subprocess.check_output(["sh", "-c", page], text=True)
        again = made(tmp_path, PORT=port)
        told, errors = again.communicate(timeout=60)
    finally:
        os.killpg(running.pid, signal.SIGTERM)
        rest, _ = running.communicate(timeout=60)

    assert "open this page" not in rest  # a second time
    assert answer.startswith('{"data": []')
    assert words == "Or open this page"
    assert link.startswith(f"http://127.0.0.1:{port}/ui/sign-in/")
    assert signed_in.startswith("HTTP/1.1 303 ")
    assert "\nLocation: /ui/\n" in signed_in
    assert "\nSet-Cookie: abacus_token=" in signed_in
    assert again.returncode != 0 and told == ""
    said, of_make = errors.splitlines()
    assert said.startswith(f"Port {port} cannot be used, perhaps because Abacus runs")
    assert 'as in "make run PORT=8001"' in said
    assert of_make.startswith("make: ***")


def test_what_is_no_port_is_refused_in_the_same_way(tmp_path):
    refused = made(tmp_path, PORT="abc")
    told, errors = refused.communicate(timeout=60)

    assert refused.returncode != 0 and told == ""
    assert re.match("Port abc cannot be used, ", errors)
    assert not (tmp_path / "abacus.db").exists()
