"""Rows that a transaction waits for, always in the same order, so that no two wait for each other.

Batches, then jobs by their ids, then lanes by their names (`lanes.LaneBook`), then tallies. Producers lock their batch
with its first read (`adding`, `enqueue`), and leaders before they give them followers (`followers`); what is settled
is locked by the statement that logs it (`settle`). Whatever else an exchange takes it takes without waiting: what
others hold at that moment is passed over. SQLite has one lock for all: nothing here costs anything there but a read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from sqlalchemy import BigInteger, bindparam, select

from batchq.database import Transaction
from batchq.database.dialect import json_list, lock_order
from batchq.schema import batches, jobs
from batchq.store.find import AnyRow

_JOBS = (
    select(jobs.c.id, jobs.c.state, jobs.c.followers)
    .where(jobs.c.id.in_(json_list("chosen")))
    .order_by(lock_order(jobs.c.id))
    .with_for_update()
)


# A batch is locked without its key: whoever writes a row that names it, a tally above all, waits only for its end.
_TAKE_BATCH = (
    select(batches.c.id)
    .where(batches.c.id == bindparam("of_batch", type_=BigInteger))
    .with_for_update(skip_locked=True, key_share=True)
)


def lock_batch(tx: Transaction, batch_id: int) -> str | None:
    """Wait until nobody else changes a batch, and return its state, which stays; None where it is gone."""
    locking = select(batches.c.state).where(batches.c.id == batch_id).with_for_update(key_share=True)
    return tx.connection.execute(locking).scalar_one_or_none()


def take_batch(tx: Transaction, batch_id: int) -> bool:
    """Lock a batch unless somebody else has it; return whether it is ours now."""
    return tx.connection.execute(_TAKE_BATCH, {"of_batch": batch_id}).first() is not None


def lock_jobs(tx: Transaction, ids: Iterable[int]) -> Sequence[AnyRow]:
    """Wait for jobs that are about to change; return `id`, `state` and `followers` as they are by then."""
    return tx.connection.execute(_JOBS, {"chosen": json.dumps(sorted(ids))}).all()
