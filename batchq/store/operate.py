"""What an operator changes: pause, resume, cancel, retry, purge."""

from __future__ import annotations

import json

from sqlalchemy import and_, delete, func, literal_column, or_, select, update

from batchq.database import Transaction
from batchq.database.dialect import json_list
from batchq.jobs import Batch, BatchState
from batchq.schema import CLAIMABLE, attempts, batches, jobs, tallies
from batchq.store.find import AMONG_LIVE, IN_INDEX_ORDER, INFLIGHT, batch_from, now_ms
from batchq.store.lanes import reopen
from batchq.store.locks import lock_batch, lock_jobs
from batchq.store.log import log_taken_away
from batchq.store.runners import read_runners
from batchq.store.tally import PRODUCER, Tally

CHUNK_ROWS = 2_000

_ENDED_BADLY = ("failed", "cancelled")
_CHOSEN = jobs.c.id.in_(json_list("chosen"))
_LOG_CANCELLED = log_taken_away("cancelled", _CHOSEN, charged=False)


def pause(tx: Transaction, batch_id: int) -> None:
    """Pause an open batch: one row, and no claim starts after it commits."""
    _move(tx, batch_id, BatchState.OPEN, BatchState.PAUSED)


def start_cancel(tx: Transaction, batch_id: int) -> None:
    """Mark a batch as cancelled: no claim starts after it commits, and anybody may cancel its jobs."""
    for state in (BatchState.OPEN, BatchState.PAUSED):
        _move(tx, batch_id, state, BatchState.CANCELLED)


def resume_batch(tx: Transaction, batch: Batch) -> int:
    """Open a paused batch and reopen the halted lanes of its worker and model; return how many lanes."""
    _move(tx, batch.id, BatchState.PAUSED, BatchState.OPEN)
    return reopen(tx, worker=batch.worker, model=batch.model)


def cancel_chunk(tx: Transaction, batch_id: int) -> tuple[int, bool]:
    """Cancel up to 2,000 unfinished jobs of a batch, if it is still cancelled.

    Returns how many, and whether there may be more.
    """
    if lock_batch(tx, batch_id) != BatchState.CANCELLED:
        return 0, False
    tally = Tally()
    moved = 0
    # In one statement: a job that went from one state to the other between two would be seen by neither.
    chosen = select(jobs.c.id).where(jobs.c.batch_id == batch_id, CLAIMABLE).order_by(*IN_INDEX_ORDER).limit(CHUNK_ROWS)
    seen = tx.connection.execute(chosen).scalars().all()
    locked = lock_jobs(tx, seen)
    for source in ("pending", "inflight"):
        ids = {"chosen": json.dumps([row.id for row in locked if row.state == source])}
        values: dict[str, object] = {"state": "cancelled", "finished_at": tx.now, "error_class": "cancelled"}
        if source == "inflight":
            tx.connection.execute(_LOG_CANCELLED, ids | {"now": tx.now})
            values["attempts"] = jobs.c.attempts - 1
        statement = update(jobs).where(_CHOSEN).values(values).returning(jobs.c.followers)
        rows = tx.connection.execute(statement, ids).all()
        tally.move(batch_id, source, "cancelled", sum(1 + row.followers for row in rows))
        moved += len(rows)
    tally.write(tx, PRODUCER)
    return moved, bool(seen)


def abandoned_cancels(tx: Transaction) -> list[Batch]:
    """Return cancelled batches that still have live rows: their operator went away half-way."""
    rows = tx.connection.execute(
        select(batches).where(
            batches.c.state == literal_column("'cancelled'"),
            select(jobs.c.id).where(jobs.c.batch_id == batches.c.id, CLAIMABLE).limit(1).exists(),
        )
    ).all()
    return [batch_from(row) for row in rows]


def retry_chunk(
    tx: Transaction, batch: Batch, after: int, error_class: str | None, *, revive: bool
) -> tuple[int, int | None]:
    """Send up to 2,000 failed or cancelled jobs behind id `after` back to pending.

    Attempts start again; the token stays, and what was spent. Returns how many, and the last id (None: no more).
    A cancelled batch is opened by `revive`; without that, nothing of one is sent back.
    """
    if revive:
        _move(tx, batch.id, BatchState.CANCELLED, BatchState.OPEN)
    elif lock_batch(tx, batch.id) == BatchState.CANCELLED:
        return 0, None
    chosen = (
        select(jobs.c.id)
        .where(jobs.c.batch_id == batch.id, jobs.c.state.in_(_ENDED_BADLY), jobs.c.id > after)
        .order_by(jobs.c.id)
        .limit(CHUNK_ROWS)
    )
    if error_class is not None:
        chosen = chosen.where(jobs.c.error_class == error_class)
    seen = tx.connection.execute(chosen).scalars().all()
    if not seen:
        return 0, None
    rows = [row for row in lock_jobs(tx, seen) if row.state in _ENDED_BADLY]
    tally = Tally()
    for row in rows:
        tally.move(batch.id, row.state, "pending", 1 + row.followers)
    tx.connection.execute(
        update(jobs)
        .where(_CHOSEN)
        .values(
            state="pending", claimable_at=tx.now, finished_at=None, attempts=0, losses=0, throttles=0,
            strikes=0, strike_class=None, halts=0, halted_at=None,
            result=None, response=None, error=None, error_class=None, status=None, finish_reason=None, meta=None,
        ),
        {"chosen": json.dumps([row.id for row in rows])},
    )  # fmt: skip
    tally.write(tx, PRODUCER)
    return len(rows), seen[-1]


def purge_chunk(tx: Transaction, batch_id: int) -> int:
    """Delete up to 2,000 jobs of a batch with their attempts, the batch itself after the last; return how many.

    From the first chunk on the batch is marked: no claim starts any more, and nobody takes it for a finished one.
    """
    tx.connection.execute(update(batches).where(batches.c.id == batch_id).values(state=BatchState.PURGING.value))
    chosen = select(jobs.c.id).where(jobs.c.batch_id == batch_id).order_by(jobs.c.position).limit(CHUNK_ROWS)
    found = lock_jobs(tx, tx.connection.execute(chosen).scalars().all())
    ids = {"chosen": json.dumps([row.id for row in found])}
    tx.connection.execute(delete(attempts).where(attempts.c.job_id.in_(json_list("chosen"))), ids)
    removed = tx.connection.execute(delete(jobs).where(_CHOSEN), ids).rowcount
    if not removed:
        # In the order in which a runner's are folded: into the producers', which come last.
        for whose in (tallies.c.runner != PRODUCER, tallies.c.runner == PRODUCER):
            tx.connection.execute(delete(tallies).where(tallies.c.batch_id == batch_id, whose))
        tx.connection.execute(delete(batches).where(batches.c.id == batch_id))
    return removed


def claim_purge(tx: Transaction, batch: Batch) -> bool:
    """Mark a batch as being purged if it is as it was seen, and nobody wants it; return whether it was.

    Wanted is what has live jobs, is not complete or about to be run, or has a live runner that was started for it.
    """
    locked = select(batches).where(batches.c.id == batch.id).with_for_update(key_share=True)
    row = tx.connection.execute(locked).one_or_none()
    if row is None or row.size != batch.size or row.state == BatchState.PAUSED:
        return False
    if (row.sealed_at is None and row.state == BatchState.OPEN) or row.enqueue_until > tx.now:
        return False
    # In an order, since PostgreSQL might look for any such row through all that have ended.
    live = select(jobs.c.id).where(jobs.c.batch_id == batch.id, CLAIMABLE).order_by(*IN_INDEX_ORDER).limit(1)
    if tx.connection.execute(live).first() is not None:
        return False
    if any(runner.live and batch.id in (runner.batch_ids or ()) for runner in read_runners(tx)):
        return False
    tx.connection.execute(update(batches).where(batches.c.id == batch.id).values(state=BatchState.PURGING.value))
    return True


def holders(tx: Transaction, batch_id: int) -> frozenset[str]:
    """Return the ids of the runners that hold jobs of a batch under leases that have not run out."""
    held = select(jobs.c.claimed_by).where(
        jobs.c.batch_id == batch_id, INFLIGHT, AMONG_LIVE, jobs.c.claimable_at > now_ms
    )
    return frozenset(tx.connection.execute(held.distinct(), {"now": tx.now}).scalars().all())


def _move(tx: Transaction, batch_id: int, source: BatchState, target: BatchState) -> None:
    """Change a batch's state, unless somebody else did meanwhile."""
    tx.connection.execute(
        update(batches).where(batches.c.id == batch_id, batches.c.state == source.value).values(state=target.value)
    )


def finished_before(tx: Transaction, cutoff: int) -> list[Batch]:
    """Return sealed batches whose last job ended before `cutoff`, and those whose purge was left half-way."""
    last = select(func.max(jobs.c.finished_at)).where(jobs.c.batch_id == batches.c.id).scalar_subquery()
    live = select(jobs.c.id).where(jobs.c.batch_id == batches.c.id, CLAIMABLE).limit(1).exists()
    rows = tx.connection.execute(
        select(batches).where(
            or_(
                batches.c.state == BatchState.PURGING.value,
                and_(batches.c.sealed_at.is_not(None), ~live, func.coalesce(last, 0) < cutoff),
            )
        )
    ).all()
    return [batch_from(row) for row in rows]
