"""`open_queue`: the way into a queue for applications."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from pathlib import Path

from batchq.api.queue import Queue
from batchq.config import load_settings
from batchq.database import OnLocked
from batchq.store import open_store


def open_queue(url: str | Path | None = None, *, create: bool = True, on_locked: OnLocked | None = None) -> OpenQueue:
    """Open the queue at a path or URL, with `async with` for the length of a block, or with `await`.

    None is what the settings say: BATCHQ_DB, batchq.toml, else `runs.db` in the current directory. Raises
    NoDatabase where there is none and `create` is off. `on_locked` hears a sentence when another process keeps
    the database locked for long.
    """

    async def open_it() -> Queue:
        location = load_settings().db if url is None else str(url)
        return Queue(await open_store(location, create=create, on_locked=on_locked))

    return OpenQueue(open_it)


class OpenQueue:
    """A queue on its way: enter it or await it."""

    def __init__(self, open_it: Callable[[], Awaitable[Queue]]) -> None:
        """Open nothing yet."""
        self._open_it = open_it
        self._queue: Queue | None = None

    def __await__(self) -> Generator[object, object, Queue]:
        """Open the queue; the caller closes it."""
        return self._open_it().__await__()

    async def __aenter__(self) -> Queue:
        """Open the queue for the length of a block."""
        self._queue = await self._open_it()
        return self._queue

    async def __aexit__(self, *_exception: object) -> None:
        """Close it."""
        if self._queue is not None:
            await self._queue.close()
