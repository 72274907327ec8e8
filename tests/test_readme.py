"""The documents promise nothing that is not so."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import documents
import jsonschema
import pytest
import service as real
from reuse import clear

import app as application
import cli
from targeting import assignment
from targeting.decision import STATUSES
from web import errors
from web import flags as flags_of_errors

pytestmark = pytest.mark.one_engine

README = (real.ROOT / "README.md").read_text()
API = (real.ROOT / "docs" / "api.md").read_text()
OPERATING = (real.ROOT / "docs" / "operating.md").read_text()


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """Yield the service beside which the documents are pasted, one after the other."""
    with real.served(tmp_path_factory.mktemp("readme") / "instance") as made:
        yield made


@pytest.fixture
def service(started):
    """Return a service with an empty database."""
    clear(f"sqlite:///{started.instance / 'abacus.db'}")
    return started


def adapted(script, service, folder):
    """Return a script of the documents with the places of this test in it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    python = sys.executable
    places = {
        "127.0.0.1:8000": f"127.0.0.1:{service.port}",
        "127.0.0.1:8123": f"127.0.0.1:{port}",
        ".venv/bin/flask": f"{python} -m flask",
        ".venv/bin/gunicorn": f"{python} -m gunicorn",
        ".venv/bin/python": python,
        "runuser -u abacus -- ": "",
        "/opt/abacus": str(real.ROOT),
        "/var/lib/abacus": str(service.instance),
        "/etc/abacus.env": f"{folder}/abacus.env",
        "/backups/": f"{folder}/",
        "/tmp/": f"{folder}/",
    }
    pattern = "|".join(map(re.escape, places))
    return re.sub(pattern, lambda found: places[found[0]], script)


def pasted(name, service, folder):
    """Paste the commands of a document into a shell, block by block in their order.

    Return the script and what it printed. Each block leaves a line when it is over.
    """
    over = folder / "over"
    blocks = (f"\n{block.text}echo >> $OVER\n" for block in documents.pasted(name))
    written = "".join(blocks)
    script = adapted(written, service, folder)
    # A document that names the instance itself must not find it by chance.
    instance = folder / "none" if "INSTANCE=/var" in written else service.instance
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=real.ROOT,
        env={**real.environment(instance), "OVER": str(over)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = (real.ROOT / name).read_text().count("```sh\n")
    left_out = sum(one.times for one in documents.LEFT_OUT if one.document == name)
    assert over.read_text().count("\n") == found - left_out
    return script, ended.stdout


def test_every_curl_line_works_when_pasted_in_order(tmp_path):
    with real.served(tmp_path / "instance") as service:
        script, printed = pasted("docs/api.md", service, tmp_path)
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

    texts = script.count("Accept: text/") + script.count("/export?")
    assert printed.count('{"data": ') == script.count("\nask ") - texts
    assert asked == routes, "an endpoint has no curl line"


def test_the_walk_of_the_front_page_works_when_pasted_in_order(service, tmp_path):
    script, printed = pasted("README.md", service, tmp_path)
    counts = service.data("GET", "experiments/onboarding/results")

    assert printed.count('{"data": ') == script.count("\nask ") - 1
    assert "There is not enough data" in printed or "Keep running" in printed
    assert sum(variant["participants"] for variant in counts["variants"]) == 3
    assert counts["quality"]["counted"] == 1


OWN = {"README.md", "docs/api.md", "docs/openfeature.md", "docs/operating.md"}
"""The documents whose commands have a test of their own here."""


OTHERS = [
    name for name in documents.SHELL if documents.pasted(name) and name not in OWN
]


@pytest.mark.parametrize("name", OTHERS)
def test_every_command_of_a_document_works_when_pasted_in_order(
    service, tmp_path, name
):
    pasted(name, service, tmp_path)
    assert service.flask("check").returncode == 0


def shape(answer):
    """Return an answer without what depends on the draw of the user."""
    if isinstance(answer, dict):
        drawn = {"value", "variant", "experimentId"}
        return {
            key: type(value) if key in drawn else shape(value)
            for key, value in answer.items()
        }
    return [shape(one) for one in answer] if isinstance(answer, list) else answer


def test_the_commands_and_answers_of_the_openfeature_page_are_real(service, tmp_path):
    text = (real.ROOT / "docs" / "openfeature.md").read_text()
    _, printed = pasted("docs/openfeature.md", service, tmp_path)

    answers = [json.loads(line) for line in printed.splitlines()]
    examples = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    flags = [shape(one) for one in answers if "data" not in one]
    assert flags == [shape(json.loads(one)) for one in examples]
    assert len(flags) == 2
    (receipt,) = answers[-1]["data"]  # of the one experiment that the user is in
    assert receipt["status"] == "accepted"
    codes = set(re.findall(r"^\| [\d, ]+ \| `(\w+)`", text, re.MULTILINE))
    assert codes == {*flags_of_errors.CODES.values(), "GENERAL"}


def test_the_front_page_is_read_in_five_minutes():
    assert len(README.split()) < 900


def test_the_commands_of_a_backup_work_while_the_service_runs(service, tmp_path):
    enrolled = service.running()
    service("POST", f"{enrolled}/assignments", {"userId": "user-1"})
    _, printed = pasted("docs/operating.md", service, tmp_path)

    assert "Every count is what its rows say." in printed
    assert len(re.findall(r"^ +1 assignment$", printed, re.MULTILINE)) == 2
    assert [file.suffix for file in tmp_path.glob("abacus-*")] == [".db"]


def test_the_table_of_endpoints_has_each_with_its_scope_and_no_other(app):
    row = r"^\| `(\w+) (/api/\S+)` \| `(\w+)` \|"
    written = {
        (method, re.sub(r":\w+", "<>", path), scope)
        for method, path, scope in re.findall(row, API, re.MULTILINE)
    }
    served = {
        (
            method,
            re.sub("<.*?>", "<>", rule.rule),
            app.view_functions[rule.endpoint].scope,
        )
        for rule in app.url_map.iter_rules()
        if rule.rule.startswith("/api")
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }

    assert written == served


EXAMPLES = re.findall(
    r"<!-- answer (\d+) of (\w+) (\S+) -->\n```json\n(.*?)```", API, re.DOTALL
)


@pytest.mark.parametrize(("status", "method", "path", "example"), EXAMPLES)
def test_an_example_of_an_answer_has_the_shape_of_the_answer(
    anonymous, status, method, path, example
):
    document = anonymous.get("/openapi.json").json
    answer = document["paths"][path][method.lower()]["responses"][status]
    if "$ref" in answer:
        answer = document["components"]["responses"][answer["$ref"].rpartition("/")[2]]
    schema = answer["content"]["application/json"]["schema"]

    jsonschema.validate(
        json.loads(example), {**schema, "components": document["components"]}
    )


def test_every_example_of_json_is_compared_with_the_service():
    sent = API.count("<!-- body of ")  # tests/test_measured.py sends it
    assert len(EXAMPLES) == API.count("```json") - sent >= 8


@pytest.mark.parametrize("text", [README, API], ids=["README", "api"])
def test_the_first_example_comes_back_as_it_was_sent(api, text):
    sent = json.loads(re.search(r"^ask \$API/experiments -d '(.*?)'", text, re.M)[1])

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


VECTORS = re.findall(r"\| `(exp_\w+)` \| `(.+?)` \| (\d+) \|", API)


def test_the_manual_has_the_four_published_vectors():
    assert [int(bucket) for _, _, bucket in VECTORS] == [3520, 5983, 8203, 5809]


@pytest.mark.parametrize(("salt", "user_id", "bucket"), VECTORS)
def test_the_vectors_are_those_of_the_hash(salt, user_id, bucket):
    assert assignment.bucket(salt, user_id) == int(bucket)


def test_the_receipt_s_shell_line_prints_the_published_bucket():
    (line,) = re.findall(r"^(printf %s .*)$", API, re.MULTILINE)
    told = subprocess.run(["sh", "-c", line], capture_output=True, check=True)

    assert int(told.stdout) == int(VECTORS[0][2])


def test_every_code_and_every_state_is_in_the_manual():
    for word in (*errors.CODES.values(), *STATUSES):
        assert word in API or word == "INTERNAL_ERROR", word


def test_every_command_of_the_operator_is_in_the_table_and_no_other(app):
    table = OPERATING.partition("| command |")[2].partition("\n\n")[0]
    written = re.findall(r"^\| `flask --app wsgi (\w+)", table, re.MULTILINE)

    assert sorted(written) == sorted(cli.commands.cli.commands)


def test_every_metric_and_every_alert_is_in_its_table_and_no_other(anonymous):
    table = OPERATING.partition("| metric | by |")[2].partition("\n\n")[0]
    first = [line.split("|")[1] for line in table.splitlines()[2:]]
    written = {name for cell in first for name in re.findall(r"`(\w+)`", cell)}
    served = re.findall(r"^# TYPE (\w+)", anonymous.get("/metrics").text, re.MULTILINE)
    alerts = (real.ROOT / "deploy" / "alerts.yml").read_text()

    ours = {name for name in served if name.startswith("abacus_")}
    assert written == {name for name in ours if not name.endswith("_created")}
    assert re.findall(r"^\| `(Abacus\w+)`", OPERATING, re.MULTILINE) == re.findall(
        r"alert: (\w+)", alerts
    )


def test_every_warning_of_the_table_is_one_that_is_given():
    page = (real.ROOT / "docs" / "statistics.md").read_text()
    table = page.partition("## The warnings")[2].partition("\n## ")[0]
    first = [line.split("|")[1] for line in table.splitlines() if "| `" in line]
    files = [*(real.ROOT / "stats").glob("*.py"), real.ROOT / "views" / "course.py"]
    sources = "".join(file.read_text() for file in files)

    codes = re.findall(r"`([A-Z_]+)`", " ".join(first))
    assert len(codes) == 10
    for code in codes:
        assert f'"{code}"' in sources


def test_the_example_of_an_import_loads_and_loads_once(service, tmp_path):
    example = re.search(r"```csv\n(.*?)```", OPERATING, re.DOTALL).group(1)
    file = tmp_path / "example.csv"
    file.write_text(example)
    path = service.running(primaryMetric="purchase")
    id = path.partition("/")[2]

    first, second = (service.flask("import", id, str(file)).stdout for _ in range(2))

    assert first == "3 lines: 2 users enrolled, 2 conversions.\n"
    assert second == "3 lines: 0 users enrolled, 0 conversions.\n"
    control, detailed = service.data("GET", f"{path}/results")["variants"]
    assert (control["participants"], control["results"]) == (1, [])
    assert detailed["participants"] == 1
    assert detailed["results"][0]["value"]["sum"] == 24.99
    assert detailed["results"][0]["conversions"] == 1
    assert service.flask("check").returncode == 0


def test_nothing_in_the_repository_names_where_it_was_made():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=real.ROOT, capture_output=True, text=True, check=False
    )
    for name in listed.stdout.splitlines():
        path = Path(real.ROOT / name)
        if path.name != "test_readme.py":
            assert b"/work/" not in path.read_bytes(), name
