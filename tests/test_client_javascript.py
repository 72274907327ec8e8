"""The client for JavaScript: as the service decides, and in front of a real one."""

import json
import random
import subprocess
import unicodedata
from collections import Counter

import pytest
import re2
import service as real
from marshmallow import ValidationError
from test_client_decisions import NOW, definition_of, user_of

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
