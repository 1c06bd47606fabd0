"""Rows by the thousand: the quickest way that each database has to take them in."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Table

from batchq.database.contract import Transaction

Rows = Sequence[tuple[object, ...]]


def copy_rows(tx: Transaction, table: Table, columns: Sequence[str], rows: Rows) -> None:
    """Insert rows, each with a value for each of `columns`."""
    connection, name = tx.connection, table.name
    if connection.dialect.name == "postgresql":
        from batchq.database.postgres.copying import copy

        copy(connection, name, columns, rows)
        return
    marks = ", ".join("?" * len(columns))
    connection.exec_driver_sql(f"INSERT INTO {name} ({', '.join(columns)}) VALUES ({marks})", list(rows))
