"""What a runner with nothing to do may still hope for: the table of DESIGN 7 as a function."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from batchq.jobs import Batch, BatchState, Lane, LiveBatch, Unfinished
from batchq.store import Store
from batchq.waiting import AFTER_NO_COSTS, NO_COSTS, command_for, over_budget

PROBE_SOON_MS = 5_000


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
    store: Store, workers: Collection[str], endpoints: Mapping[str, str], batch_ids: Collection[int] | None = None
) -> Outlook:
    """Weigh all unfinished batches that this process serves: one read, and no write.

    `endpoints` maps the names that this process knows to its base URLs for them: another process may call
    another server under the same name, and its lanes say nothing here.
    """
    return weigh(await store.unfinished(), workers, endpoints, batch_ids, store.location)


def weigh(
    left: Unfinished,
    workers: Collection[str],
    endpoints: Mapping[str, str],
    batch_ids: Collection[int] | None = None,
    database: str = "",
) -> Outlook:
    """Say what becomes of all that is left, for a process that serves these; commands name `database`."""
    unserved: list[str] = []
    waiting: list[str] = []
    blocked: list[str] = []
    lanes = {(lane.worker, lane.base_url, lane.model): lane for lane in left.lanes}

    def ours(batch: Batch) -> bool:
        if batch_ids is not None and batch.id not in batch_ids:
            return False
        served = batch.worker in workers and batch.endpoint in endpoints
        if not served and batch.name not in unserved:
            unserved.append(batch.name)
        return served

    for found in left.live:
        batch = found.batch
        if batch.state is BatchState.PURGING or not ours(batch):
            continue
        lane = lanes.get((batch.worker, endpoints[batch.endpoint], batch.model))
        if reason := _why_it_moves(found, left.now) or _why_it_will_move(found, lane, left.now):
            waiting.append(reason)
        else:
            blocked.append(_why_blocked(found, lane, database))
    for batch in filter(ours, left.unsealed):
        if batch.enqueue_until > left.now:
            waiting.append(f"a producer is adding to {batch.name}")
        else:
            blocked.append(_why_unsealed(batch, database))
    if waiting:
        return Waiting("; ".join(waiting))
    return Blocked(tuple(blocked)) if blocked else Finished(tuple(unserved))


def _why_it_moves(found: LiveBatch, now: int) -> str | None:
    batch = found.batch
    if batch.state is BatchState.CANCELLED:
        return f"{batch.name} is being cancelled"
    # A lease that ran out belongs to nobody: its job waits to be claimed, like the pending ones.
    if found.leased_until is not None and found.leased_until > now:
        return f"jobs of {batch.name} are in flight elsewhere"
    return None


def _why_it_will_move(found: LiveBatch, lane: Lane | None, now: int) -> str | None:
    batch = found.batch
    if batch.state is BatchState.PAUSED or found.over_budget:
        return None
    if batch.lacks_costs(found.spent, found.unpriced):
        return None
    if lane is not None:
        ready_at = max(lane.probe_at or 0, lane.paused_until or 0)
        if lane.halted_at is not None and ready_at > now:
            # What halted it may be the matter of one job: the first probe, soon, shows that.
            soon = not lane.vain_probes and ready_at <= now + PROBE_SOON_MS
            return f"jobs of {batch.name} wait for a probe of their lane: {lane.reason}" if soon else None
        if ready_at > now:
            return f"jobs of {batch.name} are throttled: {lane.reason or 'no reason given'}"
        if lane.ready_at > now:
            return f"jobs of {batch.name} wait for the limit of their lane"
    if found.leased_until is None and (found.next_due_at or 0) > now:
        return f"jobs of {batch.name} are delayed by an earlier failure"
    return f"jobs of {batch.name} are about to start"


def _why_blocked(found: LiveBatch, lane: Lane | None, database: str) -> str:
    batch = found.batch
    if found.over_budget:
        command = command_for("budget", database, batch.name, "DOLLARS")
        return f"{batch.name}: {over_budget(batch, found.spent, found.unpriced)}. To go on: {command}"
    if batch.lacks_costs(found.spent, found.unpriced):
        return f"{batch.name}: {NO_COSTS}. {AFTER_NO_COSTS} {command_for('budget', database, batch.name, 'none')}"
    if batch.state is BatchState.PAUSED:
        return f"{batch.name} is paused: {command_for('resume', database, batch.name)}"
    reason = lane.reason if lane is not None and lane.reason is not None else "no reason given"
    resume = command_for("resume", database, batch.name)
    return f"{batch.name} is halted: {reason.rstrip('.')}. When that is mended: {resume}"


def _why_unsealed(batch: Batch, database: str) -> str:
    return (
        f"{batch.name} is not complete: run the same `batchq enqueue` again, or"
        f" {command_for('seal', database, batch.name)} if all of it is there"
    )
