"""Removes the file of a queue that is empty and that no other process has open."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from batchq.schema import REMOVED


def remove_if_empty(path: Path) -> bool:
    """Delete a queue's file if it holds no batch and nobody has it open; return whether it did.

    Leaving WAL needs the file for itself alone (sqlite.org/wal.html), and takes -wal and -shm away. Whoever
    opened the file in the moment before it went waits for the lock, then reads that it was removed, and writes
    nothing that would be lost. Killed at any point, there is an empty queue or none.
    """
    path = Path(os.path.realpath(path))  # a link stays
    with suppress(sqlite3.Error), closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as connection:
        if connection.execute("PRAGMA journal_mode=DELETE").fetchone() != ("delete",):
            return False
        connection.execute("PRAGMA journal_mode=MEMORY")  # no file is left behind beside a new queue
        connection.execute("BEGIN EXCLUSIVE")
        if connection.execute("SELECT 1 FROM batches LIMIT 1").fetchone() is None:
            connection.execute("UPDATE meta SET value = ? WHERE name = 'schema_version'", (REMOVED,))
            path.unlink()
            connection.execute("COMMIT")
            return True
        connection.execute("ROLLBACK")
    return False
