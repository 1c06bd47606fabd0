"""Takes down what a call has left behind, once everything in it was answered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from batchq.generations import Synchronised, base_name, is_used
from batchq.jobs import BatchState, Progress
from batchq.store import Store


async def take_down(store: Store, found: Synchronised, progress: Progress) -> None:
    """Delete a batch whose jobs are all done, and the queue's file with it if nothing else is in it."""
    if progress.counts.done == progress.counts.total:
        await _purge_generations(store, found)
        await _close_and_remove_if_empty(store)


async def _purge_generations(store: Store, found: Synchronised) -> None:
    """Delete the batch of a call, and the generations that it took the place of, but none that others wait for."""
    generations = await store.generations(base_name(found.batch.name))
    ended = {BatchState.CANCELLED, BatchState.PURGING}
    for old in generations:
        if old.id != found.batch.id and old.state not in ended:
            continue
        progress = await store.progress(old.name)
        if not is_used(old, progress.runners):
            await store.purge(old)


async def _close_and_remove_if_empty(store: Store) -> None:
    """Close a queue, and remove its file if there is nothing in it and nobody at work."""
    path = Path(store.location)
    gone = await store.give_up()
    await store.close()
    if gone:
        for name in _files_of(path):
            name.unlink(missing_ok=True)


def _files_of(path: Path) -> Sequence[Path]:
    """Return a queue's file behind what SQLite keeps beside it."""
    return [path.with_name(path.name + ending) for ending in ("-wal", "-shm", "-journal", "")]
