"""batchq itself, on both databases, by the same yardstick."""

from __future__ import annotations

import asyncio
import json
import os
from itertools import islice

from scripts.benchmarks.peers import tasks
from scripts.benchmarks.peers.contract import MANY_JOBS, QUEUE, Database, Recovery, TaskName, WorkerSettings
from scripts.benchmarks.peers.sql import one_value

CHUNK = 2_000
FASTEST_SLOTS = 1_024
NOTHING, SLEEPING = f"{__name__}:nothing", f"{__name__}:sleeping"


async def nothing(_prompt: str) -> str:
    """Answer at once."""
    return tasks.nothing()


async def sleeping(prompt: str) -> str:
    """Sleep between two lines of the ledger."""
    return await tasks.sleeping(int(prompt))


class BatchqOnSqlite:
    """The real Runner with 1,024 slots; `batchq worker` where it is killed."""

    name = "batchq"
    package = ""
    database: Database = "sqlite"
    most_jobs = MANY_JOBS
    keeps_results = True
    settings = f"{FASTEST_SLOTS:,} slots, an async function, uvloop; WAL with synchronous=FULL; a log of attempts"
    recoveries = (Recovery("out of the box: --lease 60s"), Recovery("--lease 10s", {"lease": 10}))

    def prepare(self, target: str) -> None:
        """Leave it to `enqueue`, which creates what is not there."""

    def enqueue(self, target: str, task: TaskName, jobs: int) -> None:
        asyncio.run(_enqueue(self.location(target), NOTHING if task == "nothing" else SLEEPING, jobs))

    def work(self, target: str, worker: WorkerSettings) -> None:
        if not worker.slots:
            _run_fast(self.location(target))
            return
        from scripts.benchmarks.processes import BATCHQ

        options = [f"--lease={seconds:g}s" for name, seconds in worker.options.items() if name == "lease"]
        command = ["batchq", "worker", f"--db={self.location(target)}", f"--concurrency={worker.slots}"]
        os.execv(BATCHQ, [*command, f"--worker={SLEEPING}", "--log-level=error", *options])

    def finished(self, target: str) -> int:
        return int(one_value(target, "SELECT count(*) FROM jobs WHERE state = 'done'"))

    def unfinished(self, target: str) -> int:
        return int(one_value(target, "SELECT count(*) FROM jobs WHERE state IN ('pending', 'inflight')"))

    def claimed_at(self, target: str) -> float | None:
        return float(one_value(target, "SELECT min(claimed_at) / 1000.0 FROM jobs"))

    def location(self, target: str) -> str:
        """Return the target as batchq wants it."""
        return target


class BatchqOnPostgres(BatchqOnSqlite):
    """The same on PostgreSQL."""

    database: Database = "postgresql"
    settings = f"{FASTEST_SLOTS:,} slots, an async function, psycopg, uvloop; a log of attempts"

    def location(self, target: str) -> str:
        return target.replace("postgresql:", "postgresql+psycopg:")


async def _enqueue(location: str, worker: str, jobs: int) -> None:
    from batchq.jobs import NewBatch, NewJob
    from batchq.store import open_store

    async with await open_store(location, create=True) as store:
        batch = await store.open_batch(NewBatch(QUEUE, worker, model="fake/model"))
        rows = (NewJob(number, None, f"{number:032x}", json.dumps(str(number))) for number in range(jobs))
        while chunk := list(islice(rows, CHUNK)):
            await store.add_jobs(batch, chunk)
        await store.seal(batch)


def _run_fast(location: str) -> None:
    from functools import partial

    from batchq.log import set_up_logging
    from batchq.process import run_event_loop

    set_up_logging("error")
    run_event_loop(partial(_run, location))


async def _run(location: str) -> None:
    from batchq.config import OPENROUTER_URL
    from batchq.discovery import find_worker
    from batchq.runner import Runner, RunnerOptions
    from batchq.store import open_store
    from batchq.worker import Endpoint

    worker, endpoint = find_worker(NOTHING), Endpoint("default", OPENROUTER_URL)
    options = RunnerOptions(FASTEST_SLOTS)
    async with await open_store(location) as store:
        await Runner(store, {worker.name: worker}, {endpoint.name: endpoint}, options).run()
