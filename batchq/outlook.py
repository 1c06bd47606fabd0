"""What a runner with nothing to do may still hope for: the table of DESIGN 7 as a function."""

from __future__ import annotations

from dataclasses import dataclass

from batchq.jobs import Batch, BatchState, Lane
from batchq.store import Store


@dataclass(frozen=True, slots=True)
class Finished:
    """Nothing served is left; `unserved` names what was left alone."""

    unserved: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Waiting:
    """Something will become claimable by itself."""

    reason: str


@dataclass(frozen=True, slots=True)
class Blocked:
    """What is left can't run until somebody acts."""

    reasons: tuple[str, ...]


Outlook = Finished | Waiting | Blocked


async def look_ahead(
    store: Store, workers: frozenset[str], endpoints: frozenset[str], batch_ids: frozenset[int] | None
) -> Outlook:
    """Weigh all unfinished batches that this process serves."""
    await store.finish_cancels()
    unserved: list[str] = []
    waiting: list[str] = []
    blocked: list[str] = []
    lanes = await store.lanes()
    live = await store.live_batches()
    for batch, due, expiry in live:
        if batch_ids is not None and batch.id not in batch_ids:
            continue
        if batch.worker not in workers or batch.endpoint not in endpoints:
            unserved.append(batch.name)
        elif expiry is not None:
            waiting.append(f"jobs of {batch.name} are in flight elsewhere")
        elif reason := _why_blocked(batch, lanes):
            blocked.append(reason)
        elif due is not None:
            waiting.append(f"jobs of {batch.name} are delayed (back-off or throttled)")
    for batch in await store.unsealed_batches():
        if batch.worker in workers and (batch_ids is None or batch.id in batch_ids):
            alive = await store.is_enqueueing(batch)
            (waiting if alive else blocked).append(_why_unsealed(batch))
    return _weigh(waiting, blocked, unserved)


def _weigh(waiting: list[str], blocked: list[str], unserved: list[str]) -> Outlook:
    if waiting:
        return Waiting("; ".join(waiting))
    return Blocked(tuple(blocked)) if blocked else Finished(tuple(unserved))


def _why_blocked(batch: Batch, lanes: tuple[Lane, ...]) -> str | None:
    if batch.state is BatchState.PAUSED:
        return f"{batch.name} is paused: `batchq resume {batch.name}`"
    for lane in lanes:
        if lane.halted_at is not None and (lane.worker, lane.model) == (batch.worker, batch.model):
            return f"{batch.name} is halted: {lane.reason}. When that is mended: `batchq resume {batch.name}`"
    return None


def _why_unsealed(batch: Batch) -> str:
    return (
        f"{batch.name} is not complete: run the same `batchq enqueue` again, or `batchq seal {batch.name}` "
        "if all of it is there"
    )
