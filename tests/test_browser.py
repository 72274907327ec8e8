"""The pages in a browser, as people use them: Chromium, driven by playwright."""

import shutil
from collections import Counter
from contextlib import contextmanager

import pytest
import service as real
from axe_playwright_python.sync_playwright import Axe
from conftest import leave_out
from playwright.sync_api import sync_playwright

pytestmark = pytest.mark.one_engine

CHROMIUM = shutil.which("chromium")
HOSTILE = [
    "<script>document.title = 'run'</script>",
    '"><img src=x onerror="document.title=\'run\'">',
    "{{ 7 * 7 }}'--",
    "safe\u202eevil",
]
WIDTHS = {"phone": 360, "tablet": 768, "desk": 1280}
SCHEMES = ("light", "dark")

MOVED = """() => new Promise(done => new PerformanceObserver(list => done(
    list.getEntries().reduce((sum, shift) => sum + shift.value, 0)
)).observe({type: "layout-shift", buffered: true}) || setTimeout(() => done(0), 100))"""
TRANSFERRED = """() => ["navigation", "resource"].flatMap(
    type => performance.getEntriesByType(type)
).reduce((sum, entry) => sum + entry.transferSize, 0)"""

USERS = [f"user-{number}" for number in range(2_000)]
# Of ten users of a variant in turn, so many convert: whoever is in which variant, 200
# users show a difference that may be chance, and 2,000 one that cannot.
CONVERTED_OF_TEN = {"Control": 1, "Detailed": 2}


@pytest.fixture(scope="module")
def chromium():
    if CHROMIUM is None:
        leave_out("Chromium is missing (Debian's package chromium)")
    with sync_playwright() as playwright:
        flags = {"executable_path": CHROMIUM, "args": ["--no-sandbox"]}
        browser = playwright.chromium.launch(**flags)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with real.served(tmp_path_factory.mktemp("browser") / "instance") as made:
        yield made


class Visitor:
    """A person before a browser; what the browser asks for and complains of is kept."""

    def __init__(self, context, service):
        self.service = service
        self.context, self.page = context, context.new_page()
        self.hosts, self.complaints = set(), []
        self.page.on("request", lambda sent: self.hosts.add(sent.url.split("/")[2]))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda said: self.complaints.append(said.text))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))

    def open(self, path):
        answer = self.page.goto(f"http://127.0.0.1:{self.service.port}{path}")
        assert answer.status == 200, (path, answer.status)

    def sign_in(self):
        self.open("/ui/")
        assert self.page.url.endswith("/ui/sign-in?next=/ui/")
        self.page.get_by_label("Paste a token").fill(self.service.token)
        self.page.get_by_role("button", name="Sign in").click()
        assert self.page.title() == "Experiments · Abacus"

    def move(self, move):
        """Follow the link of a move, and press the button of its page."""
        self.page.get_by_role("link", name=move, exact=True).click()
        assert "Nothing has happened yet." in self.page.inner_text("main")
        self.page.get_by_role("button", name=move, exact=True).click()

    @property
    def state(self):
        return self.page.locator("main .state").first.inner_text()

    @property
    def verdict(self):
        return self.page.locator(".verdict").inner_text()


@contextmanager
def visiting(chromium, service, **options):
    with chromium.new_context(**options) as context:
        visitor = Visitor(context, service)
        yield visitor
        assert visitor.hosts == {f"127.0.0.1:{service.port}"}
        assert visitor.complaints == []


def visit_the_shop(service, path, users):
    """Enrol users, and let them convert at the rate of their variant."""
    names = {one["id"]: one["name"] for one in service.data("GET", path)["variants"]}
    seen = Counter()
    for number in range(0, len(users), 500):
        body = {"users": [{"userId": one} for one in users[number : number + 500]]}
        conversions = []
        for one in service.data("POST", f"{path}/assignments/batch", body):
            name = names[one["variantId"]]
            if seen[name] % 10 < CONVERTED_OF_TEN[name]:
                conversions.append({"userId": one["userId"]})
            seen[name] += 1
        service.data("POST", f"{path}/conversions/batch", {"conversions": conversions})


def experiment_of(service, name, **fields):
    """Return the path of a draft with the two variants of the shop."""
    variants = [{"name": one, "splitPercentage": 50} for one in CONVERTED_OF_TEN]
    body = {"name": name, "variants": variants, **fields}
    return f"experiments/{service.data('POST', 'experiments', body)['id']}"


def test_a_person_takes_an_experiment_from_its_draft_to_the_archive(chromium, service):
    def told():
        visitor.page.reload()
        verdict = service.data("GET", f"{path}/compute-results")["verdict"]
        assert verdict["sentence"] in visitor.verdict
        return verdict["status"]

    with visiting(chromium, service) as visitor:
        visitor.sign_in()
        path = experiment_of(service, "Checkout in one page")
        visitor.page.reload()
        visitor.page.get_by_role("link", name="Checkout in one page").click()
        assert visitor.state == "draft"

        visitor.move("Start")
        assert visitor.state == service.data("GET", path)["status"] == "running"
        visit_the_shop(service, path, USERS[:200])
        assert told() == "keep_running"

        visit_the_shop(service, path, USERS[200:])
        assert service.data("GET", path)["_count"]["assignments"] == len(USERS)
        assert told() == "variant_wins"

        visitor.page.get_by_role("link", name="Complete", exact=True).click()
        visitor.page.get_by_label("Conclusion").select_option("won")
        visitor.page.get_by_label("Winner").select_option(label="Detailed")
        visitor.page.get_by_role("button", name="Complete").click()
        assert visitor.state == service.data("GET", path)["status"] == "completed"
        visitor.move("Archive")
        assert service.data("GET", path)["archived"] is True
        visitor.open("/ui/")
        assert visitor.page.get_by_text("Checkout in one page").count() == 0


@pytest.fixture(scope="module")
def shop(service):
    """Return the paths of the pages, with an experiment that has all that they show."""
    path = experiment_of(
        service,
        HOSTILE[0],
        description=HOSTILE[1],
        hypothesis=HOSTILE[3],
        plan={"baselineRate": 0.1, "minimumEffect": 0.05},
    )
    service.data("POST", f"{path}/start")
    visit_the_shop(service, path, USERS)
    return ["/ui/", f"/ui/{path}", f"/ui/{path}/stop", f"/ui/{path}/complete"]


def test_nothing_that_was_stored_runs_in_a_browser(chromium, service):
    variants = [{"name": name, "splitPercentage": 25} for name in HOSTILE]
    paths = []
    for name in HOSTILE:
        body = {"name": name, "description": name, "variants": variants}
        made = service.data("POST", "experiments", body)
        service.data("POST", f"experiments/{made['id']}/start")
        paths.append(f"/ui/experiments/{made['id']}")
    with visiting(chromium, service) as visitor:
        visitor.sign_in()
        for path, name in zip(paths, HOSTILE, strict=True):
            for page in (path, f"{path}/stop", f"{path}/complete"):
                visitor.open(page)
                assert visitor.page.title().endswith("· Abacus")
                assert visitor.page.locator("script, img").count() == 0
                if "\u202e" not in name:  # which is shown as its name
                    assert name in visitor.page.inner_text("h1")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_is_accessible_and_stands_still(
    chromium, service, shop, width, scheme, tmp_path
):
    looks = {"viewport": {"width": WIDTHS[width], "height": 800}}
    looks |= {"color_scheme": scheme, "bypass_csp": True}  # axe is a script
    with visiting(chromium, service, **looks) as visitor:
        visitor.sign_in()
        for number, path in enumerate(shop):
            visitor.open(path)
            visitor.page.screenshot(path=tmp_path / f"{number}.png", full_page=True)
            assert visitor.page.evaluate(MOVED) == 0
            assert visitor.page.evaluate(TRANSFERRED) < 30_000
            assert visitor.page.evaluate("document.body.scrollWidth") <= WIDTHS[width]
            found = Axe().run(visitor.page)
            assert found.response["passes"], path
            assert found.violations_count == 0, found.generate_report()
