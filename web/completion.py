"""The OpenAPI document, completed with the words and examples of the reference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any

from reference import words
from reference.examples import examples
from reference.subjects import ACCESS, INTRODUCTION, SUBJECTS


def completed(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document with words and examples, in the order of the reference."""
    held = examples()
    document["info"]["description"] = INTRODUCTION
    document["tags"] = [
        {"name": each.name, "description": each.description} for each in SUBJECTS
    ]
    _complete_components(document["components"], held["errors"])
    document["paths"] = _complete_paths(document, held)
    return document


def _complete_components(components: dict[str, Any], errors: dict[str, Any]) -> None:
    """Describe what the operations share: the token, the schemas, the errors."""
    components["securitySchemes"]["token"]["description"] = ACCESS
    for name, schema in components["schemas"].items():
        for field, shape in properties(schema):
            shape["description"] = words.meaning(name, field)
    for status, error in errors.items():
        answer = components["responses"][HTTPStatus(int(status)).name]
        _show(answer, {"application/json": error})
        _name_headers(answer)


def _complete_paths(document: dict[str, Any], held: dict[str, Any]) -> dict[str, Any]:
    """Return the paths with their operations completed, in the order of subjects."""
    paths: dict[str, Any] = {}
    places = {one["operationId"]: place for place, one in operations(document)}
    for subject in SUBJECTS:
        for name, text in subject.operations.items():
            path, method = places[name]
            item, example = document["paths"][path], held["operations"][name]
            operation, shared = item[method], item.get("parameters", [])
            operation["tags"] = [subject.name]
            (scope,) = operation["security"][0]["token"]
            operation["description"] = f"{text}\n\nA token needs the scope `{scope}`."
            _name_parameters(shared, words.PATH_EXAMPLES)
            _name_parameters(operation.get("parameters", []), example.get("query", {}))
            _exemplify(operation, example, held["failures"])
            paths.setdefault(path, {"parameters": shared})[method] = operation
    return paths


def operations(
    document: dict[str, Any],
) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    """Yield each operation of a document, after its path and its method."""
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method != "parameters":
                yield (path, method), operation


def properties(schema: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each property of a schema, at any depth, after its name."""
    if isinstance(schema, dict):
        yield from schema.get("properties", {}).items()
        schema = list(schema.values())
    if isinstance(schema, list):
        for each in schema:
            yield from properties(each)


def _name_parameters(
    parameters: Iterable[dict[str, Any]], examples: Mapping[str, str]
) -> None:
    """Say what each parameter means, and show the examples that there are."""
    for each in parameters:
        name = each["name"]
        if "description" not in each:
            each["description"] = words.PARAMETERS[name]
        if name in examples:
            each["example"] = examples[name]


def _name_headers(answer: dict[str, Any]) -> None:
    """Say what each header of an answer means."""
    for name, header in answer.get("headers", {}).items():
        header["description"] = words.HEADERS[name]


def _exemplify(
    operation: dict[str, Any], held: dict[str, Any], failures: dict[str, Any]
) -> None:
    """Show an example of the body and of each answer that is not shared."""
    if "requestBody" in operation:
        _show(operation["requestBody"], {"application/json": held["body"]})
    for status, answer in operation["responses"].items():
        _name_headers(answer)
        if status in held["answers"]:
            _show(answer, held["answers"][status])
        elif "content" in answer:
            _show(answer, {"application/json": failures[status]})


def _show(described: dict[str, Any], examples: dict[str, Any]) -> None:
    """Show an example for each content type that is described."""
    for content_type, content in described["content"].items():
        content["example"] = examples[content_type]
