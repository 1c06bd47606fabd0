"""Enqueue: make a batch, add jobs in chunks, seal it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import func, insert, select, update

from batchq.database import Transaction
from batchq.database.dialect import json_list
from batchq.errors import BatchConflict
from batchq.jobs import Batch, BatchState, NewBatch, NewJob
from batchq.request import canonical, encode
from batchq.schema import batches, jobs
from batchq.store.find import batch_from
from batchq.store.tally import PRODUCER, Tally

# How long a producer may be silent before a collector calls it dead.
ENQUEUE_ALIVE_MS = 30_000

_INSERT = (
    "INSERT INTO jobs (batch_id, position, custom_id, key, payload, state, claimable_at, created_at) "
    "VALUES (?, ?, ?, ?, ?, 'pending', ?, ?)"
)


_SHOWN = 120
_ENDED = {BatchState.CANCELLED: "cancelled", BatchState.PURGING: "purged"}


@dataclass(frozen=True, slots=True)
class Existing:
    """What a batch already holds at a position or under a custom_id."""

    position: int
    custom_id: str | None
    key: str


def find_batch(tx: Transaction, name: str) -> Batch | None:
    """Return the batch of that name."""
    row = tx.connection.execute(select(batches).where(batches.c.name == name)).one_or_none()
    return None if row is None else batch_from(row)


def list_batches(tx: Transaction) -> list[Batch]:
    """Return all batches, newest first."""
    rows = tx.connection.execute(select(batches).order_by(batches.c.id.desc())).all()
    return [batch_from(row) for row in rows]


def open_batch(tx: Transaction, new: NewBatch) -> Batch:
    """Create the batch, or return the one of that name if it makes the same requests.

    Whoever opens a batch that is not complete is about to complete it: its producer is alive again.
    Raises BatchConflict where worker, endpoint, model or settings differ, or it was cancelled.
    """
    found = find_batch(tx, new.name)
    if found is None:
        _make_batch(tx, new)
    else:
        _compare(found, new)
        keep_alive(tx, found.id)
    opened = find_batch(tx, new.name)
    assert opened is not None  # noqa: S101 - it is there by now, in this transaction
    return opened


def _make_batch(tx: Transaction, new: NewBatch) -> None:
    tx.connection.execute(
        insert(batches).values(
            name=new.name,
            worker=new.worker,
            endpoint=new.endpoint,
            model=new.model,
            settings=encode(dict(new.settings)),
            priority=new.priority,
            max_attempts=new.max_attempts,
            call_timeout_ms=new.call_timeout_ms,
            budget=new.budget,
            allow_unknown_cost=new.allow_unknown_cost,
            allow_truncated=new.allow_truncated,
            keep_response=new.keep_response,
            state=BatchState.OPEN,
            size=0,
            created_at=tx.now,
            enqueue_until=tx.now + ENQUEUE_ALIVE_MS,
            source=new.source,
        )
    )


def keep_alive(tx: Transaction, batch_id: int) -> None:
    """Say that a producer is at work on a batch, if it is not complete."""
    tx.connection.execute(
        update(batches)
        .where(batches.c.id == batch_id, batches.c.sealed_at.is_(None))
        .values(enqueue_until=tx.now + ENQUEUE_ALIVE_MS)
    )


def add_jobs(tx: Transaction, batch_id: int, chunk: Sequence[NewJob]) -> int:
    """Add the jobs of one chunk that are not there yet; return how many were.

    A job is the same if custom_id (position, where there is none) and key are. Raises BatchConflict
    for another key, and for a cancelled batch. The positions of jobs with a custom_id follow what the
    batch holds by now.
    """
    batch = tx.connection.execute(
        select(batches.c.name, batches.c.size, batches.c.state).where(batches.c.id == batch_id)
    ).one_or_none()
    if batch is None:
        raise BatchConflict("the batch was purged while rows were being added to it")
    if batch.state in {BatchState.CANCELLED, BatchState.PURGING}:
        raise BatchConflict(f"the batch was {_ENDED[BatchState(batch.state)]} while rows were being added to it")
    size: int = batch.size
    by_id = bool(chunk) and chunk[0].custom_id is not None
    may_be_there = bool(size) and (by_id or any(job.position < size for job in chunk))
    present = existing_jobs(tx, batch_id, chunk) if may_be_there else {}
    rows: list[tuple[object, ...]] = []
    for job in chunk:
        found = present.get(job.custom_id if by_id else job.position)
        if found is not None:
            if found.key != job.key:
                raise BatchConflict(conflict_message(job, found, batch.name))
            continue
        position = size + len(rows)
        if not by_id and position != job.position:
            raise BatchConflict(f"row {job.position} can't follow row {position - 1}: another enqueue is in the way")
        rows.append((batch_id, position, job.custom_id, job.key, job.payload, tx.now, tx.now))
    values: dict[str, object] = {"enqueue_until": tx.now + ENQUEUE_ALIVE_MS}
    if rows:
        tx.connection.exec_driver_sql(_INSERT, rows)
        values |= {"size": size + len(rows), "sealed_at": None}
        tally = Tally()
        tally.move(batch_id, None, "pending", len(rows))
        tally.write(tx, PRODUCER)
    tx.connection.execute(update(batches).where(batches.c.id == batch_id).values(values))
    return len(rows)


def existing_jobs(tx: Transaction, batch_id: int, chunk: Sequence[NewJob]) -> dict[object, Existing]:
    """Return what the batch holds under the custom_ids, or positions, of a chunk."""
    if not chunk:
        return {}
    by_id = chunk[0].custom_id is not None
    column = jobs.c.custom_id if by_id else jobs.c.position
    wanted = [job.custom_id if by_id else job.position for job in chunk]
    statement = select(jobs.c.position, jobs.c.custom_id, jobs.c.key).where(
        jobs.c.batch_id == batch_id, column.in_(json_list("wanted"))
    )
    rows = tx.connection.execute(statement, {"wanted": json.dumps(wanted)}).all()
    return {(row.custom_id if by_id else row.position): Existing(row.position, row.custom_id, row.key) for row in rows}


def has_custom_ids(tx: Transaction, batch_id: int) -> bool | None:
    """Whether the batch's jobs have custom_ids; None for a batch without jobs."""
    row = tx.connection.execute(
        select(jobs.c.custom_id).where(jobs.c.batch_id == batch_id, jobs.c.position == 0)
    ).one_or_none()
    return None if row is None else row.custom_id is not None


def seal(tx: Transaction, batch_id: int) -> None:
    """Say that the batch is complete: when its jobs have ended, it is finished."""
    tx.connection.execute(
        update(batches)
        .where(batches.c.id == batch_id)
        .values(sealed_at=func.coalesce(batches.c.sealed_at, tx.now), enqueue_until=tx.now)
    )


def update_policy(tx: Transaction, batch_id: int, changes: Mapping[str, object]) -> Batch:
    """Change columns of a batch that are no part of its requests; return the batch as it is now."""
    if changes:
        tx.connection.execute(update(batches).where(batches.c.id == batch_id).values(dict(changes)))
    return batch_from(tx.connection.execute(select(batches).where(batches.c.id == batch_id)).one())


def conflict_message(job: NewJob, found: Existing, batch: str) -> str:
    """Say which row differs from what the batch of that name holds."""
    if job.custom_id is not None:
        return f"custom_id {job.custom_id!r} is in the batch {batch!r} (position {found.position}) with another request"
    return f"position {job.position} of the batch {batch!r} holds another request"


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _compare(found: Batch, new: NewBatch) -> None:
    if found.state is BatchState.PURGING:
        raise BatchConflict(
            f"batch {found.name!r} is being purged: `batchq purge {found.name}` completes that, --batch starts another"
        )
    if found.state is BatchState.CANCELLED:
        raise BatchConflict(
            f"batch {found.name!r} was cancelled; `batchq retry {found.name}` revives it, --batch starts another"
        )
    pairs = {
        "worker": (found.worker, new.worker),
        "endpoint": (found.endpoint, new.endpoint),
        "model": (found.model, new.model),
    }
    different = [f"{name} is {old}, not {wanted}" for name, (old, wanted) in pairs.items() if old != wanted]
    for name in sorted(found.settings.keys() | new.settings.keys()):
        old, wanted = (canonical(settings.get(name)) for settings in (found.settings, new.settings))
        if old != wanted:
            different.append(f"{name} is {_shown(old)}, not {_shown(wanted)}")
    if different:
        raise BatchConflict(
            f"batch {new.name!r} makes other requests: {'; '.join(different)}. Give this one another name with --batch"
        )
