"""`prompt_stream`: rows as they finish, each once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import closing
from typing import Unpack

from batchq.api.answers import AnswerRow, Reader
from batchq.api.call import call_of, make_ready
from batchq.api.options import CallOptions
from batchq.api.running import Shown, run_batch
from batchq.api.spool import Prompts
from batchq.api.teardown import take_down
from batchq.database import Watcher
from batchq.generations import Synchronised
from batchq.jobs import FinishedPlace, JobState, Progress, Result
from batchq.store import Store, open_store

_POLL_SECONDS = 0.05
_FINAL = frozenset({JobState.DONE, JobState.FAILED, JobState.CANCELLED})


async def prompt_stream(prompts: Prompts, **options: Unpack[CallOptions]) -> AsyncGenerator[AnswerRow, None]:
    """Do what `prompt_map` does, and yield each row as soon as it has ended: those answered before come first.

    Use it in `async with contextlib.aclosing(prompt_stream(...)) as rows` if you may leave it early: what runs is
    given back then, and a later call goes on. Raises, at its end, what `prompt_map` raises.
    """
    ready = make_ready(call_of(prompts, options))
    shown = Shown(options.get("verbose", True), options.get("progress_every", 200))
    unique = options.get("output_shape", "original") == "unique"
    reader = Reader(options.get("response_model"))
    async with await open_store(ready.settings.db, create=True) as store:
        found = await ready.enqueue(store)
        if found is None:
            return
        # In a task of its own, since a generator may be left at any yield; it ends before the store does.
        run = asyncio.create_task(run_batch(store, ready, found, shown))
        try:
            async for result in _Finished(store, found, run).results(unique=unique):
                yield reader.row(result)
            progress = await run
        finally:
            await _end(run)
        if options.get("teardown"):
            await take_down(store, found, progress)


async def _end(run: asyncio.Task[Progress]) -> None:
    """Wait until a run has given back what it held; what it raised has been heard, or is of no interest now."""
    run.cancel()
    await asyncio.wait([run])
    if not run.cancelled():
        run.exception()


class _Finished:
    """The results of a call in the order in which they ended, each once, as long as its run lasts."""

    def __init__(self, store: Store, found: Synchronised, run: asyncio.Task[Progress]) -> None:
        self._store = store
        self._batch = found.batch
        self._total = found.enqueued.total
        self._run = run
        self._seen = bytearray(self._total // 8 + 1)

    async def results(self, *, unique: bool) -> AsyncIterator[Result]:
        async for result in self._all():
            if result.state in _FINAL and self._is_new(result.position) and not (unique and result.leader is not None):
                yield result

    async def _all(self) -> AsyncIterator[Result]:
        place = FinishedPlace()
        with closing(self._store.watch()) as watcher:
            while True:
                over = self._run.done()
                watcher.changed()  # what is committed from here on is seen by the next round
                page = await self._store.finished(self._batch, place)
                for result in page.results:
                    yield result
                place = page.place
                if over and not page.results:
                    break
                if not page.results:
                    await self._news(watcher)
        # A clock that was set back has put some before the place where they were looked for.
        async for result in self._store.results(self._batch, with_prompt=True):
            yield result

    async def _news(self, watcher: Watcher) -> None:
        while not (self._run.done() or watcher.changed()):
            await asyncio.wait([self._run], timeout=_POLL_SECONDS)

    def _is_new(self, position: int) -> bool:
        """Whether a row was not seen before; it is from now on. Rows that others have added are none of ours."""
        if position >= self._total:
            return False
        byte, bit = position >> 3, 1 << (position & 7)
        new = not self._seen[byte] & bit
        self._seen[byte] |= bit
        return new
