"""The moves on the pages: each is explained first, and made as the API makes it."""

import re
from urllib.parse import urlencode

import pytest
from conftest import two_variants
from test_audiences import PRO
from test_pages import HOSTILE, OURS, read, sign_in

MOVES = ("start", "stop", "resume", "complete", "archive", "unarchive")


def secret_of(page):
    (secret,) = [one["value"] for _, one in page.tags if one.get("name") == "secret"]
    return secret


def send(browser, path, move, headers=OURS, **fields):
    """Open the page of a move, and send its form with these fields."""
    page = read(browser.get(f"/ui/{path}/{move}"))
    data = {"secret": secret_of(page), **fields}
    return browser.post(f"/ui/{path}/{move}", data=data, headers=headers)


def offered(browser, path):
    """Return the moves that the page of an experiment leads to."""
    links = [one.get("href", "") for _, one in read(browser.get(f"/ui/{path}")).tags]
    start = f"/ui/{path}/"
    return [link.removeprefix(start) for link in links if link.startswith(start)]


def stored(api, path):
    """Return the experiment and its history, as the API has them."""
    return api.get(path).json["data"], api.get(f"{path}/history").json["data"]


def in_state(api, path, state):
    """Bring a draft into a state by the API."""
    calls = {
        "draft": [],
        "running": ["start"],
        "stopped": ["start", "stop"],
        "completed": ["start", "complete"],
    }
    for call in calls[state]:
        body = {"conclusion": "lost"} if call == "complete" else None
        assert api.post(f"{path}/{call}", body).status_code == 200


def test_an_experiment_is_led_through_its_life_by_buttons(api, browser, draft):
    path, winner = draft(), {"conclusion": "won", "winnerVariantId": "v2"}
    steps = [
        ("start", {}, "running", ["stop", "complete"]),
        ("stop", {}, "stopped", ["resume", "complete", "archive"]),
        ("resume", {}, "running", ["stop", "complete"]),
        ("complete", {**winner, "note": "Ship it\r\nnow"}, "completed", ["archive"]),
        ("archive", {}, "completed", ["unarchive"]),
        ("unarchive", {}, "completed", ["archive"]),
    ]
    assert offered(browser, path) == ["start", "archive"]
    for move, fields, state, following in steps:
        answer = send(browser, path, move, **fields)

        assert answer.status_code == 303, answer.text
        assert answer.headers["Location"] == f"/ui/{path}"
        experiment, (newest, *_) = stored(api, path)
        assert experiment["status"] == state
        assert (newest["action"], newest["subject"]) == (move, "maria")
        assert offered(browser, path) == following
    assert experiment["winnerVariantId"] == "v2"
    assert experiment["note"] == "Ship it\nnow"
    assert experiment["archivedAt"] is None


@pytest.mark.one_engine
def test_a_move_by_button_leaves_what_the_same_move_by_the_api_leaves(
    api, browser, draft
):
    """But for who did it, and when."""

    def trace(path):
        experiment, history = stored(api, path)
        for one in (experiment, *history):
            for name in ("id", "key", "name", "at", "createdAt", "subject"):
                one.pop(name, None)
        text = repr((experiment, history[:-1]))  # without the creation
        return re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "a time", text)

    by_button, by_api = draft(), draft()
    body = {"conclusion": "won", "winnerVariantId": "v1", "note": "x"}
    for move in ("start", "stop", "resume", "complete"):
        fields = body if move == "complete" else {}
        assert send(browser, by_button, move, **fields).status_code == 303
        assert api.post(f"{by_api}/{move}", fields).status_code == 200
        assert trace(by_button) == trace(by_api)


@pytest.mark.one_engine
@pytest.mark.parametrize("state", ["draft", "running", "stopped", "completed"])
def test_a_move_that_the_state_forbids_is_refused_in_the_words_of_the_api(
    api, browser, draft, state
):
    path = draft()
    in_state(api, path, state)
    allowed = offered(browser, path)
    before = stored(api, path)
    for move in MOVES[:5]:
        if move in allowed:
            continue
        if move == "archive":
            told = api.delete(path)
        else:
            told = api.post(
                f"{path}/{move}", {"conclusion": "won"} if "com" in move else None
            )
        assert told.status_code == 409
        page = read(browser.get(f"/ui/{path}/{move}"), 409)
        assert told.json["error"]["message"] in page.text
        assert ("a", {"href": f"/ui/{path}"}) in page.tags

    page = read(browser.get(f"/ui/{path}/unarchive"), 409)
    assert f"The experiment is {state}; it must be archived." in page.text
    assert stored(api, path) == before


@pytest.mark.one_engine
def test_a_move_that_another_has_made_meanwhile_is_told(api, browser, draft):
    path = draft()
    page = read(browser.get(f"/ui/{path}/start"))
    assert api.post(f"{path}/start").status_code == 200
    before = stored(api, path)

    data = {"secret": secret_of(page)}
    answer = browser.post(f"/ui/{path}/start", data=data, headers=OURS)

    page = read(answer, 409)
    assert "The experiment is running; it must be draft." in page.text
    assert stored(api, path) == before


def test_a_full_exclusion_group_is_told_as_the_api_tells_it(
    api, browser, draft, running
):
    running(exclusionGroup="page", trafficPercentage=70)
    path = draft(exclusionGroup="page", trafficPercentage=40)
    page = read(browser.get(f"/ui/{path}/start"))
    assert "takes 40 % of the exclusion group 'page'" in page.text

    answer = send(browser, path, "start")

    told = api.post(f"{path}/start").json["error"]["message"]
    assert told in read(answer, 409).text
    assert api.get(path).json["data"]["status"] == "draft"


def test_to_ask_what_a_move_does_writes_nothing(api, browser, draft):
    path = draft()
    before = stored(api, path)

    for move in ("start", "archive"):
        read(browser.get(f"/ui/{path}/{move}"))
        assert browser.head(f"/ui/{path}/{move}").status_code == 200

    assert stored(api, path) == before


def test_before_the_start_the_page_says_what_the_start_will_do(api, browser, draft):
    body = {"name": "Pros", "ruleTree": PRO}
    assert api("PUT", "audiences/pros", body).status_code == 201
    plan = {"baselineRate": 0.1, "minimumEffect": 0.05}
    path = draft(plan=plan, trafficPercentage=33.3, audienceId="pros")

    text = read(browser.get(f"/ui/{path}/start")).text
    assert api.post(f"{path}/start").status_code == 200

    assert (
        "33.3 % of the users who ask and match the audience 'pros' are enrolled from "
        "now on. Of them, 50 % get Control, 50 % get Detailed." in text
    )
    analysis = api.get(f"{path}/compute-results").json["data"]["analysis"]
    assert f"The plan needs {analysis['horizon']['users']:,} users." in text
    assert "The settings freeze" in text
    assert "Nothing has happened yet." in text


def test_before_the_start_the_page_has_the_warnings_of_the_start(
    api, browser, draft, running
):
    running()
    variants = two_variants()
    variants[1]["flowId"] = "flow_a"
    path = draft(variants=variants, audienceId="nobody-defined-it")

    page = read(browser.get(f"/ui/{path}/start"))
    told = api.post(f"{path}/start").json["data"]["warnings"]

    assert [one["code"] for one in told] == [
        "AUDIENCE_NOT_DEFINED",
        "FLOW_IN_TWO_VARIANTS",
        "FLOW_IN_TWO_EXPERIMENTS",
    ]
    for one in told:
        assert one["message"] in page.text


@pytest.mark.one_engine
def test_the_other_moves_say_what_they_do_to_participants(
    api, browser, running, enrolled
):
    path = running()
    enrolled(path, "u1", "u2")

    stop = read(browser.get(f"/ui/{path}/stop")).text
    complete = read(browser.get(f"/ui/{path}/complete"))

    assert "The 2 participants keep their variants, and their conversions still" in stop
    assert "The results are final" in complete.text
    options = [one["value"] for tag, one in complete.tags if "value" in one]
    assert options[1:] == ["", "", "v1", "v2"]  # after the secret
    assert "won lost inconclusive invalid" in complete.text


def test_a_conclusion_that_is_wrong_is_a_page_and_completes_nothing(
    api, browser, running
):
    path = running()
    before = stored(api, path)
    for fields in (
        {},
        {"conclusion": "maybe"},
        {"conclusion": "won", "winnerVariantId": "v9"},
        {"conclusion": "won", "more": "1"},
        {"conclusion": "won", "note": "x" * 10_001},
        {"conclusion": "won", "note": "a\0b"},
    ):
        read(send(browser, path, "complete", **fields), 400)
    read(send(browser, path, "complete", conclusion="won", note="x" * 170_000), 413)
    assert stored(api, path) == before

    # The longest note that the API takes, in the letters that take most room.
    note = "\U0001f9ee" * 10_000
    answer = send(browser, path, "complete", conclusion="won", note=note)
    assert answer.status_code == 303
    assert api.get(path).json["data"]["note"] == note


@pytest.mark.one_engine
@pytest.mark.parametrize("scope", ["read", "read assign"])
def test_a_reader_sees_no_button_and_moves_nothing(app, api, token, draft, scope):
    path = draft()
    reader, _ = sign_in(app, token("reader", scope=scope))
    writer, _ = sign_in(app, token("writer", scope="read write"))
    secret = secret_of(read(writer.get(f"/ui/{path}/start")))
    before = stored(api, path)

    assert offered(reader, path) == []
    for move in MOVES:
        page = read(reader.get(f"/ui/{path}/{move}"), 403)
        assert "The token has no 'write' scope." in page.text
        data = {"secret": secret}
        read(reader.post(f"/ui/{path}/{move}", data=data, headers=OURS), 403)

    assert stored(api, path) == before
    assert offered(writer, path) == ["start", "archive"]


@pytest.mark.one_engine
def test_a_form_needs_the_secret_of_its_own_page_and_sign_in(
    app, api, token, browser, draft
):
    path, other = draft(), draft()
    other_session, _ = sign_in(app, token("eve"))
    wrong = [
        "",
        "0" * 64,
        "\u00e9",
        secret_of(read(browser.get(f"/ui/{path}/archive"))),
        secret_of(read(browser.get(f"/ui/{other}/start"))),
        secret_of(read(other_session.get(f"/ui/{path}/start"))),
    ]
    before = stored(api, path)
    for secret in wrong:
        data = {"secret": secret}
        answer = browser.post(f"/ui/{path}/start", data=data, headers=OURS)
        assert "not of your present sign-in" in read(answer, 403).text
    read(browser.post(f"/ui/{path}/start", headers=OURS), 403)
    assert stored(api, path) == before


@pytest.mark.one_engine
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "https://evil.example"},
        {"Origin": "http://localhost", "Sec-Fetch-Site": "cross-site"},
    ],
)
def test_a_form_of_another_site_moves_nothing_even_with_the_secret(
    api, browser, draft, headers
):
    path = draft()
    before = stored(api, path)

    read(send(browser, path, "start", headers), 403)

    assert stored(api, path) == before


@pytest.mark.one_engine
def test_without_a_sign_in_a_form_leads_to_the_sign_in(app, api, draft):
    path = draft()
    before = stored(api, path)

    answer = app.test_client().post(f"/ui/{path}/start", headers=OURS)

    assert answer.status_code == 303
    assert answer.headers["Location"] == "/ui/sign-in?next=/ui/"
    assert stored(api, path) == before


@pytest.mark.one_engine
def test_a_move_or_an_experiment_that_there_is_not_is_a_page_with_404(browser, draft):
    path = draft()
    for where in (f"{path}/fly", f"{path}/duplicate", "experiments/exp_1/start"):
        read(browser.get(f"/ui/{where}"), 404)
        read(browser.post(f"/ui/{where}", headers=OURS), 404)


@pytest.mark.one_engine
def test_nothing_that_a_user_wrote_runs_on_the_page_of_a_move(browser, draft):
    variants = two_variants()
    variants[1]["name"] = HOSTILE
    fields = {"audienceId": HOSTILE, "exclusionGroup": HOSTILE}
    path = draft(name=HOSTILE, variants=variants, **fields)
    for move in ("start", "archive"):
        response = browser.get(f"/ui/{path}/{move}")
        read(response)
        assert "<script" not in response.text and "<img" not in response.text
    assert send(browser, path, "start").status_code == 303
    response = browser.get(f"/ui/{path}/complete")
    read(response)
    assert "<script" not in response.text and "&lt;script&gt;" in response.text


@pytest.mark.one_engine
def test_a_key_in_the_address_serves_for_the_id(api, browser, draft):
    draft(key="checkout")

    answer = send(browser, "experiments/checkout", "start")

    assert answer.status_code == 303
    assert api.get("experiments/checkout").json["data"]["status"] == "running"


def test_the_header_of_a_proxy_signs_forms_too(api, draft):
    path = draft()
    page = read(api.get(f"/ui/{path}/start"))
    body = urlencode({"secret": secret_of(page)})
    kind = "application/x-www-form-urlencoded"

    answer = api.post(f"/ui/{path}/start", data=body, headers=OURS, content_type=kind)

    assert answer.status_code == 303
    assert api.get(path).json["data"]["status"] == "running"
