"""Where a queue and its batches stand, at one look."""

from __future__ import annotations

from dataclasses import replace

from batchq.jobs import Overview, Progress
from batchq.store import Store

SHOWN_WITH_ERRORS = 10


async def look_at(store: Store, name: str | None = None) -> Overview:
    """Read the batch of that name, or all unfinished ones and the newest others, with their errors by class."""
    found = await store.overview(name)
    errors = {progress.batch.name: tuple(await store.errors(progress.batch)) for progress in failing(found)}
    return replace(found, errors=errors)


def failing(found: Overview) -> list[Progress]:
    """Return the batches whose failures are told."""
    return [progress for progress in found.batches if progress.counts.failed][:SHOWN_WITH_ERRORS]


def state_of(progress: Progress) -> str:
    """Return one word for where a batch stands."""
    state = progress.batch.state.value
    if state != "open":
        return state
    if progress.finished:
        return "finished"
    if progress.batch.sealed_at is None:
        return "adding" if progress.enqueueing else "incomplete"
    if progress.running:
        return "running"
    if progress.over_budget:
        return "over budget"
    return "halted" if any(lane.halted_at is not None for lane in progress.lanes) else "waiting"


def why_waits(progress: Progress, found: Overview) -> str | None:
    """Say what a batch waits for; nothing where it would wait in vain, since its queue is in another place."""
    from batchq.waiting import why_waiting

    return why_waiting(progress, found.database) if found.moved_to is None else None
