"""Opens the database: engines, transactions, the database's clock, and the wait for others' commits.

The only room that tells SQLite from PostgreSQL; `dialect` has what their statements spell differently.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from batchq.database.contract import Database, OnLocked, Transaction, Watcher
from batchq.database.location import database_file, locate, shown
from batchq.database.sqlite import open_sqlite
from batchq.database.sqlite.removal import remove_if_empty

__all__ = [
    "Database",
    "OnLocked",
    "Transaction",
    "Watcher",
    "database_file",
    "locate",
    "open_database",
    "remove_if_empty",
    "shown",
]


async def open_database(
    location: str, *, create: bool, clock: Callable[[], int] | None = None, on_locked: OnLocked | None = None
) -> Database:
    """Open the queue at a path or URL, creating its tables if `create`.

    Raises NoDatabase, NotABatchqDatabase, SchemaMismatch, DatabaseUnavailable or ConfigurationError. `clock`
    replaces the database's clock, for tests. `on_locked` hears, once for each wait, why a long one lasts.
    """
    found = locate(location)
    if isinstance(found, Path):
        return await open_sqlite(found, create=create, clock=clock, on_locked=on_locked)
    from batchq.database.postgres import open_postgres

    return await open_postgres(found, create=create, clock=clock, on_locked=on_locked)
