"""SQLite: one writing and one reading connection per process, and the discipline they keep.

Every transaction is one call on its connection's own thread (an aiosqlite connection is a thread with
a queue): a transaction costs one hop instead of four per statement, and a cancelled task can't leave
one half done. Facts behind the settings: sqlite.org/wal.html, sqlite.org/wal.html#walresetbug.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from batchq.database.contract import OnLocked, Transaction
from batchq.database.rules import FileRules
from batchq.database.sqlite.checkpoint import Checkpointer
from batchq.database.sqlite.opening import prepare, require_file
from batchq.database.sqlite.presence import Presence
from batchq.database.sqlite.refusal import BUSY_CODES, code_of, translate
from batchq.database.sqlite.thread import ConnectionThread, connect, connect_plainly, data_version
from batchq.database.version import CLOCK_AND_VERSION, check_version
from batchq.errors import DatabaseBusy, DatabaseUnavailable, DataRefused, StoreError

T = TypeVar("T")

LOCKED_SECONDS = 5.0
# How long to wait between two tries at the most: at first, then this part of what was waited so far, up to a limit, so
# that a crowd does not keep the one busy that it waits for.
_RETRY_SECONDS, _RETRY_PART, _LONGEST_RETRY_SECONDS = 0.002, 0.05, 0.05
_YIELD_SECONDS = (0.001, 0.020)
_OPEN_PATIENCE = 30.0
_READ = "BEGIN"


class _Busy:
    """Another process holds the lock: nothing was done."""


_BUSY = _Busy()


async def open_sqlite(
    path: Path,
    *,
    create: bool,
    clock: Callable[[], int] | None = None,
    on_locked: OnLocked | None = None,
    moving: bool = False,
    rules: Callable[[], FileRules] = FileRules,
) -> SqliteDatabase:
    """Open the queue at `path`, creating file and tables if `create`; one of an older version is upgraded.

    Raises NoDatabase, NotABatchqDatabase, SchemaMismatch, DatabaseUnavailable or ConfigurationError. `clock` replaces
    the database's clock, for tests. `on_locked` hears, once for each wait, of a lock that others hold for long.
    `moving` is for who moves the queue: it may be in this database in part. `rules` is asked what may be done with
    the file.
    """
    require_file(path, rules, create=create)
    presence = Presence(path)
    writer = await connect(path)
    try:
        reader = await connect(path)
    except BaseException:
        await writer.close()
        raise
    database = SqliteDatabase(path, presence, (writer, reader), clock, on_locked, moving=moving)
    try:
        await database.prepare(create=create)
    except BaseException:
        await database.close()
        raise
    return database


class SqliteDatabase:
    """A queue's SQLite file. Use from one event loop; close it before the loop ends."""

    # Whoever writes holds the only lock.
    rows_per_write = 2_000

    def __init__(
        self,
        path: Path,
        presence: Presence,
        connections: tuple[ConnectionThread, ConnectionThread],
        clock: Callable[[], int] | None,
        on_locked: OnLocked | None,
        *,
        moving: bool = False,
    ) -> None:
        """Wrap two open connections, one to write and one to read; `open_sqlite` is the way in."""
        self.file = path
        self.upgraded_from: int | None = None
        self._presence = presence
        self._writer, self._reader = connections
        self._clock = clock
        self._on_locked = on_locked
        self._moving = moving
        self._write_lock = anyio.Lock(fast_acquire=True)
        self._not_before = 0.0
        self._checkpointer = Checkpointer(path, presence)

    @property
    def location(self) -> str:
        """The absolute path of the file."""
        return str(self.file)

    async def read(self, body: Callable[[Transaction], T], *, patience: float | None = None) -> T:  # noqa: ARG002
        """Run `body` in a read transaction; it must be short, since it holds back the checkpoint.

        Readers wait for nobody but one who recovers or closes the log, which is over in a moment.
        """
        wait = _Wait(self.file, _OPEN_PATIENCE, DatabaseUnavailable, self._on_locked)
        transact = partial(self._transact, begin=_READ, body=body)
        while isinstance(result := await self._reader.call(transact), _Busy):
            await wait.a_moment()
        return result

    async def write(
        self,
        body: Callable[[Transaction], T],
        *,
        patience: float | None = None,
        announce: bool = False,  # noqa: ARG002
    ) -> T:
        """Run `body` in a write transaction and commit it; waits for the lock up to `patience` seconds.

        Raises DatabaseBusy when patience ends. A cancellation ends the wait at once, and never a
        transaction: one that comes during it is raised when it is over and everything is as if it had
        come behind it. Who is cancelled then does not hear the result, though it was committed.
        Whoever waits sees every commit by himself, announced or not.
        """
        transact = partial(self._transact, begin="BEGIN IMMEDIATE", body=body)
        async with self._write_lock:
            wait = _Wait(self.file, patience, DatabaseBusy, self._on_locked)
            if (pause := self._not_before - time.monotonic()) > 0:
                await anyio.sleep(pause)
            began = time.monotonic()
            while isinstance(result := await self._writer.call(transact), _Busy):
                await wait.a_moment()
                began = time.monotonic()
            self._yield_to_others(time.monotonic() - began)
            if self._checkpointer.due():
                await self._writer.call(self._checkpointer.run)
        return result

    async def make_index(self, ddl: str) -> None:
        """Make an index unless it is there; it holds the write lock while it is made."""
        await self.write(lambda tx: tx.connection.exec_driver_sql(ddl))

    def watch(self, notice: Callable[[], None] | None = None) -> SqliteWatcher:  # noqa: ARG002 - nobody tells
        """Return what tells one waiter of commits; the caller closes it."""
        return SqliteWatcher(self.file)

    async def prepare(self, *, create: bool) -> None:
        """Switch to WAL, and make or upgrade the tables; many processes may do so at once."""
        wait = _Wait(self.file, _OPEN_PATIENCE, DatabaseBusy, self._on_locked)
        while (prepared := await self._writer.call(partial(prepare, path=self.file, create=create))) is None:
            await wait.a_moment()
        self.upgraded_from = prepared.upgraded_from
        await self._reader.call(lambda connection: connection.exec_driver_sql("PRAGMA query_only=ON"))
        await self.read(lambda _transaction: None)  # refuses another schema version
        self._presence.settle()

    async def close(self) -> None:
        """Close all connections; the last process out leaves no -wal file behind."""
        with anyio.CancelScope(shield=True):
            await self._reader.close()
            await self._writer.close()

    def _transact(self, connection: Connection, begin: str, body: Callable[[Transaction], T]) -> T | _Busy:
        begun = False
        try:
            connection.exec_driver_sql(begin)
            now, version = connection.execute(CLOCK_AND_VERSION).one()
            begun = True
            if not self._moving:
                check_version(self.file, version, writing=begin != _READ)
            result = body(Transaction(connection, self._clock() if self._clock else now))
            self._presence.check()
            connection.commit()
        except BaseException as error:
            _roll_back(connection)
            if not begun and isinstance(error, DBAPIError) and code_of(error) in BUSY_CODES:
                return _BUSY
            meaning = self._meaning(error)
            if meaning is error:
                raise
            raise meaning from error
        return result

    def _meaning(self, error: BaseException) -> BaseException:
        match error:
            case DBAPIError() | sqlite3.Error():
                return self._presence.gone() or translate(error, self.file)
            case UnicodeEncodeError() | OverflowError():
                return DataRefused(f"{self.file} can't hold a value: {error}")
            case MemoryError():
                return DatabaseUnavailable(f"{self.file} can't be used right now: out of memory")
        return error

    def _yield_to_others(self, spent: float) -> None:
        """Leave the lock alone for as long as we held it, if somebody else is writing too."""
        if self._writer.others_wrote:
            low, high = _YIELD_SECONDS
            self._not_before = time.monotonic() + min(max(spent, low), high)


class SqliteWatcher:
    """Tells one waiter of commits, anybody's, also its own process's; each waiter needs its own.

    A raw connection: PRAGMA data_version does not see its own connection's commits.
    """

    poll_seconds = 0.05

    def __init__(self, path: Path) -> None:
        """Watch from now on; close it, best with `closing`."""
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._seen = self._commits()

    def changed(self) -> bool:
        """Whether anybody committed since the last call; about 3 µs."""
        commits = self._commits()
        if commits is None or commits == self._seen:
            return False
        self._seen = commits
        return True

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _commits(self) -> int | None:
        """Return a number that every commit changes; None if it can't be read at the moment."""
        if self._connection is None:
            try:
                self._connection = connect_plainly(self._path)
            except sqlite3.Error:
                return None
        return data_version(self._connection)


class _Wait:
    """A wait for a lock: as long as patience allows, and told of, once, when it lasts."""

    def __init__(
        self, path: Path, patience: float | None, failure: type[StoreError], on_locked: OnLocked | None
    ) -> None:
        self._path = path
        self._patience = patience
        self._failure = failure
        self._on_locked = on_locked
        self._began = time.monotonic()

    async def a_moment(self) -> None:
        """Sleep before the next try. Raises the failure when patience has ended."""
        waited = time.monotonic() - self._began
        if self._patience is not None and waited > self._patience:
            raise self._failure(f"{self._path} is locked by another process; waited {self._patience:g} s")
        if waited > LOCKED_SECONDS and self._on_locked is not None:
            self._on_locked(f"{self._path} is locked by another process; waiting for it")
            self._on_locked = None
        # SQLite's own busy handler is not fair: it starved one of two processes for seconds.
        longest = min(max(_RETRY_SECONDS, _RETRY_PART * waited), _LONGEST_RETRY_SECONDS)
        await anyio.sleep(random.uniform(longest / 4, longest))


def _roll_back(connection: Connection) -> None:
    with suppress(DBAPIError):  # SQLite itself has rolled back what it could not finish
        connection.rollback()
