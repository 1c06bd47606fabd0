"""Opens the database: engines, transactions, the database's clock, and the wait for others' commits.

The only room that tells SQLite from PostgreSQL; `dialect` has what their statements spell differently.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from batchq.database.contract import Database, OnLocked, Transaction, Watcher
from batchq.database.inspection import Inspection, inspect_database
from batchq.database.location import database_file, locate, shown, shown_location
from batchq.database.rules import FileRules
from batchq.database.sqlite import open_sqlite
from batchq.database.sqlite.checkpoint import CHECKPOINT_BYTES
from batchq.database.sqlite.examining import FileFacts, open_file_to_examine
from batchq.database.sqlite.network import mount_of, network_file_system, read_mounts
from batchq.database.sqlite.refusal import RESCUE
from batchq.database.sqlite.removal import remove_if_empty

__all__ = [
    "CHECKPOINT_BYTES",
    "RESCUE",
    "Database",
    "FileFacts",
    "FileRules",
    "Inspection",
    "OnLocked",
    "Transaction",
    "Watcher",
    "database_file",
    "inspect_database",
    "locate",
    "mount_of",
    "network_file_system",
    "open_database",
    "open_to_examine",
    "read_mounts",
    "remove_if_empty",
    "shown",
    "shown_location",
    "upgrade_database",
]


async def open_database(
    location: str,
    *,
    create: bool,
    clock: Callable[[], int] | None = None,
    on_locked: OnLocked | None = None,
    moving: bool = False,
    rules: Callable[[], FileRules] = FileRules,
) -> Database:
    """Open the queue at a path or URL, creating its tables if `create`. An older SQLite file is upgraded.

    Raises NoDatabase, NotABatchqDatabase, SchemaMismatch, DatabaseUnavailable or ConfigurationError. `clock`
    replaces the database's clock, for tests. `on_locked` hears, once for each wait, why a long one lasts. `moving` is
    for who moves the queue from one database to another, and looks himself at what is in this one. `rules` is asked
    what this process may do with a SQLite file, when that is to be known.
    """
    found = locate(location)
    if isinstance(found, Path):
        return await open_sqlite(found, create=create, clock=clock, on_locked=on_locked, moving=moving, rules=rules)
    from batchq.database.postgres import open_postgres

    return await open_postgres(found, create=create, clock=clock, on_locked=on_locked, moving=moving)


async def open_to_examine(location: str) -> tuple[Database, FileFacts | None]:
    """Open what is at a path or URL to look at it: nothing is made, upgraded or written.

    Returns what a SQLite file says of itself along with it: that need not be a queue. Raises NoDatabase,
    NotABatchqDatabase, SchemaMismatch on a server, DatabaseUnavailable or ConfigurationError.
    """
    found = locate(location)
    if isinstance(found, Path):
        return await open_file_to_examine(found)
    from batchq.database.postgres import open_postgres

    return await open_postgres(found, create=False), None


async def upgrade_database(location: str, *, rules: Callable[[], FileRules] = FileRules) -> tuple[str, int | None]:
    """Upgrade the queue at a path or URL; return what it is called, and the schema version that it had if it was old.

    Raises NoDatabase, NotABatchqDatabase, SchemaMismatch for a newer one, DatabaseUnavailable or ConfigurationError.
    """
    found = locate(location)
    if isinstance(found, Path):
        database = await open_sqlite(found, create=False, rules=rules)
        await database.close()
        return database.location, database.upgraded_from
    from batchq.database.postgres import PostgresDatabase

    server = PostgresDatabase(found, None, None)
    try:
        return server.location, await server.upgrade()
    finally:
        await server.close()
