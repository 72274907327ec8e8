"""The choice of the engine, by the URL or the file of a database."""

from __future__ import annotations

from pathlib import Path

from playhouse import db_url

from storage import files
from storage.engine import Engine, NotReady
from storage.sqlite import Sqlite


def database_at(url: str, setting: str = "DATABASE_URL") -> Engine:
    """Return the database at this URL; nothing is opened before it is used.

    Raise NotReady if the URL names no engine that is supported; *setting* is what the
    message calls it.
    """
    scheme = url.partition(":")[0]
    if scheme in ("postgresql", "postgres"):
        # Imported late: the driver takes memory and time that SQLite does not need.
        from storage.postgres import Postgres

        return Postgres(url)
    if scheme != "sqlite":
        raise NotReady(
            f"{setting} starts with {scheme!r}; it must be sqlite:///… or "
            "postgresql://…."
        )
    path = db_url.parse(url)["database"]
    return Sqlite.at(None if path == ":memory:" else Path(path).absolute())


def copy_at(file: Path) -> Engine:
    """Return the database in a file that is a copy, for reading only."""
    return Sqlite.copy_at(file)


def is_database(file: Path) -> bool:
    """Tell whether a file is a database; only regular files are opened."""
    return files.is_database(file)
