"""What an operator does that takes more than one statement of the store: for the commands and the library."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchq.display.text import plural
from batchq.errors import UsageError
from batchq.jobs import BatchState

if TYPE_CHECKING:
    from batchq.jobs import Attempt, Batch, Result
    from batchq.store import Store


async def find_job(store: Store, name: str, position: int) -> tuple[Result, list[Attempt]]:
    """Return a job with its prompt and its attempts, oldest first. Raises UsageError where there is none."""
    batch = await store.batch(name)
    found = await store.job(batch, position)
    if found is None:
        held = f"its positions are 0 to {batch.size - 1}" if batch.size else "it has no jobs"
        raise UsageError(f"{name} has no position {position}: {held}")
    return found


async def set_concurrency(store: Store, calls: int, *, pid: int | None = None, host: str | None = None) -> int:
    """Ask live runners for `calls` at once, all or those of a process or host; return how many were asked."""
    chosen = [
        runner.id
        for runner in await store.runners()
        if runner.live and pid in {None, runner.pid} and host in {None, runner.host}
    ]
    return await store.set_concurrency(calls, chosen)


async def find_purgeable(store: Store, name: str, *, force: bool) -> Batch:
    """Return a batch that may be deleted. Raises UsageError where jobs of it are unfinished, unless `force`."""
    progress = await store.progress(name)
    half_gone = progress.batch.state is BatchState.PURGING
    if not (progress.finished or half_gone or force):
        raise UsageError(
            f"{name} has {plural(progress.counts.live, 'unfinished job')} or is not complete;"
            " cancel it first, or delete it all the same with --force"
        )
    return progress.batch


async def purge(store: Store, batch: Batch) -> int:
    """Delete a batch, finished or not; return how many jobs."""
    if not (await store.progress(batch.name)).finished:
        await store.cancel(batch)  # so that nobody claims what is about to go
    return await store.purge(batch)


def refuse_cancelled(batch: Batch, revival: str) -> None:
    """Raise UsageError for a cancelled batch, and say what revives it."""
    if batch.state is BatchState.CANCELLED:
        raise UsageError(f"{batch.name} was cancelled; {revival} revives it")
