"""Rows by the thousand: the quickest way that each database has to take them in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Table

from batchq.database.contract import Transaction
from batchq.database.driver import on_driver

Rows = Sequence[tuple[object, ...]]


def copy_rows(tx: Transaction, table: Table, columns: Sequence[str], rows: Rows) -> None:
    """Insert rows, each with a value for each of `columns`."""
    connection, name = tx.connection, table.name
    match connection.dialect.driver:
        case "psycopg" | "psycopg_async":
            on_driver(connection, f"COPY {name}", lambda driver: _copy_psycopg(driver, name, columns, rows))
        case "asyncpg":
            on_driver(connection, f"COPY {name}", lambda driver: _copy_asyncpg(driver, name, columns, rows))
        case _:
            marks = ", ".join("?" * len(columns))
            connection.exec_driver_sql(f"INSERT INTO {name} ({', '.join(columns)}) VALUES ({marks})", list(rows))


async def _copy_psycopg(driver: Any, table: str, columns: Sequence[str], rows: Rows) -> None:  # noqa: ANN401
    async with driver.cursor() as cursor, cursor.copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN") as copy:
        for row in rows:
            await copy.write_row(row)


async def _copy_asyncpg(driver: Any, table: str, columns: Sequence[str], rows: Rows) -> None:  # noqa: ANN401
    await driver.copy_records_to_table(table, records=rows, columns=list(columns))
