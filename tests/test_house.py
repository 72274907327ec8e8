"""The house keeps its own promises."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A module imports from the floors below its own, never from its own or above.
FLOORS = [
    {"reference", "stats", "storage", "targeting"},
    {"models"},
    {"lifecycle", "listing"},
    {"ledger", "web"},
    {"schemas"},
    {"operations", "views"},
    {"looks"},
    {"cli", "ofrep", "pages", "shortcut"},
    {"app"},
    {"wsgi"},
]
# The modules of a package stand on floors of the same kind.
PACKAGES = {
    "models": [
        {"errors"},
        {"experiments"},
        {"bookings", "history"},
        {"audiences"},
    ],
    "reference": [{"examples", "subjects", "words"}],
    "storage": [
        {"columns", "files", "migrations", "scratch", "traffic"},
        {"engine"},
        {"catalog", "paging", "shape", "table", "turns"},
        {"pool", "schema", "sqlite"},
        {"postgres"},
        {"factory"},
    ],
    "schemas": [{"experiments"}, {"audiences", "events", "plans", "results", "users"}],
    "targeting": [
        {"assignment", "orders"},
        {"audience"},
        {"contradictions", "decision", "hashes"},
    ],
    "ledger": [
        {"sums"},
        {"enrolment"},
        {"tallies"},
        {"conversions"},
        {"counts", "single"},
        {"erasure", "proof", "rows", "standing"},
        {"published"},
    ],
    "web": [
        {"completion", "csv", "json", "keys", "settings", "worker"},
        {"links", "metrics"},
        {"auth", "fields", "logging"},
        {"flags", "html", "slots"},
        {"errors"},
        {"blueprint"},
        {"openapi"},
    ],
    "views": [
        {"answers", "arms", "definitions", "flags"},
        {"course"},
        {"figures"},
        {"export", "planning", "tables"},
        {"charts", "pictures", "planner"},
        {"days"},
        {"screens"},
        {"audiences", "moves"},
    ],
    "operations": [
        {"backups", "problems", "reader"},
        {"staging"},
        {"importer"},
        {"copier"},
    ],
    "stats": [
        {"multiplicity", "numerics", "results", "wording"},
        {"contrasts", "posterior", "rates", "samples", "splits"},
        {"evidence"},
        {"horizon"},
        {"means", "simulation"},
        {"planning"},
        {"course", "scorecard", "values"},
        {"provenance", "verdict"},
        {"analysis"},
    ],
}


def test_the_floors_are_those_that_a_newcomer_reads():
    table = (ROOT / "CONTRIBUTING.md").read_text().partition("| floor |")[2]
    rows = [line.split("|") for line in table.splitlines()[2:] if line.startswith("|")]
    read = {
        int(row[1]): set(re.findall(r"`([\w.]+)`", row[2]))
        for row in rows
        if row[1].strip().isdigit()
    }
    for floor, modules in enumerate(FLOORS):
        assert read.pop(floor) - {"gunicorn.conf"} == modules
    assert not read


def files_of(module):
    """Return the files of a module, or of a package."""
    files = [ROOT / f"{module}.py", *(ROOT / module).glob("*.py")]
    return [file for file in files if file.exists()]


def imports_of(file):
    """Yield the dotted names that a file imports anywhere, but for its types' sake."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def heads_of(module):
    """Return the first word of everything that a module, or a package, imports."""
    names = (name for file in files_of(module) for name in imports_of(file))
    return {name.partition(".")[0] for name in names}


def test_every_module_has_a_floor():
    modules = {path.stem for path in ROOT.glob("*.py")} - {"gunicorn.conf"}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}

    assert modules | packages == set().union(*FLOORS)
    assert packages == set(PACKAGES)
    for package, floors in PACKAGES.items():
        there = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__"}
        assert there == set().union(*floors), package


def test_imports_only_look_down():
    below = set()
    for floor in FLOORS:
        for module in floor:
            ours = heads_of(module) & set().union(*FLOORS)
            assert ours - {module} <= below, f"{module} looks up to {ours - below}"
        below |= floor


@pytest.mark.parametrize("package", PACKAGES)
def test_inside_a_package_imports_only_look_down_too(package):
    below = set()
    for floor in PACKAGES[package]:
        for module in floor:
            found = imports_of(ROOT / package / f"{module}.py")
            ours = {
                name.split(".")[1] for name in found if name.startswith(f"{package}.")
            }
            assert ours <= below, f"{module} looks up to {ours - below}"
        below |= floor


CLIENTS = sorted((ROOT / "clients").rglob("*.py"))


def test_a_client_shares_no_code_with_the_service():
    assert len(CLIENTS) >= 8
    for file in CLIENTS:
        heads = {name.partition(".")[0] for name in imports_of(file)}
        assert not heads & set().union(*FLOORS), file


def test_no_file_has_over_700_lines_and_no_function_over_40():
    sources = [file for module in set().union(*FLOORS) for file in files_of(module)]
    sources += CLIENTS
    lengths = {file: file.read_text().count("\n") for file in sources}
    functions = {
        f"{file}:{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for file in sources
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef)
    }

    assert len(lengths) > 60 and len(functions) > 600
    assert {file: lines for file, lines in lengths.items() if lines > 700} == {}
    assert {name: lines for name, lines in functions.items() if lines > 40} == {}


def test_one_driver_opens_the_database():
    for module in set().union(*FLOORS):
        assert "sqlite3" not in heads_of(module), module


def test_no_engine_is_named_above_the_storage():
    above = set().union(*FLOORS) - {"storage"}
    engines = {f"storage.{name}" for name in ("sqlite", "shape", "postgres", "catalog")}
    files = [file for module in above for file in files_of(module)]
    for file in [*files, ROOT / "gunicorn.conf.py"]:
        modules = set(imports_of(file))
        assert not modules & engines, file
        assert not re.findall(r"SQLITE_|(?i:pragma)|ATTACH", file.read_text()), file


def test_the_pure_floor_knows_no_framework():
    for module in ("stats", "targeting"):
        known = heads_of(module)
        assert not known & {"flask", "peewee", "marshmallow", "datetime", "random"}


def test_no_endpoint_answers_without_a_token(app, anonymous):
    for rule in app.url_map.iter_rules():
        if not rule.rule.startswith(("/api", "/ofrep")):
            continue
        for method in rule.methods - {"HEAD", "OPTIONS"}:
            path = rule.rule.replace("<id>", "exp_1").replace("<path:user_id>", "u1")
            response = anonymous(method, path)
            assert response.status_code == 401, (method, rule)


def test_what_needs_no_token_is_listed(app):
    open_paths = {
        rule.rule
        for rule in app.url_map.iter_rules()
        if not rule.rule.startswith(("/api", "/ofrep", "/docs", "/ui"))
    }

    assert open_paths == {"/", "/healthz", "/readyz", "/metrics", "/openapi.json"}


def test_every_page_but_these_leads_to_the_sign_in(app, anonymous):
    open_paths = {"/ui/sign-in", "/ui/sign-out", "/ui/abacus.css", "/ui/abacus.svg"}
    open_paths |= {"/ui/sign-in/<link>", "/ui/shared/<link>"}
    pages = {
        (method, rule.rule)
        for rule in app.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
        if rule.rule.startswith("/ui")
    }
    paths = {path for _, path in pages}

    assert open_paths < paths and len(paths) == 20
    for method, path in pages:
        if path in open_paths:
            continue
        response = anonymous(method, re.sub("<.*>", "exp_1", path))
        assert response.status_code == 303, (method, path)
        assert response.headers["Location"].startswith("/ui/sign-in?next="), path
