"""Holds an input against the batch that it may belong to: what is there, what contradicts, who follows whom."""

from __future__ import annotations

import time
from dataclasses import dataclass

import anyio.to_thread

from batchq.jobs import Batch
from batchq.leaders import Leaders
from batchq.rows import Rows
from batchq.store import Store
from batchq.store.adding import conflict_message
from batchq.survey import Survey

_SAY_ALIVE_SECONDS = 10.0
# Jobs that are there already stand before all rows of an input, however many others add meanwhile.
_BEFORE_THE_INPUT = 1 << 62


@dataclass(frozen=True, slots=True)
class Comparison:
    """An input held against a batch: how many of its jobs are there, and what contradicts the batch, if anything."""

    present: int = 0
    absent: int = 0
    conflict: str | None = None


async def compare(store: Store, survey: Survey, batch: Batch) -> Comparison:
    """Hold all rows of an input against what a batch has, up to the first that contradicts it."""
    if not batch.size:
        return Comparison()
    if conflict := await _compare_ids(store, survey, batch):
        return Comparison(conflict=conflict)
    rows = Rows(survey, batch)
    present = 0
    alive = KeepAlive(store, batch)
    async for chunk in rows.chunks():
        await alive.say()
        existing = await store.existing_jobs(batch, [job for _, job in chunk])
        for line, job in chunk:
            found = existing.get(job.custom_id if rows.has_ids else job.position)
            if found is None:
                continue
            if found.key != job.key:
                message = conflict_message(job, found, batch.name)
                return Comparison(present, 0, f"{survey.source.place(line)}: {message}{_way_out(survey)}")
            if batch.synchronised and found.position != job.position:
                return Comparison(present, 0, f"{survey.source.place(line)}: the batch has this row elsewhere")
            present += 1
        if not rows.has_ids and present < chunk[-1][1].position + 1:
            break  # the rows of a batch without custom_ids have no gaps: what follows is new
    return Comparison(present, max(0, batch.size - present))


async def find_leaders(store: Store, rows: Rows, batch: Batch, leaders: Leaders) -> None:
    """Note the keys of a batch's jobs, then of all rows, and decide who follows whom."""
    alive = KeepAlive(store, batch)
    if rows.has_ids and batch.size:
        async for item in store.keys(batch):
            await alive.say()
            if item.custom_id is not None:
                leaders.saw(item.position - _BEFORE_THE_INPUT, item.key, item.custom_id)
    async for chunk in rows.chunks():
        await alive.say()
        for _, job in chunk:
            leaders.saw(job.position, job.key, job.position if job.custom_id is None else job.custom_id)
    await anyio.to_thread.run_sync(leaders.decide)


class KeepAlive:
    """Says now and then that a batch's producer is at work."""

    def __init__(self, store: Store, batch: Batch) -> None:
        """Start with having said so."""
        self._store = store
        self._batch = batch
        self._said_at = time.monotonic()

    async def say(self) -> None:
        """Say so if it is time."""
        if time.monotonic() - self._said_at > _SAY_ALIVE_SECONDS:
            await self._store.keep_alive(self._batch)
            self._said_at = time.monotonic()


def _way_out(survey: Survey) -> str:
    if survey.source.is_copy and not survey.has_ids:
        return (
            "; rows without a custom_id are known by their position, so that a further input must repeat the rows"
            " that are there: give each row a custom_id, or enqueue these under another name with --batch"
        )
    return "; enqueue changed rows under another name with --batch"


async def _compare_ids(store: Store, survey: Survey, batch: Batch) -> str | None:
    with_ids = await store.has_custom_ids(batch)
    if with_ids is None or with_ids is survey.has_ids:
        return None
    ours, theirs = ("have", "have none") if survey.has_ids else ("have no", "have them")
    return (
        f"{survey.name}: its rows {ours} custom_ids, those of batch {batch.name!r} {theirs}:"
        " enqueue it under another name with --batch"
    )
