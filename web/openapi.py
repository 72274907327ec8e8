"""The OpenAPI document."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from flask_smorest import Api as SmorestApi

from web.blueprint import Opaque
from web.errors import REFUSALS, Error
from web.fields import AN_ID, RULE_TREE, JsonText


class Api(SmorestApi):
    """flask-smorest's, with our errors and our fields in its document."""

    DEFAULT_ERROR_RESPONSE_NAME = None  # every status that is answered is named

    def _init_spec(self, **options: Any) -> None:
        super()._init_spec(**options)
        token = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
        self.spec.components.security_scheme("token", token)
        self.spec.components.schema("RuleTree", RULE_TREE)
        converter = self.ma_plugin.converter
        converter.add_attribute_function(_without_null)
        converter.add_parameter_attribute_function(_as_json)
        self.register_converter(Opaque, lambda _: OWN_ID)

    def _register_responses(self) -> None:
        for status, (told, headers) in REFUSALS.items():
            content = {"application/json": {"schema": Error}}
            said = {"description": told, "content": content, "headers": headers}
            self.spec.components.response(HTTPStatus(status).name, said, lazy=True)

    def _register_pagination_header(self) -> None:
        """Have none: `meta` says where a page stands."""

    def _register_error_handlers(self) -> None:
        """Leave the errors to ANSWERS."""


OWN_ID = {"type": "string", "minLength": 1, "maxLength": 255, **AN_ID}


def _without_null(converter: Any, field: Any, ret: Any) -> dict[str, Any]:
    """Leave out the default of a field that may be absent but never null."""
    if ret.get("default", ...) is None and not field.allow_none:
        del ret["default"]
    return {}


def _as_json(converter: Any, field: Any, ret: Any) -> dict[str, Any]:
    """Say of a JSON text in a query what is in it."""
    if not isinstance(field, JsonText):
        return {}
    return {"content": {"application/json": {"schema": ret.pop("schema")}}}
