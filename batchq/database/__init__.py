"""Opens the database: engines, transactions, the database's clock, and the wait for others' commits."""

from __future__ import annotations

from batchq.database.sqlite import SqliteDatabase, Transaction, open_sqlite, sqlite_path

__all__ = ["SqliteDatabase", "Transaction", "open_sqlite", "sqlite_path"]
