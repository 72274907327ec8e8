"""A database that is locked, full, read-only, damaged or late, and a clock set back."""

import itertools
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import service as real
from conftest import leave_out
from service import wait_until
from traffic import Caller, Traffic, locked


def health_until(service, done):
    """Return how long the slowest answer of /healthz took until *done* is set."""
    slowest = 0.0
    while not done.wait(0.05):
        began = time.monotonic()
        assert service("GET", "/healthz")[0] == 200
        slowest = max(slowest, time.monotonic() - began)
    return slowest


def under_lock(service, seconds):
    """Return the traffic of 24 callers of a locked database, and the health's worst."""
    traffic = Traffic(service, service.running())
    with traffic.flowing(24):
        wait_until(lambda: traffic.acknowledged() > 50, 30)
        with locked(service, seconds):
            traffic.spent.clear()
            done = threading.Event()
            timer = threading.Timer(seconds - 0.2, done.set)
            timer.start()
            slowest = health_until(service, done)
        before = traffic.acknowledged()
        wait_until(lambda: traffic.acknowledged() > before + 20, 30)
    assert traffic.proved() == []
    return traffic, slowest


def percentile(spent, share):
    return sorted(spent)[min(len(spent) - 1, int(share * len(spent)))]


@pytest.mark.alone
def test_f6_a_lock_that_another_holds_for_3_seconds_is_waited_for(tmp_path, figure):
    with real.served(tmp_path / "instance") as service:
        traffic, health = under_lock(service, 3)

    p99 = percentile(traffic.spent, 0.99)
    assert not [status for status in traffic.statuses if status >= 500]
    assert p99 <= 3.5
    assert health <= 0.2
    figure(
        "F6 lock held 3 s, 24 writers",
        answers=sum(traffic.statuses.values()),
        answered_5xx=0,
        write_p99=f"{p99:.2f} s",
        health=f"{health:.3f} s",
        violations=0,
    )


@pytest.mark.alone
def test_f7_a_lock_that_another_holds_for_10_seconds_is_503(tmp_path, thorough, figure):
    with real.served(tmp_path / "instance") as service:
        traffic, health = under_lock(service, 10)

    assert traffic.statuses[503] > 0
    assert not [one for one in traffic.statuses if one >= 500 and one != 503]
    assert max(traffic.spent) <= 6.5
    assert health <= 0.2
    figure(
        "F7 lock held 10 s, 24 writers",
        answered_503=traffic.statuses[503],
        answered_500=0,
        longest_wait=f"{max(traffic.spent):.2f} s",
        health=f"{health:.3f} s",
        violations=0,
    )


@pytest.fixture
def disk(tmp_path):
    """Yield a small disk of its own, mounted; skip where that is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "none", str(place)]
    if subprocess.run(command, capture_output=True).returncode:
        leave_out("this user may not mount a disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(ballast):
    """Write until no byte fits any more."""
    with ballast.open("ab", buffering=0) as file:
        for size in (65_536, 4_096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue


@pytest.mark.alone
def test_f8_a_full_disk_is_503_until_there_is_room(disk, rounds, figure):
    seconds = 5 if rounds >= 20 else 2
    with real.served(disk) as service:
        traffic = Traffic(service, service.running(), batch_every=20)
        with traffic.flowing(8):
            wait_until(lambda: traffic.acknowledged() > 100, 30)
            fill(disk / "ballast")
            wait_until(lambda: traffic.statuses[503] > 0, 30)
            assert service("GET", traffic.path)[0] == 200
            wait_until(lambda: service("GET", "/readyz")[0] == 503, 15)
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                fill(disk / "ballast")
                assert service("GET", traffic.path)[0] == 200
                assert service("GET", f"{traffic.path}/results")[0] == 200
                assert service("GET", "/healthz")[0] == 200
            (disk / "ballast").unlink()
            before = traffic.acknowledged()
            writing = wait_until(lambda: traffic.acknowledged() > before, 10)
            ready = wait_until(lambda: service("GET", "/readyz")[0] == 200, 10)
        assert traffic.proved() == []
        assert "SQLITE_FULL" in service.log.read_text()

    assert not [one for one in traffic.statuses if one >= 500 and one != 503]
    assert writing <= 1
    figure(
        f"F8 disk full {seconds} s",
        acknowledged=traffic.acknowledged(),
        missing=0,
        answered_503=traffic.statuses[503],
        answered_500=0,
        writing_after=f"{writing:.2f} s",
        ready_after=f"{ready:.2f} s",
    )


def remount(disk, mode):
    """Mount it anew; a process that was killed may hold it a moment longer."""
    command = ["mount", "-o", f"remount,{mode}", str(disk)]
    wait_until(lambda: not subprocess.run(command, capture_output=True).returncode, 10)


def test_f9_a_read_only_disk_is_read_and_503_to_writes(disk, figure):
    with real.served(disk) as service:
        traffic = Traffic(service, service.running())
        with traffic.flowing(1):
            wait_until(lambda: traffic.acknowledged() > 5, 30)
        caller = Caller(traffic)
        caller.enrol("first")
        caller.close()
        service.kill()  # what is beside the database stays there to read by
        remount(disk, "ro")
        service.start("/healthz")

        assert service("GET", f"{traffic.path}/assignments/first")[0] == 200
        status, answer = service(
            "POST", f"{traffic.path}/assignments", {"userId": "new"}
        )
        assert (status, answer["error"]["code"]) == (503, "UNAVAILABLE")
        assert answer["error"]["message"].startswith("The database is read-only")
        assert service("GET", "/readyz")[0] == 503
        assert service("GET", "/healthz")[0] == 200
        remount(disk, "rw")
        ready = wait_until(lambda: service("GET", "/readyz")[0] == 200, 10)
        with traffic.flowing(8):
            before = traffic.acknowledged()
            wait_until(lambda: traffic.acknowledged() > before + 50, 30)
        assert traffic.proved() == []
        service.stop()  # in order: nothing is left beside the database
        remount(disk, "ro")
        service.start("/healthz")
        for method, path, body in (
            ("GET", traffic.path, None),
            ("POST", f"{traffic.path}/assignments", {"userId": "new"}),
            ("GET", "/readyz", None),
        ):
            assert service(method, path, body)[0] == 503
        remount(disk, "rw")
        wait_until(lambda: service("GET", "/readyz")[0] == 200, 10)
        assert traffic.proved() == []

    figure("F9 read-only disk", answered_500=0, ready_after=f"{ready:.2f} s")


def header(file):
    file.write_bytes(b"\xff" * 100 + file.read_bytes()[100:])


def page(file):
    held = bytearray(file.read_bytes())
    held[4096 * 3 : 4096 * 4] = b"\xff" * 4096
    file.write_bytes(held)


@pytest.mark.parametrize("damage", [header, page, Path.unlink, "empty"])
def test_f10_a_damaged_or_missing_database_is_refused_and_not_made_anew(
    tmp_path, damage, figure
):
    instance = tmp_path / "instance"
    real.prepare(instance)
    file = instance / "abacus.db"
    if damage == "empty":
        file.write_bytes(b"")
    else:
        damage(file)
    before = file.read_bytes() if file.exists() else None

    # A page is looked at by `init`, which comes before each start.
    refused = (
        real.flask(instance, "init", check=False)
        if damage is page
        else subprocess.run(
            [*real.GUNICORN, "--bind", "127.0.0.1:0"],
            cwd=real.ROOT,
            env=real.environment(instance),
            capture_output=True,
            text=True,
            timeout=30,
        )
    )

    assert refused.returncode != 0
    assert "database" in refused.stderr
    assert (file.read_bytes() if file.exists() else None) == before
    figure(f"F10 {getattr(damage, '__name__', damage)}", refused="1 of 1")


def test_f13_of_several_that_boot_first_all_succeed(tmp_path, rounds, thorough, figure):
    program = (
        "import models, sys; from storage import factory, schema; "
        "print(schema.create(factory.database_at(sys.argv[1]), models.TABLES))"
    )
    boots = 5 * rounds
    for number in range(boots):
        url = f"sqlite:///{tmp_path / str(number) / 'abacus.db'}"
        started = [
            subprocess.Popen(
                [sys.executable, "-c", program, url],
                cwd=real.ROOT,
                text=True,
                stdout=subprocess.PIPE,
            )
            for _ in range(4)
        ]
        outputs = sorted(one.communicate(timeout=60)[0].strip() for one in started)
        assert outputs == ["made", "there", "there", "there"]
        assert [one.returncode for one in started] == [0] * 4
    figure("F13 first boot of 4 at once", boots=boots, failures=0)


def read_whole(service, token, path):
    """Return the status, once another program has read the body to its end."""
    url = f"http://127.0.0.1:{service.port}/api/{path}"
    finished = subprocess.run(
        [
            *("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", url),
            *("-H", f"Authorization: Bearer {token}"),
        ],
        capture_output=True,
        check=True,
    )
    return int(finished.stdout)


class Writer:
    """A caller that writes 20 times a second, and watches the size of the log."""

    def __init__(self, traffic):
        self.traffic = traffic
        self.log = traffic.service.instance / "abacus.db-wal"
        self.numbers = itertools.count()
        self.largest = 0

    def p99(self, seconds):
        """Write for so many seconds; return the 99th percentile of the latency."""
        caller, spent = Caller(self.traffic), []
        end = time.monotonic() + seconds
        while (began := time.monotonic()) < end:
            caller.enrol(f"u{next(self.numbers)}")
            spent.append(time.monotonic() - began)
            self.largest = max(self.largest, self.log.stat().st_size)
            time.sleep(max(0, began + 0.05 - time.monotonic()))
        caller.close()
        return percentile(spent, 0.99)


def twenty_thousand(service):
    """Return the traffic of an experiment that has 20,000 converted users already."""
    traffic = Traffic(service, service.running(), batch_every=10**9)
    for batch in range(2):
        users = [{"userId": f"x{batch}-{number}"} for number in range(10_000)]
        path = f"{traffic.path}/assignments/batch"
        service.data("POST", path, {"users": users})
        rows = [{**user, "value": 1} for user in users]
        path = f"{traffic.path}/conversions/batch"
        service.data("POST", path, {"conversions": rows})
    return traffic


@contextmanager
def overlapping_readers(service, path):
    """Let four readers, each with a token of its own, read a path again and again.

    Yield the list of statuses. A reader that is refused (429) asks again soon.
    """
    over, statuses = threading.Event(), []

    def read(token):
        while not over.is_set():
            statuses.append(read_whole(service, token, path))
            if statuses[-1] == 429:
                over.wait(0.1)

    tokens = [
        real.flask(service.instance, "token", f"reader-{number}").stdout.strip()
        for number in range(4)
    ]
    with ThreadPoolExecutor(4) as readers:
        reading = [readers.submit(read, token) for token in tokens]
        try:
            yield statuses
        finally:
            over.set()
        for reader in reading:
            reader.result()


@pytest.mark.alone
def test_f14_readers_that_overlap_grow_no_log_and_stop_no_writer(
    tmp_path, thorough, figure
):
    with real.served(tmp_path / "instance") as service:
        traffic = twenty_thousand(service)
        path = f"{traffic.path}/export?format=ndjson"
        writer = Writer(traffic)

        alone = writer.p99(15)
        with overlapping_readers(service, path) as statuses:
            together = writer.p99(60)
        assert traffic.wrong == []

    figure(
        "F14 60 s of 4 overlapping readers",
        reads=statuses.count(200),
        refused=statuses.count(429),
        path="export?format=ndjson",
        log=f"{writer.largest / 2**20:.1f} MiB",
        write_p99=f"{together * 1000:.0f} ms, alone {alone * 1000:.0f} ms",
    )
    assert set(statuses) <= {200, 429}
    assert statuses.count(200) >= 60
    assert writer.largest <= 64 * 2**20
    assert together <= alone + 0.1


@pytest.fixture
def clock(tmp_path):
    """Return a file of seconds, and the settings that add them to a service's clock."""
    if shutil.which("gcc") is None:
        leave_out("no compiler; .ci/run installs it")
    offset, shim = tmp_path / "clock", tmp_path / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", shim, source], check=True)
    offset.write_text("0")
    return offset, {"LD_PRELOAD": str(shim), "CLOCK": str(offset), "JWT_LEEWAY": "60"}


def test_f15_a_clock_set_back_30_seconds_loses_nothing(tmp_path, clock, figure):
    offset, settings = clock
    with real.served(tmp_path / "instance", **settings) as service:
        traffic = Traffic(service, service.running())
        caller = Caller(traffic)
        for number in range(100):
            caller.enrol(f"u{number}")
        before = service.data("GET", f"{traffic.path}/assignments/u0")["assignedAt"]
        offset.write_text("-30")
        for number in range(100, 200):
            caller.enrol(f"u{number}")
        for number in range(200):  # half of them were enrolled in the future
            caller.convert(f"u{number}", f"k{number}", number)
            caller.convert(f"u{number}", f"k{number}", number)
        after = service.data("GET", f"{traffic.path}/assignments/u199")["assignedAt"]
        pages = [
            service.data("GET", f"{traffic.path}/assignments?limit=100&page={number}")
            for number in (1, 2)
        ]
        service.data("POST", f"{traffic.path}/stop")
        service.data("POST", f"{traffic.path}/complete", {"conclusion": "lost"})
        caller.close()
        assert traffic.proved() == []

    assert after < before  # the clock was set back indeed
    listed = [one["userId"] for page in pages for one in page]
    assert listed == [f"u{number}" for number in reversed(range(200))]
    assert len(traffic.keys) == 200
    figure("F15 clock set back 30 s", enrolled=200, conversions=200, missing=0)
