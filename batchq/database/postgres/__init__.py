"""PostgreSQL: one small pool of connections per process, and what keeps it going through outages.

Every transaction is one synchronous function over a SQLAlchemy connection, as on SQLite; its statements wait on
the event loop (SQLAlchemy's greenlets), so that psycopg and asyncpg serve alike.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
from sqlalchemy import Connection, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from batchq.database.contract import OnLocked, Transaction
from batchq.database.location import shown
from batchq.database.postgres.engine import cut_when_silent, make_engine
from batchq.database.postgres.listening import CHANNEL, Listener, News, PostgresWatcher
from batchq.database.postgres.opening import prepare
from batchq.database.postgres.refusal import is_conflict, is_prepared_elsewhere, is_unsupported_option, translate
from batchq.database.tasks import end_of
from batchq.database.version import CLOCK_AND_VERSION, check_version
from batchq.errors import DatabaseBusy, DatabaseUnavailable, DataRefused

T = TypeVar("T")

_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
# READ COMMITTED: a statement that waited for a row sees it as it is now, and the guards decide.
_WRITE = "BEGIN ISOLATION LEVEL READ COMMITTED"
_CONFLICT_SECONDS = (0.005, 0.05)
_AWAY_SECONDS = (0.1, 0.5)
_CONFLICTS = 20
_LONG_SECONDS = 5.0
_COALESCE_SECONDS = 0.02


async def open_postgres(
    url: URL, *, create: bool, clock: Callable[[], int] | None = None, on_locked: OnLocked | None = None
) -> PostgresDatabase:
    """Open the queue in the database at `url`, making its tables if `create`.

    Raises NoDatabase, SchemaMismatch, DatabaseUnavailable or ConfigurationError.
    """
    database = PostgresDatabase(url, clock, on_locked)
    try:
        await database.prepare(create=create)
    except BaseException:
        await database.close()
        raise
    return database


class _NotNow:
    """Nothing was done: the server is away, or the transaction lost to another one."""

    def __init__(self, reason: Exception, *, conflict: bool) -> None:
        self.reason = reason
        self.conflict = conflict


class _NotBegunError(Exception):
    """The connection was dead before anything was done on it."""


class PostgresDatabase:
    """A queue in a PostgreSQL database. Use from one event loop; close it before the loop ends."""

    file: Path | None = None

    def __init__(self, url: URL, clock: Callable[[], int] | None, on_locked: OnLocked | None) -> None:
        """Make one that is not connected yet; `open_postgres` is the way in."""
        self.location = shown(url)
        self._url = url
        self._pooled = False
        self._engine = make_engine(url, pooled=False)
        self._clock = clock
        self._on_locked = on_locked
        self._news = News()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._announced = 0.0

    async def read(self, body: Callable[[Transaction], T]) -> T:
        """Run `body` in a read transaction, which sees one moment."""
        return await self._try(partial(self._transact, _READ, body), patience=None)

    async def write(
        self, body: Callable[[Transaction], T], *, patience: float | None = None, announce: bool = False
    ) -> T:
        """Run `body` in a write transaction and commit it; `announce` tells listening runners of it.

        Waits up to `patience` seconds where no connection can be had. Raises DatabaseUnavailable then, and where
        the connection was lost on the way: whether it was committed is unknown. A cancellation never breaks a
        transaction: it is raised when that is over.
        """
        result = await self._try(partial(self._transact, _WRITE, body), patience=patience)
        self._news.came()
        if announce:
            await self._announce()
        return result

    async def make_index(self, ddl: str) -> None:
        """Make an index while others go on writing."""
        name = ddl.split(" ON ", maxsplit=1)[0].rsplit(maxsplit=1)[-1]
        if not await self.read(lambda tx: _is_there(tx.connection, name)):
            await self._try(partial(_make_index, ddl=ddl, name=name), patience=None, silence=False)

    def watch(self) -> PostgresWatcher:
        """Return what tells one waiter of commits; the caller closes it."""
        if "listen" not in self._tasks:
            self._tasks["listen"] = asyncio.create_task(Listener(self._engine, self._news).run())
        return PostgresWatcher(self._news)

    async def prepare(self, *, create: bool) -> None:
        """Make the tables if they are missing; many processes may do so at once."""

        def body(connection: Connection) -> None:
            connection.exec_driver_sql(_WRITE)
            prepare(connection, self.location, create=create)
            connection.exec_driver_sql("COMMIT")

        await self._try(body, patience=0.0)
        await self.read(lambda _transaction: None)  # refuses another schema version

    async def close(self) -> None:
        """Close all connections."""
        with anyio.CancelScope(shield=True):
            if "announce" in self._tasks:
                await asyncio.wait([self._tasks["announce"]])
            for task in self._tasks.values():
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks.values())
            self._tasks.clear()
            await self._engine.dispose()

    async def _try(self, body: Callable[[Connection], T], *, patience: float | None, silence: bool = True) -> T:
        """Have `body` done on a connection, again where it was not begun, or lost to another transaction."""
        wait, conflicts = _Wait(patience, self._on_locked), 0
        while True:
            result = await self._uninterrupted(self._once(body, silence=silence))
            if not isinstance(result, _NotNow):
                return result
            conflicts += result.conflict
            if not result.conflict:
                await wait.a_moment(result.reason)
            elif conflicts > _CONFLICTS:
                raise DatabaseBusy(f"{self.location}: others were in the way {conflicts} times") from result.reason
            else:
                await asyncio.sleep(random.uniform(*_CONFLICT_SECONDS))

    async def _uninterrupted(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.get_running_loop().create_task(work)
        with anyio.CancelScope(shield=True):
            await end_of(task)
        return task.result()

    async def _once(self, body: Callable[[Connection], T], *, silence: bool) -> T | _NotNow:
        try:
            connection = await self._engine.connect()
        except DBAPIError as error:
            if is_unsupported_option(error) and not self._pooled:
                return await self._go_through_pooler(error)
            return _NotNow(translate(error, self.location), conflict=False)
        except (OSError, TimeoutError, PoolTimeout) as error:  # asyncpg's own; the pool's
            return _NotNow(DatabaseUnavailable(f"{self.location} can't be reached: {error}"), conflict=False)
        try:
            if not silence:
                return await connection.run_sync(body)
            with cut_when_silent(connection, asyncio.get_running_loop().call_later):
                return await connection.run_sync(body)
        except DBAPIError as error:
            return await self._after(error)
        except _NotBegunError as error:
            return _NotNow(error, conflict=True)
        except (UnicodeEncodeError, OverflowError) as error:
            raise DataRefused(f"{self.location} can't hold a value: {error}") from error
        finally:
            await connection.close()

    async def _after(self, error: DBAPIError) -> _NotNow:
        """Return what may be tried again; raise what the error means otherwise."""
        if is_prepared_elsewhere(error) and not self._pooled:
            return await self._go_through_pooler(error)
        if is_conflict(error):
            return _NotNow(error, conflict=True)
        meaning = translate(error, self.location)
        if meaning is error:
            raise error
        raise meaning from error

    async def _go_through_pooler(self, error: Exception) -> _NotNow:
        """Do without what belongs to a session: another one may answer each transaction."""
        self._pooled = True
        await self._engine.dispose()
        self._engine = make_engine(self._url, pooled=True)
        return _NotNow(error, conflict=True)

    def _transact(self, begin: str, body: Callable[[Transaction], T], connection: Connection) -> T:
        try:
            connection.exec_driver_sql(begin)
        except DBAPIError as error:
            if error.connection_invalidated:
                raise _NotBegunError from error
            raise
        try:
            now, version = connection.execute(CLOCK_AND_VERSION).one()
            check_version(self.location, version)
            result = body(Transaction(connection, self._clock() if self._clock else now))
            connection.exec_driver_sql("COMMIT")
        except BaseException:
            with suppress(DBAPIError):
                connection.exec_driver_sql("ROLLBACK")
            raise
        return result

    async def _announce(self) -> None:
        """Tell listeners, at most once in a moment: each notice takes a lock of the whole server at its commit."""
        if "announce" in self._tasks:
            return
        wait = self._announced + _COALESCE_SECONDS - time.monotonic()
        if wait <= 0:
            await self._notify()
        else:
            self._tasks["announce"] = asyncio.create_task(self._announce_after(wait))

    async def _announce_after(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self._notify()
        self._tasks.pop("announce", None)

    async def _notify(self) -> None:
        self._announced = time.monotonic()
        with suppress(Exception):  # they poll, too
            await self._uninterrupted(self._once(_send_notice, silence=True))


class _Wait:
    """A wait for a server: as long as patience allows, and told of, once, when it lasts."""

    def __init__(self, patience: float | None, on_locked: OnLocked | None) -> None:
        self._patience = patience or 0.0
        self._on_locked = on_locked
        self._began = time.monotonic()

    async def a_moment(self, reason: Exception) -> None:
        """Sleep before the next try. Raises the reason when patience has ended, or when waiting can't help."""
        waited = time.monotonic() - self._began
        if waited >= self._patience or not isinstance(reason, DatabaseUnavailable):
            raise reason
        if waited > _LONG_SECONDS and self._on_locked is not None:
            self._on_locked(f"{reason}; waiting for it")
            self._on_locked = None
        await asyncio.sleep(random.uniform(*_AWAY_SECONDS))


def _send_notice(connection: Connection) -> None:
    connection.exec_driver_sql(f"NOTIFY {CHANNEL}")


def _is_there(connection: Connection, name: str) -> bool:
    found = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)"
    return connection.execute(text(found), {"name": name}).scalar_one_or_none() is True


def _make_index(connection: Connection, ddl: str, name: str) -> None:
    """Make an index outside of any transaction; one that was left half-made is made anew."""
    connection.exec_driver_sql("SET statement_timeout = 0")
    connection.exec_driver_sql("SET lock_timeout = 0")
    try:
        if not _is_there(connection, name):
            connection.exec_driver_sql(f"DROP INDEX IF EXISTS {name}")
            connection.exec_driver_sql(ddl.replace("CREATE INDEX", "CREATE INDEX CONCURRENTLY", 1))
    finally:
        connection.invalidate()  # with what was set
