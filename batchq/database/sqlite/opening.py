"""Opens a queue's file: where it is, whose it is, its settings and its tables, of an older version or of this one."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from batchq.database.rules import FileRules
from batchq.database.sqlite.network import network_file_system
from batchq.database.sqlite.refusal import BUSY_CODES, code_of, translate
from batchq.database.version import VERSION, outdated
from batchq.errors import ConfigurationError, DatabaseUnavailable, NoDatabase, NotABatchqDatabase, SchemaMismatch
from batchq.schema import APPLICATION_ID, SCHEMA_VERSION, meta, metadata

_PRAGMAS = (
    "synchronous=FULL",
    "fullfsync=ON",
    "foreign_keys=ON",
    "wal_autocheckpoint=0",
    "journal_size_limit=4194304",
    "temp_store=MEMORY",
    "cache_size=-16384",
)


def require_file(path: Path, rules: Callable[[], FileRules], *, create: bool) -> None:
    """Refuse what can't be a queue's file, and create the file before SQLite does: its -wal and -shm get its mode.

    The rules are asked for only where they matter: they may have to be read.
    """
    kind = network_file_system(path)
    if kind is not None and not rules().network:
        raise ConfigurationError(
            f"{path} is on a file system of the kind {kind}, which machines share and SQLite does not work on: it may"
            " lose or damage the queue. Use a local disk, or PostgreSQL; --allow-network-fs takes the risk, or"
            " BATCHQ_ALLOW_NETWORK_FS=1, where all processes run on one machine"
        )
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if not create:
            raise NoDatabase(
                f"there is no queue at {path}; enqueue something first, or name another with --db"
            ) from None
        _create(path, rules().mode)
    except OSError as error:
        raise DatabaseUnavailable(f"can't open {path}: {error.strerror}") from error
    else:
        if not stat.S_ISREG(mode):
            raise DatabaseUnavailable(f"{path} is no regular file, and can't hold a queue; name another with --db")


def _create(path: Path, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            if mode != 0o600 and os.fstat(descriptor).st_size == 0:
                os.chmod(path, mode)  # noqa: PTH101 - beside the others; whatever the process's mask says
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DatabaseUnavailable(f"can't create {path}: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class Prepared:
    """A file that is ready; `upgraded_from` is the schema version that it had if this process has upgraded it."""

    upgraded_from: int | None = None


def prepare(connection: Connection, path: Path, *, create: bool) -> Prepared | None:
    """Switch to WAL, and make the tables or upgrade them; None if somebody else is at it: ask again."""
    try:
        return _prepare(connection, path, create=create)
    except DBAPIError as error:
        connection.rollback()
        if code_of(error) in BUSY_CODES:
            return None
        raise translate(error, path) from error


def _prepare(connection: Connection, path: Path, *, create: bool) -> Prepared:
    run = connection.exec_driver_sql
    for pragma in _PRAGMAS:
        run(f"PRAGMA {pragma}")
    tables = run("SELECT count(*) FROM sqlite_master").scalar_one()
    application = run("PRAGMA application_id").scalar_one()
    if tables and application != APPLICATION_ID:
        raise NotABatchqDatabase(f"{path} is a database, but not one of batchq's; name another with --db")
    if not tables and not create:
        raise NoDatabase(f"{path} is empty: there is no queue in it; enqueue something first")
    if run("PRAGMA journal_mode").scalar_one() != "wal" and run("PRAGMA journal_mode=WAL").scalar_one() != "wal":
        raise DatabaseUnavailable(f"{path} is on a file system that can't hold a shared queue (no WAL)")
    if tables:
        return _upgrade(connection, path)
    connection.rollback()
    run("BEGIN IMMEDIATE")
    if not run("SELECT count(*) FROM sqlite_master").scalar_one():
        metadata.create_all(connection)
        connection.execute(meta.insert(), {"name": "schema_version", "value": str(SCHEMA_VERSION)})
        run(f"PRAGMA application_id={APPLICATION_ID}")
    connection.commit()
    return Prepared()


def _upgrade(connection: Connection, path: Path) -> Prepared:
    """Bring an older schema to this version, whole or not at all; somebody else may do so at the same moment."""
    version = _outdated(connection)
    connection.rollback()
    if version is None:
        return Prepared()
    from batchq.migrations import upgrade  # before the lock is taken: Alembic takes its time

    try:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        version = _outdated(connection)
        if version is not None:
            upgrade(connection, version, SCHEMA_VERSION)
            connection.commit()
    except DBAPIError as error:
        if code_of(error) == sqlite3.SQLITE_READONLY:
            raise SchemaMismatch(
                f"{path} has schema {version}, this batchq needs {SCHEMA_VERSION}, and can't write it to upgrade it:"
                " open it once as a user who may"
            ) from error
        raise
    finally:
        connection.rollback()
    return Prepared(upgraded_from=version)


def _outdated(connection: Connection) -> int | None:
    return outdated(connection.execute(VERSION).scalar_one_or_none())
