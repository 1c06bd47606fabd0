"""`prompt_stream`: rows as they finish, each once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing, closing
from typing import Unpack

import anyio

from batchq.api.answers import AnswerRow, Reader
from batchq.api.call import call_of, make_ready
from batchq.api.options import CallOptions, is_unique
from batchq.api.running import Shown, run_batch, working
from batchq.api.spool import Prompts
from batchq.api.teardown import take_down
from batchq.collecting.whole import refuse_part
from batchq.database import Watcher
from batchq.generations import Synchronised
from batchq.jobs import Counts, FinishedPlace, JobState, Progress, Result
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
    unique = is_unique(options.get("output_shape", "original"))
    complete = True
    reader = Reader(options.get("response_model"))
    async with await open_store(ready.settings.db, create=True) as store:
        found = await ready.enqueue(store)
        if found is None:
            return
        # In a task of its own, since a generator may be left at any yield; it ends before the store does.
        async with working(store, ready, found) as runner:
            run = asyncio.create_task(run_batch(store, runner, found, shown))
            try:
                async with aclosing(_Finished(store, found, run).results()) as results:
                    async for result in results:
                        row = reader.row(result)
                        complete = complete and row["status"] == JobState.DONE.value
                        if not (unique and result.leader is not None):
                            yield row
            finally:
                await _end(run)
        if options.get("teardown"):
            await take_down(store, found, complete=complete)


async def _end(run: asyncio.Task[Progress]) -> None:
    """Wait until a run has given back what it held, however often we are cancelled meanwhile: it needs the store.

    What it raised has been heard, or is of no interest now.
    """
    run.cancel()
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not run.done():
            try:
                await asyncio.wait([run])
            except asyncio.CancelledError as error:  # by asyncio, which knows no shields
                cancelled = error
    if not run.cancelled():
        run.exception()
    if cancelled is not None:
        raise cancelled


class _Finished:
    """The results of a call in the order in which they ended, each once, as long as its run lasts."""

    def __init__(self, store: Store, found: Synchronised, run: asyncio.Task[Progress]) -> None:
        self._store = store
        self._batch = found.batch
        self._total = found.enqueued.total
        self._run = run
        self._seen = bytearray(self._total // 8 + 1)
        self._states = Counter[str]()

    async def results(self) -> AsyncGenerator[Result]:
        """Yield them; raise what the run raises, and Purged where some are lost."""
        async with aclosing(self._ended()) as ended:
            async for result in ended:
                if result.state in _FINAL and self._is_new(result):
                    yield result
        if self._states.total() < self._total:
            # A clock that was set back, or a commit that took long, has put some before the place that was looked at.
            over = self._run.done() and not self._run.cancelled() and self._run.exception() is None
            async for result in self._store.results(self._batch, with_prompt=True):
                if (over or result.state in _FINAL) and self._is_new(result):
                    yield result  # where it has not ended, somebody else has sent it back since
        await self._run
        await refuse_part(self._store, self._batch, Counts(**self._states), self._total)

    async def _ended(self) -> AsyncGenerator[Result]:
        place = FinishedPlace()
        with closing(self._store.watch()) as watcher:
            while True:
                over = self._run.done()
                watcher.changed()  # what is committed from here on is seen by the next round
                page = await self._store.finished(self._batch, place, running=not over)
                for result in page.results:
                    yield result
                place = page.place
                if over and not page.results:
                    return
                if not page.results:
                    await self._news(watcher)

    async def _news(self, watcher: Watcher) -> None:
        while not (self._run.done() or watcher.changed()):
            await asyncio.wait([self._run], timeout=_POLL_SECONDS)

    def _is_new(self, result: Result) -> bool:
        """Whether a row was not seen before; it is from now on. Rows that others have added are none of ours."""
        if result.position >= self._total:
            return False
        byte, bit = result.position >> 3, 1 << (result.position & 7)
        if self._seen[byte] & bit:
            return False
        self._seen[byte] |= bit
        self._states[result.state.value] += 1
        return True
