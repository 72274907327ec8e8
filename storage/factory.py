"""Which engine a database has: chosen by its URL, or by its file."""

from __future__ import annotations

from pathlib import Path

from playhouse import db_url

from storage import files
from storage.engine import Engine, NotReady
from storage.sqlite import Sqlite


def database_at(url: str) -> Engine:
    """Return the database at this URL; nothing is opened before it is used.

    Raise NotReady where it is no URL of playhouse.db_url that we know.
    """
    scheme = url.partition(":")[0]
    if scheme != "sqlite":
        raise NotReady(f"DATABASE_URL starts with {scheme!r}; it must be sqlite:///….")
    path = db_url.parse(url)["database"]
    return Sqlite.at(None if path == ":memory:" else Path(path).absolute())


def copy_at(file: Path) -> Engine:
    """Return the copy of a database that a file is, to be read as it lies there."""
    return Sqlite.copy_at(file)


def is_database(file: Path) -> bool:
    """Tell whether a file is a database of an engine; nothing but a file is opened."""
    return files.is_database(file)
