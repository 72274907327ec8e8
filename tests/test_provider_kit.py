"""The cases of OpenFeature's own test kit that apply, through its SDK for Python.

The kit is `specification/assets/gherkin` of the repository open-feature/spec. Of its
flags, those of text and of objects exist here. They are experiments, so the reason is
SPLIT where the kit has STATIC, and a user has to be named. Flags of other types and
flags with an empty text do not exist, and no provider here answers CACHED or is fatal.
"""

import asyncio
import socket
from contextlib import contextmanager

import pytest
import service as real
from abacus_openfeature import AbacusProvider
from openfeature import api as openfeature
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import Reason
from openfeature.hook import Hook

from clients import one_of

pytestmark = pytest.mark.one_engine

PROVIDERS = ("official", "remote", "local")
TEMPLATE = {"showImages": True, "title": "Check out these pics!", "imagesPerPage": 100}
TEXTS = ("greeting", "hi"), ("parting", "bye")
OBJECTS = ("template", TEMPLATE), ("empty", {})
PERSON = {"fn": "Sulisław", "ln": "Świętopełk", "age": 29, "customer": False}
ADMIN = {"email": "ballmer@macrosoft.com", "role": "admin", "age": 65}
DEFAULTS = {
    "boolean": False,
    "string": "uh-oh",
    "integer": 13,
    "float": 0.1,
    "object": {"a": 1},
}


def all_of(**rules):
    """Return rules that hold if each of these fields has its value."""
    leaves = [
        {"field": field, "operator": "eq", "value": value}
        for field, value in rules.items()
    ]
    return {"logicalOperator": "AND", "rules": leaves}


OLDER = {"field": "age", "operator": "gt", "value": 10}
AUDIENCES = {
    "context-aware": all_of(**PERSON),
    "complex-targeted": {
        "logicalOperator": "AND",
        "rules": [all_of(email=ADMIN["email"], customer=False), OLDER],
    },
}


def experiment(key, variants, **fields):
    """Return the body of an experiment whose variants have these values."""
    kind = "config" if key.startswith("object") else "flowId"
    rows = [
        {"name": name, "splitPercentage": 100 / len(variants), kind: value}
        for name, value in variants
    ]
    return {"name": key, "key": key, "variants": rows, **fields}


@pytest.fixture(scope="module")
def service(tmp_path_factory, service_database):
    """Return a service with the flags of the kit."""
    folder = tmp_path_factory.mktemp("kit") / "instance"
    with service_database() as settings, real.served(folder, **settings) as made:
        made.data("POST", "experiments", experiment("string-disabled-flag", TEXTS))
        made.data("POST", "experiments", experiment("object-disabled-flag", OBJECTS))
        for key, tree in AUDIENCES.items():
            body = {"name": key, "ruleTree": tree}
            made.data("PUT", f"audiences/aud_{key}", body)
            made.running(
                **experiment(key, (("a", "INTERNAL"), ("b", "INTERNAL"))),
                audienceId=f"aud_{key}",
            )
        made.running(**experiment("string-flag", TEXTS))
        made.running(**experiment("object-flag", OBJECTS))
        forced = {"variantId": "v2"}
        for key in ("string-flag", "object-flag"):
            made.data("PUT", f"experiments/{key}/overrides/tester", forced)
        yield made


@contextmanager
def provided(provider):
    """Yield a client of a provider, without anything that other tests have set."""
    openfeature.set_provider_and_wait(provider)
    try:
        yield openfeature.get_client()
    finally:
        openfeature.clear_evaluation_context()
        openfeature.clear_providers()


@pytest.fixture(params=PROVIDERS)
def kind(request):
    return request.param


@pytest.fixture
def client(kind, service):
    """Yield a client of each provider in turn."""
    url, token = service.url, service.token
    if kind == "official":
        headers = {"Authorization": f"Bearer {token}"}
        provider = OFREPProvider(url, headers_factory=lambda: headers)
    else:
        provider = AbacusProvider(
            url, token, local=kind == "local", refresh_seconds=600, report_seconds=600
        )
    with provided(provider) as made:
        yield made
    if kind == "official":
        provider.session.close()


def details_of(client, kind, key, context, default=None):
    """Evaluate a flag as one of this type."""
    ask = getattr(client, f"get_{kind}_details")
    return ask(key, DEFAULTS[kind] if default is None else default, context)


def assert_error(details, default, code):
    assert (details.value, details.reason) == (default, Reason.ERROR)
    assert (details.error_code, details.variant) == (code, None)
    assert details.error_message


FLAGS = [
    ("string", "string-flag", TEXTS),
    ("object", "object-flag.config", OBJECTS),
]


@pytest.mark.parametrize(("type", "key", "variants"), FLAGS)
@pytest.mark.parametrize("place", [0, 1])
def test_a_flag_has_a_value_a_variant_a_reason_and_metadata(
    service, client, type, key, variants, place
):
    name = key.removesuffix(".config")
    made = service.data("GET", f"experiments/{name}")
    user = EvaluationContext(one_of(f"experiments/{made['id']}", f"v{place + 1}"))

    details = details_of(client, type, key, user)

    assert details.flag_key == key
    assert details.value == variants[place][1]  # also {}, which is no default
    assert made["variants"][place]["name"] == variants[place][0]
    assert details.variant == made["variants"][place]["id"]
    assert (details.reason, details.error_code) == (Reason.SPLIT, None)
    assert details.flag_metadata == {"experimentId": made["id"]}
    assert getattr(client, f"get_{type}_value")(key, DEFAULTS[type], user) == (
        details.value
    )
    again = getattr(client, f"get_{type}_details_async")
    assert asyncio.run(again(key, DEFAULTS[type], user)).value == details.value


@pytest.mark.parametrize(("type", "key", "variants"), FLAGS)
def test_a_user_who_is_targeted_by_name_matches(client, type, key, variants):
    details = details_of(client, type, key, EvaluationContext("tester"))

    assert (details.value, details.variant) == (variants[1][1], "v2")
    assert details.reason == Reason.TARGETING_MATCH


@pytest.mark.parametrize(
    ("key", "right", "wrong"),
    [
        ("context-aware", PERSON, {**PERSON, "customer": True}),
        ("complex-targeted", {**ADMIN, "customer": False}, {**ADMIN, "age": 9}),
    ],
)
def test_the_context_decides_who_is_meant(service, client, kind, key, right, wrong):
    def details(user, attributes):
        context = EvaluationContext(f"{kind}-{user}", attributes)
        kept = dict(context.attributes)
        found = details_of(client, "string", key, context, "EXTERNAL")
        assert context.attributes == kept
        return found

    for attributes in ({}, wrong):
        outside = details("outside", attributes)
        assert (outside.value, outside.variant) == ("EXTERNAL", "not_enrolled")
        assert (outside.reason, outside.error_code) == (Reason.DEFAULT, None)
    inside = details("inside", right)
    assert (inside.value, inside.reason) == ("INTERNAL", Reason.SPLIT)


def test_the_levels_of_a_context_are_merged_before_anything_is_decided(client, kind):
    """The invocation wins over the client, and the client over the API."""
    user = EvaluationContext(f"{kind}-merged")
    openfeature.set_evaluation_context(
        EvaluationContext(f"{kind}-nobody", {"fn": "x", "ln": PERSON["ln"]})
    )
    client.context = EvaluationContext(None, {"fn": PERSON["fn"], "age": 7})
    rest = {"age": PERSON["age"], "customer": PERSON["customer"]}

    without = details_of(client, "string", "context-aware", user, "EXTERNAL")
    whole = EvaluationContext(f"{kind}-merged", rest)
    merged = details_of(client, "string", "context-aware", whole, "EXTERNAL")

    assert (without.value, merged.value) == ("EXTERNAL", "INTERNAL")


def test_an_empty_context_has_no_user_so_that_the_default_holds(client):
    for context in (None, EvaluationContext()):
        details = details_of(client, "string", "string-flag", context)
        assert_error(details, "uh-oh", ErrorCode.TARGETING_KEY_MISSING)


@pytest.mark.parametrize("type", DEFAULTS)
@pytest.mark.parametrize("key", ["missing-flag", "missing-flag.config"])
def test_a_missing_flag_of_any_type_is_not_found(client, type, key):
    details = details_of(client, type, key, EvaluationContext("user-1"))

    assert_error(details, DEFAULTS[type], ErrorCode.FLAG_NOT_FOUND)


@pytest.mark.parametrize(
    ("type", "key"),
    [
        *((type, "string-flag") for type in ("boolean", "integer", "float", "object")),
        *(
            (type, "object-flag.config")
            for type in ("boolean", "integer", "float", "string")
        ),
    ],
)
def test_a_flag_of_another_type_is_a_mismatch(client, type, key):
    details = details_of(client, type, key, EvaluationContext("user-1"))

    assert_error(details, DEFAULTS[type], ErrorCode.TYPE_MISMATCH)


@pytest.mark.parametrize(
    ("type", "key"),
    [("string", "string-disabled-flag"), ("object", "object-disabled-flag.config")],
)
def test_a_disabled_flag_leaves_the_default(client, kind, type, key):
    details = details_of(client, type, key, EvaluationContext("user-1"))

    if kind == "local":  # the definitions have no drafts
        assert_error(details, DEFAULTS[type], ErrorCode.FLAG_NOT_FOUND)
    else:
        assert details.value == DEFAULTS[type]
        assert (details.reason, details.error_code) == (Reason.DISABLED, None)


class Noted(Hook):
    """Notes what the SDK tells the hooks of an application."""

    def __init__(self):
        self.calls = []

    def before(self, hook_context, hints):
        self.calls.append(("before", None))

    def after(self, hook_context, details, hints):
        self.calls.append(("after", details))

    def error(self, hook_context, exception, hints):
        self.calls.append(("error", None))

    def finally_after(self, hook_context, details, hints):
        self.calls.append(("finally", details))


@pytest.mark.parametrize(
    ("type", "key", "reason", "code"),
    [
        ("string", "string-flag", Reason.SPLIT, None),
        ("string", "missing-flag", Reason.ERROR, ErrorCode.FLAG_NOT_FOUND),
        ("boolean", "string-flag", Reason.ERROR, ErrorCode.TYPE_MISMATCH),
    ],
)
def test_hooks_are_called_with_the_details(client, type, key, reason, code):
    noted = Noted()
    client.add_hooks([noted])

    details = details_of(client, type, key, EvaluationContext("user-1"))

    names = [name for name, _ in noted.calls]
    assert names == ["before", "error" if code else "after", "finally"]
    told = noted.calls[-1][1]
    assert (told.flag_key, told.value, told.variant) == (
        key,
        details.value,
        details.variant,
    )
    assert (told.reason, told.error_code) == (reason, code)


@pytest.mark.parametrize("type", DEFAULTS)
def test_a_provider_that_is_not_ready_leaves_the_default_of_any_type(type):
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    provider = AbacusProvider(url, "token", local=True, timeout=1, shutdown_seconds=0)

    with provided(provider) as client:
        details = details_of(client, type, "string-flag", EvaluationContext("user-1"))

    assert_error(details, DEFAULTS[type], ErrorCode.PROVIDER_NOT_READY)
