"""OpenFeature's protocol (OFREP): how a request names a user, and how it is refused."""

from __future__ import annotations

import re
from typing import Any

from marshmallow import EXCLUDE, Schema, ValidationError, fields, missing

from targeting.decision import User
from web.fields import AN_ID, ID_LENGTH, Answer, Documented, Id

PREFIX = "/ofrep"

EVALUATE = re.compile(rf"{PREFIX}/v1/evaluate/flags/([\s\S]+)")

NOT_ENROLLED = "not_enrolled"  # the variant of whoever gets the application's default

# The statuses that the clients read, and those that every HTTP client knows.
STATUSES = {400, 401, 403, 404, 405, 429, 500, 503}

# OpenFeature's own error codes by ours; every other one is GENERAL.
CODES = {
    "TARGETING_KEY_MISSING": "TARGETING_KEY_MISSING",
    "VALIDATION_ERROR": "INVALID_CONTEXT",
    "INVALID_JSON": "PARSE_ERROR",
    "BAD_REQUEST": "PARSE_ERROR",
    "PAYLOAD_TOO_LARGE": "PARSE_ERROR",
    "UNSUPPORTED_MEDIA_TYPE": "PARSE_ERROR",
    "NOT_FOUND": "FLAG_NOT_FOUND",
}


class TargetingKeyMissing(Exception):
    """A request does not say for which user a flag is evaluated."""


def speaks_ofrep(path: str) -> bool:
    """Tell whether whoever requests this path reads OpenFeature's errors."""
    return path == PREFIX or path.startswith(f"{PREFIX}/")


def status_of(status: int) -> int:
    """Return the status of the protocol for one of ours."""
    if status in STATUSES:
        return status
    return 400 if status < 500 else 500


def failure(path: str, code: str, message: str) -> dict[str, str]:
    """Return the body of an error answer; `key` is empty if no flag was named."""
    named = EVALUATE.fullmatch(path)
    return {
        "key": named[1] if named else "",
        "reason": "ERROR",
        "variant": NOT_ENROLLED,
        "errorCode": CODES.get(code, "GENERAL"),
        "errorDetails": message,
    }


class Context(Documented):
    """An evaluation context: the user's id as `targetingKey`, and attributes."""

    shape = {
        "type": "object",
        "required": ["targetingKey"],
        "properties": {
            "targetingKey": {
                "type": "string",
                "minLength": 1,
                "maxLength": ID_LENGTH,
                **AN_ID,
            }
        },
        "additionalProperties": True,
    }

    key = Id()

    def deserialize(
        self, value: Any, attr: str | None = None, data: Any = None, **options: Any
    ) -> Any:
        """Return the User; raise TargetingKeyMissing if the context names none."""
        if value is missing:  # some clients send no context if they have none
            raise TargetingKeyMissing
        return super().deserialize(value, attr, data, **options)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> User:
        if not isinstance(value, dict):
            raise ValidationError("Not an object.")
        attributes = dict(value)
        key = attributes.pop("targetingKey", None)
        if key is None or key == "":
            raise TargetingKeyMissing
        try:
            return User(self.key.deserialize(key), attributes)
        except ValidationError as error:
            raise ValidationError({"targetingKey": error.messages}) from error


class EvaluationSchema(Schema):
    """Whom flags are evaluated for. Fields of later protocols are ignored."""

    class Meta:
        unknown = EXCLUDE

    context = Context(required=True)


CONTEXT = EvaluationSchema().fields["context"]


def flag_user(document: Any) -> User:
    """Return the user that a body names, as EvaluationSchema does."""
    if not isinstance(document, dict):
        raise ValidationError("Not an object.")
    context = document.get("context", missing)
    user: User = CONTEXT.deserialize(context)  # type: ignore[assignment]
    return user


class FailureSchema(Answer):
    """Why a flag was not evaluated; the application uses its default."""

    key = fields.String()
    reason = fields.String(metadata={"enum": ["ERROR"]})
    variant = fields.String(metadata={"enum": [NOT_ENROLLED]})
    error_code = fields.String(metadata={"enum": sorted({*CODES.values(), "GENERAL"})})
    error_details = fields.String()
