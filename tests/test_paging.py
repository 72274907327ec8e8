"""A walk by cursor: each row once, whatever is written meanwhile."""

import json
import random
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import datetime, timezone

import pytest
from conftest import assert_error, database_steps, numbers, paths, two_variants

import listing
import models
from storage import columns, engine, schema

RULE = {"field": "country", "operator": "eq", "value": "PL"}


def walk(api, path, key, meanwhile=lambda: None, limit=2, **query):
    """Return the value of *key* of each row, and the `meta` of each page."""
    rows, metas, cursor = [], [], {}
    while cursor is not None:
        page = api.get(path, query_string={**query, "limit": limit, **cursor})
        assert page.status_code == 200, page.text
        rows += [row[key] for row in page.json["data"]]
        metas.append(page.json["meta"])
        following = page.json["meta"]["next"]
        cursor = following and {"cursor": following}
        meanwhile()
    return rows, metas


@pytest.fixture
def audience(api):
    def make(id, name):
        body = {"name": name, "ruleTree": RULE}
        assert api("PUT", f"audiences/{id}", body).status_code in (200, 201)
        return id

    return make


@pytest.fixture
def force(api):
    def make(path, user_id, variant="v1"):
        body = {"variantId": variant}
        answer = api("PUT", f"{path}/overrides/{user_id}", body)
        assert answer.status_code in (200, 201)

    return make


@pytest.mark.parametrize(
    ("total", "limit", "steps"),
    [
        (0, 2, [(1, 0)]),
        (1, 2, [(1, 1)]),
        (4, 2, [(1, 2), (2, 2)]),
        (5, 2, [(1, 2), (2, 2), (3, 1)]),
    ],
)
def test_next_is_null_on_the_last_page_and_there_on_every_other(
    api, running, enrolled, total, limit, steps
):
    path = running()
    users = [f"user-{number}" for number in range(total)]
    if users:
        enrolled(path, *users)

    rows, metas = walk(api, f"{path}/assignments", "userId", limit=limit)

    assert rows == users[::-1]
    assert [meta["page"] for meta in metas] == [number for number, _ in steps]
    assert [meta["next"] is None for meta in metas] == [
        *[False] * (len(steps) - 1),
        True,
    ]
    assert {meta["total"] for meta in metas} == {total}
    assert {meta["totalPages"] for meta in metas} == {-(-total // limit)}


def test_a_walk_shows_each_experiment_once_while_others_change(api, draft):
    made = [draft().removeprefix("experiments/") for _ in range(7)]
    archived = iter([made[0], made[3], made[6]])

    def meanwhile():
        draft()
        if id := next(archived, None):
            assert api.delete(f"experiments/{id}").status_code == 200

    rows, metas = walk(api, "experiments", "id", meanwhile)

    assert rows == made[::-1]
    assert [meta["total"] for meta in metas] == [7, 7, 7, 7]
    # A new walk begins with what there is then.
    assert len(walk(api, "experiments", "id")[0]) == 7 + 4 - 3


def test_a_walk_of_a_status_shows_those_that_had_it_when_it_began(api, draft, running):
    drafts = [draft().removeprefix("experiments/") for _ in range(6)]
    others = [running().removeprefix("experiments/") for _ in range(2)]
    moves = iter(
        [
            [(drafts[0], "start"), (drafts[0], "stop")],
            [(drafts[1], "start"), (others[0], "stop"), (others[0], "duplicate")],
            [(drafts[2], "duplicate")],
        ]
    )

    def meanwhile():
        for id, move in next(moves, []):
            assert api.post(f"experiments/{id}/{move}").status_code in (200, 201)

    rows, _ = walk(api, "experiments", "id", meanwhile, status="draft")

    assert rows == drafts[::-1]


def test_a_walk_knows_a_status_of_before_that_two_moves_have_changed(api, running):
    made = [running().removeprefix("experiments/") for _ in range(5)]
    moves = iter([["stop", "resume", "stop"], ["complete"], []])

    def meanwhile():
        for move in next(moves, []):
            body = {"conclusion": "lost"} if move == "complete" else {}
            moved = api.post(f"experiments/{made[0]}/{move}", body)
            assert moved.status_code == 200

    rows, _ = walk(api, "experiments", "id", meanwhile, status="running")

    assert rows == made[::-1]


def test_a_walk_leaves_out_what_was_archived_before_it_and_came_back(api, draft):
    made = [draft().removeprefix("experiments/") for _ in range(5)]
    assert api.delete(f"experiments/{made[1]}").status_code == 200

    rows, _ = walk(api, "experiments", "id", archived="true")

    assert rows == made[::-1]
    assert walk(api, "experiments", "id")[0] == [made[n] for n in (4, 3, 2, 0)]


def test_a_walk_shows_each_participant_once_while_others_enrol(api, running, enrolled):
    path = running()
    users = [f"user-{number}" for number in range(9)]
    enrolled(path, *users)
    late = iter(range(100))

    rows, metas = walk(
        api,
        f"{path}/assignments",
        "userId",
        lambda: enrolled(path, f"late-{next(late)}", users[0]),
    )

    assert rows == users[::-1]
    assert {meta["total"] for meta in metas} == {9}


def test_a_walk_shows_each_of_a_users_experiments_once(api, running, enrolled):
    made = [running() for _ in range(5)]
    for path in made:
        enrolled(path, "user/1")

    def meanwhile():
        enrolled(running(), "user/1")
        assert api.post(f"{made[0]}/stop").status_code in (200, 409)

    rows, _ = walk(api, "users/user%2F1/assignments", "experimentId", meanwhile)

    assert rows == [path.removeprefix("experiments/") for path in made[::-1]]


def test_an_override_that_is_put_again_stays_at_its_place_in_a_walk(api, draft, force):
    path = draft()
    users = [f"user-{number}" for number in range(7)]
    for user_id in users:
        force(path, user_id)

    def meanwhile():
        for user_id in users:
            force(path, user_id, "v2")
        force(path, f"late-{len(api.get(f'{path}/overrides').json['data'])}")

    rows, _ = walk(api, f"{path}/overrides", "userId", meanwhile)

    assert rows == users[::-1]


def test_a_removed_override_takes_none_that_is_left_out_of_a_walk(api, draft, force):
    path = draft()
    users = [f"user-{number}" for number in range(8)]
    for user_id in users:
        force(path, user_id)
    removed = iter(["user-6", "user-3"])  # one that was shown, one to come

    def meanwhile():
        if user_id := next(removed, None):
            assert api.delete(f"{path}/overrides/{user_id}").status_code == 200

    rows, _ = walk(api, f"{path}/overrides", "userId", meanwhile)

    assert rows == [f"user-{number}" for number in (7, 6, 5, 4, 2, 1, 0)]


def test_a_walk_shows_each_entry_of_the_history_once(api, draft):
    path = draft()
    for number in range(5):
        assert api.patch(path, {"name": f"Name {number}"}).status_code == 200
    before = [row["at"] for row in api.get(f"{path}/history").json["data"]]

    def meanwhile():
        name = api.get(path).json["data"]["name"]
        assert api.patch(path, {"name": f"{name} again"}).status_code == 200

    assert walk(api, f"{path}/history", "at", meanwhile)[0] == before


def test_a_walk_of_a_search_shows_an_audience_that_is_renamed_meanwhile(api, audience):
    found = [audience(f"aud-{number}", f"Poland {number}") for number in range(6)]
    audience("other", "Spain")

    def meanwhile():
        audience("aud-0", "Germany")
        audience("aud-5", "Germany")
        audience(f"late-{columns.utcnow().timestamp()}", "Poland too")

    rows, metas = walk(api, "audiences", "id", meanwhile, search="poland")

    assert rows == found[::-1]
    assert {meta["total"] for meta in metas} == {6}


def test_a_walk_of_a_search_shows_the_experiments_that_it_had_at_the_beginning(
    api, draft
):
    """Unlike an audience, an experiment has a history of its names."""
    found = [draft(name=f"Poland {number}") for number in range(6)]
    other = draft(name="Spain", key="spain")

    def meanwhile():
        assert api.patch(found[0], {"name": "Germany"}).status_code == 200
        assert api.patch(found[4], {"key": f"k-{next(numbers)}"}).status_code == 200
        assert api.patch(other, {"name": "Poland", "key": "poland"}).status_code == 200
        draft(name="Poland too")

    rows, metas = walk(api, "experiments", "id", meanwhile, search="polAND")

    assert [f"experiments/{id}" for id in rows] == found[::-1]
    assert {meta["total"] for meta in metas} == {6}


def test_rows_of_one_moment_are_told_apart(api, draft, audience):
    made = sorted(draft().removeprefix("experiments/") for _ in range(7))
    found = sorted(audience(f"aud-{number}", "Any") for number in range(7))
    moment = columns.utcnow()
    models.Experiment.update(created_at=moment).execute()
    models.Audience.update(created_at=moment).execute()

    for limit in (1, 2, 3):
        assert walk(api, "experiments", "id", draft, limit=limit)[0][-7:] == made
        assert walk(api, "audiences", "id", limit=limit)[0] == found
    # A walk may begin in the midst of them.
    third = api.get("audiences?page=3&limit=2").json
    rest = api.get(f"audiences?limit=2&cursor={third['meta']['next']}").json
    assert [row["id"] for row in third["data"] + rest["data"]] == found[4:]


def test_a_walk_may_change_its_limit_and_tells_the_page_by_it(api, draft):
    made = [draft().removeprefix("experiments/") for _ in range(30)]

    first = api.get("experiments?limit=5").json
    second = api.get(f"experiments?cursor={first['meta']['next']}").json
    third = api.get(f"experiments?limit=5&cursor={second['meta']['next']}").json

    shown = [row["id"] for page in (first, second, third) for row in page["data"]]
    assert shown == made[::-1]
    assert second["meta"]["limit"] == 20
    meta = {"total": 30, "page": 6, "limit": 5, "totalPages": 6, "next": None}
    assert third["meta"] == meta


def test_a_cursor_is_refused_with_a_page(api, draft):
    for _ in range(3):
        draft()
    cursor = api.get("experiments?limit=1").json["meta"]["next"]

    refused = api.get(f"experiments?limit=1&page=2&cursor={cursor}")

    assert paths(assert_error(refused, 400, "VALIDATION_ERROR")) == {"cursor"}
    assert api.get(f"experiments?limit=1&cursor={cursor}").status_code == 200


def altered(cursor, **changes):
    padded = cursor + "=" * (-len(cursor) % 4)
    content = {**json.loads(urlsafe_b64decode(padded)), **changes}
    return urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


def test_a_cursor_that_is_none_is_refused(api, draft):
    for _ in range(3):
        draft()
    cursor = api.get("experiments?limit=1").json["meta"]["next"]
    bad = [
        *("", "x", "null", "1", "\0", "e30", "W10", "=", cursor + "=", cursor[:-1]),
        *(cursor[::-1], cursor + "AAAA", "W1tbW1tbW1tb" * 40, "A" * 600, "ä"),
        altered(cursor),
        altered(cursor, walk=[0, 0, 2**70, 0, 0, 3]),
        altered(cursor, walk=["0", 0, 1, 0, 0, 3]),
        altered(cursor, walk=[0, 0, -1, 0, 0, 3]),
        altered(cursor, walk=[]),
        altered(cursor, walk=None),
    ]

    for text in bad:
        refused = api.get("experiments", query_string={"cursor": text})
        assert paths(assert_error(refused, 400, "VALIDATION_ERROR")) == {"cursor"}


def test_a_cursor_of_another_list_or_of_other_filters_is_refused(
    api, draft, running, enrolled, force, audience
):
    one, two = running(), running()
    for number in range(3):
        enrolled(one, f"user-{number}")
        enrolled(two, f"user-{number}")
        audience(f"aud-{number}", "Any")
        for path in (one, two):
            force(path, f"forced-{number}")
    lists = [
        *("experiments", "experiments?archived=true", "experiments?status=running"),
        *("experiments?search=onb", "experiments?search=onboarding"),
        *("audiences", "audiences?search=any"),
        *(f"{path}/assignments" for path in (one, two)),
        *(f"{path}/overrides" for path in (one, two)),
        *(f"{path}/history" for path in (one, two)),
        *("users/user-0/assignments", "users/user-1/assignments"),
    ]

    def asked(path, **query):
        with_query = path + ("&" if "?" in path else "?")
        pairs = "&".join(f"{name}={value}" for name, value in query.items())
        return api.get(f"{with_query}limit=1&{pairs}")

    cursors = {path: asked(path).json["meta"]["next"] for path in lists}
    assert all(cursors.values())
    for origin, cursor in cursors.items():
        for path in lists:
            answer = asked(path, cursor=cursor)
            if path == origin:
                assert answer.status_code == 200
                continue
            error = assert_error(answer, 400, "VALIDATION_ERROR")
            assert paths(error) == {"cursor"}


def test_a_cursor_names_nobody(api, running, enrolled, force):
    path = running()
    enrolled(path, "person-1", "person-2")
    force(path, "person-3")
    force(path, "person-4")

    for place in ("assignments", "overrides"):
        cursor = api.get(f"{path}/{place}?limit=1").json["meta"]["next"]
        padded = cursor + "=" * (-len(cursor) % 4)
        assert b"person" not in urlsafe_b64decode(padded)
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,512}", cursor)


WALKS = [
    ("experiments", "id", {}),
    ("experiments", "id", {"archived": "true"}),
    ("experiments", "id", {"status": "draft"}),
    ("experiments", "id", {"status": "running"}),
    ("experiments", "id", {"status": "stopped", "archived": "true"}),
    ("experiments", "id", {"search": "onboarding"}),
    ("audiences", "id", {}),
    ("audiences", "id", {"search": "any"}),
    ("HOME/assignments", "userId", {}),
    ("HOME/overrides", "userId", {}),
    ("HOME/history", "at", {}),
]


@pytest.fixture
def random_writes(api, draft, audience, force, enrolled):
    """Return a maker of functions that make up to two random writes when called."""

    def writes_from(chance, made, home, users):
        def archive():
            api.delete(chance.choice(made))

        def move():
            verb = chance.choice(["start", "stop", "resume", "complete", "duplicate"])
            body = {"conclusion": "lost"} if verb == "complete" else {}
            api.post(f"{chance.choice(made)}/{verb}", body)

        def rename():
            api.patch(chance.choice(made), {"name": f"Name {chance.random()}"})

        def write():
            any_user = chance.choice([*users, f"late-{chance.random()}"])
            force(home, any_user, chance.choice(["v1", "v2"]))
            audience(any_user, "Any")
            enrolled(home, any_user)

        def meanwhile():
            for _ in range(chance.randrange(3)):
                chance.choice([archive, move, move, rename, write, draft])()

        return meanwhile

    return writes_from


@pytest.mark.parametrize("seed", range(3))
def test_walks_show_what_there_was_through_any_interleaving(
    api, draft, running, audience, force, enrolled, random_writes, seed
):
    chance = random.Random(seed)
    made, home = [draft() for _ in range(6)], running()
    users = [f"user-{number}" for number in range(8)]
    enrolled(home, *users)
    for user_id in users:
        force(home, user_id)
        audience(user_id, "Any")
    meanwhile = random_writes(chance, made, home, users)

    for place, key, query in WALKS:
        path = place.replace("HOME", home)
        answer = api.get(path, query_string={**query, "limit": 100}).json
        assert answer["meta"]["totalPages"] <= 1
        rows, _ = walk(api, path, key, meanwhile, chance.randrange(1, 6), **query)
        assert rows == [row[key] for row in answer["data"]], (path, query)


@pytest.mark.sqlite  # counts the steps of SQLite
def test_a_deep_page_takes_the_database_no_more_steps(api, running, enrolled):
    path = running()
    enrolled(path, *(f"user-{number}" for number in range(400)))
    steps = []

    def page(cursor):
        before = len(steps)
        answer = api.get(f"{path}/assignments?limit=20&cursor={cursor}").json
        return answer["meta"]["next"], len(steps) - before

    cursor, costs = api.get(f"{path}/assignments?limit=20").json["meta"]["next"], []
    engine.database.connection().set_progress_handler(lambda: steps.append(1) or 0, 1)
    while cursor:
        cursor, cost = page(cursor)
        costs.append(cost)
    engine.database.connection().set_progress_handler(None, 1)

    assert len(costs) == 19
    assert costs[0] > 100
    assert max(costs) < 1.2 * costs[0]


def write_drafts(number):
    """Write so many drafts, as the API would, and raise the revision."""
    rows, halves, entries = [], [], []
    for name in range(number):
        id, now = columns.new_id("exp")(), columns.utcnow()
        rows.append(
            {
                **{"id": id, "key": id[4:], "name": f"Draft {name}"},
                **{"type": "ab_test", "primary_metric": "conversion"},
                **{"variants_made": 2, "created_at": now, "updated_at": now},
            }
        )
        for place, one in enumerate(("Control", "Detailed")):
            half = {"experiment": id, "key": f"v{place + 1}", "position": place}
            halves.append({**half, "name": one, "split": 5_000})
        entry = {"experiment": id, "at": now, "actor": "tester", "action": "create"}
        entries.append({**entry, "settings": {"status": [None, "draft"]}})
    with engine.database.atomic():
        for table, new in (
            (models.Experiment, rows),
            (models.Variant, halves),
            (models.Change, entries),
        ):
            for start in range(0, len(new), 500):
                table.insert_many(new[start : start + 500]).execute()
        identity = schema.Identity
        identity.update(revision=identity.revision + 1).execute()


@pytest.mark.sqlite  # counts the steps of SQLite
def test_a_page_of_10_000_experiments_takes_the_database_no_more_than_of_100(api):
    def cost(path):
        assert api.get(path).status_code == 200  # a first one counts the experiments
        return database_steps(lambda: api.get(path))

    lists = [
        "experiments",
        "experiments?archived=true",
        "experiments?status=draft",
        "experiments?page=3",
    ]
    write_drafts(100)
    few = [cost(path) for path in lists]
    write_drafts(9_900)
    many = [cost(path) for path in lists]

    assert api.get("experiments").json["meta"]["total"] == 10_000
    assert min(few) > 1_000
    for before, after in zip(few, many, strict=True):
        assert after <= 1.3 * before


FILTERS = [
    {**status, **archived}
    for status in (
        {},
        *({"status": one} for one in ("draft", "running", "stopped", "completed")),
    )
    for archived in ({}, {"archived": "true"})
]


@pytest.mark.parametrize("seed", range(3))
def test_the_total_is_the_number_of_rows_after_any_writes(
    api, draft, running, audience, force, enrolled, random_writes, seed
):
    chance = random.Random(seed)
    made, home = [draft() for _ in range(6)], running()
    meanwhile = random_writes(chance, made, home, ["user-1"])

    for _ in range(12):
        meanwhile()
        for query in FILTERS:
            answer = api.get("experiments", query_string={**query, "limit": 100}).json
            assert answer["meta"]["total"] == len(answer["data"]), query


def test_a_total_follows_an_end_date_that_passes_without_a_write(api, running):
    paths = [running(endDate="2099-01-01T00:00:00Z"), running()]
    assert api.get("experiments").json["meta"]["total"] == len(paths)
    end = datetime(2099, 1, 1, tzinfo=timezone.utc)

    def totals(now):
        statuses = ("running", "stopped", None)
        return [listing.total(one, False, now) for one in statuses]

    assert totals(end - columns.MICROSECOND) == [2, 0, 2]
    assert totals(end) == [1, 1, 2]
    assert totals(end - columns.MICROSECOND) == [2, 0, 2]  # a clock is set back


def test_two_variants_of_a_listed_experiment_are_all_there(api, draft):
    for _ in range(3):
        draft()
    cursor = api.get("experiments?limit=1").json["meta"]["next"]

    (row,) = api.get(f"experiments?limit=1&cursor={cursor}").json["data"]

    assert [one["name"] for one in row["variants"]] == [
        one["name"] for one in two_variants()
    ]
