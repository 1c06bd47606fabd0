"""Watches a batch. Reads only, so any number may run beside each other."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import replace

import anyio

from batchq.concealing import without_quotes
from batchq.errors import DatabaseUnavailable, Purged, TimedOutWaiting
from batchq.jobs import Batch, BatchState, ErrorGroup, Progress
from batchq.request import texts_in
from batchq.store import Store
from batchq.waiting import why_waiting

POLL_SECONDS = 0.1
MAX_SILENCE_SECONDS = 1.0
WINDOW_SECONDS = 30.0

OnProgress = Callable[[Progress], None]


async def told_errors(store: Store, batch: Batch) -> tuple[ErrorGroup, ...]:
    """Return a batch's failures by class, with examples that may stand in a log: they quote no prompt and no answer.

    `show` and `status` have the words as they are. Where an answer was paid for, they speak of it, and are left out.
    """
    told = []
    for group in await store.errors(batch):
        job = await store.job(batch, group.example_position)
        result = None if job is None else job[0]
        if result is None or result.result is not None or result.payload is None:
            told.append(replace(group, example=""))
            continue
        told.append(replace(group, example=without_quotes(group.example, _texts_of(result.payload))))
    return tuple(told)


def _texts_of(payload: str) -> list[str]:
    try:
        return [*texts_in(json.loads(payload))]
    except (ValueError, RecursionError):  # damaged: it is quoted as it is stored, if at all
        return [payload]


async def watch(store: Store, name: str) -> AsyncIterator[Progress]:
    """Yield where a batch stands until it is finished: at each change, and at least once a second.

    A server that goes away is waited for: meanwhile what is yielded is `away`, and all else of it as it stood before.
    """
    progress: Progress | None = None
    with closing(store.watch()) as watcher:
        while True:
            watcher.changed()  # what is committed from here on is seen by the next round
            try:
                progress = await store.progress(name, patience=None if progress is None else MAX_SILENCE_SECONDS)
            except DatabaseUnavailable as error:
                if progress is None or store.file is not None:
                    raise
                yield replace(progress, away=_reason(error, store.location))
                await anyio.sleep(MAX_SILENCE_SECONDS)  # a server comes back, and whoever works on the batch waits, too
                continue
            yield progress
            if progress.finished:
                return
            deadline = time.monotonic() + MAX_SILENCE_SECONDS
            while time.monotonic() < deadline:
                await anyio.sleep(POLL_SECONDS)
                if watcher.changed():
                    break


def _reason(error: DatabaseUnavailable, location: str) -> str:
    """Return what the server or the system said, without which database that was about."""
    said = str(error).removeprefix(location)
    return said.partition(": ")[2] or said.strip()


async def wait_until_finished(
    store: Store, name: str, *, wait_timeout: float | None = None, on_progress: OnProgress | None = None
) -> Progress:
    """Return when every job of a complete batch has ended.

    Raises TimedOutWaiting after a while, Purged for a batch that is being deleted.
    """
    progress: Progress | None = None
    with anyio.move_on_after(wait_timeout):
        async for progress in watch(store, name):
            refuse_purged(progress.batch)
            if on_progress is not None:
                on_progress(progress)
    if progress is None:
        progress = await store.progress(name)
    if progress.finished:
        return progress
    raise timed_out(progress, store.location)


def timed_out(progress: Progress, location: str) -> TimedOutWaiting:
    """Return the error for a batch that did not finish in the time given, with what it waits for."""
    counts, name = progress.counts, progress.batch.name
    why = why_waiting(progress, location)
    return TimedOutWaiting(
        f"{name} is not finished: {counts.final:,} of {counts.total:,} jobs have ended" + (f"; {why}" if why else "")
    )


def refuse_purged(batch: Batch) -> None:
    """Raise Purged for a batch that is being deleted."""
    if batch.state is BatchState.PURGING:
        raise Purged(f"{batch.name} is being purged: what is left of it is no whole; `batchq purge` completes that")


class Pace:
    """How fast a batch moves, from what ended in the last half minute."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._seen: deque[tuple[float, int, int | None]] = deque()

    def note(self, progress: Progress, now: float | None = None) -> None:
        """Take note of one moment; `now` is in seconds on any steady clock."""
        if progress.away is not None:
            self._seen.clear()  # nobody knows what ended meanwhile, nor when
            return
        moment = time.monotonic() if now is None else now
        final = progress.counts.final
        if self._seen and final < self._seen[-1][1]:
            self._seen.clear()  # a retry sent some back
        self._seen.append((moment, final, progress.cost))
        while len(self._seen) > 2 and self._seen[1][0] < moment - WINDOW_SECONDS:
            self._seen.popleft()

    @property
    def per_second(self) -> float | None:
        """Jobs that ended per second; None until that is known."""
        if len(self._seen) < 2:
            return None
        (began, before, _), (ended, after, _) = self._seen[0], self._seen[-1]
        return (after - before) / (ended - began) if ended > began else None

    @property
    def cost_per_second(self) -> float | None:
        """Nano-dollars per second; None until that is known, or where no answer told a cost."""
        if len(self._seen) < 2:
            return None
        (began, _, before), (ended, _, after) = self._seen[0], self._seen[-1]
        return (after - (before or 0)) / (ended - began) if after is not None and ended > began else None

    def seconds_left(self, progress: Progress) -> float | None:
        """Return the time that the rest will take at this rate; None if nothing moves."""
        rate = self.per_second
        return progress.counts.live / rate if rate else None
