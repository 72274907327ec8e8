"""Tokens: who may do what."""

from datetime import datetime, timedelta, timezone

import jwt
import pytest
from conftest import SECRET, Caller, assert_error, two_variants
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

import auth
from app import create_app

NOW = datetime.now(timezone.utc)
GOOD = {"sub": "me", "exp": NOW + timedelta(hours=1)}


def signed(claims, key=SECRET, algorithm="HS256", **headers):
    return jwt.encode(claims, key, algorithm, headers=headers or None)


def without(claim):
    return {name: value for name, value in GOOD.items() if name != claim}


def test_a_plain_token_of_anybody_with_the_secret_is_enough(app):
    assert Caller(app, signed(GOOD)).get("experiments").status_code == 200


@pytest.mark.parametrize(
    "token",
    [
        "",
        "abc",
        "a.b.c",
        signed(without("exp")),
        signed(without("sub")),
        signed({**GOOD, "sub": ""}),
        signed({**GOOD, "sub": "x" * 256}),
        signed({**GOOD, "sub": "a\0b"}),
        signed({**GOOD, "sub": "a\nb"}),
        signed({**GOOD, "exp": NOW - timedelta(seconds=30)}),
        signed({**GOOD, "nbf": NOW + timedelta(days=1)}),
        signed({**GOOD, "iss": "somebody"}),
        signed({**GOOD, "aud": "somebody"}),
        signed({**GOOD, "type": "refresh"}),
        signed(GOOD, key="another secret that is long enough too"),
        signed(GOOD, algorithm="none", key=None),
        signed(GOOD, algorithm="HS512", key=SECRET * 2),
        signed(GOOD)[:-6],
    ],
)
def test_a_token_that_proves_nothing_is_401(app, token):
    caller = Caller(app, token)

    response = caller.post("experiments", {"name": "A", "variants": two_variants()})

    assert_error(response, 401, "UNAUTHENTICATED")
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert Caller(app, signed(GOOD)).get("experiments").json["meta"]["total"] == 0


def test_clocks_may_differ_by_ten_seconds(app):
    claims = {**GOOD, "iat": NOW + timedelta(seconds=5), "nbf": NOW}

    assert Caller(app, signed(claims)).get("experiments").status_code == 200


def test_a_token_in_a_cookie_or_in_the_query_is_not_looked_for(app):
    client = app.test_client()
    client.set_cookie("access_token_cookie", signed(GOOD))

    assert client.get(f"/api/experiments?jwt={signed(GOOD)}").status_code == 401


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [
        ("read", {"read"}),
        ("write", {"write"}),
        ("assign", {"assign"}),
        ("read assign", {"read", "assign"}),
        ("", set()),
        ("admin", set()),
    ],
)
def test_a_scope_opens_its_own_endpoints_only(app, token, running, scope, allowed):
    path = running()
    caller = Caller(app, token(scope=scope))
    answers = {
        "read": caller.get(path),
        "write": caller.patch(path, {"name": "Too late"}),
        "assign": caller.post(f"{path}/assignments", {"userId": "u1"}),
    }

    for needed, response in answers.items():
        if needed in allowed:
            assert response.status_code in (200, 201, 409), response.text
        else:
            assert needed in assert_error(response, 403, "FORBIDDEN")["message"]


def test_every_endpoint_has_a_scope(app):
    for rule in app.url_map.iter_rules():
        if rule.rule.startswith("/api"):
            assert app.view_functions[rule.endpoint].scope in auth.SCOPES, rule


def pem(key):
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


@pytest.mark.parametrize(
    ("algorithm", "private"),
    [
        ("RS256", rsa.generate_private_key(65537, 2048)),
        ("ES256", ec.generate_private_key(ec.SECP256R1())),
    ],
)
def test_a_public_key_is_enough_and_is_never_taken_for_a_secret(
    tmp_path, algorithm, private
):
    app = create_app(
        {
            "TESTING": True,
            "JWT_ALGORITHM": algorithm,
            "JWT_PUBLIC_KEY": pem(private).decode(),
            "DATABASE_URL": f"sqlite:///{tmp_path / 'keys.db'}",
        }
    )

    good = Caller(app, signed(GOOD, private, algorithm)).get("experiments")
    forged = Caller(app, signed(GOOD)).get("experiments")

    assert good.status_code == 200
    assert_error(forged, 401, "UNAUTHENTICATED")


def test_the_issuer_and_the_audience_are_demanded_where_they_are_set(tmp_path):
    app = create_app(
        {
            "TESTING": True,
            "JWT_SECRET_KEY": SECRET,
            "JWT_ISSUER": "https://login.example",
            "JWT_AUDIENCE": "abacus",
            "DATABASE_URL": f"sqlite:///{tmp_path / 'issuer.db'}",
        }
    )
    right = {**GOOD, "iss": "https://login.example", "aud": "abacus"}

    def status(claims):
        return Caller(app, signed(claims)).get("experiments").status_code

    assert status(right) == 200
    for wrong in (GOOD, {**right, "iss": "x"}, {**right, "aud": "x"}):
        assert status(wrong) == 401


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "short",
        "x" * 40,
        "change-me-" * 5,
        "secret" * 8,
        "test-secret-" * 4,
        "ab" * 20,
    ],
)
def test_a_secret_that_can_be_guessed_is_refused(secret):
    with pytest.raises(auth.WeakSecret):
        auth.check_secret(secret)


def test_a_random_secret_is_taken():
    auth.check_secret(SECRET)


def test_without_a_secret_nothing_is_served(tmp_path):
    app = create_app({"INSTANCE": str(tmp_path), "JWT_SECRET_KEY": None})

    with pytest.raises(auth.WeakSecret, match="init"):
        auth.keys_are_ready(app)
    response = Caller(app, signed(GOOD)).get("experiments")

    assert_error(response, 503, "UNAVAILABLE")
