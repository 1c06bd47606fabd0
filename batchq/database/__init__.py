"""Opens the database: engines, transactions, the database's clock, and the wait for others' commits."""

from __future__ import annotations

from batchq.database.opening import sqlite_path
from batchq.database.removal import remove_if_empty
from batchq.database.sqlite import OnLocked, SqliteDatabase, Transaction, Watcher, open_sqlite

__all__ = ["OnLocked", "SqliteDatabase", "Transaction", "Watcher", "open_sqlite", "remove_if_empty", "sqlite_path"]
