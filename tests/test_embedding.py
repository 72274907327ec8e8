"""The examples of the page on embedding run as they stand, with warnings as errors."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import service as real
from conftest import SECRET, Caller, two_variants
from flask_jwt_extended import create_access_token

pytestmark = pytest.mark.one_engine

PAGE = (real.ROOT / "docs" / "embedding.md").read_text()
EXAMPLES = dict(re.findall(r"<!-- ([^\n]*) -->\n```python\n(.*?)```", PAGE, re.DOTALL))


def test_every_example_in_python_has_a_test_here():
    assert len(EXAMPLES) == PAGE.count("```python") == 4
    assert set(EXAMPLES) == {"conftest.py", "test_shop.py", "in the process", "mounted"}


def passed(folder, **environment):
    """Run pytest on a folder as an application would, and return what it printed."""
    ours = {"PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_CURRENT_TEST"}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-W", "error", "-q", "-p", "no:cacheprovider"],
        cwd=folder,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_an_application_runs_abacus_as_a_server_for_its_tests(tmp_path):
    programs = Path(sys.executable).parent
    conftest = EXAMPLES["conftest.py"]
    assert conftest.count('Path("/opt/abacus")') == 1
    assert conftest.count('ABACUS / ".venv/bin/') == 2
    conftest = conftest.replace('ABACUS / ".venv/bin/', f'Path("{programs}") / "')
    conftest = conftest.replace("/opt/abacus", str(real.ROOT))
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "test_shop.py").write_text(EXAMPLES["test_shop.py"])

    assert "1 passed" in passed(tmp_path)


def test_an_application_tests_against_abacus_in_its_own_process(tmp_path):
    (tmp_path / "test_variants.py").write_text(EXAMPLES["in the process"])

    assert "1 passed" in passed(tmp_path, PYTHONPATH=str(real.ROOT))


def test_an_application_has_abacus_under_a_prefix(monkeypatch, database_url):
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("JWT_SECRET_KEY", SECRET)
    scope = {}
    exec(EXAMPLES["mounted"], scope)  # noqa: S102  (it is what the reader pastes)
    try:
        with scope["abacus"].app_context():
            token = create_access_token("tester")
        api = Caller(scope["shop"], token)

        made = api.post(
            "/abacus/api/experiments", {"name": "Home", "variants": two_variants()}
        )
        path = f"/abacus/api/experiments/{made.json['data']['id']}"
        assert api.post(f"{path}/start").status_code == 200
        assert api.post(f"{path}/assignments", {"userId": "u1"}).status_code == 201
        flags = "/abacus/ofrep/v1/evaluate/flags/home"
        flag = api.post(flags, {"context": {"targetingKey": "u1"}})

        assert flag.json["value"] in ("flow_a", "flow_b")
        assert api.get("/api/experiments").status_code == 404
    finally:
        scope["abacus"].extensions["database"].shut()
