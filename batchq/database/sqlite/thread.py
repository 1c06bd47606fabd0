"""A connection and the one thread that uses it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

import aiosqlite
import anyio
from sqlalchemy import Connection, Dialect, Engine, create_engine, make_url
from sqlalchemy.pool import NullPool, StaticPool
from sqlalchemy.util import LRUCache

from batchq.database.tasks import end_of
from batchq.errors import DatabaseUnavailable

T = TypeVar("T")


async def connect(path: Path, *, mode: str | None = None) -> ConnectionThread:
    """Open a connection, in a mode of SQLite's (sqlite.org/uri.html) if one is given. Raises DatabaseUnavailable."""
    place = path if mode is None else f"{path.as_uri()}?mode={mode}"
    driver = aiosqlite.connect(place, uri=mode is not None, isolation_level=None, timeout=0, cached_statements=256)
    driver._thread.daemon = True  # noqa: SLF001 - a connection lost to a crash must not keep the process alive
    try:
        return ConnectionThread(await driver)
    except sqlite3.Error as error:
        driver._thread.join()  # noqa: SLF001 - its last word goes to the event loop, which may be about to close
        raise DatabaseUnavailable(f"can't open {path}: {error}") from error


def connect_plainly(path: Path) -> sqlite3.Connection:
    """Open a connection for the calling thread, to a file that is there: none is made in the place of a deleted one."""
    return sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=0)


class ConnectionThread:
    """One connection and its thread."""

    def __init__(self, driver: aiosqlite.Connection) -> None:
        """Wrap an open connection; `connect` is the way in."""
        self._driver = driver
        self._engine = _engine_over(driver)
        self._connection: Connection | None = None
        self._version = 0
        self.others_wrote = False

    async def call(self, function: Callable[[Connection], T]) -> T:
        """Run `function` on the connection's thread; return when it has ended, never before.

        A thread can't be stopped. A cancellation that comes meanwhile, asyncio's own or anyio's, is
        raised when the function has ended.
        """
        if not self._driver._running:  # noqa: SLF001
            raise ValueError("the database is closed")

        # Not a partial: aiosqlite logs what it runs, and would quote the prompts that it is about.
        def run() -> T:
            return self._run(function)

        # Queued by hand: aiosqlite has no public way to run more than one statement per hop, and what
        # it awaits by itself is lost to whoever cancels the task.
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._driver._tx.put_nowait((done, run))  # noqa: SLF001
        with anyio.CancelScope(shield=True):
            await end_of(done)
        return done.result()

    async def close(self) -> None:
        """Close the connection and end its thread."""
        self._engine.dispose(close=False)
        await self._driver.close()

    def _run(self, function: Callable[[Connection], T]) -> T:
        if self._connection is None:
            self._connection = self._engine.connect()
        result = function(self._connection)
        # On this connection the counter moves only when others commit.
        version = data_version(self._driver._conn)  # noqa: SLF001
        if version is not None:
            self.others_wrote = version != self._version
            self._version = version
        return result


# What a statement is compiled to, by the dialect object and the statement. An engine has both of its own, and would
# compile all statements anew for each connection: that takes longer than a short call of `prompt_map` otherwise does.
_compiled: LRUCache[object, object] = LRUCache(500)


@cache
def _dialect() -> Dialect:
    """Return the dialect that all connections of this process share, as it is after a look at SQLite."""
    with create_engine("sqlite://", poolclass=NullPool).connect() as connection:
        return connection.dialect


def _engine_over(driver: aiosqlite.Connection) -> Engine:
    # StaticPool hands out the connection that aiosqlite's thread already owns.
    dialect = _dialect()
    pool = StaticPool(lambda: driver._conn, dialect=dialect, reset_on_return=None)  # type: ignore[arg-type]  # noqa: SLF001
    return Engine(
        pool,
        dialect,
        make_url("sqlite://"),
        hide_parameters=True,  # a traceback would quote prompts
        execution_options={"compiled_cache": _compiled},
    )


def data_version(connection: sqlite3.Connection) -> int | None:
    """Return the counter of commits; None while somebody has the file to himself, to recover or close the log."""
    try:
        version: int = connection.execute("PRAGMA data_version").fetchone()[0]
    except sqlite3.OperationalError:
        return None
    return version
