"""The pages: they show what the API answers, and nothing that was stored runs."""

import gzip
import re
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser

import pytest
from conftest import Caller, assert_error, configured, statements, two_variants

import pages
from app import create_app
from web import html

SIGN_IN = "/ui/sign-in"
OURS = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}
HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(2)>'
TURNED = "safe\u202eevil"
VOID = {"meta", "link", "input", "img", "br", "hr"}
SVG = {"line", "rect", "circle", "text", "title", "desc", "svg", "polygon", "polyline"}


class Checked(HTMLParser):
    """A page, read by a parser that notes what a screen reader would miss."""

    def __init__(self, text):
        super().__init__()
        self.open, self.faults, self.labels, self.inputs = [], [], set(), []
        self.ids, self.words, self.tags, self.cells = [], [], [], []
        self.referred, self.tables = [], []
        self.feed(text)
        self.close()
        self.faults += [f"{tag} is open" for tag in self.open]
        self.faults += [one for one in self.inputs if one not in self.labels]
        self.faults += [one for one in self.referred if one not in self.ids]
        self.faults += [one for one in set(self.ids) if self.ids.count(one) > 1]
        self.faults += [table for table in self.tables if not {"col", "row"} <= table]

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append((tag, given))
        self.ids += [given["id"]] if "id" in given else []
        if tag not in VOID:
            self.open.append(tag)
        if tag == "label":
            self.labels.add(given["for"])
        if tag in ("input", "select", "progress") and given.get("type") != "hidden":
            self.inputs.append(given.get("id"))
        if tag == "table":
            self.tables.append(set())
        if tag == "th":
            self.tables[-1].add(given.get("scope"))
        if tag in ("th", "td"):
            self.cells.append("")
        for name in ("aria-labelledby", "aria-describedby"):
            self.referred += given.get(name, "").split()
        if tag == "svg" and not (given.get("role") and given.get("aria-labelledby")):
            self.faults.append("svg")
        if tag == "script" or {"style", "src"} & given.keys():
            self.faults.append(tag)
        self.faults += [name for name in given if name.startswith("on")]

    def handle_startendtag(self, tag, attributes):
        assert tag in SVG, tag
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"/{tag}")

    def handle_data(self, data):
        self.words.append(data)
        if self.open and {"th", "td"} & set(self.open):
            self.cells[-1] += data

    def number_of(self, tag):
        return sum(one == tag for one, _ in self.tags)

    @property
    def text(self):
        return " ".join("".join(self.words).split())


def read(response, status=200):
    """Return a page that has passed the checks that every page has to pass."""
    assert response.status_code == status, response.text
    assert response.content_type == "text/html; charset=utf-8"
    policy = response.headers["Content-Security-Policy"].split("; ")
    assert set(policy) == {
        "default-src 'none'",
        "style-src 'self'",
        "img-src 'self'",  # the icon
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    }
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    page = Checked(response.text)
    assert page.faults == []
    assert response.text.startswith('<!doctype html>\n<html lang="en">')
    for tag in ("h1", "main", "header", "footer"):
        assert page.number_of(tag) == 1, tag
    assert re.search(r"<title>\S.* · Abacus</title>", response.text)
    return page


def sign_in(app, token, to="/ui/", **headers):
    client = app.test_client()
    address = f"{SIGN_IN}?next={to}"
    answer = client.post(address, data={"token": token}, headers={**OURS, **headers})
    return client, answer


@pytest.fixture
def busy(api, running, enrolled):
    """Return the path of an experiment with a plan, a guardrail and conversions."""
    plan = {"baselineRate": 0.1, "minimumEffect": 0.05}
    metrics = [{"name": "refund", "role": "guardrail", "direction": "decrease"}]
    path = running(plan=plan, metrics=metrics, hypothesis="More of them buy.")
    users = [one["userId"] for one in enrolled(path, *(f"u{n}" for n in range(300)))]
    rows = [{"userId": user, "value": 2.5} for user in users[::3]]
    rows += [{"userId": user, "metric": "refund"} for user in users[::20]]
    body = {"conversions": rows}
    assert api.post(f"{path}/conversions/batch", body).status_code == 200
    return path


# ---------------------------------------------------------------------------
# Sign-in


@pytest.mark.one_engine
def test_a_token_is_pasted_once_and_the_cookie_ends_with_it(app, token):
    client, answer = sign_in(app, f" Bearer {token(scope='read')}\n", "/ui/?page=2")

    assert answer.status_code == 303
    assert answer.headers["Location"] == "/ui/?page=2"
    cookie = client.get_cookie("abacus_token", path="/ui")
    assert cookie.http_only and not cookie.secure
    assert cookie.same_site == "Strict" and cookie.path == "/ui"
    assert 3_590 <= cookie.max_age <= 3_600
    read(client.get("/ui/"))


@pytest.mark.one_engine
@pytest.mark.parametrize(
    ("base", "headers"),
    [
        ("https://localhost", {"Origin": "https://localhost"}),
        # A proxy that speaks TLS: only the browser knows.
        ("http://localhost", {"Origin": "https://localhost"}),
    ],
)
def test_over_https_the_cookie_is_secure(app, token, base, headers):
    answer = app.test_client().post(
        SIGN_IN, base_url=base, data={"token": token()}, headers={**OURS, **headers}
    )

    assert answer.status_code == 303
    assert "; Secure" in answer.headers["Set-Cookie"]


@pytest.mark.one_engine
def test_a_token_that_proves_nothing_signs_nobody_in(app, token):
    for wrong in ("", "x", token()[:-4] + "AAAA", f"{token()} {token()}"):
        client, answer = sign_in(app, wrong)

        page = read(answer, 401)
        assert page.number_of("input") == 1
        assert answer.headers["X-Request-ID"] in page.text
        assert client.get_cookie("abacus_token", path="/ui") is None


@pytest.mark.one_engine
def test_a_token_without_the_scope_read_is_told_so(app, token):
    client, answer = sign_in(app, token(scope="assign write"))

    assert "The token has no 'read' scope." in read(answer, 403).text
    assert client.get_cookie("abacus_token", path="/ui") is None


@pytest.mark.one_engine
def test_a_token_that_fits_in_no_cookie_is_told_so(app, token):
    client, answer = sign_in(app, token(more="x" * 3_500))

    assert "fits in no cookie" in read(answer, 400).text
    assert client.get_cookie("abacus_token", path="/ui") is None
    read(sign_in(app, "x" * 20_000)[1], 413)


@pytest.mark.one_engine
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://[evil"},
        {"Origin": "//localhost"},
        {"Origin": "http://localhost", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://localhost", "Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_form_of_another_site_does_nothing(app, token, headers):
    signed_in, _ = sign_in(app, token())
    stranger = app.test_client()

    refused = stranger.post(SIGN_IN, data={"token": token()}, headers=headers)
    kept = signed_in.post("/ui/sign-out", headers=headers)

    read(refused, 403)
    read(kept, 403)
    assert stranger.get_cookie("abacus_token", path="/ui") is None
    read(signed_in.get("/ui/"))


@pytest.mark.one_engine
def test_a_browser_on_plain_http_sends_only_the_origin(app, token):
    answer = app.test_client().post(
        SIGN_IN, data={"token": token()}, headers={"Origin": "http://localhost"}
    )

    assert answer.status_code == 303


@pytest.mark.one_engine
def test_whoever_signs_out_is_signed_out(app, token):
    client, _ = sign_in(app, token())

    answer = client.post("/ui/sign-out", headers=OURS)

    assert answer.status_code == 303 and answer.headers["Location"] == SIGN_IN
    assert client.get_cookie("abacus_token", path="/ui") is None
    assert client.get("/ui/").status_code == 303


@pytest.mark.one_engine
def test_a_cookie_that_proves_nothing_leads_to_the_sign_in_and_is_removed(app):
    client = app.test_client()
    client.set_cookie("abacus_token", "a.b.c", path="/ui")

    answer = client.get("/ui/experiments/exp_1?x=%22%3E")

    assert answer.status_code == 303
    assert answer.headers["Location"] == (
        f"{SIGN_IN}?next=/ui/experiments/exp_1%3Fx%3D%2522%253E"
    )
    assert client.get_cookie("abacus_token", path="/ui") is None
    page = read(client.get(answer.headers["Location"]))
    assert ("a", {"href": "/ui/experiments/exp_1?x=%22%3E"}) in page.tags


@pytest.mark.one_engine
def test_the_sign_in_leads_back_to_an_audience_with_dots_in_its_id(app, token):
    to = "/ui/audiences/.a..b/...?search=.."

    _, answer = sign_in(app, token(), to)

    assert answer.headers["Location"] == to


@pytest.mark.one_engine
def test_a_link_of_another_site_signs_nobody_out(app):
    """A browser sends no strict cookie with such a link, and would obey its removal."""
    answer = app.test_client().get("/ui/", headers={"Sec-Fetch-Site": "cross-site"})

    assert answer.status_code == 303
    assert "Set-Cookie" not in answer.headers


@pytest.mark.one_engine
@pytest.mark.parametrize(
    "to",
    [
        *("https://evil.example", "//evil.example/ui/", "/ui/\\evil", "/api", "/uix"),
        *("/ui/../docs/", "/ui/a/%252e%252E/../docs", "/ui/..//evil.example", "/ui/.."),
        *("/ui/.%252e?page=2", "/ui/./planner"),
    ],
)
def test_the_sign_in_leads_to_no_other_site(app, token, to):
    _, answer = sign_in(app, token(), to)

    assert answer.headers["Location"] == "/ui/"


@pytest.mark.one_engine
def test_a_token_in_the_header_opens_the_pages_too(app, api, token):
    read(api.get("/ui/"))
    page = read(Caller(app, token(scope="assign")).get("/ui/"), 403)
    assert "no 'read' scope" in page.text
    assert Caller(app, "a.b.c").get("/ui/").status_code == 303


def test_the_api_never_accepts_the_cookie(app, token, draft):
    path = draft()
    client, _ = sign_in(app, token())
    client.set_cookie("abacus_token", token(), path="/")

    for method, where in (
        ("GET", f"/api/{path}"),
        ("DELETE", f"/api/{path}"),
        ("POST", f"/api/{path}/start"),
    ):
        answer = client.open(where, method=method, headers=OURS)
        assert_error(answer, 401, "UNAUTHENTICATED")
    flag = "/ofrep/v1/evaluate/flags"
    assert client.post(flag, json={}, headers=OURS).status_code == 401


# ---------------------------------------------------------------------------
# The list


def test_the_list_has_what_the_list_of_the_api_has(app, api, draft, running, enrolled):
    paths = [draft(), running(), running(), draft()]
    enrolled(paths[1], "u1", "u2")
    assert api.delete(paths[3]).status_code == 200
    for query in ("", "?status=running", "?archived=true", "?limit=2&page=2"):
        rows = api.get(f"experiments{query}").json
        page = read(api.get(f"/ui/{query}"))

        links = [one["href"] for tag, one in page.tags if tag == "a"]
        shown = [link for link in links if "/experiments/" in link]
        assert shown == [f"/ui/experiments/{row['id']}" for row in rows["data"]], query
        for row in rows["data"]:
            place = next(n for n, cell in enumerate(page.cells) if row["name"] in cell)
            assert row["key"] in page.cells[place]
            assert page.cells[place + 1].startswith(row["status"])
            assert page.cells[place + 2] == str(row["_count"]["assignments"])
        assert f"{rows['meta']['total']} experiments, newest first" in page.text


def test_the_pages_of_the_list_are_linked(api, draft):
    for _ in range(3):
        draft()

    page = read(api.get("/ui/?status=draft&limit=1&page=2&archived="))
    past = read(api.get("/ui/?limit=1&page=9"))

    ways = {one["rel"]: one["href"] for _, one in page.tags if "rel" in one}
    assert ways.pop("stylesheet") == "/ui/abacus.css"
    assert ways.pop("icon") == "/ui/abacus.svg"
    assert ways == {
        "prev": "/ui/?status=draft&limit=1&page=1",
        "next": "/ui/?status=draft&limit=1&page=3",
    }
    assert "Page 2 of 3" in page.text
    assert "past the end" in past.text
    assert any(one.get("href") == "/ui/?limit=1&page=3" for _, one in past.tags)


@pytest.mark.one_engine
def test_an_empty_list_says_what_to_do(api):
    assert "There is no experiment yet." in read(api.get("/ui/")).text
    page = read(api.get("/ui/?status=stopped"))
    assert "No experiment has this status." in page.text
    assert ("option", {"selected": None}) in page.tags


@pytest.mark.one_engine
@pytest.mark.parametrize(
    "query", ["page=0", "page=x", "status=lost", "q=1", "page=1&page=2", "limit=101"]
)
def test_a_query_that_is_not_understood_is_a_page_with_400(api, query):
    read(api.get(f"/ui/?{query}"), 400)


# ---------------------------------------------------------------------------
# One experiment


def percent(number, like):
    """Return a share as the page has it, with as many decimals as a text of it."""
    places = len(re.match(r"-?[\d,]+\.?(\d*)", like)[1])
    return f"{100 * number:,.{places}f} %"


def test_the_page_of_an_experiment_has_the_figures_of_the_api(api, busy, told):
    page = read(api.get(f"/ui/{busy}"))
    computed = told(busy)
    counted = api.get(f"{busy}/results").json["data"]

    assert computed["verdict"]["sentence"] in page.text
    # The verdict is the first thing under the name.
    assert page.text.index(computed["verdict"]["sentence"]) < page.text.index("Lift")
    cells = [cell.removesuffix(" control") for cell in page.cells]
    for variant in computed["variants"]:
        place = cells.index(variant["variantName"])
        name, users, converted, rate, ends = cells[place : place + 5]
        low, high = (variant["alwaysValidInterval"][end] for end in ("lower", "upper"))
        assert users == str(variant["sampleSize"])
        assert converted == str(variant["conversions"])
        assert rate == percent(variant["conversionRate"], rate)
        assert ends == f"{percent(low, rate)} to {percent(high, rate)}"
        assert f"{name}: {rate} ({ends})" in page.text
    (compared,) = [one["comparison"] for one in computed["variants"][1:]]
    name = computed["variants"][1]["variantName"]
    place = cells.index(name, cells.index(name) + 1)
    lift, ends, p = cells[place + 1 : place + 4]
    ends = [lift, *ends.split(" to ")]
    always = compared["sequential"]["liftInterval"]
    for text, number in zip(
        ends, (compared["lift"], always["lower"], always["upper"]), strict=True
    ):
        # Two digits, or a whole number.
        shown = float(text.removesuffix(" %").replace(",", ""))
        assert shown == pytest.approx(100 * number, rel=0.05, abs=0.5)
    assert p == f"p = {compared['sequential']['adjustedPValue']:.3f}"
    for warning in computed["warnings"]:
        assert warning["message"] in page.text
    left = computed["progress"]["usersLeft"]
    horizon = computed["analysis"]["horizon"]["users"]
    assert f"300 of the {horizon:,} users of the plan are enrolled." in page.text
    bar = next(one for tag, one in page.tags if tag == "progress")
    assert int(bar["max"]) - int(bar["value"]) == left
    for variant in counted["variants"]:
        assert str(variant["participants"]) in cells
        for row in variant["results"]:
            users, events = str(row["conversions"]), str(row["events"])
            line = [row["metric"], variant["variantName"], users, events]
            assert line in [cells[n : n + 4] for n in range(len(cells))]
    quality = counted["quality"]
    assert f"{quality['received']} conversions received" in page.text


def test_guardrails_history_and_the_curl_line_are_there(api, busy):
    page = read(api.get(f"/ui/{busy}"))

    place = page.cells.index("refund")
    assert page.cells[place + 1] == "guardrail"
    assert page.cells[place + 4] == "no harm shown"
    assert "tester: start (" in page.text
    assert f'"$ABACUS/api/{busy}/compute-results"' in page.text
    assert "Nothing speaks against the planned split" in page.text
    assert page.number_of("svg") == 4


@pytest.mark.one_engine
def test_a_key_leads_to_the_page_too(api, running):
    running(key="checkout")

    assert "checkout" in read(api.get("/ui/experiments/checkout")).text


@pytest.mark.one_engine
def test_what_is_not_there_yet_is_said_in_words(api, draft, running, enrolled):
    waiting, nobody, silent = draft(), running(), running()
    enrolled(silent, "u1", "u2", "u3")

    assert "This is a draft" in read(api.get(f"/ui/{waiting}")).text
    assert "Nobody is enrolled yet." in read(api.get(f"/ui/{nobody}")).text
    text = read(api.get(f"/ui/{silent}")).text
    assert "Nothing has been counted for the metric conversion yet." in text
    assert "There is no plan" in text


@pytest.mark.one_engine
def test_every_state_says_what_to_do_next(api, running, enrolled):
    path = running()
    enrolled(path, *(f"u{number}" for number in range(40)))
    for number in range(0, 40, 2):
        assert api.post(f"{path}/conversions", {"userId": f"u{number}"}).json["data"]

    def advice():
        return read(api.get(f"/ui/{path}")).text.partition("What to do next:")[2]

    assert advice().startswith(" Wait.")
    assert api.post(f"{path}/stop").status_code == 200
    assert advice().startswith(" Nobody is enrolled any more.")
    body = {"conclusion": "won", "winnerVariantId": "v2"}
    assert api.post(f"{path}/complete", body).status_code == 200
    assert advice().startswith(
        " Nothing: the results are final. It was concluded as won. Everyone is given "
        "Detailed."
    )
    assert api.delete(path).status_code == 200
    assert advice().startswith(" Nothing: the experiment is archived.")


@pytest.mark.one_engine
def test_a_harmed_guardrail_is_said_first_and_what_to_do(api, running, enrolled):
    metrics = [{"name": "crash", "role": "guardrail", "direction": "decrease"}]
    path = running(metrics=metrics)
    decisions = enrolled(path, *(f"u{number}" for number in range(400)))
    rows = [{"userId": one["userId"]} for one in decisions[::2]]
    rows += [
        {"userId": one["userId"], "metric": "crash"}
        for one in decisions
        if one["variantId"] == "v2"
    ]
    body = {"conversions": rows}
    assert api.post(f"{path}/conversions/batch", body).status_code == 200

    text = read(api.get(f"/ui/{path}")).text
    assert api.post(f"{path}/stop").status_code == 200
    stopped = read(api.get(f"/ui/{path}")).text

    assert "A guardrail is harmed" in text
    assert "What to do next: Stop the experiment" in text
    assert "What to do next: Look at the guardrail" in stopped


@pytest.mark.parametrize("kind", ["mean", "ratio"])
def test_means_and_ratios_have_their_own_figures(api, running, enrolled, told, kind):
    metrics = [{"name": "sales", "role": "primary", "kind": kind}]
    path = running(primaryMetric="sales", metrics=metrics)
    enrolled(path, *(f"u{number}" for number in range(60)))
    rows = [{"userId": f"u{n}", "value": 10 + n % 7} for n in range(60)]
    body = {"conversions": rows}
    assert api.post(f"{path}/conversions/batch", body).status_code == 200

    page = read(api.get(f"/ui/{path}"))

    for variant in told(path)["variants"]:
        place = page.cells.index(
            variant["variantName"] + " control" * variant["isControl"]
        )
        shown = float(page.cells[place + 3])
        assert shown == pytest.approx(variant["value"]["mean"], abs=0.005 + 1e-9)
    assert ("Mean of a user" if kind == "mean" else "Mean of an event") in page.text


def test_a_split_that_is_broken_is_said_in_words(api, running, load):
    path = running()
    lines = [f"u{n},{'v1' if n % 4 else 'v2'},2026-01-01T00:00:00Z" for n in range(400)]
    load(path, "user_id,variant,timestamp", *lines)
    assert api.post(f"{path}/conversions", {"userId": "u1"}).status_code == 201

    text = read(api.get(f"/ui/{path}")).text

    assert "The split is broken" in text
    assert "The users are not split as planned" in text
    assert "Believe no figure below." in text


# ---------------------------------------------------------------------------
# What was stored never runs, and is never changed


@pytest.mark.one_engine
def test_nothing_that_a_user_wrote_is_markup_or_turns_the_text(api, running, enrolled):
    for text in (HOSTILE, TURNED):
        variants = two_variants()
        variants[1]["name"] = text
        fields = {"name": text, "hypothesis": text, "description": text}
        path = running(**fields, variants=variants, primaryMetric=text)
        enrolled(path, *(f"u{number}" for number in range(30)))
        rows = [{"userId": f"u{n}", "metric": text} for n in range(15)]
        body = {"conversions": rows}
        assert api.post(f"{path}/conversions/batch", body).status_code == 200

        for where in ("/ui/", f"/ui/{path}", f"/ui/experiments/{'%3Cscript%3E'}"):
            response = api.get(where)
            read(response, 404 if "%" in where else 200)
            assert "<script" not in response.text and "<img" not in response.text
            assert "\u202e" not in response.text
    assert "&lt;script&gt;" in api.get("/ui/").text


@pytest.mark.one_engine
def test_no_get_of_a_page_writes_a_row(api, busy, draft):
    for path in ("/ui", "/ui/", f"/ui/{busy}", f"/ui/{draft()}", SIGN_IN):
        with statements() as sent:
            assert api.get(path).status_code in (200, 302)
        written = [one for one in sent if re.match("(?i)insert|update|delete", one)]
        assert written == [], path


def test_the_first_look_that_decides_is_kept_as_the_api_keeps_it(
    api, running, load, told
):
    plan = {"baselineRate": 0.1, "minimumEffect": 0.05}
    path = running(plan=plan)
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    lines = [
        f"u{n},v{n % 2 + 1},{now},{now if n % 2 and n % 3 else ''}" for n in range(600)
    ]
    load(path, "user_id,variant,timestamp,converted_at", *lines)

    page = read(api.get(f"/ui/{path}"))
    (kept,) = [one["comparison"]["crossing"] for one in told(path)["variants"][1:]]

    assert "A variant is better" in page.text
    at = datetime.fromisoformat(kept["at"].replace("Z", "+00:00"))
    assert datetime.now(timezone.utc) - at < timedelta(minutes=5)
    # The page looked first, and the API found the look.
    again = told(path)["variants"][1]["comparison"]["crossing"]
    assert again == kept


# ---------------------------------------------------------------------------
# Errors, and the stylesheet


@pytest.mark.one_engine
def test_an_error_is_a_page_with_the_request_id(app, api):
    for method, path, status in (
        ("GET", "/ui/experiments/exp_1", 404),
        ("GET", "/ui/nowhere", 404),
        ("GET", "/ui/experiments/%00", 400),
        ("DELETE", "/ui/", 405),
        ("PUT", SIGN_IN, 405),
    ):
        response = api(method, path)
        page = read(response, status)
        assert f"Error {status}, request {response.headers['X-Request-ID']}" in (
            page.text
        )
    assert "GET" in api.delete("/ui/").headers["Allow"]


@pytest.mark.one_engine
def test_without_a_database_the_page_is_503_and_says_when_to_come_back(tmp_path, token):
    url = f"sqlite:///{tmp_path / 'gone.db'}"
    app = create_app({**configured(url), "TESTING": False})

    response = Caller(app, token()).get("/ui/")

    page = read(response, 503)
    assert response.headers["Retry-After"] == "1"
    assert "Not available now" in page.text


@pytest.mark.one_engine
def test_a_crash_is_a_page_that_tells_nothing(database_url):
    app = create_app(configured(database_url))

    @app.get("/ui/crash/<user_id>")
    def crash(user_id):
        raise KeyError(user_id)

    response = Caller(app, None).get("/ui/crash/marker")
    app.extensions["database"].shut()

    page = read(response, 500)
    assert "marker" not in response.text and "Traceback" not in response.text
    assert response.headers["X-Request-ID"] in page.text


@pytest.mark.one_engine
def test_the_stylesheet_is_small_and_is_sent_once(anonymous):
    first = anonymous.get("/ui/abacus.css")
    again = anonymous.get(
        "/ui/abacus.css", headers={"If-None-Match": first.headers["ETag"]}
    )

    assert first.content_type == "text/css; charset=utf-8"
    assert (
        first.data == pages.FILES["abacus.css"]
        and len(gzip.compress(first.data)) <= 12_288
    )
    assert (again.status_code, again.data) == (304, b"")
    for needed in ("prefers-color-scheme: dark", "@media print", ":focus-visible"):
        assert needed in first.text
    assert "url(" not in first.text and "@import" not in first.text
    icon = anonymous.get("/ui/abacus.svg")
    assert icon.content_type.startswith("image/svg+xml") and len(icon.data) < 1_000
    assert icon.headers["Content-Security-Policy"].startswith("default-src 'none'")


def test_a_path_of_the_pages_is_told_from_another():
    assert [html.is_page(path) for path in ("/ui", "/ui/", "/ui/x", "/uix", "/")] == [
        True,
        True,
        True,
        False,
        False,
    ]
