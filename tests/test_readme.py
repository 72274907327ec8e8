"""The README promises nothing that is not so."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import service as real

import app as application
from models import STATUSES
from targeting import assignment
from web import errors

README = (real.ROOT / "README.md").read_text()


def test_every_curl_line_works_when_pasted_in_order(tmp_path):
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    with real.served(tmp_path / "instance") as service:
        script = "\n".join(blocks)
        script = script.replace("127.0.0.1:8000", f"127.0.0.1:{service.port}")
        script = script.replace(".venv/bin/flask", f"{real.sys.executable} -m flask")
        script = script.replace("/tmp/abacus.json", str(tmp_path / "abacus.json"))
        told = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=real.ROOT,
            env=real.environment(service.instance),
            capture_output=True,
            text=True,
            check=False,
        )
        routes = {
            (method, re.sub("<.*?>", "<>", rule.rule))
            for rule in application.create_app().url_map.iter_rules()
            if rule.rule.startswith("/api")
            for method in rule.methods - {"HEAD", "OPTIONS"}
        }
        lines = [one for one in service.log.read_text().splitlines() if "{" in one]
        asked = {
            (line["method"], re.sub("<.*?>", "<>", line["route"]))
            for line in map(json.loads, lines)
            if line.get("route", "").startswith("/api")
        }

    assert told.returncode == 0, told.stdout + told.stderr
    texts = script.count("Accept: text/") + script.count("/export?")
    assert told.stdout.count('{"data": ') == script.count("\nask ") - texts
    assert asked == routes, "an endpoint has no curl line"


def test_the_first_example_comes_back_as_it_was_sent(api):
    sent = json.loads(re.search(r"^ask \$API/experiments -d '(.*?)'", README, re.M)[1])

    made = api.post("experiments", sent).json["data"]
    read = api.get(f"experiments/{made['id']}").json["data"]

    assert read["variants"] == [
        {
            "id": "v1",
            "name": "Control",
            "splitPercentage": 50,
            "flowId": "flow_a",
            "config": None,
        },
        {
            "id": "v2",
            "name": "Detailed",
            "splitPercentage": 50,
            "flowId": "flow_b",
            "config": {"steps": 5},
        },
    ]
    for name in ("name", "description", "type"):
        assert made[name] == read[name] == sent[name]


VECTORS = re.findall(r"\| `(exp_\w+)` \| `(.+?)` \| (\d+) \|", README)


def test_the_manual_has_the_four_published_vectors():
    assert [int(bucket) for _, _, bucket in VECTORS] == [3520, 5983, 8203, 5809]


@pytest.mark.parametrize(("salt", "user_id", "bucket"), VECTORS)
def test_the_vectors_are_those_of_the_hash(salt, user_id, bucket):
    assert assignment.bucket(salt, user_id) == int(bucket)


def test_the_receipt_s_shell_line_prints_the_published_bucket():
    (line,) = re.findall(r"^    (printf %s .*)$", README, re.MULTILINE)
    told = subprocess.run(["sh", "-c", line], capture_output=True, check=True)

    assert int(told.stdout) == int(VECTORS[0][2])


def test_every_setting_that_is_read_is_in_the_table_and_no_other():
    table = README.partition("| setting (environment)")[2].partition("\n\n")[0]
    first = [line.split("|")[1] for line in table.splitlines()[2:]]
    written = {name for cell in first for name in re.findall(r"`(\w+)`", cell)}
    sources = [(real.ROOT / name).read_text() for name in ("app.py", "web/auth.py")]
    read = {name for text in sources for name in re.findall(r'setting\("(\w+)"', text)}

    assert written == read


def test_every_code_and_every_state_is_in_the_manual():
    for word in (*errors.CODES.values(), *STATUSES):
        assert word in README or word == "INTERNAL_ERROR", word


def test_the_lines_for_embedding_work():
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    scope = {}

    exec(code, scope)  # noqa: S102  (it is what the reader pastes)

    assert scope["client"].get("/readyz").status_code == 200


def test_the_example_of_an_import_loads_and_loads_once(tmp_path):
    example = re.search(r"```csv\n(.*?)```", README, re.DOTALL).group(1)
    file = tmp_path / "example.csv"
    file.write_text(example)
    with real.served(tmp_path / "instance") as service:
        path = service.running(primaryMetric="purchase")
        id = path.partition("/")[2]

        first, second = (
            real.flask(service.instance, "import", id, str(file)).stdout
            for _ in range(2)
        )

        assert first == "3 lines: 2 users enrolled, 2 conversions.\n"
        assert second == "3 lines: 0 users enrolled, 0 conversions.\n"
        control, detailed = service.data("GET", f"{path}/results")["variants"]
        assert (control["participants"], control["results"]) == (1, [])
        assert detailed["participants"] == 1
        assert detailed["results"][0]["value"]["sum"] == 24.99
        assert detailed["results"][0]["conversions"] == 1
        assert real.flask(service.instance, "check").returncode == 0


def test_nothing_in_the_repository_names_where_it_was_made():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=real.ROOT, capture_output=True, text=True, check=False
    )
    for name in listed.stdout.splitlines():
        path = Path(real.ROOT / name)
        if path.suffix != ".gz" and path.name != "test_readme.py":
            assert "/work/" not in path.read_text(), name
