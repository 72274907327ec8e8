"""OpenFeature's own client, unchanged, in front of a real service."""

import socket
from contextlib import contextmanager

import pytest
from openfeature import api as openfeature
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import Reason

from clients import CONFIGURED, PAYERS, participants, stored, user


@contextmanager
def client_of(service, token=None, port=None):
    """Yield a client that asks this service."""
    headers = {"Authorization": f"Bearer {token or service.token}"}
    provider = OFREPProvider(
        f"http://127.0.0.1:{port or service.port}", headers_factory=lambda: headers
    )
    openfeature.set_provider(provider)
    try:
        yield openfeature.get_client()
    finally:
        openfeature.clear_providers()
        provider.session.close()


def test_a_client_gives_1000_users_the_variants_that_the_api_gives(service):
    path = service.running(key="checkout", variants=CONFIGURED)
    with client_of(service) as client:
        shown = {}
        for number in range(1_000):
            context = user(f"user-{number}")
            flag = client.get_string_details("checkout", "default", context)
            assert (flag.reason, flag.error_code) == (Reason.SPLIT, None)
            shown[f"user-{number}"] = flag.variant, flag.value
        configs = {
            user_id: client.get_object_details("checkout.config", {}, user(user_id))
            for user_id in list(shown)[:50]
        }
    decisions = stored(service, path, shown)

    assert shown == {
        one["userId"]: (one["variantId"], one["flowId"] or one["variantName"])
        for one in decisions
    }
    for one in decisions[:50]:
        config = configs[one["userId"]]
        assert (config.variant, config.value) == (
            one["variantId"],
            one["config"] or {},
        )
    assert participants(service, path) == 1_000


def test_in_every_other_case_the_application_gets_its_default(service):
    service.data("PUT", "audiences/aud_payers", {"name": "Payers", "ruleTree": PAYERS})
    service.running(key="paid", audienceId="aud_payers")
    stopped = service.running(key="stopped")
    service.data("POST", f"{stopped}/stop")
    body = {"name": "Draft", "key": "draft", "variants": CONFIGURED}
    service.data("POST", "experiments", body)
    cases = (
        ("paid", user("u1", plan="free"), Reason.DEFAULT, None),
        ("stopped", user("u1"), Reason.DEFAULT, None),
        ("draft", user("u1"), Reason.DISABLED, None),
        ("nope", user("u1"), Reason.ERROR, ErrorCode.FLAG_NOT_FOUND),
        ("Zoë/用户", user("u1"), Reason.ERROR, ErrorCode.FLAG_NOT_FOUND),
        ("paid", None, Reason.ERROR, ErrorCode.TARGETING_KEY_MISSING),
        ("paid", user(""), Reason.ERROR, ErrorCode.TARGETING_KEY_MISSING),
        ("paid", user("undefined"), Reason.ERROR, ErrorCode.INVALID_CONTEXT),
    )
    with client_of(service) as client:
        for key, context, reason, code in cases:
            flag = client.get_string_details(key, "default", context)
            assert (flag.value, flag.reason) == ("default", reason), key
            assert flag.error_code == code
            if code is None:
                assert flag.variant == "not_enrolled"
        number = client.get_integer_details("paid", 7, user("u1", plan="pro"))
        assert (number.value, number.error_code) == (7, ErrorCode.TYPE_MISMATCH)
        assert client.get_string_value("paid", "x", user("u1", plan="pro")) != "x"


def test_a_winner_is_the_value_for_everyone(service):
    path = service.running(key="won", variants=CONFIGURED)
    body = {"conclusion": "won", "winnerVariantId": "v2"}
    service.data("POST", f"{path}/complete", body)

    with client_of(service) as client:
        flags = [
            client.get_string_details("won", "x", user(f"u{n}")) for n in range(20)
        ]

    assert {(one.value, one.variant) for one in flags} == {("flow_b", "v2")}
    assert participants(service, path) == 0


def test_a_user_whose_id_is_not_ascii_is_the_same_user(service):
    path = service.running(key="checkout")

    with client_of(service) as client:
        for user_id in ("Zoë", "用户42", "a b/c?d", "👩🏽‍🚀"):
            flag = client.get_string_details("checkout", "x", user(user_id))
            made = service.data("POST", f"{path}/assignments", {"userId": user_id})
            assert made["reason"] == "EXISTING_ASSIGNMENT"
            assert flag.variant == made["variantId"]


@pytest.mark.one_engine
def test_with_a_bad_token_and_without_a_service_the_default_holds(service, tmp_path):
    path = service.running(key="checkout")
    reader = service.flask("token", "reader", "--scope", "read").stdout.strip()

    for token in ("nonsense", f"{service.token}x", reader):
        with client_of(service, token) as client:
            flag = client.get_string_details("checkout", "default", user("u1"))
            assert (flag.value, flag.reason) == ("default", Reason.ERROR)
            assert flag.error_code == ErrorCode.GENERAL
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with client_of(service, port=port) as client:
        assert client.get_string_value("checkout", "default", user("u1")) == "default"
    assert participants(service, path) == 0


@pytest.mark.sqlite
def test_while_the_database_is_gone_the_default_holds(service):
    service.running(key="checkout")
    database = service.instance / "abacus.db"
    away = database.with_name("away.db")

    with client_of(service) as client:
        value = client.get_string_value("checkout", "default", user("u1"))
        database.rename(away)
        gone = client.get_string_details("checkout", "default", user("u1"))
        away.rename(database)
        back = client.get_string_value("checkout", "default", user("u1"))

    assert (gone.value, gone.error_code) == ("default", ErrorCode.GENERAL)
    assert "not_enrolled" in gone.error_message
    assert back == value != "default"
