"""The export of an experiment."""

import csv
import io
import json
import os

from conftest import PERSON, assert_error
from test_history import exported


def exported_csv(api, path):
    response = api.get(f"{path}/export")
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert response.headers["Content-Disposition"].startswith("attachment; ")
    return list(csv.DictReader(io.StringIO(response.text, newline="")))


def test_the_rows_of_an_export_are_what_was_counted(api, traffic):
    for path in traffic:
        rows = exported(api, path)
        for variant in api.get(f"{path}/results").json["data"]["variants"]:
            mine = [row for row in rows if row["variant"] == variant["variantId"]]
            users = {row["user_id"] for row in mine}
            assert len(users) == variant["participants"]
            for one in variant["results"]:
                its = [row for row in mine if row["metric"] == one["metric"]]
                assert len(its) == one["events"]
                converted = {row["user_id"] for row in its}
                assert len(converted) == one["conversions"]


def test_both_forms_say_the_same(api, traffic):
    rows, lines = exported(api, traffic[1]), exported_csv(api, traffic[1])

    told = [
        {name: "" if value is None else str(value) for name, value in row.items()}
        for row in rows
    ]
    assert lines == told


def test_an_export_imports_into_another_experiment_with_the_same_results(
    api, app, running, traffic, tmp_path
):
    path = traffic[1]
    # Lines without a key are keyed by their content; each has a moment of its own.
    for number in range(30):
        body = {"userId": PERSON, "idempotencyKey": f"key-{number}", "value": number}
        assert api.post(f"{path}/conversions", body).status_code == 201
    other = running(primaryMetric="order")
    file = tmp_path / "export.ndjson"
    keyed = [
        row
        for row in exported(api, path)
        if row["idempotency_key"] or not row["metric"]
    ]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in keyed))

    command = ["import", other.removeprefix("experiments/"), str(file)]
    ran = app.test_cli_runner().invoke(args=command)

    assert ran.exit_code == 0, ran.output
    by_line = json.dumps
    assert sorted(exported(api, other), key=by_line) == sorted(keyed, key=by_line)


def test_no_cell_of_a_csv_is_a_formula(api, running, enrolled):
    path = running()
    hostile = ["=1+1", "+1", "-1", "@cmd", "\tx", "a,b", 'a"b', "a\nb"]
    enrolled(path, *hostile)

    rows = exported_csv(api, path)

    told = {row["user_id"] for row in rows}
    assert told == {f"'{one}" if one[0] in "=+-@\t" else one for one in hostile}


def test_an_export_of_nobody_is_a_header(api, draft):
    path = draft()
    assert exported(api, path) == exported_csv(api, path) == []
    assert api.get(f"{path}/export").text.count("\n") == 1


def test_an_export_in_no_form_of_ours_is_refused(api, draft):
    response = api.get(f"{draft()}/export?format=xlsx")
    assert_error(response, 400, "VALIDATION_ERROR")


def test_an_export_is_of_one_moment_whatever_is_written_meanwhile(
    api, running, enrolled
):
    path = running()
    users = [f"user-{number}" for number in range(3_000)]
    enrolled(path, *users)
    counted = {"conversions": [{"userId": one} for one in users[:2_500]]}
    assert api.post(f"{path}/conversions/batch", counted).status_code == 200
    before = exported(api, path)
    stream = api.client.get(
        f"/api/{path}/export?format=ndjson", headers=api.headers, buffered=False
    )
    lines = iter(stream.response)
    first = next(lines)

    enrolled(path, "late")
    late = {"conversions": [{"userId": one} for one in [*users, "late"]]}
    assert api.post(f"{path}/conversions/batch", late).status_code == 200

    whole = b"".join([first, *lines]).decode()
    assert [json.loads(line) for line in whole.splitlines()] == before
    assert len(exported(api, path)) == 2_500 + 3_001


def resident():
    """Return the memory that this process holds, in MiB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_an_export_takes_the_memory_of_a_page(api, running, enrolled):
    path = running()
    for some in range(3):
        enrolled(path, *(f"{some}-{number:0>200}" for number in range(10_000)))
    stream = api.client.get(f"/api/{path}/export", headers=api.headers, buffered=False)
    pages = iter(stream.response)
    size, before, most = len(next(pages)), resident(), 0.0
    for page in pages:
        size += len(page)
        most = max(most, resident() - before)

    assert size > 30_000 * 200
    assert most < 4  # the whole is 6 MiB as text, and many times that as rows
