"""What other products export is counted here as it was counted there."""

import csv
import json
import random
import re
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from datetime import datetime, timedelta, timezone

import psycopg
import pytest
import servers
import service as real

pytestmark = pytest.mark.one_engine

PAGE = (real.ROOT / "docs" / "migrating.md").read_text()
BEGAN = datetime(2024, 5, 1, tzinfo=timezone.utc)


def converted(product, text, *words):
    """Return the lines that a converter prints for a file, and what it says beside."""
    ended = subprocess.run(
        [sys.executable, f"converters/{product}.py", *words],
        cwd=real.ROOT,
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout, ended.stderr


@pytest.fixture
def counts(api, app, tmp_path):
    """Return a way to import a file twice, which answers the counts of each variant."""

    def imported(lines, suffix, *names, **fields):
        splits = [100 / len(names) for _ in names]
        variants = [
            {"name": name, "splitPercentage": split}
            for name, split in zip(names, splits, strict=True)
        ]
        made = api.post("experiments", {"name": "Old", "variants": variants, **fields})
        path = f"experiments/{made.json['data']['id']}"
        assert api.post(f"{path}/start").status_code == 200
        file = tmp_path / f"lines{suffix}"
        file.write_text(lines)
        for _ in range(2):  # the second time adds nothing
            command = ["import", made.json["data"]["id"], str(file)]
            ended = app.test_cli_runner().invoke(args=command)
            assert ended.exit_code == 0, ended.output
        assert app.test_cli_runner().invoke(args=["check"]).exit_code == 0
        results = api.get(f"{path}/results?granularity=day").json["data"]
        return {one["variantName"]: one for one in results["variants"]}

    return imported


def users_of(variant):
    return variant["participants"]


def primary(variant):
    """Return the users who converted, the events, and the sum of their values."""
    rows = [row for row in variant["results"] if row["primary"]]
    if not rows:
        return 0, 0, 0
    return rows[0]["conversions"], rows[0]["events"], rows[0]["value"]["sum"]


# ----------------------------------------------------------------------------
# PostHog
# ----------------------------------------------------------------------------


def event(number, name, user, seconds, **properties):
    """Return an event with the fields of PostHog's export, in JSON lines."""
    at = (BEGAN + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {
        "uuid": f"0190-{number}",
        "event": name,
        "distinct_id": user,
        "person_id": f"person of {user}",
        "properties": properties,
        "person_properties": {},
        "elements_chain": "",
        "timestamp": at,
        "created_at": at,
        "_inserted_at": at,
    }


def called(number, user, seconds, response, flag="pricing"):
    details = {"$feature_flag": flag, "$feature_flag_response": response}
    return event(number, "$feature_flag_called", user, seconds, **details)


def test_the_events_of_posthog_are_counted_as_posthog_defines_exposures(counts):
    draw = random.Random(7)
    shown = {f"=user-{n}": draw.choice(["control", "test"]) for n in range(300)}
    events = [
        called(len(shown) * again + n, user, 100 + 50 * again, variant)
        for again in range(2)  # each sees the flag twice; the first time counts
        for n, (user, variant) in enumerate(shown.items())
    ]
    orders = Counter()
    for number in range(500):
        user = draw.choice(list(shown))
        orders[user] += 1
        amount = {"amount": 0.1}
        bought = event(f"order-{number}", "purchase", user, 110 + number, **amount)
        events.append(bought)
    counted = len(events)
    events += [
        called("mixed-1", "mixed", 10, "control"),
        called("mixed-2", "mixed", 20, "test"),
        event("mixed-3", "purchase", "mixed", 30, amount=5),
        event("early", "purchase", "=user-1", 99, amount=5),
        event("unseen", "purchase", "nobody", 200, amount=5),
        event("other", "$pageview", "=user-1", 200),
        called("off", "held-out", 10, False),
        called("other-flag", "nobody", 10, "test", flag="another"),
    ]
    events += events[: counted // 2]  # as in two files that overlap
    draw.shuffle(events)
    text = "".join(json.dumps(one) + "\n" for one in events)

    lines, beside = converted("posthog", text, "pricing", "purchase:amount")
    variants = counts(lines, ".ndjson", "control", "test", primaryMetric="purchase")

    assert beside == (
        "300 users; left out: 1 users with two variants, "
        "1 events before the enrolment\n"
    )
    for name, variant in variants.items():
        users = [user for user, seen in shown.items() if seen == name]
        bought = sum(orders[user] for user in users)
        assert users_of(variant) == len(users)
        buyers = sum(orders[user] > 0 for user in users)
        assert primary(variant) == (buyers, bought, pytest.approx(bought / 10))


def test_an_event_of_posthog_without_a_value_is_a_conversion_alone(counts):
    events = [
        called(1, "anna", 0, "test"),
        event(2, "signup", "anna", 0),
        called(3, "ben", 0, "control"),
    ]
    text = "".join(json.dumps(one) + "\n" for one in events)

    lines, _ = converted("posthog", text, "pricing", "signup", "purchase:amount")
    variants = counts(lines, ".ndjson", "control", "test", primaryMetric="signup")

    assert primary(variants["test"])[:2] == (1, 1)
    assert primary(variants["control"]) == (0, 0, 0)


# ----------------------------------------------------------------------------
# sixpack
# ----------------------------------------------------------------------------


def exported_by_sixpack(days, totals):
    """Return a file with the three parts of an export of sixpack-web."""
    participants = sum(one for one, _ in totals.values())
    conversions = sum(one for _, one in totals.values())
    rows = [
        ["Alternative Details"],
        ["date", "alternative", "participants", "conversions"],
        *([day, name, float(p), float(c)] for name, day, p, c in days),
        [],
        ['"button_color" Summary'],
        ["total participants", "total_conversions", "has_winner", "description"],
        [participants, conversions, "False", "Which, of two"],
        [],
        ["Alternative Summary"],
        ["name", "participant_count", "completed_count"],
        *([name, p, c] for name, (p, c) in totals.items()),
    ]
    lines = []
    csv.writer(type("Lines", (), {"write": staticmethod(lines.append)})).writerows(rows)
    return "".join(lines)


# Somebody who came on the first day converts on the third one.
DAYS = [
    ("red", "2024-03-01", 40, 0),
    ("red", "2024-03-02", 0, 12),
    ("red", "2024-03-05", 35, 40),
    ("blue", "2024-03-01", 38, 5),
    ("blue", "2024-03-05", 37, 9),
]
TOTALS = {"red": (75, 52), "blue": (75, 14)}


def test_the_counts_of_sixpack_are_kept_for_each_day_and_each_alternative(counts):
    lines, beside = converted("sixpack", exported_by_sixpack(DAYS, TOTALS))
    variants = counts(lines, ".ndjson", "red", "blue")

    assert beside == ""
    red = [line for line in map(json.loads, lines.splitlines()) if "-red-" in str(line)]
    came = Counter(line["timestamp"][:10] for line in red if "converted_at" in line)
    assert came == {"2024-03-01": 40, "2024-03-05": 12}  # who came first
    for name, (participants, conversions) in TOTALS.items():
        variant = variants[name]
        assert users_of(variant) == participants
        assert primary(variant)[:2] == (conversions, conversions)
        days = {
            (one["date"], one["participants"], one["conversions"])
            for one in map(day_of, variant["series"])
        }
        assert {one[1:] for one in DAYS if one[0] == name} == days


def day_of(day):
    """Return what a variant gained on a day."""
    converted = [one["conversions"] for one in day["results"]]
    return {
        "date": day["date"],
        "participants": day["participants"],
        "conversions": sum(converted),
    }


@pytest.mark.parametrize(
    ("days", "totals", "said"),
    [
        (DAYS, {**TOTALS, "blue": (75, 15)}, "blue: its days and its summary differ"),
        (DAYS[:4], TOTALS, "blue: its days and its summary differ"),
        ([("red", "2024-03-01", 1, 2)], {}, "more conversions of red than particip"),
    ],
)
def test_a_file_of_sixpack_that_contradicts_itself_is_refused(days, totals, said):
    ended = subprocess.run(
        [sys.executable, "converters/sixpack.py"],
        cwd=real.ROOT,
        input=exported_by_sixpack(days, totals),
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 1
    assert said in ended.stderr


# ----------------------------------------------------------------------------
# GrowthBook
# ----------------------------------------------------------------------------

(QUERY,) = re.findall(r"<!-- the query -->\n```sql\n(.*?)```", PAGE, re.DOTALL)
TABLES = (
    "CREATE TABLE experiment_viewed (user_id TEXT, timestamp {time}, "
    "experiment_id TEXT, variation_id TEXT)",
    "CREATE TABLE purchases (id TEXT, user_id TEXT, timestamp {time}, amount NUMERIC)",
)


def warehouse():
    """Return the rows of both tables, and what GrowthBook would count of them."""
    draw = random.Random(3)
    shown = {str(n): draw.choice("012") for n in range(200)}
    viewed = [
        (user, at(100 + again), "my-button-test", variation)
        for user, variation in shown.items()
        for again in range(2)
    ]
    bought, orders = [], Counter()
    for number in range(150):
        user = str(draw.randrange(200))
        bought.append((f"o{number}", user, at(101 + number), 0.25))
        orders[user] += 1
    viewed += [
        ("mixed", at(10), "my-button-test", "0"),
        ("mixed", at(20), "my-button-test", "1"),
        ("nobody", at(10), "another", "1"),
    ]
    bought += [
        ("early", "7", at(99), 9),
        ("mixed", "mixed", at(30), 9),
        ("stranger", "nobody", at(30), 9),
    ]
    return viewed, bought, shown, orders


def at(seconds):
    return (BEGAN + timedelta(seconds=seconds)).strftime("%Y-%m-%d %H:%M:%S")


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_query_for_growthbook_brings_its_counts(counts, request, tmp_path, kind):
    viewed, bought, shown, orders = warehouse()
    if kind == "sqlite":
        with closing(sqlite3.connect(":memory:")) as connection:
            rows = asked(connection, "TEXT", "?", viewed, bought)
    else:
        server = request.getfixturevalue("server")
        with servers.made(server) as url, closing(psycopg.connect(url)) as connection:
            rows = asked(connection.cursor(), "TIMESTAMP", "%s", viewed, bought)
    file = tmp_path / "growthbook.csv"
    with file.open("w", newline="") as out:
        csv.writer(out).writerows(rows)

    variants = counts(file.read_text(), ".csv", *"ABCD", primaryMetric="purchase")

    assert users_of(variants["D"]) == 0
    for name, variation in zip("ABC", "012", strict=True):
        users = [user for user, seen in shown.items() if seen == variation]
        events = sum(orders[user] for user in users)
        buyers = sum(orders[user] > 0 for user in users)
        assert users_of(variants[name]) == len(users)
        assert primary(variants[name]) == (buyers, events, events / 4)


def asked(connection, time, mark, viewed, bought):
    """Return the header and the rows of the query in a database with both tables."""
    for table in TABLES:
        connection.execute(table.format(time=time))
    marks = ", ".join([mark] * 4)
    connection.executemany(f"INSERT INTO experiment_viewed VALUES ({marks})", viewed)
    connection.executemany(f"INSERT INTO purchases VALUES ({marks})", bought)
    answer = connection.execute(QUERY)
    return [[column[0] for column in answer.description], *answer.fetchall()]


# ----------------------------------------------------------------------------
# Unleash
# ----------------------------------------------------------------------------


def variant(name, weight, **fields):
    return {"name": name, "weight": weight, "weightType": "variable", **fields}


def strategy(feature, **fields):
    parameters = {"groupId": feature, "rollout": "50", "stickiness": "userId"}
    made = {"name": "flexibleRollout", "featureName": feature, "parameters": parameters}
    return {**made, **fields}


def exported_by_unleash(features, strategies, environments=()):
    """Return a file with the fields of Unleash's export."""
    return json.dumps(
        {
            "features": [
                {"name": one, "description": f"About {one}", "type": "experiment"}
                for one in features
            ],
            "featureStrategies": strategies,
            "featureEnvironments": environments,
            "tagTypes": [],
        }
    )


def test_a_flag_of_unleash_becomes_a_draft_with_its_weights_and_payloads(api):
    steps = {"type": "json", "value": '{"steps": 3}'}
    flow = {"type": "string", "value": "flow_b"}
    text = exported_by_unleash(
        ["Checkout"],
        [
            strategy(
                "Checkout",
                variants=[
                    variant("old", 333, payload=steps),
                    variant("new", 667, payload=flow),
                    variant("gone", 0),
                ],
            ),
            strategy("Checkout", disabled=True, variants=[variant("x", 1000)]),
        ],
    )

    lines, beside = converted("unleash", text)
    (body,) = map(json.loads, lines.splitlines())
    made = api.post("experiments", body)

    assert made.status_code == 201, made.text
    assert beside == ""
    draft = made.json["data"]
    assert (draft["key"], draft["name"]) == ("checkout", "Checkout")
    assert draft["description"] == "About Checkout"
    assert draft["trafficPercentage"] == 50
    old, new = draft["variants"]
    assert (old["name"], old["splitPercentage"]) == ("old", 33.3)
    assert (new["name"], new["splitPercentage"]) == ("new", 66.7)
    assert (old["config"], old["flowId"]) == ({"steps": 3}, None)
    assert (new["config"], new["flowId"]) == (None, "flow_b")


def test_what_unleash_has_and_abacus_has_not_is_named_and_nothing_is_invented():
    halves = [variant("old", 500), variant("new", 500, overrides=[{"values": ["u"]}])]
    country = [{"contextName": "country", "operator": "IN", "values": ["DE"]}]
    text = exported_by_unleash(
        ["plain", "twice", "narrow"],
        [
            strategy("plain"),
            strategy("twice", variants=halves[:1]),
            strategy("twice", variants=halves[:1]),
            strategy("narrow", constraints=country, segments=[1]),
        ],
        [{"featureName": "narrow", "environment": "production", "variants": halves}],
    )

    lines, beside = converted("unleash", text)

    assert [json.loads(line)["key"] for line in lines.splitlines()] == ["narrow"]
    assert beside.splitlines() == [
        "plain: not converted, it has fewer than two variants with a weight",
        "twice: not converted, it has several strategies: choose one",
        "narrow: the constraints of its strategy are left out: define an audience",
        "narrow: the segments of its strategy are left out: define an audience",
        "narrow: the overrides of its variants are left out",
    ]
