"""Batches as producers see them: made, compared, changed and sealed. `adding` adds their jobs."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sqlalchemy import BigInteger, case, func, literal, or_, select, update

from batchq.database import Transaction
from batchq.database.dialect import insert_missing
from batchq.errors import BatchConflict
from batchq.jobs import Batch, BatchState, NewBatch
from batchq.request import canonical, encode
from batchq.schema import batches, jobs
from batchq.store.find import batch_from

# How long a producer may be silent before a collector calls it dead.
ENQUEUE_ALIVE_MS = 30_000
# How long whoever completes a batch may take to start running it, before others may think that nobody wants it.
STARTING_MS = 5_000

_SHOWN = 120
_GENERATION = re.compile(r"|~[1-9][0-9]*")


def find_batch(tx: Transaction, name: str, *, locking: bool = False) -> Batch | None:
    """Return the batch of that name; `locking` keeps it as it is until the end of the transaction."""
    statement = select(batches).where(batches.c.name == name)
    row = tx.connection.execute(statement.with_for_update(key_share=True) if locking else statement).one_or_none()
    return None if row is None else batch_from(row)


def list_batches(tx: Transaction) -> list[Batch]:
    """Return all batches, newest first."""
    rows = tx.connection.execute(select(batches).order_by(batches.c.id.desc())).all()
    return [batch_from(row) for row in rows]


def find_generations(tx: Transaction, base: str) -> list[Batch]:
    """Return the batches named `base`, `base~2`, `base~3`, …, newest first."""
    alike = or_(batches.c.name == base, batches.c.name.startswith(f"{base}~", autoescape=True))
    rows = tx.connection.execute(select(batches).where(alike).order_by(batches.c.id.desc())).all()
    # LIKE takes capital letters for small ones, in SQLite.
    return [
        batch_from(row) for row in rows if row.name.startswith(base) and _GENERATION.fullmatch(row.name[len(base) :])
    ]


def open_batch(tx: Transaction, new: NewBatch) -> Batch:
    """Create the batch, or return the one of that name if it makes the same requests.

    Whoever opens a batch that is not complete is about to complete it: its producer is alive again.
    Raises BatchConflict where worker, endpoint, model or settings differ, or it was cancelled.
    """
    while not insert_batch(tx, new):
        found = find_batch(tx, new.name, locking=True)
        if found is None:
            continue  # it was in the way, and has been deleted since
        _refuse_ended(found)
        refuse_other_settings(found, new)
        keep_alive(tx, found.id)
        break
    opened = find_batch(tx, new.name)
    assert opened is not None  # noqa: S101 - it is there by now, in this transaction
    return opened


def insert_batch(tx: Transaction, new: NewBatch) -> bool:
    """Make a batch; return False if there is one of that name."""
    made = tx.connection.execute(
        insert_missing(batches, ("name",))
        .values(
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
            synchronised=new.synchronised,
        )
        .returning(batches.c.id)
    )
    # Not its rowcount, which some drivers do not know for an INSERT.
    return made.first() is not None


def keep_alive(tx: Transaction, batch_id: int) -> None:
    """Say that somebody is at work on a batch: its producer, or who is about to run it."""
    alive = case((batches.c.sealed_at.is_(None), ENQUEUE_ALIVE_MS), else_=STARTING_MS)
    tx.connection.execute(
        update(batches).where(batches.c.id == batch_id).values(enqueue_until=literal(tx.now, BigInteger) + alive)
    )


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
        .values(sealed_at=func.coalesce(batches.c.sealed_at, tx.now), enqueue_until=tx.now + STARTING_MS)
    )


def update_policy(tx: Transaction, batch_id: int, changes: Mapping[str, object]) -> Batch:
    """Change columns of a batch that are no part of its requests; return the batch as it is now."""
    if changes:
        tx.connection.execute(update(batches).where(batches.c.id == batch_id).values(dict(changes)))
    return batch_from(tx.connection.execute(select(batches).where(batches.c.id == batch_id)).one())


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _refuse_ended(found: Batch) -> None:
    if found.state is BatchState.PURGING:
        raise BatchConflict(
            f"batch {found.name!r} is being purged: `batchq purge {found.name}` completes that, --batch starts another"
        )
    if found.state is BatchState.CANCELLED:
        raise BatchConflict(
            f"batch {found.name!r} was cancelled; `batchq retry {found.name}` revives it, --batch starts another"
        )


def refuse_other_settings(found: Batch, new: NewBatch) -> None:
    """Raise BatchConflict, naming the differences, where a batch makes other requests than `new` asks for."""
    if found.fault is not None:
        raise BatchConflict(
            f"the row of batch {found.name!r} in the database can't be read: {found.fault}."
            " Mend it, or give this one another name with --batch"
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
            f"batch {found.name!r} makes other requests: {'; '.join(different)}."
            " Give this one another name with --batch"
        )
