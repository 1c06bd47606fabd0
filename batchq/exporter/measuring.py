"""Looks at a queue for an exporter: how it stands, and what has ended since the last look."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio

from batchq.errors import BatchqError
from batchq.exporter.counted import Counted
from batchq.jobs import BatchTotals, FinishedPlace, Overview, RunnerInfo
from batchq.store import Store

# More batches than these would be more series than anybody looks at.
SHOWN_UNFINISHED = 200
SHOWN_BATCHES = 50
PATIENCE_SECONDS = 1.0
# A scrape is given up by Prometheus after 10 s, as a rule; letting go of a server that is silent takes seconds, too.
LOOK_SECONDS = 5.0
# What has ended is read page by page for so long; what is left is counted by the next look.
COUNT_SECONDS = 2.0
# On PostgreSQL what ends at a moment is read by a look that comes later.
SETTLED_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Measured:
    """A queue as it stands; `overview` is None while it can't be read, for the `reason`."""

    overview: Overview | None
    runners: tuple[RunnerInfo, ...] = ()
    reason: str | None = None
    seconds: float = 0.0


class Measuring:
    """Looks at a queue whenever it is asked to, at most every `cache` seconds; whoever made it closes it."""

    def __init__(self, opening: Callable[[], Awaitable[Store]], cache: float, say: Callable[[str], None]) -> None:
        """Look at what `opening` opens; `say` hears why that can't be read, each time it changes."""
        self._say = say
        self._told: str | None = None
        self.counted = Counted()
        self._opening = opening
        self._cache = cache
        self._store: Store | None = None
        self._lock = anyio.Lock()
        self._last: Measured | None = None
        self._at = float("-inf")
        self._since = 0
        self._places: dict[int, FinishedPlace] = {}
        self._waiting: dict[int, float] = {}

    async def close(self) -> None:
        """Close the queue."""
        store, self._store = self._store, None
        if store is not None:
            await store.close()

    async def measure(self) -> Measured:
        """Return how the queue stands, or stood a moment ago; a database that is away is a measurement, too."""
        async with self._lock:
            if self._last is None or time.monotonic() >= self._at + self._cache:
                self._last = await self._look()
                self._at = time.monotonic()
                self._tell(self._last.reason)
            return self._last

    def _tell(self, reason: str | None) -> None:
        if reason != self._told:
            self._say(f"batchq: {reason}" if reason else "batchq: the queue can be read again")
        self._told = reason

    async def _look(self) -> Measured:
        began = time.monotonic()
        reason = f"no answer within {LOOK_SECONDS:g} s"
        with anyio.move_on_after(LOOK_SECONDS):
            try:
                return await self._read(began)
            except BatchqError as error:
                reason = str(error)
        await self._reopen_next_time()
        return Measured(None, reason=reason, seconds=time.monotonic() - began)

    async def _reopen_next_time(self) -> None:
        """Let go of a queue that could not be read: another file may stand in its place by now."""
        with anyio.move_on_after(PATIENCE_SECONDS):
            await self.close()

    async def _read(self, began: float) -> Measured:
        if self._store is None:
            self._store = await self._opening()
        store = self._store
        found = await store.overview(unfinished=SHOWN_UNFINISHED, shown=SHOWN_BATCHES, patience=PATIENCE_SECONDS)
        runners = await store.runners()
        await self._count(store, began + COUNT_SECONDS)
        return Measured(found, runners, seconds=time.monotonic() - began)

    async def _count(self, store: Store, until: float) -> None:
        now, totals = await store.totals(patience=PATIENCE_SECONDS)
        first, self._since = not self._since, self._since or now
        changed = self.counted.note_totals(totals)
        if first:
            return
        self._waiting |= dict.fromkeys(changed, time.monotonic())
        self._waiting = {key: at for key, at in self._waiting.items() if key in totals}
        self._places = {key: place for key, place in self._places.items() if key in totals}
        for batch_id, changed_at in list(self._waiting.items()):
            began = time.monotonic()
            if began >= until:
                return
            if (
                await self._count_ended(store, batch_id, totals[batch_id], until)
                and began > changed_at + SETTLED_SECONDS
            ):
                del self._waiting[batch_id]

    async def _count_ended(self, store: Store, batch_id: int, total: BatchTotals, until: float) -> bool:
        """Count what ended in a batch; return whether that was all."""
        place = self._places.get(batch_id, FinishedPlace(self._since))
        while time.monotonic() < until:
            page = await store.ended(batch_id, place, self._since)
            self.counted.note_ended((total.worker, total.model), page)
            place = self._places[batch_id] = page.place
            if not page.is_full:
                return True
        return False
