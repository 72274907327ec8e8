"""The days on the page of an experiment: pictures, tables, and what they cost."""

import gzip
import re
from datetime import date
from itertools import pairwise

import pytest
from conftest import LINE, Caller, ago, statements
from test_course import PLAN, lines
from test_pages import HOSTILE, TURNED, read

from views import charts

LONGEST = 30_000  # bytes of a page


def reads(sent, table):
    """Return how many of the statements read a table."""
    named = re.compile(rf'(?i)(?:from|join)\s+"{table}"')
    return sum(bool(named.search(one)) for one in sent)


def test_the_days_are_drawn_and_in_a_table_as_the_api_has_them(
    api, running, load, told
):
    path = running(plan=PLAN)
    load(path, LINE, *lines(5, 40, {"v1": 0.3, "v2": 0.5}))

    page = read(api.get(f"/ui/{path}"))

    days = told(path, "?granularity=day")["days"]
    for day in days:
        control, variant = day["variants"]
        place = page.cells.index(day["date"])
        row = page.cells[place + 1 : place + 6]
        assert row[0] == str(control["sampleSize"])
        assert row[1] == f"{100 * control['estimate']:.{len(row[1]) - 5}f} %"
        assert row[2] == str(variant["sampleSize"])
        ends = [variant["differenceInterval"][end] for end in ("lower", "upper")]
        shown = [float(end) for end in row[4].split(" to ")]
        assert shown == pytest.approx([100 * end for end in ends], abs=0.006)
        users = page.cells.index(day["date"], place + 1)
        total = control["sampleSize"] + variant["sampleSize"]
        assert page.cells[users + 1 : users + 3] == ["40", str(total)]
    drawn = [one for tag, one in page.tags if tag == "polyline"]
    assert [one["class"] for one in drawn] == ["control", "variant", "plan", "users"]
    assert {len(one["points"].split()) for one in drawn} == {5}
    (band,) = (one for tag, one in page.tags if tag == "polygon")
    assert len(band["points"].split()) == 10


def test_a_higher_rate_is_higher_in_the_picture(api, running, load):
    path = running()
    load(path, LINE, *lines(5, 40, {"v1": 0.2, "v2": 0.9}))

    page = read(api.get(f"/ui/{path}"))

    control, variant = (
        [float(point.split(",")[1]) for point in one["points"].split()]
        for tag, one in page.tags
        if tag == "polyline" and one["class"] in ("control", "variant")
    )
    # An SVG counts from the top.
    assert all(mine < other for mine, other in zip(variant, control, strict=True))
    assert "The band has left the control's line out since" in page.text


@pytest.mark.sqlite  # whose statements can be read whole
def test_the_days_of_many_users_are_counted_only_on_request(api, running, load, told):
    path = running()
    load(path, LINE, *(f"u{n},v{1 + n % 2},{ago(n % 3)},," for n in range(5_001)))
    body = {"userId": "u1"}
    assert api.post(f"{path}/conversions", body).status_code == 201
    api.get(f"/ui/{path}")

    with statements() as sent:
        page = read(api.get(f"/ui/{path}"))
    with statements() as asked:
        told(path)

    # Tallies alone, and each once.
    assert reads(sent, "assignment") == reads(sent, "conversion") == 0
    assert reads(sent, "tally") == reads(sent, "refusal_tally") == 1
    assert len(sent) == len(asked) + 4, sent  # and the history
    link = {"href": f"/ui/{path}/days"}
    assert ("a", link) in page.tags and "Day by day" in page.text
    days = read(api.get(link["href"]))
    assert days.text.count("5,001") > page.text.count("5,001")
    assert ("a", link) not in days.tags


def test_the_days_of_a_long_experiment_are_counted_only_on_request(api, running, load):
    path = running()
    rows = [f"u{day},v{1 + day % 2},{ago(day)},{ago(day)}," for day in range(51)]
    load(path, LINE, *rows)

    assert read(api.get(f"/ui/{path}")).number_of("polyline") == 0
    page = read(api.get(f"/ui/{path}/days"))
    assert page.number_of("polyline") == 3
    # A row for each of the last 14 days, and before them one for each seventh.
    found = [one for one in page.cells if re.fullmatch(r"20..-..-..", one)]
    shown = map(date.fromisoformat, found)
    gaps = [(new - old).days for new, old in pairwise(shown)]
    assert gaps[:18] == [1] * 13 + [7] * 5


def test_a_page_of_90_days_and_5_metrics_is_small(api, running, load):
    others = [{"name": name, "role": "secondary"} for name in ("a", "b", "c", "d")]
    path = running(metrics=others, hypothesis="More of them buy.")
    rows = list(lines(90, 12, {"v1": 0.3, "v2": 0.4}))
    for name in ("a", "b", "c", "d"):
        header = f"{LINE},idempotency_key"
        mine = lines(90, 12, {"v1": 0.3, "v2": 0.4}, name)
        load(path, header, *(f"{one},{name}{n}" for n, one in enumerate(mine)))
    load(path, LINE, *rows)

    pages = [api.get(f"/ui/{path}"), api.get(f"/ui/{path}/days")]

    for page in pages:
        print(f"{len(page.data)} bytes, {len(gzip.compress(page.data))} with gzip")
        assert len(page.data) < LONGEST
    assert read(pages[1]).number_of("polyline") == 3
    assert read(pages[1]).cells.count("d") == 3  # two counts, and a difference


def test_a_day_with_a_broken_split_is_a_warning_and_in_the_section_of_users(
    api, running, load
):
    path = running()
    rows = [f"u{n},v{1 + n % 2},{ago(1)},," for n in range(600)]
    rows += [f"x{n},v1,{ago(2)},," for n in range(60)]
    rows += [f"y{n},v2,{ago(3)},," for n in range(60)]
    load(path, LINE, *rows)
    assert api.post(f"{path}/conversions", {"userId": "u1"}).status_code == 201

    page = read(api.get(f"/ui/{path}"))

    assert "did not fall as the split says" in page.text
    assert "All users together are split as planned" in page.text
    assert "but a day is not" in page.text


@pytest.mark.one_engine
def test_each_variant_has_its_picture_and_no_name_is_markup(api, running, load):
    names = ["Control", HOSTILE, TURNED, "D", "E", "F"]
    shares = [20, 16, 16, 16, 16, 16]
    variants = [
        {"name": name, "splitPercentage": share}
        for name, share in zip(names, shares, strict=True)
    ]
    path = running(variants=variants)
    rows = [f"u{n},v{1 + n % 6},{ago(n % 2)},{ago(0)}," for n in range(60)]
    load(path, LINE, *rows)

    response = api.get(f"/ui/{path}")
    page = read(response)

    assert "<script" not in response.text and "<img" not in response.text
    assert "\u202e" not in response.text
    assert page.number_of("figure") == 5
    assert "The API has the days of the 1 other variants." in page.text


@pytest.mark.one_engine
def test_days_are_costly_work_and_a_refusal_is_a_page(app, token, running, enrolled):
    path = running()
    enrolled(path, *(f"user-{number}" for number in range(600)))
    export = Caller(app, token("a")).get(f"{path}/export?format=csv")

    refused = Caller(app, token("a")).get(f"/ui/{path}/days")

    page = read(refused, 429)
    assert "Too many requests" in page.text
    assert refused.headers["Retry-After"] == "5"
    export.close()


@pytest.mark.one_engine
def test_a_mean_without_values_on_a_day_has_a_gap_and_a_word(api, running, load):
    metrics = [{"name": "order", "role": "primary", "kind": "ratio"}]
    path = running(metrics=metrics)
    rows = [f"u{n},v{1 + n % 2},{ago(3)},,order," for n in range(20)]
    rows += [f"w{n},v{1 + n % 2},{ago(1)},{ago(1)},order,{n}" for n in range(20)]
    load(path, f"{LINE},value", *rows)

    page = read(api.get(f"/ui/{path}"))

    assert "not known" in page.text
    line = next(one for tag, one in page.tags if one.get("class") == "variant")
    assert len(line["points"].split()) < 3


@pytest.mark.parametrize(
    ("numbers", "ticks"),
    [
        ([0.1, 0.3], [0.1, 0.15, 0.2, 0.25, 0.3]),
        ([0, 2455], [0, 1000, 2000, 3000]),
        ([-0.7, 11.3], [-5, 0, 5, 10, 15]),
        ([5, 5], [2, 4, 6, 8]),
        ([0.0], [0, 0.5, 1]),
        ([5e-324, 5e-324], [0, 0.5, 1]),
        ([0, 1e-320, -1e-13], [0, 0.5, 1]),
        ([0.3, 0.1 + 0.2], [0.1, 0.2, 0.3, 0.4, 0.5]),
        ([-1e12, -1e12], [-1.5e12, -1e12, -5e11]),
    ],
)
def test_the_numbers_of_a_scale_are_round_and_around_all(numbers, ticks):
    scale = charts.Scale(numbers)

    assert scale.ticks == pytest.approx(ticks)
    assert scale.place(ticks[0]) == charts.BOTTOM
    assert scale.place(ticks[-1]) == charts.TOP
