"""The audit log, the erasure of a person, and the export."""

import json
import random
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from urllib.parse import quote

import pytest
from conftest import PERSON, Caller, assert_error, two_variants

import models
from storage import columns, engine


def history(api, path):
    """Return what was done, oldest first."""
    response = api.get(f"{path}/history?limit=100")
    assert response.status_code == 200, response.text
    return response.json["data"][::-1]


# ----------------------------------------------------------------------------
# History
# ----------------------------------------------------------------------------


@pytest.fixture
def lived(app, token):
    """Return an experiment as it was made by Ann and as it is now, and its history."""
    ann, bob = (Caller(app, token(name)) for name in ("ann", "bob"))
    body = {"name": "Flow", "key": "flow", "variants": two_variants()}
    made = ann.post("experiments", body).json["data"]
    path = f"experiments/{made['id']}"
    variants = [{"id": "v1", "splitPercentage": 33.33}, {"id": "v2"}]
    variants[1]["splitPercentage"] = 66.67
    winner = {"conclusion": "won", "winnerVariantId": "v2", "note": "Ship it"}
    for caller, call in (
        (bob, ("PATCH", path, {"name": "Flows", "variants": variants})),
        (bob, ("PATCH", path, {"name": "Flows"})),  # changes nothing
        (ann, ("PUT", f"{path}/overrides/qa", {"variantId": "v1"})),
        (ann, ("PUT", f"{path}/overrides/qa", {"variantId": "v2"})),
        (bob, ("DELETE", f"{path}/overrides/qa")),
        (ann, ("POST", f"{path}/start")),
        (bob, ("POST", f"{path}/stop")),
        (ann, ("POST", f"{path}/resume")),
        (bob, ("POST", f"{path}/complete", winner)),
        (ann, ("DELETE", path)),
    ):
        assert caller(*call).status_code in (200, 201)
    return made, ann.get(path).json["data"], history(ann, path)


def test_every_move_edit_and_override_is_written_down(lived):
    made, now, entries = lived

    assert [(one["subject"], one["action"], one["userId"]) for one in entries] == [
        ("ann", "create", None),
        ("bob", "update", None),
        ("ann", "override", "qa"),
        ("ann", "override", "qa"),
        ("bob", "remove_override", "qa"),
        ("ann", "start", None),
        ("bob", "stop", None),
        ("ann", "resume", None),
        ("bob", "complete", None),
        ("ann", "archive", None),
    ]
    changes = [one["changes"] for one in entries]
    assert changes[0]["variants"] == {"from": None, "to": made["variants"]}
    assert changes[0]["trafficPercentage"] == {"from": None, "to": 100}
    assert changes[0]["name"] == {"from": None, "to": "Flow"}
    assert changes[1].keys() == {"name", "variants"}
    assert changes[1]["name"] == {"from": "Flow", "to": "Flows"}
    splits = [one["splitPercentage"] for one in changes[1]["variants"]["to"]]
    assert splits == [33.33, 66.67]
    assert changes[2:5] == [
        {"variantId": {"from": None, "to": "v1"}},
        {"variantId": {"from": "v1", "to": "v2"}},
        {"variantId": {"from": "v2", "to": None}},
    ]
    assert_moves_are_written_down(changes[5:], now)
    times = [one["at"] for one in entries]
    assert times == sorted(times)


def assert_moves_are_written_down(changes, now):
    started, stopped, resumed, completed, archived = changes
    assert started == {
        "status": {"from": "draft", "to": "running"},
        "startDate": {"from": None, "to": now["startDate"]},
    }
    assert stopped["status"] == {"from": "running", "to": "stopped"}
    assert resumed["endDate"] == {"from": stopped["endDate"]["to"], "to": None}
    assert completed["winnerVariantId"] == {"from": None, "to": "v2"}
    assert completed["note"] == {"from": None, "to": "Ship it"}
    assert archived == {"archivedAt": {"from": None, "to": now["archivedAt"]}}


def test_a_copy_says_that_it_is_one(api, draft):
    copy = api.post(f"{draft()}/duplicate").json["data"]

    (told,) = history(api, f"experiments/{copy['id']}")

    assert (told["action"], told["subject"]) == ("duplicate", "tester")


def test_what_was_refused_is_not_written_down(api, running):
    path = running(exclusionGroup="page")
    other = running(name="Other")
    before = history(api, path)
    for call in (
        ("POST", f"{path}/start"),
        ("POST", f"{path}/resume"),
        ("DELETE", path),
        ("PATCH", path, {"name": "Late"}),
        ("PUT", f"{path}/overrides/qa", {"variantId": "v9"}),
        ("DELETE", f"{path}/overrides/qa"),
    ):
        assert api(*call).status_code in (400, 404, 409)
    assert history(api, path) == before
    assert [one["action"] for one in history(api, other)] == ["create", "start"]


def test_history_is_paged_newest_first(api, running):
    path = running()
    page = api.get(f"{path}/history?page=2&limit=1").json

    assert [one["action"] for one in page["data"]] == ["create"]
    meta = {"total": 2, "page": 2, "limit": 1, "totalPages": 2, "next": None}
    assert page["meta"] == meta


@pytest.fixture
def ended(api, running):
    """Return the path of an experiment whose end date has passed unnoticed."""

    def make(**fields):
        path = running(endDate="2126-01-01T00:00:00Z", **fields)
        # What the next move, or a reader of the history, finds an hour later.
        started = columns.utcnow() - timedelta(hours=2)
        models.Experiment.update(
            start_date=started, end_date=started + timedelta(hours=1)
        ).where(models.Experiment.id == path.removeprefix("experiments/")).execute()
        models.Change.update(at=started).execute()
        return path

    return make


def of_the_end(api, path):
    """Return the entries that say that the end date stopped the experiment."""
    return [one for one in history(api, path) if one["subject"] == "abacus"]


def test_an_end_date_that_passes_is_in_the_history_at_its_time(api, ended):
    path = ended()
    before = api.get(path).json

    told = history(api, path)

    assert [one["action"] for one in told] == ["create", "start", "stop"]
    assert told[2] == {
        "at": before["data"]["endDate"],
        "subject": "abacus",
        "action": "stop",
        "userId": None,
        "changes": {"status": {"from": "running", "to": "stopped"}},
    }
    assert history(api, path) == told
    # To read a history changes nothing that an experiment answers.
    assert api.get(path).json == before


@pytest.mark.parametrize("is_read_first", [False, True])
@pytest.mark.parametrize(
    ("call", "action"),
    [
        (("POST", "/resume"), "resume"),
        (("POST", "/complete", {"conclusion": "lost"}), "complete"),
        (("DELETE", ""), "archive"),
        (("PUT", "/overrides/qa", {"variantId": "v1"}), "override"),
        (("DELETE", "/overrides/forced"), "remove_override"),
    ],
)
def test_the_end_is_in_the_history_once_and_before_what_comes_later(
    api, ended, call, action, is_read_first
):
    path = ended()
    models.Override.create(
        experiment=path.removeprefix("experiments/"), user_id="forced", variant="v1"
    )
    if is_read_first:
        assert len(of_the_end(api, path)) == 1
    method, where, *body = call

    assert api(method, f"{path}{where}", *body).status_code in (200, 201)

    told = history(api, path)
    assert [one["action"] for one in told] == ["create", "start", "stop", action]
    assert [one["subject"] for one in told][2:] == ["abacus", "tester"]
    assert [one["at"] for one in told] == sorted(one["at"] for one in told)
    status = told[3]["changes"].get("status", {"from": "stopped"})
    assert status["from"] == "stopped"


def test_an_erasure_comes_after_the_end_that_it_finds(api, ended):
    path = ended()
    models.Override.create(
        experiment=path.removeprefix("experiments/"), user_id=PERSON, variant="v1"
    )

    assert api.delete(f"users/{PERSON}").status_code == 200

    actions = [one["action"] for one in history(api, path)]
    assert actions == ["create", "start", "stop", "erase"]


def test_a_move_that_is_refused_keeps_the_end_for_the_next_reader(api, ended):
    path = ended()

    assert_error(api.post(f"{path}/stop"), 409, "INVALID_STATE")

    assert len(of_the_end(api, path)) == 1
    assert [one["action"] for one in history(api, path)][2:] == ["stop"]


def test_the_end_has_its_place_on_the_pages(api, ended):
    path = ended()

    pages = [api.get(f"{path}/history?limit=1&page={n}").json for n in (1, 2, 3, 4)]

    assert [[one["action"] for one in page["data"]] for page in pages] == [
        ["stop"],
        ["start"],
        ["create"],
        [],
    ]
    assert {page["meta"]["total"] for page in pages} == {3}


def test_an_experiment_that_ends_twice_has_both_ends(api, ended):
    path = ended()
    assert api.post(f"{path}/resume").status_code == 200
    assert api.post(f"{path}/stop").status_code == 200

    told = [(one["action"], one["subject"]) for one in history(api, path)]

    assert told[2:] == [("stop", "abacus"), ("resume", "tester"), ("stop", "tester")]


def test_of_many_readers_of_one_history_one_writes_the_end_down(app, token, ended):
    path = ended()

    def read(_):
        told = Caller(app, token()).get(f"{path}/history").json
        app.extensions["database"].close()
        return told

    with ThreadPoolExecutor(8) as readers:
        answers = list(readers.map(read, range(16)))

    assert all(one == answers[0] for one in answers)
    assert answers[0]["meta"]["total"] == 3


@pytest.mark.sqlite
def test_a_history_that_cannot_be_written_is_read_all_the_same(api, ended):
    path = ended()
    api.get(path)
    engine.database.execute_sql("PRAGMA query_only = 1")

    read = api.get(f"{path}/history")

    assert [one["action"] for one in read.json["data"]] == ["start", "create"]
    assert api.get(path).json["data"]["status"] == "stopped"
    engine.database.execute_sql("PRAGMA query_only = 0")
    assert len(of_the_end(api, path)) == 1


def test_no_end_is_written_down_before_it_has_come(api, running):
    path = running(endDate="2126-01-01T00:00:00Z")

    assert [one["action"] for one in history(api, path)] == ["create", "start"]


# ----------------------------------------------------------------------------
# Erasure
# ----------------------------------------------------------------------------


def everything(api, path):
    """Return all that is counted and computed of an experiment."""
    raw = api.get(f"{path}/results?granularity=day").json["data"]
    computed = api.post(f"{path}/compute-results").json["data"]
    computed["analysis"].pop("computedAt")
    return raw, computed, api.get(path).json["data"]["_count"]


@pytest.fixture
def named(app, api, token, draft):
    """Return the path of an experiment whose rules and override name the person.

    The audience names another user too, whose id begins with that of the person.
    """
    rules = [
        {"field": "userId", "operator": "in", "value": ["boss", PERSON]},
        {"field": "userId", "operator": "eq", "value": PERSON},
        {"field": "userId", "operator": "eq", "value": f"{PERSON}.not"},
    ]
    tree = {"logicalOperator": "OR", "rules": rules}
    api("PUT", "audiences/aud_beta", {"name": "Beta", "ruleTree": tree})
    path = draft(audienceId="aud_beta")
    assert api.post(f"{path}/start").status_code == 200
    herself = Caller(app, token(PERSON))
    override = {"variantId": "v1"}
    assert herself("PUT", f"{path}/overrides/{PERSON}", override).status_code == 201
    return path


def assert_no_answer_names_the_person(api, paths):
    assert api.get(f"users/{PERSON}/assignments").json["data"] == []
    lists = [f"{path}/{name}" for path in paths for name in LISTS]
    for path in [*lists, "audiences", "experiments"]:
        answer = api.get(path)
        assert answer.status_code == 200
        assert PERSON not in answer.text.replace(f"{PERSON}.not", ""), path


def test_a_person_is_erased_everywhere_and_moves_no_result(
    api, app, traffic, named, engine_name
):
    before = [everything(api, path) for path in traffic]

    answer = api.delete(f"users/{PERSON}")

    assert answer.status_code == 200
    receipt = answer.json["data"]
    assert receipt["logEmptied"] is (engine_name == "sqlite")
    assert {one["experimentId"] for one in receipt["experiments"]} == {
        path.removeprefix("experiments/") for path in (*traffic, named)
    }
    for one in (*receipt["experiments"], receipt):
        assert one["before"] == one["after"]
    assert receipt["before"]["participants"] == 2 * 401
    assert [everything(api, path) for path in traffic] == before
    assert app.test_cli_runner().invoke(args=["check"]).exit_code == 0
    assert_no_answer_names_the_person(api, [*traffic, named])
    first, _, third = api.get("audiences/aud_beta").json["data"]["ruleTree"]["rules"]
    assert first["value"][0] == "boss"
    assert third["value"] == f"{PERSON}.not"


@pytest.mark.sqlite
def test_no_byte_of_who_is_erased_is_left_in_the_files(api, traffic, named, tmp_path):
    assert api.delete(f"users/{PERSON}").status_code == 200
    # Without the audience of the user with the longer id, no byte is left of hers.
    rule = {"field": "userId", "operator": "in", "value": ["boss", PERSON]}
    api("PUT", "audiences/aud_beta", {"name": "Beta", "ruleTree": rule})
    assert api.delete(f"users/{PERSON}.not").status_code == 200
    assert api.delete(f"users/{PERSON}").json["data"]["logEmptied"] is True
    engine.database.close()
    files = [file for file in tmp_path.iterdir() if file.name.startswith("abacus")]
    assert files
    for file in files:
        assert PERSON.encode() not in file.read_bytes(), file.name


@pytest.fixture
def copied(api, running, enrolled, tmp_path):
    """Return the path of an experiment, and users of whom the file has a copy too much.

    A row and an index have each id. Any further copy was left behind when SQLite moved
    rows to another page, where overwriting does not reach it.
    """
    path = running()
    users = [f"user-{number}-" for number in range(3_000)]
    random.Random(1).shuffle(users)
    for some in range(0, 3_000, 100):
        enrolled(path, *users[some : some + 100])
    assert engine.database.obj.empty_log()
    users = [id for id, times in ids_in(tmp_path / "abacus.db").items() if times > 2]
    assert users
    return path, users


def ids_in(file):
    """Return how often each id stands in the file."""
    found = re.findall(rb"user-[0-9]+-", file.read_bytes())
    return Counter(id.decode() for id in found)


@pytest.mark.sqlite
def test_no_copy_of_who_is_erased_is_left_in_the_file(api, copied, tmp_path):
    path, users = copied
    before = everything(api, path)

    for user_id in users:
        told = api.delete(f"users/{user_id}").json["data"]
        assert (told["fileRewritten"], told["logEmptied"]) == (True, True)

    assert not set(users) & set(ids_in(tmp_path / "abacus.db"))
    assert everything(api, path) == before


@pytest.mark.sqlite
def test_a_large_file_is_written_anew_by_a_command(app, api, copied, tmp_path):
    path, users = copied
    engine.database.execute_sql("CREATE TABLE padding AS SELECT zeroblob(34e6) AS x")
    for user_id in users:
        assert api.delete(f"users/{user_id}").json["data"]["fileRewritten"] is False
    assert set(users) & set(ids_in(tmp_path / "abacus.db"))
    before = everything(api, path)

    result = app.test_cli_runner().invoke(args=["vacuum"])

    assert result.output == "The file is written anew.\n"
    assert not set(users) & set(ids_in(tmp_path / "abacus.db"))
    assert everything(api, path) == before
    engine.database.execute_sql("DROP TABLE padding")
    assert app.test_cli_runner().invoke(args=["check"]).exit_code == 0


LISTS = ("assignments", "overrides", "history", "export", "export?format=ndjson")


def test_an_erasure_is_in_the_history_without_the_person(api, traffic):
    assert api.delete(f"users/{PERSON}").status_code == 200

    last = history(api, traffic[0])[-1]

    assert (last["action"], last["subject"]) == ("erase", "tester")
    assert (last["userId"], last["changes"]) == (None, {})


def test_rules_that_named_the_erased_are_written_down_and_no_others(api, running):
    experiments = {}
    for name, rule in {
        "named": {"field": "userId", "operator": "in", "value": ["boss", PERSON]},
        "alike": {"field": "userId", "operator": "eq", "value": f"{PERSON}.not"},
        "field": {"field": PERSON, "operator": "exists"},
    }.items():
        api("PUT", f"audiences/{name}", {"name": name, "ruleTree": rule})
        experiments[name] = running(audienceId=name)

    told = api.delete(f"users/{PERSON}").json["data"]["experiments"]

    assert [one["experimentId"] for one in told] == [
        experiments["named"].removeprefix("experiments/")
    ]
    for name, path in experiments.items():
        last = history(api, path)[-1]["action"]
        assert last == ("erase" if name == "named" else "start")


@pytest.mark.parametrize("person", ["person-7", 'p"7\\', "p\n7", "用户7"])
def test_a_person_in_a_nested_value_of_a_rule_is_erased_there_too(api, running, person):
    def rule(who):
        values = [{"who": who}, [[who], "boss"], {who: True}]
        return {"field": "owner", "operator": "in", "value": values}

    body = {"name": "Own", "ruleTree": rule(person)}
    assert api("PUT", "audiences/own", body).status_code == 201
    path = running(audienceId="own")

    told = api.delete(f"users/{quote(person, safe='')}").json["data"]

    tree = api.get("audiences/own").json["data"]["ruleTree"]
    tombstone = tree["value"][0]["who"]
    assert tombstone.startswith("erased_")
    assert tree == rule(tombstone)
    experiment = path.removeprefix("experiments/")
    assert [one["experimentId"] for one in told["experiments"]] == [experiment]
    frozen = api.get(f"{path}/assignments/u?explain=true").json["data"]["receipt"]
    assert frozen["rules"] == {**rule(tombstone), "result": False}
    assert "mentions" not in told


def test_an_erasure_says_in_which_texts_the_id_still_stands(api, draft):
    pattern = {"field": "userId", "operator": "regex", "value": f"^({PERSON}|boss)$"}
    body = {"name": "Testers", "description": f"Ask {PERSON}", "ruleTree": pattern}
    assert api("PUT", "audiences/aud_qa", body).status_code == 201
    variants = two_variants()
    variants[1]["config"] = {"owner": [PERSON]}
    path = draft(name=f"For {PERSON}", hypothesis=f'"{PERSON}"', variants=variants)
    draft(name="Of nobody")
    before = api.get(path).json, api.get("audiences/aud_qa").json
    id = path.removeprefix("experiments/")

    told = api.delete(f"users/{PERSON}").json["data"]

    assert told["mentions"] == [
        {"resource": "audience", "id": "aud_qa", "field": "description"},
        {"resource": "audience", "id": "aud_qa", "field": "ruleTree"},
        {"resource": "experiment", "id": id, "field": "name"},
        {"resource": "experiment", "id": id, "field": "hypothesis"},
        {"resource": "experiment", "id": id, "field": "variants.config"},
        {"resource": "experiment", "id": id, "field": "history"},
    ]
    # What people wrote is theirs to change.
    assert (api.get(path).json, api.get("audiences/aud_qa").json) == before
    assert told["experiments"] == []


def test_an_id_that_stands_in_very_many_texts_is_answered_with_a_hundred(api):
    for number in range(110):
        body = {"name": PERSON, "ruleTree": {"field": "a", "operator": "exists"}}
        assert api("PUT", f"audiences/aud_{number}", body).status_code == 201

    assert len(api.delete(f"users/{PERSON}").json["data"]["mentions"]) == 100


def test_an_erased_person_leaves_the_service_its_own_entries(api, ended):
    path = ended()
    assert len(of_the_end(api, path)) == 1

    assert api.delete("users/abacus").status_code == 200

    assert len(of_the_end(api, path)) == 1


def test_who_was_erased_is_somebody_new(api, traffic):
    path = traffic[0]
    before = api.get(path).json["data"]["_count"]["assignments"]
    kept = api.get(f"{path}/assignments/{PERSON}").json["data"]
    assert api.delete(f"users/{PERSON}").status_code == 200

    refused = api.post(f"{path}/conversions", {"userId": PERSON})
    assert_error(refused, 409, "NOT_ENROLLED")
    again = api.post(f"{path}/assignments", {"userId": PERSON})

    assert again.status_code == 201
    assert again.json["data"]["variantId"] == kept["variantId"]
    assert api.get(path).json["data"]["_count"]["assignments"] == before + 1


def test_nobody_is_erased_as_often_as_you_like(api, traffic, engine_name):
    before = [everything(api, path) for path in traffic]
    for _ in range(2):
        told = api.delete("users/nobody").json["data"]
        told.pop("fileRewritten")
        nothing = {"participants": 0, "conversions": 0, "events": 0}
        assert told == {
            "before": nothing,
            "after": nothing,
            "experiments": [],
            "logEmptied": engine_name == "sqlite",
        }
    assert [everything(api, path) for path in traffic] == before
    assert len(history(api, traffic[0])) == 2


def test_an_erased_person_stays_in_the_export_as_a_tombstone(api, traffic):
    path = traffic[0]
    before = exported(api, path)
    mine = [row for row in before if row["user_id"] == PERSON]
    assert api.delete(f"users/{PERSON}").status_code == 200

    after = exported(api, path)

    (tombstone,) = {row["user_id"] for row in after} - {
        row["user_id"] for row in before
    }
    theirs = [row for row in after if row["user_id"] == tombstone]
    anonymous = {"user_id": tombstone, "idempotency_key": None}
    assert theirs == [{**row, **anonymous} for row in mine]
    assert len(after) == len(before)


# ----------------------------------------------------------------------------
# Export
# ----------------------------------------------------------------------------


def exported(api, path):
    response = api.get(f"{path}/export?format=ndjson")
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]
