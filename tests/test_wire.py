"""The wire: strict JSON in, one shape of errors out, nothing secret in the logs."""

import base64
import hashlib
import io
import json
import logging
import re
import time
import tracemalloc
from decimal import Decimal
from urllib.parse import urljoin

import marshmallow
import pytest
from conftest import SECRET, assert_error, paths, two_variants
from hypothesis import given
from hypothesis import strategies as st
from marshmallow import ValidationError
from openapi_spec_validator import OpenAPIV31SpecValidator

import app as application
from targeting import audience
from web.fields import Answer, Items, Wire
from web.json import PIECE, InvalidJson, dumps, loads
from web.logging import Lines, log

BODY = {"name": "Onboarding", "variants": two_variants()}


def post(api, data, **headers):
    told = {"Content-Type": "application/json", **headers}
    return api("POST", "experiments", data=data, headers=told)


@pytest.mark.parametrize(
    "body",
    [
        b'{"name": "a"',
        b'{"name": "a"} trailing',
        b'{"name": "a", "name": "b"}',
        b'{"variants": [{"name": "a", "name": "a"}]}',
        b'{"name": NaN}',
        b'{"name": -Infinity}',
        b'\xef\xbb\xbf{"name": "a"}',
        b"[" * 65 + b"]" * 65,
        b'{"a":' * 100_000,
        b'{"name": "\xff"}',
        '{"name": "a"}'.encode("utf-16"),
        b"1" * 5_000,
    ],
)
def test_what_two_readers_may_read_differently_is_not_json(api, body):
    assert_error(post(api, body), 400, "INVALID_JSON")
    assert api.get("experiments").json["meta"]["total"] == 0


@pytest.mark.parametrize(("name", "path"), [("\\ud800", "name"), ("a\\u0000b", "name")])
def test_a_text_that_no_database_keeps_is_refused_with_its_path(api, name, path):
    body = json.dumps(BODY).replace("Onboarding", name)

    error = assert_error(post(api, body), 400, "VALIDATION_ERROR")

    assert [one["path"] for one in error["details"]] == [path]


def test_sixty_four_levels_are_read(api):
    config = b'{"a":' * 61 + b"1" + b"}" * 61
    body = json.dumps(BODY).replace('"flow_a"', '"flow_a", "config": CONFIG')

    made = post(api, body.encode().replace(b"CONFIG", config))

    assert made.status_code == 201, made.text


def test_a_config_comes_back_untouched(api):
    config = '{"z": 12345678901234567890.123456789, "a": 1.10, "big": 1e400, "é": null}'
    body = json.dumps(BODY).replace('"flow_a"', f'"flow_a", "config": {config}')

    made = post(api, body.encode())
    read = api.get(f"experiments/{made.json['data']['id']}").text

    assert made.status_code == 201
    assert '"z": 12345678901234567890.123456789, "a": 1.10, "big": 1E+400' in read
    assert '"é": null' in read


def test_a_config_has_at_most_16_kib(api):
    body = json.loads(json.dumps(BODY))
    body["variants"][0]["config"] = {"k": "x" * 16_384}

    error = assert_error(api.post("experiments", body), 400, "VALIDATION_ERROR")

    assert error["details"][0]["path"] == "variants.0.config"


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Content-Type": "text/plain"}, 415, "UNSUPPORTED_MEDIA_TYPE"),
        (
            {"Content-Type": "application/x-www-form-urlencoded"},
            415,
            "UNSUPPORTED_MEDIA_TYPE",
        ),
        ({"Content-Encoding": "gzip"}, 415, "UNSUPPORTED_MEDIA_TYPE"),
    ],
)
def test_a_body_that_is_not_plain_json_is_refused(api, headers, status, code):
    assert_error(post(api, json.dumps(BODY), **headers), status, code)


def test_a_body_over_a_mebibyte_is_refused_also_when_its_length_is_not_told(api):
    large = json.dumps({**BODY, "description": "x" * 1_048_576}).encode()
    chunked = {
        "input_stream": io.BytesIO(large),
        "environ_overrides": {"CONTENT_LENGTH": ""},
        "headers": {"Content-Type": "application/json", "Transfer-Encoding": "chunked"},
    }

    assert_error(post(api, large), 413, "PAYLOAD_TOO_LARGE")
    assert_error(api("POST", "experiments", **chunked), 413, "PAYLOAD_TOO_LARGE")


def test_a_body_that_is_cut_off_is_refused(api):
    options = {
        "input_stream": io.BytesIO(b'{"name": '),
        "environ_overrides": {"CONTENT_LENGTH": "500"},
        "headers": {"Content-Type": "application/json"},
    }

    assert_error(api("POST", "experiments", **options), 400, "BAD_REQUEST")


def test_an_absent_body_is_an_empty_one_where_nothing_is_required(api, draft):
    assert api.post(f"{draft()}/start").status_code == 200
    assert_error(api.post(f"{draft()}/start", {"x": 1}), 400, "VALIDATION_ERROR")
    assert_error(post(api, b""), 400, "VALIDATION_ERROR")


@pytest.mark.parametrize(
    "query",
    [
        "page=0",
        "page=-1",
        "page=1.5",
        "page=",
        "page=1_0",
        "page=%EF%BC%91",
        "page=abc",
        "page=1%00",
        "page=99999999999999999999",
        "limit=0",
        "limit=101",
        "status=RUNNING",
        "status=",
        "archived=1",
        "sort=name",
    ],
)
def test_a_query_that_is_not_understood_is_refused(api, query):
    assert_error(api.get(f"experiments?{query}"), 400, "VALIDATION_ERROR")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "experiments/ID"),
        ("DELETE", "experiments/ID"),
        ("POST", "experiments/ID/start"),
        ("POST", "experiments/ID/assignments"),
        ("DELETE", "users/u1"),
        ("POST", "sample-size"),
    ],
)
def test_a_query_that_nobody_reads_is_refused_and_does_nothing(
    api, draft, method, path
):
    own = draft()
    asked = path.replace("experiments/ID", own)

    error = assert_error(api(method, f"{asked}?dryRun=true"), 400, "VALIDATION_ERROR")

    assert paths(error) == {"dryRun"}
    read = api.get(own).json["data"]
    assert (read["status"], read["archivedAt"]) == ("draft", None)


def test_a_parameter_that_stands_twice_is_refused(api):
    error = assert_error(api.get("experiments?page=1&page=2"), 400, "VALIDATION_ERROR")

    assert paths(error) == {"page"}


def test_a_page_of_sixteen_digits_is_empty_and_one_of_more_is_refused(api, draft):
    draft()
    for path in ("experiments", "audiences", "users/u1/assignments"):
        past = api.get(f"{path}?limit=100&page={'9' * 16}")
        assert (past.status_code, past.json["data"]) == (200, [])
        assert_error(api.get(f"{path}?page=1{'0' * 16}"), 400, "VALIDATION_ERROR")


def test_head_asks_as_get_does_and_answers_without_a_body(api, anonymous, draft):
    path = draft()
    for asked in ("experiments", path, f"{path}/export", "/healthz"):
        told = api("HEAD", asked)
        told.close()  # as a server does: an export gives its slot back
        whole = api.get(asked)
        assert (told.status_code, told.data) == (200, b"")
        assert told.headers["Content-Type"] == whole.headers["Content-Type"]
    assert anonymous("HEAD", path).status_code == 401
    assert api("HEAD", "experiments/exp_none").status_code == 404


def test_bad_paths_and_methods_have_the_one_shape(api):
    assert_error(api.get("/nowhere"), 404, "NOT_FOUND")
    refused = api.delete("experiments")
    assert_error(refused, 405, "METHOD_NOT_ALLOWED")
    assert {"GET", "POST"} <= set(refused.headers["Allow"].replace(",", " ").split())


def test_a_crash_has_the_one_shape_and_tells_nothing(app, api):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Lines())
    log.addHandler(handler)

    @app.get("/crash/<user_id>")
    def crash(user_id):
        raise KeyError(user_id)

    try:
        response = api.get("/crash/marker")
    finally:
        log.removeHandler(handler)

    assert_error(response, 500, "INTERNAL_ERROR")
    assert "marker" not in response.text
    line = json.loads(stream.getvalue().splitlines()[0])
    assert line["error"] == "KeyError" and "in crash" in line["traceback"]
    assert "marker" not in stream.getvalue()


@pytest.mark.parametrize("path", ["experiments", "/nowhere", "/healthz", "/docs/"])
def test_no_answer_is_sniffed_stored_framed_or_told_on(api, path):
    headers = api.get(path).headers

    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "no-referrer"
    policy = headers["Content-Security-Policy"].split("; ")
    assert {"default-src 'none'", "frame-ancestors 'none'"} <= set(policy)


def test_the_docs_page_runs_its_own_scripts_and_no_other(anonymous):
    page = anonymous.get("/docs/", headers={"Host": "marker.example"})
    policy = page.headers["Content-Security-Policy"]

    (inline,) = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    proof = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
    assert f"script-src 'self' 'sha256-{proof}';" in policy
    assert "unsafe" not in policy.replace("style-src 'self' 'unsafe-inline'", "")
    assert "http" not in policy and "*" not in policy
    assert "marker" not in page.text
    assert not re.search(r"\son\w+=", page.text)


def test_log_lines_are_json_without_tokens_or_users(app, api, running):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Lines())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    path = running()
    try:
        api.post(f"{path}/assignments", {"userId": "marker-user"})
        told = api.get(f"{path}/assignments/marker-user").headers["X-Request-ID"]
        api.get("users/marker-user/assignments")
        api.get("experiments/undefined")
    finally:
        log.removeHandler(handler)

    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert told in {line["requestId"] for line in lines}
    assert {line["status"] for line in lines} >= {200, 201, 404}
    assert all({"time", "method", "route", "ms"} <= set(line) for line in lines)
    assert "marker-user" not in stream.getvalue()
    assert api.headers["Authorization"].split()[1] not in stream.getvalue()


def test_the_document_is_openapi_3_1_and_names_every_endpoint(app, anonymous):
    document = anonymous.get("/openapi.json").json

    assert document["openapi"] == "3.1.0"
    written = {
        (path, method)
        for path, operations in document["paths"].items()
        for method in operations
        if method != "parameters"
    }
    served = {
        (
            rule.rule.replace("<path:", "{").replace("<", "{").replace(">", "}"),
            method.lower(),
        )
        for rule in app.url_map.iter_rules()
        if rule.rule.startswith("/api")
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }
    assert written == served
    for path, method in written:
        assert document["paths"][path][method]["summary"], path
    OpenAPIV31SpecValidator(document).validate()


def test_the_document_says_that_a_key_stands_wherever_an_id_does(anonymous):
    document = anonymous.get("/openapi.json").json

    described = [
        parameter["description"]
        for path, item in document["paths"].items()
        if path.startswith("/api/experiments/{id}")
        for parameter in item["parameters"]
        if (parameter["in"], parameter["name"]) == ("path", "id")
    ]
    assert len(described) > 15
    assert set(described) == {
        "An experiment's `id`, which begins with `exp_`, or its `key`."
    }


def test_the_document_knows_every_operator_of_a_rule(anonymous):
    tree = anonymous.get("/openapi.json").json["components"]["schemas"]["RuleTree"]

    told = [
        operator
        for shape in tree["anyOf"]
        for operator in shape["properties"].get("operator", {}).get("enum", [])
    ]
    assert sorted(told) == sorted(audience.OPERATORS)


def test_the_docs_page_asks_no_other_host(anonymous):
    page = anonymous.get("/docs/")

    assert page.status_code == 200
    assert set(re.findall(r"https?://([^/\"']+)", page.text)) <= {"localhost"}
    for name in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        with anonymous.get(urljoin("/docs/", name)) as held:
            assert held.status_code == 200, name
    assert anonymous.get("/").headers["Location"] == "/docs/"


def called_from(origins, folder):
    """Return a client of a service that these origins may call from a browser."""
    settings = {
        "TESTING": True,
        "JWT_SECRET_KEY": SECRET,
        "DATABASE_URL": f"sqlite:///{folder / 'cors.db'}",
        "CORS_ORIGINS": origins,
    }
    return application.create_app(settings).test_client()


def test_only_the_origins_named_may_call_from_a_browser(app, tmp_path):
    client = called_from("https://shop.example", tmp_path)
    path = "/api/experiments/exp_1/assignments"

    def preflight(origin, where):
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        answer = client.options(where, headers=asked)
        assert answer.status_code == 200, answer.text
        return answer.headers

    name = "Access-Control-Allow-Origin"
    assert preflight("https://shop.example", path)[name] == "https://shop.example"
    assert name not in preflight("https://evil.example", path)
    assert name not in preflight("https://shop.example", "/api/experiments")


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
numbers = st.integers() | st.decimals(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=20,
)
# What strange documents are made of: all of JSON's words, and what is near them.
scraps = st.sampled_from(
    [
        *("{", "}", "[", "]", ",", ":", " ", "\n", "\ufeff", "\0", "/*", "'a'"),
        *(
            '"',
            '"a"',
            '"a":',
            '"\\u0061":',
            '"\\ud83d\\ude00"',
            '"\\udc00"',
            '"\\u0000"',
        ),
        *("null", "true", "False", "NaN", "-Infinity", "1E400", "-0", "0.10", "01"),
        *("1", "-", ".5", "5.", "e9", "+", "1_0", "0x1", "\u0661", "9" * 4_301),
    ]
)
documents = st.one_of(
    st.binary(),
    st.text().map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(scraps, max_size=12).map(lambda some: "".join(some).encode()),
    json_values.map(lambda value: dumps(value).encode()),
)


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


@pytest.mark.parametrize("place", ["a batch", "a row", "a body", "a rule", "a variant"])
def test_of_a_million_unknown_keys_a_hundred_are_named(api, running, place):
    path = running()
    is_batch = place in ("a batch", "a row")
    keys = b",".join(
        b'"x%d": 0' % each for each in range(400_000 if is_batch else 80_000)
    )
    where, body = {
        "a batch": (f"{path}/assignments/batch", b"{%b}" % keys),
        "a row": (f"{path}/assignments/batch", b'{"users": [{%b}]}' % keys),
        "a body": (f"{path}/assignments", b"{%b}" % keys),
        "a rule": ("audiences", b'{"name": "a", "ruleTree": {%b}}' % keys),
        "a variant": ("experiments", b'{"name": "a", "variants": [{%b}, {}]}' % keys),
    }[place]
    began = time.process_time()
    refused = api(
        "POST", where, data=body, headers={"Content-Type": "application/json"}
    )

    error = assert_error(refused, 400, "VALIDATION_ERROR")
    assert len(error["details"]) == 100
    assert time.process_time() - began < 3


@pytest.mark.parametrize(
    ("where", "body"),
    [
        ("experiments", '{"name": "a", "variants": [LIST]}'),
        (
            "sample-size",
            '{"baselineRate": 0.1, "minimumEffect": 0.1, "splits": [LIST]}',
        ),
        (
            "audiences",
            '{"name": "a", "ruleTree": {"logicalOperator": "OR", "rules": [LIST]}}',
        ),
    ],
)
@pytest.mark.parametrize("item", ["0", "{}", '""'])
def test_every_list_is_refused_by_its_length_before_its_items(api, where, body, item):
    items = ",".join([item] * (1_000_000 // (len(item) + 1)))
    began = time.process_time()
    refused = api(
        "POST",
        where,
        data=body.replace("LIST", items),
        headers={"Content-Type": "application/json"},
    )

    error = assert_error(refused, 400, "VALIDATION_ERROR")
    assert len(error["details"]) <= 100
    assert time.process_time() - began < 2


def test_every_list_that_is_read_has_a_bound_and_checks_it_first():
    waiting, bounded = [Wire], set()
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        for name, field in kind().load_fields.items():
            if isinstance(field, marshmallow.fields.List) and not issubclass(
                kind, Answer
            ):
                assert isinstance(field, Items), (kind, name)
                assert any(getattr(rule, "max", 0) for rule in field.validators)
                bounded.add(name)
    assert {"users", "conversions", "events", "variants", "splits"} <= bounded


@pytest.mark.parametrize(
    "body",
    [
        '{"userId": "LONG"}',
        '{"userId": "BLANK"}',
        '{"LONG": 1}',
        '{"userId": "u", "attributes": {"LONG": "\\u0000"}}',
        '{"userId": "u", "attributes": {"LONG": {"LONG": "\\ud800"}}}',
        '{"LONG": 1, "LONG": 2}',
    ],
)
def test_what_was_sent_is_not_sent_back_whole(api, running, body):
    body = body.replace("LONG", "long" * 50_000).replace("BLANK", "\u3000" * 200_000)

    refused = api(
        "POST",
        f"{running()}/assignments",
        data=body.encode(),
        headers={"Content-Type": "application/json"},
    )

    assert refused.status_code == 400
    assert len(refused.data) < 2_500


def test_options_is_answered_everywhere_and_never_crashes(app, anonymous):
    for rule in app.url_map.iter_rules():
        path = rule.rule.replace("<id>", "exp_1").replace("<path:user_id>", "u1")
        if "<" not in path:
            response = anonymous("OPTIONS", path)
            assert response.status_code < 500, (rule, response.text)


def test_a_preflight_needs_no_token(tmp_path):
    client = called_from("https://shop.example", tmp_path)
    asked = {
        "Origin": "https://shop.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type",
    }

    response = client.options("/api/events", headers=asked)

    # A browser takes no preflight for a yes but one with a status of success.
    assert response.status_code in (200, 204), response.text
    assert response.headers["Access-Control-Allow-Origin"] == "https://shop.example"


@pytest.mark.parametrize("body", ["null", "[]", '"text"', "5", "true", "1e400"])
def test_a_body_that_is_no_object_is_refused(api, body):
    assert_error(post(api, body), 400, "VALIDATION_ERROR")
    assert api.get("experiments").json["meta"]["total"] == 0


def test_a_batch_may_have_ten_mebibytes_and_no_more(api, running):
    path = f"{running()}/assignments/batch"

    def send(size):
        users = [{"userId": "u1", "attributes": {"x": "y" * size}}]
        return api.post(path, {"users": users})

    assert send(2 * 1_048_576).status_code == 200
    assert_error(send(10 * 1_048_576), 413, "PAYLOAD_TOO_LARGE")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "audiences/x/batch"),
        ("PATCH", "audiences/batch"),
        ("POST", "audiences/batch/test"),
        ("PUT", "{}/overrides/batch"),
        ("PUT", "{}/overrides/assignments/batch"),
        ("POST", "events"),
        ("POST", "{}/assignments"),
        ("POST", "{}/conversions"),
    ],
)
def test_no_body_but_that_of_a_batch_has_more_than_a_mebibyte(
    api, running, method, path
):
    large = b'{"name": "%b"}' % (b"x" * 1_048_576)
    headers = {"Content-Type": "application/json"}

    refused = api(method, path.format(running()), data=large, headers=headers)

    assert_error(refused, 413, "PAYLOAD_TOO_LARGE")
    assert api.get("audiences").json["data"] == []


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_page_redirects_to_no_host_and_no_scheme(anonymous, scheme):
    told = anonymous.get(
        "/docs", base_url=f"{scheme}://evil.example", headers={"Host": "evil"}
    )

    assert (told.status_code, told.headers["Location"]) == (308, "/docs/")
    assert "evil" not in told.text


def test_every_request_has_an_id_of_its_own(api):
    told = {api.get("experiments").headers["X-Request-ID"] for _ in range(20)}

    assert len(told) == 20


def test_a_refusal_is_logged_with_its_code_and_without_what_was_sent(
    app, api, anonymous, running
):
    path = running()
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Lines())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        marked = {"Authorization": "Bearer marker.token.marker"}
        anonymous.get("experiments", headers=marked)
        anonymous.get("experiments?jwt=marker")
        api.post(f"{path}/conversions", {"userId": "marker"})
        api.post(f"{path}/conversions", {"userId": "u1", "value": "marker"})
        api.get("users/marker%2Fmarker/assignments?page=marker")
        post(api, '{"marker": NaN}')
        api.get("/marker")
    finally:
        log.removeHandler(handler)

    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["code"] for line in lines] == [
        "UNAUTHENTICATED",
        "UNAUTHENTICATED",
        "NOT_ENROLLED",
        "VALIDATION_ERROR",
        "VALIDATION_ERROR",
        "INVALID_JSON",
        "NOT_FOUND",
    ]
    assert "marker" not in stream.getvalue()
