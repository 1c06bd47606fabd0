"""What SQLite's refusals mean, in batchq's exceptions."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from batchq.errors import DatabaseUnavailable, DataRefused, NotABatchqDatabase, NotWritable

BUSY_CODES = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
RESCUE = (
    "copy the file first, and its -wal if there is one; then go back to a backup, or save what can be read into a new"
    " file: `sqlite3 FILE .recover | sqlite3 NEW`"
)
_DATA_CODES = {sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_RANGE}
# A statement of ours is wrong: waiting would not mend it. No code: the driver itself refused.
_MISTAKE_CODES = {None, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_INTERNAL, sqlite3.SQLITE_MISUSE}


def code_of(error: DBAPIError | sqlite3.Error) -> int | None:
    """Return the primary result code: extended codes carry it in their low byte."""
    code = getattr(_of_driver(error), "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def translate(error: DBAPIError | sqlite3.Error, path: Path) -> Exception:
    """Return the exception to raise instead; the error itself where it is a mistake in this program.

    Whatever is not known to be final (no memory, a lost lock race, codes of newer versions) may pass.
    """
    code, text = code_of(error), str(_of_driver(error))
    if code in _MISTAKE_CODES:
        return error
    if code == sqlite3.SQLITE_CORRUPT:
        return NotABatchqDatabase(f"{path} is damaged: {text}: {RESCUE}")
    if code == sqlite3.SQLITE_NOTADB:
        return NotABatchqDatabase(
            f"{path} is no SQLite database, or its beginning is damaged: {text}; name another with --db, or {RESCUE}"
        )
    if code in _DATA_CODES:
        return DataRefused(f"{path} refused a value: {text}")
    if code == sqlite3.SQLITE_READONLY:
        return NotWritable(
            f"{path} can't be written: {text}; this user must be allowed to write it, its -wal and -shm, and their"
            " directory"
        )
    if code == sqlite3.SQLITE_FULL:
        return DatabaseUnavailable(f"{path} can't grow: {text}; what was stored before is whole: make room on the disk")
    if code == sqlite3.SQLITE_IOERR:
        return DatabaseUnavailable(
            f"{path} can't be read or written: {text}; look at the disk (room, quota, limits, faults)"
        )
    if code == sqlite3.SQLITE_CANTOPEN:
        return DatabaseUnavailable(
            f"{path} can't be opened: {text}; this user must be allowed to write it, its -wal and -shm, and their"
            " directory"
        )
    return DatabaseUnavailable(f"{path} can't be used right now: {text}")


def _of_driver(error: DBAPIError | sqlite3.Error) -> BaseException | None:
    """Return the driver's own error, which some statements raise past SQLAlchemy."""
    return error.orig if isinstance(error, DBAPIError) else error
