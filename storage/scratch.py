"""A database for intermediate results that are too many for memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import peewee


@contextmanager
def scratch(folder: Path | None) -> Iterator[peewee.SqliteDatabase]:
    """Yield an empty SQLite database in a file in this folder, and drop it.

    It is SQLite whatever engine the service has. The file has no name from the start,
    so that it goes with the process, however that ends. A temporary table would stand
    in memory, as the driver is compiled.
    """
    with tempfile.NamedTemporaryFile(dir=folder) as file:  # mode 0600
        database = peewee.SqliteDatabase(
            file.name, pragmas={"journal_mode": "off", "synchronous": "off"}
        )
        database.connect()
    try:
        yield database
    finally:
        database.close()
