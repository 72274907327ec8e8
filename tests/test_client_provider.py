"""The provider for Python in front of a real service, which comes and goes."""

import asyncio
import itertools
import shutil
import statistics
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import service as real
from abacus_openfeature import AbacusProvider
from openfeature import api as openfeature
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import Reason
from openfeature.track import TrackingEventDetails

from clients import (
    ADULT_PAYERS,
    CONFIGURED,
    PAYERS,
    adapted,
    by_hash,
    counted,
    example,
    one_of,
    participants,
    rows_of,
    said,
    stored,
    user,
    variants_of,
)

CLIENT = real.ROOT / "clients" / "python"


@contextmanager
def provided(service, local=True, **options):
    """Yield a provider of a service, and a client of OpenFeature that uses it."""
    # Nothing happens by itself: tests ask for each refresh and each report.
    options = {"refresh_seconds": 600, "report_seconds": 600, **options}
    provider = AbacusProvider(service.url, service.token, local=local, **options)
    openfeature.set_provider_and_wait(provider)
    try:
        yield provider, openfeature.get_client()
    finally:
        openfeature.clear_providers()


def shown(client, user_id, key="checkout", **attributes):
    """Return the variant of the user, which may be `not_enrolled`."""
    details = client.get_string_details(key, "default", user(user_id, **attributes))
    assert details.error_code is None, details.error_message
    assert (details.value == "default") is (details.variant == "not_enrolled")
    return details.variant


# ---------------------------------------------------------------------------
# Local


def test_a_local_provider_gives_1000_users_what_the_service_gives_them(service):
    path = service.running(key="checkout", variants=CONFIGURED)
    with provided(service) as (provider, client):
        for _ in range(3):  # each is reported once
            variants = {f"user-{n}": shown(client, f"user-{n}") for n in range(1_000)}
        assert participants(service, path) == 0
        assert provider.flush()
        counters = provider.counters
        assert participants(service, path) == 1_000
        config = client.get_object_details("checkout.config", {"steps": 0}, user("u1"))
        assert provider.flush()

    assert variants_of(stored(service, path, variants)) == variants
    assert counters == {
        **dict.fromkeys(counters, 0),
        "enrolments_queued": 1_000,
        "enrolments_sent": 1_000,
    }
    wanted = {"v1": {"steps": 0}, "v2": {"steps": 5, "rate": 0.1}}
    assert config.value == wanted[config.variant]
    assert config.reason == Reason.SPLIT


def test_what_the_application_does_with_a_config_stays_with_it(service):
    path = service.running(key="checkout", variants=CONFIGURED)
    context = user(one_of(path, "v2"))
    with provided(service) as (_, client):
        config = client.get_object_value("checkout.config", {}, context)
        config["steps"] = 99
        assert client.get_object_value("checkout.config", {}, context)["steps"] == 5


@pytest.mark.one_engine
def test_in_each_state_the_provider_answers_as_the_service(service):
    service.data("PUT", "audiences/aud_payers", {"name": "Payers", "ruleTree": PAYERS})
    paths = {
        "paid": service.running(key="paid", audienceId="aud_payers"),
        "won": service.running(key="won"),
        "held": service.running(key="held", trafficPercentage=0.01),
        "apart": service.running(
            key="apart", trafficPercentage=0.01, exclusionGroup="page"
        ),
        "forced": service.running(key="forced"),
    }
    body = {"conclusion": "won", "winnerVariantId": "v2"}
    service.data("POST", f"{paths['won']}/complete", body)
    service.data("PUT", f"{paths['forced']}/overrides/u1", {"variantId": "v2"})
    service.data("POST", f"{paths['forced']}/stop")
    cases = [
        (key, "u1" if key.startswith("forced") else f"a-{plan}-user", {"plan": plan})
        for key in (*paths, *(f"{key}.config" for key in paths))
        for plan in ("free", "pro")
    ]
    # A user who has become a payer stays one, so that each has an id of their own.
    cases = [(key, user(f"{user_id}", **facts)) for key, user_id, facts in cases]

    def answers(client):
        found = []
        for key, context in cases:
            details = client.get_string_details(key, "default", context)
            if key.endswith(".config"):
                details = client.get_object_details(key, {}, context)
            metadata = dict(details.flag_metadata)
            found.append(
                (key, details.value, details.reason, details.variant, metadata)
            )
        return found

    with provided(service) as (provider, client):
        local = answers(client)
        assert provider.flush()
    with provided(service, local=False) as (_, client):
        remote = answers(client)

    assert local == remote
    assert len({(reason, variant) for _, _, reason, variant, _ in local}) >= 4
    in_all = sum(participants(service, path) for path in paths.values())
    assert in_all == participants(service, paths["paid"]) == 1


@pytest.mark.one_engine
@pytest.mark.parametrize("local", [True, False])
def test_what_cannot_be_evaluated_leaves_the_default(service, local):
    path = service.running(key="checkout")
    cases = (
        ("nope", user("u1"), ErrorCode.FLAG_NOT_FOUND),
        ("Zoë/用户", user("u1"), ErrorCode.FLAG_NOT_FOUND),
        ("checkout", None, ErrorCode.TARGETING_KEY_MISSING),
        ("checkout", user(""), ErrorCode.TARGETING_KEY_MISSING),
        ("checkout", user(" undefined "), ErrorCode.INVALID_CONTEXT),
        ("checkout", user("x" * 256), ErrorCode.INVALID_CONTEXT),
        ("checkout", user("\ud800"), ErrorCode.INVALID_CONTEXT),
    )
    with provided(service, local) as (provider, client):
        for key, context, code in cases:
            details = client.get_string_details(key, "default", context)
            assert (details.value, details.error_code) == ("default", code), key
        assert provider.flush()
        assert participants(service, path) == 0
        number = client.get_integer_details("checkout", 7, user("u1"))
        assert (number.value, number.error_code) == (7, ErrorCode.TYPE_MISMATCH)


@pytest.mark.one_engine
def test_the_async_methods_give_the_same(service):
    service.running(key="checkout", variants=CONFIGURED)
    for local in (True, False):
        with provided(service, local) as (_, client):
            ask = client.get_string_details_async("checkout", "default", user("u1"))
            assert asyncio.run(ask).variant == shown(client, "u1")


# ---------------------------------------------------------------------------
# Where the service says something else


@pytest.mark.one_engine
def test_after_the_report_a_user_gets_the_variant_that_was_imported(service, tmp_path):
    path = service.running(key="checkout")
    user_id = one_of(path, "v1")
    file = tmp_path / "old.csv"
    file.write_text(f"user_id,variant,timestamp\n{user_id},v2,2025-01-01T00:00:00Z\n")
    service.flask("import", "checkout", str(file))

    with provided(service) as (provider, client):
        assert shown(client, user_id) == "v1"
        assert provider.flush()
        assert [shown(client, user_id) for _ in range(3)] == ["v2"] * 3
        assert provider.counters["enrolments_queued"] == 1
    assert participants(service, path) == 1


@pytest.mark.one_engine
def test_after_the_report_a_user_whose_attributes_changed_keeps_the_variant(service):
    service.data("PUT", "audiences/aud_payers", {"name": "Payers", "ruleTree": PAYERS})
    path = service.running(key="checkout", audienceId="aud_payers")
    with provided(service) as (provider, client):
        variant = shown(client, "u1", plan="pro")
        assert shown(client, "u1", plan="free") == variant  # in the same process
        assert provider.flush()
    with provided(service) as (provider, client):  # in another one
        assert shown(client, "u1", plan="free") == "not_enrolled"
        assert provider.flush()
        assert shown(client, "u1", plan="free") == variant
        # Whoever has no row stays outside, and is asked about once.
        for _ in range(3):
            assert shown(client, "u2", plan="free") == "not_enrolled"
            assert provider.flush()
        assert provider.counters["enrolments_queued"] == 2
        assert participants(service, path) == 1
        # A user who comes to match is enrolled then.
        assert shown(client, "u2", plan="pro") != "not_enrolled"
        assert provider.flush()
        assert participants(service, path) == 2
    with provided(service, follow_refused=False) as (provider, client):
        assert shown(client, "u3", plan="free") == "not_enrolled"
        assert provider.counters["enrolments_queued"] == 0


@pytest.mark.one_engine
def test_after_a_stop_nobody_is_enrolled_and_who_is_keeps_the_variant(service):
    path = service.running(key="checkout")
    with provided(service) as (provider, client):
        variant = shown(client, "early")
        assert provider.flush()
        service.data("POST", f"{path}/stop")
        # Until the next refresh the provider does not know, but the service does.
        assert shown(client, "between") != "not_enrolled"
        assert provider.flush()
        assert shown(client, "between") == "not_enrolled"
        assert provider.refresh()
        assert shown(client, "early") == variant
        assert shown(client, "late") == "not_enrolled"
    with provided(service) as (provider, client):
        shown(client, "early")
        assert provider.flush()
        assert shown(client, "early") == variant
        service.data("POST", f"{path}/resume")
        assert provider.refresh()
        assert shown(client, "late") != "not_enrolled"
        assert provider.flush()
    assert participants(service, path) == 2


@pytest.mark.one_engine
def test_after_an_override_is_gone_the_user_is_enrolled(service):
    path = service.running(key="checkout")
    with provided(service) as (provider, client):
        service.data("PUT", f"{path}/overrides/u1", {"variantId": "v2"})
        shown(client, "u1")  # with the definitions of before
        assert provider.flush()
        assert provider.refresh()
        assert shown(client, "u1") == "v2"
        service("DELETE", f"{path}/overrides/u1")
        assert provider.refresh()
        assert shown(client, "u1") == by_hash(path, "u1")
        assert provider.flush()
    assert participants(service, path) == 1


# ---------------------------------------------------------------------------
# While the service is away


def test_each_enrolment_and_event_counts_once_though_the_service_is_killed(service):
    path = service.running(key="checkout")
    with provided(service, report_seconds=0.01, timeout=2) as (provider, client):
        for number in range(3_000):
            if number in (500, 1_700):
                service.kill()
            if number in (1_200, 2_400):
                service.start()
            context = user(f"user-{number}")
            assert shown(client, f"user-{number}") == by_hash(path, f"user-{number}")
            client.track("conversion", context)
            client.track("order", context, TrackingEventDetails(0.1))
            if number % 10 == 0:
                time.sleep(0.002)  # the sender has its turn, as between page views
        assert provider.flush(60)
        counters = provider.counters

    assert participants(service, path) == 3_000
    assert counted(service, path) == (3_000, 3_000)
    assert counted(service, path, "order") == (3_000, 3_000)
    sums = [row["value"]["sum"] for row in rows_of(service, path, "order")]
    assert round(sum(sums), 6) == 300
    quality = service.data("GET", f"{path}/results")["quality"]
    assert (quality["beforeEnrollment"], quality["notEnrolled"]) == (0, 0)
    assert counters["attempts_failed"] > 0
    assert counters["enrolments_queued"] == counters["enrolments_sent"] == 3_000
    assert counters["events_queued"] == counters["events_sent"] == 6_000
    assert counters["events_dropped"] == counters["enrolments_dropped"] == 0


@pytest.mark.one_engine
def test_an_application_that_starts_without_the_service_decides_from_the_disk(
    service, tmp_path
):
    path, file = service.running(key="checkout"), tmp_path / "definitions.json"
    with provided(service, cache_file=file) as (_, client):
        variant = shown(client, "u1")
    assert file.stat().st_mode & 0o777 == 0o600
    whole = file.read_bytes()
    service.kill()
    with provided(service, cache_file=file, timeout=1) as (provider, client):
        assert shown(client, "u1") == variant
        assert not provider.flush(0.1)
        client.track("conversion", user("u1"))
        service.start()
        assert provider.flush(30)
        assert provider.refresh()
    assert participants(service, path) == 1
    assert counted(service, path) == (1, 1)
    assert file.read_bytes() == whole


@pytest.mark.one_engine
@pytest.mark.parametrize("content", [b"", b"{", b'{"data": {"version": 2}}', None])
def test_without_any_definitions_the_default_holds_until_there_are_some(
    service, tmp_path, content
):
    service.running(key="checkout")
    file = tmp_path / "definitions.json"
    if content is not None:
        file.write_bytes(content)
    service.kill()
    with provided(service, cache_file=file, timeout=1) as (provider, client):
        details = client.get_string_details("checkout", "default", user("u1"))
        assert details.error_code == ErrorCode.PROVIDER_NOT_READY
        assert details.value == "default"
        service.start()
        assert provider.refresh()
        assert shown(client, "u1") != "not_enrolled"
    assert file.read_bytes().startswith(b'{"data": {"version": 1')


@pytest.mark.one_engine
def test_the_definitions_follow_the_service_in_the_background(service):
    with provided(service, refresh_seconds=0.05) as (_, client):
        service.running(key="later")

        def is_there():
            details = client.get_string_details("later", "default", user("u1"))
            return details.error_code is None

        real.wait_until(is_there, 10)


@pytest.mark.one_engine
def test_a_remote_provider_gives_the_default_while_the_service_is_away(service):
    path = service.running(key="checkout")
    with provided(service, local=False, timeout=1) as (provider, client):
        variant = shown(client, "u1")
        service.kill()
        details = client.get_string_details("checkout", "default", user("u1"))
        assert (details.value, details.error_code) == ("default", ErrorCode.GENERAL)
        client.track("conversion", user("u1"))
        service.start()
        assert shown(client, "u1") == variant
        assert provider.flush(30)
    assert counted(service, path) == (1, 1)


@pytest.mark.one_engine
@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("wrong", ["token", "address", "flag"])
def test_one_line_says_why_the_default_holds(service, local, wrong, caplog):
    service.running(key="checkout")
    lines = said("python", service)
    if wrong == "token":
        service.token = "wrong"
    if wrong == "address":
        service.stop()
    key = "nope" if wrong == "flag" else "checkout"
    with provided(service, local, shutdown_seconds=0) as (provider, client):
        for number in range(100):
            context = user(f"u{number}")
            assert client.get_string_value(key, "default", context) == "default"
        if wrong != "flag":
            client.track("conversion", user("u1"))
            while not provider.counters["attempts_failed"]:
                assert not provider.flush(0.1)
        assert caplog.messages == [lines[wrong]]


class Elsewhere(BaseHTTPRequestHandler):
    """Whatever may answer where the service should: a proxy, or a page to log in."""

    answers = itertools.cycle(
        [
            (200, b"<html>Please log in</html>"),
            (200, b"[]"),
            (200, b'{"data": []}'),
            (302, b""),
            (400, b"<html>Bad request</html>"),
            (404, b"<html>Not found</html>"),
            (503, b'{"error": {}}'),
        ]
    )

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tokens.append((self.path, self.headers["Authorization"]))
        status, body = next(self.answers)
        self.send_response(status)
        self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Print nothing."""


def test_an_answer_that_is_not_of_the_service_loses_no_report(caplog):
    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        server.tokens = []
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}"
        provider = AbacusProvider(url, lambda: "t", shutdown_seconds=0)
        provider.track("conversion", user("u1"))
        while len(server.tokens) < 14:
            assert not provider.flush(0.1)
        counters = provider.counters
        provider.shutdown()
        server.shutdown()

    assert set(server.tokens) == {("/api/events/batch", "Bearer t")}
    assert counters["events_waiting"] == 1
    assert counters["events_refused"] == counters["events_sent"] == 0
    assert counters["attempts_failed"] >= 13
    assert provider.counters["events_dropped"] == 1
    assert "1 reports are lost" in caplog.text


# ---------------------------------------------------------------------------
# Bounds


@pytest.mark.one_engine
def test_a_full_queue_drops_and_counts_and_reports_the_user_later(service):
    path = service.running(key="checkout")
    with provided(service, queue_size=10) as (provider, client):
        for number in range(25):
            assert shown(client, f"u{number}") == by_hash(path, f"u{number}")
            client.track("conversion", user(f"u{number}"))
        counters = provider.counters
        assert counters["enrolments_waiting"] == counters["events_waiting"] == 10
        assert counters["enrolments_dropped"] == counters["events_dropped"] == 15
        assert provider.flush()
        assert participants(service, path) == 10
        for start in (10, 20):
            for number in range(start, min(start + 10, 25)):
                shown(client, f"u{number}")
            assert provider.flush()
        assert participants(service, path) == 25


@pytest.mark.one_engine
def test_what_the_service_refuses_takes_nothing_else_with_it(service):
    service.data("PUT", "audiences/aud_payers", {"name": "Payers", "ruleTree": PAYERS})
    path = service.running(key="checkout", audienceId="aud_payers")
    with provided(service) as (provider, client):
        for number in range(20):
            odd = {"note": "a\0b"} if number == 13 else {}
            shown(client, f"u{number}", plan="pro", **odd)
        for number in range(20):
            metric = "x" * 300 if number == 7 else "conversion"
            client.track(metric, user(f"u{number}"))
        assert provider.flush()
        counters = provider.counters

    assert participants(service, path) == 19
    assert (counters["enrolments_sent"], counters["enrolments_refused"]) == (19, 1)
    assert (counters["events_sent"], counters["events_refused"]) == (19, 1)
    assert counted(service, path) == (18, 18)


@pytest.mark.one_engine
def test_to_track_raises_nothing_and_repeats_nothing(service):
    path = service.running(key="checkout")
    with provided(service) as (provider, client):
        shown(client, "u1")
        for context in (None, user(""), user("null"), user("\ud800")):
            client.track("conversion", context)
        client.track("conversion", user("u1"), TrackingEventDetails("x"))
        client.track("conversion", user("u1"), TrackingEventDetails(float("nan")))
        assert provider.counters["events_refused"] == 4
        for _ in range(3):
            details = TrackingEventDetails(2, {"idempotencyKey": "order-1"})
            client.track("order", user("u1"), details)
        assert provider.flush()
    assert counted(service, path, "order") == (1, 1)


# ---------------------------------------------------------------------------
# Programs


def ran(text, folder):
    """Run a program as an application would; it must end well."""
    file = folder / "program.py"
    file.write_text(text)
    ended = subprocess.run(
        [sys.executable, str(file)],
        env={"PYTHONPATH": str(CLIENT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    return ended.stdout


@pytest.mark.one_engine
def test_the_example_of_the_readme_counts_a_conversion_in_15_lines(service, tmp_path):
    path = service.running(key="checkout", variants=CONFIGURED)

    printed = ran(example("python", "python", service), tmp_path)

    assert printed in ("user-1 gets Control\n", "user-1 gets flow_b\n")
    assert participants(service, path) == 1
    assert counted(service, path) == (1, 1)


FORKED = """
import os, sys, warnings
from openfeature import api
from openfeature.evaluation_context import EvaluationContext
from abacus_openfeature import AbacusProvider

api.set_provider_and_wait(AbacusProvider(
    "http://127.0.0.1:8000", "TOKEN", local=True, report_seconds=600))
client = api.get_client()

def visit(user_id):
    client.get_string_value("checkout", "x", EvaluationContext(user_id))
    client.track("conversion", EvaluationContext(user_id))

visit("before")
warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads
child = os.fork()
for number in range(10):
    visit(f"{'child' if child == 0 else 'parent'}-{number}")
if child:
    assert os.waitpid(child, 0)[1] == 0
sys.exit()
"""


@pytest.mark.one_engine
def test_a_program_that_forks_and_ends_reports_what_waits_in_both(service, tmp_path):
    path = service.running(key="checkout")

    ran(adapted(FORKED, service), tmp_path)

    assert participants(service, path) == 21
    assert counted(service, path) == (21, 21)


# ---------------------------------------------------------------------------
# What takes long: `make test-clients`


@pytest.mark.one_engine
@pytest.mark.usefixtures("thorough")
def test_a_million_decisions_of_100_000_users_are_100_000_participants(service, figure):
    path = service.running(key="checkout")
    with provided(service, report_seconds=0.2) as (provider, _):
        began = time.perf_counter()
        for _round in range(10):
            for number in range(100_000):
                context = user(f"user-{number}")
                provider.resolve_string_details("checkout", "default", context)
        decided = time.perf_counter() - began
        assert provider.flush(120)
        counters = provider.counters

    assert participants(service, path) == 100_000
    assert counters["enrolments_queued"] == counters["enrolments_sent"] == 100_000
    figure("a million local decisions", seconds=round(decided, 1), participants=100_000)


@pytest.mark.one_engine
@pytest.mark.usefixtures("thorough")
def test_a_local_decision_takes_at_most_20_microseconds(service, figure):
    body = {"name": "Payers", "ruleTree": ADULT_PAYERS}
    service.data("PUT", "audiences/aud_payers", body)
    service.running(key="checkout", audienceId="aud_payers", trafficPercentage=50)
    facts = {"plan": "pro", "country": "DE", "age": 30}
    contexts = [user(f"user-{number}", **facts) for number in range(20_000)]
    with provided(service) as (provider, client):
        first = median(provider.resolve_string_details, contexts)
        later = median(provider.resolve_string_details, contexts)
        whole = median(client.get_string_value, contexts)

    figure("a local decision", first=first, later=later, through_openfeature=whole)
    assert max(first, later) <= 20


def median(ask, contexts):
    """Return the median of the microseconds that an evaluation takes."""
    taken = []
    for context in contexts:
        began = time.perf_counter_ns()
        ask("checkout", "default", context)
        taken.append(time.perf_counter_ns() - began)
    return round(statistics.median(taken) / 1_000, 1)


@pytest.mark.one_engine
@pytest.mark.usefixtures("thorough")
def test_the_package_builds_and_installs_where_nothing_else_is(tmp_path):
    source, built = tmp_path / "source", tmp_path / "built"
    shutil.copytree(CLIENT, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--wheel-dir", built, source], check=True)
    (wheel,) = built.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "fresh"], check=True)
    fresh = tmp_path / "fresh" / "bin"
    subprocess.run([fresh / "pip", "install", "--quiet", wheel], check=True)

    program = "import abacus_openfeature as a; print(a.AbacusProvider('http://x', 't'))"
    ended = subprocess.run(
        [fresh / "python", "-c", program], cwd=tmp_path, capture_output=True, check=True
    )

    assert b"AbacusProvider" in ended.stdout
    files = {
        name for name in zipfile.ZipFile(wheel).namelist() if "dist-info" not in name
    }
    assert files == {
        f"abacus_openfeature/{file.name}"
        for file in (CLIENT / "abacus_openfeature").iterdir()
        if file.suffix in (".py", ".typed")
    }
