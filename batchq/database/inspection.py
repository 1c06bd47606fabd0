"""Looks at a database as a whole: what it is, whether it is damaged, and whether all of the schema is there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, inspect, text
from sqlalchemy.schema import CreateIndex

from batchq.database.contract import Transaction
from batchq.database.sqlite.refusal import RESCUE
from batchq.schema import metadata

_MOST_TOLD = 10
_INVALID = text(
    "SELECT index.relname FROM pg_index JOIN pg_class AS index ON index.oid = indexrelid"
    " WHERE indrelid = to_regclass(:table) AND NOT indisvalid"
)


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a look at a database found: its product and version, and sentences about what is wrong, and what to do."""

    product: str
    damage: tuple[str, ...]
    missing: tuple[str, ...]


def inspect_database(tx: Transaction) -> Inspection:
    """Look at a database; on SQLite this reads the whole file."""
    connection = tx.connection
    if connection.dialect.name == "sqlite":
        version = connection.exec_driver_sql("SELECT sqlite_version()").scalar_one()
        product, damage = f"SQLite {version}", _damage_of_file(connection)
    else:
        version = connection.exec_driver_sql("SHOW server_version").scalar_one()
        product, damage = f"PostgreSQL {version}", _invalid_indexes(connection)
    return Inspection(product, tuple(damage), tuple(_missing(connection)))


def _damage_of_file(connection: Connection) -> Iterator[str]:
    found = connection.exec_driver_sql(f"PRAGMA quick_check({_MOST_TOLD})").scalars().all()
    if found != ["ok"]:
        told = "; ".join(" ".join(line.split()) for line in found)
        yield f"{told}: {RESCUE}"
    orphans = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchmany(_MOST_TOLD)
    for table, rowid, parent, _ in orphans:
        yield f"row {rowid} of {table} belongs to none of {parent}: something else than batchq has changed the file"


def _invalid_indexes(connection: Connection) -> Iterator[str]:
    for table in metadata.sorted_tables:
        for name in connection.execute(_INVALID, {"table": table.name}).scalars():
            yield f"the index {name} is not valid: `REINDEX INDEX CONCURRENTLY {name}` makes it anew"


def _missing(connection: Connection) -> Iterator[str]:
    """Tell of tables, columns and indexes that should be there and are not; more of them do no harm."""
    program = "sqlite3 FILE" if connection.dialect.name == "sqlite" else "psql DATABASE"
    found = inspect(connection)
    tables = set(found.get_table_names())
    for table in metadata.sorted_tables:
        if table.name not in tables:
            yield f"the table {table.name} is missing: go back to a copy of the database"
            continue
        columns = {column["name"] for column in found.get_columns(table.name)}
        for name in sorted(set(table.columns.keys()) - columns):
            yield f"the column {table.name}.{name} is missing: go back to a copy of the database"
        indexes = {index["name"] for index in found.get_indexes(table.name)}
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            if index.name not in indexes:
                ddl = " ".join(str(CreateIndex(index).compile(dialect=connection.dialect)).split())
                yield f"the index {index.name} is missing, and what needs it is slow: run with `{program}`: {ddl}"
