"""What goes on in a queue: its clock, its workers, leases that nobody took up, batches and lanes that stand still."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection, Iterator

from batchq.doctor.finding import Finding, error, ok, warning
from batchq.jobs import Batch, BatchState, Lane, Overview, Progress, RunnerInfo
from batchq.pids import is_gone
from batchq.store.examining import Examined, Overdue
from batchq.waiting import UNSERVED, clock, command_for, lane_label, told_moved, why_waiting

# What a worker finds within a moment; so long after it, something is wrong.
OVERDUE_MS = 60_000
CLOCKS_DIFFER_MS = 2_000
SHOWN = 10


async def check_clock(queue: Examined) -> AsyncIterator[Finding]:
    """Compare the database's clock with this host's, and with what was written down by it before."""
    before = time.time()
    moment = await queue.moment()
    # Whatever the way there took, the reading was between the two.
    off = moment.now / 1000 - min(max(before, moment.now / 1000), time.time())
    if abs(off) * 1000 > CLOCKS_DIFFER_MS:
        told = f"the database's clock is {abs(off):,.1f} s {'ahead of' if off > 0 else 'behind'} this host's"
        yield warning("clock", told, "synchronise both (NTP); leases go by the database's alone, times shown by yours")
    if moment.ahead_ms:
        yield warning(
            "clock",
            f"the database's clock was set back by {moment.ahead_ms / 1000:,.0f} s or more since somebody last worked"
            " here: what waits for a time waits longer",
            "start a worker, or start it again: it moves what waits",
        )
    if abs(off) * 1000 <= CLOCKS_DIFFER_MS and not moment.ahead_ms:
        yield ok("clock", "the database's clock and this host's agree" if queue.file is None else "it was not set back")


async def check_moved(queue: Examined) -> AsyncIterator[Finding]:
    """Say where the queue is by now, if it was moved."""
    if (place := await queue.moved_to()) is not None:
        yield warning("queue", told_moved(place), f"use --db {place}; `batchq db copy … --undo` takes it back")


async def check_workers(queue: Examined) -> AsyncIterator[Finding]:
    """Look at the workers that have not said goodbye: alive, dead on this host, or silent."""
    found = await queue.runners()
    dead = [runner for runner in found if is_gone(runner)]
    silent = [runner for runner in found if not runner.live and runner not in dead]
    alive = [runner for runner in found if runner.live and runner not in dead]
    for runner in (*dead, *silent)[:SHOWN]:
        yield _judge_silence(runner, dead=runner in dead)
    if (more := len(dead) + len(silent) - SHOWN) > 0:
        yield warning("workers", f"and {more:,} more that ended without a word", "see their logs")
    held = sum(runner.in_flight for runner in alive)
    yield ok("workers", f"{len(alive):,} alive, with {held:,} calls" if alive else "none is alive")


def _judge_silence(runner: RunnerInfo, *, dead: bool) -> Finding:
    who = f"the worker {runner.host} pid {runner.pid}"
    if dead and runner.live:
        jobs = f", holding {runner.in_flight:,} jobs" if runner.in_flight else ""
        told = f"{who} died moments ago{jobs}, last heard of at {clock(runner.seen_at)}"
        return warning(
            "workers", told, "nothing, its jobs run again when their leases end; its log may say why it died"
        )
    how = "died without a word" if dead else "is silent: it died, or can't reach the database"
    return warning(
        "workers",
        f"{who} {how}, last heard of at {clock(runner.seen_at)}",
        "see its log, and the system's for a lack of memory (`journalctl -k`); it is forgotten after a day",
    )


async def check_leases(queue: Examined) -> AsyncIterator[Finding]:
    """Look for jobs whose leases ran out a while ago, and that nobody took up."""
    overdue = await queue.overdue(OVERDUE_MS)
    serving = [runner for runner in await queue.runners() if runner.live and not is_gone(runner)]
    for found in overdue[:SHOWN]:
        yield _judge_overdue(found, serving, queue.location)
    if not overdue:
        yield ok("leases", "no job is left behind by a worker")
    elif len(overdue) > SHOWN:
        yield warning("leases", f"and {len(overdue) - SHOWN:,} more batches with such jobs")


def _judge_overdue(found: Overdue, serving: Collection[RunnerInfo], location: str) -> Finding:
    batch = found.batch
    told = f"{batch.name}: {found.jobs:,} jobs are in flight by leases that ran out at {clock(found.since)} or later"
    if batch.state is not BatchState.OPEN:
        return warning("leases", f"{told}, and it is {batch.state}", _opening(batch, location))
    if not any(batch.worker in runner.serves.split(",") for runner in serving):
        return warning("leases", f"{told}, and no live worker serves it", f"{_start(batch, location)} runs them again")
    return warning("leases", f"{told}, though a live worker serves it", "`batchq status` says what its lane waits for")


def _opening(batch: Batch, location: str) -> str:
    verb = "resume" if batch.state is BatchState.PAUSED else "cancel"
    return f"{command_for(verb, location, batch.name)}, or leave it so"


def _start(batch: Batch, location: str) -> str:
    return command_for("worker", location, *(["--worker", batch.worker] if ":" in batch.worker else []))


async def check_batches(queue: Examined) -> AsyncIterator[Finding]:
    """Look for batches that wait for somebody, and for lanes that have stopped."""
    found = await queue.overview()
    unfinished = [progress for progress in found.batches if not progress.finished]
    wrong = [finding for progress in unfinished for finding in _judge_batch(progress, found)]
    named = {progress.batch.name for progress in unfinished}
    others = [batch for batch in await queue.abandoned_cancels() if batch.name not in named]
    wrong += [_abandoned(batch, queue.location) for batch in others]
    for finding in wrong[:SHOWN]:
        yield finding
    if len(wrong) > SHOWN:
        yield warning("batches", f"and {len(wrong) - SHOWN:,} more such batches", "`batchq status` has them all")
    if not wrong:
        told = f"{len(unfinished):,} unfinished, none stands still" if unfinished else "none is unfinished"
        yield ok("batches", told)
    for finding in _judge_lanes(found, unfinished):
        yield finding


def _judge_batch(progress: Progress, found: Overview) -> Iterator[Finding]:
    batch, location = progress.batch, found.database
    if batch.fault is not None:
        told = (
            f"{batch.name}: {batch.fault}, so that its jobs fail: something else than batchq has changed the database"
        )
        yield error("batches", told, "go back to a copy of the database, or cancel it and enqueue it anew")
    if batch.state is BatchState.CANCELLED:
        yield _abandoned(batch, location)
    elif batch.state is BatchState.PURGING:
        purge = command_for("purge", location, batch.name)
        yield warning(
            "batches", f"{batch.name} is being purged, or its purge was left half-way", f"{purge} completes it"
        )
    elif batch.sealed_at is None and not progress.enqueueing:
        yield warning(
            "batches", f"{batch.name} is incomplete: its enqueue died before the end of the input",
            f"run the same enqueue again, or, if all is there, {command_for('seal', location, batch.name)}",
        )  # fmt: skip
    elif (why := why_waiting(progress, location)) and found.moved_to is None and not _is_halted(progress):
        yield _waits(progress, why)


def _waits(progress: Progress, why: str) -> Finding:
    """Say what a batch waits for: of itself where it is a matter of time, else of somebody."""
    name, batch = progress.batch.name, progress.batch
    if progress.over_budget or batch.lacks_costs(progress.cost, progress.unpriced):
        return warning("batches", f"{name} waits: {why}")
    if why.startswith(UNSERVED):
        reason, _, start = why.partition(": ")
        return warning("batches", f"{name} waits: {reason}", start)
    return ok("batches", f"{name} waits: {why}")


def _abandoned(batch: Batch, location: str) -> Finding:
    told = f"{batch.name} is cancelled, and some of its jobs are not: whoever cancelled it went away half-way"
    return warning(
        "batches", told, f"{command_for('cancel', location, batch.name)} completes it, and so does any worker"
    )


def _is_halted(progress: Progress) -> bool:
    return any(lane.halted_at is not None for lane in progress.lanes)


def _judge_lanes(found: Overview, unfinished: Collection[Progress]) -> Iterator[Finding]:
    halted = [lane for lane in found.lanes if lane.halted_at is not None]
    for lane in halted[:SHOWN]:
        waiting = [progress.batch.name for progress in unfinished if lane in progress.lanes or _same(lane, progress)]
        yield _judge_halt(lane, waiting, found.database)
    if not halted:
        yield ok(
            "lanes", f"{len(found.lanes):,} with limits or news, none is halted" if found.lanes else "none is limited"
        )


def _same(lane: Lane, progress: Progress) -> bool:
    return any(
        (own.worker, own.base_url, own.model) == (lane.worker, lane.base_url, lane.model) for own in progress.lanes
    )


def _judge_halt(lane: Lane, waiting: list[str], location: str) -> Finding:
    told = (
        f"{lane_label(lane)} is halted since {clock(lane.halted_at)}: {(lane.reason or 'no reason given').rstrip('.')}"
    )
    if not waiting:
        return ok("lanes", f"{told}; nothing waits for it")
    told = f"{told}; {', '.join(waiting[:3])}{' and others' if len(waiting) > 3 else ''} can't go on"
    return error("lanes", told, f"mend the cause, then {command_for('resume', location)}")
