"""The OpenAPI document is true, and nothing that it does not describe gets in."""

import itertools
import logging
import re
from datetime import timedelta

import pytest
import schemathesis
from conftest import SECRET, Caller, two_variants
from flask_jwt_extended import create_access_token
from hypothesis import settings
from schemathesis.core.parameters import ParameterLocation
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    positive_data_acceptance,
    unsupported_method,
)

from app import create_app
from storage import factory
from web.logging import log

app = create_app({"JWT_SECRET_KEY": SECRET, "DATABASE_URL": "sqlite:///unused"})
document = schemathesis.openapi.from_wsgi("/openapi.json", app)
# NUL is refused in every text and every key, by the reader: no schema repeats it.
document.config.generation.update(allow_x00=False)

# What is refused although the document allows it, as no JSON Schema can say it: the
# paths of such fields. Any other refusal of what the document allows is a failure.
SPLITS = r"variants"  # sum to 100; no name twice
CONFIG = r"variants\.\d+\.config"  # at most 16 KiB
FUTURE = r"endDate"  # is to come
PLAN = r"plan\.minimumEffect"  # no rate above 1
METRICS = r"metrics(\.\d+\.(margin|cap|role))?|primaryMetric|plan"  # fit each other
MERGED = r"variants\.\d+\.(id|name|splitPercentage)"  # known, or there already
PATTERN = r"ruleTree(\.rules\.\d+)*\.value"  # is RE2's; a time that there is
PAST = r"((events|conversions)\.\d+\.)?occurredAt"  # is not to come
CURSOR = "cursor"  # is one that the same list gave out, and comes without a page
RULES = {
    "GET /api/experiments": [CURSOR],
    "GET /api/experiments/{id}/assignments": [CURSOR],
    "GET /api/experiments/{id}/overrides": [CURSOR],
    "GET /api/experiments/{id}/history": [CURSOR],
    "GET /api/users/{user_id}/assignments": [CURSOR],
    "GET /api/audiences": [CURSOR],
    "POST /api/experiments": [SPLITS, CONFIG, FUTURE, PLAN, METRICS],
    "PATCH /api/experiments/{id}": [SPLITS, CONFIG, FUTURE, PLAN, METRICS, MERGED],
    # A variant of the experiment.
    "POST /api/experiments/{id}/complete": ["winnerVariantId"],
    "PUT /api/experiments/{id}/overrides/{user_id}": ["variantId"],
    "POST /api/audiences": [PATTERN],
    "PUT /api/audiences/{audience_id}": [PATTERN],
    "PATCH /api/audiences/{audience_id}": [PATTERN],
    "POST /api/experiments/{id}/conversions": [PAST],
    "POST /api/experiments/{id}/conversions/batch": [PAST],
    "POST /api/events": [PAST],
    "POST /api/events/batch": [PAST],
    # One effect or margin and one split are given; no rate leaves 0 to 1.
    "POST /api/sample-size": [
        *("", "minimumEffect", "relativeEffect", "margin", "variants"),
    ],
    "POST /api/sample-size/mean": [
        *("", "baselineMean", "minimumEffect", "relativeEffect", "margin", "variants"),
    ],
    "POST /api/experiments/{id}/simulate": ["effect", "looks"],
}
# An id may hold slashes: a user `batch` of one path, an audience `aud_1/test` of
# another. So more methods are allowed there than the one path has in the document.
OVERLAPPING = (
    "/api/experiments/{id}/assignments/batch",
    "/api/users/{user_id}/assignments",
    "/api/audiences/{audience_id}/test",
)
# What is calculated, with no more of the database than an experiment that is read.
CALCULATED = r"^/api/(sample-size.*|experiments/\{id\}/simulate)$"
turns = itertools.count()


def token():
    with app.app_context():
        return create_access_token("tester", expires_delta=timedelta(hours=1))


@schemathesis.auth()
class Token:
    """A token that may do everything."""

    def get(self, case, context):
        return token()

    def set(self, case, data, context):
        case.headers["Authorization"] = f"Bearer {data}"


# The engine is a parameter, so that each operation has a node id of its own:
# schemathesis names its tests in a way that pytest leaves out of the id, and equal ids
# are run only once.
@pytest.fixture(scope="module")
def experiments(tmp_path_factory, new_database):
    """Return the ids of experiments in every state, in a database of their own."""
    log.setLevel(logging.WARNING)
    with new_database(tmp_path_factory.mktemp("contract") / "abacus.db") as url:
        database = app.extensions["database"] = factory.database_at(url)
        yield staged()
        database.shut()


def staged():
    """Make the experiments; return their ids."""
    api = Caller(app, token())
    made = []
    for moves in ([], ["start"], ["start", "stop"], ["start", "complete"]):
        answer = api.post("experiments", {"name": "Staged", "variants": two_variants()})
        made.append(answer.json["data"]["id"])
        for move in moves:
            body = {"conclusion": "won", "winnerVariantId": "v2"}
            path = f"experiments/{made[-1]}"
            if move == "start":
                moved = api.post(f"{path}/start")
                api.post(f"{path}/assignments", {"userId": "user-1"})
                event = {"userId": "user-1", "value": 19.99}
                assert api.post(f"{path}/conversions", event).status_code == 201
            else:
                moved = api.post(f"{path}/{move}", body if move == "complete" else {})
            assert moved.status_code == 200, moved.text
    return made


@document.exclude(path_regex=CALCULATED).parametrize()
@settings(settings.get_profile("contract"))
def test_every_answer_is_as_the_document_says(case, experiments):
    assert_as_described(case, experiments)


@pytest.mark.one_engine
@document.include(path_regex=CALCULATED).parametrize()
@settings(settings.get_profile("contract"))
def test_every_calculated_answer_is_as_the_document_says(case, experiments):
    assert_as_described(case, experiments)


def assert_as_described(case, experiments):
    path = case.meta.components.get(ParameterLocation.PATH)
    for name in {"id", "key"} & set(case.path_parameters):
        # Any id is a good one, and most of them name nothing.
        if not (path and path.mode.is_negative):
            choices = [case.path_parameters[name], *experiments]
            case.path_parameters[name] = choices[next(turns) % len(choices)]
    response = case.call()
    excluded = []
    if case.operation.path in OVERLAPPING:
        excluded += [unsupported_method, allow_header_conformance]
    if response.status_code == 400 and is_beyond_schemas(case, response):
        excluded += [positive_data_acceptance]
    case.validate_response(response, excluded_checks=excluded)


def is_beyond_schemas(case, response):
    """Tell whether a refusal is for nothing but what no schema can say."""
    error = response.json().get("error", {})  # OFREP's have no paths, nor such rules
    told = [detail["path"] for detail in error.get("details", [])]
    rules = RULES.get(case.operation.label, [])
    return bool(told) and all(
        any(re.fullmatch(rule, path) for rule in rules) for path in told
    )
