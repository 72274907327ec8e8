"""Links that are signed: one shows the results of one experiment, one signs in."""

import hmac
from datetime import datetime, timedelta, timezone
from http.client import HTTPConnection

import jwt
import pytest
import service as real
from conftest import SECRET, Caller, assert_error, configured, two_variants
from test_keys import RSA
from test_page_moves import secret_of
from test_pages import HOSTILE, OURS, SIGN_IN, read, sign_in
from test_tokens import GOOD, pem, signed

from app import create_app
from web import links

BY_HAND = {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}


def shared(browser, path, days="7", **headers):
    """Make a link to the results of an experiment; return its path."""
    page = read(browser.get(f"/ui/{path}"))
    data = {"secret": secret_of(page), "days": days}
    answer = browser.post(f"/ui/{path}/share", data=data, headers={**OURS, **headers})
    page = read(answer)
    (address,) = [
        one["href"] for tag, one in page.tags if "/shared/" in one.get("href", "")
    ]
    return address


def made(app, purpose, lasts=timedelta(minutes=1), **claims):
    """Sign a link as the service does."""
    with app.app_context():
        return links.signed(purpose, lasts, **claims)


@pytest.fixture
def linked(app):
    """Return a way to have the path of a sign-in link, as the command prints it."""

    def linked(*options, address="http://localhost"):
        words = ["token", "maria", "--link", address, *options]
        told = app.test_cli_runner().invoke(args=words)
        assert told.exit_code == 0, told.output
        assert told.output.startswith(f"{address}{SIGN_IN}/")
        return told.output.strip().removeprefix(address)

    return linked


# ---------------------------------------------------------------------------
# Shared results


def test_a_link_shows_the_results_of_one_experiment_without_a_sign_in(
    app,
    api,
    browser,
    running,
    enrolled,
    told,
):
    path = running(name="Onboarding of maria's team")
    enrolled(path, *(f"u{number}" for number in range(40)))
    assert api.post(f"{path}/conversions", {"userId": "u1"}).status_code == 201

    address = shared(browser, path)
    answer = app.test_client().get(address)

    page = read(answer)
    assert address.startswith("http://localhost/ui/shared/")
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cache-Control"] == "no-store"
    assert "Set-Cookie" not in answer.headers
    assert "Onboarding of maria's team" in page.text
    assert told(path)["verdict"]["sentence"] in page.text
    ends = datetime.now(timezone.utc) + timedelta(days=7)
    assert f"shows them until {ends:%Y-%m-%d} " in page.text


@pytest.mark.one_engine
def test_a_shared_page_names_nobody_and_leads_to_no_move(app, api, browser, running):
    path = running()
    inside = read(browser.get(f"/ui/{path}"))
    assert "tester: start" in inside.text and "Signed in as maria" in inside.text

    page = read(app.test_client().get(shared(browser, path)))

    for word in ("tester", "maria", "History", "curl"):
        assert word not in page.text
    assert page.number_of("form") == page.number_of("button") == 0
    links = {one["href"] for tag, one in page.tags if tag == "a"}
    assert links == {"#main"}


@pytest.mark.one_engine
def test_a_shared_link_opens_nothing_else(app, api, browser, running):
    path, other = running(), running()
    token = shared(browser, path).rpartition("/")[2]
    before = api.get(path).json

    stranger = Caller(app, token)
    assert_error(stranger.get(path), 401, "UNAUTHENTICATED")
    assert_error(stranger.post(f"{path}/stop"), 401, "UNAUTHENTICATED")
    assert stranger.get(f"/ui/{path}").status_code == 303
    cookie = app.test_client()
    cookie.set_cookie("abacus_token", token, path="/ui")
    assert cookie.get(f"/ui/{path}").status_code == 303
    pasted, answer = sign_in(app, token)
    read(answer, 401)
    assert pasted.get_cookie("abacus_token", path="/ui") is None
    read(app.test_client().get(f"{SIGN_IN}/{token}", headers=BY_HAND), 404)
    read(app.test_client().post(f"{SIGN_IN}/{token}", headers=OURS), 404)

    # For another experiment: its claims cannot be changed, nor the purpose.
    head, _, proof = token.split(".")
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["sub"] == path.removeprefix("experiments/")
    claims["sub"] = other.removeprefix("experiments/")
    body = jwt.encode(claims, SECRET, "HS256").split(".")[1]
    read(app.test_client().get(f"/ui/shared/{head}.{body}.{proof}"), 404)
    assert api.get(path).json == before


@pytest.mark.one_engine
def test_what_is_no_link_opens_nothing(app, token, running):
    id = running().removeprefix("experiments/")
    claims = {"sub": id, "aud": "share", "exp": 4_000_000_000}
    deep = jwt.utils.base64url_encode(b"[" * 4_000).decode()
    for wrong in (
        token(),
        token(aud="share", sub=id),
        jwt.encode(claims, SECRET, "HS256"),
        jwt.encode(claims, None, "none"),
        made(app, links.SIGN_IN, sub=id, scope=None, until=4e9, scheme="http"),
        made(app, links.SHARE),
        made(app, links.SHARE, sub="exp_1"),
        made(app, links.SHARE, sub=id)[:-3],
        f"{deep}.{deep}.AAAA",
        "x",
        "\u00e9.a.b",
        "%FF.a.b",
        HOSTILE.replace("/", ""),
    ):
        answer = app.test_client().get(f"/ui/shared/{wrong}")
        read(answer, 404)
        assert "<script" not in answer.text
    read(app.test_client().get(f"/ui/shared/{made(app, links.SHARE, sub=id)}"))


@pytest.mark.one_engine
def test_a_link_is_refused_after_its_end(app, running):
    id = running().removeprefix("experiments/")
    over = timedelta(seconds=-1)

    shown = app.test_client().get(f"/ui/shared/{made(app, links.SHARE, over, sub=id)}")
    claims = {"sub": "maria", "scope": None, "until": 4e9, "scheme": "http"}
    path = f"{SIGN_IN}/{made(app, links.SIGN_IN, over, **claims)}"
    client = app.test_client()
    opened = client.get(path, headers=BY_HAND)

    for answer in (shown, opened, client.post(path, headers=OURS)):
        assert "This link has ended. Ask for a new one." in read(answer, 410).text
        assert "Set-Cookie" not in answer.headers


@pytest.mark.one_engine
def test_a_link_ends_with_the_secret_as_tokens_do(app, running, database_url):
    id = running().removeprefix("experiments/")
    paths = (
        f"/ui/shared/{made(app, links.SHARE, sub=id)}",
        f"/ui/experiments/{id}",
    )

    def statuses(**keys):
        """Return what the link and a token of the old secret are answered."""
        other = create_app({**configured(database_url), **keys})
        found = [
            Caller(other, jwt.encode(claims, SECRET, "HS256")).get(path).status_code
            for path in paths
        ]
        other.extensions["database"].shut()
        return found

    claims = {"sub": "maria", "exp": 4_000_000_000}
    new = "".join(reversed(SECRET))
    assert statuses() == [200, 200]
    assert statuses(JWT_SECRET_KEY=new, JWT_PREVIOUS_KEY=SECRET) == [200, 200]
    assert statuses(JWT_SECRET_KEY=new) == [404, 303]


@pytest.mark.one_engine
@pytest.mark.parametrize("days", ["0", "91", "-1", "1.5", "x", "", "10" * 9])
def test_a_link_lasts_from_1_to_90_days(app, browser, running, days):
    path = running()
    secret = secret_of(read(browser.get(f"/ui/{path}")))
    data = {"secret": secret, "days": days}

    read(browser.post(f"/ui/{path}/share", data=data, headers=OURS), 400)

    for good in (1, 90):
        link = shared(browser, path, str(good)).rpartition("/")[2]
        ends = jwt.decode(link, options={"verify_signature": False})["exp"]
        left = ends - datetime.now(timezone.utc).timestamp()
        assert left == pytest.approx(good * 24 * 3600, abs=60)


@pytest.mark.one_engine
def test_a_reader_shares_nothing(app, token, browser, running):
    path = running()
    reader, _ = sign_in(app, token("reader", scope="read"))
    secret = secret_of(read(browser.get(f"/ui/{path}")))
    data = {"secret": secret, "days": "7"}

    assert read(reader.get(f"/ui/{path}")).number_of("input") == 0
    read(reader.post(f"/ui/{path}/share", data=data, headers=OURS), 403)
    for headers in ({}, {"Origin": "https://evil.example"}):
        read(browser.post(f"/ui/{path}/share", data=data, headers=headers), 403)
    data["secret"] = secret_of(read(browser.get(f"/ui/{path}/stop")))
    read(browser.post(f"/ui/{path}/share", data=data, headers=OURS), 403)


@pytest.mark.one_engine
def test_a_link_is_of_the_scheme_that_the_browser_uses(browser, running):
    path = running()

    assert shared(browser, path, Origin="https://localhost").startswith("https://")


@pytest.mark.one_engine
def test_an_archived_experiment_that_was_shared_is_still_shown(
    app,
    api,
    browser,
    draft,
):
    path = draft()
    address = shared(browser, path)
    assert api.delete(path).status_code == 200

    assert "archived" in read(app.test_client().get(address)).text


# ---------------------------------------------------------------------------
# Sign-in by a link


@pytest.mark.one_engine
def test_a_link_that_is_opened_by_hand_signs_in_at_once(app, api, linked, draft):
    path = draft()
    browser = app.test_client()

    answer = browser.get(linked(), headers=BY_HAND)

    assert (answer.status_code, answer.headers["Location"]) == (303, "/ui/")
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cache-Control"] == "no-store"
    cookie = browser.get_cookie("abacus_token", path="/ui")
    assert cookie.http_only and cookie.same_site == "Strict" and not cookie.secure
    assert 29.9 * 86_400 < cookie.max_age <= 30 * 86_400
    page = read(browser.get(f"/ui/{path}/start"))
    assert "Signed in as maria" in page.text
    data = {"secret": secret_of(page)}
    assert browser.post(f"/ui/{path}/start", data=data, headers=OURS).status_code == 303
    (newest, _) = api.get(f"{path}/history").json["data"]
    assert newest["subject"] == "maria"


@pytest.mark.one_engine
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate"},
        {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "navigate"},
        {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "no-cors"},
    ],
)
def test_a_link_to_which_a_page_led_asks_before_it_signs_in(
    app, token, linked, headers
):
    path = linked()
    browser, _ = sign_in(app, token("other"))

    answer = browser.get(path, headers=headers)

    page = read(answer)
    assert "Sign in as maria?" in page.text
    assert "Set-Cookie" not in answer.headers
    assert answer.headers["Referrer-Policy"] == "origin"
    assert ("form", {"method": "post", "action": path}) in page.tags
    read(browser.post(path, headers={"Origin": "https://evil.example"}), 403)
    assert "Signed in as other" in read(browser.get("/ui/")).text
    assert browser.post(path, headers=OURS).status_code == 303
    assert "Signed in as maria" in read(browser.get("/ui/")).text


@pytest.mark.one_engine
def test_whoever_only_looks_at_the_head_of_a_link_is_not_signed_in(app, linked):
    answer = app.test_client().head(linked(), headers=BY_HAND)

    assert answer.status_code == 200 and "Set-Cookie" not in answer.headers


@pytest.mark.one_engine
def test_a_sign_in_link_has_ten_minutes_and_the_session_its_days_and_scopes(
    app, linked
):
    now = datetime.now(timezone.utc).timestamp()
    path = linked("--days", "2", "--scope", "read")
    claims = jwt.decode(path.rpartition("/")[2], options={"verify_signature": False})
    assert claims["exp"] - now == pytest.approx(600, abs=30)
    browser = app.test_client()

    assert browser.get(path, headers=BY_HAND).status_code == 303

    cookie = browser.get_cookie("abacus_token", path="/ui")
    session = jwt.decode(cookie.value, SECRET, ["HS256"])
    assert (session["sub"], session["scope"]) == ("maria", "read")
    assert session["exp"] - now == pytest.approx(2 * 86_400, abs=30)
    short = linked("--days", "0.001").rpartition("/")[2]
    ends = jwt.decode(short, options={"verify_signature": False})["exp"]
    assert ends - now == pytest.approx(86, abs=30)


@pytest.mark.one_engine
def test_a_sign_in_link_is_no_token_and_shares_nothing(app, linked, draft):
    path = draft()
    link = linked().rpartition("/")[2]

    assert_error(Caller(app, link).get(path), 401, "UNAUTHENTICATED")
    assert Caller(app, link).get("/ui/").status_code == 303
    read(sign_in(app, link)[1], 401)
    read(app.test_client().get(f"/ui/shared/{link}"), 404)


@pytest.mark.one_engine
def test_behind_https_the_link_says_that_the_cookie_is_secure(app, linked):
    path = linked(address="https://abacus.example")

    answer = app.test_client().get(path, headers=BY_HAND)

    assert "; Secure" in answer.headers["Set-Cookie"]


@pytest.mark.one_engine
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["maria", "--link", "localhost"], "--link takes the address of the service"),
        (["maria", "--link", "http://a/ui"], "--link takes the address of the service"),
        (
            ["maria", "--link", "http://a", "--scope", "assign"],
            "The pages need the scope 'read'.",
        ),
        (["", "--link", "http://a"], "A subject has 1 to 255 printable characters."),
    ],
)
def test_a_sign_in_link_that_could_not_work_is_not_made(app, words, said):
    told = app.test_cli_runner().invoke(args=["token", *words])

    assert told.exit_code == 1
    assert said in told.output and "/ui/" not in told.output


@pytest.mark.one_engine
def test_where_tokens_are_made_elsewhere_no_link_is_signed(database_url):
    key = pem(RSA).decode()
    other = create_app(
        {
            **configured(database_url),
            "JWT_SECRET_KEY": None,
            "JWT_ALGORITHM": "RS256",
            "JWT_PUBLIC_KEY": key,
        }
    )
    api = Caller(other, signed(GOOD, RSA, "RS256"))
    body = {"name": "Onboarding", "variants": two_variants()}
    id = api.post("experiments", body).json["data"]["id"]
    # The key that everyone knows, taken for a secret.
    proof = hmac.digest(key.encode(), b"abacus link: share", "sha256")
    claims = {"sub": id, "aud": "share", "exp": 4_000_000_000}

    page = read(api.get(f"/ui/experiments/{id}"))
    read(api.post(f"/ui/experiments/{id}/share", headers=OURS), 404)
    read(api.get(f"/ui/shared/{jwt.encode(claims, proof, 'HS256')}"), 404)
    words = ["token", "maria", "--link", "http://localhost"]
    told = other.test_cli_runner().invoke(args=words)
    other.extensions["database"].shut()

    assert page.number_of("input") == 0
    assert ("a", {"href": f"/ui/experiments/{id}/start"}) in page.tags
    assert told.exit_code == 1
    assert told.output == "Error: Tokens are made by whoever has the private key.\n"


@pytest.mark.one_engine
def test_no_link_is_written_into_the_log(tmp_path):
    with real.served(tmp_path) as service:
        address = f"http://127.0.0.1:{service.port}"
        line = service.flask("token", "maria", "--link", address).stdout.strip()
        id = service.running().partition("/")[2]
        secret = (tmp_path / "secret").read_text()
        key = hmac.digest(secret.encode(), b"abacus link: share", "sha256")
        claims = {"sub": id, "aud": "share", "exp": 4_000_000_000}
        share = f"/ui/shared/{jwt.encode(claims, key, 'HS256')}"
        opened = line.removeprefix(address)
        statuses = []
        for path in (opened, share, f"{opened}x", f"{share}x", f"{share}/x"):
            connection = HTTPConnection("127.0.0.1", service.port, timeout=30)
            connection.request("GET", path, headers=BY_HAND)
            statuses.append(connection.getresponse().status)
            connection.close()
        log = service.log.read_text()

    assert statuses == [303, 200, 404, 404, 404]
    assert log.count('"/ui/sign-in/<link>"') == log.count('"/ui/shared/<link>"') == 2
    for part in (*opened.rpartition("/")[2].split("."), *share.split(".")[1:]):
        assert part not in log
