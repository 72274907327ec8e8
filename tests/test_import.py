"""The fast reader of an import reads what the schema reads."""

import gzip
import json
import threading
from contextlib import closing
from datetime import datetime, timedelta, timezone
from io import BufferedReader, BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from marshmallow import ValidationError

from operations import importer
from operations.reader import COLUMNS, Assigned, Event, FastReader, Read
from operations.staging import staging
from web.json import InvalidJson

VARIANTS = {"v1": "v1", "Control": "v1", "v2": "v2", "'=x": "v2", "a\rb": "v2"}
FULL = {"full", "purchase"}
METRICS = SimpleNamespace(admit=lambda name: name not in FULL - {"purchase"})
EXPERIMENT = SimpleNamespace(primary_metric="purchase")
SOON = datetime.now(timezone.utc) + timedelta(minutes=3)
GOOD = ("u1", "v1", "2024-01-01T00:00:09Z", "2024-01-01T00:00:00Z", "", "", "")

IDS = st.one_of(
    st.sampled_from(
        [
            *("", " ", "u1", "user 1", " u1 ", "null", "NaN ", "unde\ufb01ned", "'=x"),
            *("'", "''", "\0", "\ud800", "a\nb", "Zoë", "用户", "\u3000", "x" * 255),
            *("x" * 256, "[object Object]", "import:x", "full", "purchase", "\ufeff"),
        ]
    ),
    st.text(max_size=4),
)
DAYS = [
    "2024-01-01",
    "2024-02-30",
    "0001-01-01",
    "9999-12-31",
    "1969-12-31",
    "2024-1-1",
]
MINUTES = ["T00:00", "t23:59", " 12:30", "T24:00", "T00:60", "T0:00", ""]
SECONDS = [
    ":00",
    ":09",
    ":10.894",
    ":59.123456",
    ":59,1234567",
    ":60",
    ":\N{ARABIC-INDIC DIGIT ONE}0",
    "",
    ".5",
]
OFFSETS = ["Z", "z", "+01:00", "-2359", "+24:00", "+1:00", "", "ZZ", " Z"]
TIMES = st.one_of(
    st.tuples(*map(st.sampled_from, (DAYS, MINUTES, SECONDS, OFFSETS))).map("".join),
    st.datetimes(timezones=st.just(timezone.utc)).map(datetime.isoformat),
    st.sampled_from([SOON.isoformat(), "2999-01-01T00:00:00Z", "2024-01-01T00:00:19Z"]),
    st.text(max_size=3),
)
NUMBERS = st.one_of(
    st.sampled_from(
        [
            *(
                "",
                "0",
                "-0",
                "-0.0",
                "1.50",
                "1e3",
                "05",
                "5.",
                ".5",
                "+5",
                " 5",
                "NaN",
            ),
            *(
                "1e12",
                "999999999999.99",
                "1000000000000",
                "9" * 13,
                "1_0",
                "\N{ARABIC-INDIC DIGIT FIVE}",
                "'-5",
            ),
        ]
    ),
    st.decimals().map(str),
    st.floats().map(str),
)


def quick(cells):
    return FastReader(VARIANTS, METRICS, "purchase").of(COLUMNS)(cells)


def by_schema(cells):
    """Return what the schema reads from the cells, or None if it refuses them."""
    fields = importer._fields(COLUMNS, cells)
    try:
        return importer._read(EXPERIMENT, fields, VARIANTS, METRICS)
    except ValidationError:
        return None


@given(
    st.tuples(
        IDS, st.sampled_from(["", *VARIANTS, "v9"]), TIMES, TIMES, IDS, NUMBERS, IDS
    )
)
@example(GOOD)
def test_what_the_fast_reader_accepts_is_what_the_schema_reads(cells):
    read = quick(cells)

    assert read is None or read == by_schema(cells)


@pytest.mark.parametrize("place", range(len(COLUMNS)))
@given(data=st.data())
def test_a_good_line_with_any_other_cell_is_read_as_the_schema_reads_it(place, data):
    column = (IDS, st.sampled_from([*VARIANTS, "v9"]), TIMES, TIMES, IDS, NUMBERS, IDS)
    cells = [*GOOD[:place], data.draw(column[place]), *GOOD[place + 1 :]]

    read = quick(cells)

    assert read is None or read == by_schema(cells)


@pytest.mark.parametrize(
    "cells",
    [
        GOOD,
        ("0" * 20, "Control", "2024-01-01T00:00:00Z", "", "", "", ""),
        ("用户 42", "v2", "2024-01-01T01:00:00.123456+01:00", "", "", "", ""),
        (*GOOD[:4], "revenue", "-19.90", "order-7"),
        (*GOOD[:2], "2024-01-01 00:00:00.894123Z", "2024-01-02t00:00Z", "", "0", ""),
    ],
)
def test_the_usual_lines_are_read_without_the_schema(cells):
    assert quick(cells) == by_schema(cells)
    assert quick(cells) is not None


@pytest.mark.parametrize("names", [("user_id", "variant", "timestamp"), COLUMNS[::-1]])
def test_the_columns_are_in_any_order_and_may_be_missing(names):
    cells = [dict(zip(COLUMNS, GOOD, strict=True))[name] for name in names]

    read = FastReader(VARIANTS, METRICS, "purchase").of(names)(cells)

    assert read is not None and (read.event is None) == (len(names) == 3)
    assert FastReader(VARIANTS, METRICS, "x").of((*names, "more"))([*cells, ""]) is None


class ByLines(FastReader):
    """Reads each line by itself."""

    def read_block(self, names, block):
        return None


def records(raw, reader=FastReader):
    """Return each record of a file, and at last why no more of it can be read."""
    lines, read = importer._Lines(raw), []
    try:
        fast = reader(VARIANTS, METRICS, "purchase")
        for number, row, problem in importer._table(lines, fast):
            if isinstance(row, Assigned):
                for place, cells in enumerate(zip(*row, strict=True)):
                    read.append((number + place, Read(*cells, "", None), problem))
            else:
                read.append((number, row, problem))
    except importer.UNREADABLE as error:
        read.append((lines.first, None, str(error)))
    return read


def opened(data, is_compressed=False, size=importer.BUFFER):
    raw = BufferedReader(BytesIO(data), size)
    return gzip.GzipFile(fileobj=raw) if is_compressed else raw


PLAIN = [
    *("u{},v1,2024-01-01T00:00:09Z", "u{},Control,2024-01-01T00:00:00.894123Z"),
    *("Zoë {},v2,2024-01-01 01:00:00+01:00", " u{} ,v1,2024-01-01T00:00:09Z"),
]
ODD_LINES = [
    *('"u{}",v1,2024-01-01T00:00:09Z', '"a\nb\r\n{}",v1,2024-01-01T00:00:09Z'),
    *('u"{}",v1,2024-01-01T00:00:09Z', '"u{},v1,2024-01-01T00:00:09Z', ""),
    *("u{},v1", "u{},v1,2024-01-01T00:00:09Z,", "u{},v9,2024-01-01T00:00:09Z"),
    *("null,v1,2024-01-01T00:00:09Z", "u{},v1,soon", ",v1,2024-01-01T00:00:09Z"),
    *("'=x{},v1,2024-01-01T00:00:09Z", f"u{{}},v1,{SOON.isoformat()}", "u,v1\n,x"),
    *("\ud83d{},v1,2024-01-01T00:00:09Z", "u\0{},v1,2024-01-01T00:00:09Z"),
    *("u{}\r,v1,2024-01-01T00:00:09Z", "u\u2028{},v1,2024-01-01T00:00:09Z"),
    *("u{},v1,2024-01-01T00:00:09Z\r", "x" * 300 + "{},v1,2024-01-01T00:00:09Z"),
    *("u{},a\rb,2024-01-01T00:00:09Z", ",", ",,", " ", '"', "\r"),
]
CONVERTED = [",,,", "2024-01-01T00:00:10Z,revenue,5,key {}", "2024-01-01T00:00:10Z,,,"]


@given(data=st.data())
def test_lines_that_are_read_together_are_read_as_each_by_itself(data):
    ends = data.draw(st.sampled_from([["\n"], ["\r\n"], ["\r"], ["\n", "\r\n", "\r"]]))
    names = data.draw(st.sampled_from([COLUMNS[:3], COLUMNS]))
    odd = st.one_of(st.sampled_from(PLAIN), st.sampled_from(ODD_LINES))
    text = data.draw(st.sampled_from(["", "\ufeff"])) + ",".join(names)
    for piece in data.draw(st.lists(st.tuples(odd, st.integers(0, 9)), max_size=5)):
        for line in (piece[0], *[data.draw(st.sampled_from(PLAIN))] * piece[1]):
            more = data.draw(st.sampled_from(CONVERTED)) if len(names) > 3 else None
            number = data.draw(st.integers(0, 99))
            cells = line if more is None else f"{line},{more}"
            text += data.draw(st.sampled_from(ends)) + cells.replace("{}", str(number))
    text += data.draw(st.sampled_from(["", *ends]))
    content = text.encode(errors="surrogatepass")
    is_compressed = data.draw(st.booleans())
    if is_compressed:
        content = gzip.compress(content)[: data.draw(st.sampled_from([None, -9, -20]))]
    size = data.draw(st.sampled_from([40, 100, 1_000, importer.BUFFER]))

    read = records(opened(content, is_compressed, size))

    assert read == records(opened(content, is_compressed), ByLines)


def plain_lines(number, end="\n"):
    lines = (
        f"user {line},v{line % 2 + 1},2024-01-01T00:00:09Z" for line in range(number)
    )
    return "".join(f"{line}{end}" for line in (",".join(COLUMNS[:3]), *lines)).encode()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_usual_lines_of_csv_are_read_together(end):
    lines = importer._Lines(opened(plain_lines(30_000, end)))
    fast = FastReader(VARIANTS, METRICS, "purchase")

    together = [isinstance(row, Assigned) for _, row, _ in importer._table(lines, fast)]

    assert len(together) < 30 and sum(together) >= len(together) // 2


GOOD_LINE = b"u1,v1,2024-01-01T00:00:09Z\n"


@pytest.mark.parametrize("before", [0, 2_900, 3_000, 3_100])
@pytest.mark.parametrize("size", [importer.LONGEST, importer.LONGEST + 1])
def test_a_long_line_after_others_is_read_or_refused_as_by_itself(before, size):
    long = GOOD_LINE.rstrip().ljust(size - 1, b",") + b"\n"
    content = plain_lines(before) + long + GOOD_LINE * 5

    read = records(opened(content))

    assert read == records(opened(content), ByLines)
    assert len(read) == before + (6 if size == importer.LONGEST else 1)


def quick_json(line):
    return FastReader(VARIANTS, METRICS, "purchase").read_json(line)


def json_by_schema(line):
    try:
        return importer._read(EXPERIMENT, line, VARIANTS, METRICS)
    except (ValidationError, InvalidJson):
        return None


def quoted(texts):
    return texts.map(json.dumps)


ODD = st.sampled_from(
    [
        *("null", "true", "5", "-0", "1.50", "1e3", "NaN", "[]", "{}", '""', "01"),
        *("[[1]]", '{"a": 1, "a": 2}', '"\\ud83d\\ude00"', '"\\ud83d"', "'x'", ""),
        *('"a\tb"', "Infinity", "123456789012", "-12.5", '"5"', "[" * 2_000),
    ]
)
JSON = {
    "user_id": IDS,
    "variant": st.sampled_from(["", *VARIANTS, "v9"]),
    "timestamp": TIMES,
    "converted_at": TIMES,
    "metric": IDS,
    "value": NUMBERS,
    "idempotency_key": IDS,
    "covariate": NUMBERS,
    "other": IDS,
}
GOOD_JSON = {
    name: json.dumps(cell) for name, cell in zip(COLUMNS, GOOD, strict=True) if cell
}


@given(data=st.data())
def test_a_line_of_ndjson_is_read_as_the_schema_reads_it(data):
    pairs = list(GOOD_JSON.items())
    for _ in range(data.draw(st.integers(0, 3))):
        name = data.draw(st.sampled_from([*JSON]))
        texts = JSON[name] if name in ("value", "covariate") else quoted(JSON[name])
        pair = name, data.draw(st.one_of(texts, quoted(JSON[name]), ODD))
        if data.draw(st.integers(0, 9)):
            pairs = [one for one in pairs if one[0] != name]
        pairs.append(pair)
    text = ", ".join(f'"{name}": {cell}' for name, cell in pairs)
    line = data.draw(st.sampled_from(["", " ", "\ufeff"])) + f"{{{text}}}\r\n"
    line = line.encode(errors="surrogatepass")

    read = quick_json(line)

    assert read is None or read == json_by_schema(line)


@pytest.mark.parametrize("value", [None, 5, 19.25, -0.5])
def test_the_usual_lines_of_ndjson_are_read_without_the_schema(value):
    fields = dict(zip(COLUMNS, GOOD, strict=True), value=value, idempotency_key=None)
    line = json.dumps(fields | {"metric": "revenue"}).encode()

    assert quick_json(line) == json_by_schema(line)
    assert quick_json(line) is not None
    assert quick_json(line[:-1] + b', "metric": "revenue"}') is None


@settings(max_examples=5)
@given(st.lists(st.tuples(st.integers(0, 25_000), st.integers(0, 25_000)), max_size=9))
def test_lines_that_are_far_from_each_other_are_compared(repeats):
    of_user = {number: number for number in range(25_001)} | dict(repeats)
    earliest, places = {}, {}
    with staging(None) as staged:
        for number, user in of_user.items():
            event = Event("purchase", "", 5, f"key {user}", True)
            time = 30_000 - number
            staged.add(number, Read(f"user {user}", "v1", time, "", event))
            earliest[user] = min(time, earliest.get(user, time))
            places.setdefault(user, []).append(number)
        staged.compare()
        written = [line for chunk in staged.chunks(10_000) for line in list(chunk)]

    assert [line.assigned_at for line in written] == [
        earliest[user] for user in of_user.values()
    ]
    assert [line.number for line in written] == [
        places[user].index(number) + 1 for number, user in of_user.items()
    ]


def test_a_hash_that_two_users_have_in_common_makes_them_no_one_user():
    with staging(None) as staged:
        for number in range(1, 4):
            event = Event("purchase", "", 5, f"key {number}", True)
            staged.add(number, Read(f"user {number}", "v1", number, "", event))
        staged._users.add(["user 2"])  # as if another user had the same hash
        staged._keys.add(["key 3"])
        staged.compare()

        assert not list(staged.differing())
        (written,) = map(list, staged.chunks(10))
    assert [(line.user_id, line.assigned_at, line.number) for line in written] == [
        ("user 1", 1, 1),
        ("user 2", 2, 1),
        ("user 3", 3, 1),
    ]


def test_lines_that_come_together_are_staged_as_each_by_itself():
    users = [f"user {number % 24_000}" for number in range(25_000)]
    times = [*range(25_000, 0, -1)]
    written = []
    for size in (1, 2_900):
        with staging(None) as staged:
            for start in range(0, 25_000, size):
                some = slice(start, start + size)
                columns = users[some], ["v1"] * len(users[some]), times[some]
                if size > 1:
                    staged.add_assigned(start + 1, Assigned(*columns))
                else:
                    (line,) = zip(*columns, strict=True)
                    staged.add(start + 1, Read(*line, "", None))
            staged.compare()
            written.append([line for chunk in staged.chunks(10_000) for line in chunk])

            assert staged.count == 25_000

    assert written[0] == written[1]
    assert [line.assigned_at for line in written[0][:1_001]] == [
        *range(1_000, 0, -1),
        24_000,
    ]


def test_no_more_than_one_item_is_made_ahead_and_the_thread_ends():
    made, before = [], threading.active_count()

    with closing(importer.ahead(made.append(one) or one for one in range(9))) as items:
        assert [next(items), next(items)] == [0, 1]

    assert len(made) <= 3 and threading.active_count() == before
    assert list(importer.ahead(iter("abc"))) == ["a", "b", "c"]


def test_an_error_while_an_item_is_made_ahead_follows_the_items_before():
    items, before = (
        importer.ahead(1 // one for one in (1, 1, 0, 1)),
        threading.active_count(),
    )

    assert [next(items), next(items)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(items)
    assert threading.active_count() == before


def writes():
    """Return how often this process has asked for a write."""
    numbers = dict(line.split(": ") for line in IO.read_text().splitlines())
    return int(numbers["syscw"])


IO = Path("/proc/self/io")


@pytest.mark.skipif(not IO.exists(), reason="no kernel counts the writes")
def test_the_hashes_of_repeated_users_are_written_together(tmp_path):
    with staging(tmp_path / "abacus.db") as staged:
        for number in range(20_000):
            user = f"user {number % 10_000}"
            staged.add(number, Read(user, "v1", number, "", None))
        before = writes()
        staged.compare()

        assert writes() - before < 10_000
