"""The client for JavaScript: as the service decides, and in front of a real one."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import unicodedata
from collections import Counter
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import re2
import service as real
from marshmallow import ValidationError
from test_client_decisions import NOW, definition_of, user_of

from clients import (
    ADULT_PAYERS,
    CONFIGURED,
    PAYERS,
    by_hash,
    counted,
    example,
    one_of,
    participants,
    rows_of,
    said,
    stored,
    variants_of,
)
from ledger.published import Published
from ledger.standing import Started
from models import NOT_IDS
from targeting import audience
from targeting.decision import User, decide
from views.definitions import definitions_text
from web.fields import Id

CLIENT = real.ROOT / "clients" / "javascript"

pytestmark = [pytest.mark.one_engine, pytest.mark.usefixtures("thorough")]


def node(*words, check=True, **options):
    """Run a program of Node where the client is, and return what it printed."""
    ended = subprocess.run(
        ["node", *map(str, words)],
        cwd=CLIENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )
    if check:
        assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def compared(vectors, folder):
    """Return what the client makes of these vectors, one after the other."""
    file = folder / "vectors.ndjson"
    with file.open("w", encoding="utf-8") as lines:
        for vector in vectors:
            lines.write(json.dumps(vector) + "\n")
    counts = json.loads(node("test/agree.js", file))
    assert counts.pop("examples") == []
    return counts


# ---------------------------------------------------------------------------
# Decisions

PAIRS = 100_000


def test_the_client_and_the_service_agree_about_every_pair(figure, tmp_path):
    draw, reasons = random.Random(2026), Counter()

    def vectors():
        for number in range(PAIRS // 200 + 25):
            definition = definition_of(draw, number)
            started = [Started(definition, frozenset(), False, {})]
            users = []
            for _ in range(200):
                user_id, attributes = user_of(draw)
                wanted = decide(definition, User(user_id, attributes), NOW)
                variant = wanted.variant and wanted.variant.id
                users.append((user_id, attributes, wanted.reason, variant))
                reasons[wanted.reason] += 1
            yield {
                "definitions": _text(definitions_text("r", Published(started, 0))),
                "name": draw.choice([definition.id, definition.key]),
                "now": NOW.timestamp() * 1_000,
                "users": users,
            }

    counts = compared(vectors(), tmp_path)

    assert counts["disagreements"] == 0
    assert counts["compared"] >= PAIRS
    assert counts["asked"] < PAIRS / 100
    assert len(reasons) == 6 and min(reasons.values()) > 1_000
    figure("client for JavaScript", **counts)


def _text(content):
    return content.decode() if isinstance(content, bytes) else content


# ---------------------------------------------------------------------------
# Patterns and texts

PIECES = [
    *("a", "b", "k", "S", "ß", "é", "Σ", "İ", "1", "_", " ", "-", ".", "]", "}"),
    *(r"\d", r"\D", r"\w", r"\W", r"\s", r"\S", r"\b", r"\B", "^", "$", "a{2}"),
    *(r"\A", r"\z", "[a-c]", "[^a-c]", r"[\w-]", "[]a]", "[^]a]", "[a-]", "[-a]"),
    *(r"[\S]", r"[^\W]", r"[\Da]", r"\pL", r"\PL", r"\p{Lu}", r"[^\pL]", "[k-s]"),
    *(r"\n", r"\x41", r"\x{3a3}", r"\.", "a*", "b+", "(a|b)", "(?:ab)?", "(?P<n>a)"),
    *("|", "|", ".*", ".+?", "[^b]*", r"\d{1,3}", "a??", "[ß-é]", r"[\]\\]", "用"),
]
LETTERS = "abckKsSßẞéÉΣ1_ -.\nA\u017f\u212a\u03c3\u03c2\u0130\u0131\r\u2028\v用😀]}"


def test_a_pattern_is_found_where_re2_finds_it(figure, tmp_path):
    draw = random.Random(2026)

    def vectors():
        for _ in range(4_000):
            flags = draw.choice(["", "", "", "(?i)", "(?s)", "(?is)"])
            pattern = flags + "".join(draw.choices(PIECES, k=draw.randint(1, 5)))
            try:
                found = re2.compile(pattern.encode(), audience.OPTIONS)
            except re2.error:
                continue
            texts = ["".join(draw.choices(LETTERS, k=n)) for n in (0, 1, 2, 3, 5, 8, 9)]
            pairs = [(one, found.search(one.encode()) is not None) for one in texts]
            yield {"pattern": pattern, "texts": pairs}

    counts = compared(vectors(), tmp_path)

    assert counts["disagreements"] == 0
    assert counts["compared"] > 10_000
    figure("patterns in JavaScript", **counts)


def test_case_is_folded_as_the_service_folds_it(tmp_path):
    def vectors():
        for code in range(0x110000):
            text = chr(code)
            # What Python does not know yet, a younger Node may know.
            if unicodedata.category(text) not in ("Cn", "Co", "Cs"):
                yield {"text": text, "folded": text.casefold()}

    counts = compared(vectors(), tmp_path)

    assert (counts["disagreements"], counts["asked"]) == (0, 0)
    assert counts["compared"] > 100_000


def test_the_client_refuses_the_ids_that_the_service_refuses(tmp_path):
    draw = random.Random(2026)
    blanks = ["", " ", "\t", "\x1c", "\x85", "\ufeff", "\u3000", "\u200b", "\0", "a"]

    def vectors():
        for mark in [*sorted(NOT_IDS), "", "a", "😀" * 255, "😀" * 256, "x" * 256]:
            for _ in range(100):
                spelled = "".join(draw.choice([c, c.upper()]) for c in mark)
                id = draw.choice(blanks) + spelled + draw.choice(blanks)
                try:
                    Id().deserialize(id)
                    yield {"id": id, "isId": True}
                except ValidationError:
                    yield {"id": id, "isId": False}

    assert compared(vectors(), tmp_path)["disagreements"] == 0


# ---------------------------------------------------------------------------
# A real service


def program(service, scenario, options):
    """Return the words that start a scenario."""
    return ["node", "test/scenario.js", scenario, service.url, service.token, options]


def ran(service, scenario, **options):
    """Return what a scenario printed at its end; it must end well."""
    words = program(service, scenario, json.dumps(options))
    printed = node(*words[1:], stdin=subprocess.DEVNULL)
    return json.loads(printed.splitlines()[-1]) if printed else None


class Running:
    """A scenario that waits for a word now and then."""

    def __init__(self, service, scenario, **options):
        self.process = subprocess.Popen(
            program(service, scenario, json.dumps(options)),
            cwd=CLIENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.stdout.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)

    def read(self):
        return json.loads(self.process.stdout.readline())

    def go_on(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()


@pytest.mark.parametrize("local", [True, False])
def test_1000_users_get_what_the_service_gives_them(service, local):
    path = service.running(key="checkout", variants=CONFIGURED)

    printed = ran(service, "users", local=local)

    assert printed["isFlushed"] and printed["warnings"] == []
    assert participants(service, path) == 1_000
    assert (
        variants_of(stored(service, path, printed["variants"])) == printed["variants"]
    )
    reported = 1_000 if local else 0
    assert printed["before"]["enrolmentsWaiting"] == reported
    assert printed["counters"] == {
        **dict.fromkeys(printed["counters"], 0),
        "enrolmentsQueued": reported,
        "enrolmentsSent": reported,
    }


def test_in_each_state_the_provider_answers_as_the_service(service):
    service.data("PUT", "audiences/aud_payers", {"name": "Payers", "ruleTree": PAYERS})
    slow = {"field": "plan", "operator": "regex", "value": "^(p|q)+ro$"}
    service.data("PUT", "audiences/aud_slow", {"name": "Slow", "ruleTree": slow})
    group = {"trafficPercentage": 0.01, "exclusionGroup": "page"}
    paths = {
        "paid": service.running(key="paid", audienceId="aud_payers"),
        "asked": service.running(key="asked", audienceId="aud_slow"),
        "won": service.running(key="won", variants=CONFIGURED),
        "held": service.running(key="held", trafficPercentage=0.01),
        "apart": service.running(key="apart", **group),
        "forced": service.running(key="forced", variants=CONFIGURED),
        "open": service.running(key="open", variants=CONFIGURED),
    }
    body = {"conclusion": "won", "winnerVariantId": "v2"}
    service.data("POST", f"{paths['won']}/complete", body)
    service.data("PUT", f"{paths['forced']}/overrides/u1", {"variantId": "v2"})
    service.data("POST", f"{paths['forced']}/stop")
    cases = [
        (f"{key}{ending}", type, {"targetingKey": f"u{n}", "plan": plan})
        for key in paths
        for ending in ("", ".config")
        for type in ("string", "object", "boolean", "number")
        for n, plan in ((1, "pro"), (2, "free"), (3, "pro"), (4, "pro"))
    ]
    odd = (None, "", " undefined ", "x" * 256, "\ud800")
    cases += [("open", "string", {"targetingKey": one}) for one in odd]
    cases += [(key, "string", {"targetingKey": "u1"}) for key in ("nope", "Zoë/用户")]

    local = ran(service, "cases", local=True, cases=cases)
    remote = ran(service, "cases", local=False, cases=cases)

    assert local == remote
    found = local["found"]
    assert {one.get("error") for one in found} == {
        *(None, "TYPE_MISMATCH", "FLAG_NOT_FOUND"),
        *("TARGETING_KEY_MISSING", "INVALID_CONTEXT"),
    }
    assert {one.get("reason") for one in found} >= {
        *("SPLIT", "TARGETING_MATCH", "DEFAULT", "ERROR")
    }
    assert participants(service, paths["asked"]) == 3
    assert participants(service, paths["paid"]) == 3


def test_each_enrolment_and_event_counts_once_though_the_service_is_killed(
    service, figure
):
    path = service.running(key="checkout")
    with Running(service, "outage", local=True) as running:
        for number in range(500, 3_000, 500):
            assert running.read() == number
            if number in (500, 1_500):
                service.kill()
            if number in (1_000, 2_000):
                service.start()
            running.go_on()
        ended = running.read()

    counters = ended["counters"]
    assert ended["isFlushed"] and ended["defaults"] == 0
    assert participants(service, path) == 3_000
    assert counted(service, path) == (3_000, 3_000)
    assert counted(service, path, "order") == (3_000, 3_000)
    sums = [row["value"]["sum"] for row in rows_of(service, path, "order")]
    assert round(sum(sums), 6) == 750
    quality = service.data("GET", f"{path}/results")["quality"]
    assert (quality["beforeEnrollment"], quality["notEnrolled"]) == (0, 0)
    assert counters["attemptsFailed"] > 0
    assert counters["enrolmentsQueued"] == counters["enrolmentsSent"] == 3_000
    assert counters["eventsQueued"] == counters["eventsSent"] == 6_000
    assert counters["eventsDropped"] == counters["enrolmentsDropped"] == 0
    figure("JavaScript through two kills", users=3_000, events=6_000, lost=0, twice=0)


@pytest.mark.parametrize("local", [True, False])
def test_the_default_holds_while_the_service_is_away(service, local):
    path = service.running(key="checkout")
    service.kill()
    with Running(service, "away", local=local) as running:
        first = running.read()
        service.start()
        assert service("POST", f"{path}/assignments", {"userId": "u1"})[0] == 201
        running.go_on()
        ended = running.read()

    error = "PROVIDER_NOT_READY" if local else "GENERAL"
    assert (first["value"], first["error"]) == ("default", error)
    assert ended["isRefreshed"] and ended["isFlushed"]
    assert ended["later"]["variant"] == by_hash(path, "u1")
    assert participants(service, path) == 1
    assert ended["counters"]["eventsSent"] == 1


@pytest.mark.parametrize("kind", ["local", "remote", "web"])
@pytest.mark.parametrize("wrong", ["token", "address", "flag"])
def test_one_line_says_why_the_default_holds(service, kind, wrong):
    service.running(key="checkout")
    lines = said("javascript", service)
    if wrong == "token":
        service.token = "wrong"
    if wrong == "address":
        service.stop()

    key = "nope" if wrong == "flag" else "checkout"
    printed = ran(service, "failing", local=kind == "local", kind=kind, key=key)

    assert printed["values"] == ["default"]
    assert printed["warnings"] == [lines[wrong]]
    assert (printed["counters"]["attemptsFailed"] > 0) is (wrong != "flag")


def test_an_application_that_starts_without_the_service_decides_from_the_disk(
    service, tmp_path
):
    path, file = service.running(key="checkout"), tmp_path / "definitions.json"
    ran(service, "follow", local=True, cacheFile=str(file), user="u0")
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.glob("definitions.json.*")) == []
    whole = file.read_bytes()
    service.kill()
    with Running(service, "away", local=True, cacheFile=str(file)) as running:
        assert running.read()["variant"] == by_hash(path, "u1")
        service.start()
        running.go_on()
        assert running.read()["isFlushed"]

    assert participants(service, path) == 2
    assert counted(service, path) == (1, 1)
    assert file.read_bytes() == whole


def test_the_client_follows_the_row_of_a_user_who_was_imported(service, tmp_path):
    path = service.running(key="checkout")
    user_id = one_of(path, "v1")
    rows = tmp_path / "rows.csv"
    rows.write_text(f"user_id,variant,timestamp\n{user_id},v2,2025-01-01T00:00:00Z\n")
    service.flask("import", "checkout", str(rows))

    printed = ran(service, "follow", local=True, user=user_id)

    assert printed == {"first": "v1", "later": "v2"}


def test_to_track_raises_nothing_and_repeats_nothing(service):
    path = service.running(key="checkout")
    printed = ran(service, "wrong", local=True)
    counters = printed["counters"]
    assert printed["isFlushed"]
    assert counted(service, path, "order") == (1, 1)
    assert counters["eventsRefused"] == 8
    assert counters["eventsSent"] == 3
    assert counters["enrolmentsSent"] == 1


def test_a_full_queue_drops_and_counts_and_reports_the_user_later(service):
    path = service.running(key="checkout")
    printed = ran(service, "full", local=True)
    counters = printed["counters"]
    assert counters["enrolmentsWaiting"] == counters["eventsWaiting"] == 10
    assert counters["enrolmentsDropped"] == counters["eventsDropped"] == 15
    assert participants(service, path) == 25


def test_a_program_that_ends_sends_what_waits(service):
    path = service.running(key="checkout")
    assert ran(service, "end", local=True) is None
    assert participants(service, path) == 1
    assert counted(service, path) == (1, 1)


def test_a_program_ends_in_time_while_the_service_is_away(service):
    service.kill()
    began = time.monotonic()
    node(*program(service, "end", json.dumps({"shutdownMs": 500}))[1:])
    assert time.monotonic() - began < 5


# ---------------------------------------------------------------------------
# Browsers, as far as Node can be one


def test_only_a_flag_that_is_read_enrols(service):
    path = service.running(key="checkout")
    other = service.running(key="other")

    printed = ran(service, "web")

    assert printed["isFlushed"]
    assert len(printed["variants"]) == 25
    assert (
        variants_of(stored(service, path, printed["variants"])) == printed["variants"]
    )
    assert participants(service, path) == 25
    assert participants(service, other) == 0
    assert counted(service, path) == (25, 25)
    assert printed["counters"]["enrolmentsSent"] == 25


def test_a_page_has_its_defaults_while_the_service_is_away(service):
    path = service.running(key="checkout")
    service.kill()
    with Running(service, "webAway") as running:
        first = running.read()
        service.start()
        running.go_on()
        ended = running.read()

    assert (first["value"], first["error"]) == ("default", "PROVIDER_NOT_READY")
    assert ended["isRefreshed"] and ended["isFlushed"]
    assert ended["later"]["variant"] == by_hash(path, "u1")
    assert participants(service, path) == 1


CHROMIUM = shutil.which("chromium")
HEAD = """<!doctype html><script type="importmap">{"imports": {
  "@openfeature/core": "/node_modules/@openfeature/core/dist/esm/index.js",
  "@openfeature/web-sdk": "/node_modules/@openfeature/web-sdk/dist/esm/index.js"
}}</script><script type="module">
import { OpenFeature } from "@openfeature/web-sdk";
import { AbacusWebProvider } from "/web.js";
const named = new URL(location.href).searchParams;
"""
PAGE = """import { bucket } from "/decider.js";
const provider = new AbacusWebProvider("URL", "TOKEN");
await OpenFeature.setContext({ targetingKey: "u1" });
await OpenFeature.setProviderAndWait(provider);
const client = OpenFeature.getClient();
const { variant } = client.getStringDetails("checkout", "default");
client.track("conversion");
const isFlushed = await provider.flush();
const isRefreshed = await provider.refresh();
const place = bucket("exp_abc123", "用户42");
const shown = JSON.stringify({ variant, isFlushed, isRefreshed, place });
document.body.textContent = `shown: ${shown};`;
</script><body>"""
# A page that is left as soon as it has shown its flag, by one user after the other.
LEAVING = """const number = Number(named.get("user"));
const options = { STORAGE, reportMs: 600_000, warn: () => {} };
await OpenFeature.setContext({ targetingKey: `u${number}` });
await OpenFeature.setProviderAndWait(new AbacusWebProvider("URL", "TOKEN", options));
const client = OpenFeature.getClient();
if (number < 50) {
  client.getStringValue("checkout", "default");
  client.track("conversion");
  location.href = `/between?user=${number + 1}`;
}
</script><body>"""
BETWEEN = """location.href = `/leaving?user=${named.get("user")}`;
</script><body>"""


class Files(SimpleHTTPRequestHandler):
    """The pages of a shop, at an origin of its own."""

    pages: dict[str, str] = {}

    def do_GET(self):
        page = self.pages.get(self.path.partition("?")[0])
        if page is None:
            return super().do_GET()
        content = page.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        return self.wfile.write(content)

    def log_message(self, *_):
        """Print nothing."""


@contextmanager
def browsing(url, profile):
    """Have a page open in Chromium."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    browser = subprocess.Popen(
        [CHROMIUM, *flags, f"--user-data-dir={profile}", url],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        os.killpg(browser.pid, signal.SIGKILL)
        browser.wait(30)


@contextmanager
def shopping(folder, files=CLIENT):
    """Yield a service, and the address of a shop whose pages may ask it."""
    handler = partial(Files, directory=files)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as shop:
        threading.Thread(target=shop.serve_forever, daemon=True).start()
        origin = f"http://127.0.0.1:{shop.server_port}"
        with real.served(folder / "instance", CORS_ORIGINS=origin) as service:
            yield service, origin
        shop.shutdown()


def opened(service, scripts, storage="storage: null"):
    """Have the shop serve pages with these scripts, by their paths."""
    words = {
        "URL": service.url,
        "TOKEN": service.token,
        "STORAGE": storage,
    }
    for path, script in scripts.items():
        for word, text in words.items():
            script = script.replace(word, text)
        Files.pages[path] = HEAD + script


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_a_page_in_chromium_enrols_and_converts_its_user(tmp_path):
    with shopping(tmp_path) as (service, origin):
        path, other = service.running(key="checkout"), service.running(key="other")
        opened(service, {"/": PAGE})
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        budget = "--virtual-time-budget=20000"
        ended = subprocess.run(
            [CHROMIUM, *flags, profile, budget, f"{origin}/"],
            capture_output=True,
            text=True,
            timeout=90,
        )
        shown = re.search(r"<body>shown: (.*);", ended.stdout)
        assert shown, ended.stdout + ended.stderr
        assert json.loads(shown[1]) == {
            "variant": by_hash(path, "u1"),
            "isFlushed": True,
            "isRefreshed": True,
            "place": 5809,
        }
        assert participants(service, path) == 1
        assert participants(service, other) == 0
        assert counted(service, path) == (1, 1)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_50_users_who_leave_a_page_at_once_are_enrolled_and_counted(tmp_path, figure):
    with shopping(tmp_path) as (service, origin):
        path = service.running(key="checkout")
        opened(service, {"/leaving": LEAVING, "/between": BETWEEN})
        with browsing(f"{origin}/leaving?user=0", tmp_path / "profile"):
            real.wait_until(lambda: counted(service, path) == (50, 50), 60)
        assert participants(service, path) == 50
    figure("users who leave a page at once", users=50, enrolled=50, converted=50)


def test_one_command_plays_the_page_and_compares_its_counts_with_abacus():
    ended = subprocess.run(
        [
            sys.executable,
            "clients/python/examples/visits.py",
            CLIENT / "examples" / "page.js",
        ],
        cwd=real.ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )

    browsers = 12 if CHROMIUM else 0
    numbers = re.findall(r"^(visitors|clicks), .* (\d+) +(\d+)$", ended.stdout, re.M)
    counts = {"visitors": 0, "clicks": 0}
    for kind, own, counted_there in numbers:
        assert own == counted_there
        counts[kind] += int(own)
    assert counts == {"visitors": 300 + browsers, "clicks": browsers}
    assert ended.stderr == ""


# ---------------------------------------------------------------------------
# Speed, and the package


def test_a_local_decision_takes_at_most_5_microseconds(service, figure):
    body = {"name": "Payers", "ruleTree": ADULT_PAYERS}
    service.data("PUT", "audiences/aud_payers", body)
    service.running(key="checkout", audienceId="aud_payers", trafficPercentage=50)

    printed = ran(service, "speed")

    figure("a local decision in Node, microseconds", **printed)
    assert max(printed["first"], printed["later"]) <= 5


def test_a_million_decisions_of_100_000_users_are_100_000_participants(service, figure):
    path = service.running(key="checkout")
    printed = ran(service, "million")
    assert printed["isFlushed"]
    assert participants(service, path) == 100_000
    assert printed["counters"]["enrolmentsSent"] == 100_000
    figure("a million local decisions in Node", seconds=printed["seconds"])


@pytest.fixture
def installed(tmp_path):
    """Yield a folder where the package is installed as npm packs it, and its files."""
    pack = ["npm", "pack", "--silent", "--pack-destination", tmp_path]
    subprocess.run(pack, cwd=CLIENT, check=True, capture_output=True)
    (packed,) = tmp_path.glob("*.tgz")
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path, filter="data")
    modules = tmp_path / "node_modules"
    modules.mkdir()
    (tmp_path / "package").rename(modules / "abacus-openfeature")
    (modules / "@openfeature").symlink_to(CLIENT / "node_modules" / "@openfeature")
    return tmp_path


def test_the_package_has_what_it_needs_and_no_tests(installed):
    there = {
        one.name for one in (installed / "node_modules/abacus-openfeature").iterdir()
    }
    sources = {one.name for one in CLIENT.iterdir() if one.suffix in (".js", ".ts")}
    assert there == sources | {"package.json", "README.md"}


def test_the_example_of_the_readme_counts_a_conversion_in_15_lines(service, installed):
    path = service.running(key="checkout", variants=CONFIGURED)
    file = installed / "program.mjs"
    file.write_text(example("javascript", "js", service))

    printed = node(file)

    assert printed in ("user-1 gets Control\n", "user-1 gets flow_b\n")
    assert participants(service, path) == 1
    assert counted(service, path) == (1, 1)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_the_page_of_the_readme_counts_a_conversion_in_15_lines(installed):
    with shopping(installed, files=installed) as (service, origin):
        path = service.running(key="checkout", variants=CONFIGURED)
        Files.pages["/"] = example("javascript", "html", service)
        with browsing(f"{origin}/", installed / "profile"):
            real.wait_until(lambda: counted(service, path) == (1, 1), 60)
        assert participants(service, path) == 1
