"""Lanes: what one rate limit covers waits, stops and reopens for all processes together."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import case, func, select, update
from sqlalchemy.dialects import sqlite

from batchq.database import Transaction
from batchq.jobs import Lane
from batchq.schema import lanes
from batchq.settlement import Settlement
from batchq.store.claim import PROBE_EVERY_MS


def act_on_lanes(tx: Transaction, settled: Iterable[Settlement]) -> None:
    """Pause, halt or reopen the lanes that these outcomes speak of; lanes without news are not written."""
    for item in settled:
        claim = item.ended.claim
        if not claim.lane:
            continue
        if item.pause_ms is not None:
            _pause(tx, item, tx.now + item.pause_ms)
        elif item.halt:
            _halt(tx, item)
        elif item.proves_lane and claim.probe:
            reopen(tx, claim.lane, epoch=claim.epoch)


def reopen(
    tx: Transaction,
    lane: str | None = None,
    *,
    epoch: int | None = None,
    worker: str | None = None,
    model: str | None = None,
) -> int:
    """Reopen halted lanes: one by name and epoch, those of a worker and model, or all; return how many."""
    statement = update(lanes).where(lanes.c.halted_at.is_not(None))
    if lane is not None:
        statement = statement.where(lanes.c.name == lane, lanes.c.epoch == epoch)
    if worker is not None:
        statement = statement.where(lanes.c.worker == worker, lanes.c.model == model)
    values = {"halted_at": None, "probe_at": None, "reason": None, "epoch": lanes.c.epoch + 1}
    return tx.connection.execute(statement.values(values)).rowcount


def probe_now(tx: Transaction) -> None:
    """Let halted lanes try one job at once: somebody just started a runner, so the cause may be gone."""
    tx.connection.execute(update(lanes).where(lanes.c.halted_at.is_not(None)).values(probe_at=tx.now))


def read_lanes(tx: Transaction) -> tuple[Lane, ...]:
    """Return all lanes that ever had news."""
    rows = tx.connection.execute(select(lanes).order_by(lanes.c.name)).all()
    return tuple(
        Lane(row.worker, row.base_url, row.model, row.paused_until, row.halted_at, row.probe_at, row.reason)
        for row in rows
    )


def _identity(item: Settlement) -> dict[str, object]:
    claim = item.ended.claim
    worker, model = claim.batch.worker, claim.batch.model
    base_url = claim.lane[len(worker) + 1 : len(claim.lane) - len(model) - 1]
    return {"name": claim.lane, "worker": worker, "base_url": base_url, "model": model}


def _pause(tx: Transaction, item: Settlement, until: int) -> None:
    reason = item.reason.message if item.reason else None
    insert = sqlite.insert(lanes).values(**_identity(item), paused_until=until, reason=reason)
    longer = case(
        (func.coalesce(lanes.c.paused_until, 0) > insert.excluded.paused_until, lanes.c.paused_until),
        else_=insert.excluded.paused_until,
    )
    tx.connection.execute(
        insert.on_conflict_do_update(
            index_elements=["name"],
            set_={
                "paused_until": longer,
                "reason": case((lanes.c.halted_at.is_(None), insert.excluded.reason), else_=lanes.c.reason),
            },
        )
    )


def _halt(tx: Transaction, item: Settlement) -> None:
    """Halt the lane, unless the claim is of an older epoch: its news is of before a halt or a resume."""
    claim = item.ended.claim
    reason = item.reason.message if item.reason else None
    insert = sqlite.insert(lanes).values(
        **_identity(item), halted_at=tx.now, probe_at=tx.now + PROBE_EVERY_MS, reason=reason, epoch=claim.epoch + 1
    )
    tx.connection.execute(
        insert.on_conflict_do_update(
            index_elements=["name"],
            set_={
                "halted_at": insert.excluded.halted_at,
                "probe_at": insert.excluded.probe_at,
                "reason": insert.excluded.reason,
                "epoch": insert.excluded.epoch,
            },
            where=lanes.c.epoch == claim.epoch,
        )
    )
