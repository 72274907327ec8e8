"""The example of a shop: its own book and the results of Abacus are the same."""

import subprocess
import sys
from collections import Counter
from contextlib import contextmanager

import pytest
import service as real
import visits

pytestmark = pytest.mark.one_engine


@contextmanager
def opened(service, folder):
    """Yield a shop that is open, with a token as a shop needs it."""
    token = service.flask("token", "shop", "--scope", "assign").stdout.strip()
    shop = visits.shop_of(service.url, token, folder)
    try:
        shop.start()
        yield shop
    finally:
        shop.stop()


def added(*books):
    """Return the sums of the books of several days."""
    return {
        kind: sum((Counter(book[kind]) for book in books), Counter())
        for kind in ("visitors", "buyers", "orders")
    }


def agrees(service, books, users):
    """Assert that the books and the results are equal; return the counts."""
    results = service.data("GET", "experiments/buy-button/results")
    abacus, own = visits.counted(results), added(*books)
    assert abacus == own
    assert set(own["visitors"]) == {"Buy", "Buy now"}
    # Whom the script lets visit, buy, and buy twice; a double click is one order.
    numbers = range(users)
    buyers = sum(number % 3 == 0 for number in numbers)
    twice = sum(number % 15 == 0 for number in numbers)
    totals = {kind: sum(counts.values()) for kind, counts in own.items()}
    assert totals == {"visitors": users, "buyers": buyers, "orders": buyers + twice}
    for variant in results["variants"]:
        (purchases,) = variant["results"]
        assert purchases["value"]["sum"] == 20 * own["orders"][variant["variantName"]]
    received = results["quality"]
    assert (received["notEnrolled"], received["beforeEnrollment"]) == (0, 0)
    for book in books:
        for lost in ("refused", "dropped"):
            assert book["counters"][f"enrolments_{lost}"] == 0
            assert book["counters"][f"events_{lost}"] == 0
    return totals


def begun(service):
    service.data("POST", "experiments", visits.EXPERIMENT)
    service.data("POST", "experiments/buy-button/start")


def test_a_shop_and_abacus_count_the_same_though_abacus_is_killed(service, tmp_path):
    begun(service)
    with opened(service, tmp_path) as shop:
        visits.visit(shop, range(10))
        service.kill()
        visits.visit(shop, range(10, 20))
        service.start()
        visits.visit(shop, range(20, 30))
        agrees(service, [visits.book_of(shop)], 30)


@pytest.mark.usefixtures("thorough")
def test_300_visitors_of_a_shop_are_counted_once_with_all_that_they_bought(
    service, tmp_path, figure
):
    begun(service)
    with opened(service, tmp_path) as shop:
        visits.visit(shop, range(60))
        service.stop()
        visits.visit(shop, range(60, 120))
        service.start()
        visits.visit(shop, range(120, 180))
        books = [visits.book_of(shop)]
    service.kill()
    with opened(service, tmp_path) as shop:  # with the definitions of the disk
        visits.visit(shop, range(180, 240))
        service.start()
        visits.visit(shop, range(240, 300))
        books.append(visits.book_of(shop))
    totals = agrees(service, books, 300)

    figure("a shop, with Abacus away twice", **totals, lost=0, doubled=0)


@pytest.mark.usefixtures("thorough")
def test_one_command_plays_the_shop_and_ends_by_itself():
    ended = subprocess.run(
        [sys.executable, "clients/python/examples/visits.py"],
        cwd=real.ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )

    assert "300 users have visited the shop." in ended.stdout
    assert "variant  users  converted" in ended.stdout
    assert ended.stderr == ""
