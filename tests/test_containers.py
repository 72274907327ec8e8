"""The files for Docker, Patroni and PgBouncer, as far as they run without them."""

import configparser
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest
import service as real
import yaml
from conftest import SECRET, Caller, leave_out, two_variants
from flask_jwt_extended import create_access_token
from psycopg.conninfo import conninfo_to_dict

from app import create_app
from ledger import proof
from storage import engine, factory
from web.settings import SETTINGS

DEPLOY = real.ROOT / "deploy"
NAMES = {one.name for one in SETTINGS}
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()


def read(name):
    return yaml.safe_load((DEPLOY / name).read_text())


def instruction(word):
    """Return the arguments of each instruction of the Dockerfile with this word."""
    return re.findall(rf"^{word} (.*)$", DOCKERFILE, re.MULTILINE)


@contextmanager
def contained(tmp_path):
    """Run the command of the Dockerfile, on a port of its own."""
    (command,) = instruction("CMD")
    shell, flag, line = yaml.safe_load(command)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert line.count("0.0.0.0:8000") == 1
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    process = subprocess.Popen(
        [shell, flag, line.replace("0.0.0.0:8000", f"127.0.0.1:{port}")],
        cwd=real.ROOT,
        env={**real.environment(tmp_path / "instance"), "PATH": path},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        yield port
    finally:
        process.terminate()
        assert process.wait(30) == 0  # gunicorn has the shell's place, and the signal


def test_the_image_copies_what_there_is_and_installs_what_is_pinned():
    copied = [words.split()[0] for words in instruction("COPY")]

    assert copied == ["requirements.txt", "."]
    assert all((real.ROOT / name).exists() for name in copied)
    assert "--require-hashes -r requirements.txt" in DOCKERFILE
    assert instruction("USER") == ["abacus"]
    ignored = (real.ROOT / ".dockerignore").read_text().split()
    assert {".venv", "instance", ".git"} <= set(ignored)


def test_the_command_of_the_image_creates_a_database_and_serves(tmp_path):
    check = read("compose.yaml")["services"]["abacus"]["healthcheck"]["test"]

    with contained(tmp_path) as port:

        def is_ready():
            line = check[3].replace("127.0.0.1:8000", f"127.0.0.1:{port}")
            done = subprocess.run(
                [sys.executable, *check[2:3], line], capture_output=True, check=False
            )
            return done.returncode == 0

        real.wait_until(is_ready, 30)
        with urlopen(f"http://127.0.0.1:{port}/readyz") as answer:
            assert answer.status == 200
        assert (tmp_path / "instance" / "abacus.db").exists()


def test_the_compose_files_name_settings_and_keep_the_data():
    plain, postgresql = read("compose.yaml"), read("compose.postgresql.yaml")
    service = plain["services"]["abacus"]
    settings = postgresql["services"]["abacus"]["environment"]

    assert set(settings) <= NAMES
    (instance,) = instruction("ENV")
    (volume,) = service["volumes"]
    assert instance == f"INSTANCE={volume.partition(':')[2]}"
    assert volume.partition(":")[0] in plain["volumes"]
    built = (DEPLOY / service["build"]["context"]).resolve()
    assert (built / service["build"]["dockerfile"]) == DEPLOY / "Dockerfile"
    url = settings["DATABASE_URL"].replace("${POSTGRES_PASSWORD:?}", "secret")
    database = postgresql["services"]["database"]
    assert conninfo_to_dict(factory.database_at(url).url) == {
        "user": database["environment"]["POSTGRES_USER"],
        "password": "secret",
        "host": "database",
        "dbname": database["environment"]["POSTGRES_DB"],
    }
    assert "database" in postgresql["services"]["abacus"]["depends_on"]


def test_the_cluster_answers_only_what_is_on_two_machines():
    node = read("patroni.yml")

    assert node["bootstrap"]["dcs"]["synchronous_mode"] is True
    assert "data-checksums" in node["bootstrap"]["initdb"]
    assert {"superuser", "replication", "rewind"} == set(
        node["postgresql"]["authentication"]
    )
    assert len(node["etcd3"]["hosts"]) == 3


# ----------------------------------------------------------------------------
# PgBouncer
# ----------------------------------------------------------------------------


@pytest.fixture
def pooled(database_url, tmp_path_factory):
    """Return the URL of the database through PgBouncer, with our settings."""
    program = shutil.which("pgbouncer")
    if program is None:
        leave_out("pgbouncer is not installed")
    settings = configparser.ConfigParser()
    settings.read(DEPLOY / "pgbouncer.ini")
    parts = conninfo_to_dict(database_url)
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)  # pgbouncer refuses to run as root
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    (folder / "users.txt").write_text('"postgres" ""\n')
    settings["databases"] = {
        parts["dbname"]: f"host={parts['host']} user={parts['user']}"
    }
    settings["pgbouncer"].update(
        listen_addr="127.0.0.1",
        listen_port=port,
        auth_type="any",
        auth_file=str(folder / "users.txt"),
        default_pool_size="3",  # fewer than our connections: they are shared
        unix_socket_dir="",
        logfile=str(folder / "log"),
    )
    if os.geteuid() == 0:
        # Whoever the server runs as may open its socket.
        owner = Path(str(parts["host"])).stat().st_uid
        settings["pgbouncer"]["user"] = pwd.getpwuid(owner).pw_name
    with (folder / "pgbouncer.ini").open("w") as file:
        settings.write(file)
    process = subprocess.Popen([program, "-q", str(folder / "pgbouncer.ini")])
    try:
        real.wait_until(lambda: answers(int(port)), 10)
        yield f"postgresql://postgres@127.0.0.1:{port}/{parts['dbname']}"
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder)


def answers(port):
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


@pytest.mark.postgresql
def test_every_promise_holds_through_pgbouncer(pooled):
    app = create_app(
        {"TESTING": True, "JWT_SECRET_KEY": SECRET, "DATABASE_URL": pooled}
    )
    with app.app_context():
        caller = Caller(app, create_access_token("tester"))
    body = {"name": "Through a pooler", "variants": two_variants()}
    path = f"experiments/{caller.post('experiments', body).json['data']['id']}"
    assert caller.post(f"{path}/start").status_code == 200

    def act(number):
        answers = []
        for turn in range(20):
            user = {"userId": f"u{number}-{turn}"}
            answers.append(caller.post(f"{path}/assignments", user))
            event = {**user, "value": 1, "idempotencyKey": f"k{number}-{turn}"}
            answers.append(caller.post(f"{path}/conversions", event))
            answers.append(caller.get(f"{path}/results"))
        return [answer.status_code for answer in answers]

    with ThreadPoolExecutor(8) as threads:
        told = list(threads.map(act, range(8)))

    assert told == [[201, 201, 200] * 20] * 8
    lines = caller.get(f"{path}/export?format=csv").text.splitlines()
    assert len(lines) == 1 + 8 * 20
    assert caller.post(f"{path}/stop").status_code == 200
    late = caller.post(f"{path}/assignments", {"userId": "late"}).json["data"]
    assert late["enrolled"] is False
    with engine.using(app.extensions["database"]) as database:
        assert list(proof.discrepancies()) == []
        database.shut()
