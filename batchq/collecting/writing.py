"""Writes the results of a batch into files that appear whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread

from batchq.collecting.checks import check_not_source, check_places
from batchq.collecting.joining import InputRows, input_rows
from batchq.collecting.output import Output
from batchq.collecting.sheets import Sheets
from batchq.collecting.stdout import Stdout
from batchq.collecting.whole import whole_results
from batchq.coordinator import OnProgress, refuse_purged, told_errors, wait_until_finished
from batchq.formats import AtomicFile
from batchq.formats.rendering import BinaryFile, Layout
from batchq.jobs import Batch, Counts, ErrorGroup, Progress
from batchq.store import Store


@dataclass(frozen=True, slots=True)
class Collected:
    """What was written of a batch: `counts` are its jobs by state, `errors` how jobs failed, in words fit for a log.

    `written` rows are in the output, `set_aside` in the file for those that failed.
    """

    batch: Batch
    progress: Progress
    counts: Counts
    errors: tuple[ErrorGroup, ...]
    written: int
    set_aside: int


async def collect(
    store: Store,
    name: str,
    output: Output,
    *,
    wait_timeout: float | None = None,
    on_progress: OnProgress | None = None,
) -> Collected:
    """Wait until a batch is finished, then write its results. Raises TimedOutWaiting, UnknownBatch."""
    await wait_until_finished(store, name, wait_timeout=wait_timeout, on_progress=on_progress)
    return await write_results(store, name, output)


async def write_results(store: Store, name: str, output: Output) -> Collected:
    """Write the jobs of a batch as they stand now, in input order.

    The files are replaced whole or not at all. Raises UnknownBatch, Purged, and UsageError where one of them
    is the queue itself or the batch's own input, or where `with_input` does not fit the batch.
    """
    progress = await store.progress(name)
    batch = progress.batch
    refuse_purged(batch)
    check_places(output, database=store.file)
    check_not_source(output, batch)
    with ExitStack() as stack:
        layout, rows = await prepare_layout(stack, store, batch, output)
        results, errors = stack.enter_context(_atomic_files(output))
        sheets = stack.enter_context(Sheets(output, layout, rows, results, errors))
        async for result in whole_results(
            store, batch, with_prompt=output.with_prompt, unique=output.unique, most=output.most
        ):
            sheets.put(result)
        sheets.close()
    return await collected(store, progress, sheets)


async def prepare_layout(
    stack: ExitStack, store: Store, batch: Batch, output: Output
) -> tuple[Layout, InputRows | None]:
    """Return what the rows of an output hold, with those of the input, kept until `stack` ends, if it has them."""
    has_ids = bool(await store.has_custom_ids(batch))
    rows = None
    if output.with_input is not None:
        opened = input_rows(output.with_input, output.read, batch, has_ids=has_ids)
        rows = await anyio.to_thread.run_sync(stack.enter_context, opened)
    columns = None if rows is None else rows.columns
    return Layout(batch, has_ids, output.with_prompt, columns, output.guard_formulas), rows


async def collected(store: Store, progress: Progress, sheets: Sheets) -> Collected:
    """Return the account of what was written."""
    errors = await told_errors(store, progress.batch)
    return Collected(progress.batch, progress, sheets.counts, errors, sheets.written, sheets.set_aside)


@contextmanager
def _atomic_files(output: Output) -> Iterator[tuple[BinaryFile, BinaryFile | None]]:
    """Open the files; where the block ends well, they are put in their places only when all are on the disk."""
    with ExitStack() as stack:
        opened: list[AtomicFile] = []

        def enter(path: Path) -> BinaryFile:
            file = AtomicFile(path)
            opened.append(file)
            return stack.enter_context(file).buffer

        results = Stdout() if output.path is None else enter(output.path)
        yield results, None if output.errors is None else enter(output.errors)
        for file in opened:
            file.prepare()
