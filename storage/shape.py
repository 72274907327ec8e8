"""The schema of an SQLite file, as facts that can be compared."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import peewee

from storage.engine import Shape

# Tables of Litestream, which replicates the file; nothing of ours refers to them.
REPLICATION = ("_litestream_lock", "_litestream_seq")

COMMENT = re.compile(r"--[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)

TOKEN = re.compile(
    rf"""{COMMENT.pattern}|'(?:[^']|'')*'|"(?:[^"]|"")*"|\w+|[^\w\s]""", re.DOTALL
)


def shape(database: peewee.Database) -> Shape:
    """Return the schema: the facts of each table, and the names of everything else.

    The SQL of a migrated schema differs from that of a new one, so the order of columns
    and constraints and the spaces are ignored. SQLite's own tables, such as its
    statistics, are left out.
    """
    schema_facts: Shape = {}
    texts: dict[str, str] = {}
    master = "SELECT type, name, tbl_name, sql FROM main.sqlite_master"
    for kind, name, table, text in database.execute_sql(master).fetchall():
        texts[name] = text or ""
        if kind == "trigger":
            schema_facts[f"trigger {name!r} of {table!r}"] = set()
    for schema, name, kind, _, rowless, strict in _pragma(database, "table_list"):
        # A virtual table represents its shadow tables.
        if schema != "main" or name.startswith("sqlite_") or kind == "shadow":
            continue
        facts: set[str] = set()
        if kind == "table":
            if name in REPLICATION and not _foreign_keys(database, name):
                continue
            facts = _columns(database, name) | _foreign_keys(database, name)
            facts |= _indexes(database, name, texts) | _rules(texts[name])
            facts |= {"option WITHOUT ROWID"} if rowless else set()
            facts |= {"option STRICT"} if strict else set()
        kind = "virtual table" if kind == "virtual" else kind
        schema_facts[f"{kind} {name!r}"] = facts
    return schema_facts


def _pragma(database: peewee.Database, name: str, *arguments: str) -> list[Any]:
    places = ", ".join("?" * len(arguments))
    query = f"SELECT * FROM pragma_{name}({places})"  # noqa: S608  # names of ours
    return list(database.execute_sql(query, arguments).fetchall())


def _columns(database: peewee.Database, table: str) -> set[str]:
    return {
        f"column {name!r} {kind}"
        + (" NOT NULL" if required else "")
        + ("" if default is None else f" DEFAULT {default}")
        + (f" PRIMARY KEY {key}" if key else "")
        + (" GENERATED" if hidden else "")
        for _, name, kind, required, default, key, hidden in _pragma(
            database, "table_xinfo", table, "main"
        )
    }


def _indexes(database: peewee.Database, table: str, texts: dict[str, str]) -> set[str]:
    rules = set()
    listed = _pragma(database, "index_list", table, "main")
    for _, index, is_unique, origin, is_partial in listed:
        columns = [
            f"{name!r}"
            + (" DESC" if is_descending else "")
            + ("" if collation == "BINARY" else f" COLLATE {collation}")
            for _, _, name, is_descending, collation, is_key in _pragma(
                database, "index_xinfo", index, "main"
            )
            if is_key
        ]
        fact = f"({', '.join(columns)})"
        if origin == "c":  # else SQLite created it and chose its name
            fact = f"index {index!r} {fact}"
        if is_partial or "None" in columns:  # a condition, or an expression
            fact += f": {' '.join(_tokens(texts[index]))}"
        rules.add(f"{'unique ' if is_unique else ''}{fact}")
    return rules


def _foreign_keys(database: peewee.Database, table: str) -> set[str]:
    keys: dict[int, list[Any]] = {}
    for key, *clauses in _pragma(database, "foreign_key_list", table, "main"):
        keys.setdefault(key, []).append(clauses)
    rules = set()
    for parts in keys.values():
        columns = ", ".join(
            f"{ours!r} = {theirs!r}" for _, _, ours, theirs, *_ in parts
        )
        _, other, _, _, *actions = parts[0]
        rules.add(f"foreign key to {other!r} ({columns}) {' / '.join(actions)}")
    return rules


def _tokens(text: str) -> list[str]:
    """Return the tokens of SQL; only quoted ones keep their case."""
    return [
        token if token[0] in "'\"" else token.lower()
        for token in TOKEN.findall(text)
        if not COMMENT.fullmatch(token)
    ]


def _rules(text: str) -> set[str]:
    """Return the checks of a table, and the clauses that no pragma reports."""
    words = _tokens(text)
    rules: list[str] = []
    place = 0
    while place < len(words):
        word, start = words[place], place
        place += 1
        if word == "check":
            depth = 0
            while place < len(words):
                depth += {"(": 1, ")": -1}.get(words[place], 0)
                place += 1
                if depth == 0:
                    break
            rules.append(" ".join(words[start:place]))
        elif word in ("collate", "conflict", "initially"):
            rules.append(" ".join(words[start : start + 2]))
        elif word in ("deferrable", "autoincrement"):
            is_denied = words[start - 1] == "not"
            rules.append(f"not {word}" if is_denied else word)
    return {
        f"rule {rule}" + (f", {times} times" if times > 1 else "")
        for rule, times in Counter(rules).items()
    }
