"""Cuts connections on which nothing moves: half open ones, which no driver notices by itself.

A statement that begins is a move, and so is what the other side takes in: a slow link is none that is dead.

A cancellation would not do: drivers wait for the server's word first, and that never comes.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

# Longer than any statement of batchq takes.
SILENCE_SECONDS = 25.0
_LOOKS = 5
# A look that comes late by so much: this process has stood still, and what came meanwhile has not been read.
_LATE_SECONDS = 0.5
# Where Linux keeps how many bytes the other side has taken in: tcpi_bytes_acked of struct tcp_info.
_ACKNOWLEDGED = struct.Struct("=120xQ")
# What a transaction may still take once nobody waits for its result.
HURRY_SECONDS = 2.0


class Silence:
    """The wait of one task for one server, first for a connection, then on it: cut where it takes too long."""

    def __init__(self, *, patient: bool = False) -> None:
        """Wait without end if `patient`."""
        self._seconds = None if patient else SILENCE_SECONDS
        self._driver: Any = None
        self._timer: asyncio.TimerHandle | None = None
        self._since = 0.0
        self._taken: int | None = None
        self._hurried = False
        self._task: asyncio.Task[Any] | None = None

    def begin(self, task: asyncio.Task[Any]) -> None:
        """Say whose wait it is."""
        self._task = task

    def on(self, driver: Any) -> None:  # noqa: ANN401 - psycopg's or asyncpg's connection
        """Say which connection it waits on from now on."""
        self.pause()
        self._driver = driver
        self._taken = None
        if self._seconds is not None:
            self._since = asyncio.get_running_loop().time()
            self._look_again(self._since, self._seconds)

    def progress(self) -> None:
        """Say that something moves."""
        if self._timer is not None and not self._hurried:
            self._since = asyncio.get_running_loop().time()

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
        """Let it end soon, whatever moves: nobody waits for the result any more."""
        self._seconds, self._hurried = HURRY_SECONDS, True
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

    def _look_again(self, now: float, seconds: float) -> None:
        at = min(now + seconds / _LOOKS, self._since + seconds)
        self._timer = asyncio.get_running_loop().call_at(at, self._look, at, seconds)

    def _look(self, due: float, seconds: float) -> None:
        """Look whether anything has moved, and cut the connection where nothing has for too long."""
        now = asyncio.get_running_loop().time()
        taken = _taken_in(self._driver)
        if self._taken is not None and taken != self._taken:
            self.progress()
        self._taken = taken
        if now - due > _LATE_SECONDS:
            self.progress()
        if now < self._since + seconds:
            self._look_again(now, seconds)
        else:
            self.cut()


_waiting: ContextVar[Silence | None] = ContextVar("_waiting", default=None)


def start_waiting(silence: Silence) -> None:
    """Let connections that this task makes count as its own, from their first word on."""
    _waiting.set(silence)


def progress() -> None:
    """Say that something moves on the connection that this task waits on."""
    silence = _waiting.get()
    if silence is not None:
        silence.progress()


def noticed(connect: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Return `connect`, but so that the silence of what it makes is noticed."""

    async def connect_noticed(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        driver = await connect(*arguments, **options)
        silence = _waiting.get()
        if silence is not None:
            silence.on(driver)
        return driver

    return connect_noticed


def cut_soon(driver: Any) -> None:  # noqa: ANN401
    """Cut a connection that is being closed if that takes long: asyncpg waits for the farewell of the server."""
    with suppress(RuntimeError):  # no loop, no wait
        asyncio.get_running_loop().call_later(HURRY_SECONDS, _cut_if_open, driver)


def _cut_if_open(driver: Any) -> None:  # noqa: ANN401
    with suppress(Exception):
        _cut(driver)


def _cut(driver: Any) -> None:  # noqa: ANN401
    terminate = getattr(driver, "terminate", None)
    if terminate is not None:  # asyncpg
        terminate()
        return
    with _socket_of(driver) as same:
        same.shutdown(socket.SHUT_RDWR)


def _taken_in(driver: Any) -> int | None:  # noqa: ANN401
    """Return how many bytes the other side has taken in; None where the system does not tell."""
    with suppress(Exception), _socket_of(driver) as same:
        told = same.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKNOWLEDGED.size)
        taken: int = _ACKNOWLEDGED.unpack(told)[0]
        return taken
    return None


def _socket_of(driver: Any) -> socket.socket:  # noqa: ANN401
    """Return another handle of a connection's socket, for the caller to close."""
    if hasattr(driver, "fileno"):
        return socket.socket(fileno=os.dup(driver.fileno()))
    return socket.socket(fileno=os.dup(driver._transport.get_extra_info("socket").fileno()))  # noqa: SLF001 - asyncpg
