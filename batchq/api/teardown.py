"""Takes down what a call has left behind, once everything in it was answered."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import partial

import anyio.to_thread

from batchq.database import remove_if_empty
from batchq.display.messages import say
from batchq.errors import BatchqError
from batchq.generations import Synchronised
from batchq.jobs import BatchState
from batchq.store import Store


async def take_down(store: Store, found: Synchronised, *, complete: bool) -> None:
    """Delete the batch of a call that is complete, and the queue's file if that holds nothing else; close the store.

    What somebody else still wants is left alone. A failure is said, not raised: the answers are there.
    """
    if not complete:
        return
    try:
        await _purge(store, found)
        await store.close()
        if store.file is not None:
            await anyio.to_thread.run_sync(partial(remove_if_empty, store.file))
    except (BatchqError, OSError) as error:
        say(f"batchq: {found.batch.name} could not be taken down: {error}")


async def _purge(store: Store, found: Synchronised) -> None:
    """Delete the batch, if it holds no more than this call has seen, and the generations that the call superseded."""
    own = await store.batch(found.batch.name)
    if own.id != found.batch.id or not await store.purge_if_unwanted(replace(own, size=found.enqueued.total)):
        return
    for name in found.superseded:
        with suppress(BatchqError):  # somebody else may have deleted it
            old = await store.batch(name)
            if old.state is BatchState.CANCELLED:
                await store.purge_if_unwanted(old)
