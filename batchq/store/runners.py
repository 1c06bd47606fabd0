"""Runners: who is at work, for people to see; nothing depends on these rows being true."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlalchemy import Text, and_, delete, or_, select, update

from batchq.database import Transaction
from batchq.database.dialect import json_list, upsert
from batchq.jobs import RunnerIdentity, RunnerInfo
from batchq.schema import batches, runners, tallies
from batchq.store.damage import object_of
from batchq.store.lanes import probe_now
from batchq.store.set_back import heed_set_back
from batchq.store.tally import PRODUCER, fold

# A runner's tallies are folded when it has been silent for this many leases: it can't come back.
_GONE_AFTER_LEASES = 20
_KEEP_MS = 24 * 3_600_000


def register(tx: Transaction, runner: RunnerIdentity) -> None:
    """Add a runner that starts, fold those that are gone, and let halted lanes probe."""
    heed_set_back(tx)
    beat(tx, runner, 0)
    _take_over(tx, runner)
    probe_now(tx)
    forgotten = runners.c.seen_at < tx.now - _KEEP_MS
    gone = select(runners.c.id).where(
        or_(
            runners.c.stopped_at.is_not(None),
            runners.c.seen_at + _GONE_AFTER_LEASES * runners.c.lease_ms < tx.now,
            forgotten,
        )
    )
    statement = select(tallies.c.runner).distinct().where(tallies.c.runner != PRODUCER, tallies.c.runner.in_(gone))
    for departed in tx.connection.execute(statement.order_by(tallies.c.runner)).scalars().all():
        fold(tx, departed)
    tx.connection.execute(delete(runners).where(forgotten))


def _take_over(tx: Transaction, runner: RunnerIdentity) -> None:
    """Stand for the batches that the runner was started for: nobody has to say any more that they are wanted."""
    if runner.batch_ids:
        started_for = and_(batches.c.id.in_(json_list("ids")), batches.c.sealed_at.is_not(None))
        statement = update(batches).where(started_for).values(enqueue_until=tx.now)
        tx.connection.execute(statement, {"ids": json.dumps(sorted(runner.batch_ids))})


def beat(tx: Transaction, runner: RunnerIdentity, in_flight: int) -> int | None:
    """Say that a runner is alive; return the concurrency that an operator asked it for, if one did."""
    row = {
        "id": runner.id,
        "host": runner.host,
        "pid": runner.pid,
        "pid_space": runner.pid_space,
        "concurrency": runner.concurrency,
        "in_flight": in_flight,
        "serves": runner.serves,
        "endpoints": runner.endpoints,
        "batch_ids": None if runner.batch_ids is None else json.dumps(sorted(runner.batch_ids)),
        "lease_ms": runner.lease_ms,
        "version": runner.version,
        "started_at": tx.now,
        "seen_at": tx.now,
    }
    wanted: int | None = tx.connection.execute(
        upsert(runners, ("id",), ("in_flight", "seen_at")).returning(runners.c.wanted_concurrency), row
    ).scalar_one()
    return wanted


def set_concurrency(tx: Transaction, concurrency: int, ids: Sequence[str]) -> int:
    """Ask runners for another concurrency; return how many there are of them."""
    chosen = runners.c.id.in_(json_list("ids", Text()))
    statement = update(runners).where(chosen).values(concurrency=concurrency, wanted_concurrency=concurrency)
    return tx.connection.execute(statement, {"ids": json.dumps(list(ids))}).rowcount


def retire(tx: Transaction, runner: RunnerIdentity) -> None:
    """Mark a runner that stopped, and fold its tallies."""
    fold(tx, runner.id)
    tx.connection.execute(
        update(runners).where(runners.c.id == runner.id).values(stopped_at=tx.now, seen_at=tx.now, in_flight=0)
    )


def read_urls(tx: Transaction, worker: str, endpoint: str) -> frozenset[str]:
    """Return the servers that an endpoint means to live runners that serve a worker, else to the last one that did.

    Empty where no runner ever did.
    """
    rows = tx.connection.execute(select(runners).order_by(runners.c.seen_at.desc())).all()
    serving = [row for row in rows if worker in row.serves.split(",") and endpoint in object_of(row.endpoints)]
    live = [row for row in serving if row.stopped_at is None and row.seen_at + row.lease_ms >= tx.now]
    return frozenset(object_of(row.endpoints)[endpoint] for row in (live or serving[:1]))


def read_runners(tx: Transaction) -> tuple[RunnerInfo, ...]:
    """Return the runners that did not say goodbye, newest first; `live` ones were seen within a lease."""
    rows = tx.connection.execute(
        select(runners).where(runners.c.stopped_at.is_(None)).order_by(runners.c.started_at.desc())
    ).all()
    return tuple(
        RunnerInfo(
            id=row.id,
            host=row.host,
            pid=row.pid,
            concurrency=row.concurrency,
            in_flight=row.in_flight,
            serves=row.serves,
            endpoints=object_of(row.endpoints),
            started_at=row.started_at,
            seen_at=row.seen_at,
            live=row.seen_at + row.lease_ms >= tx.now,
            batch_ids=None if row.batch_ids is None else frozenset(json.loads(row.batch_ids)),
            pid_space=row.pid_space,
            version=row.version,
        )
        for row in rows
    )
