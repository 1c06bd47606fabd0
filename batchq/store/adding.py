"""Adds jobs to a batch, a chunk at a time: new ones, answered ones, and those that follow others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select, update

from batchq.database import Transaction
from batchq.database.bulk import copy_rows
from batchq.database.dialect import json_list
from batchq.errors import BatchConflict, RowConflict
from batchq.jobs import Added, Batch, BatchState, NewBatch, NewJob, Reuse
from batchq.schema import batches, jobs
from batchq.store.enqueue import ENQUEUE_ALIVE_MS, insert_batch, open_batch
from batchq.store.find import AnyRow
from batchq.store.followers import Placed, add_followers
from batchq.store.reuse import add_reused
from batchq.store.tally import PRODUCER, Tally

_COLUMNS = ("batch_id", "position", "custom_id", "key", "payload", "state", "claimable_at", "created_at")
_BATCH = select(
    batches.c.id, batches.c.name, batches.c.size, batches.c.state, batches.c.allow_truncated, batches.c.keep_response,
    batches.c.synchronised,
).with_for_update(key_share=True)  # fmt: skip
_ENDED = {BatchState.CANCELLED: "cancelled", BatchState.PURGING: "purged"}


@dataclass(frozen=True, slots=True)
class Existing:
    """What a batch already holds at a position or under a custom_id."""

    position: int
    custom_id: str | None
    key: str


def add_jobs(tx: Transaction, batch_id: int, chunk: Sequence[NewJob], reuse: Reuse | None = None) -> Added:
    """Add the jobs of one chunk that are not there yet; return how many were.

    A job is the same if custom_id (position, where there is none) and key are. Raises BatchConflict
    for another key, and for a cancelled batch. The positions of jobs with a custom_id follow what the
    batch holds by now, except in a synchronised batch, where each has its own.
    """
    batch = tx.connection.execute(_BATCH.where(batches.c.id == batch_id)).one_or_none()
    if batch is None:
        raise BatchConflict("the batch was purged while rows were being added to it")
    if batch.state in {BatchState.CANCELLED, BatchState.PURGING}:
        raise BatchConflict(f"the batch was {_ENDED[BatchState(batch.state)]} while rows were being added to it")
    placed = _place(tx, batch, chunk)
    values: dict[str, object] = {"enqueue_until": tx.now + ENQUEUE_ALIVE_MS}
    added = Added()
    if placed:
        added = _add(tx, batch, placed, reuse)
        values |= {"size": batch.size + len(placed), "sealed_at": None}
    tx.connection.execute(update(batches).where(batches.c.id == batch_id).values(values))
    return added


def make_batch(
    tx: Transaction, new: NewBatch, chunk: Sequence[NewJob], reuse: Reuse | None
) -> tuple[Batch, Added] | None:
    """Create a batch with its first jobs in it; None if there is one of that name."""
    if not insert_batch(tx, new):
        return None
    batch = open_batch(tx, new)
    return batch, add_jobs(tx, batch.id, chunk, reuse)


def _place(tx: Transaction, batch: AnyRow, chunk: Sequence[NewJob]) -> list[Placed]:
    """Return the jobs that are not there yet, with their positions. Raises BatchConflict."""
    size: int = batch.size
    by_id = bool(chunk) and chunk[0].custom_id is not None
    may_be_there = bool(size) and (by_id or any(job.position < size for job in chunk))
    present = existing_jobs(tx, batch.id, chunk) if may_be_there else {}
    placed: list[Placed] = []
    for job in chunk:
        found = present.get(job.custom_id if by_id else job.position)
        if found is not None:
            if found.key != job.key:
                raise RowConflict(conflict_message(job, found, batch.name))
            if batch.synchronised and found.position != job.position:
                raise RowConflict(f"row {job.position} is at position {found.position} of the batch")
            continue
        position = size + len(placed)
        if position != job.position and (batch.synchronised or not by_id):
            raise RowConflict(f"row {job.position} can't follow row {position - 1}: another enqueue is in the way")
        placed.append(Placed(position, job))
    return placed


def _add(tx: Transaction, batch: AnyRow, placed: Sequence[Placed], reuse: Reuse | None) -> Added:
    tally = Tally()
    following = [item for item in placed if item.job.leader is not None]
    running = [item for item in placed if item.job.leader is None]
    reused = 0
    if reuse is not None:
        running, reused = add_reused(tx, batch, running, reuse, tally)
    _insert(tx, batch.id, running, tally)
    alone = add_followers(tx, batch.id, following, tally)
    _insert(tx, batch.id, alone, tally)
    tally.write(tx, PRODUCER)
    return Added(len(placed), reused, len(following) - len(alone))


def _insert(tx: Transaction, batch_id: int, placed: Sequence[Placed], tally: Tally) -> None:
    rows: list[tuple[object, ...]] = [
        (batch_id, item.position, item.job.custom_id, item.job.key, item.job.payload, "pending", tx.now, tx.now)
        for item in placed
    ]
    if rows:
        copy_rows(tx, jobs, _COLUMNS, rows)
        tally.move(batch_id, None, "pending", len(rows))


def existing_jobs(tx: Transaction, batch_id: int, chunk: Sequence[NewJob]) -> dict[object, Existing]:
    """Return what the batch holds under the custom_ids, or positions, of a chunk."""
    if not chunk:
        return {}
    by_id = chunk[0].custom_id is not None
    column = jobs.c.custom_id if by_id else jobs.c.position
    wanted = [job.custom_id if by_id else job.position for job in chunk]
    statement = select(jobs.c.position, jobs.c.custom_id, jobs.c.key).where(
        jobs.c.batch_id == batch_id, column.in_(json_list("wanted", column.type))
    )
    rows = tx.connection.execute(statement, {"wanted": json.dumps(wanted)}).all()
    return {(row.custom_id if by_id else row.position): Existing(row.position, row.custom_id, row.key) for row in rows}


def read_keys(tx: Transaction, batch_id: int, after: int, limit: int) -> list[Existing]:
    """Return up to `limit` jobs behind position `after` that run for themselves, in order."""
    statement = (
        select(jobs.c.position, jobs.c.custom_id, jobs.c.key)
        .where(jobs.c.batch_id == batch_id, jobs.c.position > after, jobs.c.leader_id.is_(None))
        .order_by(jobs.c.position)
        .limit(limit)
    )
    return [Existing(row.position, row.custom_id, row.key) for row in tx.connection.execute(statement).all()]


def first_keys(tx: Transaction, batch_ids: Sequence[int]) -> dict[int, str]:
    """Return the key of the first job of each batch that has one."""
    statement = select(jobs.c.batch_id, jobs.c.key).where(jobs.c.batch_id.in_(json_list("ids")), jobs.c.position == 0)
    rows = tx.connection.execute(statement, {"ids": json.dumps(list(batch_ids))}).all()
    return {row.batch_id: row.key for row in rows}


def conflict_message(job: NewJob, found: Existing, batch: str) -> str:
    """Say which row differs from what the batch of that name holds."""
    if job.custom_id is not None:
        return f"custom_id {job.custom_id!r} is in the batch {batch!r} (position {found.position}) with another request"
    return f"position {job.position} of the batch {batch!r} holds another request"
