"""The house keeps its own promises."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
# A module imports from the floors below its own, never from its own or above.
FLOORS = [
    {"assignment", "audience", "migrations", "stats", "tables"},
    {"engine", "paging"},
    {"models"},
    {"ledger"},
    {"reports"},
    {"erasure"},
    {"schemas", "auth"},
    {"figures"},
    {"importer", "backups"},
    {"cli"},
    {"metrics"},
    {"wire"},
    {"app"},
    {"wsgi"},
]


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


def imports_of(module):
    """Return the names that a module, or a package, imports anywhere in it."""
    files = [ROOT / f"{module}.py", *(ROOT / module).glob("*.py")]
    nodes = (
        node
        for file in files
        if file.exists()
        for node in ast.walk(ast.parse(file.read_text()))
    )
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]


def test_every_module_has_a_floor():
    modules = {path.stem for path in ROOT.glob("*.py")} - {"gunicorn.conf"}
    modules |= {path.parent.name for path in ROOT.glob("*/__init__.py")}

    assert modules == set().union(*FLOORS)


def test_imports_only_look_down():
    below = set()
    for floor in FLOORS:
        for module in floor:
            ours = set(imports_of(module)) & set().union(*FLOORS)
            assert ours - {module} <= below, f"{module} looks up to {ours - below}"
        below |= floor


def test_one_driver_opens_the_database():
    for module in set().union(*FLOORS):
        assert "sqlite3" not in set(imports_of(module)), module


def test_the_pure_floor_knows_no_framework():
    for module in FLOORS[0]:
        known = set(imports_of(module))
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
        if not rule.rule.startswith(("/api", "/docs"))
    }

    assert open_paths == {"/", "/healthz", "/readyz", "/metrics", "/openapi.json"}
