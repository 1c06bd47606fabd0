"""How commands open the queue, and what they say of it on stderr before all else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchq.display.messages import say

if TYPE_CHECKING:
    from batchq.database import OnLocked
    from batchq.store import Store


async def open_queue(location: str, *, create: bool = False, on_locked: OnLocked | None = None) -> Store:
    """Open the queue as `open_store` does; say so where that has upgraded it."""
    from batchq.schema import SCHEMA_VERSION
    from batchq.store import open_store

    store = await open_store(location, create=create, on_locked=on_locked)
    if store.upgraded_from is not None:
        say(
            f"batchq: upgraded {store.location} from schema {store.upgraded_from} to {SCHEMA_VERSION};"
            " an older batchq can't open it any more"
        )
    return store


async def tell_if_moved(store: Store) -> None:
    """Say where the queue is by now, if it was moved."""
    from batchq.waiting import told_moved

    if (place := await store.moved_to()) is not None:
        say(f"batchq: {told_moved(place)}")
