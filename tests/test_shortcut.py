"""The short way answers and writes what the long way does."""

import itertools
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from decimal import Decimal

import peewee
import pytest
from conftest import Caller, assert_error, configured
from flask_jwt_extended import create_access_token
from hypothesis import given
from hypothesis import strategies as st
from marshmallow import ValidationError

from app import create_app
from ledger import proof, single
from ledger.conversions import Event
from models import Assignment, Experiment, Outcome, Tally
from schemas import EventSchema, UsersSchema
from shortcut import plain_event
from storage import engine, traffic, turns
from storage.columns import EPOCH, MICROSECOND, utcnow
from storage.schema import Identity
from targeting.decision import User, decide_each
from web.auth import Claims, Verified
from web.fields import are_plain_ids
from web.json import InvalidJson, loads, plain_texts

EXPERIMENTS = 120


def caller(url):
    """Return a caller of a new app on this database."""
    app = create_app(configured(url))
    with app.app_context():
        return Caller(app, create_access_token("tester"))


def counting(app):
    """Return the list to which the app adds each request of the long way."""
    taken, long_way = [], app.wsgi_app.long_way

    def noted(environ, start_response):
        taken.append(environ["PATH_INFO"])
        return long_way(environ, start_response)

    app.wsgi_app.long_way = noted
    return taken


# ----------------------------------------------------------------------------
# Two services with equal databases, one without the short way
# ----------------------------------------------------------------------------

RULES = {"field": "plan", "operator": "in", "value": ["pro", "team"]}

KINDS = (
    {},
    {"trafficPercentage": 40},
    {"audienceId": "aud_payers"},
    {"exclusionGroup": "checkout", "trafficPercentage": 0.5},
    {"primaryMetric": "Käufe"},
    {
        "metrics": [
            {"name": "order", "kind": "mean", "cap": 0.5},
            {"name": "Käufe", "kind": "ratio"},
            {"name": "conversion", "role": "primary", "window": 1},
        ]
    },
)


@pytest.fixture(scope="module")
def two_ways(tmp_path_factory, new_database):
    """Return a caller of each way, the experiments, and a list for what is asked."""
    folder = tmp_path_factory.mktemp("ways")
    with new_database(folder / "short.db") as url:
        short, paths = caller(url), []
        filled(short, paths)
        with new_database(folder / "long.db", original=url) as copy:
            long = caller(copy)
            yield from compared(short, long, paths)


def filled(short, paths):
    """Make experiments of all kinds; leave the database closed."""
    payers = {"name": "Payers", "ruleTree": RULES}
    assert short("PUT", "audiences/aud_payers", payers).status_code == 201
    for number in range(EXPERIMENTS):
        body = {
            "name": f"100 % {number}",
            "variants": [
                {"name": "Control", "splitPercentage": 50, "config": {"a%s": [1, "ü"]}},
                {"name": "Detailed %d", "splitPercentage": 50, "flowId": 'flow"b'},
            ],
            **KINDS[number % len(KINDS)],
        }
        made = short.post("experiments", body)
        assert made.status_code == 201, made.text
        paths.append(f"experiments/{made.json['data']['id']}")
        assert short.post(f"{paths[-1]}/start").status_code == 200
    short.client.application.extensions["database"].shut()


def compared(short, long, paths):
    """Yield what the tests of both ways need; check that both were taken."""
    application = long.client.application
    application.wsgi_app = application.wsgi_app.long_way
    asked, long_way = [], counting(short.client.application)
    yield short, long, itertools.cycle(paths), asked
    # Otherwise the long way would have been compared with itself.
    assert len(asked) - len(long_way) > 400, (len(asked), len(long_way))
    batches = sum(step[0] == "assignments/batch" for step in asked)
    batches -= sum(place.endswith("/assignments/batch") for place in long_way)
    assert batches > 40, batches
    for one in (short, long):
        one.client.application.extensions["database"].shut()


TEXTS = st.sampled_from(
    ["u1", "u2", "u3", "Zoë", "a b", "用户", 'q"\\', "null", " ", "", "\x00", "x" * 256]
)
ODD = st.sampled_from([None, True, 7, 1.5, [], {}, "2026-11-01T10:00:00Z"])
BODIES = {
    "assignments": st.fixed_dictionaries(
        {"userId": TEXTS | ODD},
        optional={
            "attributes": st.sampled_from([{}, {"plan": "pro"}, {"plan": 3}, None, []]),
            "covariate": st.sampled_from([3, -0.25, None, "3", True, 1e13]),
            "odd": ODD,
        },
    ),
    "conversions": st.fixed_dictionaries(
        {"userId": TEXTS | ODD},
        optional={
            "metric": TEXTS | st.sampled_from(["order", "conversion"]) | ODD,
            "value": st.integers(-(10**13), 10**13)
            | st.decimals(-1000, 1000, places=3).map(float)
            | ODD,
            "occurredAt": ODD | st.just("2099-01-01T00:00:00Z"),
            "idempotencyKey": TEXTS | ODD,
        },
    ),
}
SIMPLE = {
    "assignments": st.fixed_dictionaries(
        {"userId": st.sampled_from(["u1", "u2"])},
        optional={"covariate": st.sampled_from([3, -0.25])},
    ),
    "conversions": st.fixed_dictionaries(
        {"userId": st.sampled_from(["u1", "u2"])},
        optional={
            "metric": st.sampled_from(["order", "Käufe"]),
            "value": st.sampled_from([1, 0.1, -2.25, None]),
            "idempotencyKey": st.sampled_from(["k1", "k2", "k3"]),
        },
    ),
}
RAW = st.sampled_from(
    [
        *(b"", b"{", b"[]", b'"u1"', b'{"userId":"u1","userId":"u2"}'),
        *(b'{"userId":"\xff"}', b'{"userId":"u1"}', b'{"userId":"None"}'),
        *(b'{"userId": "u2"}\n', b'{"userId":"u1",}', b'{"userId":"u\\u0031"}'),
    ]
)
BOOKINGS = st.sampled_from(["assignments", "conversions"]).flatmap(
    lambda kind: st.tuples(
        st.just(kind),
        (SIMPLE[kind] | SIMPLE[kind] | BODIES[kind]).map(
            lambda body: json.dumps(body, ensure_ascii=False).encode()
        )
        | RAW,
        st.sampled_from(["application/json"] * 5 + ["text/plain", "application/JSON"]),
    )
)
MOVES = st.sampled_from(
    [
        ("POST", "stop", None),
        ("POST", "resume", None),
        ("POST", "complete", {"conclusion": "won", "winnerVariantId": "v2"}),
        ("DELETE", "", None),
        ("POST", "unarchive", None),
        ("PUT", "overrides/u1", {"variantId": "v1"}),
        ("DELETE", "overrides/u1", None),
    ]
)


def masked(response):
    """Return what must be equal: without times of the clock, and ids of requests."""
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", response.text)
    text = re.sub(r'"requestId": "\w+"', "", text)
    headers = dict(response.headers)
    del headers["X-Request-ID"]
    if "Content-Length" in headers:  # the times of the clock differ in length
        headers["Content-Length"] = "known"
    return response.status_code, sorted(headers.items()), text


ROWS = {
    "assignment": "id, experiment_id, user_id, variant, covariate",
    "cohort": "*",
    "sums": "*",
    "participant_tally": "*",
    "conversion": "experiment_id, assignment_id, metric, value, idempotency_key",
    "outcome": "*",
    "tally": "experiment_id, variant, metric, users, events, value_users, value_sum,"
    " value_sum_squares",
    "metric": "*",
    "refusal_tally": "*",
}


def stored(caller):
    """Return the rows of all tables that count, without times."""
    with engine.using(caller.client.application.extensions["database"]) as database:
        return {
            table: sorted(
                map(repr, database.execute_sql(f"SELECT {names} FROM {table}"))
            )
            for table, names in ROWS.items()
        }


SEVERAL = st.tuples(
    st.just("users"),
    st.sampled_from(["u1", "u2", "u3", "null", "a%20b", "Zo%C3%AB"]),
    st.lists(st.sampled_from(["100-0", "100-1", "100-2", "100-3", "nobody"])),
    st.sampled_from([{}, {"attributes": {"plan": "pro"}}, {"attributes": None}]),
)


def batch_of(rows, indent=None):
    """Return the step that sends a batch."""
    body = json.dumps({"users": rows}, ensure_ascii=False, indent=indent)
    return "assignments/batch", body.encode(), "application/json"


IDS = st.sampled_from([f"u{number}" for number in range(30)])
PLAIN_BATCHES = st.lists(IDS, min_size=1, max_size=20, unique=True).map(
    lambda ids: batch_of([{"userId": one} for one in ids], 2 if len(ids) == 5 else None)
)
PLAIN_ROWS = st.fixed_dictionaries({"userId": IDS | IDS | TEXTS})
BATCHES = (
    st.lists(PLAIN_ROWS, max_size=12)
    | st.lists(PLAIN_ROWS | BODIES["assignments"] | ODD, max_size=4)
).map(batch_of)

FLAGS = st.tuples(
    st.just("flag"),
    st.sampled_from(["", ".config", ".conf", "\u00eb"]),
    st.fixed_dictionaries(
        {}, optional={"targetingKey": TEXTS | ODD, "plan": st.just("pro")}
    )
    | st.fixed_dictionaries({"targetingKey": st.sampled_from(["u1", "u2", "u3"])})
    | ODD,
    st.sampled_from(["application/json", "application/json; charset=utf-8", "text/x"]),
)

PLAIN = st.sampled_from(["assignments", "conversions"]).flatmap(
    lambda kind: st.tuples(
        st.just(kind),
        SIMPLE[kind].map(lambda body: json.dumps(body).encode()),
        st.just("application/json"),
    )
)


@given(
    st.lists(PLAIN | PLAIN_BATCHES, min_size=4, max_size=12),
    st.lists(
        BOOKINGS | BOOKINGS | SEVERAL | FLAGS | MOVES | BATCHES | PLAIN_BATCHES,
        min_size=4,
        max_size=16,
    ),
)
def test_both_ways_answer_and_write_the_same(two_ways, plain, others):
    short, long, paths, asked_short = two_ways
    path = next(paths)
    for step in plain + others:
        asked_short.append(step)
        if step[0] in BODIES or step[0] == "assignments/batch":
            kind, body, content_type = step
            asked = [
                each.post(f"{path}/{kind}", data=body, content_type=content_type)
                for each in (short, long)
            ]
        elif step[0] == "users":
            _, user, others, attributes = step
            body = {"experiments": [path.partition("/")[2], *others], **attributes}
            place = f"users/{user}/assignments"
            asked = [each.post(place, body) for each in (short, long)]
        elif step[0] == "flag":
            _, ending, context, content_type = step
            place = f"/ofrep/v1/evaluate/flags/{path.partition('/')[2]}{ending}"
            body = json.dumps({"context": context})
            asked = [
                each.post(place, data=body, content_type=content_type)
                for each in (short, long)
            ]
        else:
            method, name, body = step
            place = f"{path}/{name}".removesuffix("/")
            asked = [each(method, place, body) for each in (short, long)]
        assert masked(asked[0]) == masked(asked[1]), step

    assert stored(short) == stored(long)


TOKENS = st.sampled_from(
    [
        *("{", "}", "[", "]", ":", ",", " ", "\n", "7", "null", "NaN", "\ufeff", '"'),
        *('"users"', '"userId"', '"attributes"', '"u1"', '"u2"', '"\\u0041"', '"\0"'),
        *(
            '{"users": [',
            '{"userId": "u1"}',
            '{"userId": "u1"}',
            "]}",
            '{"userId": ""}',
        ),
        *('{"userId": "Undeﬁned"}', '{"userId": "用户"}', '"\u2028"', '"x', "\ud800"),
    ]
)


@given(
    st.lists(TOKENS, max_size=8).map("".join)
    | st.lists(TOKENS, max_size=6).map(lambda some: f'{{"users": [{"".join(some)}]}}')
    | st.lists(
        st.sampled_from(
            ['{"userId": "u1"}', '{"userId": "a", "userId": "b"}', '{"userId": 7}']
        ),
        max_size=3,
    ).map(lambda rows: f'{{"users": [{", ".join(rows)}]}}')
)
def test_a_body_that_is_read_the_short_way_has_the_same_users_the_long_way(text):
    body = text.encode(errors="surrogatepass")
    short = plain_texts(body, "users", "userId")
    if short is None or not are_plain_ids(short):
        return
    read = UsersSchema().load(loads(body, "users"))
    alone = {"attributes": {}, "covariate": None}
    assert read == {"users": [{"user_id": one, **alone} for one in short]}


@pytest.mark.parametrize(
    "body",
    [
        b'{"users": [{"userId": "a", "userId": "b"}]}',
        b'{"users": [{"userId": "a"}], "users": [{"userId": "b"}]}',
        b'{"users": [{"userId": 7}, {"userId": "a", "attributes": 7}]}',
        b'{"users": []}',
        b'{"users": {"userId": "a"}}',
        b'\xef\xbb\xbf{"users": [{"userId": "a"}]}',
        b'{"users": [{"userId": "\\u0061"}]}',
        b'{"users": [{"userId": "\xff"}]}',
        b'{"users": [' + b'{"userId": "a"},' * 10_000 + b'{"userId": "a"}]}',
        b"[" * 100_000,
    ],
)
def test_a_body_that_is_not_plain_is_left_to_the_long_way(body):
    assert plain_texts(body, "users", "userId") is None


@pytest.mark.parametrize("id", ["", " ", "nan", " Null ", "Unde\ufb01ned", "x" * 256])
def test_a_batch_with_a_wrong_id_is_left_to_the_long_way(id):
    assert are_plain_ids(["u1", "x" * 255])
    assert not are_plain_ids(["u1", id])


WORDS = ["u1", "a:b@c.d", "null", "Undefined", "", " ", "x" * 255, "x" * 256, "Zoë"]
NUMBERS = [
    *("0", "1", "-1", "-0", "-0.0", "0.0", "12.5", "12.50", "1e3", "1E+3", "0.1e-2"),
    *("01", "00.5", "01.5", ".5", "5.", "+1", "1_000", "NaN", "Infinity", "-"),
    *("999999999999", "1000000000000", "1000000000001", "9" * 400, "0." + "1" * 341),
    *("0.123456789", "0.1234567891", "99999999999.999999999", "१", "1 2", "0x1"),
]
ODD_VALUES = [
    "null",
    "true",
    "[]",
    "{}",
    r'"\u0061"',
    r'"a\"b"',
    '"\0"',
    "",
    '"',
    "'a'",
]
KEYS = ["userId", "metric", "value", "idempotencyKey", "occurredAt", "x", "userid"]


def read_the_long_way(body):
    """Return the event of a body, or None if the schema refuses it."""
    try:
        return Event(**EventSchema().load(loads(body)))
    except (InvalidJson, ValidationError):
        return None


def compare_the_readers_of_an_event(text):
    short = plain_event(text.encode())
    # The texts show more than equality: the digits of a number, and minus 0.
    assert short is None or repr(short) == repr(read_the_long_way(text.encode())), text


@pytest.mark.parametrize("key", KEYS)
def test_an_event_that_is_read_the_short_way_is_the_same_the_long_way(key):
    values = [*(f'"{word}"' for word in WORDS), *NUMBERS, *ODD_VALUES]
    for before, value, after, between, ends in itertools.product(
        ["", '"userId": "u1"', '"userId":"u2", "value": 1'],
        values,
        ["", '"idempotencyKey":"k1"', '"metric": "order"', '"value":2'],
        [", ", ",", " "],
        ["{}", "{,}", "[]", "{}}", "\ufeff{}", "{}\n"],
    ):
        members = [one for one in (before, f'"{key}": {value}', after) if one]
        compare_the_readers_of_an_event(f"{ends[:-1]}{between.join(members)}{ends[-1]}")


@given(
    st.decimals(allow_nan=False, allow_infinity=False).map(str)
    | st.integers(-(10**13), 10**13).map(str)
    | st.text("0123456789.-+eE", min_size=1, max_size=16)
)
def test_a_number_that_is_read_the_short_way_is_the_same_the_long_way(number):
    compare_the_readers_of_an_event(f'{{"userId": "u1", "value": {number}}}')


@pytest.mark.parametrize("value", ["0", "7", "12.5", "12.50", "0.10", "99999999999"])
def test_an_event_in_the_usual_form_is_read_the_short_way(value):
    members = ['"userId": "u-1"', f'"value": {value}', '"idempotencyKey": "k_1"']
    expected = Event("u-1", None, Decimal(value), None, "k_1")
    for some in itertools.permutations(members):
        for between in (", ", ","):
            body = f"{{{between.join(some)}}}".encode()
            assert repr(plain_event(body)) == repr(expected)
            assert repr(read_the_long_way(body)) == repr(expected)
    assert plain_event(b'{"userId":"u-1"}') == Event("u-1")
    own = b'{"userId":"u-1","metric":"order"}'
    assert plain_event(own) == Event("u-1", "order") == read_the_long_way(own)


@pytest.mark.parametrize(
    "members",
    [
        *('"value": 1', '"userId": "u1", "userId": "u2"', '"userId": "u1", "x": 1'),
        *('"userId": "null"', '"userId": "u1", "idempotencyKey": "NaN"'),
        *('"userId": "u1", "value": 1, "value": 1', '"userId": "u1",', '"userId": 1'),
        *('"userId": "u1" "value": 1', '"userId": "\\u0061"', '"userId": ""'),
        *('"userId": "u1", "occurredAt": null', '"userId": "u1", "metric": "None"'),
        *(f'"userId": "u1", "value": {number}' for number in ("1e3", "-0", "01.5")),
        *(f'"userId": "u1", "value": {number}' for number in ("1.", "null", "9" * 13)),
    ],
)
def test_an_event_in_another_form_is_left_to_its_schema(members):
    assert plain_event(f"{{{members}}}".encode()) is None


# ----------------------------------------------------------------------------
# Which way is taken
# ----------------------------------------------------------------------------


def test_a_plain_request_takes_the_short_way(app, api, running):
    path = running()
    api.post(f"{path}/assignments", {"userId": "u0"})
    api.post(f"{path}/assignments", {"userId": "u9"})
    for user in ("u0", "u9"):  # the first event of a metric is not simple
        api.post(f"{path}/conversions", {"userId": user, "value": 1})
    for number in range(20):
        api.post(f"{path}/assignments", {"userId": f"u{number}"})
        api.post(f"{path}/conversions", {"userId": f"u{number}", "value": 1})
    long_way = counting(app)

    for number in range(20):
        body = {"experiments": [path.partition("/")[2]]}
        answer = api.post(f"users/n{number}/assignments", body).json["data"]
        assert [one["reason"] for one in answer] == ["NEW_ASSIGNMENT"]
        for user in (f"u{number}", f"n{number}"):
            answer = api.post(f"{path}/assignments", {"userId": user})
            assert answer.json["data"]["userId"] == user
            body = {"userId": user, "value": 2.5, "idempotencyKey": user}
            answer = api.post(f"{path}/conversions", body)
            assert answer.status_code == 201
            assert answer.json["data"]["value"] == 2.5

    assert long_way == []
    assert api.get(path).json["data"]["_count"] == {"assignments": 41 - 1}


def test_a_plain_flag_takes_the_short_way(app, api, running):
    config = {"config": {"steps": 5}}
    variants = [
        {"name": name, "splitPercentage": 50, **config} for name in ("Control", "New")
    ]
    path = running(key="checkout", variants=variants)
    id, place = path.partition("/")[2], "/ofrep/v1/evaluate/flags"
    api.post(f"{path}/assignments", {"userId": "u0"})  # the token is known then
    long_way = counting(app)
    for number in range(20):
        context = {"context": {"targetingKey": f"u{number}", "plan": "pro"}}
        for content_type in ("application/json", "application/json; charset=utf-8"):
            flags = [
                api.post(
                    f"{place}/{key}",
                    data=json.dumps(context),
                    content_type=content_type,
                ).json
                for key in ("checkout", "checkout.config", id, f"{id}.config")
            ]
            decision = api.post(f"{path}/assignments", {"userId": f"u{number}"})
            name, variant, steps = (
                decision.json["data"][key]
                for key in ("variantName", "variantId", "config")
            )
            assert [one["value"] for one in flags] == [name, steps] * 2
            assert {one["variant"] for one in flags} == {variant}

    assert long_way == []
    assert api.get(path).json["data"]["_count"] == {"assignments": 20}


def users(ids):
    return {"users": [{"userId": one} for one in ids]}


def test_a_plain_batch_takes_the_short_way(app, api, running):
    path = running(trafficPercentage=50)
    api.post(f"{path}/assignments/batch", users(["before"]))
    long_way = counting(app)
    ids = [f"ü{number}" for number in range(1_300)]

    first = api.post(f"{path}/assignments/batch", users(ids[:1_200])).json["data"]
    again = api.post(f"{path}/assignments/batch", users(ids[::-1])).json["data"]

    assert long_way == []
    assert [one["userId"] for one in first] == ids[:1_200]
    assert [one["userId"] for one in again] == ids[::-1]
    assert {one["reason"] for one in first} == {"NEW_ASSIGNMENT", "HELD_OUT"}
    for one, other in zip(first, again[:99:-1], strict=True):
        assert (one["variantId"], one["assignedAt"]) == (
            other["variantId"],
            other["assignedAt"],
        )
        assert other["reason"] in ("EXISTING_ASSIGNMENT", "HELD_OUT")
    enrolled = sum(one["enrolled"] for one in again)
    before = Assignment.select().where(Assignment.user_id == "before").count()
    assert api.get(path).json["data"]["_count"] == {"assignments": enrolled + before}


def test_an_experiment_that_is_named_twice_takes_one_id(app, api, running):
    path = running()
    name = path.partition("/")[2]

    for user in ("u1", "u2"):
        body = {"experiments": [name, api.get(path).json["data"]["key"], name]}
        told = api.post(f"users/{user}/assignments", body).json["data"]
        reasons = [one["reason"] for one in told]
        assert reasons == ["NEW_ASSIGNMENT", *["EXISTING_ASSIGNMENT"] * 2]

    first, second = Assignment.select().order_by(Assignment.id)
    assert second.id == first.id + 1


def test_nobody_is_entered_if_one_was_enrolled_meanwhile(app, api, running):
    path = running()
    first = api.post(f"{path}/assignments", {"userId": "u1"}).json["data"]
    known = single.memory.get(path.partition("/")[2])
    definition = known.definition
    others = [User(f"n{number}") for number in range(600)]
    new = [single._place(one) for one in decide_each(definition, others, utcnow())]
    again = definition.id, "u1", first["variantId"]

    assert single._entered_at([known], [*new, again]) is None
    older = known._replace(revision=known.revision - 1)
    assert single._entered_at([older], new) is None
    assert api.get(path).json["data"]["_count"] == {"assignments": 1}
    assert [row.variant for row in Assignment.select()] == [first["variantId"]]

    entries = [single.Entry([known], some) for some in (new, new[-1:])]
    with engine.database.atomic():
        first_at, again_at = single._enter(entries)
    assert first_at is not None
    assert again_at is None
    assert api.get(path).json["data"]["_count"] == {"assignments": 601}


def test_events_that_are_booked_together_count_as_one_after_another(app, api, running):
    paths = running(), running()
    for path in paths:
        api.post(f"{path}/assignments/batch", users(["u1", "u2"]))
        for user in ("u1", "u2"):  # so that the metric of both variants is known
            api.post(f"{path}/conversions", {"userId": user, "value": 1})
    events = [
        ("u1", 2, "a"),
        ("u1", 3, "a"),  # a second event with the same key, which is not booked here
        ("u1", 4, "b"),
        ("u1", None, None),
        ("u2", 5, None),
        ("u2", 6, "c"),
    ]
    candidates = [
        single.Candidate(
            name, single.memory.get(name), Event(user, None, value, None, key)
        )
        for name in (path.partition("/")[2] for path in paths)
        for user, value, key in events
    ]
    with engine.database.atomic():
        receipts = single._book(candidates)

    counted = [True, False, True, True, True, True]
    assert [one is not None for one in receipts] == counted * len(paths)
    values = [one and one.value for one in receipts]
    assert values == [2, None, 4, None, 5, 6] * len(paths)
    tallies = list(Tally.select())
    assert sum(one.users for one in tallies) == 2 * len(paths)
    assert sum(one.events for one in tallies) == 7 * len(paths)
    assert sum(one.value_sum for one in tallies) == (1 + 2 + 4 + 1 + 5 + 6) * len(paths)
    assert list(proof.discrepancies()) == []


def test_the_total_of_a_first_value_of_minus_zero_has_no_sign(app, api, running):
    path = running()
    api.post(f"{path}/assignments/batch", users(["u1"]))

    assert (
        api.post(
            f"{path}/conversions",
            data='{"userId": "u1", "value": -0.0}',
            content_type="application/json",
        ).status_code
        == 201
    )

    assert str(Outcome.get().total) in ("0", "0.0")


def test_what_the_headers_say_otherwise_takes_the_long_way(app, api, running):
    path = running()
    api.post(f"{path}/assignments", {"userId": "u1"})
    long_way = counting(app)
    for headers in (
        {"Content-Encoding": "gzip"},
        {"Origin": "https://shop.example"},
        {"Authorization": "Bearer x.y.z"},
    ):
        api.post(f"{path}/assignments", {"userId": "u1"}, headers=headers)
    api.post(f"{path}/assignments?page=1", {"userId": "u1"})
    api.post(f"{path}/assignments", {"userId": "u1", "attributes": {"a": "b" * 20_000}})
    api.get(f"{path}/assignments")

    assert len(long_way) == 6


def test_a_body_that_is_cut_off_is_refused_and_enrols_nobody(app, api, running):
    path = running()
    api.post(f"{path}/assignments", {"userId": "u1"})
    body = b'{"userId": "u2"}'
    answer = api.post(
        f"{path}/assignments",
        data=body,
        content_type="application/json",
        environ_overrides={"CONTENT_LENGTH": str(len(body) + 4)},
    )

    assert_error(answer, 400, "BAD_REQUEST")
    assert api.get(path).json["data"]["_count"] == {"assignments": 1}


def test_an_error_of_the_short_way_has_the_shape_of_every_error(app, api, running):
    path = running()
    api.post(f"{path}/assignments", {"userId": "u1"})
    app.extensions["database"].damaged = True

    answer = api.post(f"{path}/assignments", {"userId": "u2"})

    error = assert_error(answer, 503, "UNAVAILABLE")
    assert error["message"].startswith("The database is damaged")
    assert api.get(path).json["data"]["_count"] == {"assignments": 1}


# ----------------------------------------------------------------------------
# What is remembered
# ----------------------------------------------------------------------------


@pytest.fixture
def second(app, database_url):
    """Return a caller of another app on the same database: another worker."""
    other = caller(database_url)
    yield other
    other.client.application.extensions["database"].shut()


CHANGES = [
    ("POST", "stop", None, "ENROLLMENT_CLOSED"),
    ("POST", "complete", {"conclusion": "lost"}, "ENROLLMENT_CLOSED"),
    ("POST", "complete", {"conclusion": "won", "winnerVariantId": "v2"}, "WINNER"),
    ("PUT", "overrides/new", {"variantId": "v1"}, "OVERRIDE"),
]


@pytest.mark.parametrize(("method", "move", "body", "reason"), CHANGES)
def test_no_worker_acts_on_what_was_before_another_answered_a_change(
    api, second, running, method, move, body, reason
):
    path = running()
    for each in (api, second):
        each.post(f"{path}/assignments", {"userId": "old"})

    assert second(method, f"{path}/{move}", body).status_code < 300

    answer = api.post(f"{path}/assignments", {"userId": "new"}).json["data"]
    assert answer["reason"] == reason
    assert api.get(path).json["data"]["_count"] == {"assignments": 1}


@pytest.mark.parametrize(("method", "move", "body", "reason"), CHANGES)
def test_no_worker_enrols_a_batch_on_what_was_before_another_answered_a_change(
    api, second, running, method, move, body, reason
):
    path = running()
    for each in (api, second):
        each.post(f"{path}/assignments/batch", users(["old"]))

    assert second(method, f"{path}/{move}", body).status_code < 300

    answer = api.post(f"{path}/assignments/batch", users(["new"])).json["data"]
    assert [one["reason"] for one in answer] == [reason]
    assert api.get(path).json["data"]["_count"] == {"assignments": 1}


def test_an_archived_experiment_refuses_in_every_worker_at_once(api, second, running):
    path = running()
    api.post(f"{path}/assignments", {"userId": "old"})
    second.post(f"{path}/stop")
    assert second.delete(path).status_code == 200

    answer = api.post(f"{path}/assignments", {"userId": "new"}).json["data"]
    assert answer["reason"] == "ARCHIVED"
    assert_error(
        api.post(f"{path}/conversions", {"userId": "old"}), 409, "INVALID_STATE"
    )


def test_every_change_of_an_experiment_is_a_new_revision(api, running, draft):
    def revision():
        return Identity.select(Identity.revision).scalar()

    path, other = running(), draft()
    api.post(f"{path}/assignments", {"userId": "u1"})
    steps = [
        ("PATCH", other, {"name": "Renamed"}),
        ("POST", f"{other}/start", None),
        ("PUT", f"{path}/overrides/u1", {"variantId": "v1"}),
        ("PUT", f"{path}/overrides/u1", {"variantId": "v2"}),
        ("DELETE", f"{path}/overrides/u1", None),
        ("POST", f"{path}/stop", None),
        ("POST", f"{path}/resume", None),
        ("DELETE", "users/u1", None),
        ("POST", f"{path}/complete", {"conclusion": "lost"}),
        ("DELETE", path, None),
        ("POST", f"{path}/unarchive", None),
        ("POST", f"{path}/duplicate", None),
    ]
    for method, place, body in steps:
        before = revision()
        assert api(method, place, body).status_code < 300, place
        assert revision() > before, place


def test_an_end_date_closes_enrolment_without_any_change(api, running):
    path = running()
    api.post(f"{path}/assignments", {"userId": "u1"})
    experiment = path.partition("/")[2]
    now = utcnow()
    database = engine.database
    with database.atomic():
        dates = {"start_date": EPOCH + MICROSECOND, "end_date": now}
        Experiment.update(dates).where(Experiment.id == experiment).execute()
        # As a change would: the end date that is remembered is this one.
        Identity.update(revision=Identity.revision + 1).execute()

    for user in ("u2", "u3"):
        answer = api.post(f"{path}/assignments", {"userId": user}).json["data"]
        assert answer["reason"] == "ENROLLMENT_CLOSED"


@pytest.mark.one_engine
def test_a_remembered_token_ends_with_its_time_and_with_its_keys(app):
    tokens, claims = app.extensions["abacus_tokens"], Claims("me", None)
    now = utcnow().timestamp()
    tokens.put("holds", Verified(claims, 0.0, now - 1, now + 60))
    tokens.put("ended", Verified(claims, 0.0, now - 60, now))
    tokens.put("clock set back", Verified(claims, 0.0, now + 60, now + 120))
    tokens.put("other keys", Verified(claims, 1.0, now - 1, now + 60))
    tokens.put("x" * 5_000, Verified(claims, 0.0, now - 1, now + 60))

    assert tokens.get("holds") == claims
    for gone in ("ended", "clock set back", "other keys", "x" * 5_000, "unknown"):
        assert tokens.get(gone) is None


@pytest.mark.one_engine
def test_no_more_tokens_are_remembered_than_fit(app):
    tokens, now = app.extensions["abacus_tokens"], utcnow().timestamp()
    for number in range(tokens.MOST + 10):
        verified = Verified(Claims("me", None), 0.0, now - 1, now + 60)
        tokens.put(f"token {number}", verified)

    kept = [n for n in range(tokens.MOST + 10) if tokens.get(f"token {n}")]
    assert kept == list(range(10, tokens.MOST + 10))


# ----------------------------------------------------------------------------
# Commits that several threads share
# ----------------------------------------------------------------------------


def test_a_job_that_fails_takes_no_other_with_it(app, api, running):
    id = running().partition("/")[2]
    database = app.extensions["database"]
    numbers, gate = itertools.count(), threading.Barrier(12)

    def insert(users):
        for user in users:
            Assignment.insert(
                experiment=id,
                user_id=user,
                variant="v1",
                assigned_at=utcnow(),
                received_at=utcnow(),
            ).execute()
        return users

    def write(_):
        number = next(numbers)
        with engine.using(database):
            engine.connect()
            gate.wait(10)
            try:
                database.write(insert, "same" if number % 3 else f"u{number}")
            except peewee.IntegrityError:
                return None
            finally:
                seen = Assignment.select().where(Assignment.user_id == f"u{number}")
                assert number % 3 or seen.count() == 1
                database.close()
            return number

    with ThreadPoolExecutor(12) as threads:
        written = [one for one in threads.map(write, range(12)) if one is not None]

    users = [row.user_id for row in Assignment.select()]
    assert sorted(users) == sorted(["same", "u0", "u3", "u6", "u9"])
    assert len(written) == 5


def writer(group, work, transaction):
    """Return what a thread does to write an item together with others."""

    def write(number):
        job = group.join(work, number, "a file", 10)
        if job.leads:
            group.lead(job, transaction)
        return job.outcome()

    return write


def test_the_threads_of_a_group_share_one_transaction():
    group, begun, done = turns.Group(turns.Turns()), [], []
    begins, waiting = threading.Event(), threading.Event()

    class Transaction(ExitStack):
        def __enter__(self):
            begins.set()
            assert waiting.wait(10)
            begun.append(len(done))
            return super().__enter__()

    def note(numbers):
        done.append(numbers)
        return [-number for number in numbers]

    write = writer(group, note, Transaction)
    with ThreadPoolExecutor(6) as threads:
        first = threads.submit(write, 0)
        assert begins.wait(10)
        others = [threads.submit(write, number) for number in range(1, 6)]
        while len(group._waiting) < 6:
            assert not first.done()
        waiting.set()
        results = [one.result(10) for one in (first, *others)]

    assert begun == [0]
    assert [sorted(numbers) for numbers in done] == [list(range(6))]
    assert results == [-number for number in range(6)]


@pytest.fixture
def two_requests():
    """Count two requests that are being answered, and are never slow."""
    usual, traffic.traffic.SLOW = traffic.traffic.SLOW, 60
    yield [traffic.traffic.announce() for _ in range(2)]
    traffic.traffic.SLOW = usual
    assert traffic.traffic.quick == 0


def answering(request, step, *words):
    """Do a step of the answer to a request that was announced, and answer it."""
    traffic.traffic.take(request)
    try:
        return step(*words)
    finally:
        traffic.traffic.leave()


def led(group, threads, request, write):
    """Let a thread lead the group; return its future when it waits for others."""
    first = threads.submit(answering, request, write, 0)
    while not group._waiting:
        assert not first.done()
    return first


def test_who_leads_a_group_waits_for_a_request_that_is_on_its_way(two_requests):
    group, begun = turns.Group(turns.Turns()), []
    group.MOMENT = 3

    class Transaction(ExitStack):
        def __enter__(self):
            begun.append(len(group._waiting))
            return super().__enter__()

    one, other = two_requests
    write = writer(group, list, Transaction)
    with ThreadPoolExecutor(2) as threads:
        first = led(group, threads, one, write)
        second = threads.submit(answering, other, write, 1)
        assert (first.result(10), second.result(10)) == (0, 1)
    assert begun == [2]


def test_who_leads_a_group_waits_no_longer_for_a_request_that_was_answered(
    two_requests,
):
    group, began = turns.Group(turns.Turns()), time.monotonic()
    group.MOMENT = 60
    one, other = two_requests
    write = writer(group, list, ExitStack)
    with ThreadPoolExecutor(2) as threads:
        first = led(group, threads, one, write)
        threads.submit(answering, other, list).result(10)
        assert first.result(10) == 0

    assert time.monotonic() - began < 20


def test_who_leads_a_group_alone_waits_for_nobody(app, api, running):
    path, began = running(), time.monotonic()
    turns.Group.MOMENT, usual = 60, turns.Group.MOMENT
    try:
        answer = api.post(f"{path}/assignments", {"userId": "u1"})
    finally:
        turns.Group.MOMENT = usual

    assert answer.status_code == 201 and time.monotonic() - began < 20
