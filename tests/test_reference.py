"""The reference in the OpenAPI document is whole, and its examples are accepted."""

import re
from http import HTTPStatus

import jsonschema
import pytest

from reference import words
from reference.examples import examples
from reference.subjects import SUBJECTS
from web.completion import operations, properties

OWN_WORDS = {(schema, field) for schema in words.OWN for field in words.OWN[schema]}
SHARED_WORDS = {("", field) for field in words.FIELDS}

# The operations in an order in which each is accepted as it stands, from an empty
# database on. The second time, some answer with another status.
STORY = [
    *("defineAudience", "defineAudience", "createAudience", "listAudiences"),
    *("getAudience", "updateAudience", "tryAudience"),
    *("planSampleSize", "planMeanSampleSize", "createExperiment", "listExperiments"),
    *("getExperiment", "updateExperiment", "simulate"),
    *("setOverride", "setOverride", "listOverrides", "removeOverride"),
    *("startExperiment", "enrol", "enrol", "enrolBatch", "enrolInExperiments"),
    *("getAssignment", "listAssignments", "listMemberships", "getDefinitions"),
    *("convert", "convert", "convertBatch", "recordEvent", "recordEventsBatch"),
    *("evaluateFlag", "evaluateFlags", "exportExperiment"),
    *("getResults", "computeResults", "getComputedResults", "listHistory"),
    *("stopExperiment", "resumeExperiment", "completeExperiment", "removeAudience"),
    *("duplicateExperiment", "archiveExperiment", "unarchiveExperiment", "eraseUser"),
]


@pytest.fixture
def document(anonymous):
    return anonymous.get("/openapi.json").json


def by_name(document):
    """Return each operation by its id, with its path, method and parameters."""
    return {
        operation["operationId"]: (
            path,
            method,
            operation,
            [*document["paths"][path]["parameters"], *operation.get("parameters", [])],
        )
        for (path, method), operation in operations(document)
    }


def successes(document):
    """Yield each answer of a success: its operation, status, type and content."""
    for name, (_, _, operation, _) in by_name(document).items():
        for status, answer in operation["responses"].items():
            for content_type, content in answer.get("content", {}).items():
                if status < "300":
                    yield name, status, content_type, content


def resolved(document, content):
    return {**content["schema"], "components": document["components"]}


@pytest.mark.one_engine
def test_each_operation_has_a_name_one_subject_and_a_description(app, document):
    handlers = [
        rule.endpoint.rpartition(".")[2]
        for rule in app.url_map.iter_rules()
        if rule.rule.startswith(("/api", "/ofrep"))
    ]
    names = [operation["operationId"] for _, operation in operations(document)]

    assert len(names) == len(set(names)) == len(handlers) == 43
    for name in names:
        snake = re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", name)
        assert snake in handlers
    assert names_by_subject(document) == {
        subject.name: list(subject.operations) for subject in SUBJECTS
    }
    assert [tag["name"] for tag in document["tags"]] == [each.name for each in SUBJECTS]
    assert all(tag["description"] for tag in document["tags"])
    for _, operation in operations(document):
        assert operation["summary"] and operation["description"]


def names_by_subject(document):
    """Return the names of the operations by their tags, in their order."""
    found = {}
    for subject in (each.name for each in SUBJECTS):
        for name in [name for each in SUBJECTS for name in each.operations]:
            if by_name(document)[name][2]["tags"] == [subject]:
                found.setdefault(subject, []).append(name)
    return found


@pytest.mark.one_engine
def test_each_operation_says_which_scope_it_needs(app, document):
    scopes = {
        rule.endpoint.rpartition(".")[2].replace("_", ""): app.view_functions[
            rule.endpoint
        ].scope
        for rule in app.url_map.iter_rules()
        if rule.rule.startswith(("/api", "/ofrep"))
    }

    for name, (_, _, operation, _) in by_name(document).items():
        scope = scopes.pop(name.lower())
        assert operation["security"] == [{"token": [scope]}]
        assert f"the scope `{scope}`" in operation["description"]
    assert not scopes
    told = document["components"]["securitySchemes"]["token"]["description"]
    assert "flask --app wsgi token NAME" in told
    assert "flask --app wsgi token NAME" in document["info"]["description"]


@pytest.mark.one_engine
def test_each_field_and_each_parameter_is_described_and_no_word_is_left(document):
    used, fields = set(), 0
    for name, schema in document["components"]["schemas"].items():
        for field, shape in properties(schema):
            fields += 1
            own = words.LIKE.get(name, name), field
            used.add(own if own in OWN_WORDS else ("", field))
            assert shape["description"].endswith("."), (name, field)
    parameters = [each for one in by_name(document).values() for each in one[3]]

    assert fields > 500 and len(parameters) > 60
    assert used == OWN_WORDS | SHARED_WORDS
    for each in parameters:
        assert each["description"].endswith("."), each
    told = {each["name"] for each in parameters}
    assert told == {*words.PARAMETERS, *words.PATH_EXAMPLES}
    in_paths = {each["name"] for each in parameters if each["in"] == "path"}
    assert in_paths == set(words.PATH_EXAMPLES)


@pytest.mark.one_engine
def test_each_answer_has_an_example_that_is_as_its_schema_says(document):
    shown = list(successes(document))

    held = examples()["operations"]
    assert len(shown) == sum(
        len(types) for each in held.values() for types in each["answers"].values()
    )
    for name, status, content_type, content in shown:
        assert content["example"] == held[name]["answers"][status][content_type]
        jsonschema.validate(content["example"], resolved(document, content))


@pytest.mark.one_engine
def test_each_refusal_is_described_and_has_an_example(document):
    refused = 0
    for _, operation in operations(document):
        for status, answer in operation["responses"].items():
            if status < "400":
                continue
            refused += 1
            if "$ref" in answer:
                name = answer["$ref"].rpartition("/")[2]
                answer = document["components"]["responses"][name]
            assert len(answer["description"]) > 20
            assert all(
                each["description"] for each in answer.get("headers", {}).values()
            )
            content = answer["content"]["application/json"]
            jsonschema.validate(content["example"], resolved(document, content))
            error = content["example"].get("error", {"statusCode": int(status)})
            assert HTTPStatus(int(status)) == error["statusCode"]
    assert refused > 43 * 4


def test_each_example_is_accepted_as_it_stands_from_an_empty_database_on(api, document):
    """Send each operation's own example; compare each answer with what is documented.

    An example of an answer has the same fields as the answer, at every depth.
    """
    known, sent, bodies = by_name(document), set(), set()
    for name in STORY:
        path, method, operation, parameters = known[name]
        query = {}
        for each in parameters:
            if each["in"] == "path":
                path = path.replace(f"{{{each['name']}}}", each["example"])
            elif "example" in each:
                query[each["name"]] = each["example"]
        body = None
        if "requestBody" in operation:
            body = operation["requestBody"]["content"]["application/json"]["example"]
            bodies.add(name)

        answer = api(method.upper(), path, body, query_string=query)

        assert answer.status_code in (200, 201), (name, answer.text)
        status, content_type = str(answer.status_code), answer.mimetype
        content = operation["responses"][status]["content"][content_type]
        told = answer.json if answer.is_json else answer.text
        jsonschema.validate(told, resolved(document, content))
        assert_same_fields(content["example"], told, name)
        sent.add((name, status))

    assert {name for name, _ in sent} == set(known)
    assert sent == {(name, status) for name, status, _, _ in successes(document)}
    assert bodies == {name for name in known if "requestBody" in known[name][2]}
    held = examples()["operations"]
    assert bodies == {name for name in held if "body" in held[name]}
    assert len(bodies) == 26


DATA = (".changes", ".config", ".flags.value")  # their keys are those of the data


def assert_same_fields(example, told, place):
    """Compare objects at every depth; null, and an empty list, stand for anything."""
    if (
        isinstance(example, dict)
        and isinstance(told, dict)
        and not place.endswith(DATA)
    ):
        assert example.keys() >= told.keys(), place  # what is optional may be more
        for key in told:
            assert_same_fields(example[key], told[key], f"{place}.{key}")
    elif isinstance(example, list) and isinstance(told, list):
        for one, other in zip(example, told, strict=False):
            assert_same_fields(one, other, place)
