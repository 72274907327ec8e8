"""What an export writes, an import reads back."""

import gzip
import json
from datetime import datetime, timedelta
from decimal import Decimal
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import models
from ledger import proof

FORMATS = ("csv", "ndjson")
# What a spreadsheet, a CSV reader or a JSON reader may take for something else.
IDS = [
    *("+491700000000", "=1+1", "-1", "@cmd", "\tx", "\rx", "'", "'=1", "''a", "a'b"),
    *("NA", "N/A", "0012", "1e5", "true", "a,b", 'a"b', '"', "a\nb", "\nb", "a\rb"),
    *("a\r\nb", " x", "x ", "\ufeffx", "a\u2028b", "Zoë", "用户42", ";", "import:x"),
    *(
        "import:0123456789012345678901234567890123456789",
        "user_id",
        "a\x1fb",
        "x" * 255,
    ),
]
VALUES = [
    *("0", "-0.0", "0.1", "0.2", "1.50", "-7", "1e12", "-1e12", "1E+2", "1e-340"),
    *("0." + "3" * 340, "123456789.000000001", "5e-324", "10", "1.0"),
]


@pytest.fixture
def load(app, tmp_path):
    """Return a way to import a text into an experiment; it answers click's result."""

    def load(path, text, name="export.csv", compressed=False):
        file = tmp_path / (f"{name}.gz" if compressed else name)
        whole = text.encode()
        file.write_bytes(gzip.compress(whole) if compressed else whole)
        command = ["import", path.removeprefix("experiments/"), str(file)]
        return app.test_cli_runner().invoke(args=command)

    return load


def exported(api, path, form):
    response = api.get(f"{path}/export?format={form}")
    assert response.status_code == 200
    return response.text


def figures(api, path):
    """Return what was counted, digit for digit."""
    text = api.get(f"{path}/results").text
    variants = json.loads(text, parse_float=Decimal)["data"]["variants"]
    return [(one["variantId"], one["participants"], one["results"]) for one in variants]


def stored():
    """Return every row of the database."""
    return {table: list(table.select().tuples()) for table in models.TABLES}


def convert(api, path, *events):
    """Book events, with each value as it is spelled."""
    rows = []
    for event in events:
        value = event.pop("value", None)
        given = "" if value is None else f', "value": {value}'
        rows.append(f"{json.dumps(event)[:-1]}{given}}}")
    response = api.post(
        f"{path}/conversions/batch",
        data=f'{{"conversions": [{", ".join(rows)}]}}'.encode(),
        headers={"Content-Type": "application/json"},
    )
    assert response.status_code == 200, response.text
    assert {one["status"] for one in response.json["data"]} <= {"accepted"}


def assert_round_trip(api, load, running, path, form, compressed=False):
    text = exported(api, path, form)
    name = f"export.{form}"
    before = stored()

    again = load(path, text, name, compressed)

    assert again.exit_code == 0, again.output
    assert again.output.endswith("lines: 0 users enrolled, 0 conversions.\n")
    assert stored() == before

    copy = running(primaryMetric="purchase")
    assert load(copy, text, name, compressed).exit_code == 0
    once = stored()
    assert load(copy, text, name, compressed).exit_code == 0

    assert stored() == once
    assert figures(api, copy) == figures(api, path)
    assert exported(api, copy, form) == text
    assert list(proof.discrepancies()) == []


@pytest.mark.parametrize("form", FORMATS)
def test_every_id_metric_and_key_comes_back_as_it_was(
    api, load, running, enrolled, form
):
    path = running(primaryMetric="purchase")
    enrolled(path, *IDS, "alone")
    convert(
        api,
        path,
        *({"userId": id, "metric": id, "idempotencyKey": id} for id in IDS),
    )

    assert_round_trip(api, load, running, path, form)
    rows = exported(api, path, "ndjson").split("\n")
    assert {json.loads(row)["user_id"] for row in rows if row} == {*IDS, "alone"}


@pytest.mark.parametrize("form", FORMATS)
def test_every_value_comes_back_to_the_digit(api, load, running, enrolled, form):
    path = running(primaryMetric="purchase")
    enrolled(path, "u1", "u2")
    for user in ("u1", "u2"):
        convert(api, path, *({"userId": user, "value": one} for one in VALUES))

    assert_round_trip(api, load, running, path, form, compressed=True)


@pytest.mark.parametrize("form", FORMATS)
def test_equal_events_without_a_key_are_as_many_as_they_were(
    api, load, running, enrolled, form
):
    path = running(primaryMetric="purchase")
    (seat,) = enrolled(path, "u1")
    same = {"userId": "u1", "value": "5", "occurredAt": seat["assignedAt"]}
    convert(api, path, *({**same} for _ in range(3)), {**same, "idempotencyKey": "k"})
    once = exported(api, path, form)

    assert_round_trip(api, load, running, path, form)
    # A third copy, of a copy; and one more event that comes after the export.
    convert(api, path, {**same})
    assert load(path, once, f"export.{form}").output.endswith(" 0 conversions.\n")
    assert_round_trip(api, load, running, path, form)


def test_equal_lines_without_a_key_are_as_many_events(api, load, running, enrolled):
    path = running(primaryMetric="purchase")
    head = "user_id,variant,timestamp,converted_at,value\n"
    line = "u1,v1,2024-01-01T00:00:00Z,2024-01-02T00:00:00Z,5\n"
    spelled = "u1,Control,2024-01-01T00:00:00Z,2024-01-02T01:00:00+01:00,5.00\n"

    for lines, new in (
        (line, 1),
        (line + spelled, 1),
        (line * 2, 0),
        (line, 0),
        (line * 1_500 + spelled * 1_000, 2_498),  # in more chunks than one
        (line * 2_500, 0),
    ):
        told = load(path, head + lines).output
        assert told.endswith(f" users enrolled, {new} conversions.\n"), told

    ((_, users, (row,)), _) = figures(api, path)
    assert (users, row["events"], row["value"]["sum"]) == (1, 2_500, 12_500)


def test_equal_events_of_the_api_and_of_an_import_count_once(api, load, running):
    path = running(primaryMetric="purchase")
    head = "user_id,variant,timestamp,converted_at\n"
    line = "u1,v1,2024-01-01T00:00:00Z,2024-01-02T00:00:00Z\n"
    told = {"userId": "u1", "occurredAt": "2024-01-02T00:00:00Z"}
    assert load(path, head + line).exit_code == 0

    convert(api, path, told)

    assert load(path, head + line * 2).output.endswith(" 0 conversions.\n")
    assert load(path, head + line * 3).output.endswith(" 1 conversions.\n")
    assert load(path, head + line * 3).output.endswith(" 0 conversions.\n")
    assert figures(api, path)[0][2][0]["events"] == 3


@pytest.mark.parametrize("form", FORMATS)
def test_the_erased_come_back_as_their_tombstones(api, load, running, enrolled, form):
    path = running(primaryMetric="purchase")
    seats = enrolled(path, "u1", "u2", "u3")
    for seat in seats:
        one = {"userId": seat["userId"], "occurredAt": seat["assignedAt"]}
        keyed = {**one, "idempotencyKey": f"of-{seat['userId']}"}
        convert(api, path, {**one}, {**one}, keyed)
    copy = running(primaryMetric="purchase")
    assert load(copy, exported(api, path, form), f"export.{form}").exit_code == 0

    assert api.delete("users/u2").status_code == 200

    for one in (path, copy):
        assert "u2" not in exported(api, one, form)
        assert_round_trip(api, load, running, one, form)


def test_an_export_of_the_previous_version_can_be_imported(api, load, running):
    path = running(primaryMetric="purchase")
    head = "user_id,variant,timestamp,converted_at,metric,value,idempotency_key\n"
    line = "u1,v1,2024-01-01T00:00:00Z,2024-01-02T00:00:00Z,purchase,5,"
    # SHA-256 of ('u1', 'purchase', '2024-01-02T00:00:00+00:00', '5'), as Python has it.
    key = "import:37de65dbe2a101cd5673d77e82f3f3be516e0608"
    assert load(path, f"{head}{line}{key}\n{line}\n").output.endswith(
        " 2 conversions.\n"
    )

    again = load(path, f"{head}{line}\n{line}{key}\n")

    assert again.output.endswith(" 0 conversions.\n")
    assert exported(api, path, "csv").count("import:") == 0


TEXTS = st.one_of(
    st.sampled_from(IDS),
    st.text(
        st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"),
        min_size=1,
        max_size=5,
    ).filter(lambda text: text.strip() and text.strip().casefold() not in NOT_IDS),
)
NOT_IDS = {"undefined", "null", "none", "nan", "[object object]"}
EVENTS = st.fixed_dictionaries(
    {
        "user": st.integers(0, 4),
        "seconds": st.sampled_from([-9, -1, 0, 0, 0.000001, 100]),
    },
    optional={
        "metric": st.sampled_from(["purchase", "=sum", "'x"]),
        "value": st.sampled_from(VALUES),
        "idempotencyKey": TEXTS,
    },
)


@settings(max_examples=10, suppress_health_check=list(HealthCheck))
@given(
    users=st.lists(TEXTS, min_size=5, max_size=5, unique=True),
    events=st.lists(
        EVENTS,
        max_size=12,
        unique_by=lambda event: event.get("idempotencyKey", id(event)),
    ),
    erased=st.sets(st.integers(0, 4), max_size=2),
    form=st.sampled_from(FORMATS),
    compressed=st.booleans(),
)
def test_any_experiment_comes_back(
    api, load, running, enrolled, users, events, erased, form, compressed
):
    path = running(primaryMetric="purchase")
    since = {one["userId"]: one["assignedAt"] for one in enrolled(path, *users)}
    booked = []
    for event in events:
        event = dict(event)
        user = users[event.pop("user")]
        start = datetime.fromisoformat(since[user].replace("Z", "+00:00"))
        moment = start + timedelta(seconds=event.pop("seconds"))
        booked.append({**event, "userId": user, "occurredAt": moment.isoformat()})
    if booked:
        convert(api, path, *booked)
    for place in erased:
        assert api.delete(f"users/{quote(users[place], safe='')}").status_code == 200

    assert_round_trip(api, load, running, path, form, compressed)
