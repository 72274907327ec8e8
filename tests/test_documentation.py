"""The OpenAPI document and the page that shows it."""

import base64
import hashlib
import re
from urllib.parse import urljoin

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from targeting import audience

pytestmark = pytest.mark.one_engine


def test_the_docs_page_runs_its_own_scripts_and_no_other(anonymous):
    page = anonymous.get("/docs/", headers={"Host": "marker.example"})
    policy = page.headers["Content-Security-Policy"]

    (inline,) = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    proof = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
    assert f"script-src 'self' 'sha256-{proof}';" in policy
    assert "unsafe" not in policy.replace("style-src 'self' 'unsafe-inline'", "")
    assert "http" not in policy and "*" not in policy
    assert "marker" not in page.text
    assert not re.search(r"\son\w+=", page.text)


def test_the_document_is_openapi_3_1_and_names_every_endpoint(app, anonymous):
    document = anonymous.get("/openapi.json").json

    assert document["openapi"] == "3.1.0"
    written = {
        (path, method)
        for path, operations in document["paths"].items()
        for method in operations
        if method != "parameters"
    }
    served = {
        (
            rule.rule.replace("<path:", "{").replace("<", "{").replace(">", "}"),
            method.lower(),
        )
        for rule in app.url_map.iter_rules()
        if rule.rule.startswith(("/api", "/ofrep"))
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }
    assert written == served
    for path, method in written:
        assert document["paths"][path][method]["summary"], path
    OpenAPIV31SpecValidator(document).validate()


def test_the_document_says_that_a_key_stands_wherever_an_id_does(anonymous):
    document = anonymous.get("/openapi.json").json

    described = [
        parameter["description"]
        for path, item in document["paths"].items()
        if path.startswith("/api/experiments/{id}")
        for parameter in item["parameters"]
        if (parameter["in"], parameter["name"]) == ("path", "id")
    ]
    assert len(described) > 15
    assert set(described) == {
        "An experiment's `id`, which begins with `exp_`, or its `key`."
    }


def test_the_document_knows_every_operator_of_a_rule(anonymous):
    tree = anonymous.get("/openapi.json").json["components"]["schemas"]["RuleTree"]

    told = [
        operator
        for shape in tree["anyOf"]
        for operator in shape["properties"].get("operator", {}).get("enum", [])
    ]
    assert sorted(told) == sorted(audience.OPERATORS)


def test_the_docs_page_asks_no_other_host(anonymous):
    page = anonymous.get("/docs/")

    assert page.status_code == 200
    assert set(re.findall(r"https?://([^/\"']+)", page.text)) <= {"localhost"}
    for name in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        with anonymous.get(urljoin("/docs/", name)) as held:
            assert held.status_code == 200, name
    assert anonymous.get("/").headers["Location"] == "/docs/"
