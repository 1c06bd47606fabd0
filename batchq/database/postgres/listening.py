"""Hears of commits by NOTIFY, with a poll behind it: notices are lost while disconnected, and behind some poolers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from batchq.database.postgres.engine import connect_alone, is_asyncpg
from batchq.database.postgres.silence import HURRY_SECONDS, Silence, start_waiting

CHANNEL = "batchq"
POLL_SECONDS = 1.0
# How often a connection on which nothing is said is asked whether it is one still.
CHECK_SECONDS = 30.0
_FIRST_DELAY = 0.5
_LAST_DELAY = 10.0


class News:
    """Counts what may have changed, own commits and notices of others, and tells of notices at once."""

    def __init__(self) -> None:
        """Start with nothing heard."""
        self.count = 0
        self.told: list[Callable[[], None]] = []

    def committed(self) -> None:
        """Take note of a commit of our own."""
        self.count += 1

    def came(self) -> None:
        """Take note of a notice, and say so."""
        self.count += 1
        for notice in tuple(self.told):
            notice()


class PostgresWatcher:
    """Tells one waiter whether somebody may have committed: there was a notice, or it is time to look anyway."""

    poll_seconds = POLL_SECONDS

    def __init__(self, news: News, notice: Callable[[], None] | None) -> None:
        """Watch from now on."""
        self._notices = [] if notice is None else [notice]
        news.told += self._notices
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
        """Say nothing any more; the listener belongs to the database."""
        while self._notices:
            self._news.told.remove(self._notices.pop())


class Listener:
    """Keeps a connection that listens, until it is closed; one for all watchers of a process."""

    def __init__(self, engine: AsyncEngine, url: URL, news: News) -> None:
        """Listen to the database at `url` from now on; the engine is one for it."""
        self._engine = engine
        self._url = url
        self._news = news
        self._silence = Silence()
        self._closing = False
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Listen no more."""
        self._closing = True
        if self._silence.cut():
            await asyncio.wait([self._task], timeout=HURRY_SECONDS)
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        """Listen, connecting again whenever the connection is lost."""
        start_waiting(self._silence)
        delay = _FIRST_DELAY
        while not self._closing:
            began = time.monotonic()
            with suppress(Exception):  # whatever it is, polling goes on, and so does trying
                await self._listen()
            self._silence.over()
            delay = _FIRST_DELAY if time.monotonic() - began > _LAST_DELAY else min(delay * 2, _LAST_DELAY)
            if not self._closing:
                await asyncio.sleep(delay)

    async def _listen(self) -> None:
        driver = await connect_alone(self._engine, self._url)
        try:
            hear = await (_start_asyncpg if is_asyncpg(self._url) else _start_psycopg)(driver, self._news)
            self._news.came()  # what was said before is lost
            while True:
                self._silence.pause()
                await hear()
                self._silence.on(driver)
                await driver.execute("SELECT 1")  # a connection that is half open never says so by itself
        finally:
            await _end(driver)


async def _start_psycopg(driver: Any, news: News) -> Callable[[], Awaitable[None]]:  # noqa: ANN401
    """Return what takes note of notices for a while."""
    await driver.execute(f"LISTEN {CHANNEL}")

    async def hear() -> None:
        async for _notice in driver.notifies(timeout=CHECK_SECONDS):
            news.came()

    return hear


async def _start_asyncpg(driver: Any, news: News) -> Callable[[], Awaitable[None]]:  # noqa: ANN401
    lost = asyncio.Event()
    driver.add_termination_listener(lambda _driver: lost.set())
    await driver.add_listener(CHANNEL, lambda *_notice: news.came())

    async def hear() -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(lost.wait(), CHECK_SECONDS)

    return hear


async def _end(driver: Any) -> None:  # noqa: ANN401
    """Close a connection without waiting for the server."""
    if hasattr(driver, "terminate"):  # asyncpg
        driver.terminate()
    else:
        await driver.close()
