"""Tells listening processes that something was committed, by NOTIFY."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from sqlalchemy import Connection

from batchq.database.postgres.listening import CHANNEL
from batchq.database.postgres.silence import HURRY_SECONDS

_COALESCE_SECONDS = 0.02


class Announcer:
    """Sends notices, at most one in a moment: each takes a lock of the whole server at its commit."""

    def __init__(self, send: Callable[[Callable[[Connection], None]], Awaitable[object]]) -> None:
        """Take what runs a function on a connection."""
        self._send = send
        self._task: asyncio.Task[None] | None = None
        self._due = False
        self._sent = 0.0

    def announce(self) -> None:
        """Tell of what was committed before, soon."""
        self._due = True
        if self._task is None:
            self._task = asyncio.create_task(self._send_notices())

    async def close(self) -> None:
        """Send what is due, unless that takes long."""
        if (task := self._task) is not None:
            await asyncio.wait([task], timeout=HURRY_SECONDS)
            task.cancel()
            await asyncio.wait([task])

    async def _send_notices(self) -> None:
        try:
            while self._due:
                await asyncio.sleep(max(0.0, self._sent + _COALESCE_SECONDS - time.monotonic()))
                self._sent, self._due = time.monotonic(), False
                with suppress(Exception):  # they poll, too
                    await self._send(_send_notice)
        finally:
            self._task = None


def _send_notice(connection: Connection) -> None:
    connection.exec_driver_sql(f"NOTIFY {CHANNEL}")
