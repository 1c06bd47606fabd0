"""Hears of commits by NOTIFY, with a poll behind it: notices are lost while disconnected, and behind some poolers."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any, Protocol

from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine

CHANNEL = "batchq"
POLL_SECONDS = 1.0
_FIRST_DELAY = 0.5
_LAST_DELAY = 10.0


class News:
    """Counts what may have changed: notices, own commits, and the time that went by without either."""

    def __init__(self) -> None:
        """Start with nothing heard."""
        self.count = 0

    def came(self) -> None:
        """Take note of one."""
        self.count += 1


class PostgresWatcher:
    """Tells one waiter whether somebody may have committed: there was a notice, or it is time to look anyway."""

    poll_seconds = 0.02

    def __init__(self, news: News) -> None:
        """Watch from now on."""
        self._news = news
        self._seen = news.count
        self._looked = time.monotonic()

    def changed(self) -> bool:
        """Whether there was news since the last call, or none for a second."""
        now = time.monotonic()
        if self._news.count == self._seen and now - self._looked < POLL_SECONDS:
            return False
        self._seen, self._looked = self._news.count, now
        return True

    def close(self) -> None:
        """Nothing to close: the listener belongs to the database."""


class Listener:
    """Keeps a connection that listens, as long as it runs; one for all watchers of a process."""

    def __init__(self, engine: AsyncEngine, news: News) -> None:
        """Make one for the engine's database; `run` is what does it."""
        self._url: URL = engine.url
        self._arguments = dict(engine.dialect.create_connect_args(engine.url)[1])
        self._news = news

    async def run(self) -> None:
        """Listen until cancelled, connecting again whenever the connection is lost."""
        delay = _FIRST_DELAY
        hear = _hear_asyncpg if self._url.get_driver_name() == "asyncpg" else _hear_psycopg
        while True:
            began = time.monotonic()
            with suppress(Exception):  # whatever it is, polling goes on, and so does trying
                await hear(self._arguments, self._news)
            delay = _FIRST_DELAY if time.monotonic() - began > _LAST_DELAY else min(delay * 2, _LAST_DELAY)
            await asyncio.sleep(delay)


async def _hear_psycopg(arguments: dict[str, Any], news: News) -> None:
    import psycopg

    async with await psycopg.AsyncConnection.connect(**arguments, autocommit=True) as connection:
        await connection.execute(f"LISTEN {CHANNEL}")
        news.came()  # what was said before is lost
        async for _notice in connection.notifies():
            news.came()


class _Asyncpg(Protocol):
    async def add_listener(self, channel: str, callback: Any) -> None: ...  # noqa: ANN401
    def add_termination_listener(self, callback: Any) -> None: ...  # noqa: ANN401
    async def close(self) -> None: ...


async def _hear_asyncpg(arguments: dict[str, Any], news: News) -> None:
    import asyncpg

    lost = asyncio.Event()
    connection: _Asyncpg = await asyncpg.connect(**arguments)
    try:
        connection.add_termination_listener(lambda _connection: lost.set())
        await connection.add_listener(CHANNEL, lambda *_notice: news.came())
        news.came()
        await lost.wait()
    finally:
        await connection.close()
