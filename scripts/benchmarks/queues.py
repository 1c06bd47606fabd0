"""Makes queues to measure on, runs `batchq worker` processes on them, and watches them from outside.

Everywhere, a queue is named by its place, its path or its URL.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

from batchq.jobs import NewBatch, NewJob
from batchq.store import Store, open_store
from scripts.benchmarks.places import Where, place_at
from scripts.benchmarks.processes import BATCHQ, running, wait_until

CHUNK = 2_000
MODEL = "fake/model"
_EMPTY = (
    "SELECT NOT EXISTS (SELECT 1 FROM jobs JOIN batches ON batches.id = batch_id"
    " WHERE name = $1 AND jobs.state IN ('pending', 'inflight') AND leader_id IS NULL)"
)


def prompts(count: int) -> Iterator[str]:
    """Yield short prompts, all distinct."""
    return (f"What is the capital of country number {number}?" for number in range(count))


def make_queue(where: Where, worker: str, batches: dict[str, Iterable[str]], *, paused: str = "") -> None:
    """Create a queue with these batches of prompts through batchq's own store; `paused` holds one back."""
    place = place_at(where)
    place.clear()
    asyncio.run(_make_queue(place.location, worker, batches, paused))


def resume(where: Where, name: str) -> None:
    """Let a paused batch's jobs be claimed: one row's change."""
    asyncio.run(_resume(place_at(where).location, name))


@contextmanager
def workers(where: Where, processes: int, concurrency: int, *options: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Run `batchq worker` processes on a queue; all are registered when the block begins."""
    place = place_at(where)
    flags = [f"--db={place.location}", f"--concurrency={concurrency}", "--log-level=error"]
    with ExitStack() as stack:
        started = [
            stack.enter_context(running([BATCHQ, "worker", *flags, *options], stderr=subprocess.DEVNULL))
            for _ in range(processes)
        ]
        wait_until(lambda: place.ask("SELECT count(*) FROM runners") == processes, "workers", *started)
        yield started


def wait_until_empty(where: Where, name: str, processes: Iterable[subprocess.Popen[str]]) -> None:
    """Wait until no job of a batch is left to do; an error if one did not end `done`, or a process died."""
    place = place_at(where)
    wait_until(lambda: bool(place.ask(_EMPTY, name)), f"the end of batch {name}", *processes)
    if failed := place.ask("SELECT count(*) FROM jobs WHERE state <> 'done' AND finished_at IS NOT NULL"):
        raise RuntimeError(f"{failed} jobs of {name} did not end done: nothing was measured")


def ask(where: Where, sql: str, *parameters: object) -> Any:  # noqa: ANN401 - a value of the database
    """Return the first value of a query, whose parameters are $1, $2, …"""
    return place_at(where).ask(sql, *parameters)


async def _make_queue(location: str, worker: str, batches: dict[str, Iterable[str]], paused: str) -> None:
    async with await open_store(location, create=True) as store:
        for name, texts in batches.items():
            await _add(store, NewBatch(name, worker, model=MODEL), iter(texts))
        if paused:
            await store.pause(await store.batch(paused))


async def _add(store: Store, new: NewBatch, texts: Iterator[str]) -> None:
    batch = await store.open_batch(new)
    position = 0
    while chunk := list(islice(texts, CHUNK)):
        rows = [NewJob(position + i, None, f"{position + i:032x}", json.dumps(text)) for i, text in enumerate(chunk)]
        await store.add_jobs(batch, rows)
        position += len(rows)
    await store.seal(batch)


async def _resume(location: str, name: str) -> None:
    async with await open_store(location) as store:
        await store.resume(await store.batch(name))
