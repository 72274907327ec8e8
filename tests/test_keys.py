"""Keys: pinned to one algorithm, rotated, and fetched from an identity provider."""

import json
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
import pytest
import service as real
from conftest import SECRET, Caller, assert_error
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from flask_jwt_extended import create_access_token
from test_tokens import GOOD, pem, signed

from app import create_app
from web import keys

pytestmark = pytest.mark.one_engine

OLDER = "nE4uW9sYb2Kq7TzMv1XcR6pLh8GdJa3f"
RSA, OTHER_RSA = (rsa.generate_private_key(65537, 2048) for _ in range(2))
SMALL_RSA = rsa.generate_private_key(65537, 1024)  # noqa: S505  (to be refused)
EC = ec.generate_private_key(ec.SECP256R1())
EDWARDS = ed25519.Ed25519PrivateKey.generate()
PRIVATE = {"RS256": RSA, "ES256": EC, "EdDSA": EDWARDS}


def made(tmp_path, **settings):
    url = f"sqlite:///{tmp_path / 'keys.db'}"
    return create_app({"TESTING": True, "DATABASE_URL": url, **settings})


def status(app, token):
    return Caller(app, token).get("experiments").status_code


class Provider:
    """An identity provider on this machine: its keys, and how often it was asked.

    *raw*, where it is given, writes the whole answer: it is called with a way to
    send bytes.
    """

    def __init__(self):
        self.answer, self.asked, self.raw = "", 0, None
        self.cut_off = threading.Event()
        self.reached, self.answering = threading.Event(), threading.Event()
        self.answering.set()
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                provider.asked += 1
                provider.reached.set()
                provider.answering.wait(20)
                if provider.raw:
                    self.close_connection = True
                    try:
                        provider.raw(self.wfile.write)
                    except OSError:
                        provider.cut_off.set()
                    return
                self.send_response(200)
                self.end_headers()
                self.wfile.write(provider.answer.encode())

            def log_message(self, *_):
                """Say nothing on the test's stderr."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/jwks"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def publish(self, algorithm="RS256", **keys):
        method = jwt.get_algorithm_by_name(algorithm)
        published = [
            {**method.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig"}
            for kid, key in keys.items()
        ]
        self.answer = json.dumps({"keys": published})

    def stop(self):
        self.answering.set()
        if self.thread.is_alive():
            self.server.shutdown()
            self.thread.join()
            self.server.server_close()


@pytest.fixture
def provider():
    one = Provider()
    one.publish(first=RSA)
    yield one
    one.stop()


@pytest.fixture
def trusting(provider, tmp_path):
    return made(tmp_path, JWT_ALGORITHM="RS256", JWT_JWKS_URL=provider.url)


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer"])
def test_the_scheme_may_be_written_in_any_case(app, scheme):
    headers = {"Authorization": f"{scheme} {signed(GOOD)}"}

    answer = app.test_client().get("/api/experiments", headers=headers)

    assert answer.status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        "bearer",
        "{}",
        "Basic {}",
        "Bearer{}",
        "Bearer {} {}",
        "Bearer {},",
        "Bearer {}, Bearer {}",
        "Basic eDp5, Bearer {}",
        "Bearer {}, Basic eDp5",
    ],
)
def test_nothing_else_is_taken_for_one_token(app, header):
    header = header.replace("{}", signed(GOOD))

    answer = app.test_client().get(
        "/api/experiments", headers={"Authorization": header}
    )

    assert_error(answer, 401, "UNAUTHENTICATED")


def test_the_previous_secret_still_verifies_and_signs_no_more(tmp_path):
    app = made(tmp_path, JWT_SECRET_KEY=SECRET, JWT_PREVIOUS_KEY=OLDER)

    with app.app_context():
        fresh = create_access_token("me")

    assert jwt.decode(fresh, SECRET, ["HS256"])["sub"] == "me"
    assert status(app, fresh) == 200
    assert status(app, signed(GOOD, OLDER)) == 200
    assert status(app, signed(GOOD, "neither of the two, though long enough")) == 401


def test_which_key_a_token_had_is_nothing_to_the_next_token(tmp_path):
    app = made(tmp_path, JWT_SECRET_KEY=SECRET, JWT_PREVIOUS_KEY=OLDER)

    with app.app_context():  # in which `g` outlives a request
        told = [status(app, signed(GOOD, key)) for key in (OLDER, SECRET, OLDER)]

    assert told == [200, 200, 200]


def test_a_previous_secret_proves_no_more_than_a_present_one(tmp_path):
    app = made(tmp_path, JWT_SECRET_KEY=SECRET, JWT_PREVIOUS_KEY=OLDER)
    endless = {"sub": "me"}

    assert status(app, signed(endless, OLDER)) == 401
    assert status(app, signed(GOOD, OLDER * 2, "HS512")) == 401


def test_a_token_of_a_retired_secret_is_refused(tmp_path):
    app = made(tmp_path, JWT_SECRET_KEY=SECRET)

    assert status(app, signed(GOOD, OLDER)) == 401


@pytest.mark.parametrize("algorithm", keys.PUBLIC)
def test_the_previous_public_key_still_verifies(tmp_path, algorithm):
    older = {"RS256": OTHER_RSA, "ES256": ec.generate_private_key(ec.SECP256R1())}
    older = older.get(algorithm, ed25519.Ed25519PrivateKey.generate())
    app = made(
        tmp_path,
        JWT_ALGORITHM=algorithm,
        JWT_PUBLIC_KEY=pem(PRIVATE[algorithm]).decode(),
        JWT_PREVIOUS_KEY=pem(older).decode(),
    )

    assert status(app, signed(GOOD, PRIVATE[algorithm], algorithm)) == 200
    assert status(app, signed(GOOD, older, algorithm)) == 200
    assert status(app, signed(GOOD, pem(older)[:64], "HS256")) == 401


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"JWT_PREVIOUS_KEY": "short"}, "at least 32 bytes"),
        ({"JWT_ALGORITHM": "none"}, "HS256 or one of"),
        ({"JWT_ALGORITHM": "HS512"}, "HS256 or one of"),
        ({"JWT_ALGORITHM": "RS256"}, "JWT_PUBLIC_KEY or JWT_JWKS_URL"),
        ({"JWT_JWKS_URL": "https://login.example/jwks"}, "JWT_ALGORITHM is one of"),
        ({"JWT_PUBLIC_KEY": pem(RSA).decode()}, "JWT_ALGORITHM is one of"),
        (
            {"JWT_ALGORITHM": "RS256", "JWT_PUBLIC_KEY": "no PEM at all"},
            "none for RS256",
        ),
        (
            {"JWT_ALGORITHM": "RS256", "JWT_PUBLIC_KEY": pem(EC).decode()},
            "none for RS256",
        ),
        (
            {
                "JWT_ALGORITHM": "RS256",
                "JWT_PUBLIC_KEY": pem(SMALL_RSA).decode(),
            },
            "2048",
        ),
        (
            {"JWT_ALGORITHM": "RS256", "JWT_JWKS_URL": "file:///etc/passwd"},
            "'http' and 'https'",
        ),
        (
            {
                "JWT_ALGORITHM": "RS256",
                "JWT_JWKS_URL": "https://login.example/jwks",
                "JWT_PUBLIC_KEY": pem(RSA).decode(),
            },
            "not both",
        ),
    ],
)
def test_keys_that_cannot_be_trusted_are_refused_before_anything_is_served(
    tmp_path, settings, told
):
    app = create_app({"INSTANCE": str(tmp_path), "JWT_SECRET_KEY": SECRET, **settings})

    with pytest.raises(keys.WeakSecret, match=told):
        keys.keys_are_ready(app)
    answer = Caller(app, signed(GOOD)).get("experiments")

    # PyJWT itself knows no such token where the algorithm is none of ours.
    assert answer.status_code in (401, 503), answer.text
    assert "short" not in answer.text


def test_gunicorn_does_not_start_where_the_keys_do_not_fit(tmp_path):
    real.prepare(tmp_path)
    said = real.refusal(tmp_path, JWT_JWKS_URL="http://127.0.0.1:9/jwks")

    assert "JWT_ALGORITHM is one of" in said


def test_with_a_public_key_nobody_makes_tokens_here(tmp_path):
    app = made(
        tmp_path,
        INSTANCE=str(tmp_path),
        JWT_ALGORITHM="RS256",
        JWT_PUBLIC_KEY=pem(RSA).decode(),
    )
    operate = app.test_cli_runner()

    told = operate.invoke(args=("token", "me"))

    assert told.exit_code == 1
    assert told.output == "Error: Tokens are made by whoever has the private key.\n"
    assert operate.invoke(args=("init",)).exit_code == 0
    assert not (tmp_path / "secret").exists()


@pytest.mark.parametrize("algorithm", keys.PUBLIC)
def test_a_provider_s_keys_are_fetched_once_for_many_requests(
    tmp_path, provider, algorithm
):
    provider.publish(algorithm, first=PRIVATE[algorithm])
    app = made(tmp_path, JWT_ALGORITHM=algorithm, JWT_JWKS_URL=provider.url)
    token = signed(GOOD, PRIVATE[algorithm], algorithm, kid="first")

    assert [status(app, token) for _ in range(20)] == [200] * 20
    assert provider.asked == 1


@pytest.mark.parametrize(
    "token",
    [
        signed(GOOD, RSA, "RS256"),
        signed(GOOD, RSA, "RS256", kid="unknown"),
        signed(GOOD, OTHER_RSA, "RS256", kid="first"),
        signed(GOOD, OTHER_RSA, "RS256", kid="first", jku="http://127.0.0.1:9/jwks"),
        signed(GOOD, pem(RSA)[30:], "HS256", kid="first"),
        signed(GOOD, None, "none", kid="first"),
        signed(GOOD, EC, "ES256", kid="curve"),
        signed(GOOD, EC, "ES256", kid="first"),
    ],
    ids=["no kid", "unknown", "other", "jku", "HMAC", "none", "curve", "confused"],
)
def test_a_token_that_no_published_key_proves_is_401(trusting, provider, token):
    provider.publish("RS256", first=RSA)
    published = json.loads(provider.answer)["keys"]
    curve = jwt.get_algorithm_by_name("ES256").to_jwk(EC.public_key(), as_dict=True)
    symmetric = {"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"}
    keys = [*published, {**curve, "kid": "curve"}, {**symmetric, "kid": "symmetric"}]
    provider.answer = json.dumps({"keys": keys})

    assert_error(Caller(trusting, token).get("experiments"), 401, "UNAUTHENTICATED")
    assert status(trusting, signed(GOOD, RSA, "RS256", kid="first")) == 200


@pytest.mark.parametrize("kid", [7, None, [], "x" * 4_000, "\x00"])
def test_a_kid_of_any_kind_is_401(trusting, kid):
    # PyJWT refuses to write what anybody else may send.
    _, _, rest = signed(GOOD, RSA, "RS256", kid="first").partition(".")
    forged = jwt.utils.base64url_encode(
        json.dumps({"alg": "RS256", "kid": kid}).encode()
    )

    answer = Caller(trusting, f"{forged.decode()}.{rest}").get("experiments")

    assert_error(answer, 401, "UNAUTHENTICATED")


def test_a_rotated_key_is_taken_at_its_first_use(trusting, provider):
    new = signed(GOOD, OTHER_RSA, "RS256", kid="second")
    assert status(trusting, new) == 401
    provider.publish(first=RSA, second=OTHER_RSA)

    assert status(trusting, new) == 200
    assert status(trusting, signed(GOOD, RSA, "RS256", kid="first")) == 200


@pytest.fixture
def forgetful(monkeypatch):
    """Let keys be old at once, and be fetched as often as they are asked for."""
    monkeypatch.setattr(keys.Provider, "OLD", 0)
    monkeypatch.setattr(keys.Provider, "PERIOD", 0)


def test_a_withdrawn_key_is_refused_once_it_is_old(forgetful, trusting, provider):
    old, new = (
        signed(GOOD, key, "RS256", kid=kid)
        for key, kid in ((RSA, "first"), (OTHER_RSA, "second"))
    )
    assert [status(trusting, one) for one in (old, new)] == [200, 401]

    provider.publish(second=OTHER_RSA)
    assert [status(trusting, one) for one in (old, new)] == [401, 200]


def test_a_provider_that_is_down_is_503_and_what_was_fetched_keeps_working(
    forgetful, tmp_path, trusting, provider
):
    token = signed(GOOD, RSA, "RS256", kid="first")
    assert status(trusting, token) == 200
    provider.stop()
    late = made(tmp_path, JWT_ALGORITHM="RS256", JWT_JWKS_URL=provider.url)
    keys.keys_are_ready(late)  # it starts all the same

    answer = Caller(late, token).get("experiments")
    unknown = Caller(trusting, signed(GOOD, RSA, "RS256", kid="new")).get("experiments")

    for refused in (answer, unknown):
        assert_error(refused, 503, "UNAVAILABLE")
        assert refused.headers["Retry-After"] == "1"
    assert [status(trusting, token) for _ in range(5)] == [200] * 5
    assert Caller(late, None).get("experiments").status_code == 401


@pytest.mark.parametrize(
    "answer",
    ["", "[]", "{}", '{"keys": []}', '{"keys": [1]}', '{"keys": "no"}', "[" * 100_000],
)
def test_a_provider_that_answers_no_keys_is_503_and_not_a_crash(
    trusting, provider, answer
):
    provider.answer = answer
    token = signed(GOOD, RSA, "RS256", kid="first")

    assert_error(Caller(trusting, token).get("experiments"), 503, "UNAVAILABLE")


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n"


def dripping(start):
    """Return a way to send *start*, and then a byte every tenth of a second."""

    def drip(send):
        send(start)
        for _ in range(300):
            send(b" ")
            time.sleep(0.1)

    return drip


def endless(send):
    send(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(1_500):  # 1.5 GB
        send(b" " * 1_000_000)


@pytest.mark.parametrize(
    "raw",
    [dripping(HEAD), dripping(b"HTTP/1.1 200 OK\r\nX: "), dripping(b""), endless],
    ids=["body", "headers", "status line", "1.5 GB"],
)
def test_a_provider_that_never_ends_is_cut_off_in_time(
    tmp_path, provider, monkeypatch, raw
):
    monkeypatch.setattr(keys.Provider, "TIMEOUT", 0.5)
    provider.raw = raw
    app = made(tmp_path, JWT_ALGORITHM="RS256", JWT_JWKS_URL=provider.url)
    token = signed(GOOD, RSA, "RS256", kid="first")
    tracemalloc.start()
    began = time.monotonic()

    answer = Caller(app, token).get("experiments")

    seconds, (_, peak) = time.monotonic() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert_error(answer, 503, "UNAVAILABLE")
    assert seconds < 3
    assert peak < 20_000_000
    assert provider.cut_off.wait(10)  # and no thread goes on with it
    assert keys.Provider.TIMEOUT == 0.5


def test_a_fetch_has_three_seconds_and_a_mebibyte(trusting, provider):
    whole = json.loads(provider.answer)
    provider.answer = json.dumps(whole) + " " * (1024 * 1024 - len(json.dumps(whole)))
    token = signed(GOOD, RSA, "RS256", kid="first")
    assert len(provider.answer) == 1024 * 1024
    assert keys.Provider.TIMEOUT == 3

    assert status(trusting, token) == 200


def test_a_key_set_above_a_mebibyte_is_refused(trusting, provider):
    provider.answer += " " * (1024 * 1024 + 1 - len(provider.answer))
    token = signed(GOOD, RSA, "RS256", kid="first")

    assert_error(Caller(trusting, token).get("experiments"), 503, "UNAVAILABLE")


def test_a_weak_key_of_a_set_is_left_out_and_logged_and_the_others_work(
    trusting, provider, caplog
):
    provider.publish(weak=SMALL_RSA, strong=RSA)
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        weak_token = signed(GOOD, SMALL_RSA, "RS256", kid="weak")
    strong_token = signed(GOOD, RSA, "RS256", kid="strong")

    assert status(trusting, strong_token) == 200
    (logged,) = [one for one in caplog.records if one.levelname == "ERROR"]
    answer = Caller(trusting, weak_token).get("experiments")
    assert_error(answer, 401, "UNAUTHENTICATED")
    assert logged.error.startswith("The key 'weak' is left out: ")
    assert "1024 bits" in logged.error


@pytest.mark.parametrize("scheme", ["file", "ftp", "data", "http"])
def test_a_redirect_of_the_provider_is_not_followed(
    tmp_path, trusting, provider, scheme
):
    kept = tmp_path / "keys.json"
    kept.write_text(provider.answer)
    target = {
        "file": kept.as_uri(),
        "ftp": "ftp://127.0.0.1:9/keys",
        "data": f"data:application/json,{provider.answer}",
        "http": provider.url,
    }[scheme]
    moved = f"HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n"
    provider.raw = lambda send: send(moved.encode())
    token = signed(GOOD, RSA, "RS256", kid="first")

    assert_error(Caller(trusting, token).get("experiments"), 503, "UNAVAILABLE")
    assert provider.asked == 1


def test_a_flood_of_unknown_kids_reaches_the_provider_three_times(trusting, provider):
    good = signed(GOOD, RSA, "RS256", kid="first")

    def ask(number):
        forged = signed(GOOD, OTHER_RSA, "RS256", kid=f"unknown-{number}")
        return status(trusting, forged), status(trusting, good)

    with ThreadPoolExecutor(4) as callers:
        told = set(callers.map(ask, range(100)))

    assert told == {(401, 200)}
    assert provider.asked == keys.Provider.FETCHES == 3


def test_a_provider_that_hangs_holds_up_nobody_whose_key_is_known(trusting, provider):
    good = signed(GOOD, RSA, "RS256", kid="first")
    assert status(trusting, good) == 200
    provider.reached.clear()
    provider.answering.clear()
    with ThreadPoolExecutor(1) as other:
        forged = signed(GOOD, OTHER_RSA, "RS256", kid="unknown")
        waits = other.submit(status, trusting, forged)
        assert provider.reached.wait(20)

        assert [status(trusting, good) for _ in range(5)] == [200] * 5
        assert not waits.done()
        provider.answering.set()

        assert waits.result() == 401


@contextmanager
def deployed(folder, provider):
    settings = {"JWT_ALGORITHM": "RS256", "JWT_JWKS_URL": provider.url}
    with real.served(folder, **settings) as service:
        service.token = signed(GOOD, RSA, "RS256", kid="first")
        yield service


def test_the_real_service_asks_its_provider_when_it_starts(tmp_path, provider):
    with deployed(tmp_path, provider) as service:
        deadline = time.monotonic() + 20
        while provider.asked < 2:  # once in each worker
            assert time.monotonic() < deadline
            time.sleep(0.02)
        provider.stop()

        assert service("GET", "experiments")[0] == 200
