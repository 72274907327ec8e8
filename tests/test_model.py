"""The service agrees with a small model of it, whatever is asked in which order."""

import csv
import io
import logging
from collections import Counter
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from hashlib import sha256

from conftest import SECRET, Caller
from flask_jwt_extended import create_access_token
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import models
from app import create_app
from ledger import proof
from storage import engine, factory, schema
from web.logging import log

USERS = ["ann", "bob", "用户42", "=cmd"]
SPLITS = [(50, 50), (20, 30, 50), (Decimal("33.34"), Decimal("66.66"))]
BEFORE_ALL = "2000-01-01T00:00:00Z"
app = create_app({"JWT_SECRET_KEY": SECRET, "DATABASE_URL": "sqlite:///unused"})


def bucket(salt, user):
    drawn = sha256(f"{salt}:{user}".encode()).hexdigest()[:13]
    return int(drawn, 16) * 10_000 // 16**13


@dataclass
class Conversion:
    user: str
    metric: str
    value: Decimal | None
    key: str | None


@dataclass
class Experiment:
    """What one experiment should be."""

    id: str
    splits: tuple
    traffic: int
    audience: str | None
    primary: str
    status: str = "draft"
    archived: bool = False
    rules: bool = False
    winner: str | None = None
    seats: dict = field(default_factory=dict)
    overrides: dict = field(default_factory=dict)
    conversions: list = field(default_factory=list)
    refused: Counter = field(default_factory=Counter)
    crossings: dict = field(default_factory=dict)

    @property
    def variants(self):
        return [f"v{number}" for number, _ in enumerate(self.splits, 1)]

    @property
    def takes_conversions(self):
        return not self.archived and self.status in ("running", "stopped")

    def dealt(self, user):
        drawn = Decimal(bucket(self.id, user)) / 100
        total = Decimal(0)
        for variant, split in zip(self.variants, self.splits, strict=True):
            total += split
            if drawn < total:
                return variant
        raise AssertionError("the splits do not sum to 100")

    def decide(self, user, attributes):
        """Return reason and variant, and enrol who is new."""
        if user in self.overrides:
            return "OVERRIDE", self.overrides[user]
        if self.winner:
            return "WINNER", self.winner
        if user in self.seats:
            return "EXISTING_ASSIGNMENT", self.seats[user]
        if self.archived:
            return "ARCHIVED", None
        if self.status != "running":
            closed = "NOT_STARTED" if self.status == "draft" else "ENROLLMENT_CLOSED"
            return closed, None
        if self.rules and attributes.get("plan") != "pro":
            return "NOT_IN_AUDIENCE", None
        if bucket(f"{self.id}:traffic", user) >= self.traffic * 100:
            return "HELD_OUT", None
        self.seats[user] = self.dealt(user)
        return "NEW_ASSIGNMENT", self.seats[user]

    def book(self, user, metric, value, key, early):
        """Return what becomes of a conversion: its status and reason."""
        if not self.takes_conversions:
            return "rejected", "INVALID_STATE"
        if user not in self.seats or user in self.overrides:
            self.refused["notEnrolled"] += 1
            return "rejected", "NOT_ENROLLED"
        said = Conversion(user, metric or self.primary, value, key)
        known = [one for one in self.conversions if key is not None and one.key == key]
        if known and (known[0] != said or early):
            return "rejected", "CONFLICT"
        if known:
            self.refused["duplicates"] += 1
            return "duplicate", None
        if early:
            self.refused["beforeEnrollment"] += 1
            return "rejected", "BEFORE_ENROLLMENT"
        self.conversions.append(said)
        return "accepted", None

    def counted(self, variant):
        """Return a variant's users, and how many have the primary metric."""
        mine = {user for user, dealt in self.seats.items() if dealt == variant}
        primary = {one.user for one in self.conversions if one.metric == self.primary}
        return [len(mine), len(mine & primary)]

    def figures(self, variant):
        """Return a variant's figures by metric, as results have them."""
        mine = [one for one in self.conversions if self.seats[one.user] == variant]
        told = {}
        for metric in {one.metric for one in mine}:
            rows = [one for one in mine if one.metric == metric]
            totals = Counter()
            for one in rows:
                if one.value is not None:
                    totals[one.user] += one.value
            told[metric] = (
                len({one.user for one in rows}),
                len(rows),
                len(totals),
                sum(totals.values()),
                sum(total * total for total in totals.values()),
            )
        return told

    def rows(self):
        """Return the rows of an export, in any order."""
        converted = {one.user for one in self.conversions}
        told = [
            (shown(one.user), self.seats[one.user], one.metric, one.value, one.key)
            for one in self.conversions
        ]
        told += [
            (shown(user), variant, None, None, None)
            for user, variant in self.seats.items()
            if user not in converted
        ]
        return sorted(told, key=repr)


def shown(user):
    return "erased" if user.startswith("erased_") else user


users = st.sampled_from(USERS)
attributes = st.sampled_from([{}, {"plan": "pro"}, {"plan": "free"}])
values = st.sampled_from([None, Decimal("19.99"), Decimal("-0.1")])
keys = st.sampled_from([None, "k1", "k2"])
positions = st.integers(0, 3)
primaries = st.sampled_from(["conversion", "spent"])
metrics = st.sampled_from([None, "conversion", "spent"])
early = st.sampled_from([False, False, False, True])
event = st.tuples(users, metrics, values, keys, early)
events = st.lists(event, min_size=1, max_size=8)
traffics = st.sampled_from([100, 60])


class Service(RuleBasedStateMachine):
    """Asks service and model alike; after each step both say the same."""

    def __init__(self, new_database):
        """Begin with an empty database, of which *new_database* yields the URL."""
        super().__init__()
        log.setLevel(logging.WARNING)
        self.opened = ExitStack()
        url = self.opened.enter_context(new_database())
        database = app.extensions["database"] = factory.database_at(url)
        schema.create(database, models.TABLES)
        engine.enter(database)
        with app.app_context():
            token = create_access_token("tester", expires_delta=timedelta(hours=1))
        self.api = Caller(app, token)
        self.experiments = []
        self.asked = []  # the experiments that the last step asked for
        self.has_audience = False
        self.enrolments = []  # (user, experiment), oldest first
        self.erased = self.crowds = 0

    def teardown(self):
        try:
            self.asked = self.experiments
            self.counts_agree()
            self.rows_agree()
            assert list(proof.discrepancies()) == []
        finally:
            engine.database.shut()
            engine.leave()
            self.opened.close()

    def at(self, position):
        one = self.experiments[position % len(self.experiments)]
        self.asked = [one]
        return one

    def made(self, answer, splits, traffic, audience, primary):
        assert answer.status_code == 201, answer.text
        data = answer.json["data"]
        missing = audience is not None and not (self.has_audience)
        codes = [one["code"] for one in data["warnings"]]
        assert codes == (["AUDIENCE_NOT_DEFINED"] if missing else [])
        one = Experiment(data["id"], splits, traffic, audience, primary)
        self.experiments.append(one)

    # -- the life of an experiment

    @initialize(
        splits=st.sampled_from(SPLITS),
        traffic=traffics,
        audience=st.booleans(),
        primary=primaries,
        started=st.booleans(),
        payer=attributes,
    )
    def begin(self, splits, traffic, audience, primary, started, payer):
        """Let there be much to lose."""
        if audience:
            self.define_audience()
        self.create(SPLITS[0], 100, None, primary)
        self.create(splits, traffic, "aud_pro", "conversion")
        for position in (0, 1) if started else (0,):
            self.move(position, "start", None)
            self.enrol_batch(position, [(user, payer) for user in USERS])
            self.override(position, USERS[1], "v2")

    @precondition(lambda self: len(self.experiments) < 3)
    @rule(
        splits=st.sampled_from(SPLITS),
        traffic=traffics,
        audience=st.sampled_from([None, "aud_pro"]),
        primary=primaries,
    )
    def create(self, splits, traffic, audience, primary):
        variants = [
            {"name": f"Variant {number}", "splitPercentage": float(split)}
            for number, split in enumerate(splits, 1)
        ]
        body = {
            "name": "Onboarding",
            "trafficPercentage": traffic,
            "audienceId": audience,
            "variants": variants,
        }
        if primary == "spent":
            body["metrics"] = [{"name": primary, "role": "primary", "kind": "mean"}]
        answer = self.api.post("experiments", body)
        self.made(answer, splits, traffic, audience, primary)

    @precondition(lambda self: 0 < len(self.experiments) < 3)
    @rule(position=positions)
    def duplicate(self, position):
        one = self.at(position)
        answer = self.api.post(f"experiments/{one.id}/duplicate")
        self.made(answer, one.splits, one.traffic, one.audience, one.primary)

    @precondition(lambda self: self.experiments)
    @rule(
        position=positions,
        traffic=st.sampled_from([None, 100, 40]),
        splits=st.sampled_from([None, (70, 30)]),
    )
    def patch(self, position, traffic, splits):
        one = self.at(position)
        changes = {"description": "Changed"}
        if traffic:
            changes["trafficPercentage"] = traffic
        if splits:
            changes["variants"] = [
                {"id": variant, "splitPercentage": split}
                for variant, split in zip(("v1", "v2"), splits, strict=True)
            ]
        answer = self.api.patch(f"experiments/{one.id}", changes)
        if one.archived or one.status != "draft":
            assert answer.json["error"]["code"] == "INVALID_STATE"
            return
        assert answer.status_code == 200, answer.text
        one.traffic = traffic or one.traffic
        if splits:
            one.splits = splits
            one.overrides = {
                user: variant
                for user, variant in one.overrides.items()
                if variant != "v3"
            }

    @precondition(lambda self: self.experiments)
    @rule(
        position=positions,
        move=st.sampled_from(["start", "stop", "resume", "complete"]),
        winner=st.sampled_from([None, "v1", "v2"]),
    )
    def move(self, position, move, winner):
        one = self.at(position)
        body = {"conclusion": "won", "winnerVariantId": winner}
        body = body if move == "complete" else None
        answer = self.api.post(f"experiments/{one.id}/{move}", body)
        allowed, after = {
            "start": (["draft"], "running"),
            "stop": (["running"], "stopped"),
            "resume": (["stopped"], "running"),
            "complete": (["running", "stopped"], "completed"),
        }[move]
        if one.archived or one.status not in allowed:
            (detail,) = answer.json["error"]["details"]
            current = "archived" if one.archived else one.status
            assert detail == {"current": current, "allowed": allowed}, answer.text
            assert answer.status_code == 409
            return
        assert answer.status_code == 200, answer.text
        one.status = after
        if move == "start":
            one.rules = self.has_audience and one.audience is not None
        if move == "complete":
            one.winner = winner

    @precondition(lambda self: self.experiments)
    @rule(position=positions)
    def archive(self, position):
        one = self.at(position)
        answer = self.api.delete(f"experiments/{one.id}")
        if one.status == "running" and not one.archived:
            assert answer.json["error"]["code"] == "INVALID_STATE"
            return
        assert answer.status_code == 200, answer.text
        one.archived = True

    @precondition(lambda self: self.experiments)
    @rule(position=positions)
    def unarchive(self, position):
        one = self.at(position)
        answer = self.api.post(f"experiments/{one.id}/unarchive")
        assert answer.status_code == 200, answer.text
        assert answer.json["data"]["archivedAt"] is None
        assert answer.json["data"]["status"] == one.status
        one.archived = False

    # -- users

    @precondition(lambda self: self.experiments)
    @rule(position=positions, user=users, attributes=attributes)
    def enrol(self, position, user, attributes):
        one = self.at(position)
        reason, variant = self.decided(one, user, attributes)
        body = {"userId": user, "attributes": attributes}
        answer = self.api.post(f"experiments/{one.id}/assignments", body)
        data = answer.json["data"]
        assert answer.status_code == (201 if reason == "NEW_ASSIGNMENT" else 200)
        assert (data["reason"], data["variantId"]) == (reason, variant)
        assert data["enrolled"] == (variant is not None)

    @precondition(lambda self: self.experiments)
    @rule(position=positions, asked=st.lists(st.tuples(users, attributes), min_size=1))
    def enrol_batch(self, position, asked):
        one = self.at(position)
        expected = [self.decided(one, *each) for each in asked]
        body = {"users": [{"userId": u, "attributes": a} for u, a in asked]}
        answer = self.api.post(f"experiments/{one.id}/assignments/batch", body)
        told = [(row["reason"], row["variantId"]) for row in answer.json["data"]]
        assert told == expected

    def decided(self, one, user, attributes):
        reason, variant = one.decide(user, attributes)
        if reason == "NEW_ASSIGNMENT":
            self.enrolments.append((user, one))
        return reason, variant

    @precondition(lambda self: self.experiments)
    @rule(position=positions, user=users, variant=st.sampled_from(["v1", "v2", "v3"]))
    def override(self, position, user, variant):
        one = self.at(position)
        path = f"experiments/{one.id}/overrides/{user}"
        answer = self.api("PUT", path, {"variantId": variant})
        if variant not in one.variants:
            assert answer.status_code == 400, answer.text
            return
        assert answer.status_code == (200 if user in one.overrides else 201)
        one.overrides[user] = variant

    @precondition(lambda self: self.experiments)
    @rule(position=positions, user=users)
    def remove_override(self, position, user):
        one = self.at(position)
        answer = self.api.delete(f"experiments/{one.id}/overrides/{user}")
        assert answer.status_code == (200 if user in one.overrides else 404)
        one.overrides.pop(user, None)

    @rule(user=users)
    def erase(self, user):
        self.asked = self.experiments
        self.erased += 1
        tombstone = f"erased_{self.erased}"
        touched = set()
        for one in self.experiments:
            if user in one.overrides or user in one.seats:
                touched.add(one.id)
            one.overrides.pop(user, None)
            if user in one.seats:
                one.seats[tombstone] = one.seats.pop(user)
            for conversion in one.conversions:
                if conversion.user == user:
                    conversion.user, conversion.key = tombstone, None
        self.enrolments = [each for each in self.enrolments if each[0] != user]
        told = self.api.delete(f"users/{user}").json["data"]["experiments"]
        assert {row["experimentId"] for row in told} == touched
        assert all(row["before"] == row["after"] for row in told)

    # -- audiences

    @rule()
    def define_audience(self):
        tree = {"field": "plan", "operator": "eq", "value": "pro"}
        body = {"name": "Payers", "ruleTree": tree}
        answer = self.api("PUT", "audiences/aud_pro", body)
        assert answer.status_code == (200 if self.has_audience else 201)
        self.has_audience = True

    @rule()
    def delete_audience(self):
        used = any(
            one.audience and not one.archived and one.status in ("draft", "running")
            for one in self.experiments
        )
        answer = self.api.delete("audiences/aud_pro")
        expected = 404 if not self.has_audience else 409 if used else 200
        assert answer.status_code == expected, answer.text
        self.has_audience = self.has_audience and used

    # -- conversions

    @precondition(lambda self: self.experiments)
    @rule(position=positions, event=event)
    def convert(self, position, event):
        one = self.at(position)
        user = event[0]
        answer = self.api.post(f"experiments/{one.id}/conversions", said(*event))
        status, reason = one.book(*event)
        if status == "rejected":
            assert answer.status_code == 409
            assert answer.json["error"]["code"] == reason
        else:
            assert answer.status_code == (201 if status == "accepted" else 200)
            data = answer.json["data"]
            assert (data["status"], data["variantId"]) == (status, one.seats[user])

    @precondition(lambda self: self.experiments)
    @rule(position=positions)
    def repeat(self, position):
        one = self.at(position)
        for known in [known for known in one.conversions if known.key]:
            row = (known.user, known.metric, known.value, known.key, False)
            self.convert(position, row)

    @precondition(lambda self: self.experiments)
    @rule(position=positions, rows=events)
    def convert_batch(self, position, rows):
        one = self.at(position)
        body = {"conversions": [said(*row) for row in rows]}
        answer = self.api.post(f"experiments/{one.id}/conversions/batch", body)
        if not one.takes_conversions:
            assert answer.json["error"]["code"] == "INVALID_STATE"
            return
        told = [(row["status"], row["reason"]) for row in answer.json["data"]]
        assert told == [one.book(*row) for row in rows]

    @precondition(lambda self: self.experiments and self.crowds < 4)
    @rule(position=positions, is_control_better=st.booleans())
    def crowd(self, position, is_control_better):
        """Have many users, of whom one side does more, so that a look may decide."""
        one = self.at(position)
        self.crowds += 1
        crowd = [f"crowd-{self.crowds}-{place}" for place in range(60)]
        self.enrol_batch(position, [(user, {"plan": "pro"}) for user in crowd])
        rows = [
            (user, one.primary, Decimal(20 + place % 3), None, False)
            for place, user in enumerate(crowd)
            if user in one.seats and (one.seats[user] == "v1") == is_control_better
        ]
        if rows:
            self.convert_batch(position, rows)
        self.look(position)

    @precondition(lambda self: self.experiments)
    @rule(position=positions)
    def look(self, position):
        """Ask for the figures: what a look has decided stays, with its counts."""
        one = self.at(position)
        answer = self.api.get(f"experiments/{one.id}/compute-results")
        assert answer.status_code == 200, answer.text
        is_rate = one.primary == "conversion"
        for variant in answer.json["data"]["variants"][1:]:
            figures = variant if is_rate else variant["value"]
            crossing = figures["comparison"].get("crossing")
            known = one.crossings.get(variant["variantId"])
            if known is None and crossing:
                counts = [*one.counted("v1"), *one.counted(variant["variantId"])]
                names = ["controlSampleSize", "controlConversions"]
                names += ["sampleSize", "conversions"]
                assert [crossing[name] for name in names] == counts
                assert crossing["users"] == len(one.seats)
                assert ("difference" in crossing) != is_rate
                one.crossings[variant["variantId"]] = crossing
            else:
                assert crossing == known

    @rule(rows=events)
    def credit(self, rows):
        self.asked = self.experiments
        body = {"events": [said(*row) for row in rows]}
        answer = self.api.post("events/batch", body)
        told = [
            [(each["experimentId"], each["status"], each["reason"]) for each in row]
            for row in answer.json["data"]
        ]
        expected = [
            [
                (one.id, *one.book(*row))
                for user, one in self.enrolments
                if user == row[0]
            ]
            for row in rows
        ]
        assert told == expected

    # -- what is read

    @invariant()
    def lists_agree(self):
        everything = self.api.get("experiments?archived=true").json
        listed = {
            one["id"]: (one["status"], one["archivedAt"] is not None)
            for one in everything["data"]
        }
        mine = {one.id: (one.status, one.archived) for one in self.experiments}
        assert listed == mine
        shown = self.api.get("experiments").json["meta"]["total"]
        assert shown == sum(not one.archived for one in self.experiments)

    @invariant()
    def counts_agree(self):
        for one in self.asked:
            read = self.api.get(f"experiments/{one.id}").json["data"]
            assert read["_count"]["assignments"] == len(one.seats)
            results = self.api.get(f"experiments/{one.id}/results").json["data"]
            for variant in results["variants"]:
                id = variant["variantId"]
                seated = sum(dealt == id for dealt in one.seats.values())
                assert variant["participants"] == seated
                assert {
                    row["metric"]: (
                        row["conversions"],
                        row["events"],
                        row["value"]["count"],
                        exact(row["value"]["sum"]),
                        exact(row["value"]["sumSquares"]),
                    )
                    for row in variant["results"]
                } == one.figures(id)
            counted = len(one.conversions)
            assert results["quality"] == {
                "received": counted + sum(one.refused.values()),
                "counted": counted,
                "duplicates": one.refused["duplicates"],
                "beforeEnrollment": one.refused["beforeEnrollment"],
                "notEnrolled": one.refused["notEnrolled"],
            }

    @invariant()
    def rows_agree(self):
        for one in self.asked:
            text = self.api.get(f"experiments/{one.id}/export").text
            rows = [
                (
                    shown(row["user_id"].removeprefix("'")),
                    row["variant"],
                    row["metric"] or None,
                    Decimal(row["value"]) if row["value"] else None,
                    row["idempotency_key"] or None,
                )
                for row in csv.DictReader(io.StringIO(text))
            ]
            expected = one.rows()
            assert Counter(rows) == Counter(expected)
            forced = self.api.get(f"experiments/{one.id}/overrides").json["data"]
            told = {row["userId"]: row["variantId"] for row in forced}
            assert told == one.overrides


def said(user, metric, value, key, early):
    """Return the body of an event."""
    body = {"userId": user, "metric": metric, "idempotencyKey": key}
    if value is not None:
        body["value"] = float(value)
    if early:
        body["occurredAt"] = BEFORE_ALL
    return body


def exact(number):
    """Return a number of JSON, read by a reader of floats, as it was written."""
    return Decimal(str(number))


def test_the_service_says_what_the_model_says_in_any_life(engine_name, new_database):
    def empty():
        if engine_name == "sqlite":
            return nullcontext("sqlite:///:memory:")
        return new_database(None)

    contract = settings.get_profile("contract")
    lives = contract.max_examples * (2 if engine_name == "sqlite" else 1)
    run_state_machine_as_test(
        lambda: Service(empty),
        settings=settings(contract, max_examples=lives, stateful_step_count=40),
    )
