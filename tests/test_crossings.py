"""The first look that decides a mean or a ratio: stored, and never withdrawn."""

import csv
import html
import io
from decimal import Decimal

import pytest
from conftest import LINE, ago, statements
from test_database import serving
from test_migration import of_schema

from ledger import proof
from models import TABLES, Crossing
from storage import engine, schema

MEAN = {"name": "spent", "role": "primary", "kind": "mean"}


@pytest.fixture
def spend(load):
    """Return a way to have so many users, who spend about so much.

    Half of them get each variant. Neighbours spend alike, so that two equal amounts
    have equal means.
    """

    def more(path, name, number, amounts, step=1, days=0):
        at, lines = ago(days), []
        for place in range(number):
            variant = f"v{place % 2 + 1}"
            value = Decimal(amounts[variant]) + place // 2 % 7 * Decimal(step)
            user = f"{name}-{place},{variant},{at}"
            lines.append(f"{user},{at},spent,{value},{place // 2}")
        load(path, f"{LINE},value,covariate", *lines)

    return more


def compared(found):
    return found["variants"][1]["value"]["comparison"]


def crossing_of(found):
    return compared(found).get("crossing")


HIGH, LOW, SAME = {"v1": 10, "v2": 14}, {"v1": 14, "v2": 10}, {"v1": 10, "v2": 10}


@pytest.mark.parametrize("kind", ["mean", "ratio"])
def test_a_mean_that_won_stays_the_winner(running, spend, told, kind):
    path = running(metrics=[{**MEAN, "kind": kind}])
    spend(path, "a", 12, SAME)
    before = told(path)
    assert crossing_of(before) is None and Crossing.select().count() == 0
    spend(path, "b", 120, HIGH)
    first = told(path)
    spend(path, "c", 400, {"v1": 14, "v2": 12.5})

    later, again = told(path), told(path)

    control, treatment = first["variants"]
    crossing = crossing_of(first)
    test = compared(first)["sequential"]
    assert crossing == {
        "at": crossing["at"],
        "users": 132,
        "controlSampleSize": control["sampleSize"],
        "controlConversions": control["conversions"],
        "sampleSize": treatment["sampleSize"],
        "conversions": treatment["conversions"],
        "pValue": test["adjustedPValue"],
        "controlMean": control["value"]["mean"],
        "difference": compared(first)["difference"],
    }
    assert crossing["pValue"] < 0.05 and crossing["difference"] > 0
    assert crossing_of(later) == crossing_of(again) == crossing
    assert compared(later)["difference"] < 0
    assert compared(later)["sequential"]["isSignificant"]
    assert compared(later)["sequential"]["adjustedPValue"] > 0.05
    assert "crossing" not in later["variants"][1]["comparison"]
    assert first["verdict"]["status"] == later["verdict"]["status"] == "variant_wins"
    assert later["verdict"]["variantId"] == "v2"
    sentence = later["verdict"]["sentence"]
    assert sentence.startswith("Detailed won on ") and " at 132 users (p " in sentence
    unit = "a user" if kind == "mean" else "an event"
    assert "withdraws that: today Detailed has a mean of " in sentence
    assert f" {unit} over " in sentence
    moments = [one["analysis"]["computedAt"] for one in (before, first)]
    then, now = (told(path, f"?asOf={moment}") for moment in moments)
    assert (crossing_of(then), crossing_of(now)) == (None, crossing)
    assert then["verdict"]["status"] == "keep_running"
    assert told(path, "?granularity=day")["verdict"] == later["verdict"]


@pytest.mark.parametrize(
    ("direction", "amounts", "winner"),
    [
        ("increase", HIGH, "v2"),
        ("increase", LOW, "v1"),
        ("decrease", LOW, "v2"),
        ("decrease", HIGH, "v1"),
    ],
)
def test_a_stored_look_at_a_mean_keeps_its_side(
    running,
    spend,
    told,
    direction,
    amounts,
    winner,
):
    path = running(metrics=[{**MEAN, "direction": direction}])
    spend(path, "a", 120, amounts)
    told(path)
    opposite = {"v1": amounts["v2"], "v2": amounts["v1"]}
    spend(path, "b", 120, opposite)

    found = told(path)

    assert compared(found)["sequential"]["adjustedPValue"] > 0.05
    assert found["verdict"]["variantId"] == winner
    status = "variant_wins" if winner == "v2" else "control_wins"
    assert found["verdict"]["status"] == status
    is_less_better = ", and less is better." in found["verdict"]["sentence"]
    assert is_less_better == (direction == "decrease")


def test_means_that_are_the_same_float_keep_their_side(running, spend, told):
    base, more = 10**12 - 1, Decimal("0.00002")  # neighbouring floats are 0.0001 apart
    path = running(metrics=[MEAN])
    spend(path, "a", 200, {"v1": base, "v2": base + more}, step="0.000001")

    first = told(path)

    assert len({one["value"]["mean"] for one in first["variants"]}) == 1
    assert crossing_of(first)["difference"] == 0.00002
    assert first["verdict"]["status"] == "variant_wins"
    spend(path, "b", 200, {"v1": base + more, "v2": base}, step="0.000001")
    later = told(path)
    assert compared(later)["difference"] == 0
    assert later["verdict"]["status"] == "variant_wins"


def test_only_a_look_at_the_primary_metric_that_decides_is_stored(
    api,
    running,
    spend,
    told,
):
    path = running(metrics=[MEAN, {"name": "visits", "kind": "mean"}])
    spend(path, "a", 26, {"v1": 10, "v2": 12.5})

    told(path, "?confidenceLevel=0.5")
    ends = compared(told(path, "?confidenceLevel=0.5"))["sequential"]
    assert ends["differenceInterval"]["lower"] > 0
    assert not ends["isSignificant"]
    assert Crossing.select().count() == 0
    spend(path, "b", 100, HIGH)
    rows = [
        {"userId": f"b-{place}", "metric": "visits", "value": 10 * (place % 2)}
        for place in range(100)
    ]
    api.post(f"{path}/conversions/batch", {"conversions": rows})
    other = compared(told(path, "?metric=visits"))
    assert other["sequential"]["isSignificant"] and "crossing" not in other
    now = told(path, "?metric=visits")["analysis"]["computedAt"]
    assert crossing_of(told(path, f"?asOf={now}")) is None
    assert Crossing.select().count() == 0
    assert crossing_of(told(path, "?confidenceLevel=0.9"))["users"] == 126


def test_a_broken_split_stores_no_look_at_a_mean(running, spend, told):
    path = running(metrics=[MEAN])
    spend(path, "a", 120, HIGH)
    with engine.database.obj.atomic():
        for table in ("participant_tally", "cohort"):
            engine.database.execute_sql(
                f"UPDATE {table} SET participants = participants + 200 "
                "WHERE variant = 'v1'"
            )

    found = told(path)

    assert found["verdict"]["status"] == "broken_split"
    assert compared(found)["sequential"]["isSignificant"]
    assert Crossing.select().count() == 0


def test_a_guardrail_holds_a_stored_win_back(api, running, spend, told):
    guardrail = {"name": "refund", "role": "guardrail", "direction": "decrease"}
    path = running(metrics=[MEAN, {**guardrail, "margin": 0.05}])
    spend(path, "a", 120, HIGH)
    api.post(f"{path}/conversions", {"userId": "a-1", "metric": "refund"})

    held = told(path)
    spend(path, "b", 120, LOW)
    later = told(path)

    crossing = crossing_of(held)
    assert crossing and crossing_of(later) == crossing
    assert compared(later)["sequential"]["adjustedPValue"] > 0.05
    for found in (held, later):
        assert (found["verdict"]["status"], found["verdict"]["variantId"]) == (
            "keep_running",
            None,
        )
        sentence = found["verdict"]["sentence"]
        assert sentence.startswith("Keep running: Detailed was shown to be better on ")
        assert (
            " at 120 users (p " in sentence and ", and today Detailed has " in sentence
        )
        assert "its guardrail 'refund'" in sentence
        assert sentence.endswith(" is not yet shown to be harmless.")
    rows = [{"userId": f"a-{n}", "metric": "refund"} for n in range(1, 120, 2)]
    api.post(f"{path}/conversions/batch", {"conversions": rows})
    harmed = told(path)
    assert harmed["verdict"]["status"] == "harm"
    assert crossing_of(harmed) == crossing


def test_the_csv_and_the_page_have_the_stored_look(api, running, spend, told):
    path = running(metrics=[MEAN])
    spend(path, "a", 120, HIGH)
    crossing = crossing_of(told(path))

    def rows():
        csv_of = {"Accept": "text/csv"}
        text = api.get(f"{path}/compute-results", headers=csv_of).text
        return list(csv.DictReader(io.StringIO(text)))

    for name, value in crossing.items():
        control, treatment = (
            one[f"value.comparison.crossing.{name}"] for one in rows()
        )
        assert (control, treatment) == ("", str(value))
    plain = {"Accept": "text/plain"}
    sentence = told(path)["verdict"]["sentence"]
    text = api.get(f"{path}/compute-results", headers=plain).text
    assert sentence in " ".join(text.split())
    page = " ".join(api.get(f"/ui/{path}").text.split())
    assert html.escape(sentence) in page


def test_a_look_at_a_mean_asks_the_database_once_more(running, spend, told):
    path = running(metrics=[MEAN, {"name": "other", "kind": "mean"}])
    spend(path, "a", 20, SAME)
    told(path)

    def number(query=""):
        with statements() as sent:
            told(path, query)
        return len([one for one in sent if one.startswith("SELECT")])

    assert number() <= number("?metric=other") + 1
    spend(path, "b", 120, HIGH)
    assert crossing_of(told(path))
    assert number() <= number("?metric=other") + 1


def test_a_look_says_both_figures_of_a_mean_or_none(running, spend, told):
    path = running(metrics=[MEAN])
    spend(path, "a", 120, HIGH)
    told(path)

    with pytest.raises(engine.peewee.IntegrityError):
        Crossing.update(difference=None).execute()
    row = Crossing.get()
    assert isinstance(row.difference, Decimal) and isinstance(row.control_mean, Decimal)


def test_an_erasure_moves_no_stored_look(api, running, spend, told):
    path = running(metrics=[{**MEAN, "cap": 12}])
    spend(path, "a", 120, HIGH)
    before = told(path)

    assert api.delete("users/a-7").status_code == 200

    assert crossing_of(told(path)) == crossing_of(before)
    assert list(proof.discrepancies()) == []


def test_users_whose_window_is_not_over_are_no_part_of_a_stored_look(
    running, spend, told
):
    path = running(metrics=[{**MEAN, "window": 1}])
    spend(path, "late", 40, HIGH)
    spend(path, "a", 120, HIGH, days=3)

    found = told(path)

    crossing = crossing_of(found)
    assert (crossing["users"], found["usersInWindow"]) == (160, 40)
    assert crossing["controlSampleSize"] + crossing["sampleSize"] == 120
    assert crossing_of(told(path)) == crossing
    assert list(proof.discrepancies()) == []


# ----------------------------------------------------------------------------
# Migration, and the proof
# ----------------------------------------------------------------------------


@pytest.mark.postgresql
def test_a_server_of_schema_7_keeps_its_stored_looks(running, load, told):
    path, at = running(), ago(0)
    lines = [f"u{n},v{n % 2 + 1},{at},{at if n % 2 else ''}," for n in range(120)]
    load(path, LINE, *lines)
    stored = told(path)["variants"][1]["comparison"]["crossing"]
    for statement in (
        "ALTER TABLE crossing DROP COLUMN control_mean, DROP COLUMN difference",
        "UPDATE identity SET schema_version = 7",
    ):
        engine.database.execute_sql(statement)

    assert schema._migrate()

    assert schema.alterations(TABLES) == []
    assert told(path)["variants"][1]["comparison"]["crossing"] == stored


@pytest.mark.sqlite
def test_a_database_of_schema_7_stores_its_mean_at_the_next_look(tmp_path):
    old = tmp_path / "old.db"
    of_schema(7, old)
    app, ask = serving(old)

    mean, rate, _ = ask("")
    rate, *means = (ask(f"/{one['id']}/compute-results") for one in (rate, mean, mean))

    crossing = rate["variants"][1]["comparison"]["crossing"]
    assert (crossing["users"], crossing["controlConversions"]) == (33, 0)
    assert "controlMean" not in crossing and "difference" not in crossing
    assert crossing_of(means[0])["users"] == 40
    assert crossing_of(means[0]) == crossing_of(means[1])
    assert means[0]["verdict"]["sentence"].startswith("B won on ")
    assert app.test_cli_runner().invoke(args=["check"]).exit_code == 0
    app.extensions["database"].close()


def test_a_stored_look_cannot_have_more_users_than_there_are(running, spend, told, app):
    path = running(metrics=[MEAN])
    spend(path, "a", 120, HIGH)
    told(path)
    assert list(proof.discrepancies()) == []

    Crossing.update(users=400, sample_size=300).execute()

    (sentence,) = proof.discrepancies()
    assert sentence.startswith("crossing ") and "300" in sentence
    assert app.test_cli_runner().invoke(args=["check"]).exit_code != 0
