"""Why nothing moves: one sentence for a batch that waits, with what to do about it."""

from __future__ import annotations

import shlex
import time

from batchq.jobs import NANO, Batch, BatchState, Lane, Progress, RunnerInfo
from batchq.pids import is_gone

# A halted lane whose probe is overdue by this much is used by no live worker that has a slot to spare.
PROBE_OVERDUE_MS = 5_000


def why_waiting(progress: Progress, database: str) -> str | None:
    """Return one sentence about what a batch waits for; None if it moves, or has ended.

    `database` is the path that the suggested commands name.
    """
    if progress.finished:
        return None
    if progress.away is not None:
        return f"the database is away ({progress.away}); asking again"
    return (
        _why_shut(progress, database)
        or _why_unaffordable(progress, database)
        or _why_held(progress)
        or _why_unserved(progress, database)
        or _why_lane(progress, database)
        or _why_idle(progress)
    )


def _why_shut(progress: Progress, database: str) -> str | None:
    batch, counts = progress.batch, progress.counts
    if batch.state is BatchState.PURGING:
        return f"being purged, by somebody else or half-way: {command_for('purge', database, batch.name)} completes it"
    if batch.state is BatchState.CANCELLED:
        return f"cancelled: its last {counts.live:,} jobs are on their way out"
    if not counts.live:
        return _why_unsealed(progress, database)
    if batch.state is BatchState.PAUSED:
        return f"paused: {command_for('resume', database, batch.name)}"
    return None


def _why_unsealed(progress: Progress, database: str) -> str:
    name = progress.batch.name
    if progress.enqueueing:
        return f"a producer is still adding to {name}"
    return (
        f"{name} is not sealed and its producer is gone: run the same enqueue again, or, if all is there,"
        f" {command_for('seal', database, name)}"
    )


def _why_unaffordable(progress: Progress, database: str) -> str | None:
    if progress.running:
        return None
    batch, name = progress.batch, progress.batch.name
    if progress.over_budget:
        command = command_for("budget", database, name, "DOLLARS")
        return f"{over_budget(batch, progress.cost, progress.unpriced)}: {command} raises it"
    if batch.lacks_costs(progress.cost, progress.unpriced):
        command = command_for("budget", database, name, "none")
        return f"{NO_COSTS}. {AFTER_NO_COSTS} {command}"
    return None


def told_moved(place: str) -> str:
    """Say of a queue that it is in another place, or on its way there, and that nothing is to be waited for."""
    return f"this queue was moved to {place} (or is being copied there by `batchq db copy`): it is only read here"


USUAL_WORKER = "openrouter"
UNSERVED = "no live worker serves"
NO_COSTS = "it has a budget, but its provider tells no cost, and no price is known"


AFTER_NO_COSTS = "To go on all the same: --allow-unknown-cost with the same enqueue or run, or"


def over_budget(batch: Batch, cost: int | None, unpriced: int) -> str:
    """Say that a batch has spent its budget; answers that told no cost count at the others' average."""
    told = f"; {unpriced:,} answers told no cost, and count at the average" if unpriced else ""
    return f"the budget is spent (${(cost or 0) / NANO:,.6f} of ${(batch.budget or 0) / NANO:,.6f}{told})"


def _why_held(progress: Progress) -> str | None:
    """Say that all that is left is held by processes that have ended, as far as that can be told."""
    counts = progress.counts
    dead = [runner for runner in progress.runners if runner.in_flight and is_gone(runner)]
    if counts.pending or not dead or sum(runner.in_flight for runner in dead) < counts.inflight:
        return None
    jobs = "the last job is" if counts.inflight == 1 else f"the last {counts.inflight:,} jobs are"
    pids = ", ".join(str(runner.pid) for runner in dead)
    return f"{jobs} held by a process that has died (pid {pids}); its leases end by {clock(progress.leased_until)}"


def _why_unserved(progress: Progress, database: str) -> str | None:
    batch = progress.batch
    if _serving(progress):
        return None
    options = ["--worker", batch.worker] if ":" in batch.worker else []
    others = sorted({name for runner in progress.runners for name in runner.serves.split(",")})
    at_work = f" (those at work serve {', '.join(others)})" if others else ""
    start = command_for("worker", database, *options)
    halted = next((lane for lane in progress.lanes if lane.halted_at is not None), None)
    before = f"; the last one was stopped by {lane_label(halted)}: {halted.reason}" if halted else ""
    return f"{UNSERVED} {batch.worker}{at_work}: start one with {start}{before}"


def _why_lane(progress: Progress, database: str) -> str | None:
    """Say what keeps the lane; only where something is due and nothing runs, since its lanes may be another's.

    Which server a process calls is its own affair: a lane of the same worker and model may be one that no
    process uses any more. One that is used is probed when its time has come.
    """
    if progress.running or _delayed(progress):
        return None
    halted = [
        lane
        for lane in progress.lanes
        if lane.halted_at is not None and (lane.probe_at or 0) > progress.now - PROBE_OVERDUE_MS
    ]
    if halted:
        lane = halted[0]
        probe = f"; next try at {clock(lane.probe_at)}" if (lane.probe_at or 0) > progress.now else ""
        return (
            f"halted at {lane_label(lane)}: {lane.reason or 'no reason given'}; when that is mended,"
            f" {command_for('resume', database, progress.batch.name)}{probe}"
        )
    throttled = [lane for lane in progress.lanes if (lane.paused_until or 0) > progress.now]
    if throttled:
        lane = max(throttled, key=lambda found: found.paused_until or 0)
        until = clock(lane.paused_until)
        return f"throttled until {until} at {lane_label(lane)}: {lane.reason or 'no reason given'}"
    kept = [lane for lane in progress.lanes if lane.ready_at > progress.now]
    if kept:
        lane = max(kept, key=lambda found: found.ready_at)
        return f"its limit lets the next call start at {clock(lane.ready_at)} at {lane_label(lane)}"
    return None


def _why_idle(progress: Progress) -> str | None:
    batch, pending = progress.batch, progress.counts.pending
    if progress.running or not pending:
        return None
    if _delayed(progress):
        rest = "the last job is" if pending == 1 else f"all {pending:,} jobs left are"
        return f"{rest} delayed by an earlier failure, the first until {clock(progress.next_due_at)}"
    if all(runner.in_flight >= runner.concurrency for runner in _serving(progress)):
        return "the live workers are busy with other batches"
    if batch.endpoint != "default":
        return f"no live worker has taken a job: its settings may not name the endpoint {batch.endpoint!r}"
    return None


def _delayed(progress: Progress) -> bool:
    """Whether nothing is due yet; a job whose lease ran out is due at once."""
    return progress.leased_until is None and (progress.next_due_at or 0) > progress.now


def lane_label(lane: Lane) -> str:
    """Return what people call a lane."""
    parts = [lane.model] if lane.model else []
    parts += [f"worker {lane.worker}"] if lane.worker != USUAL_WORKER else []
    return f"{lane.base_url} ({', '.join(parts)})" if parts else lane.base_url


def command_for(verb: str, database: str, *arguments: str) -> str:
    """Return a command as it can be copied; `database` where one has to be named."""
    named = ["--db", database] if database else []
    return f"`{shlex.join(['batchq', verb, *arguments, *named])}`"


def _serving(progress: Progress) -> list[RunnerInfo]:
    return [runner for runner in progress.runners if progress.batch.worker in runner.serves.split(",")]


def clock(at: int | None) -> str:
    """Return a database time as this machine's time of day, with the day if it is another one."""
    if at is None:
        return "an unknown time"
    moment = time.localtime(at / 1000)
    today = time.localtime()[:3] == moment[:3]
    return time.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S", moment)
