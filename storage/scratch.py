"""A temporary database for data that does not fit into memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import peewee


@contextmanager
def scratch(folder: Path | None) -> Iterator[peewee.SqliteDatabase]:
    """Yield an empty SQLite database in a file in this folder, and drop it.

    It is SQLite, whatever engine the service has. The file is unlinked at once, so that
    it disappears with the process. A temporary table would be in memory, because of how
    the driver is compiled. Threads may use it in turn.
    """
    with tempfile.NamedTemporaryFile(dir=folder) as file:  # mode 0600
        database = peewee.SqliteDatabase(
            file.name,
            pragmas={"journal_mode": "off", "synchronous": "off"},
            thread_safe=False,
            check_same_thread=False,
        )
        database.connect()
    try:
        yield database
    finally:
        database.close()
