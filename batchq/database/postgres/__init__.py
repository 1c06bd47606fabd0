"""PostgreSQL: one small pool of connections per process, and what keeps it going through outages.

Every transaction is one synchronous function over a SQLAlchemy connection, as on SQLite; its statements wait on
the event loop (SQLAlchemy's greenlets), so that psycopg and asyncpg serve alike.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
from sqlalchemy import Connection, func, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from batchq.database.contract import OnLocked, Transaction
from batchq.database.driver import say
from batchq.database.location import shown
from batchq.database.postgres.engine import SESSION, is_pooled, make_engine
from batchq.database.postgres.listening import CHANNEL, Listener, News, PostgresWatcher
from batchq.database.postgres.opening import prepare, upgrade
from batchq.database.postgres.refusal import (
    NotLetIn,
    ServerBusy,
    is_conflict,
    is_of_a_standby,
    is_prepared_elsewhere,
    is_unsupported_option,
    translate,
    unreachable,
)
from batchq.database.postgres.silence import HURRY_SECONDS, Silence, start_waiting
from batchq.database.tasks import end_of
from batchq.database.version import CLOCK_AND_VERSION, check_version
from batchq.errors import ConfigurationError, DatabaseUnavailable, DataRefused

T = TypeVar("T")

_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
# READ COMMITTED: a statement that waited for a row sees it as it is now, and the guards decide.
_WRITE = "BEGIN ISOLATION LEVEL READ COMMITTED"
# Where settings of a session would go to whoever comes next, they are made anew in each transaction.
_CLOCK_AND_VERSION_POOLED = CLOCK_AND_VERSION.add_columns(
    *(func.set_config(name, value, True) for name, value in SESSION.items())
)
_CONFLICT_SECONDS = (0.005, 0.05)
_AWAY_SECONDS = (0.1, 0.5)
_CONFLICTS = 20
# Reads may be repeated as often as one likes.
_READ_PATIENCE = 60.0
# A server that has just been started, or has no connection left; one that is not there is told of at once.
_OPEN_PATIENCE = 30.0
_LONG_SECONDS = 5.0
_COALESCE_SECONDS = 0.02


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


class _NotNow:
    """Nothing was done: the server is away, or the transaction lost to another one."""

    def __init__(self, reason: Exception, *, conflict: bool) -> None:
        self.reason = reason
        self.conflict = conflict


class _NotBegunError(Exception):
    """The connection was dead before anything was done on it."""


class _UnsureError(Exception):
    """The connection was lost while it was committed: that may have come about, or not."""


class PostgresDatabase:
    """A queue in a PostgreSQL database. Use from one event loop; close it before the loop ends."""

    file: Path | None = None
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
        self._announcing: asyncio.Task[None] | None = None
        self._notice_due = False
        self._announced = 0.0

    async def read(self, body: Callable[[Transaction], T], *, patience: float | None = None) -> T:
        """Run `body` in a read transaction, which sees one moment; it is tried for `patience` seconds, else for 60."""
        wait = _Wait(_READ_PATIENCE if patience is None else patience, self._on_locked)
        return await self._try(partial(self._transact, _READ, body), wait)

    async def write(
        self, body: Callable[[Transaction], T], *, patience: float | None = None, announce: bool = False
    ) -> T:
        """Run `body` in a write transaction and commit it; `announce` tells listening runners of it.

        Tries for `patience` seconds where the server is away, or is lost on the way. Raises DatabaseUnavailable
        then, and where it is lost during the commit: whether that came about is unknown. A cancellation does not
        break a transaction: it is raised when that is over, or after two seconds.
        """
        result = await self._try(partial(self._transact, _WRITE, body), _Wait(patience, self._on_locked))
        self._news.committed()
        if announce:
            self._announce()
        return result

    async def make_index(self, ddl: str) -> None:
        """Make an index while others go on writing."""
        name = ddl.split(" ON ", maxsplit=1)[0].rsplit(maxsplit=1)[-1]
        if not await self.read(lambda tx: _is_there(tx.connection, name)):
            work = partial(_make_index, ddl=ddl, name=name)
            await self._try(work, _Wait(None, self._on_locked), patient=True)

    def watch(self, notice: Callable[[], None] | None = None) -> PostgresWatcher:
        """Return what tells one waiter of commits; the caller closes it."""
        if self._listener is None and not self._pooled:  # poolers pass no notices on
            self._listener = Listener(self._engine, self._news)
        return PostgresWatcher(self._news, notice)

    async def prepare(self, *, create: bool) -> None:
        """Make the tables if they are missing; many processes may do so at once."""
        wait = _Wait(_OPEN_PATIENCE, self._on_locked, opening=True)
        if await self._try(is_pooled, wait):
            await self._do_without_sessions()
        opening = partial(prepare, location=self.location, create=create)
        await self._try(opening, wait)
        await self.read(lambda _transaction: None)  # refuses another schema version

    async def upgrade(self) -> int | None:
        """Bring an older schema to this version; return which one it was, None if there was nothing to do."""
        wait = _Wait(_OPEN_PATIENCE, self._on_locked, opening=True)
        return await self._try(partial(upgrade, location=self.location), wait, patient=True)

    async def close(self) -> None:
        """Close all connections."""
        with anyio.CancelScope(shield=True):
            if (announcing := self._announcing) is not None:
                await asyncio.wait([announcing], timeout=HURRY_SECONDS)
                announcing.cancel()
                await asyncio.wait([announcing])
            await self._stop_listening()
            await self._engine.dispose()

    async def _stop_listening(self) -> None:
        if self._listener is not None:
            await self._listener.close()
            self._listener = None

    async def _try(self, body: Callable[[Connection], T], wait: _Wait, *, patient: bool = False) -> T:
        """Have `body` done on a connection, again where it was not begun, came to nothing, or lost to another one."""
        conflicts = 0
        while True:
            result = await self._uninterrupted(body, Silence(patient=patient))
            if not isinstance(result, _NotNow):
                return result
            conflicts += result.conflict
            if not result.conflict:
                await wait.a_moment(result.reason)
            elif conflicts > _CONFLICTS:
                reason = f"{self.location}: others were in the way {conflicts} times"
                raise DatabaseUnavailable(reason) from result.reason
            else:
                await asyncio.sleep(random.uniform(*_CONFLICT_SECONDS))

    async def _uninterrupted(self, body: Callable[[Connection], T], silence: Silence) -> T | _NotNow:
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

    async def _once(self, body: Callable[[Connection], T], silence: Silence) -> T | _NotNow:
        start_waiting(silence)
        try:
            connection = await self._engine.connect()
        except DBAPIError as error:
            if is_unsupported_option(error) or is_prepared_elsewhere(error):
                return await self._go_through_pooler(error)
            return _NotNow(translate(error, self.location), conflict=False)
        except (OSError, TimeoutError, PoolTimeout) as error:  # asyncpg's own; the pool's
            return _NotNow(unreachable(error, self.location), conflict=False)
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
            return _NotNow(error, conflict=True)
        except _UnsureError as error:
            raise DatabaseUnavailable(f"{error}; whether the last change was stored is unknown") from error
        except (UnicodeEncodeError, OverflowError) as error:
            raise DataRefused(f"{self.location} can't hold a value: {error}") from error
        finally:
            await connection.close()
            silence.over()

    async def _after(self, error: DBAPIError) -> _NotNow:
        """Return what may be tried again; raise what the error means otherwise."""
        if is_prepared_elsewhere(error):
            return await self._go_through_pooler(error)
        if is_conflict(error):
            return _NotNow(error, conflict=True)
        meaning = translate(error, self.location)
        if meaning is error:
            raise error
        if isinstance(meaning, DatabaseUnavailable):
            meaning.__cause__ = error
            return _NotNow(meaning, conflict=False)
        raise meaning from error

    async def _go_through_pooler(self, error: Exception) -> _NotNow:
        await self._do_without_sessions()
        return _NotNow(error, conflict=True)

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

    def _announce(self) -> None:
        """Tell listeners, at most once in a moment: each notice takes a lock of the whole server at its commit."""
        self._notice_due = True
        if self._announcing is None:
            self._announcing = asyncio.create_task(self._send_notices())

    async def _send_notices(self) -> None:
        try:
            while self._notice_due:
                await asyncio.sleep(max(0.0, self._announced + _COALESCE_SECONDS - time.monotonic()))
                self._announced, self._notice_due = time.monotonic(), False
                with suppress(Exception):  # they poll, too
                    await self._uninterrupted(_send_notice, Silence())
        finally:
            self._announcing = None


class _Wait:
    """A wait for a server: as long as patience allows, and told of, once, when it lasts."""

    def __init__(self, patience: float | None, on_locked: OnLocked | None, *, opening: bool = False) -> None:
        self._patience = patience or 0.0
        self._on_locked = on_locked
        self._opening = opening
        self._began = time.monotonic()

    async def a_moment(self, reason: Exception) -> None:
        """Sleep before the next try. Raises the reason when patience has ended, or when waiting can't help.

        Who opens a database may have named the wrong one: only one that is there, and busy, is waited for.
        """
        waited = time.monotonic() - self._began
        if self._opening and isinstance(reason, NotLetIn):
            raise ConfigurationError(str(reason)) from reason
        awaited = ServerBusy if self._opening else DatabaseUnavailable
        if waited >= self._patience or not isinstance(reason, awaited):
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
