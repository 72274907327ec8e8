"""Results as text."""

import csv
import io
from datetime import datetime, timezone
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wcwidth import wcswidth

import stats
from views import figures, tables

pytestmark = pytest.mark.one_engine

NAMES = st.text(min_size=1, max_size=200).filter(str.strip)


@st.composite
def analyses(draw):
    """Return the computed result of two or three variants."""
    names = draw(st.lists(NAMES, min_size=2, max_size=3))
    arms = []
    for place, name in enumerate(names):
        size = draw(st.integers(0, 10_000_000))
        conversions = draw(st.integers(0, size))
        total = Decimal(draw(st.integers(-(10**12), 10**12))) * conversions
        value = stats.ValueSums(conversions, total, total * total)
        split = Decimal(100) / len(names)
        arms.append(stats.Arm(f"v{place}", name, split, size, conversions, value))
    return figures.Computed("exp_1", stats.analyse(arms))


@given(NAMES, analyses())
@settings(max_examples=40)
def test_a_computed_result_fits_a_terminal(name, result):
    text = tables.plain(tables.analysis(name, result))
    for line in text.splitlines():
        assert not tables.CONTROLS.search(line)
        # A word longer than a line is broken by characters, wide ones too.
        assert wcswidth(line) <= 80 or " " not in line.strip()


def counted(metric="conversion"):
    """Return raw counts as large as they get, of one variant on one day."""
    name, most = "Control of a very long name", 10_000_000
    events = 99_999_999
    value = figures.Value(most, Decimal("-1e19"), Decimal(1))
    moment = datetime(2025, 2, 1, tzinfo=timezone.utc)
    row = figures.VariantsMetric(metric, most, events, value, True, moment, moment)
    gained = figures.DaysMetric(metric, most, events, value)
    day = figures.Day(moment.date(), most, [gained])
    variant = figures.VariantsCounts("v1", name, Decimal(100), most, [row], [day])
    quality = figures.Quality(1, 1, 1, 1, 1)
    return figures.Results(
        "exp_1", "Onboarding", "running", None, None, [variant], quality
    )


def test_the_largest_counts_fit_a_terminal():
    text = tables.plain(tables.counts("Onboarding", counted()))
    assert max(wcswidth(line) for line in text.splitlines()) <= 80
    assert "10,000,000" in text
    assert "100.0%  ██████████" in text


def test_a_bar_is_full_for_the_highest_rate_and_the_others_are_to_its_scale():
    result = counted()
    (variant,) = result.variants
    (row,) = variant.results
    variants = [
        variant._replace(
            variant_name=f"V{converted}",
            participants=10_000,
            results=[row._replace(conversions=converted)],
            series=None,
        )
        for converted in (40, 20, 0)
    ]

    text = tables.plain(tables.counts("Onboarding", result._replace(variants=variants)))

    bars = [line.split()[-1] for line in text.splitlines() if "%" in line]
    assert bars == ["██████████", "█████·····", "··········"]


def test_an_interval_without_ends_is_one_dash():
    text = analysed(("Control", 0, 0), ("B", 0, 0))

    assert lines_of(text, "B ")[1].split()[:4] == ["B", "-", "-", "1.000"]


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
    result = figures.Computed("exp_1", stats.analyse(arms))
    text = tables.comma_separated(tables.analysis("Onboarding", result))

    control, detailed = csv.DictReader(io.StringIO(text, newline=""))

    assert (control["conversions"], detailed["conversionRate"]) == ("45", "0.268")
    assert control["comparison.lift"] == ""
    sequential = result.analysis.variants[1].comparison.sequential
    assert detailed["comparison.sequential.pValue"] == str(sequential.p_value)
    assert detailed["comparison.sequential.isSignificant"] == "false"
    assert "comparison" not in control
    assert text.endswith("\r\n")


# ----------------------------------------------------------------------------
# Digits
# ----------------------------------------------------------------------------


def analysed(*arms, **options):
    """Return the lines of the plain text of a result, split into its words."""
    arms = [
        stats.Arm(f"v{place}", name, Decimal(50), *figures_of)
        for place, (name, *figures_of) in enumerate(arms, 1)
    ]
    result = figures.Computed("exp_1", stats.analyse(arms, **options))
    return tables.plain(tables.analysis("Onboarding", result)).splitlines()


def lines_of(text, name):
    return [line for line in text if line.startswith(name) and "  " in line]


def test_a_difference_near_100_percent_is_seen():
    text = analysed(("Control", 50_119, 50_095), ("B", 49_881, 49_880))

    assert "99.9521%  99.9288% to 99.9678%" in lines_of(text, "Control ")[0]
    assert "99.9980%  99.9886% to 99.9996%" in lines_of(text, "B ")[0]
    assert "+0.046%  +0.015% to +0.091%" in lines_of(text, "B ")[1]


def test_a_difference_near_0_percent_is_seen_as_well():
    text = analysed(("Control", 50_119, 24), ("B", 49_881, 1))

    assert "0.0479%  0.0322% to 0.0712%" in lines_of(text, "Control ")[0]
    assert "0.0020%  0.0004% to 0.0114%" in lines_of(text, "B ")[0]


def test_one_of_many_is_not_shown_as_none():
    text = analysed(("Control", 29_870, 1), ("B", 29_870, 2_987))

    assert "0.0033%   0.0006% to 0.0190%" in lines_of(text, "Control ")[0]
    assert "10.0000%" in lines_of(text, "B ")[0]


def test_usual_rates_have_one_decimal_all_the_way_down():
    text = analysed(("Control", 1_000, 90), ("B", 1_000, 120))

    assert "  9.0%   7.4% to 10.9%" in lines_of(text, "Control ")[0]
    assert " 12.0%  10.1% to 14.2%" in lines_of(text, "B ")[0]


def test_no_difference_has_no_sign():
    text = analysed(("Control", 100_000, 50_000), ("B", 100_000, 50_000))

    assert lines_of(text, "B ")[1].split()[1] == "0.0%"
    assert not any("-0.0%" in line or "+0.0%" in line for line in text)


@pytest.mark.parametrize(
    ("total", "decimals", "shown"),
    [
        (-0.0, 1, "0.0"),
        (-0.04, 1, "0.0"),
        (-0.06, 1, "-0.1"),
        (-0.0, 0, "0"),
        (Decimal("-1994015.46"), 2, "-1,994,015.46"),
    ],
)
def test_what_rounds_to_0_has_no_sign(total, decimals, shown):
    assert tables._fixed(total, decimals) == shown


def counts_of(*sums):
    result = counted()
    (variant,) = result.variants
    (row,) = variant.results
    variants = [
        variant._replace(
            variant_name=f"V{place}",
            results=[row._replace(value=figures.Value(1, Decimal(total), Decimal(1)))],
            series=None,
        )
        for place, total in enumerate(sums)
    ]
    result = result._replace(variants=variants)
    text = tables.plain(tables.counts("Onboarding", result)).splitlines()
    last = [line for line in text if line.startswith("V")][-len(sums) :]
    return [line.split()[-1] for line in last]


@pytest.mark.parametrize(
    ("sums", "shown"),
    [
        (["1994015.46", "12"], ["1,994,015.46", "12.00"]),
        (["1994015", "12"], ["1,994,015", "12"]),
        (["1E+12", "-3"], ["1,000,000,000,000", "-3"]),
        (["0.0042", "0.5"], ["0.0042", "0.5000"]),
        (["19.99", "19.991"], ["19.9900", "19.9910"]),
        (["-0.0000000001", "1.5"], ["0.00", "1.50"]),
    ],
)
def test_sums_have_all_their_digits_in_a_uniform_column(sums, shown):
    assert counts_of(*sums) == shown


def test_a_large_mean_has_no_exponent():
    def values(count, total):
        return stats.ValueSums(count, Decimal(total), Decimal(total) ** 2 / count)

    text = analysed(
        ("Control", 10, 2, values(2, "123456789")),
        ("B", 10, 2, values(2, "123456781")),
    )

    assert lines_of(text, "Control ")[1].split()[1] == "12,345,678.90"
    assert lines_of(text, "B ")[2].split()[1] == "12,345,678.10"


def test_digits_may_take_the_room_of_a_drawing_but_fit_the_terminal():
    text = analysed(("Control of long", 10**7, 1), ("B of a long name", 10**7, 10**7))

    assert "0.000010%" in lines_of(text, "Control")[0]
    assert max(map(wcswidth, text)) <= 80


# ----------------------------------------------------------------------------
# Letters that are not seen, and formulas
# ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\u061cb", "a?b"),
        ("a\u200bb", "ab"),
        ("a\u2060\ufeffb", "ab"),
        ("\u200b", "?"),
        ("a\u00adb", "ab"),
        ("Za" + "\u0336" * 40, "Za\u0336\u0336"),
        ("\u0301a", "a"),
        ("Cafe\u0301", "Caf\u00e9"),
        ("Vie\u0323\u0302t", "Vi\u1ec7t"),
        ("\u2764\ufe0f", "\u2764"),
    ],
)
def test_a_letter_that_takes_no_room_shifts_no_column(name, shown):
    text = tables.plain(tables.counts(name, counted(metric=name)))

    lines = text.splitlines()
    (rule,) = lines[lines.index("running") + 3 :][:1]
    (row,) = (line for line in lines if "100.0%" in line)
    assert lines[0] == shown
    assert wcswidth(row) == wcswidth(rule)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\uff1d1+1", "'\uff1d1+1"),
        ("\uff0b1", "'\uff0b1"),
        ("\uff0d1", "'\uff0d1"),
        ("\uff20x", "'\uff20x"),
        ("x;=1+1", "x;'=1+1"),
        ("x;\uff1d1", "x;'\uff1d1"),
        ("a;b", "a;b"),
        ("1-2", "1-2"),
    ],
)
def test_no_formula_hides_behind_a_separator_or_a_wide_sign(name, shown):
    sheet = tables.counts("Onboarding", counted(metric=name))

    rows = list(csv.DictReader(io.StringIO(tables.comma_separated(sheet), newline="")))

    assert [row["metric"] for row in rows] == [shown]


@pytest.mark.parametrize(
    ("plan", "target"),
    [
        ({"baselineRate": 0.1, "minimumEffect": 0.02}, "0.12"),
        ({"baselineRate": 0.1, "relativeEffect": 0.2}, "0.12"),
        ({"baselineRate": 0.7, "minimumEffect": 0.1}, "0.8"),
    ],
)
def test_a_rate_that_is_planned_in_decimals_comes_back_in_decimals(api, plan, target):
    answer = api.post("sample-size", plan)

    assert f'"targetRate": {target},' in answer.text
