"""Results as text."""

import csv
import io
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wcwidth import wcswidth

import figures
import stats
import tables

NAMES = st.text(min_size=1, max_size=200).filter(str.strip)


@st.composite
def analyses(draw):
    """Return the wire's computed result of two or three variants."""
    names = draw(st.lists(NAMES, min_size=2, max_size=3))
    arms = []
    for place, name in enumerate(names):
        size = draw(st.integers(0, 10_000_000))
        conversions = draw(st.integers(0, size))
        total = Decimal(draw(st.integers(-(10**12), 10**12))) * conversions
        value = stats.ValueSums(conversions, total, total * total)
        split = Decimal(100) / len(names)
        arms.append(stats.Arm(f"v{place}", name, split, size, conversions, value))
    return figures.camel(stats.analyse(arms))


@given(NAMES, analyses())
@settings(max_examples=40)
def test_a_computed_result_fits_a_terminal(name, result):
    text = tables.plain(tables.analysis(name, result))
    for line in text.splitlines():
        assert not tables.CONTROLS.search(line)
        # A word longer than a line is broken by characters, wide ones too.
        assert wcswidth(line) <= 80 or " " not in line.strip()


def counted(**row):
    whole = {
        "metric": "conversion",
        "primary": True,
        "conversions": 10_000_000,
        "events": 99_999_999,
        "value": {"count": 10_000_000, "sum": Decimal("-1e19"), "sumSquares": 1},
        "firstAt": "2025-02-01T00:00:00Z",
        "lastAt": "2025-02-01T00:00:00Z",
        **row,
    }
    return {
        "status": "running",
        "variants": [
            {
                "variantId": "v1",
                "variantName": "Control of a very long name",
                "splitPercentage": 100,
                "participants": 10_000_000,
                "results": [whole],
                "series": [
                    {
                        "date": "2025-02-01",
                        "participants": 10_000_000,
                        "results": [whole],
                    }
                ],
            }
        ],
        "quality": dict.fromkeys(
            ("received", "counted", "duplicates", "beforeEnrollment", "notEnrolled"), 1
        ),
    }


def test_the_largest_counts_fit_a_terminal():
    text = tables.plain(tables.counts("Onboarding", counted()))
    assert max(wcswidth(line) for line in text.splitlines()) <= 80
    assert "10,000,000" in text
    assert "100.0%  ██████████" in text


@pytest.mark.parametrize(
    "name",
    ["a|b", "<script>", "[x](http://x)", "`x`", "@team", "line\nbreak", "\x1b[2J"],
)
def test_no_name_is_markup_or_a_control_character(name):
    sheet = tables.counts(name, counted(metric=name))
    for text in (tables.plain(sheet), tables.markdown(sheet)):
        assert "\x1b" not in text
        assert "line\nbreak" not in text
    for line in tables.markdown(sheet).splitlines():
        bare = line.replace("\\\\", "")
        for sign in "<[`@":
            assert bare.count(sign) == bare.count(f"\\{sign}")
        if line.startswith("|"):
            assert bare.count("|") - bare.count("\\|") in (5, 7, 8)


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x", "\tx", "\rx"])
def test_a_spreadsheet_takes_no_name_for_a_formula(name):
    sheet = tables.counts("Onboarding", counted(metric=name))

    rows = list(csv.DictReader(io.StringIO(tables.comma_separated(sheet), newline="")))

    assert [row["metric"] for row in rows] == [f"'{name}"]


def test_every_figure_stands_in_the_csv_as_it_is():
    arms = [
        stats.Arm("v1", "Control", Decimal(50), 250, 45),
        stats.Arm("v2", "Detailed", Decimal(50), 250, 67),
    ]
    result = figures.camel(stats.analyse(arms))
    text = tables.comma_separated(tables.analysis("Onboarding", result))

    control, detailed = csv.DictReader(io.StringIO(text, newline=""))

    assert (control["conversions"], detailed["conversionRate"]) == ("45", "0.268")
    assert control["comparison.lift"] == ""
    told = result["variants"][1]["comparison"]["sequential"]
    assert detailed["comparison.sequential.pValue"] == str(told["pValue"])
    assert detailed["comparison.sequential.isSignificant"] == "false"
    assert "comparison" not in control
    assert text.endswith("\r\n")
