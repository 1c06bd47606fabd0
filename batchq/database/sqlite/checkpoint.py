"""Moves the write-ahead log into the database file, from one place and with writers excluded.

SQLite 3.7.0 to 3.51.2 can lose committed pages when a checkpoint races with a writer that restarts the
log (sqlite.org/wal.html#walresetbug), so automatic checkpoints are off on every connection. A reader
that stays open only delays this: the log grows until it is gone.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from batchq.database.sqlite.presence import Presence
from batchq.database.sqlite.thread import connect_plainly

CHECKPOINT_BYTES = 16 * 1024 * 1024


class Checkpointer:
    """Decides when the log is long enough, and folds it in while this process holds the write lock."""

    def __init__(self, path: Path, presence: Presence) -> None:
        """Watch the log of `path`: it is beside the file itself, where that is a link."""
        self._path = path
        self._presence = presence
        self._log = Path(f"{os.path.realpath(path)}-wal")
        self._threshold = CHECKPOINT_BYTES

    def due(self) -> bool:
        """Whether the log has outgrown its threshold; costs one stat."""
        return self._log_size() > self._threshold

    def run(self, connection: Connection) -> None:
        """Checkpoint on a second connection while `connection` keeps all writers out.

        Never raises: the commit before it is safe in the log, and what is wrong shows in the next one.
        """
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            if self._presence.gone():
                return  # the lock is one on another file; the next commit tells
            complete = self._fold_in()
        except DBAPIError:
            return  # somebody is writing; the next commit asks again
        except sqlite3.Error:
            complete = False
        finally:
            with suppress(DBAPIError):
                connection.rollback()
        # While a reader holds it back, ask again only when the log has grown by as much again.
        self._threshold = CHECKPOINT_BYTES if complete else self._log_size() + CHECKPOINT_BYTES

    def _log_size(self) -> int:
        try:
            return self._log.stat().st_size
        except OSError:
            return 0  # there is none yet, or it can't be looked at

    def _fold_in(self) -> bool:
        """Copy the log; return whether all of it was copied."""
        with closing(connect_plainly(self._path)) as second:
            second.execute("PRAGMA wal_autocheckpoint=0")
            second.execute("PRAGMA synchronous=FULL")
            busy, frames, moved = second.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        return not busy and frames == moved
