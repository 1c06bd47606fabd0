"""Everything that writes, at once, on PostgreSQL: nothing waits for one another in a circle, and all accounts agree.

A deadlock is broken by the server and the transaction repeated, so that nobody would notice but by the time it costs.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from dataclasses import replace

import pytest
from raw_connection import connect
from store_driver import (
    SERVING,
    Hand,
    check_tallies,
    done,
    failed,
    halted,
    identity,
    make_tables,
    new_jobs,
    released,
    retry,
    rows,
    throttled,
)

from batchq.database import postgres
from batchq.errors import BatchConflict, UnknownBatch
from batchq.jobs import Batch, NewBatch
from batchq.pacing import Limits
from batchq.store import Store, open_store, operate

pytestmark = pytest.mark.anyio

SECONDS = 4.0
BATCHES = 4
LEASE_MS = 200
LEADERS = 30
OUTCOMES = (done, done, done, failed, retry, throttled, released, halted)


class Crowd:
    """Runners, producers and operators who do what they like to a few batches until the time is up."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.random = random.Random(7)
        self.names = itertools.count()
        self.until = 0.0
        self.did: Counter[str] = Counter()

    def going_on(self) -> bool:
        return time.monotonic() < self.until

    def name(self) -> str:
        return f"batch-{self.random.randrange(BATCHES)}"

    async def open(self, store: Store, name: str) -> Batch:
        # Two batches share a lane.
        new = NewBatch(name, "echo", model=f"model-{int(name[-1]) % 3}", max_attempts=1_000)
        new = replace(new, budget=10**12, allow_unknown_cost=False) if name.endswith("1") else new
        return await store.open_batch(new)

    async def run(self, *actors) -> None:
        """Let each actor have a store of its own, as processes have."""
        self.until = time.monotonic() + SECONDS
        async with AsyncExitStack() as stack:
            stores = [await stack.enter_async_context(await open_store(self.location)) for _ in actors]
            async with asyncio.TaskGroup() as group:
                for store, actor in zip(stores, actors, strict=True):
                    group.create_task(actor(store))

    async def runner(self, store: Store) -> None:
        """Exchange all that may be, now and then crash, and start under another name."""
        while self.going_on():
            hand = Hand(store, f"runner-{next(self.names)}", LEASE_MS)
            await store.register(replace(hand.runner, batch_ids=frozenset(range(1, BATCHES + 1))))
            for _ in range(self.random.randrange(5, 30)):
                held = list(hand.held.values())
                self.random.shuffle(held)
                ended = held[: self.random.randrange(len(held) + 1)]
                settlements = [self.random.choice(OUTCOMES)(claim) for claim in ended]
                kept = [claim.job_id for claim in held[len(ended) :: 2]]
                await hand.send(hand.request(settlements, self.random.randrange(12), renew=kept, beat=True))
                self.did["exchanges"] += 1
                await asyncio.sleep(self.random.random() * 0.01)
            if self.random.random() < 0.5:
                await store.retire(hand.runner)

    async def producer(self, store: Store) -> None:
        """Append rows, half of which follow those that are being run."""
        while self.going_on():
            with suppress(BatchConflict, UnknownBatch):
                batch = await self.open(store, self.name())
                chunk = new_jobs(6, (await store.batch(batch.name)).size)
                following = [replace(job, leader=self.random.randrange(LEADERS)) for job in chunk[3:]]
                await store.add_jobs(batch, [*chunk[:3], *following])
                self.did["appended"] += 1
            await asyncio.sleep(self.random.random() * 0.02)

    async def operator(self, store: Store) -> None:
        """Do one thing after another to one batch after another."""
        actions = (self.cancel_and_retry, self.retry, self.pause_and_resume, self.limit, self.reopen, self.read)
        while self.going_on():
            await self.random.choice(actions)(store, self.name())
            self.did["operated"] += 1
            await asyncio.sleep(self.random.random() * 0.01)

    async def cancel_and_retry(self, store: Store, name: str) -> None:
        batch = await store.batch(name)
        await store.cancel(batch)
        await store.finish_cancels()
        await store.retry(batch)

    async def retry(self, store: Store, name: str) -> None:
        await store.retry(await store.batch(name))

    async def pause_and_resume(self, store: Store, name: str) -> None:
        batch = await store.batch(name)
        await store.pause(batch)
        await store.resume(batch)

    async def limit(self, store: Store, name: str) -> None:
        limits = Limits(max_inflight=self.random.randrange(4, 40), rpm=self.random.choice([None, 60_000.0]))
        await store.set_limits("echo", SERVING[0].base_url, f"model-{self.random.randrange(3)}", limits)

    async def reopen(self, store: Store, name: str) -> None:
        await store.reopen_lanes()

    async def read(self, store: Store, name: str) -> None:
        await store.progress(name)

    async def purger(self, store: Store) -> None:
        """Make a batch, let the others work on it, and delete it with all that they do to it."""
        while self.going_on():
            batch = await self.open(store, f"doomed-{next(self.names)}-0")
            await store.add_jobs(batch, new_jobs(20))
            await asyncio.sleep(0.1)
            await store.purge(batch)
            self.did["purged"] += 1


@pytest.fixture
async def crowd(postgres_url, monkeypatch):
    # What goes by chunks goes by several, and a deadlock is found at once.
    monkeypatch.setattr(operate, "CHUNK_ROWS", 15)
    await make_tables(postgres_url)
    with connect(postgres_url) as raw:
        raw.execute("DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET deadlock_timeout = ''50ms''', "
                    "current_database()); END $$")  # fmt: skip
    crowd = Crowd(postgres_url)
    async with await open_store(postgres_url) as store:
        for index in range(BATCHES):
            await store.add_jobs(await crowd.open(store, f"batch-{index}"), new_jobs(LEADERS))
    return crowd


async def test_nobody_waits_in_a_circle_and_all_accounts_agree(crowd, monkeypatch):
    conflicts: list[str] = []
    is_conflict = postgres.is_conflict

    def noted(error) -> bool:
        if is_conflict(error):
            conflicts.append(f"{error.orig}\n{error.statement}")
        return is_conflict(error)

    monkeypatch.setattr(postgres, "is_conflict", noted)
    await crowd.run(*[crowd.runner] * 6, *[crowd.producer] * 2, *[crowd.operator] * 3, crowd.purger)

    assert min(crowd.did[what] for what in ("exchanges", "appended", "operated", "purged")) > 0, crowd.did
    assert "\n\n".join(conflicts) == ""
    assert deadlocks(crowd.location) == 0
    async with await open_store(crowd.location) as store:
        await store.register(identity("last"))
        for batch in await store.batches():
            await check_tallies(store, batch)
            await check_rows(store, await store.batch(batch.name))


def deadlocks(location: str) -> int:
    """Ask when everybody has gone: what a connection counted is known when it has ended."""
    with connect(location) as raw:
        others = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        while raw.execute(others):
            time.sleep(0.01)
        return raw.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")[0]["deadlocks"]


async def check_rows(store: Store, batch: Batch) -> None:
    """No job is missing, those that ended say when, and a leader has the followers that it knows of."""
    jobs = {row["id"]: row for row in rows(store, "SELECT * FROM jobs WHERE batch_id = ?", batch.id)}
    assert sorted(row["position"] for row in jobs.values()) == list(range(batch.size))
    assert all((row["finished_at"] is None) == (row["state"] in {"pending", "inflight"}) for row in jobs.values())
    following = Counter(row["leader_id"] for row in jobs.values() if row["leader_id"] is not None)
    assert {job_id: row["followers"] for job_id, row in jobs.items() if row["followers"]} == following
