"""The schema of a PostgreSQL database, as facts that can be compared."""

from __future__ import annotations

import re
from typing import Any

import peewee

from storage.engine import Shape

KINDS = {
    "r": "table",
    "p": "partitioned table",
    "f": "foreign table",
    "v": "view",
    "m": "materialized view",
}

# What an extension has made is not a part of our schema.
OURS = """
NOT EXISTS (
    SELECT 1 FROM pg_depend
    WHERE pg_depend.objid = pg_class.oid AND pg_depend.deptype = 'e'
)
"""

TABLES = f"""
SELECT pg_class.oid, relname, relkind::text, relpersistence::text,
    relrowsecurity OR relhasrules AS has_rules
FROM pg_class
WHERE relnamespace = current_schema()::regnamespace
    AND relkind IN ('r', 'p', 'f', 'v', 'm') AND {OURS}
ORDER BY relname
"""  # noqa: S608  # text of this module

COLUMNS = """
SELECT attname, format_type(atttypid, atttypmod), collname, attnotnull,
    pg_get_expr(adbin, adrelid)
FROM pg_attribute
LEFT JOIN pg_collation ON pg_collation.oid = attcollation
LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped
"""

CONSTRAINTS = """
SELECT pg_get_constraintdef(oid), convalidated FROM pg_constraint
WHERE conrelid = %s AND contype <> 'n'
"""

INDEXES = """
SELECT pg_get_indexdef(indexrelid), indisvalid FROM pg_index WHERE indrelid = %s
"""

TRIGGERS = "SELECT tgname FROM pg_trigger WHERE tgrelid = %s AND NOT tgisinternal"

# The schema that a table is in, where it is a part of a text.
SCHEMA = re.compile(r'\bpg_temp\w*\.|(?<=\bON )(?:\w+|"[^"]+")\.')


def shape(database: peewee.Database) -> Shape:
    """Return the schema: the facts of each table, and the names of everything else."""
    facts: Shape = {}
    for oid, name, kind, persistence, has_rules in _rows(database, TABLES):
        own: set[str] = set()
        for (trigger,) in _rows(database, TRIGGERS, oid):
            facts[f"trigger {trigger!r} of {name!r}"] = set()
        if kind == "r":
            own = _columns(database, oid)
            for text, is_valid in _rows(database, CONSTRAINTS, oid):
                own.add(f"rule {_text(text)}{'' if is_valid else ' (not valid)'}")
            for text, is_valid in _rows(database, INDEXES, oid):
                own.add(f"index {_text(text)}{'' if is_valid else ' (not valid)'}")
            if persistence == "u":  # it is emptied after a crash
                own.add("option UNLOGGED")
            if has_rules:
                own.add("option rules or row security")
        facts[f"{KINDS[kind]} {name!r}"] = own
    return facts


def _columns(database: peewee.Database, oid: int) -> set[str]:
    columns = set()
    for name, kind, collation, is_required, default in _rows(database, COLUMNS, oid):
        words = [f"column {name!r} {kind}"]
        if collation not in (None, "default"):
            words.append(f"COLLATE {collation}")
        if is_required:
            words.append("NOT NULL")
        if default is not None:
            words.append(f"DEFAULT {_text(default)}")
        columns.add(" ".join(words))
    return columns


def _text(definition: str) -> str:
    return SCHEMA.sub("", definition)


def _rows(database: peewee.Database, query: str, *values: object) -> list[Any]:
    return list(database.execute_sql(query, values).fetchall())
