"""Reading and writing JSON: strictly, exactly, in bounded memory."""

import json
import re
import time
import tracemalloc
from decimal import Decimal

import pytest
from conftest import assert_error, paths
from hypothesis import given
from hypothesis import strategies as st
from marshmallow import ValidationError
from test_wire import documents, json_values, texts

from web.json import PIECE, InvalidJson, dumps, loads

pytestmark = pytest.mark.one_engine


def read_by_another(body):
    """Return what the standard library makes of strict JSON, or raise ValueError."""

    def unique(pairs):
        if len(dict(pairs)) != len(pairs):
            raise ValueError("duplicate")
        return dict(pairs)

    def refuse(name):
        raise ValueError(name)

    try:
        return json.loads(
            body.decode(),
            parse_float=Decimal,
            parse_constant=refuse,
            object_pairs_hook=unique,
        )
    except (ArithmeticError, RecursionError) as error:
        raise ValueError(str(error)) from error


def is_kept(value, depth=0):
    """Tell whether a value has no text that a database would not keep, nor depth."""
    if isinstance(value, dict):
        held = [*value, *value.values()]
    elif isinstance(value, list):
        held = value
    else:
        return not (isinstance(value, str) and re.search("[\0\ud800-\udfff]", value))
    return depth < 64 and all(is_kept(one, depth + 1) for one in held)


def spelled(value):
    """Return a value with its types told, and each number as its digits."""
    if isinstance(value, dict):
        return {key: spelled(one) for key, one in value.items()}
    if isinstance(value, list):
        return [spelled(one) for one in value]
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        return "number", 0 if value == 0 else Decimal(value).as_tuple()
    return type(value), value


@given(documents)
def test_the_reader_takes_what_another_strict_one_takes_and_reads_it_alike(body):
    try:
        expected = read_by_another(body)
    except ValueError:
        expected = ...
    if expected is ... or not is_kept(expected):
        with pytest.raises((InvalidJson, ValidationError)):
            loads(body)
    else:
        assert spelled(loads(body)) == spelled(expected)


@given(json_values)
def test_what_is_written_is_read_again_digit_for_digit(value):
    assert spelled(loads(dumps(value).encode())) == spelled(value)


@given(st.decimals(allow_nan=False, allow_infinity=False))
def test_the_reader_rounds_no_number(number):
    text = str(number)
    read = loads(f"[{text}]".encode())[0]

    assert Decimal(read).compare_total(number) == 0 or Decimal(read) == number
    assert Decimal(dumps(read)) == number


def nested(core, around):
    """Return JSON text with one list or object more around it for each of these."""
    for opening in around:
        core = f'{{"a": {core}}}' if opening == "{" else f"[1, {core}]"
    return core.encode()


def arounds(most):
    return st.lists(st.sampled_from("[{"), max_size=most)


@given(texts, arounds(63), st.booleans())
def test_a_key_that_stands_twice_is_refused_at_any_depth(key, around, is_escaped):
    once = json.dumps(key, ensure_ascii=False)
    again = once
    if is_escaped:  # as a reader of texts may not see
        units = key.encode("utf-16-be").hex()
        units = [units[place : place + 4] for place in range(0, len(units), 4)]
        again = '"' + "".join(f"\\u{unit}" for unit in units) + '"'
    with pytest.raises(InvalidJson):
        loads(nested(f"{{{once}: 1, {again}: 1}}", around))


@given(arounds(64), st.sampled_from(['"[[[[{{{{"', "1", '"\\"[["']))
def test_sixty_four_levels_are_read_whatever_they_are(around, core):
    assert loads(nested(core, around)) == json.loads(nested(core, around))


@given(arounds(64), st.integers(65, 100_000), st.booleans())
def test_more_levels_are_refused_and_exhaust_nothing(around, most, is_closed):
    opening = "".join(around) or "["
    depths = (opening * (most // len(opening) + 1)).replace("{", '{"a":')
    closing = "]" * most if is_closed else ""
    with pytest.raises(InvalidJson, match="deep"):
        loads(f"{depths}{closing}".encode())


@given(json_values, st.sampled_from(["utf-16", "utf-16-le", "utf-32", "utf-8-sig"]))
def test_another_encoding_is_refused(value, encoding):
    with pytest.raises(InvalidJson):
        loads(dumps(value).encode(encoding))


@given(
    arounds(60),
    st.sampled_from(
        [
            *(b"NaN", b"Infinity", b"-Infinity", b"'a'", b"\xc2\xa01"),
            b"\xef\xbb\xbf1",
            # Not UTF-8: too long, a surrogate, beyond the last, cut off, alone.
            *(b'"\xc0\x80"', b'"\xed\xa0\x80"', b'"\xf4\x90\x80\x80"', b'"\xe2\x82"'),
            *(b'"\x80"', b'"\xff"', b'"\x00"', b'"\x1f"', b"\x00"),
        ]
    ),
)
def test_what_is_not_json_is_refused_at_any_depth(around, core):
    body = nested("CORE", around).replace(b"CORE", core)
    with pytest.raises(InvalidJson):
        loads(body)


@given(
    arounds(60),
    st.sampled_from(
        ["\\u0000", "\\ud800", "\\udfff", "\\ude00\\ud83d", "\\ud83d\\ud83d\\ude00"]
    ),
    st.booleans(),
)
def test_a_text_that_no_database_keeps_is_refused_at_any_depth(around, text, is_key):
    core = f'{{"{text}": 1}}' if is_key else f'"{text}"'
    with pytest.raises(ValidationError):
        loads(nested(core, around))


def batch_of(attribute):
    """Return the body of a batch whose one user has this JSON as an attribute."""
    return b'{"users": [{"userId": "u1", "attributes": {"a": %b}}]}' % attribute


@pytest.mark.parametrize(
    ("attribute", "times"),
    [
        (b'"%b"' % (b"x" * 1_000_000), 3),
        (b'"%b"' % (b"[" * 1_000_000), 3),
        (b'"%b"' % (b'\\"' * 500_000), 12),
        (b'"%b"' % (b"\\\\" * 500_000), 12),
        (b'"%b"' % (b"\\u00e9" * 166_000), 12),
        (b'"%b"' % (b"\\ud83d\\ude00" * 83_000), 12),
        (b"[%b]" % b",".join([b'""'] * 333_000), 12),
        (b"[%b]" % b",".join([b"0"] * 500_000), 12),
        # An empty list of two bytes is an object of 56, whoever reads it.
        (b"[%b]" % b",".join([b"[]"] * 333_000), 30),
    ],
    ids=[
        *("text", "brackets in a text", "quotes", "backslashes", "escapes", "pairs"),
        *("texts", "numbers", "lists"),
    ],
)
def test_reading_a_body_takes_memory_of_the_order_of_its_size(attribute, times):
    body = batch_of(attribute)
    expected = json.loads(body)
    tracemalloc.start()
    try:
        read = loads(body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert read == expected
    assert peak < times * len(body)


def test_a_key_that_stands_twice_is_found_in_linear_time_and_told_in_short():
    keys = b",".join(b'"%d": 1' % number for number in range(50_000))
    began = time.process_time()
    with pytest.raises(InvalidJson, match="'49999' stands twice"):
        loads(b'{%b, "49999": 2}' % keys)
    assert time.process_time() - began < 5

    key = b'"%b": 1' % (b"k" * 500_000)
    with pytest.raises(InvalidJson) as refused:
        loads(b"{%b, %b}" % (key, key))
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(
    "number",
    [b"1" * 1_000_000, b"1e999999999", b"-1e-999999999", b"0." + b"1" * 900_000],
    ids=["a million digits", "large", "small", "many decimals"],
)
@pytest.mark.parametrize("field", [b"attributes", b"value"])
def test_a_huge_number_costs_little(api, running, number, field):
    path = running()
    rows = {
        b"attributes": ("assignments", b'{"users": [{"userId": "u", %b: {"a": %b}}]}'),
        b"value": ("conversions", b'{"conversions": [{"userId": "u", %b: %b}]}'),
    }
    kind, form = rows[field]
    body = form % (b'"%b"' % field, number)
    headers = {"Content-Type": "application/json"}
    began = time.process_time()
    answer = api("POST", f"{path}/{kind}/batch", data=body, headers=headers)

    assert time.process_time() - began < 5
    # Of a whole number Python reads 4,300 digits; of another, all.
    is_read = field == b"attributes" and number[:2] != b"11"
    assert answer.status_code == (200 if is_read else 400)
    assert len(answer.data) < 1_000


def piecewise(text, place):
    """Return a text in JSON that begins so that *text* is at this place of a body."""
    return f'["{"x" * (place - 3)}", {text}]'.encode()


@given(
    st.integers(PIECE - 12, PIECE + 4),
    st.sampled_from(
        [
            '"\\\\"',
            '"\\""',
            '"\\\\\\""',
            '"[[[[{{{{"',
            '"]]]]"',
            '[{"a": "]"}]',
            '"é😀"',
        ]
    ),
    st.booleans(),
)
def test_the_depth_is_counted_across_the_pieces_that_a_body_is_read_in(
    place, text, is_too_deep
):
    deep = "[" * (64 if is_too_deep else 60) + "]" * (64 if is_too_deep else 60)
    body = piecewise(f"{text}, {deep}", place)
    if is_too_deep:
        with pytest.raises(InvalidJson, match="deep"):
            loads(body)
    else:
        assert loads(body) == json.loads(body)


@given(
    st.lists(
        st.sampled_from(
            [
                *("\\ud83d", "\\ude00", "\\uDBFF", "\\uDfff", "\\\\", "\\n", "d"),
                *("\\u0000", "\\u0001", "\\ud7ff", "\\ue000", "u0000", "ud83d"),
            ]
        ),
        max_size=8,
    )
)
def test_a_text_of_escapes_is_refused_exactly_where_no_database_keeps_it(some):
    body = f'["{"".join(some)}"]'.encode()
    expected = json.loads(body)
    if is_kept(expected):
        assert loads(body) == expected
    else:
        with pytest.raises(ValidationError):
            loads(body)


BATCHES = {
    "users": "assignments/batch",
    "conversions": "conversions/batch",
    "events": "/api/events/batch",
}


def send_batch(api, path, rows, body):
    """Send a batch; return the answer and the seconds of work that it took."""
    where = BATCHES[rows] if BATCHES[rows][0] == "/" else f"{path}/{BATCHES[rows]}"
    headers = {"Content-Type": "application/json"}
    began = time.process_time()
    answer = api("POST", where, data=body, headers=headers)
    return answer, time.process_time() - began


@pytest.mark.parametrize("rows", BATCHES)
@pytest.mark.parametrize(
    "row",
    [
        b"0",
        b"{}",
        b'""',
        b"[]",
        b"null",
        b'"\\\\\\","',
        b'{"userId": "u", "a": [0, 0]}',
    ],
)
def test_a_batch_that_is_too_long_is_refused_before_a_row_is_read(
    api, running, rows, row
):
    path = running()
    many = b",".join([row] * (10_000_000 // (len(row) + 1)))

    refused, took = send_batch(api, path, rows, b'{"%b": [%b]}' % (rows.encode(), many))

    error = assert_error(refused, 400, "VALIDATION_ERROR")
    assert error["details"] == [
        {"path": rows, "message": "A batch has at most 10,000 rows."}
    ]
    assert took < 0.5
    assert api.get(path).json["data"]["_count"] == {"assignments": 0}


@pytest.mark.parametrize("rows", BATCHES)
def test_the_rows_of_a_batch_are_counted_and_no_commas_but_theirs(api, running, rows):
    path = running()
    commas = {
        "userId": "u,1",
        "a,b": [[",", ","]] * 2_000,
        "c": {str(n): 1 for n in range(90)},
    }
    wrong = json.dumps({rows: [commas, *([0] * 9_999)], "b": ","}).encode()

    refused, _ = send_batch(api, path, rows, wrong)

    error = assert_error(refused, 400, "VALIDATION_ERROR")
    assert {f"{rows}.0.a,b", f"{rows}.0.c", f"{rows}.1"} <= paths(error)
    assert "10,000" not in refused.text
    over, _ = send_batch(api, path, rows, wrong.replace(b"0]", b"0, 0]", 1))
    assert "10,000" in over.text


@pytest.mark.parametrize(
    ("rows", "row"),
    [
        ("users", b"0"),
        ("users", b'{"userId": 1, "x": 2}'),
        ("conversions", b'{"value": "x", "metric": 5, "occurredAt": 5, "q": 1}'),
        ("events", b"[]"),
    ],
)
def test_a_refusal_names_a_hundred_errors_and_looks_for_no_more(
    api, running, rows, row
):
    path = running()
    body = b'{"%b": [%b]}' % (rows.encode(), b",".join([row] * 9_999))

    refused, took = send_batch(api, path, rows, body)

    error = assert_error(refused, 400, "VALIDATION_ERROR")
    assert len(error["details"]) == 100
    last = error["details"][-1]["path"].split(".")[1]
    assert int(last) < 100
    assert took < 2
