"""SQLite: one writing and one reading connection per process, and the discipline they keep.

Every transaction is one call on its connection's own thread (an aiosqlite connection is a thread with
a queue): a transaction costs one hop instead of four per statement, and a cancelled task can't leave
one half done. Facts behind the settings: sqlite.org/wal.html, sqlite.org/wal.html#walresetbug.
"""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import aiosqlite
import anyio
from sqlalchemy import Connection, create_engine, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import StaticPool

from batchq.database.checkpoint import Checkpointer
from batchq.database.dialect import clock_ms
from batchq.errors import (
    ConfigurationError,
    DatabaseBusy,
    DatabaseUnavailable,
    DataRefused,
    NoDatabase,
    NotABatchqDatabase,
    SchemaMismatch,
)
from batchq.schema import APPLICATION_ID, SCHEMA_VERSION, meta, metadata

T = TypeVar("T")

_BUSY_CODES = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_FOREIGN_CODES = {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}
_RETRY_SECONDS = (0.0005, 0.002)
_YIELD_SECONDS = (0.001, 0.020)
_OPEN_PATIENCE = 30.0

_CLOCK_AND_VERSION = select(clock_ms(), select(meta.c.value).where(meta.c.name == "schema_version").scalar_subquery())


@dataclass(frozen=True, slots=True)
class Transaction:
    """A running transaction: its connection, and the one reading of the clock that it uses."""

    connection: Connection
    now: int


class _Busy:
    """Another process holds the write lock: nothing was done."""


_BUSY = _Busy()


def sqlite_path(location: str) -> Path:
    """Return the absolute path that `location` names: a path or a `sqlite://` URL."""
    if "://" not in location:
        return Path(location).expanduser().absolute()
    try:
        url = make_url(location)
    except ArgumentError as error:
        raise ConfigurationError(f"{location!r} is not a database URL: {error}") from error
    if url.get_backend_name() != "sqlite":
        raise ConfigurationError(f"{url.get_backend_name()} is not supported; use a path or sqlite:///path")
    if not url.database or url.database == ":memory:":
        raise ConfigurationError("a queue needs a file: an in-memory database can't be shared or survive")
    return Path(url.database).expanduser().absolute()


async def open_sqlite(path: Path, *, create: bool, clock: Callable[[], int] | None = None) -> SqliteDatabase:
    """Open the queue at `path`, creating file and tables if `create`.

    Raises NoDatabase, NotABatchqDatabase, SchemaMismatch or DatabaseUnavailable. `clock` replaces the
    database's clock, for tests.
    """
    _require_file(path, create=create)
    writer = await _connect(path)
    try:
        reader = await _connect(path)
    except BaseException:
        await writer.close()
        raise
    database = SqliteDatabase(path, writer, reader, clock)
    try:
        await database.prepare(create=create)
    except BaseException:
        await database.close()
        raise
    return database


class SqliteDatabase:
    """A queue's SQLite file. Use from one event loop; close it before the loop ends."""

    def __init__(
        self, path: Path, writer: aiosqlite.Connection, reader: aiosqlite.Connection, clock: Callable[[], int] | None
    ) -> None:
        """Wrap two open connections; `open_sqlite` is the way in."""
        self.path = path
        self._writer = _ConnectionThread(writer)
        self._reader = _ConnectionThread(reader)
        self._clock = clock
        self._write_lock = anyio.Lock(fast_acquire=True)
        self._not_before = 0.0
        self._checkpointer = Checkpointer(path)
        self._watcher: sqlite3.Connection | None = None
        self._watched = -1

    async def read(self, body: Callable[[Transaction], T]) -> T:
        """Run `body` in a read transaction; it must be short, since it holds back the checkpoint.

        Readers wait for nobody but one who recovers or closes the log, which is over in a moment.
        """
        deadline = time.monotonic() + _OPEN_PATIENCE
        while True:
            with anyio.CancelScope(shield=True):
                result = await self._reader.call(lambda connection: self._transact(connection, "BEGIN", body))
            if not isinstance(result, _Busy):
                return result
            if time.monotonic() > deadline:
                raise DatabaseUnavailable(f"{self.path} can't be read: another process has it to itself")
            await anyio.sleep(random.uniform(*_RETRY_SECONDS))

    async def write(self, body: Callable[[Transaction], T], *, patience: float | None = None) -> T:
        """Run `body` in a write transaction and commit it; waits for the lock up to `patience` seconds.

        Raises DatabaseBusy when patience ends. Cancellation is honoured while waiting and never during
        the transaction, so that the outcome of a commit is always known.
        """
        deadline = None if patience is None else time.monotonic() + patience
        async with self._write_lock:
            if (pause := self._not_before - time.monotonic()) > 0:
                await anyio.sleep(pause)
            while True:
                began = time.monotonic()
                with anyio.CancelScope(shield=True):
                    result = await self._writer.call(
                        lambda connection: self._transact(connection, "BEGIN IMMEDIATE", body)
                    )
                if not isinstance(result, _Busy):
                    break
                if deadline is not None and time.monotonic() > deadline:
                    raise DatabaseBusy(f"{self.path} is locked by another process; waited {patience:g} s")
                # SQLite's own busy handler is not fair: it starved one of two processes for seconds.
                await anyio.sleep(random.uniform(*_RETRY_SECONDS))
            self._yield_to_others(time.monotonic() - began)
            if self._checkpointer.due():
                with anyio.CancelScope(shield=True):
                    await self._writer.call(self._checkpointer.run)
        return result

    def changed(self) -> bool:
        """Whether anybody (also this process) committed since the last call; about 3 µs.

        On a raw connection of its own: PRAGMA data_version does not see its own connection's commits.
        """
        if self._watcher is None:
            self._watcher = sqlite3.connect(self.path, isolation_level=None, timeout=0)
        version = _data_version(self._watcher)
        if version is None:
            return False
        changed = version != self._watched
        self._watched = version
        return changed

    async def prepare(self, *, create: bool) -> None:
        """Switch to WAL and make the tables if they are missing; many processes may do so at once."""
        deadline = time.monotonic() + _OPEN_PATIENCE
        while True:
            with anyio.CancelScope(shield=True):
                ready = await self._writer.call(lambda connection: _prepare(connection, self.path, create=create))
            if ready:
                break
            if time.monotonic() > deadline:
                raise DatabaseBusy(f"{self.path} is locked by another process; waited {_OPEN_PATIENCE:g} s")
            await anyio.sleep(random.uniform(0.005, 0.05))
        await self._reader.call(lambda connection: connection.exec_driver_sql("PRAGMA query_only=ON"))
        await self.read(lambda _transaction: None)  # refuses another schema version

    async def close(self) -> None:
        """Close all connections; the last process out leaves no -wal file behind."""
        with anyio.CancelScope(shield=True):
            if self._watcher is not None:
                self._watcher.close()
            await self._reader.close()
            await self._writer.close()

    def _transact(self, connection: Connection, begin: str, body: Callable[[Transaction], T]) -> T | _Busy:
        try:
            connection.exec_driver_sql(begin)
            now, version = connection.execute(_CLOCK_AND_VERSION).one()
        except DBAPIError as error:
            connection.rollback()
            if _code(error) in _BUSY_CODES:
                return _BUSY
            raise _translate(error, self.path) from error
        try:
            _check_version(self.path, version)
            result = body(Transaction(connection, self._clock() if self._clock else now))
            connection.commit()
        except DBAPIError as error:
            connection.rollback()
            raise _translate(error, self.path) from error
        except (UnicodeEncodeError, OverflowError) as error:
            connection.rollback()
            raise DataRefused(f"{self.path} can't hold a value: {error}") from error
        except BaseException:
            connection.rollback()
            raise
        return result

    def _yield_to_others(self, spent: float) -> None:
        """Leave the lock alone for as long as we held it, if somebody else is writing too."""
        if self._writer.others_wrote:
            low, high = _YIELD_SECONDS
            self._not_before = time.monotonic() + min(max(spent, low), high)


class _ConnectionThread:
    """One connection and its thread."""

    def __init__(self, driver: aiosqlite.Connection) -> None:
        self._driver = driver
        # StaticPool hands out the connection that aiosqlite's thread already owns.
        self._engine = create_engine(
            "sqlite://",
            creator=lambda: driver._conn,  # noqa: SLF001
            poolclass=StaticPool,
            pool_reset_on_return=None,
        )
        self._connection: Connection | None = None
        self._version = 0
        self.others_wrote = False

    async def call(self, function: Callable[[Connection], T]) -> T:
        """Run `function` on the connection's thread; shield it, since it can't be cancelled."""
        # aiosqlite has no public way to run more than one statement per hop.
        result = await self._driver._execute(self._run, function)  # type: ignore[no-untyped-call]  # noqa: SLF001
        return cast("T", result)

    async def close(self) -> None:
        """Close the connection and end its thread."""
        self._engine.dispose(close=False)
        await self._driver.close()

    def _run(self, function: Callable[[Connection], T]) -> T:
        if self._connection is None:
            self._connection = self._engine.connect()
        result = function(self._connection)
        # On this connection the counter moves only when others commit.
        version = _data_version(self._driver._conn)  # noqa: SLF001
        if version is not None:
            self.others_wrote = version != self._version
            self._version = version
        return result


async def _connect(path: Path) -> aiosqlite.Connection:
    driver = aiosqlite.connect(path, isolation_level=None, timeout=0, cached_statements=256)
    driver._thread.daemon = True  # noqa: SLF001 - a connection lost to a crash must not keep the process alive
    try:
        return await driver
    except sqlite3.Error as error:
        driver._thread.join()  # noqa: SLF001 - its last word goes to the event loop, which may be about to close
        raise DatabaseUnavailable(f"can't open {path}: {error}") from error


def _data_version(connection: sqlite3.Connection) -> int | None:
    """Return the counter of commits; None while somebody has the file to himself, to recover or close the log."""
    try:
        version: int = connection.execute("PRAGMA data_version").fetchone()[0]
    except sqlite3.OperationalError:
        return None
    return version


def _prepare(connection: Connection, path: Path, *, create: bool) -> bool:
    try:
        return _prepare_or_fail(connection, path, create=create)
    except DBAPIError as error:
        connection.rollback()
        if _code(error) in _BUSY_CODES:
            return False
        raise _translate(error, path) from error


def _prepare_or_fail(connection: Connection, path: Path, *, create: bool) -> bool:
    run = connection.exec_driver_sql
    for pragma in ("synchronous=FULL", "fullfsync=ON", "foreign_keys=ON", "wal_autocheckpoint=0",
                   "journal_size_limit=4194304", "temp_store=MEMORY", "cache_size=-16384"):  # fmt: skip
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
        return True
    connection.rollback()
    run("BEGIN IMMEDIATE")
    if not run("SELECT count(*) FROM sqlite_master").scalar_one():
        metadata.create_all(connection)
        connection.execute(meta.insert(), {"name": "schema_version", "value": str(SCHEMA_VERSION)})
        run(f"PRAGMA application_id={APPLICATION_ID}")
    connection.commit()
    return True


def _require_file(path: Path, *, create: bool) -> None:
    """Create the file before SQLite does: its -wal and -shm inherit the permissions."""
    if path.exists():
        return
    if not create:
        raise NoDatabase(f"there is no queue at {path}; enqueue something first, or name another with --db")
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise DatabaseUnavailable(f"can't create {path}: {error.strerror}") from error


def _code(error: DBAPIError) -> int | None:
    """Return the primary result code: extended codes carry it in their low byte."""
    code = getattr(error.orig, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _translate(error: DBAPIError, path: Path) -> Exception:
    code, text = _code(error), str(error.orig)
    if code in _FOREIGN_CODES:
        return NotABatchqDatabase(f"{path} is not a usable SQLite database: {text}")
    if code == sqlite3.SQLITE_READONLY:
        return DatabaseUnavailable(f"{path} can't be written: {text}; check the permissions of file and directory")
    if code in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, *_BUSY_CODES}:
        return DatabaseUnavailable(f"{path} can't be used right now: {text}")
    if code in {sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_RANGE}:
        return DataRefused(f"{path} refused a value: {text}")
    return error


def _check_version(path: Path, version: str | None) -> None:
    if version == str(SCHEMA_VERSION):
        return
    if version is not None and int(version) > SCHEMA_VERSION:
        raise SchemaMismatch(
            f"{path} was made by a newer batchq (schema {version}, this one knows {SCHEMA_VERSION}); upgrade batchq"
        )
    raise SchemaMismatch(f"{path} has schema {version}, this batchq needs {SCHEMA_VERSION}")
