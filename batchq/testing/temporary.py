"""A queue of its own for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from batchq.api.queue import Queue
from batchq.store import Store, open_store
from batchq.testing.clock import VirtualClock


class TemporaryQueue(Queue):
    """A queue for a test. `clock` is that of its database where it was given one."""

    def __init__(self, store: Store, clock: VirtualClock | None = None) -> None:
        """Wrap an open store; `temporary_queue` is the way in."""
        super().__init__(store)
        self.clock = clock


@asynccontextmanager
async def temporary_queue(clock: VirtualClock | None = None) -> AsyncIterator[TemporaryQueue]:
    """Open a queue in a temporary directory, which is removed afterwards."""
    with TemporaryDirectory(prefix="batchq-") as directory:
        async with await open_temporary(Path(directory, "queue.db"), clock) as queue:
            yield queue


async def open_temporary(path: Path, clock: VirtualClock | None = None) -> TemporaryQueue:
    """Open a queue at a path of the caller's choice; use as an async context manager, or call `close`."""
    return TemporaryQueue(await open_store(str(path), create=True, clock=clock), clock)
