"""What the tests of the clients share: experiments, users, and counts."""

import re

import service as real
from openfeature.evaluation_context import EvaluationContext

from targeting import assignment

CONFIGURED = [
    {"name": "Control", "splitPercentage": 50},
    {
        "name": "Detailed",
        "splitPercentage": 50,
        "flowId": "flow_b",
        "config": {"steps": 5, "rate": 0.1},
    },
]
PAYERS = {"field": "plan", "operator": "eq", "value": "pro"}
ADULT_PAYERS = {
    "logicalOperator": "AND",
    "rules": [
        PAYERS,
        {"field": "country", "operator": "in", "value": ["DE", "AT", "CH"]},
        {"field": "age", "operator": "gte", "value": 18},
    ],
}


def user(user_id, **attributes):
    return EvaluationContext(user_id, attributes)


def participants(service, path):
    return service.data("GET", path)["_count"]["assignments"]


def rows_of(service, path, metric="conversion"):
    """Return the rows of a metric, of each variant that has some."""
    variants = service.data("GET", f"{path}/results?metric={metric}")["variants"]
    return [row for variant in variants for row in variant["results"]]


def counted(service, path, metric="conversion"):
    """Return how many users and events of a metric were counted."""
    rows = rows_of(service, path, metric)
    return sum(row["conversions"] for row in rows), sum(row["events"] for row in rows)


def stored(service, path, user_ids):
    """Return the decisions about users who have to be enrolled already."""
    body = {"users": [{"userId": user_id} for user_id in user_ids]}
    decisions = service.data("POST", f"{path}/assignments/batch", body)
    assert {one["reason"] for one in decisions} == {"EXISTING_ASSIGNMENT"}
    return decisions


def variants_of(decisions):
    """Return the variant of each user."""
    return {one["userId"]: one["variantId"] for one in decisions}


def by_hash(path, user_id):
    """Return the variant that the hash gives, which may not be the stored one."""
    place = assignment.dealt(path.partition("/")[2], user_id, [5_000, 5_000])
    return f"v{place + 1}"


def one_of(path, variant):
    """Return a user whom the hash gives this variant."""
    return next(f"u{n}" for n in range(99) if by_hash(path, f"u{n}") == variant)


def example(client, language, service):
    """Return the first example of a client's README, for this service."""
    text = (real.ROOT / "clients" / client / "README.md").read_text()
    example = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)[0]
    assert len(example.splitlines()) <= 15
    return adapted(example, service)


def adapted(program, service):
    """Return a program with the address of this service, and its token."""
    program = program.replace("http://127.0.0.1:8000", service.url)
    return program.replace("TOKEN", service.token)


def said(client, service):
    """Return the line that a client's README has for each thing that is wrong."""
    text = (real.ROOT / "clients" / client / "README.md").read_text()
    rows = re.findall(r"^\| (?:the )?(\w+).* \| `(Abacus: .*)` \|$", text, re.MULTILINE)
    assert len(rows) == 3
    return {
        wrong: line.replace("127.0.0.1:8000", f"127.0.0.1:{service.port}")
        for wrong, line in rows
    }
