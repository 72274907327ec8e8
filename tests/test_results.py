"""Results: what was counted, and the rates."""

import pytest

import stats


@pytest.mark.parametrize(
    ("conversions", "sample_size", "low", "high"),
    [
        # Newcombe (1998), Table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_matches_newcombe(conversions, sample_size, low, high):
    rate = stats.conversion_rate(conversions, sample_size)

    assert rate.low == pytest.approx(low, abs=5e-5)
    assert rate.high == pytest.approx(high, abs=5e-5)


@pytest.mark.parametrize(("conversions", "sample_size"), [(2, 1), (-1, 3)])
def test_impossible_counts_are_refused(conversions, sample_size):
    with pytest.raises(ValueError, match="impossible"):
        stats.conversion_rate(conversions, sample_size)


def test_the_bounds_are_exact_where_none_or_all_convert():
    assert stats.conversion_rate(0, 250).low == 0
    assert stats.conversion_rate(250, 250).high == 1


def test_a_draft_answers_with_zeros(api, draft):
    path = draft()

    raw = api.get(f"{path}/results").json["data"]
    computed = api.post(f"{path}/compute-results").json["data"]

    assert raw["experimentId"] == path.removeprefix("experiments/")
    assert (raw["status"], raw["startDate"], raw["endDate"]) == ("draft", None, None)
    assert [one["participants"] for one in raw["variants"]] == [0, 0]
    assert [one["results"] for one in raw["variants"]] == [[], []]
    assert set(raw["quality"].values()) == {0}
    for variant in computed["variants"]:
        assert variant["conversionRate"] == 0
        interval = variant["confidenceInterval"]
        assert (interval["lower"], interval["upper"]) == (0, 1)


def test_the_seeds_figures_come_out_of_the_seeds_traffic(api, running):
    """250 and 250 participants, 45 and 67 conversions, 0.18 and 0.268."""
    path = running()
    wanted = {"v1": 45, "v2": 67}
    arms = {"v1": [], "v2": []}
    users = [{"userId": f"u{number}"} for number in range(700)]
    answers = []
    while min(map(len, arms.values())) < 250:
        body = {"users": users[len(answers) : len(answers) + 1]}
        answers += api.post(f"{path}/assignments/batch", body).json["data"]
        arms[answers[-1]["variantId"]].append(answers[-1]["userId"])
    rows = [
        {"userId": user_id}
        for variant, number in wanted.items()
        for user_id in arms[variant][:number]
    ]
    sent = api.post(f"{path}/conversions/batch", {"conversions": rows})
    assert {one["status"] for one in sent.json["data"]} == {"accepted"}

    computed = api.post(f"{path}/compute-results", {}).json["data"]

    assert computed["metric"] == "conversion"
    for variant in computed["variants"]:
        size = len(arms[variant["variantId"]])
        number = wanted[variant["variantId"]]
        assert (variant["sampleSize"], variant["conversions"]) == (size, number)
        assert variant["conversionRate"] == number / size
        interval = variant["confidenceInterval"]
        assert interval["lower"] < variant["conversionRate"] < interval["upper"]
        assert (interval["level"], interval["method"]) == (0.95, "wilson")
