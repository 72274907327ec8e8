"""Metrics with settings: what they measure, and what a verdict makes of them."""

import csv
import io
import json
import random
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from conftest import LINE, ago, assert_error, paths, two_variants

import stats
from ledger import proof
from models import Assignment, Cohort, Conversion, Experiment, Sums

ROOT = Path(__file__).parent.parent

MEAN = {"name": "revenue", "role": "primary", "kind": "mean"}


@pytest.fixture
def convert(api):
    """Return a way to send events: for each metric, pairs of a user and a value."""

    def convert(path, **events):
        rows = [
            {"userId": user_id, "metric": metric, "value": value}
            for metric, some in events.items()
            for user_id, value in some
        ]
        for start in range(0, len(rows), 10_000):
            body = {"conversions": rows[start : start + 10_000]}
            response = api.post(f"{path}/conversions/batch", body)
            assert {one["status"] for one in response.json["data"]} == {"accepted"}

    return convert


def other(told, name):
    """Return the comparison of the second variant in a metric beside the primary."""
    (found,) = (one for one in told["metrics"] if one["metric"] == name)
    return found["variants"][1]["comparison"]


def split(api, path, number):
    """Enrol so many users; return the ids of those of each variant."""
    users = [{"userId": f"u{n}"} for n in range(number)]
    rows = api.post(f"{path}/assignments/batch", {"users": users}).json["data"]
    ids = ([], [])
    for row in rows:
        ids[row["variantId"] == "v2"].append(row["userId"])
    return ids


# ----------------------------------------------------------------------------
# The settings
# ----------------------------------------------------------------------------


def test_metrics_are_answered_with_all_their_settings_and_name_the_primary(api, draft):
    guardrail = {"name": "refund", "role": "guardrail", "direction": "decrease"}
    path = draft(metrics=[{**MEAN, "cap": 250.5}, {**guardrail, "margin": 0.01}])

    found = api.get(path).json["data"]

    usual = {"direction": "increase", "margin": None, "cap": None, "window": None}
    assert found["primaryMetric"] == "revenue"
    assert found["metrics"] == [
        {**usual, **MEAN, "cap": 250.5},
        {**usual, **guardrail, "kind": "conversion", "margin": 0.01},
    ]
    assert api.patch(path, {"metrics": found["metrics"]}).json["data"] == {
        **found,
        "updatedAt": api.get(path).json["data"]["updatedAt"],
    }


def test_the_settings_that_the_document_shows_are_accepted(api, draft):
    document = (ROOT / "docs/api.md").read_text()
    body = document.partition("<!-- body of PATCH /api/experiments/:id -->")[2]
    shown = json.loads(body.split("```")[1].removeprefix("json"))

    found = api.patch(draft(), shown).json["data"]

    assert len(shown["metrics"]) == 3
    for given, one in zip(shown["metrics"], found["metrics"], strict=True):
        assert one == {**one, **given}
    assert found["primaryMetric"] == "purchase"


def test_a_primary_metric_alone_means_what_it_always_did(api, draft):
    found = api.get(draft(primaryMetric="order")).json["data"]

    assert (found["primaryMetric"], found["metrics"]) == ("order", None)
    assert api.get(draft()).json["data"]["primaryMetric"] == "conversion"


def test_a_patch_may_change_the_metrics_of_a_draft_and_of_nothing_else(api, draft):
    path = draft(metrics=[MEAN])
    renamed = [{**MEAN, "name": "margin"}]

    changed = api.patch(path, {"metrics": renamed}).json["data"]
    assert (changed["primaryMetric"], len(changed["metrics"])) == ("margin", 1)
    entry = api.get(f"{path}/history").json["data"][0]
    assert entry["changes"]["metrics"]["to"][0]["name"] == "margin"
    assert entry["changes"]["primaryMetric"] == {"from": "revenue", "to": "margin"}

    api.post(f"{path}/start")
    before = api.get(path).json["data"]
    assert_error(api.patch(path, {"metrics": None}), 409, "INVALID_STATE")
    assert api.get(path).json["data"] == before
    twin = api.post(f"{path}/duplicate").json["data"]
    assert (twin["metrics"], twin["primaryMetric"]) == (before["metrics"], "margin")


REFUSED = [
    ({"metrics": [MEAN, {**MEAN, "name": "b"}]}, "metrics"),
    ({"metrics": [MEAN, {"name": "revenue"}]}, "metrics"),
    ({"metrics": [{"name": f"m{n}"} for n in range(21)]}, "metrics"),
    ({"metrics": [{}]}, "metrics.0.name"),
    ({"metrics": [{"name": "a", "role": "hero"}]}, "metrics.0.role"),
    ({"metrics": [{"name": "a", "direction": "up"}]}, "metrics.0.direction"),
    ({"metrics": [{"name": "a", "kind": "median"}]}, "metrics.0.kind"),
    ({"metrics": [{"name": "a", "margin": 0.1}]}, "metrics.0.margin"),
    ({"metrics": [{"name": "a", "cap": 5}]}, "metrics.0.cap"),
    ({"metrics": [{"name": "a", "kind": "mean", "cap": 0}]}, "metrics.0.cap"),
    ({"metrics": [{"name": "a", "window": 0}]}, "metrics.0.window"),
    ({"metrics": [{"name": "a", "window": 1.5}]}, "metrics.0.window"),
    ({"metrics": [{"name": "a", "window": 366}]}, "metrics.0.window"),
    (
        {"metrics": [{"name": "a", "role": "guardrail", "margin": 1}]},
        "metrics.0.margin",
    ),
    ({"metrics": [{"name": "conversion"}]}, "metrics.0.role"),
    ({"metrics": [MEAN], "primaryMetric": "order"}, "primaryMetric"),
    (
        {"metrics": [MEAN], "plan": {"baselineRate": 0.1, "minimumEffect": 0.02}},
        "plan",
    ),
    (
        {
            "metrics": [{"name": "a", "role": "primary", "direction": "decrease"}],
            "plan": {"baselineRate": 0.1, "minimumEffect": 0.1},
        },
        "plan.minimumEffect",
    ),
]


@pytest.mark.one_engine
@pytest.mark.parametrize(("body", "path"), REFUSED)
def test_settings_that_contradict_themselves_are_refused(api, draft, body, path):
    whole = {"name": "N", "variants": two_variants(), **body}

    created = assert_error(api.post("experiments", whole), 400, "VALIDATION_ERROR")
    assert path in paths(created)
    assert api.get("experiments").json["meta"]["total"] == 0

    there = draft()
    before = api.get(there).json["data"]
    changed = assert_error(api.patch(there, body), 400, "VALIDATION_ERROR")
    assert path in paths(changed)
    assert api.get(there).json["data"] == before


# ----------------------------------------------------------------------------
# Means
# ----------------------------------------------------------------------------


def drawn(number, seed=4):
    """Return covariates and values that are correlated with them."""
    draw = np.random.default_rng(seed)
    covariates = draw.gamma(2, 10, number).round(2)
    values = np.maximum(covariates + draw.normal(0, 8, number), 0).round(2)
    return covariates.tolist(), values.tolist()


@pytest.fixture
def measured(api, running, convert):
    """Return an experiment on revenue with 1,200 users, and their ids and numbers."""
    path = running(metrics=[{**MEAN, "cap": 40}, {"name": "basket", "kind": "ratio"}])
    covariates, values = drawn(1_200)
    users = [{"userId": f"u{n}", "covariate": one} for n, one in enumerate(covariates)]
    rows = api.post(f"{path}/assignments/batch", {"users": users}).json["data"]
    parts = [(f"u{n}", value) for n, value in enumerate(values)]
    # Two events each, so that a cap on events would be something else.
    halves = [(user, float(Decimal(str(value)) / 2)) for user, value in parts]
    thirds = [one for place, one in enumerate(halves) if place % 3 == 0]
    convert(path, revenue=halves, basket=halves)
    convert(path, revenue=halves, basket=thirds)
    second = np.array([row["variantId"] == "v2" for row in rows])
    return path, second, np.array(covariates), np.array(values)


def test_a_mean_is_of_capped_totals_without_what_the_covariate_explains(measured, told):
    path, second, x, y = measured
    y = np.minimum(y, 40)
    theta = np.cov(x, y)[0, 1] / np.var(x, ddof=1)
    adjusted = y - theta * (x - x.mean())
    a, b = adjusted[~second], adjusted[second]
    expected = scipy.stats.ttest_ind(b, a, equal_var=False)

    found = told(path)

    control, treatment = (one["value"] for one in found["variants"])
    compared = treatment["comparison"]
    assert found["analysis"]["kind"] == "mean"
    adjustment = found["analysis"]["adjustment"]
    assert adjustment["users"] == 1_200
    assert adjustment["theta"] == pytest.approx(theta, rel=1e-9)
    explained = np.corrcoef(x, y)[0, 1] ** 2
    assert adjustment["varianceExplained"] == pytest.approx(explained, rel=1e-9)
    assert control["mean"] == pytest.approx(a.mean(), rel=1e-9)
    assert treatment["mean"] == pytest.approx(b.mean(), rel=1e-9)
    assert compared["difference"] == pytest.approx(b.mean() - a.mean(), rel=1e-9)
    p_value = compared["fixedHorizon"]["pValue"]
    assert p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert treatment["sum"] == pytest.approx(y[second].sum(), abs=1e-9)


def test_a_ratio_is_the_value_of_an_event(measured, told):
    path, second, _, y = measured
    events = np.array([2 if place % 3 == 0 else 1 for place in range(len(y))])
    totals = y / 2 * events
    means = [totals[side].sum() / events[side].sum() for side in (~second, second)]

    found = told(path)

    (basket,) = found["metrics"]
    estimates = [one["estimate"] for one in basket["variants"]]
    assert estimates == pytest.approx(means, rel=1e-9)
    assert basket["exploratory"] is True
    assert other(found, "basket")["difference"] == pytest.approx(
        means[1] - means[0], rel=1e-9
    )
    alone = told(path, "?metric=basket")
    assert [one["value"]["mean"] for one in alone["variants"]] == estimates
    assert alone["analysis"]["kind"] == "ratio"


def test_every_sum_is_what_its_rows_say(measured, app, api, told):
    path, *_ = measured
    assert list(proof.discrepancies()) == []
    before = told(path)
    now = datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")
    replayed = told(path, f"?asOf={now}".replace("+", "%2B"))
    for name in ("variants", "metrics", "verdict"):
        assert replayed[name] == before[name]

    wrong = Cohort.update(covariate_sum=Decimal(1)).execute()
    assert wrong >= 2
    assert [one.partition(" ")[0] for one in proof.discrepancies()] == ["cohort"] * 2
    Sums.update(events=Sums.events + 1).where(Sums.metric == "basket").execute()
    found = [one.partition(" ")[0] for one in proof.discrepancies()]
    assert found == ["cohort"] * 2 + ["sums"] * 2
    output = app.test_cli_runner().invoke(args=["check"])
    assert output.exit_code != 0


def test_an_erasure_and_a_copy_of_the_rows_move_no_figure(
    measured, api, told, load, running
):
    path, *_ = measured
    before = told(path)

    assert api.delete("users/u7").status_code == 200

    assert told(path)["variants"] == before["variants"]
    assert told(path)["metrics"] == before["metrics"]
    header, *lines = api.get(f"{path}/export?format=csv").text.splitlines()
    assert header.endswith(",idempotency_key,covariate")
    settings = api.get(path).json["data"]["metrics"]
    copy = running(metrics=settings)
    load(copy, header, *lines)
    assert told(copy)["variants"] == before["variants"]
    assert told(copy)["metrics"] == before["metrics"]
    again = load(copy, header, *lines)
    assert "0 users enrolled, 0 conversions" in again
    assert told(copy)["variants"] == before["variants"]
    assert list(proof.discrepancies()) == []


def test_the_first_covariate_of_a_user_is_kept(api, running):
    path = running(metrics=[MEAN])

    for covariate in (3, 4):
        body = {"userId": "u1", "covariate": covariate}
        assert api.post(f"{path}/assignments", body).status_code in (200, 201)
    users = [{"userId": "u2", "covariate": 5}, {"userId": "u2", "covariate": 6}]
    api.post(f"{path}/assignments/batch", {"users": users})
    api.post(f"{path}/assignments", {"userId": "u3"})

    stored = {row.user_id: row.covariate for row in Assignment.select()}
    assert stored == {"u1": 3, "u2": 5, "u3": None}
    assert list(proof.discrepancies()) == []
    assert sum(row.covariates for row in Cohort.select()) == 2


def test_an_experiment_that_needs_no_covariate_keeps_none(api, running):
    path = running()

    api.post(f"{path}/assignments", {"userId": "u1", "covariate": 3})
    api.post(f"{path}/assignments/batch", {"users": [{"userId": "u2", "covariate": 3}]})

    assert [row.covariate for row in Assignment.select()] == [None, None]
    assert Cohort.select().count() == 0
    assert "covariate" not in api.get(f"{path}/export").text


@pytest.mark.parametrize("covariate", ["3", True, 1e13, [1]])
def test_a_covariate_is_a_number(api, running, covariate):
    path = running(metrics=[MEAN])

    error = api.post(f"{path}/assignments", {"userId": "u1", "covariate": covariate})

    assert paths(assert_error(error, 400, "VALIDATION_ERROR")) == {"covariate"}
    assert Assignment.select().count() == 0


# ----------------------------------------------------------------------------
# Windows
# ----------------------------------------------------------------------------


def test_only_events_inside_the_window_count_and_only_users_whose_window_is_over(
    running, load, told
):
    path = running(metrics=[{"name": "order", "role": "primary", "window": 7}])

    said = load(
        path,
        LINE,
        f"a1,v1,{ago(30)},{ago(24)},order",
        f"a2,v1,{ago(30)},{ago(22)},order",
        f"a3,v1,{ago(30)},,",
        f"b1,v2,{ago(30)},{ago(29)},order",
        f"b2,v2,{ago(30)},{ago(23, 5)},order",
        f"b3,v2,{ago(30)},{ago(23)},order",
        f"late,v2,{ago(2)},{ago(1)},order",
    )

    assert "2 conversions came after the window" in said
    found = told(path)
    counted = [(one["sampleSize"], one["conversions"]) for one in found["variants"]]
    assert counted == [(3, 1), (3, 2)]
    assert found["usersInWindow"] == 1
    assert (
        "1 more users are inside their window of 7 days"
        in (found["verdict"]["sentence"])
    )
    assert list(proof.discrepancies()) == []
    as_of = told(path, f"?asOf={ago(-1)}")
    assert as_of["variants"] == found["variants"]


def test_an_event_after_the_window_is_refused_in_the_open(api, running, told):
    path = running(metrics=[{"name": "order", "role": "primary", "window": 1}])
    api.post(f"{path}/assignments", {"userId": "u1"})
    enrolled_at = datetime.now(timezone.utc) - timedelta(days=2)
    Assignment.update(assigned_at=enrolled_at).execute()
    Cohort.update(day=Cohort.day - 2).execute()
    event = {"userId": "u1", "metric": "order"}

    single = assert_error(api.post(f"{path}/conversions", event), 409, "AFTER_WINDOW")
    batch = api.post(f"{path}/conversions/batch", {"conversions": [event]})
    (row,) = api.post("events", event).json["data"]

    assert "'order'" in single["message"]
    (first,) = batch.json["data"]
    assert (first["status"], first["reason"]) == ("rejected", "AFTER_WINDOW")
    assert (row["status"], row["reason"]) == ("rejected", "AFTER_WINDOW")
    assert Conversion.select().count() == 0
    quality = api.get(f"{path}/results").json["data"]["quality"]
    assert (quality["received"], quality["afterWindow"]) == (3, 3)
    other_metric = api.post(f"{path}/conversions", {**event, "metric": "visit"})
    assert other_metric.status_code == 201
    assert list(proof.discrepancies()) == []
    assert told(path)["verdict"]["status"] == "not_enough_data"


def test_users_who_are_all_inside_their_window_are_no_data_yet(
    api, running, enrolled, told
):
    path = running(metrics=[{"name": "order", "role": "primary", "window": 3}])
    enrolled(path, "u1", "u2", "u3")
    assert api.post(f"{path}/conversions", {"userId": "u1"}).status_code == 201

    found = told(path)

    assert found["usersInWindow"] == 3
    assert found["verdict"]["sentence"] == (
        "There is not enough data: a user counts when the window of 3 days is over, "
        "and 3 users are inside theirs."
    )


# ----------------------------------------------------------------------------
# Guardrails
# ----------------------------------------------------------------------------


@pytest.fixture
def guarded(api, running, convert):
    """Return a way to have an experiment with a winner, and so many refunds of 100."""

    def make(refunds, margin=0.1, users=800, **settings):
        guardrail = {"name": "refund", "role": "guardrail", "direction": "decrease"}
        path = running(metrics=[{**guardrail, "margin": margin, **settings}])
        control, treatment = split(api, path, users)
        for ids, won, refunded in zip(
            (control, treatment), (20, 45), refunds, strict=True
        ):
            events = {
                "conversion": [(one, None) for one in ids[: len(ids) * won // 100]],
                "refund": [(one, None) for one in ids[: len(ids) * refunded // 100]],
            }
            convert(path, **events)
        return path

    return make


def test_a_win_whose_guardrail_is_harmless_is_a_win(guarded, told):
    found = told(guarded(refunds=(20, 20), users=1_500))

    assert found["verdict"]["status"] == "variant_wins"
    assert other(found, "refund")["status"] == "harmless"
    ends = other(found, "refund")["differenceInterval"]
    assert ends["lower"] < 0 < ends["upper"] < 0.1


def test_a_guardrail_that_is_not_shown_harmless_holds_the_win_back(guarded, told):
    found = told(guarded(refunds=(20, 24)))

    assert found["variants"][1]["comparison"]["sequential"]["isSignificant"]
    assert other(found, "refund")["status"] == "not_shown"
    assert found["verdict"]["status"] == "keep_running"
    assert found["verdict"]["variantId"] is None
    assert "guardrail 'refund'" in found["verdict"]["sentence"]
    assert "not yet shown to be harmless" in found["verdict"]["sentence"]


def test_a_guardrail_that_is_worse_than_its_margin_is_harm(guarded, told):
    found = told(guarded(refunds=(10, 60)))

    assert other(found, "refund")["status"] == "harmed"
    assert found["verdict"]["status"] == "harm"
    assert found["verdict"]["variantId"] == "v2"
    assert found["verdict"]["sentence"].startswith("Detailed does harm: in the guardra")


def test_a_guardrail_that_is_better_by_far_is_harmless(guarded, told):
    found = told(guarded(refunds=(60, 10)))

    assert other(found, "refund")["status"] == "harmless"
    assert found["verdict"]["status"] == "variant_wins"


def test_a_guardrail_without_a_margin_holds_nothing_back_and_may_do_harm(guarded, told):
    equal = told(guarded(refunds=(20, 21), margin=None))
    worse = told(guarded(refunds=(10, 40), margin=None))

    assert other(equal, "refund")["status"] == "not_shown"
    assert equal["verdict"]["status"] == "variant_wins"
    assert worse["verdict"]["status"] == "harm"


def test_no_event_of_a_guardrail_proves_nothing(guarded, told):
    found = told(guarded(refunds=(0, 0), users=1_500))

    assert other(found, "refund")["status"] == "not_counted"
    assert found["verdict"]["status"] == "keep_running"
    assert "'refund' (nothing was counted)" in found["verdict"]["sentence"]
    warned = [one for one in found["warnings"] if one["code"] == "NO_EVENTS"]
    assert len(warned) == 1
    assert "'refund'" in warned[0]["message"]


def test_a_metric_without_events_is_told_beside_all_that_was_counted(
    api, running, convert, told
):
    path = running(metrics=[{"name": "refund", "role": "guardrail", "margin": 0.1}])
    control, treatment = split(api, path, 40)
    some = [(one, None) for one in control[:3] + treatment[:3]]
    convert(path, conversion=some, visit=some, signup=some)

    for query, name in (("?metric=sign-up", "sign-up"), ("", "refund")):
        (caution,) = (
            one for one in told(path, query)["warnings"] if one["code"] == "NO_EVENTS"
        )
        assert f"the metric '{name}'" in caution["message"]
        for counted in ("conversion", "visit", "signup"):
            assert f"'{counted}'" in caution["message"], query


def rows_of_csv(api, path):
    answer = api.get(f"{path}/compute-results", headers={"Accept": "text/csv"})
    lines = csv.reader(io.StringIO(answer.text, newline=""))
    header = next(lines)
    return header, [dict(zip(header, line, strict=True)) for line in lines]


def test_the_csv_has_the_guardrails_and_the_secondary_metrics_below_the_variants(
    api, running, convert, told
):
    guardrail = {"name": "=refund", "role": "guardrail", "direction": "decrease"}
    path = running(
        metrics=[{**guardrail, "margin": 0.1}, {"name": "spent", "kind": "mean"}]
    )
    control, treatment = split(api, path, 60)
    events = {
        "conversion": [(one, None) for one in control[:5] + treatment[:9]],
        "=refund": [(one, None) for one in control[:4] + treatment[:3]],
        "spent": [(one, 2.5) for one in control[:7] + treatment[:8]],
    }
    convert(path, **events)
    twin = running()
    convert(twin, conversion=[(split(api, twin, 60)[0][0], None)])

    header, rows = rows_of_csv(api, path)

    bare, variants = rows_of_csv(api, twin)
    assert (len(variants), header[: len(bare)]) == (2, bare)
    assert bare[-3:] == ["metric", "direction", "kind"]
    assert [(row["variantId"], row["metric"], row["role"]) for row in rows] == [
        *(("v1", "conversion", ""), ("v2", "conversion", "")),
        *(("v1", "'=refund", "guardrail"), ("v2", "'=refund", "guardrail")),
        *(("v1", "spent", "secondary"), ("v2", "spent", "secondary")),
    ]
    found = told(path)
    for row, variant in zip(rows, found["variants"], strict=False):
        assert row["conversionRate"] == str(variant["conversionRate"])
    for name, row in (("=refund", rows[3]), ("spent", rows[5])):
        one = other(found, name)
        ends = one["differenceInterval"]
        assert row["comparison.difference"] == str(one["difference"])
        assert row["comparison.differenceInterval.lower"] == str(ends["lower"] or "")
        assert row["comparison.pValue"] == str(one["pValue"])
        assert row["comparison.status"] == one["status"] == "not_shown"
    assert (rows[3]["margin"], rows[3]["conversions"]) == ("0.1", "3")
    assert (rows[5]["exploratory"], rows[5]["estimate"]) == (
        "true",
        str(found["metrics"][1]["variants"][1]["estimate"]),
    )


def test_a_guardrail_on_a_mean_has_a_margin_in_its_own_units(
    api, running, convert, told
):
    latency = {"name": "latency", "role": "guardrail", "direction": "decrease"}
    path = running(metrics=[{**latency, "kind": "mean", "margin": 20}])
    control, treatment = split(api, path, 600)
    draw = random.Random(2)

    def slow(ids, mean):
        return [(one, round(draw.gauss(mean, 15), 1)) for one in ids]

    convert(path, latency=slow(control, 200) + slow(treatment, 205))
    harmless = told(path)
    convert(path, latency=[(one, 40) for one in treatment])
    harmed = told(path)

    assert other(harmless, "latency")["status"] == "harmless"
    assert other(harmed, "latency")["status"] == "harmed"
    assert harmed["metrics"][0]["margin"] == 20


# ----------------------------------------------------------------------------
# Directions, and secondary metrics
# ----------------------------------------------------------------------------


def test_where_less_is_better_the_lower_rate_wins(api, running, convert, told):
    churn = {"name": "churn", "role": "primary", "direction": "decrease"}
    plan = {"baselineRate": 0.4, "minimumEffect": 0.1}
    path = running(metrics=[churn], plan=plan)
    control, treatment = split(api, path, 600)
    left = control[: len(control) // 2] + treatment[: len(treatment) // 5]

    convert(path, churn=[(one, None) for one in left])
    found = told(path)

    assert found["verdict"]["status"] == "variant_wins"
    assert found["verdict"]["sentence"].endswith(", and less is better.")
    assert found["variants"][1]["comparison"]["crossing"]
    assert found["analysis"]["direction"] == "decrease"
    assert found["analysis"]["plan"]["minimumEffect"] == 0.1
    fall = stats.Plan(0.4, -0.1)
    assert Experiment.get().horizon == stats.planned_horizon(fall, (50, 50))


def test_where_less_is_better_the_higher_rate_loses(api, running, convert, told):
    churn = {"name": "churn", "role": "primary", "direction": "decrease"}
    path = running(metrics=[churn])
    control, treatment = split(api, path, 600)

    convert(path, churn=[(one, None) for one in control[:50] + treatment[:200]])

    assert told(path)["verdict"]["status"] == "control_wins"


def test_secondary_metrics_are_corrected_together(api, running, convert, told):
    names = ["a", "b", "c"]
    path = running(metrics=[{"name": name} for name in names])
    control, treatment = split(api, path, 600)
    for name, more in zip(names, (20, 60, 160), strict=True):
        events = [(one, None) for one in control[:40] + treatment[: 40 + more]]
        convert(path, **{name: events})

    found = told(path)

    raw = [other(found, name)["pValue"] for name in names]
    adjusted = [other(found, name)["adjustedPValue"] for name in names]
    order = sorted(range(3), key=lambda place: raw[place])
    highest = 0.0  # Holm (1979): each times how many are left, never falling
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (3 - rank) * raw[place]))
        assert adjusted[place] == pytest.approx(highest)
    assert other(found, "c")["status"] == "better"
    assert {one["exploratory"] for one in found["metrics"]} == {True}
    assert found["verdict"]["status"] == "not_enough_data"  # nothing of the primary
    levels = [other(found, name)["differenceInterval"]["level"] for name in names]
    assert levels == pytest.approx([1 - 0.05 / 3] * 3)
