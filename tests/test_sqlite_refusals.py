"""What SQLite refuses to the statements that go past SQLAlchemy: it is told like what SQLAlchemy tells."""

from __future__ import annotations

import sqlite3

import pytest
from sqlalchemy import BigInteger

from batchq.database.staging import StagedRows
from batchq.errors import DatabaseUnavailable, DataRefused, NotABatchqDatabase

pytestmark = pytest.mark.anyio

REFUSALS = {
    sqlite3.SQLITE_FULL: DatabaseUnavailable,
    sqlite3.SQLITE_IOERR | (10 << 8): DatabaseUnavailable,
    sqlite3.SQLITE_BUSY: DatabaseUnavailable,
    sqlite3.SQLITE_TOOBIG: DataRefused,
    sqlite3.SQLITE_CORRUPT: NotABatchqDatabase,
    sqlite3.SQLITE_ERROR: sqlite3.OperationalError,
    None: sqlite3.OperationalError,
}


@pytest.mark.parametrize("code", REFUSALS)
async def test_an_error_of_the_driver_itself_is_told_by_its_code(sqlite_store, code):
    def refuse(_transaction) -> None:
        error = sqlite3.OperationalError("it says no")
        if code is not None:
            error.sqlite_errorcode = code
        raise error

    with pytest.raises(REFUSALS[code], match="it says no"):
        await sqlite_store._database.write(refuse)
    with pytest.raises(REFUSALS[code], match="it says no"):
        await sqlite_store._database.read(refuse)
    await sqlite_store._database.write(lambda _transaction: None, patience=1)


async def test_rows_that_can_not_be_staged_are_no_error_of_the_driver(sqlite_store):
    staged = StagedRows("told", {"number": BigInteger()})

    def refuse(action: int, *_named: str | None) -> int:
        return sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_CREATE_TEMP_TABLE else sqlite3.SQLITE_OK

    def stage(transaction) -> None:
        driver = transaction.connection.connection.driver_connection
        driver.set_authorizer(refuse)
        try:
            staged.stage(transaction, [(1,)])
        finally:
            driver.set_authorizer(None)

    with pytest.raises(DatabaseUnavailable, match="not authorized"):
        await sqlite_store._database.write(stage)
    await sqlite_store._database.write(lambda _transaction: None, patience=1)
