"""The yardstick of `speed.py`: Flask answers the JSON body, with a token or without."""

from __future__ import annotations

import os
from typing import Any

from flask import Flask, request
from flask_jwt_extended import JWTManager, jwt_required

app = Flask(__name__)
app.config["JWT_SECRET_KEY"] = os.environ["ECHO_SECRET"]
JWTManager(app)


@app.post("/bare")
def bare() -> Any:
    return request.get_json()


@app.post("/token")
@jwt_required()
def with_token() -> Any:
    return request.get_json()
