"""The OpenFeature endpoints: the protocol OFREP 0.3, which all its clients speak."""

from __future__ import annotations

from typing import Any

from flask import Response, request
from werkzeug.exceptions import NotFound

from ledger import enrolment, single, standing
from storage import engine
from targeting.decision import NOT_FOUND, Decision, User
from views.flags import FlagSchema, FlagsSchema, all_flags, experiment_of, flag
from web import auth, metrics
from web.auth import requires
from web.blueprint import Blueprint
from web.errors import FAILURE
from web.flags import PREFIX, EvaluationSchema, FailureSchema


class FlagBlueprint(Blueprint):
    """A blueprint whose answers and refusals are the protocol's own."""

    REFUSALS = {
        400: "No targeting key, a context that is refused, or a body that is no JSON.",
        401: "No token, or one that proves nothing.",
        403: "The token lacks a scope, which the details name.",
        404: "There is no such flag.",
        503: "The database, or the provider of the keys, does not answer now.",
    }

    @staticmethod
    def _prepare_response_content(data: Any) -> Any:
        return data

    @staticmethod
    def _make_doc_response_schema(schema: Any) -> Any:
        return schema

    def refusals(self, rule: str, handler: Any) -> dict[int, Any]:
        """Return the documentation of each refusal by its status."""
        return {
            status: [
                {"schema": FAILURE_BODY, "description": text, "content_type": None}
            ]
            for status, text in self.REFUSALS.items()
            if status != 404 or "<" in rule
        }


FAILURE_BODY = FailureSchema()
EVALUATION = EvaluationSchema()

flags = FlagBlueprint("openfeature", __name__, url_prefix=PREFIX)


@flags.before_request
def guard() -> None:
    """Verify the token, and open the database. Unknown parameters are ignored.

    The clients can be told to add parameters, and later protocols have more of them.
    """
    if request.method == "OPTIONS":  # a preflight request has no token
        return
    if FAILURE in request.environ:
        raise request.environ.pop(FAILURE)
    auth.authenticate()
    engine.connect()


@flags.post("/v1/evaluate/flags/<path:key>")
@flags.arguments(EVALUATION)
@flags.response(200, FlagSchema())
@requires("assign")
def evaluate_flag(body, key):
    """Enrol the user in the flag's experiment, and return the flag."""
    return flag(key, decided(key, body["context"]))


def decided(key: str, user: User) -> Decision:
    """Return the decision for a user, who is enrolled if new; or answer 404."""
    name = experiment_of(key)
    decision = Decision(name, user.user_id, NOT_FOUND)
    if single.is_plain_name(name):
        simple = single.enrol([name], user)
        decision = simple[0][1] if simple else enrolment.enrolled_in(name, user)
    if decision.reason == NOT_FOUND:
        raise NotFound(f"There is no flag {key!r}.")
    return metrics.enrolled([decision])[0]


@flags.post("/v1/evaluate/flags")
@flags.arguments(EVALUATION)
@flags.response(200, FlagsSchema(), headers={"ETag": {"schema": {"type": "string"}}})
@flags.alt_response(304, description="All flags are as the ETag says")
@flags.doc(
    parameters=[
        {"in": place, "name": name, "schema": {"type": "string"}}
        for place, name in (
            ("header", "If-None-Match"),
            ("query", "flagConfigEtag"),
            ("query", "flagConfigLastModified"),
        )
    ]
)
@requires("assign")
def evaluate_flags(body):
    """Return all flags of a user. Nobody is enrolled unless the context says so.

    Flags of drafts and of archived experiments are left out. With `"enroll": true` in
    the context, the user is enrolled in each experiment that takes them.
    """
    user = body["context"]
    if user.attributes.get("enroll") is True:
        found = standing.enrolled_everywhere(user)
        metrics.enrolled([decision for _, decision in found])
    else:
        found = standing.standing(user)
    text, etag = all_flags(
        (one.definition.key, decision, one.derived) for one, decision in found
    )
    is_known = request.if_none_match.contains_weak(etag)
    answer = Response(status=304) if is_known else json_answer(text)
    answer.set_etag(etag)
    return answer


def json_answer(text: str) -> Response:
    return Response(text, mimetype="application/json")
