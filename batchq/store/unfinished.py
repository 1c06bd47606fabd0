"""What is left to do in the whole queue. Reads only."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import select

from batchq.database import Transaction
from batchq.jobs import Batch, BatchState, LiveBatch, Unfinished
from batchq.schema import batches
from batchq.store.damage import refuse_odd_times
from batchq.store.find import PENDING, AnyRow, batch_from, last_lease, live_batches, next_time
from batchq.store.lanes import read_lanes
from batchq.store.tally import read_totals


def read_unfinished(tx: Transaction) -> Unfinished:
    """Return all of it as of one moment: a producer that seals between two reads would make it look empty."""
    return Unfinished(tx.now, read_live(tx), read_unsealed(tx), read_lanes(tx, counted=False))


def read_live(tx: Transaction) -> tuple[LiveBatch, ...]:
    """Return the batches with unfinished work: when the next row is due, and when the last lease ends."""
    live = live_batches()
    rows = tx.connection.execute(
        select(batches, next_time(PENDING).label("due"), last_lease().label("leased_until")).join(
            live, live.c.batch_id == batches.c.id
        )
    ).all()
    totals = read_totals(tx) if any(row.budget is not None for row in rows) else {}
    return tuple(_live_batch(row, totals.get(row.id, {})) for row in rows)


def _live_batch(row: AnyRow, totals: Mapping[str, int]) -> LiveBatch:
    spent = totals.get("cost") if totals.get("priced") else None
    priced, unpriced = totals.get("priced", 0), totals.get("unpriced", 0)
    refuse_odd_times(row.name, row.due, row.leased_until)
    return LiveBatch(batch_from(row), row.due, row.leased_until, spent, priced, unpriced)


def read_unsealed(tx: Transaction) -> tuple[Batch, ...]:
    """Return the batches that are not complete yet; one that is cancelled or purged never will be."""
    rows = tx.connection.execute(
        select(batches).where(
            batches.c.sealed_at.is_(None),
            batches.c.state.not_in((BatchState.CANCELLED.value, BatchState.PURGING.value)),
        )
    ).all()
    return tuple(batch_from(row) for row in rows)
