"""The pages in a browser, as people use them: Chromium, driven by playwright."""

import shutil
from collections import Counter
from contextlib import contextmanager

import pytest
import service as real
from axe_playwright_python.sync_playwright import Axe
from conftest import LINE, ago, leave_out
from playwright.sync_api import sync_playwright

pytestmark = pytest.mark.one_engine

CHROMIUM = shutil.which("chromium")
HOSTILE = [
    "<script>document.title = 'run'</script>",
    '"><img src=x onerror="document.title=\'run\'">',
    "{{ 7 * 7 }}'--",
    "safe\u202eevil",
]
LOOKS = [(360, "dark"), (768, "light"), (1280, "dark")]

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
        return " ".join(self.page.locator(".verdict").inner_text().split())


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
        assert service.data("GET", path)["archivedAt"]
        visitor.open("/ui/")
        assert visitor.page.get_by_text("Checkout in one page").count() == 0


@pytest.fixture(scope="module")
def paths(service):
    """Return a path for each route of a page, which shows all that it can show."""
    rules = {"field": "country", "operator": "in", "value": HOSTILE}
    audience = service.data(
        "POST", "audiences", {"name": HOSTILE[0], "ruleTree": rules}
    )
    path = experiment_of(
        service,
        HOSTILE[0],
        description=HOSTILE[1],
        hypothesis=HOSTILE[3],
        plan={"baselineRate": 0.1, "minimumEffect": 0.05},
        metrics=[
            {"name": "conversion", "role": "primary"},
            {"name": HOSTILE[2], "role": "guardrail", "margin": 0.02},
        ],
    )
    draft = experiment_of(service, HOSTILE[1], audienceId=audience["id"])
    service.data("POST", f"{path}/start")
    visit_the_shop(service, path, USERS)
    stopped = experiment_of(service, HOSTILE[2])
    for move in ("start", "stop"):
        service.data("POST", f"{stopped}/{move}")
    archived = experiment_of(service, HOSTILE[3])
    service.data("DELETE", archived)
    signing = ("token", "somebody", "--link", f"http://127.0.0.1:{service.port}")
    link = service.flask(*signing).stdout.strip()
    return {
        "/ui/": "/ui/?archived=true",
        "/ui/sign-in": "/ui/sign-in?next=/ui/",
        "/ui/sign-in/<link>": f"/ui/{link.partition('/ui/')[2]}",
        "/ui/planner": "/ui/planner?baselineRate=10&effect=2&usersPerDay=500",
        "/ui/audiences": "/ui/audiences",
        "/ui/audiences/<path:audience_id>": f"/ui/audiences/{audience['id']}",
        "/ui/experiments/<id>": f"/ui/{path}",
        "/ui/experiments/<id>/days": f"/ui/{path}/days",
        "/ui/experiments/<id>/start": f"/ui/{draft}/start",
        "/ui/experiments/<id>/stop": f"/ui/{path}/stop",
        "/ui/experiments/<id>/complete": f"/ui/{path}/complete",
        "/ui/experiments/<id>/resume": f"/ui/{stopped}/resume",
        "/ui/experiments/<id>/archive": f"/ui/{stopped}/archive",
        "/ui/experiments/<id>/unarchive": f"/ui/{archived}/unarchive",
    }


def test_each_page_is_looked_at(compiled, paths):
    routes = {
        rule.rule
        for rule in compiled.url_map.iter_rules()
        if rule.rule.startswith("/ui/") and "GET" in rule.methods
    }
    assert routes - paths.keys() == {
        "/ui/abacus.css",
        "/ui/abacus.svg",
        "/ui/shared/<link>",  # below
    }
    assert paths.keys() < routes


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_every_page_is_accessible_and_stands_still_and_runs_nothing(
    chromium, service, paths, width, scheme, tmp_path
):
    looks = {"viewport": {"width": width, "height": 800}}
    looks |= {"color_scheme": scheme, "bypass_csp": True}  # axe is a script
    with visiting(chromium, service, **looks) as visitor:
        visitor.sign_in()
        for number, path in enumerate(paths.values()):
            visitor.open(path)
            assert visitor.page.title().endswith(" · Abacus")  # which no script changed
            assert visitor.page.locator("script, img").count() == 0
            assert visitor.page.evaluate(MOVED) == 0
            assert visitor.page.evaluate(TRANSFERRED) < 30_000
            assert visitor.page.evaluate("document.body.scrollWidth") <= width
            visitor.page.screenshot(path=tmp_path / f"{number}.png", full_page=True)
            found = Axe().run(visitor.page)
            assert found.response["passes"], path
            assert found.violations_count == 0, found.generate_report()


def test_shared_results_are_seen_without_a_sign_in(chromium, service, paths):
    with visiting(chromium, service) as visitor:
        visitor.sign_in()
        visitor.open(paths["/ui/experiments/<id>"])
        verdict = visitor.verdict
        visitor.page.get_by_label("Share these results").fill("3")
        visitor.page.get_by_role("button", name="Make a link").click()
        link = visitor.page.locator("a[href*='/ui/shared/']").get_attribute("href")
    with visiting(chromium, service, bypass_csp=True) as visitor:
        visitor.open("/ui/" + link.partition("/ui/")[2])
        assert visitor.verdict == verdict
        assert visitor.page.locator("form, button, script, img").count() == 0
        assert Axe().run(visitor.page).violations_count == 0


def test_the_picture_of_the_front_page_is_taken(chromium, service, tmp_path, request):
    path = experiment_of(
        service,
        "Checkout in one page",
        hypothesis="One page loses fewer buyers than three.",
        plan={"baselineRate": 0.1, "minimumEffect": 0.04},
    )
    service.data("POST", f"{path}/start")
    lines, seen = [LINE], Counter()
    for number in range(2_800):  # 200 on each of 14 days
        name = list(CONVERTED_OF_TEN)[number % 2]
        is_converted = seen[name] % 10 < CONVERTED_OF_TEN[name]
        seen[name] += 1
        when = ago(14 - number // 200, -60 * (number % 200))
        lines.append(f"user-{number},{name},{when},{when if is_converted else ''},")
    file = tmp_path / "fortnight.csv"
    file.write_text("\n".join(lines) + "\n")
    service.flask("import", path.removeprefix("experiments/"), str(file))

    with visiting(
        chromium, service, viewport={"width": 1000, "height": 1250}
    ) as visitor:
        visitor.sign_in()
        visitor.open(f"/ui/{path}")
        taken = request.config.getoption("--picture") or tmp_path / "picture.png"
        visitor.page.screenshot(path=taken)
        assert "Detailed won on" in visitor.verdict
        assert visitor.page.locator("svg").count() == 4
    assert (real.ROOT / "docs" / "experiment.png").stat().st_size < 200_000
