"""The settings of the service: the only place that reads them from the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

MAX_LEEWAY = 300  # seconds; with more, ended tokens would live on

# A `*` alone opens the service to every page.
ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[a-z0-9._-]+(:\d+)?", re.ASCII | re.I)


class Setting(NamedTuple):
    """One setting, as the manual has it in its table."""

    name: str
    meaning: str
    default: str = ""


SETTINGS = (
    Setting(
        "INSTANCE",
        "the folder of the secret and the database",
        "`instance` beside the code",
    ),
    Setting(
        "DATABASE_URL",
        "`sqlite:////absolute/path.db`, or `postgresql://user:password@host/name`",
        "`abacus.db` in the instance folder",
    ),
    Setting(
        "JWT_SECRET_KEY",
        "at least 32 bytes, and not a known word",
        "`secret` in the instance folder",
    ),
    Setting(
        "JWT_ALGORITHM",
        "the only one that is accepted: HS256, RS256, ES256 or EdDSA",
        "`HS256`",
    ),
    Setting("JWT_PUBLIC_KEY", "a PEM key, for any of the last three"),
    Setting(
        "JWT_JWKS_URL",
        "or where an identity provider publishes its keys, each with a `kid`",
    ),
    Setting(
        "JWT_PREVIOUS_KEY",
        "a second secret, or PEM key, that still verifies while the first one signs",
    ),
    Setting("JWT_ISSUER", "the `iss` that every token must have; if unset, none may"),
    Setting("JWT_AUDIENCE", "the `aud` that every token must have; if unset, none may"),
    Setting("JWT_LEEWAY", f"seconds that clocks may differ, 0 to {MAX_LEEWAY}", "`10`"),
    Setting(
        "CORS_ORIGINS",
        "origins, with spaces between, that may enrol and convert from a browser",
    ),
)


class WrongSetting(ValueError):
    """A setting has a value that cannot be used; the message says which and why."""


def read(config: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """Return the app's configuration; *config* takes precedence over the environment.

    The names of flask-jwt-extended are set from ours. An empty variable counts as
    unset. Raise WrongSetting where a value cannot be used.
    """
    environment = {one.name: os.environ.get(one.name) or None for one in SETTINGS}
    values: dict[str, Any] = {**environment, **config}
    instance = Path(values["INSTANCE"] or root / "instance").absolute()
    values["INSTANCE"] = str(instance)
    values["DATABASE_URL"] = (
        values["DATABASE_URL"] or f"sqlite:///{instance / 'abacus.db'}"
    )
    algorithm = values["JWT_ALGORITHM"] = values["JWT_ALGORITHM"] or "HS256"
    issuer, audience = values["JWT_ISSUER"], values["JWT_AUDIENCE"]
    leeway = values["JWT_LEEWAY"]
    return {
        "SECRET_FILE": str(instance / "secret"),
        **values,
        "JWT_DECODE_ALGORITHMS": [algorithm],
        "JWT_DECODE_ISSUER": issuer,
        "JWT_ENCODE_ISSUER": issuer,
        "JWT_DECODE_AUDIENCE": audience,
        "JWT_ENCODE_AUDIENCE": audience,
        "JWT_DECODE_LEEWAY": _leeway(10 if leeway is None else leeway),
        "CORS_ORIGINS": _origins(values["CORS_ORIGINS"]),
    }


def _leeway(value: Any) -> timedelta:
    """Return the leeway; raise WrongSetting unless it is a sensible number."""
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = float("nan")
    if not 0 <= seconds <= MAX_LEEWAY or isinstance(value, bool):  # nor is NaN
        raise WrongSetting(
            f"JWT_LEEWAY must be a number of seconds from 0 to {MAX_LEEWAY}, "
            f"not {value!r}."
        )
    return timedelta(seconds=seconds)


def _origins(value: str | None) -> list[str]:
    """Return the origins that a text lists, with spaces or commas between them.

    Raise WrongSetting unless each is whole: flask_cors would take one with a `*` for a
    regular expression, which also matches the beginning of a foreign origin.
    """
    origins = re.findall(r"[^\s,]+", value or "")
    for origin in origins:
        if not ORIGIN.fullmatch(origin):
            raise WrongSetting(
                "CORS_ORIGINS must list origins such as https://shop.example, without "
                f"a path and without wildcards, not {origin!r}."
            )
    return origins


# The folder of the workers' metrics is an environment variable of prometheus_client,
# which reads it when it is imported. gunicorn's master sets it for its workers, and
# in a second variable notes for a later master (USR2) that the folder is its own.
_METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_OWN_METRICS_FOLDER = "ABACUS_METRICS_FOLDER"


def metrics_folder() -> Path | None:
    """Return the folder of the workers' metrics, or None outside gunicorn."""
    folder = os.environ.get(_METRICS_FOLDER)
    return None if folder is None else Path(folder)


def own_metrics_folder() -> Path | None:
    """Return the metrics folder that a master created, None where the operator did."""
    folder = os.environ.get(_OWN_METRICS_FOLDER)
    return Path(folder) if folder else None


def set_own_metrics_folder(folder: Path) -> None:
    """Name a folder that this master created, to its workers and to later masters."""
    os.environ[_METRICS_FOLDER] = os.environ[_OWN_METRICS_FOLDER] = str(folder)
