"""The wire: strict JSON in, one shape of errors out, nothing secret in the logs."""

import base64
import contextlib
import hashlib
import io
import json
import logging
import re
from decimal import Decimal
from urllib.parse import urljoin

import pytest
from conftest import SECRET, assert_error, two_variants
from hypothesis import given
from hypothesis import strategies as st
from marshmallow import ValidationError

import app as application
import schemas
import wire

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


def test_bad_paths_and_methods_have_the_one_shape(api):
    assert_error(api.get("/nowhere"), 404, "NOT_FOUND")
    refused = api.delete("experiments")
    assert_error(refused, 405, "METHOD_NOT_ALLOWED")
    assert {"GET", "POST"} <= set(refused.headers["Allow"].replace(",", " ").split())


def test_a_crash_has_the_one_shape_and_tells_nothing(app, api):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(wire.Lines())
    wire.log.addHandler(handler)

    @app.get("/crash/<user_id>")
    def crash(user_id):
        raise KeyError(user_id)

    try:
        response = api.get("/crash/marker")
    finally:
        wire.log.removeHandler(handler)

    assert_error(response, 500, "INTERNAL_ERROR")
    assert "marker" not in response.text
    line = json.loads(stream.getvalue())
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
    handler.setFormatter(wire.Lines())
    wire.log.addHandler(handler)
    wire.log.setLevel(logging.INFO)
    path = running()
    try:
        api.post(f"{path}/assignments", {"userId": "marker-user"})
        told = api.get(f"{path}/assignments/marker-user").headers["X-Request-ID"]
        api.get("users/marker-user/assignments")
        api.get("experiments/undefined")
    finally:
        wire.log.removeHandler(handler)

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


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
            inner,
        )
    ),
    max_leaves=20,
)


@given(json_values)
def test_the_reader_agrees_with_the_standard_one_on_all_that_is_strict(value):
    assert schemas.loads(json.dumps(value).encode()) == value


@given(st.decimals(allow_nan=False, allow_infinity=False))
def test_the_reader_rounds_no_number(number):
    text = str(number)
    read = schemas.loads(f"[{text}]".encode())[0]

    assert Decimal(read).compare_total(number) == 0 or Decimal(read) == number
    assert Decimal(schemas.dumps(read)) == number


@given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_the_reader_refuses_and_never_crashes(body):
    with contextlib.suppress(schemas.InvalidJson, ValidationError):
        schemas.loads(body)


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


def test_every_request_has_an_id_of_its_own(api):
    told = {api.get("experiments").headers["X-Request-ID"] for _ in range(20)}

    assert len(told) == 20


def test_a_refusal_is_logged_with_its_code_and_without_what_was_sent(
    app, api, anonymous, running
):
    path = running()
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(wire.Lines())
    wire.log.addHandler(handler)
    wire.log.setLevel(logging.INFO)
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
        wire.log.removeHandler(handler)

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
