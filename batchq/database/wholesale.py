"""What moving whole tables asks of a database: one order of texts for both, and how far their ids go."""

from __future__ import annotations

from sqlalchemy import Table, Text, text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from batchq.database.contract import Transaction

_SQLITE_LAST = text("SELECT seq FROM sqlite_sequence WHERE name = :name")
_SQLITE_SET = text("UPDATE sqlite_sequence SET seq = max(seq, :last) WHERE name = :name")
_SQLITE_START = text("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :last)")
_POSTGRES_LAST = text("SELECT pg_sequence_last_value(pg_get_serial_sequence(:name, 'id'))")
_POSTGRES_SET = text("SELECT setval(pg_get_serial_sequence(:name, 'id'), :last)")


class bytewise(FunctionElement[str]):  # noqa: N801 - reads like the SQL that it is
    """A text, to be ordered and compared by its bytes, whatever language a database was made for."""

    type = Text()
    inherit_cache = True


@compiles(bytewise, "sqlite")
def _bytewise_sqlite(element: bytewise, compiler: SQLCompiler, **options: object) -> str:
    return compiler.process(element.clauses, **options)


@compiles(bytewise, "postgresql")
def _bytewise_postgresql(element: bytewise, compiler: SQLCompiler, **options: object) -> str:
    return f'({compiler.process(element.clauses, **options)}) COLLATE "C"'


def shut_out_others(tx: Transaction) -> None:
    """Wait until all who have read the version of the schema are done, and keep others from reading it until we are."""
    if tx.connection.dialect.name != "sqlite":
        tx.connection.exec_driver_sql("LOCK TABLE meta IN ACCESS EXCLUSIVE MODE")


def last_id(tx: Transaction, table: Table) -> int:
    """Return the highest id that a table ever gave; rows with it may be deleted by now."""
    statement = _SQLITE_LAST if tx.connection.dialect.name == "sqlite" else _POSTGRES_LAST
    return tx.connection.execute(statement, {"name": table.name}).scalar_one_or_none() or 0


def give_ids_behind(tx: Transaction, table: Table, last: int) -> None:
    """Have a table give only higher ids than `last` from now on; it never goes back."""
    bound = {"name": table.name, "last": max(last, last_id(tx, table))}
    if not bound["last"]:
        return
    if tx.connection.dialect.name != "sqlite":
        tx.connection.execute(_POSTGRES_SET, bound)
    elif not tx.connection.execute(_SQLITE_SET, bound).rowcount:
        tx.connection.execute(_SQLITE_START, bound)


def count_values(tx: Transaction, tables: list[Table]) -> None:
    """Tell PostgreSQL's planner at once what came by the thousand; SQLite's plans need no telling."""
    if tx.connection.dialect.name != "sqlite":
        tx.connection.exec_driver_sql(f"ANALYZE {', '.join(table.name for table in tables)}")
