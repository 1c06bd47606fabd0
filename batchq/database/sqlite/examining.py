"""Opens a queue's file to look at it, whatever state it is in: nothing is made, upgraded, switched or moved."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from batchq.database.sqlite import SqliteDatabase
from batchq.database.sqlite.presence import Presence
from batchq.database.sqlite.refusal import translate
from batchq.database.sqlite.thread import connect
from batchq.schema import APPLICATION_ID


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a SQLite file says of itself."""

    ours: bool
    empty: bool
    journal_mode: str
    pages: int
    free_pages: int
    page_bytes: int


async def open_file_to_examine(path: Path) -> tuple[SqliteDatabase, FileFacts]:
    """Open a file that is there to read it, and return what it says of itself.

    Raises DatabaseUnavailable, or NotABatchqDatabase for what is no SQLite file or is damaged.
    """
    presence = Presence(path)
    looking = await connect(path, mode=_mode(path))
    database = SqliteDatabase(path, presence, (looking, looking), None, None)
    try:
        facts = await looking.call(_read_facts)
    except DBAPIError as error:
        await database.close()
        raise translate(error, path) from error
    except BaseException:
        await database.close()
        raise
    return database, facts


def _mode(path: Path) -> str:
    """Return the mode in which a look leaves the files as they are.

    Whoever may write and leaves last folds the log into the file, and removes it: a log with something in it is only
    read. One that is opened only to read stays, and would be made: where there is none, it is removed again.
    """
    try:
        return "ro" if os.stat(f"{os.path.realpath(path)}-wal").st_size else "rw"  # noqa: PTH116
    except OSError:
        return "rw"


def _read_facts(connection: Connection) -> FileFacts:
    run = connection.exec_driver_sql
    run("PRAGMA query_only=ON")
    run("PRAGMA wal_autocheckpoint=0")
    tables = run("SELECT count(*) FROM sqlite_master").scalar_one()
    return FileFacts(
        ours=run("PRAGMA application_id").scalar_one() == APPLICATION_ID,
        empty=not tables,
        journal_mode=run("PRAGMA journal_mode").scalar_one(),
        pages=run("PRAGMA page_count").scalar_one(),
        free_pages=run("PRAGMA freelist_count").scalar_one(),
        page_bytes=run("PRAGMA page_size").scalar_one(),
    )
