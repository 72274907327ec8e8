"""Tokens: who may do what."""

import base64
import hmac
import json
from datetime import datetime, timedelta, timezone

import jwt
import pytest
import service as real
from conftest import SECRET, Caller, assert_error, two_variants
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

import models
from app import create_app
from storage import factory, schema
from web import auth, keys
from web.settings import WrongSetting

pytestmark = pytest.mark.one_engine

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
        signed(GOOD, "o" * 32, jwk={"kty": "oct", "k": "b29v" * 11}, kid="jwk"),
        signed(GOOD, crit=["unheard-of"]),
    ],
    ids=lambda _: "token",
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


def assert_opens(caller, path, allowed):
    """Assert that a caller gets through to the endpoints of these scopes alone."""
    answers = {
        "read": caller.get(path),
        "write": caller.patch(path, {"name": "Too late"}),
        "assign": caller.post(f"{path}/assignments", {"userId": "u1"}),
    }
    for scope, response in answers.items():
        if scope in allowed:
            assert response.status_code in (200, 201, 409), response.text
        else:
            assert scope in assert_error(response, 403, "FORBIDDEN")["message"]


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
    assert_opens(Caller(app, token(scope=scope)), running(), allowed)


@pytest.mark.parametrize(
    "claims",
    [
        {"scope": {"write": True}},
        {"scope": ["write"]},
        {"scope": ["x", "write", "x"]},
        {"scope": 1},
        {"scope": True},
        {"scope": None},
        {"scp": {"write": True}},
        {"scp": 1},
        {"scp": None},
        {"scp": ["write", 1]},
        {"scp": [["write"]]},
        {"scope": "write", "scp": 1},
    ],
)
def test_scopes_of_a_wrong_kind_prove_nothing(app, api, token, claims):
    body = {"name": "A", "variants": two_variants()}

    response = Caller(app, token(**claims)).post("experiments", body)

    assert_error(response, 401, "UNAUTHENTICATED")
    assert api.get("experiments").json["meta"]["total"] == 0


@pytest.mark.parametrize(
    ("claims", "allowed"),
    [
        ({"scp": "read"}, {"read"}),
        ({"scp": "read assign"}, {"read", "assign"}),
        ({"scp": ["read", "assign"]}, {"read", "assign"}),
        ({"scp": ["read assign"]}, set()),
        ({"scp": ["User.Read"]}, set()),
        ({"scp": ""}, set()),
        ({"scp": []}, set()),
        ({"scope": "read", "scp": "write"}, {"read"}),
        ({"scope": "", "scp": ["write"]}, set()),
        ({"scope": "read\u00a0write"}, set()),
    ],
)
def test_the_scopes_of_azure_and_okta_are_read_too(
    app, token, running, claims, allowed
):
    assert_opens(Caller(app, token(**claims)), running(), allowed)


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
    with pytest.raises(keys.WeakSecret):
        keys.check_secret(secret)


def test_a_random_secret_is_taken():
    keys.check_secret(SECRET)


def test_without_a_secret_nothing_is_served(tmp_path):
    app = create_app({"INSTANCE": str(tmp_path), "JWT_SECRET_KEY": None})

    with pytest.raises(keys.WeakSecret, match="init"):
        keys.keys_are_ready(app)
    response = Caller(app, signed(GOOD)).get("experiments")

    assert_error(response, 503, "UNAVAILABLE")


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": None},
        {"exp": []},
        {"exp": "soon"},
        {"nbf": None},
        {"iat": []},
        {"sub": ["me"]},
        {"sub": None},
        {"sub": "a\x7fb"},
        {"sub": "a\x85b"},
        {"iss": None},
        {"aud": []},
        {"jti": []},
    ],
)
def test_a_claim_of_the_wrong_kind_is_401_and_no_crash(app, claims):
    head, body = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
        for part in ({"alg": "HS256"}, {"sub": "me", "exp": 2**32} | claims)
    )
    proof = hmac.digest(SECRET.encode(), head + b"." + body, "sha256")
    proof = base64.urlsafe_b64encode(proof).rstrip(b"=")
    whole = b".".join([head, body, proof]).decode()

    assert_error(Caller(app, whole).get("experiments"), 401, "UNAUTHENTICATED")


def test_a_subject_is_any_text_of_255_characters(app):
    caller = Caller(app, signed({**GOOD, "sub": "é" * 255}))

    assert caller.get("experiments").status_code == 200


@pytest.mark.parametrize(("leeway", "status"), [(None, 200), (60, 200), (0, 401)])
def test_a_token_that_has_just_ended_is_judged_by_the_leeway(tmp_path, leeway, status):
    settings = {
        "TESTING": True,
        "JWT_SECRET_KEY": SECRET,
        "DATABASE_URL": f"sqlite:///{tmp_path / 'leeway.db'}",
    }
    app = create_app(settings | ({} if leeway is None else {"JWT_LEEWAY": leeway}))
    ended = datetime.now(timezone.utc) - timedelta(seconds=3)

    response = Caller(app, signed({"sub": "me", "exp": ended})).get("experiments")

    assert response.status_code == status


@pytest.mark.parametrize(
    "leeway", ["1e9", 301, "-1", -0.5, "nan", "inf", "-inf", "ten", "10 s", True, []]
)
def test_a_leeway_that_is_not_0_to_300_seconds_is_refused(leeway):
    with pytest.raises(WrongSetting, match=r"JWT_LEEWAY must be .* from 0 to 300"):
        create_app({"JWT_SECRET_KEY": SECRET, "JWT_LEEWAY": leeway})


@pytest.mark.parametrize("leeway", ["0", "0.5", 300])
def test_a_leeway_of_0_to_300_seconds_is_taken(leeway):
    app = create_app({"JWT_SECRET_KEY": SECRET, "JWT_LEEWAY": leeway})

    assert app.config["JWT_DECODE_LEEWAY"] == timedelta(seconds=float(leeway))


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("JWT_LEEWAY", "nan", "JWT_LEEWAY must be"),
        ("DATABASE_URL", "mysql://host/abacus", "DATABASE_URL starts with 'mysql'"),
    ],
)
def test_gunicorn_says_why_it_does_not_start(tmp_path, name, value, reason):
    real.prepare(tmp_path)
    # One worker: gunicorn itself prints a traceback if two refuse at once.
    said = real.refusal(tmp_path, "--workers", "1", **{name: value})

    assert f"Abacus does not start: {reason}" in said
    assert "Traceback" not in said


def test_no_endpoint_opens_to_all_the_other_scopes_together(app, token):
    for rule in app.url_map.iter_rules():
        if not rule.rule.startswith("/api"):
            continue
        needed = app.view_functions[rule.endpoint].scope
        others = " ".join(scope for scope in auth.SCOPES if scope != needed)
        caller = Caller(app, token(scope=others))
        path = rule.rule.replace("<id>", "exp_1").replace("<path:user_id>", "u1")
        for method in rule.methods - {"HEAD", "OPTIONS"}:
            error = assert_error(caller(method, path), 403, "FORBIDDEN")
            assert repr(needed) in error["message"], rule


@pytest.mark.parametrize(
    ("rule", "method", "scope"),
    [
        # The contract: read, write, and assign to enrol, evaluate, convert.
        ("/api/experiments", "GET", "read"),
        ("/api/experiments", "POST", "write"),
        ("/api/experiments/<id>", "GET", "read"),
        ("/api/experiments/<id>", "PATCH", "write"),
        ("/api/experiments/<id>", "DELETE", "write"),
        ("/api/experiments/<id>/unarchive", "POST", "write"),
        ("/api/experiments/<id>/start", "POST", "write"),
        ("/api/experiments/<id>/stop", "POST", "write"),
        ("/api/experiments/<id>/resume", "POST", "write"),
        ("/api/experiments/<id>/complete", "POST", "write"),
        ("/api/experiments/<id>/duplicate", "POST", "write"),
        ("/api/experiments/<id>/results", "GET", "read"),
        ("/api/experiments/<id>/compute-results", "GET", "read"),
        ("/api/experiments/<id>/compute-results", "POST", "read"),
        ("/api/experiments/<id>/assignments", "POST", "assign"),
        ("/api/experiments/<id>/assignments/batch", "POST", "assign"),
        ("/api/experiments/<id>/conversions", "POST", "assign"),
        ("/api/experiments/<id>/conversions/batch", "POST", "assign"),
        ("/api/events", "POST", "assign"),
        ("/api/events/batch", "POST", "assign"),
    ],
)
def test_an_endpoint_has_the_scope_of_the_contract(app, rule, method, scope):
    (found,) = [
        one
        for one in app.url_map.iter_rules()
        if one.rule == rule and method in one.methods
    ]

    assert app.view_functions[found.endpoint].scope == scope


@pytest.mark.parametrize("secret", ["short", "change-me-" * 5])
def test_with_a_weak_secret_nothing_is_served(tmp_path, secret):
    url = f"sqlite:///{tmp_path / 'weak.db'}"
    assert schema.create(factory.database_at(url), models.TABLES)
    app = create_app({"DATABASE_URL": url, "JWT_SECRET_KEY": secret})
    key = secret.ljust(32)

    with pytest.raises(keys.WeakSecret):
        keys.keys_are_ready(app)
    response = Caller(app, signed(GOOD, key)).get("experiments")

    assert_error(response, 503, "UNAVAILABLE")
    assert secret not in response.text


def test_eddsa_is_an_algorithm_too(tmp_path):
    private = ed25519.Ed25519PrivateKey.generate()
    app = create_app(
        {
            "TESTING": True,
            "JWT_ALGORITHM": "EdDSA",
            "JWT_PUBLIC_KEY": pem(private).decode(),
            "DATABASE_URL": f"sqlite:///{tmp_path / 'eddsa.db'}",
        }
    )

    good = Caller(app, signed(GOOD, private, "EdDSA")).get("experiments")

    assert good.status_code == 200, good.text


@pytest.mark.parametrize("algorithm", ["HS256", "ES256", "EdDSA", "RS256"])
def test_a_token_has_one_spelling(tmp_path, algorithm):
    """Or the proxy, which counts by what is sent, would see as many callers."""
    made = {
        "HS256": lambda: None,
        "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate,
        "RS256": lambda: rsa.generate_private_key(65537, 2048),
    }[algorithm]()
    settings = {"TESTING": True, "DATABASE_URL": f"sqlite:///{tmp_path / 'a.db'}"}
    if made is None:
        settings["JWT_SECRET_KEY"] = SECRET
    else:
        public = made.public_key().public_bytes(
            serialization.Encoding.PEM,
            serialization.PublicFormat.SubjectPublicKeyInfo,
        )
        settings |= {"JWT_ALGORITHM": algorithm, "JWT_PUBLIC_KEY": public.decode()}
    app = create_app(settings)
    token = signed(GOOD, SECRET if made is None else made, algorithm)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    others = [token[:-1] + letter for letter in alphabet if letter != token[-1]]
    for added in ("=", "==", "\t", "!", "~", ",", ".", "A", "\x0b"):
        others += [token + added, f"{token[:-5]}{added}{token[-5:]}"]
    others.append(token.replace("-", "+").replace("_", "/") + "+")

    assert Caller(app, token).get("experiments").status_code == 200
    for other in others:
        assert Caller(app, other).get("experiments").status_code == 401, other[-8:]
