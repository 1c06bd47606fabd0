"""Rows by the thousand: the quickest way that each database has to take them in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.util import await_only

from batchq.database.contract import Transaction

Rows = Sequence[tuple[object, ...]]


def copy_rows(tx: Transaction, table: Table, columns: Sequence[str], rows: Rows) -> None:
    """Insert rows, each with a value for each of `columns`."""
    connection = tx.connection
    match connection.dialect.driver:
        case "psycopg" | "psycopg_async":
            await_only(_copy_psycopg(_driver(connection), table.name, columns, rows))
        case "asyncpg":
            await_only(_driver(connection).copy_records_to_table(table.name, records=rows, columns=list(columns)))
        case _:
            marks = ", ".join("?" * len(columns))
            connection.exec_driver_sql(f"INSERT INTO {table.name} ({', '.join(columns)}) VALUES ({marks})", list(rows))


def _driver(connection: Connection) -> Any:  # noqa: ANN401 - psycopg's or asyncpg's
    return connection.connection.driver_connection


async def _copy_psycopg(driver: Any, table: str, columns: Sequence[str], rows: Rows) -> None:  # noqa: ANN401
    async with driver.cursor() as cursor, cursor.copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN") as copy:
        for row in rows:
            await copy.write_row(row)
