"""Who is at work on a queue: what a move would take the ground from."""

from __future__ import annotations

from sqlalchemy import func, select

from batchq.database import Transaction
from batchq.schema import batches, jobs
from batchq.store.find import AMONG_LIVE, INFLIGHT, now_ms
from batchq.store.runners import read_runners

_MOST_NAMED = 5


def in_use(tx: Transaction) -> list[str]:
    """Return who is at work, a phrase each: live runners, jobs under unexpired leases, producers."""
    working = [runner for runner in read_runners(tx) if runner.live]
    phrases = [f"the worker {runner.pid} on {runner.host} is running" for runner in working[:_MOST_NAMED]]
    if len(working) > _MOST_NAMED:
        phrases.append(f"{len(working) - _MOST_NAMED} more workers are running")
    leased = tx.connection.execute(
        select(func.count().label("jobs"), func.max(jobs.c.claimable_at).label("until")).where(
            INFLIGHT, AMONG_LIVE, jobs.c.claimable_at > now_ms
        ),
        {"now": tx.now},
    ).one()
    if leased.jobs:
        seconds = -(-(leased.until - tx.now) // 1000)
        count = "1 job is" if leased.jobs == 1 else f"{leased.jobs} jobs are"
        phrases.append(f"{count} in flight, for up to {seconds} s")
    # A producer that has sealed its batch does not write any more.
    filled = select(batches.c.name).where(batches.c.sealed_at.is_(None), batches.c.enqueue_until > tx.now)
    phrases += [f"{name!r} is being enqueued" for name in tx.connection.execute(filled).scalars().all()]
    return phrases
