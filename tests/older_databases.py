"""Databases as an older batchq left them, and what there is to say of a schema."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from raw_connection import connect
from sqlalchemy import Boolean, MetaData, create_engine, text

from batchq.migrations import upgrade

VERSION_1 = json.loads((Path(__file__).parent / "version_1" / "rows.json").read_text())


def make_version_1(location: str, *, rows: bool = True) -> None:
    """Make the tables of version 1, with what its program wrote."""
    engine = create_engine(location if "://" in location else f"sqlite:///{location}")
    try:
        with engine.begin() as connection:
            upgrade(connection, 0, 1)
            if rows:
                _fill(connection)
    finally:
        engine.dispose()
    if "://" not in location:
        with closing(sqlite3.connect(location)) as file:
            file.execute("PRAGMA journal_mode=WAL")


def _fill(connection: Any) -> None:
    found = MetaData()
    found.reflect(connection)
    for table in found.sorted_tables:
        flags = [column.name for column in table.columns if isinstance(column.type, Boolean)]
        rows = [row | {name: bool(row[name]) for name in flags} for row in VERSION_1["rows"][table.name]]
        if rows and table.name != "meta":
            connection.execute(table.insert(), rows)
        if connection.dialect.name == "postgresql" and table.name in {"batches", "jobs"}:
            connection.execute(text(f"SELECT setval('{table.name}_id_seq', (SELECT max(id) FROM {table.name}))"))


def described(location: str) -> dict[str, Any]:
    """All of a schema, in what words the database itself has for it."""
    with connect(location) as connection:
        return _of_file(connection) if connection.is_sqlite else _of_server(connection)


def parts_of(sql: str) -> list[str]:
    """The definitions of a CREATE statement, in no order: columns that are added come behind constraints."""
    flat = re.sub(r"\s*([(),])\s*", r"\1", " ".join(sql.replace('"', "").split()))
    parts, depth = [""], 0
    for character in flat:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and depth == 1:
            parts.append("")
        else:
            parts[-1] += character
    head, _, first = parts[0].partition("(")
    last, _, tail = parts[-1].rpartition(")")
    inner = [first, *parts[1:-1], last] if len(parts) > 1 else [parts[0]]
    return [head, *sorted(inner), tail.strip()]


def _of_file(connection: Any) -> dict[str, Any]:
    made = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    tables = [row["name"] for row in made if row["type"] == "table"]
    return {
        "application": connection.execute("PRAGMA application_id")[0][0],
        "sql": {row["name"]: parts_of(row["sql"]) for row in made},
        "columns": {name: [tuple(row) for row in connection.execute(f"PRAGMA table_xinfo({name})")] for name in tables},
    }


_OURS = "JOIN pg_class t ON t.oid = {} WHERE t.relnamespace = 'public'::regnamespace AND t.relkind IN ('r', 'S', 'i')"
_ASKED = {
    "columns": "SELECT t.relname, attname, format_type(atttypid, atttypmod) AS type, attnotnull, attstorage, attnum,"
    " (SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = attrelid AND adnum = attnum) AS fallback"
    f" FROM pg_attribute {_OURS.format('attrelid')} AND attnum > 0 AND NOT attisdropped ORDER BY 1, attnum",
    "constraints": "SELECT t.relname, conname, contype::text, pg_get_constraintdef(c.oid) AS means"
    f" FROM pg_constraint c {_OURS.format('conrelid')} ORDER BY 1, 2",
    "indexes": f"SELECT pg_get_indexdef(indexrelid) AS means, indisvalid FROM pg_index {_OURS.format('indrelid')} ORDER BY 1",
    "stored": "SELECT relname, relkind::text, (SELECT array_agg(each ORDER BY each) FROM unnest(reloptions) AS each)"
    " AS options FROM pg_class t WHERE relnamespace = 'public'::regnamespace ORDER BY 1",
}


def _of_server(connection: Any) -> dict[str, Any]:
    return {what: [dict(row) for row in connection.execute(sql)] for what, sql in _ASKED.items()}
