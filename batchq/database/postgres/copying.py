"""COPY: rows by the thousand, however long a slow link takes to carry them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

from sqlalchemy import Connection, text

from batchq.database.postgres.driver import on_driver
from batchq.database.postgres.silence import progress

Rows = Sequence[tuple[object, ...]]

# What any link carries well within the timeout of a statement.
_QUICK_CHARACTERS = 500_000
# Rows that are handed over before the link is said to be alive.
_BLOCK_ROWS = 16
_SET = text("SELECT current_setting('statement_timeout'), set_config('statement_timeout', :value, true)")


def copy(connection: Connection, table: str, columns: Sequence[str], rows: Rows) -> None:
    """Insert rows, in a transaction."""
    copy_by = _copy_asyncpg if connection.dialect.driver == "asyncpg" else _copy_psycopg
    with _patient(connection, rows):
        on_driver(connection, f"COPY {table}", lambda driver: copy_by(driver, table, columns, rows))


@contextmanager
def _patient(connection: Connection, rows: Rows) -> Iterator[None]:
    """Let a statement with much to carry take its time: that nothing moves any more is noticed on this side."""
    if sum(len(value) for value in chain.from_iterable(rows) if isinstance(value, str)) <= _QUICK_CHARACTERS:
        yield
        return
    usual = connection.execute(_SET, {"value": "0"}).one()[0]
    yield
    connection.execute(_SET, {"value": usual})


async def _copy_psycopg(driver: Any, table: str, columns: Sequence[str], rows: Rows) -> None:  # noqa: ANN401
    async with driver.cursor() as cursor, cursor.copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN") as copy:
        for start in range(0, len(rows), _BLOCK_ROWS):
            for row in rows[start : start + _BLOCK_ROWS]:
                await copy.write_row(row)
            progress()


async def _copy_asyncpg(driver: Any, table: str, columns: Sequence[str], rows: Rows) -> None:  # noqa: ANN401
    async def taken() -> AsyncIterator[tuple[object, ...]]:
        for row in rows:
            progress()
            yield row

    protocol = driver._protocol  # noqa: SLF001 - who waits to send more is not told of a connection that is lost

    def go_on(_driver: object) -> None:
        protocol.resume_writing()

    driver.add_termination_listener(go_on)
    try:
        await driver.copy_records_to_table(table, records=taken(), columns=list(columns))
    except Exception as error:
        if driver.is_closed():
            raise ConnectionAbortedError("the connection was lost in the middle of COPY") from error
        raise
    finally:
        driver.remove_termination_listener(go_on)
