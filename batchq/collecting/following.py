"""Writes each row of a batch as soon as all before it are final; taken up again, it goes on where it was."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import cast

import anyio

from batchq.collecting.checks import check_not_source, check_places
from batchq.collecting.growing import growing_file
from batchq.collecting.output import Output
from batchq.collecting.sheets import Sheets
from batchq.collecting.stdout import Stdout
from batchq.collecting.whole import PAGE_ROWS, refuse_part
from batchq.collecting.writing import Collected, collected, prepare_layout
from batchq.coordinator import OnProgress, refuse_purged, timed_out, watch
from batchq.errors import UsageError
from batchq.formats.rendering import BinaryFile
from batchq.jobs import JobState, Progress, Result
from batchq.store import Store

_LIVE = frozenset({JobState.PENDING, JobState.INFLIGHT})


def check_follow(output: Output, *, database: Path | None = None) -> None:
    """Raise UsageError where an output can't grow, or has files that it can't have."""
    check_places(output, database=database)
    if output.actual_format == "parquet":
        raise UsageError("a Parquet file is written whole: --follow takes jsonl, csv, tsv, txt or openai")


async def follow(
    store: Store,
    name: str,
    output: Output,
    *,
    start_over: bool = False,
    wait_timeout: float | None = None,
    on_progress: OnProgress | None = None,
) -> Collected:
    """Write the rows of a batch while it runs, in input order, until it is finished.

    Files that hold the beginning of these rows are gone on with, also where they end in the middle of one.
    Raises UsageError where they hold anything else, unless `start_over`, and TimedOutWaiting.
    """
    check_follow(output, database=store.file)
    check_not_source(output, await store.batch(name))
    with ExitStack() as stack:
        follower = _Follower(store, output, stack, start_over=start_over)
        with anyio.move_on_after(wait_timeout):
            while not follower.is_complete:
                async for progress in watch(store, name):
                    if progress.away is None:
                        await follower.advance(progress)
                    if on_progress is not None:
                        on_progress(progress)
        sheets = follower.sheets
        if not follower.is_complete or sheets is None:
            raise timed_out(await store.progress(name), store.location)
        sheets.close()
    return await collected(store, await store.progress(name), sheets)


class _Follower:
    """What is written of a batch by now."""

    def __init__(self, store: Store, output: Output, stack: ExitStack, *, start_over: bool) -> None:
        self._store = store
        self._output = output
        self._stack = stack
        self._start_over = start_over
        self._last = -1
        self._waits = False
        self.sheets: Sheets | None = None
        self.is_complete = False

    async def advance(self, progress: Progress) -> None:
        """Write what has become final."""
        refuse_purged(progress.batch)
        if not self._is_ready(progress):
            return
        if self.sheets is None:
            self.sheets = await self._open(progress)
        await self._write(progress, self.sheets)
        if progress.finished and not self._waits:
            await refuse_part(self._store, progress.batch, self.sheets.counts)
            self.is_complete = True

    def _is_ready(self, progress: Progress) -> bool:
        """Whether it can be told what rows hold: whether they have ids, and, with the input, that all are there."""
        batch = progress.batch
        if self._output.with_input is not None and batch.sealed_at is None:
            return progress.finished
        return bool(batch.size) or progress.finished

    async def _open(self, progress: Progress) -> Sheets:
        layout, rows = await prepare_layout(self._stack, self._store, progress.batch, self._output)
        results, errors = self._file(self._output.path, progress), None
        if self._output.errors is not None:
            errors = self._file(self._output.errors, progress)
        return self._stack.enter_context(Sheets(self._output, layout, rows, results, errors))

    def _file(self, path: Path | None, progress: Progress) -> BinaryFile:
        if path is None:
            return Stdout()
        return self._stack.enter_context(growing_file(path, progress.batch.name, start_over=self._start_over))

    async def _write(self, progress: Progress, sheets: Sheets) -> None:
        if self._waits and not await self._has_next_ended(progress):
            return
        self._waits = False
        async with aclosing(self._results(progress, PAGE_ROWS)) as results:
            async for result in results:
                if result.state in _LIVE:
                    self._waits = True
                    break
                sheets.put(result)
                self._last = result.position
        sheets.flush()

    async def _has_next_ended(self, progress: Progress) -> bool:
        async with aclosing(self._results(progress, 1)) as results:
            async for result in results:
                return result.state not in _LIVE
        return True

    def _results(self, progress: Progress, page_rows: int) -> AsyncGenerator[Result]:
        results = self._store.results(
            progress.batch, with_prompt=self._output.with_prompt, after=self._last, page_rows=page_rows
        )
        return cast("AsyncGenerator[Result]", results)
