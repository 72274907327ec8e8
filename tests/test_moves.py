"""The life of an experiment: which move is allowed when, and races."""

from datetime import datetime, timedelta, timezone

import pytest
from conftest import assert_error, paths
from test_experiments import ALLOWED, LIFE, lived, move

import lifecycle
import models
from storage import columns
from web import errors


@pytest.mark.parametrize("name", [name for name in ALLOWED if name != "archive"])
def test_an_archived_experiment_refuses_every_move(api, draft, name):
    path = draft()
    archived = api.delete(path)

    error = assert_error(move(api, path, name), 409, "INVALID_STATE")

    assert error["details"][0]["current"] == "archived"
    assert api.get(path).json["data"] == archived.json["data"]


def test_archiving_hides_keeps_and_is_idempotent(api, draft):
    path = draft()

    first, second = api.delete(path), api.delete(path)

    assert first.json == second.json
    assert first.json["data"]["status"] == "draft"
    assert first.json["data"]["archivedAt"]
    assert api.get("experiments").json["data"] == []
    assert len(api.get("experiments?archived=true").json["data"]) == 1
    assert api.get(path).status_code == 200


@pytest.mark.parametrize("status", ["draft", "stopped", "completed"])
def test_an_unarchived_experiment_is_as_it_was_before(api, draft, status):
    path = lived(api, draft(), status)
    before = api.get(path).json["data"]
    assert api.delete(path).status_code == 200

    first = api.post(f"{path}/unarchive")
    second = api.post(f"{path}/unarchive")

    assert first.status_code == second.status_code == 200
    assert first.json == second.json
    assert {**first.json["data"], "updatedAt": before["updatedAt"]} == before
    assert len(api.get("experiments").json["data"]) == 1
    told = api.get(f"{path}/history").json["data"]
    assert [one["action"] for one in told][:2] == ["unarchive", "archive"]
    if status == "stopped":
        assert api.post(f"{path}/resume").status_code == 200


@pytest.mark.parametrize("status", LIFE)
def test_what_is_not_archived_stays_as_it_is_when_it_is_unarchived(api, draft, status):
    path = lived(api, draft(), status)
    before = api.get(path).json, api.get(f"{path}/history").json

    answer = api.post(f"{path}/unarchive")

    assert (answer.status_code, answer.json) == (200, before[0])
    assert (api.get(path).json, api.get(f"{path}/history").json) == before


def test_a_patch_changes_only_what_it_names(api, draft):
    path = draft(description="As it was", hypothesis="Kept")
    before = api.get(path).json["data"]

    changed = api.patch(path, {"description": None, "name": "Renamed"}).json["data"]

    assert (changed["name"], changed["description"]) == ("Renamed", None)
    same = set(before) - {"name", "description", "updatedAt"}
    assert all(changed[name] == before[name] for name in same)


def test_a_running_experiment_whose_end_has_passed_is_stopped(api, running):
    path = running(endDate="2126-01-01T00:00:00Z")
    past = columns.utcnow()
    models.Experiment.update(
        end_date=past, start_date=past - timedelta(days=1)
    ).execute()

    assert api.get(path).json["data"]["status"] == "stopped"
    assert api.get("experiments?status=running").json["data"] == []
    assert len(api.get("experiments?status=stopped").json["data"]) == 1
    user = api.post(f"{path}/assignments", {"userId": "late"}).json["data"]
    assert user["reason"] == "ENROLLMENT_CLOSED"
    assert_error(api.post(f"{path}/stop"), 409, "INVALID_STATE")
    resumed = api.post(f"{path}/resume").json["data"]
    assert (resumed["status"], resumed["endDate"]) == ("running", None)


def test_resuming_keeps_the_start_and_the_variants(api, running):
    path = running()
    before = api.get(path).json["data"]
    assert api.post(f"{path}/stop").json["data"]["endDate"]

    after = api.post(f"{path}/resume").json["data"]

    assert after["startDate"] == before["startDate"]
    assert after["endDate"] is None
    assert after["variants"] == before["variants"]


def test_a_winner_must_be_one_of_the_variants(api, running):
    path = running()
    body = {"conclusion": "won", "winnerVariantId": "v3"}

    error = assert_error(api.post(f"{path}/complete", body), 400, "VALIDATION_ERROR")

    assert paths(error) == {"winnerVariantId"}
    assert api.get(path).json["data"]["status"] == "running"


def test_an_experiment_that_is_not_there_is_not_found(api):
    for path in ("exp_none", "undefined", "a%00b", "%ff%fe"):
        response = api.get(f"experiments/{path}")
        assert response.status_code in (400, 404), path
        assert response.json["error"]["message"]


@pytest.mark.parametrize("name", [name for name in ALLOWED if name != "archive"])
@pytest.mark.parametrize("status", ["stopped", "completed"])
def test_what_is_archived_after_its_start_refuses_every_move(api, draft, status, name):
    path = lived(api, draft(), status)
    archived = api.delete(path)
    assert archived.status_code == 200

    error = assert_error(move(api, path, name), 409, "INVALID_STATE")

    assert error["details"][0]["current"] == "archived"
    assert set(error["details"][0]["allowed"]) == ALLOWED[name]
    assert api.get(path).json["data"] == archived.json["data"]
    assert archived.json["data"]["status"] == status


@pytest.mark.parametrize(
    ("moves", "status"),
    [
        (["start", "stop"], "stopped"),
        (["start", "complete"], "completed"),
        (["start", "stop", "complete"], "completed"),
    ],
)
@pytest.mark.parametrize("read_after", [0, 1, 2])
def test_an_archiving_takes_back_no_move_that_came_first(
    api, draft, moves, status, read_after
):
    """The row is read, others move the experiment, then it is archived."""
    path = draft()
    for name in moves[:read_after]:
        assert move(api, path, name).status_code == 200
    read = models.Experiment.get_by_id(path.removeprefix("experiments/"))
    for name in moves[read_after:]:
        assert move(api, path, name).status_code == 200

    lifecycle.archive(read, "tester")

    after = api.get(path).json["data"]
    assert (after["status"], after["archivedAt"] is None) == (status, False)


def test_a_completion_keeps_the_end_that_a_racing_stop_answered(api, running):
    path = running()
    read = models.Experiment.get_by_id(path.removeprefix("experiments/"))
    told = api.post(f"{path}/stop").json["data"]["endDate"]

    lifecycle.complete(read, "lost", None, None, "tester")

    assert api.get(path).json["data"]["endDate"] == told


def test_a_completion_ends_no_earlier_than_a_racing_resume(api, running):
    path = running()
    assert api.post(f"{path}/stop").status_code == 200
    read = models.Experiment.get_by_id(path.removeprefix("experiments/"))
    assert api.post(f"{path}/resume").status_code == 200
    resumed = columns.utcnow()

    lifecycle.complete(read, "lost", None, None, "tester")

    stored = models.Experiment.get_by_id(read.id)
    assert stored.end_date >= resumed


@pytest.mark.parametrize("racing", ["start", "archive", "revise"])
def test_a_change_that_lost_a_race_changes_nothing(api, draft, racing):
    path = draft()
    read = models.Experiment.get_by_id(path.removeprefix("experiments/"))
    assert move(api, path, racing).status_code == 200
    before = api.get(path).json["data"]

    with pytest.raises(models.Conflict):
        lifecycle.revise(read, {"name": "Too late"}, list, "tester")

    assert api.get(path).json["data"] == before


def test_a_conflict_tells_its_times_as_every_answer_does(app, api, draft):
    path = draft()
    models.Experiment.update(
        end_date=datetime(2020, 1, 1, 0, 0, 0, 250_000, timezone.utc)
    ).execute()
    read = models.Experiment.get_by_id(path.removeprefix("experiments/"))
    before = api.get(path).json["data"]["updatedAt"]
    assert api.patch(path, {"name": "Sooner"}).status_code == 200
    now = api.get(path).json["data"]["updatedAt"]

    started = assert_error(api.post(f"{path}/start"), 409, "CONFLICT")
    with pytest.raises(models.Conflict) as lost:
        lifecycle.revise(read, {"name": "Too late"}, list, "tester")
    with app.test_request_context():
        answer = errors.answer_conflict(lost.value)

    assert started["details"] == [
        {"current": "2020-01-01T00:00:00.250000Z", "allowed": []}
    ]
    (told,) = answer.json["error"]["details"]
    assert told == {"current": now, "allowed": [before]}
    assert answer.status_code == 409


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"conclusion": None},
        {"conclusion": "great"},
        {"conclusion": "won", "note": "x" * 10_001},
        {"conclusion": "won", "winnerVariantId": "Control"},
        {"conclusion": "won", "winner": "v1"},
    ],
)
def test_a_conclusion_that_is_none_completes_nothing(api, running, body):
    path = running()
    before = api.get(path).json["data"]

    assert_error(api.post(f"{path}/complete", body), 400, "VALIDATION_ERROR")

    assert api.get(path).json["data"] == before


def test_a_conclusion_comes_back_with_its_note_and_its_winner(api, running):
    path = running()
    body = {"conclusion": "won", "winnerVariantId": "v2", "note": "Ship it"}

    answer = api.post(f"{path}/complete", body).json["data"]

    assert {name: answer[name] for name in body} == body
    assert answer["completedAt"] and answer["endDate"]
    assert api.get(path).json["data"] == answer


def test_a_draft_whose_end_has_passed_is_not_started(api, draft):
    path = draft(endDate="2126-01-01T00:00:00Z")
    models.Experiment.update(end_date=columns.utcnow()).execute()

    assert_error(api.post(f"{path}/start"), 409, "CONFLICT")

    after = api.get(path).json["data"]
    assert (after["status"], after["startDate"]) == ("draft", None)


def test_a_conflict_says_what_is_there_and_what_would_do(api, draft, running):
    taken = draft(key="taken")
    path = draft()
    api("PUT", "audiences/aud_a", {"name": "A", "ruleTree": RULE})
    running(audienceId="aud_a")
    for response, current, allowed in (
        (api.patch(path, {"key": "taken"}), "taken", []),
        (api.delete("audiences/aud_a"), "running", ["stopped", "completed"]),
        (api.post(f"{taken}/stop"), "draft", ["running"]),
    ):
        assert response.status_code == 409
        details = response.json["error"]["details"]
        assert details == [{"current": current, "allowed": allowed}]


RULE = {"field": "plan", "operator": "eq", "value": "pro"}


def test_a_running_experiment_is_409_also_for_a_variant_that_it_never_had(api, running):
    path = running()
    before = api.get(path).json
    variants = [{"id": "v8"}, {"id": "v9"}]

    response = api.patch(path, {"variants": variants})

    assert_error(response, 409, "INVALID_STATE")
    assert api.get(path).json == before
