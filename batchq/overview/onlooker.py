"""Looks at a queue again and again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from batchq.coordinator import MAX_SILENCE_SECONDS
from batchq.errors import DatabaseBusy, DatabaseGone, DatabaseUnavailable, NoDatabase
from batchq.jobs import Overview
from batchq.overview.failures import Failures
from batchq.overview.paces import Paces
from batchq.store import Store

# What is looked at each second is less than what is looked at once.
WATCHED_UNFINISHED = 200
WATCHED_BATCHES = 50


@dataclass(frozen=True, slots=True)
class Away:
    """A database that can't be read at the moment, and why."""

    reason: str


class Onlooker:
    """Looks at a queue, or at one batch of it; an async context manager.

    Where the database goes away, or its file, it tells so, and asks again at the next look. `paces` are good from
    the second look on.
    """

    def __init__(self, opening: Callable[[], Awaitable[Store]], name: str | None = None) -> None:
        """Look at what `opening` opens, or at the batch of that name in it."""
        self._opening = opening
        self._name = name
        self._store: Store | None = None
        self._failures = Failures()
        self.paces = Paces()

    async def __aenter__(self) -> Self:
        """Open the queue, and see that there is such a batch."""
        self._store = await self._opening()
        try:
            if self._name is not None:
                await self._store.batch(self._name)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the queue."""
        await self._close()

    async def look(self) -> Overview | Away:
        """Return how the queue stands. Raises UnknownBatch where the batch has been deleted."""
        try:
            found = await self._read()
        except (DatabaseUnavailable, DatabaseBusy, DatabaseGone, NoDatabase) as error:
            if isinstance(error, DatabaseGone):  # another file may come into its place
                await self._close()
            self.paces.forget()
            return Away(str(error))
        self.paces.note(found)
        return found

    async def _read(self) -> Overview:
        if self._store is None:
            self._store = await self._opening()
        found = await self._store.overview(
            self._name, unfinished=WATCHED_UNFINISHED, shown=WATCHED_BATCHES, patience=MAX_SILENCE_SECONDS
        )
        return replace(found, errors=await self._failures.of(found, self._store))

    async def _close(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            await store.close()
