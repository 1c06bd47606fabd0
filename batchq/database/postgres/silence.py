"""Cuts connections through which nothing comes back: half open ones, which no driver notices by itself.

A cancellation would not do: drivers wait for the server's word first, and that never comes.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

# Longer than any transaction of batchq takes.
SILENCE_SECONDS = 25.0
# What a transaction may still take once nobody waits for its result.
HURRY_SECONDS = 2.0


class Silence:
    """The wait of one task for one server, first for a connection, then on it: cut where it takes too long."""

    def __init__(self, *, patient: bool = False) -> None:
        """Wait without end if `patient`."""
        self._seconds = None if patient else SILENCE_SECONDS
        self._driver: Any = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[Any] | None = None

    def begin(self, task: asyncio.Task[Any]) -> None:
        """Say whose wait it is."""
        self._task = task

    def on(self, driver: Any) -> None:  # noqa: ANN401 - psycopg's or asyncpg's connection
        """Say which connection it waits on from now on."""
        self.pause()
        self._driver = driver
        if self._seconds is not None:
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self.cut)

    def pause(self) -> None:
        """Say that nothing is expected of the connection for now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def over(self) -> None:
        """Say that it waits no more."""
        self.pause()
        self._driver = None

    def hurry(self) -> None:
        """Let it end soon: nobody waits for the result any more."""
        self._seconds = HURRY_SECONDS
        if self._driver is not None:
            self.on(self._driver)
        elif self._task is not None:
            self._task.cancel()  # nothing is connected yet, so that nothing is broken

    def cut(self) -> bool:
        """Cut the connection, if there is one: what waits on it hears that the server is gone."""
        if self._driver is None:
            return False
        with suppress(Exception):
            _cut(self._driver)
        return True


_waiting: ContextVar[Silence | None] = ContextVar("_waiting", default=None)


def start_waiting(silence: Silence) -> None:
    """Let connections that this task makes count as its own, from their first word on."""
    _waiting.set(silence)


def noticed(connect: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Return `connect`, but so that the silence of what it makes is noticed."""

    async def connect_noticed(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        driver = await connect(*arguments, **options)
        silence = _waiting.get()
        if silence is not None:
            silence.on(driver)
        return driver

    return connect_noticed


def _cut(driver: Any) -> None:  # noqa: ANN401
    terminate = getattr(driver, "terminate", None)
    if terminate is not None:  # asyncpg
        terminate()
        return
    with socket.socket(fileno=os.dup(driver.fileno())) as same:
        same.shutdown(socket.SHUT_RDWR)
