"""An experiment: made, read, changed, moved through its life."""

import pytest
from conftest import assert_error, paths, two_variants
from markupsafe import escape

LIFE = {
    "draft": [],
    "running": ["start"],
    "stopped": ["start", "stop"],
    "completed": ["start", "stop", "complete"],
}
ALLOWED = {
    "start": {"draft"},
    "stop": {"running"},
    "resume": {"stopped"},
    "complete": {"running", "stopped"},
    "archive": {"draft", "stopped", "completed"},
    "revise": {"draft"},
}
AFTER = {
    "start": "running",
    "stop": "stopped",
    "resume": "running",
    "complete": "completed",
}


def move(api, path, name):
    if name == "archive":
        return api.delete(path)
    if name == "revise":
        return api.patch(path, {"name": "Another name"})
    body = {"conclusion": "inconclusive"} if name == "complete" else None
    return api.post(f"{path}/{name}", body)


def lived(api, path, status):
    for name in LIFE[status]:
        assert move(api, path, name).status_code == 200
    return path


def test_an_experiment_comes_back_as_it_was_created(api):
    body = {
        "name": "Onboarding Flow Test",
        "description": "Compare short vs. detailed onboarding",
        "type": "ab_test",
        "hypothesis": "Detail helps",
        "primaryMetric": "signup",
        "plan": {"baselineRate": 0.18, "minimumEffect": 0.05},
        "trafficPercentage": 12.5,
        "endDate": "2126-01-01T00:00:00+02:00",
        "variants": [
            {"name": "A", "splitPercentage": 33.33, "flowId": "a", "config": {"z": 1}},
            {"name": "B", "splitPercentage": 33.33},
            {"name": "C", "splitPercentage": 33.34, "config": {}},
        ],
    }

    made = api.post("experiments", body)

    assert made.status_code == 201
    data = made.json["data"]
    assert data["warnings"] == []
    for name in ("name", "description", "type", "hypothesis", "primaryMetric"):
        assert data[name] == body[name]
    assert data["plan"] == {
        "baselineRate": 0.18,
        "minimumEffect": 0.05,
        "power": 0.8,
        "confidenceLevel": 0.95,
    }
    assert data["trafficPercentage"] == 12.5
    assert data["endDate"] == "2125-12-31T22:00:00Z"
    assert [one["id"] for one in data["variants"]] == ["v1", "v2", "v3"]
    assert [one["splitPercentage"] for one in data["variants"]] == [33.33, 33.33, 33.34]
    assert [one["config"] for one in data["variants"]] == [{"z": 1}, None, {}]
    assert data["status"] == "draft"
    assert data["_count"] == {"assignments": 0}
    read = api.get(f"experiments/{data['id']}").json["data"]
    assert read == {name: data[name] for name in data if name != "warnings"}


OPTIONAL = {"flowId": "flow_b", "config": {"steps": 5}}
GIVEN = [
    {},
    {"flowId": "flow_b"},
    {"config": {"steps": 5}},
    OPTIONAL,
    {"flowId": None, "config": None},
    {"config": {}},
]


def as_answered(variant):
    return {"flowId": None, "config": None, **variant}


@pytest.mark.parametrize("last", GIVEN)
@pytest.mark.parametrize("first", GIVEN)
def test_what_only_one_variant_has_is_kept_by_every_write_of_variants(
    api, draft, first, last
):
    """A write of several rows must not take its columns from the first of them."""
    variants = [
        {"name": "Control", "splitPercentage": 50, **first},
        {"name": "Detailed", "splitPercentage": 25, **last},
        {"name": "Short", "splitPercentage": 25},
    ]

    def answered(variants):
        return [
            {"id": f"v{number}", **as_answered(variant)}
            for number, variant in enumerate(variants, 1)
        ]

    path = draft(variants=variants)
    assert api.get(path).json["data"]["variants"] == answered(variants)
    copy = api.post(f"{path}/duplicate").json["data"]
    assert copy["variants"] == answered(variants)
    # A PATCH writes all variants anew: what it leaves out is kept, in any order.
    variants[2] |= OPTIONAL
    changes = [{"id": "v1"}, {"id": "v2"}, {"id": "v3", **OPTIONAL}]
    changed = api.patch(path, {"variants": changes}).json["data"]
    assert changed["variants"] == answered(variants)
    assert api.get(path).json["data"]["variants"] == answered(variants)


def test_a_new_variant_of_a_patch_keeps_what_the_others_do_not_have(api, draft):
    path = draft(
        variants=[
            {"name": "Control", "splitPercentage": 50},
            {"name": "Detailed", "splitPercentage": 50},
        ]
    )
    new = {"name": "Short", "splitPercentage": 50, **OPTIONAL}

    changed = api.patch(path, {"variants": [{"id": "v1"}, new]}).json["data"]

    assert changed["variants"][1] == {"id": "v3", **new}
    assert api.get(path).json["data"]["variants"][1] == {"id": "v3", **new}


def test_an_audience_that_is_not_defined_here_is_warned_of(api, draft):
    path = draft(audienceId="aud_xyz")

    started = api.post(f"{path}/start").json["data"]

    assert started["audienceId"] == "aud_xyz"
    assert [one["code"] for one in started["warnings"]] == ["AUDIENCE_NOT_DEFINED"]


def equal(number):
    """Return so many variants, whose splits sum to 100."""
    rest = 100 - 4 * (number - 1)  # of 20, 24; of 21, 20
    splits = [4] * (number - 1) + [rest]
    return [
        {"name": f"Variant {place}", "splitPercentage": split}
        for place, split in enumerate(splits)
    ]


def test_twenty_variants_are_not_too_many(draft):
    assert draft(variants=equal(20))


@pytest.mark.one_engine
@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"name": " "}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"name": None}, "name"),
        ({"description": "x" * 10_001}, "description"),
        ({"audienceId": "undefined"}, "audienceId"),
        ({"audienceId": "x" * 256}, "audienceId"),
        ({"type": "multivariate"}, "type"),
        ({"id": "exp_mine"}, "id"),
        ({"key": "Not A Slug"}, "key"),
        ({"trafficPercentage": 0}, "trafficPercentage"),
        ({"trafficPercentage": 100.01}, "trafficPercentage"),
        ({"endDate": "2020-01-01T00:00:00Z"}, "endDate"),
        ({"endDate": "2126-01-01T00:00:00"}, "endDate"),
        ({"plan": {"baselineRate": 1, "minimumEffect": 0.1}}, "plan.baselineRate"),
        ({"plan": {"minimumEffect": 0.1}}, "plan.baselineRate"),
        ({"variants": []}, "variants"),
        ({"variants": [{"name": "A", "splitPercentage": 100}]}, "variants"),
        ({"variants": [None, None]}, "variants.0"),
        ({"variants": equal(21)}, "variants"),
    ],
)
def test_a_field_that_is_wrong_is_named_and_nothing_is_made(api, fields, path):
    body = {"name": "Onboarding", "variants": two_variants(), **fields}

    error = assert_error(api.post("experiments", body), 400, "VALIDATION_ERROR")

    assert path in paths(error)
    assert api.get("experiments").json["meta"]["total"] == 0


@pytest.mark.one_engine
@pytest.mark.parametrize(
    "splits",
    [
        [50, 49],
        [0, 100],
        [-50, 150],
        [33.333, 66.667],
        [True, 99],
        ["50", "50"],
        [50.00, 50.01],
    ],
)
def test_splits_that_do_not_sum_to_100_are_refused(api, splits):
    variants = [
        {"name": f"V{n}", "splitPercentage": split} for n, split in enumerate(splits)
    ]

    response = api.post("experiments", {"name": "Splits", "variants": variants})

    assert response.status_code == 400
    assert api.get("experiments").json["meta"]["total"] == 0


def test_every_field_error_is_told_at_once(api):
    body = {"name": "", "variants": [{"name": "A"}, {"splitPercentage": "x"}], "no": 1}

    error = assert_error(api.post("experiments", body), 400, "VALIDATION_ERROR")

    assert paths(error) >= {
        "name",
        "variants.0.splitPercentage",
        "variants.1.name",
        "variants.1.splitPercentage",
        "no",
    }


def test_a_key_is_made_from_the_name_and_stays_unique(api, draft):
    keys = [
        api.get(draft(name="Onboarding: Flow Test!")).json["data"]["key"]
        for _ in range(3)
    ]

    assert keys == [
        "onboarding-flow-test",
        "onboarding-flow-test-2",
        "onboarding-flow-test-3",
    ]


def test_an_explicit_key_that_is_taken_is_a_conflict(api, draft):
    draft(key="checkout")
    other = draft()

    body = {"name": "Again", "key": "checkout", "variants": two_variants()}
    assert_error(api.post("experiments", body), 409, "CONFLICT")
    assert_error(api.patch(other, {"key": "checkout"}), 409, "CONFLICT")

    assert api.get("experiments").json["meta"]["total"] == 2
    assert api.get(other).json["data"]["key"] != "checkout"


BODIES = {
    "POST /api/experiments/<id>/complete": {"conclusion": "lost"},
    "PATCH /api/experiments/<id>": {"name": "Renamed"},
    "POST /api/experiments/<id>/assignments": {"userId": "u1"},
    "POST /api/experiments/<id>/assignments/batch": {"users": [{"userId": "u1"}]},
    "POST /api/experiments/<id>/conversions": {"userId": "u1"},
    "POST /api/experiments/<id>/conversions/batch": {"conversions": [{"userId": "u1"}]},
    "PUT /api/experiments/<id>/overrides/<path:user_id>": {"variantId": "v1"},
    "POST /api/experiments/<id>/simulate": {"participants": 20, "baselineRate": 0.5},
}


def test_a_key_works_in_every_path_that_takes_an_id(app, api, draft):
    operations = [
        (method, rule.rule)
        for rule in app.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
        if "/experiments/<id>" in rule.rule
    ]
    assert len(operations) > 20
    for place, (method, rule) in enumerate(operations):
        answers = []
        for name in ("id", "key"):
            made = api.get(draft(key=f"flow.{place}-{name}")).json["data"]
            forced = f"experiments/{made['id']}/overrides/u1"
            assert api("PUT", forced, {"variantId": "v1"}).status_code == 201
            path = rule.replace("<id>", made[name]).replace("<path:user_id>", "u1")
            body = BODIES.get(f"{method} {rule}", {}) if method != "GET" else None
            answers.append(api(method, path, body).status_code)
        assert answers[0] == answers[1], (method, rule)
        assert answers[0] not in (400, 404, 405), (method, rule)


def test_an_experiment_asked_for_by_its_key_answers_with_its_id(api, running):
    path = running(key="checkout-button")
    id = path.removeprefix("experiments/")

    decision = api.post("experiments/checkout-button/assignments", {"userId": "u1"})
    receipt = api.post("experiments/checkout-button/conversions", {"userId": "u1"})

    assert api.get("experiments/checkout-button").json == api.get(path).json
    assert decision.json["data"]["experimentId"] == id
    assert receipt.json["data"]["experimentId"] == id
    seat = api.get(f"{path}/assignments/u1").json["data"]
    assert seat == {**decision.json["data"], "reason": "EXISTING_ASSIGNMENT"}


def test_a_key_that_changes_names_the_experiment_by_its_new_one_alone(api, draft):
    path = draft(key="before")

    assert api.patch("experiments/before", {"key": "after"}).status_code == 200

    assert api.get("experiments/after").json == api.get(path).json
    assert_error(api.get("experiments/before"), 404, "NOT_FOUND")


@pytest.mark.one_engine
@pytest.mark.parametrize("key", ["exp_1", "exp_", "null", "undefined", "none", "nan"])
def test_a_key_that_could_be_an_id_or_the_mark_of_none_is_refused(api, draft, key):
    path = draft()
    before = api.get(path).json
    body = {"name": "Onboarding", "key": key, "variants": two_variants()}

    for response in (api.post("experiments", body), api.patch(path, {"key": key})):
        assert paths(assert_error(response, 400, "VALIDATION_ERROR")) == {"key"}
    id = before["data"]["id"]
    refused = api.patch(path, {"key": id})
    assert paths(assert_error(refused, 400, "VALIDATION_ERROR")) == {"key"}

    assert api.get(path).json == before
    assert api.get("experiments").json["meta"]["total"] == 1


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Exp_ one", "exp-one"),
        ("exp_0123456789abcdef0123", "exp-0123456789abcdef0123"),
        ("EXP_", "exp"),
        ("Null", "null-2"),
        ("undefined!", "undefined-2"),
        ("…", "experiment"),
    ],
)
def test_a_key_made_from_a_name_is_never_what_an_explicit_one_may_not_be(
    api, draft, name, key
):
    path = draft(name=name)

    assert api.get(path).json["data"]["key"] == key
    assert api.get(f"experiments/{key}").json == api.get(path).json


def test_experiments_are_listed_newest_first_in_pages(api, draft):
    made = [draft().removeprefix("experiments/") for _ in range(5)]

    pages = [api.get(f"experiments?page={n}&limit=2").json for n in (1, 2, 3, 4)]

    listed = [[one["id"] for one in page["data"]] for page in pages]
    assert listed == [made[:-3:-1], made[-3:-5:-1], made[:1], []]
    assert pages[1]["meta"].pop("next")
    assert pages[1]["meta"] == {"total": 5, "page": 2, "limit": 2, "totalPages": 3}


@pytest.mark.parametrize("status", LIFE)
def test_a_list_can_be_of_one_status(api, draft, status):
    for wanted in LIFE:
        lived(api, draft(name=wanted), wanted)

    listed = api.get(f"experiments?status={status}").json

    assert [one["name"] for one in listed["data"]] == [status]
    assert listed["meta"]["total"] == 1


@pytest.mark.parametrize("name", ALLOWED)
@pytest.mark.parametrize("status", LIFE)
def test_every_move_is_made_or_refused_by_its_state(api, draft, status, name):
    path = lived(api, draft(), status)
    before = api.get(path).json["data"]

    response = move(api, path, name)

    after = api.get(path).json["data"]
    if status in ALLOWED[name]:
        assert response.status_code == 200, response.text
        assert after["status"] == AFTER.get(name, status)
    else:
        error = assert_error(response, 409, "INVALID_STATE")
        (detail,) = error["details"]
        assert detail["current"] == status
        assert set(detail["allowed"]) == ALLOWED[name]
        assert after == before


def test_a_patched_variant_keeps_omitted_fields_and_ids_are_new(api, draft):
    path = draft()

    api.patch(
        path,
        {
            "variants": [
                {"id": "v2", "splitPercentage": 40},
                {"name": "New", "splitPercentage": 60},
            ]
        },
    )
    last = api.patch(
        path,
        {"variants": [{"id": "v2"}, {"name": "Newest", "splitPercentage": 60}]},
    ).json["data"]["variants"]

    assert [(one["id"], one["name"], one["splitPercentage"]) for one in last] == [
        ("v2", "Detailed", 40),
        ("v4", "Newest", 60),
    ]
    assert last[0]["flowId"] == "flow_b"


@pytest.mark.one_engine
@pytest.mark.parametrize(
    "variants",
    [
        [{"id": "v1", "splitPercentage": 45}, {"id": "v2", "splitPercentage": 45}],
        [{"id": "v1"}, {"id": "v1"}],
        [{"id": "v1"}, {"id": "v9"}],
        [{"id": "v1"}, {"name": "Half a variant"}],
        [{"id": "v1"}, {"splitPercentage": 50}],
        [{"id": "v1"}, {"id": "v2", "name": "Control"}],
        [{"id": "v1", "splitPercentage": 100}],
        [{}, {}],
        [None, {"id": "v1"}],
    ],
)
def test_a_patch_that_spoils_the_variants_changes_nothing(api, draft, variants):
    path = draft()
    before = api.get(path).json["data"]

    assert_error(api.patch(path, {"variants": variants}), 400, "VALIDATION_ERROR")

    assert api.get(path).json["data"] == before


def test_a_duplicate_is_a_new_draft_of_the_same(api, running):
    path = running(name="Checkout", endDate="2126-01-01T00:00:00Z", hypothesis="Same")

    copy = api.post(f"{path}/duplicate")

    assert copy.status_code == 201
    source, data = api.get(path).json["data"], copy.json["data"]
    assert data["id"] != source["id"] and data["key"] != source["key"]
    assert (data["status"], data["endDate"]) == ("draft", None)
    assert (data["name"], data["hypothesis"]) == ("Checkout", "Same")
    assert data["variants"] == source["variants"]


@pytest.mark.parametrize("key", ["a", "0", "a-b_c.d", "a" * 100])
def test_a_slug_is_a_key(api, draft, key):
    assert api.get(draft(key=key)).json["data"]["key"] == key


@pytest.mark.one_engine
@pytest.mark.parametrize(
    "key", ["", "-a", "a-", ".a", "A", "a b", "é", "a/b", "a" * 101, None, 5]
)
def test_what_is_no_slug_is_no_key(api, draft, key):
    path = draft()
    before = api.get(path).json["data"]
    body = {"name": "Keys", "key": key, "variants": two_variants()}

    made = assert_error(api.post("experiments", body), 400, "VALIDATION_ERROR")
    changed = assert_error(api.patch(path, {"key": key}), 400, "VALIDATION_ERROR")

    assert paths(made) == paths(changed) == {"key"}
    assert api.get("experiments").json["data"] == [before]


def test_a_name_without_a_latin_letter_has_a_key_too(api, draft):
    keys = [api.get(draft(name="实验 №")).json["data"]["key"] for _ in range(2)]

    assert len(set(keys)) == 2
    assert all(key and key.isascii() for key in keys)


@pytest.mark.one_engine
@pytest.mark.parametrize(
    "fields",
    [
        {"status": "running"},
        {"id": "exp_mine"},
        {"startDate": "2126-01-01T00:00:00Z"},
        {"archivedAt": None},
        {"_count": {"assignments": 5}},
        {"winnerVariantId": "v1"},
        {"type": "multivariate"},
        {"primaryMetric": None},
        {"trafficPercentage": None},
        {"variants": None},
    ],
)
def test_a_patch_of_what_no_client_may_set_changes_nothing(api, draft, fields):
    path = draft()
    before = api.get(path).json["data"]

    response = api.patch(path, {"name": "Sneaked in", **fields})

    assert paths(assert_error(response, 400, "VALIDATION_ERROR")) == set(fields)
    assert api.get(path).json["data"] == before


# ---------------------------------------------------------------------------
# Search

NAMED = {
    "percent": "100% off",
    "under-score": "snake_case",
    "plain": "snakeXcase and 100 off",
    "sharp": "STRASSE, \u00c4rger",
    "turkish": "\u0130stanbul",
    "quoted": """It's "quoted" \\ back""",
    "sql": "x') OR 1=1 --",
    "markup": "<b>bold</b>",
    "emoji": "\U0001f9ee Abacus",
}


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("%", ["percent"]),
        ("100% OFF", ["percent"]),
        ("_", ["under-score"]),
        ("E_C", ["under-score"]),
        ("snake", ["plain", "under-score"]),
        ("er-sc", ["under-score"]),
        ("stra\u00dfe", ["sharp"]),
        ("\u00e4RGER", ["sharp"]),
        ("\u0130STAN", ["turkish"]),
        ("'", ["quoted", "sql"]),
        ('"', ["quoted"]),
        ("\\", ["quoted"]),
        ("') OR 1=1 --", ["sql"]),
        ("<B>", ["markup"]),
        ("\U0001f9ee a", ["emoji"]),
        ("exp_", []),
        ("", sorted(NAMED)),
        ("*", []),
        ("[a-z]", []),
        ("percent100", []),
    ],
)
def test_a_search_finds_a_part_of_the_name_or_the_key_in_any_case_and_no_pattern(
    api, draft, search, found
):
    for key, name in NAMED.items():
        draft(key=key, name=name)

    answer = api.get("experiments", query_string={"search": search})
    page = api.get("/ui/", query_string={"search": search})

    rows = answer.json["data"]
    assert sorted(row["key"] for row in rows) == found
    assert answer.json["meta"]["total"] == len(found)
    assert page.status_code == 200
    for row in rows:
        assert f'href="/ui/experiments/{row["id"]}"' in page.text
    assert page.text.count('href="/ui/experiments/') == len(found)
    assert f'type="search" maxlength="200" value="{escape(search)}"' in page.text


def test_a_search_keeps_the_other_filters(api, draft, running):
    draft(name="Price one")
    hidden, shown = draft(name="Price two"), running(name="Price three")
    running(name="Colour")
    assert api.delete(hidden).status_code == 200

    def names(query):
        rows = api.get(f"experiments?search=price{query}").json
        assert rows["meta"]["total"] == len(rows["data"])
        return [row["name"] for row in rows["data"]]

    assert names("") == ["Price three", "Price one"]
    assert names("&status=running") == ["Price three"]
    assert names("&archived=true") == ["Price three", "Price two", "Price one"]
    assert names("&archived=true&status=stopped") == []
    assert api.post(f"{shown}/stop").status_code == 200
    assert names("&status=stopped") == ["Price three"]
    page = api.get("/ui/?search=price&limit=1").text
    assert 'href="/ui/?search=price&amp;limit=1&amp;page=2"' in page


@pytest.mark.one_engine
@pytest.mark.parametrize("search", ["a%00", "x" * 201, "a&search=b"])
def test_a_search_for_what_no_name_has_is_refused(api, draft, search):
    draft()

    error = assert_error(
        api.get(f"experiments?search={search}"), 400, "VALIDATION_ERROR"
    )

    assert paths(error) == {"search"}
    assert api.get(f"/ui/?search={search}").status_code == 400
    assert "No experiment has this" in api.get("/ui/?search=nothing").text
