"""The house keeps its own promises."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
# A module imports from the floors below its own, never from its own or above.
FLOORS = [
    {"assignment", "stats"},
    {"models"},
    {"ledger"},
    {"schemas", "auth"},
    {"importer"},
    {"cli"},
    {"app"},
    {"wsgi"},
]


def imports_of(path):
    """Return the names that a module imports, wherever the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]


def test_every_module_has_a_floor():
    modules = {path.stem for path in ROOT.glob("*.py")} - {"gunicorn.conf"}

    assert modules == set().union(*FLOORS)


def test_imports_only_look_down():
    below = set()
    for floor in FLOORS:
        for module in floor:
            ours = set(imports_of(ROOT / f"{module}.py")) & set().union(*FLOORS)
            assert ours <= below, f"{module} looks up to {ours - below}"
        below |= floor


def test_one_driver_opens_the_database():
    for path in ROOT.glob("*.py"):
        assert "sqlite3" not in set(imports_of(path)), path


def test_the_pure_floor_knows_no_framework():
    for module in FLOORS[0]:
        known = set(imports_of(ROOT / f"{module}.py"))
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

    assert open_paths == {"/", "/healthz", "/readyz", "/openapi.json"}
