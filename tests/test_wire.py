"""The wire: strict JSON in, one shape of errors out, nothing secret in the logs."""

import io
import json
import logging
import random
import time
from decimal import Decimal

import marshmallow
import pytest
from conftest import SECRET, Caller, assert_error, configured, paths, two_variants
from hypothesis import strategies as st

import app as application
import models
from storage import columns
from targeting import decision
from web.fields import Answer, Items, Wire
from web.json import dumps
from web.logging import Lines, log

BODY = {"name": "Onboarding", "variants": two_variants()}


def post(api, data, **headers):
    told = {"Content-Type": "application/json", **headers}
    return api("POST", "experiments", data=data, headers=told)


@pytest.mark.one_engine
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


@pytest.mark.one_engine
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


@pytest.mark.one_engine
def test_a_config_has_at_most_16_kib(api):
    body = json.loads(json.dumps(BODY))
    body["variants"][0]["config"] = {"k": "x" * 16_384}

    error = assert_error(api.post("experiments", body), 400, "VALIDATION_ERROR")

    assert error["details"][0]["path"] == "variants.0.config"


@pytest.mark.one_engine
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


@pytest.mark.one_engine
def test_a_body_over_a_mebibyte_without_a_length_is_refused(api):
    large = json.dumps({**BODY, "description": "x" * 1_048_576}).encode()
    chunked = {
        "input_stream": io.BytesIO(large),
        "environ_overrides": {"CONTENT_LENGTH": ""},
        "headers": {"Content-Type": "application/json", "Transfer-Encoding": "chunked"},
    }

    assert_error(post(api, large), 413, "PAYLOAD_TOO_LARGE")
    assert_error(api("POST", "experiments", **chunked), 413, "PAYLOAD_TOO_LARGE")


@pytest.mark.one_engine
def test_a_body_that_is_cut_off_is_refused(api):
    options = {
        "input_stream": io.BytesIO(b'{"name": '),
        "environ_overrides": {"CONTENT_LENGTH": "500"},
        "headers": {"Content-Type": "application/json"},
    }

    assert_error(api("POST", "experiments", **options), 400, "BAD_REQUEST")


class Vanished(io.BytesIO):
    """The body of a client that has reset the connection, as gunicorn gives it."""

    def read(self, *_):
        raise ConnectionResetError


@pytest.mark.one_engine
def test_a_client_that_vanishes_within_a_body_is_no_crash(api, running):
    options = {
        "input_stream": Vanished(),
        "environ_overrides": {"CONTENT_LENGTH": "500"},
        "headers": {"Content-Type": "application/json"},
    }

    for path in ("experiments", f"{running()}/assignments"):
        assert_error(api("POST", path, **options), 400, "BAD_REQUEST")


def test_an_absent_body_is_an_empty_one_where_nothing_is_required(api, draft):
    assert api.post(f"{draft()}/start").status_code == 200
    assert_error(api.post(f"{draft()}/start", {"x": 1}), 400, "VALIDATION_ERROR")
    assert_error(post(api, b""), 400, "VALIDATION_ERROR")


@pytest.mark.one_engine
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


@pytest.mark.one_engine
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


@pytest.mark.one_engine
def test_a_parameter_that_stands_twice_is_refused(api):
    error = assert_error(api.get("experiments?page=1&page=2"), 400, "VALIDATION_ERROR")

    assert paths(error) == {"page"}


def test_a_page_of_sixteen_digits_is_empty_and_one_of_more_is_refused(api, draft):
    draft()
    for path in ("experiments", "audiences", "users/u1/assignments"):
        past = api.get(f"{path}?limit=100&page={'9' * 16}")
        assert (past.status_code, past.json["data"]) == (200, [])
        assert_error(api.get(f"{path}?page=1{'0' * 16}"), 400, "VALIDATION_ERROR")


@pytest.mark.one_engine
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


@pytest.mark.one_engine
def test_bad_paths_and_methods_have_the_one_shape(api):
    assert_error(api.get("/nowhere"), 404, "NOT_FOUND")
    refused = api.delete("experiments")
    assert_error(refused, 405, "METHOD_NOT_ALLOWED")
    assert {"GET", "POST"} <= set(refused.headers["Allow"].replace(",", " ").split())


@pytest.mark.one_engine
def test_a_crash_has_the_one_shape_and_tells_nothing(database_url):
    app = application.create_app(configured(database_url))
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Lines())
    log.addHandler(handler)

    @app.get("/crash/<user_id>")
    def crash(user_id):
        raise KeyError(user_id)

    try:
        response = Caller(app, None).get("/crash/marker")
        app.extensions["database"].shut()
    finally:
        log.removeHandler(handler)

    assert_error(response, 500, "INTERNAL_ERROR")
    assert "marker" not in response.text
    line = json.loads(stream.getvalue().splitlines()[0])
    assert line["error"] == "KeyError" and "in crash" in line["traceback"]
    assert "marker" not in stream.getvalue()


@pytest.mark.one_engine
@pytest.mark.parametrize("path", ["experiments", "/nowhere", "/healthz", "/docs/"])
def test_no_answer_is_sniffed_stored_framed_or_told_on(api, path):
    headers = api.get(path).headers

    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "no-referrer"
    policy = headers["Content-Security-Policy"].split("; ")
    assert {"default-src 'none'", "frame-ancestors 'none'"} <= set(policy)


@pytest.mark.one_engine
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


def called_from(origins, folder):
    """Return a client of a service that these origins may call from a browser."""
    settings = {
        "TESTING": True,
        "JWT_SECRET_KEY": SECRET,
        "DATABASE_URL": f"sqlite:///{folder / 'cors.db'}",
        "CORS_ORIGINS": origins,
    }
    return application.create_app(settings).test_client()


@pytest.mark.one_engine
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


@pytest.mark.one_engine
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


@pytest.mark.one_engine
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


@pytest.mark.one_engine
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


@pytest.mark.one_engine
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


@pytest.mark.one_engine
def test_options_is_answered_everywhere_and_never_crashes(app, anonymous):
    for rule in app.url_map.iter_rules():
        path = rule.rule.replace("<id>", "exp_1").replace("<path:user_id>", "u1")
        if "<" not in path:
            response = anonymous("OPTIONS", path)
            assert response.status_code < 500, (rule, response.text)


@pytest.mark.one_engine
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


@pytest.mark.one_engine
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


@pytest.mark.one_engine
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


@pytest.mark.one_engine
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_page_redirects_to_no_host_and_no_scheme(anonymous, scheme):
    told = anonymous.get(
        "/docs", base_url=f"{scheme}://evil.example", headers={"Host": "evil"}
    )

    assert (told.status_code, told.headers["Location"]) == (308, "/docs/")
    assert "evil" not in told.text


@pytest.mark.one_engine
def test_every_request_has_an_id_of_its_own(api):
    told = {api.get("experiments").headers["X-Request-ID"] for _ in range(20)}

    assert len(told) == 20


@pytest.mark.one_engine
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


def any_experiment(chance):
    """Return an experiment with random values, as its table would give it."""

    def any_of(*values):
        return chance.choice([None, *values])

    def moment():
        return columns.EPOCH + chance.randrange(10**15) * columns.MICROSECOND

    experiment = models.Experiment(
        key=f"key-{chance.random()}",
        name=chance.choice(["Onboarding", 'Zoë "1" %s', "\u2028"]),
        description=any_of("", "A text\n"),
        type="ab_test",
        status=chance.choice(decision.STATUSES),
        audience_id=any_of("aud-1"),
        primary_metric="order",
        plan=any_of({"baseline_rate": Decimal("0.1"), "minimum_effect": 1}),
        traffic=chance.randrange(1, 10_001),
        start_date=any_of(moment()),
        end_date=any_of(moment()),
        archived_at=any_of(moment()),
        conclusion=any_of("won"),
        winner_variant_id=any_of("v1"),
    )
    experiment._variants = [
        models.Variant(
            key=f"v{number}",
            name=f"Variant {number}",
            split=chance.randrange(1, 10_001),
            flow_id=any_of("flow_a"),
            config=any_of({}, {"price": Decimal("2.50"), "list": [1, None, "é"]}),
            participants=chance.randrange(100),
        )
        for number in range(chance.randrange(2, 6))
    ]
    return experiment


@pytest.mark.one_engine
@pytest.mark.parametrize("schema", [application.EXPERIMENT, application.WARNED])
def test_the_quick_way_to_an_answer_writes_what_marshmallow_does(app, schema):
    chance = random.Random(11)
    rows = [any_experiment(chance) for _ in range(300)]

    variant = schema.fields["variants"].inner.schema

    for row in rows:
        assert dumps(schema.dump(row)) == dumps(marshmallow.Schema.dump(schema, row))
        for one in row.variants:
            whole = dumps(marshmallow.Schema.dump(variant, one))
            assert dumps(variant.dump(one)) == whole
    whole = dumps(schema.dump(rows, many=True))
    assert whole == dumps(marshmallow.Schema.dump(schema, rows, many=True))
