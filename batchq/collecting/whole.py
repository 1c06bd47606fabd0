"""Results of a batch from which none is lost while they are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast

from batchq.coordinator import refuse_purged
from batchq.errors import Purged
from batchq.jobs import Batch, BatchState, Counts, Result
from batchq.store import Store

PAGE_ROWS = 500


async def whole_results(
    store: Store, batch: Batch, *, with_prompt: bool = False, unique: bool = False, most: int | None = None
) -> AsyncGenerator[Result]:
    """Yield the jobs of a batch as they stand now, in input order, up to position `most`.

    `unique` leaves out those that follow another one. Raises Purged, at the end at the latest, where jobs were lost.
    """
    refuse_purged(batch)
    states = Counter[str]()
    pages = store.results(batch, with_prompt=with_prompt, page_rows=PAGE_ROWS)
    async with aclosing(cast("AsyncGenerator[Result]", pages)) as results:
        async for result in results:
            if most is not None and result.position >= most:
                break
            states[result.state.value] += 1
            # Those that follow others are read, too: only so can it be told whether any is lost.
            if not (unique and result.leader is not None):
                yield result
    await refuse_part(store, batch, Counts(**states), most)


async def refuse_part(store: Store, batch: Batch, read: Counts, most: int | None = None) -> None:
    """Raise Purged where fewer jobs were `read` than a batch has, up to position `most`, or what is left of them."""
    expected = batch.size if most is None else most
    if read.total >= expected and not (read.live and await _is_purged(store, batch)):
        return
    raise Purged(
        f"{batch.name} has lost jobs while they were read ({read.final:,} of {expected:,} are left): somebody purges it"
    )


async def _is_purged(store: Store, batch: Batch) -> bool:
    """Whether a batch is being deleted: what follows a job that is gone already has no answer any more."""
    found = await store.find_batch(batch.name)
    return found is None or found.id != batch.id or found.state is BatchState.PURGING
