"""PostgreSQL: one small pool of connections per process, and what keeps it going through outages.

Every transaction is one synchronous function over a SQLAlchemy connection, as on SQLite; its statements wait on
the event loop (SQLAlchemy's greenlets), so that psycopg and asyncpg serve alike.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
from sqlalchemy import Connection, func
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from batchq.database.contract import OnLocked, Transaction
from batchq.database.location import shown
from batchq.database.postgres.announcing import Announcer
from batchq.database.postgres.driver import say
from batchq.database.postgres.engine import SESSION, is_pooled, make_engine
from batchq.database.postgres.indexes import Index, make_or_await
from batchq.database.postgres.listening import Listener, News, PostgresWatcher
from batchq.database.postgres.opening import prepare, upgrade
from batchq.database.postgres.refusal import (
    is_conflict,
    is_locked,
    is_of_a_standby,
    is_prepared_elsewhere,
    is_unsupported_option,
    translate,
    unreachable,
)
from batchq.database.postgres.silence import Silence, start_waiting
from batchq.database.postgres.waiting import NotNow, Obstacle, Wait
from batchq.database.tasks import end_of
from batchq.database.version import CLOCK_AND_VERSION, check_version
from batchq.errors import DatabaseUnavailable, DataRefused

T = TypeVar("T")

_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
# READ COMMITTED: a statement that waited for a row sees it as it is now, and the guards decide.
_WRITE = "BEGIN ISOLATION LEVEL READ COMMITTED"
# Where settings of a session would go to whoever comes next, they are made anew in each transaction.
_CLOCK_AND_VERSION_POOLED = CLOCK_AND_VERSION.add_columns(
    *(func.set_config(name, value, True) for name, value in SESSION.items())
)
# Reads may be repeated as often as one likes.
_READ_PATIENCE = 60.0
# A server that has just been started, or has no connection left; one that is not there is told of at once.
_OPEN_PATIENCE = 30.0
_UPGRADE_PATIENCE = 60.0
_INDEX_PATIENCE = 60.0


async def open_postgres(
    url: URL,
    *,
    create: bool,
    clock: Callable[[], int] | None = None,
    on_locked: OnLocked | None = None,
    moving: bool = False,
) -> PostgresDatabase:
    """Open the queue in the database at `url`, making its tables if `create`.

    Raises NoDatabase, SchemaMismatch, DatabaseUnavailable or ConfigurationError.
    """
    database = PostgresDatabase(url, clock, on_locked, moving=moving)
    try:
        await database.prepare(create=create)
    except BaseException:
        await database.close()
        raise
    return database


class _NotBegunError(Exception):
    """The connection was dead before anything was done on it."""


class _UnsureError(Exception):
    """The connection was lost while it was committed: that may have come about, or not."""


class PostgresDatabase:
    """A queue in a PostgreSQL database. Use from one event loop; close it before the loop ends."""

    file: Path | None = None
    # Nobody waits for who adds rows; each commit is a round to the server and its disk.
    rows_per_write = 8_000
    upgraded_from: int | None = None

    def __init__(
        self, url: URL, clock: Callable[[], int] | None, on_locked: OnLocked | None, *, moving: bool = False
    ) -> None:
        """Make one that is not connected yet; `open_postgres` is the way in."""
        self.location = shown(url)
        self._url = url
        self._pooled = False
        self._engine = make_engine(url, pooled=False)
        self._clock = clock
        self._on_locked = on_locked
        self._moving = moving
        self._news = News()
        self._listener: Listener | None = None
        self._announcer = Announcer(lambda notice: self._uninterrupted(notice, Silence()))

    async def read(self, body: Callable[[Transaction], T], *, patience: float | None = None) -> T:
        """Run `body` in a read transaction, which sees one moment; it is tried for `patience` seconds, else for 60."""
        patience = _READ_PATIENCE if patience is None else patience
        wait = Wait(self.location, patience, self._on_locked, locked=DatabaseUnavailable)
        return await self._try(partial(self._transact, _READ, body), wait)

    async def write(
        self, body: Callable[[Transaction], T], *, patience: float | None = None, announce: bool = False
    ) -> T:
        """Run `body` in a write transaction and commit it; `announce` tells listening runners of it.

        Tries for `patience` seconds where others hold a lock, or the server is away or is lost on the way; without
        patience just once. Raises DatabaseBusy or DatabaseUnavailable then, and the latter, too, where the server is
        lost during the commit: whether that came about is unknown. A cancellation does not break a transaction: it
        is raised when that is over, or after two seconds.
        """
        result = await self._try(partial(self._transact, _WRITE, body), self._wait(patience))
        self._news.committed()
        if announce:
            self._announcer.announce()
        return result

    async def make_index(self, ddl: str) -> None:
        """Make an index while others go on writing, or wait for the process that is making it."""
        index = Index(ddl)

        async def make() -> bool:
            if await self.read(lambda tx: index.is_there(tx.connection)):
                return True
            wait = self._wait(_INDEX_PATIENCE)
            return await self._try(lambda on: index.make(on, pooled=self._pooled), wait, patient=True)

        await make_or_await(make, self._on_locked, self.location)

    def watch(self, notice: Callable[[], None] | None = None) -> PostgresWatcher:
        """Return what tells one waiter of commits; the caller closes it."""
        if self._listener is None and not self._pooled:  # poolers pass no notices on
            self._listener = Listener(self._engine, self._url, self._news)
        return PostgresWatcher(self._news, notice)

    async def prepare(self, *, create: bool) -> None:
        """Make the tables if they are missing; many processes may do so at once."""
        wait = self._wait(_OPEN_PATIENCE, opening=True)
        if await self._try(is_pooled, wait):
            await self._do_without_sessions()
        opening = partial(prepare, location=self.location, create=create)
        await self._try(opening, wait)
        await self.read(lambda _transaction: None)  # refuses another schema version

    async def upgrade(self) -> int | None:
        """Bring an older schema to this version; return which one it was, None if there was nothing to do."""
        wait = self._wait(_UPGRADE_PATIENCE, opening=True)
        return await self._try(partial(upgrade, location=self.location), wait, patient=True)

    async def close(self) -> None:
        """Close all connections."""
        with anyio.CancelScope(shield=True):
            await self._announcer.close()
            await self._stop_listening()
            await self._engine.dispose()

    async def _stop_listening(self) -> None:
        if self._listener is not None:
            await self._listener.close()
            self._listener = None

    async def _try(self, body: Callable[[Connection], T], wait: Wait, *, patient: bool = False) -> T:
        """Have `body` done on a connection, again where it was not begun, came to nothing, or lost to another one."""
        while True:
            result = await self._uninterrupted(body, Silence(patient=patient))
            if not isinstance(result, NotNow):
                return result
            await wait.a_moment(result)

    def _wait(self, patience: float | None, *, opening: bool = False) -> Wait:
        return Wait(self.location, patience, self._on_locked, opening=opening)

    async def _uninterrupted(self, body: Callable[[Connection], T], silence: Silence) -> T | NotNow:
        """Have `body` done to its end, also when cancelled: but then it has to hurry."""
        task = asyncio.get_running_loop().create_task(self._once(body, silence))
        silence.begin(task)
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            silence.hurry()
            with anyio.CancelScope(shield=True), suppress(asyncio.CancelledError):
                await end_of(task)
            if not task.cancelled():
                task.exception()  # taken note of: it is the cancellation that is raised
            raise
        return task.result()

    async def _once(self, body: Callable[[Connection], T], silence: Silence) -> T | NotNow:
        start_waiting(silence)
        try:
            connection = await self._engine.connect()
        except DBAPIError as error:
            if not self._pooled and (is_unsupported_option(error) or is_prepared_elsewhere(error)):
                return await self._go_through_pooler(error)
            return NotNow(translate(error, self.location), Obstacle.AWAY)
        except (OSError, TimeoutError, PoolTimeout) as error:  # asyncpg's own; the pool's
            return NotNow(unreachable(error, self.location), Obstacle.AWAY)
        finally:
            silence.over()
        try:
            silence.on((await connection.get_raw_connection()).driver_connection)
            return await connection.run_sync(body)
        except DBAPIError as error:
            if is_of_a_standby(error):
                await connection.invalidate()  # where the server's name leads now is another question
            return await self._after(error)
        except _NotBegunError as error:
            return NotNow(error, Obstacle.CONFLICT)
        except _UnsureError as error:
            raise DatabaseUnavailable(f"{error}; whether the last change was stored is unknown") from error
        except (UnicodeEncodeError, OverflowError) as error:
            raise DataRefused(f"{self.location} can't hold a value: {error}") from error
        finally:
            await connection.close()
            silence.over()

    async def _after(self, error: DBAPIError) -> NotNow:
        """Return what may be tried again; raise what the error means otherwise."""
        if is_prepared_elsewhere(error):
            return await self._go_through_pooler(error)
        if is_conflict(error):
            return NotNow(error, Obstacle.CONFLICT)
        if is_locked(error):
            return NotNow(error, Obstacle.LOCKED)
        meaning = translate(error, self.location)
        if meaning is error:
            raise error
        if isinstance(meaning, DatabaseUnavailable):
            meaning.__cause__ = error
            return NotNow(meaning, Obstacle.AWAY)
        raise meaning from error

    async def _go_through_pooler(self, error: Exception) -> NotNow:
        await self._do_without_sessions()
        return NotNow(error, Obstacle.CONFLICT)

    async def _do_without_sessions(self) -> None:
        """Do without what belongs to a session: behind a pooler, another one may answer each transaction."""
        if not self._pooled:
            self._pooled = True
            await self._stop_listening()
            await self._engine.dispose()
            self._engine = make_engine(self._url, pooled=True)

    def _transact(self, begin: str, body: Callable[[Transaction], T], connection: Connection) -> T:
        try:
            say(connection, begin)
        except DBAPIError as error:
            if error.connection_invalidated:
                raise _NotBegunError from error
            raise
        try:
            question = _CLOCK_AND_VERSION_POOLED if self._pooled else CLOCK_AND_VERSION
            now, version, *_ = connection.execute(question).one()
            if not self._moving:
                check_version(self.location, version, writing=begin != _READ)
            result = body(Transaction(connection, self._clock() if self._clock else now, self._clock))
        except BaseException:
            if not connection.invalidated:
                with suppress(DBAPIError):
                    say(connection, "ROLLBACK")
            raise
        try:
            say(connection, "COMMIT")
        except DBAPIError as error:
            if error.connection_invalidated:
                raise _UnsureError(translate(error, self.location)) from error
            raise  # it refused, and has undone everything
        return result
