"""The OpenAPI document, and the page that shows it."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterable
from functools import cached_property
from hashlib import sha256
from http import HTTPStatus
from typing import Any

from flask import Flask, Response
from flask_smorest import Api as SmorestApi
from flask_swagger_ui import get_swaggerui_blueprint

from web.blueprint import Blueprint, Opaque
from web.errors import REFUSALS, Error
from web.fields import AN_ID, RULE_TREE, JsonText
from web.json import dumps


def document(app: Flask, apis: Iterable[Blueprint], version: str) -> None:
    """Serve the API, its OpenAPI document, and the page that shows the document."""
    app.config.update(
        API_TITLE="Abacus",
        API_VERSION=version,
        OPENAPI_VERSION="3.1.0",
        OPENAPI_URL_PREFIX="/",
    )
    described = Api(app, spec_kwargs={"security": [{"token": []}]})
    for api in apis:
        described.register_blueprint(api)
    config = {
        # A fixed address, or else the page would repeat the Host header in its script.
        "oauth2RedirectUrl": "/docs/oauth2-redirect.html",
        "validatorUrl": None,  # another host, which would learn about this one
        "defaultModelsExpandDepth": 0,  # the schemas are below, and closed
        "defaultModelExpandDepth": 3,
        "tryItOutEnabled": True,
    }
    docs = get_swaggerui_blueprint("/docs", "/openapi.json", config=config)
    docs.after_request(_guard_page)
    app.register_blueprint(docs)


def _guard_page(response: Response) -> Response:
    """Allow the page its own files, and the one inline script that it has."""
    if response.mimetype == "text/html" and not response.direct_passthrough:
        scripts = re.findall(rb"<script>(.*?)</script>", response.get_data(), re.DOTALL)
        hashes = [b64encode(sha256(one).digest()).decode() for one in scripts]
        allowed = " ".join(f"'sha256-{one}'" for one in hashes)
        response.headers["Content-Security-Policy"] = (
            f"default-src 'none'; script-src 'self' {allowed}; "
            "style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
            "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
            "form-action 'self'"
        )
    return response


class Api(SmorestApi):
    """flask-smorest's Api, with our errors and our fields in the document."""

    DEFAULT_ERROR_RESPONSE_NAME = None  # each status is listed by itself

    def _openapi_json(self) -> Response:
        return Response(self._text, mimetype="application/json")

    @cached_property
    def _text(self) -> str:
        """The document as JSON, made when somebody asks for it first."""
        from web.completion import completed  # only here: a worker starts without

        return dumps(completed(json.loads(dumps(self.spec.to_dict()))))

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
        for status, (description, headers) in REFUSALS.items():
            content = {"application/json": {"schema": Error}}
            response = {
                "description": description,
                "content": content,
                "headers": headers,
            }
            self.spec.components.response(HTTPStatus(status).name, response, lazy=True)

    def _register_pagination_header(self) -> None:
        """Register nothing: `meta` has the position of a page."""

    def _register_error_handlers(self) -> None:
        """Register nothing: ANSWERS has the handlers."""


OWN_ID = {"type": "string", "minLength": 1, "maxLength": 255, **AN_ID}


def _without_null(converter: Any, field: Any, ret: Any) -> dict[str, Any]:
    """Remove a null default from a field that may be absent but never null."""
    if ret.get("default", ...) is None and not field.allow_none:
        del ret["default"]
    return {}


def _as_json(converter: Any, field: Any, ret: Any) -> dict[str, Any]:
    """Describe a JSON text in a query by its content."""
    if not isinstance(field, JsonText):
        return {}
    return {"content": {"application/json": {"schema": ret.pop("schema")}}}
