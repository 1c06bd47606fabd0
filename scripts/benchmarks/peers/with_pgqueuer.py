"""pgqueuer: an asyncio worker that claims batches and stores ends in batches on PostgreSQL."""

from __future__ import annotations

# mypy: disable-error-code="import-not-found,untyped-decorator"
import asyncio
from datetime import timedelta
from typing import Any

from scripts.benchmarks.peers import tasks
from scripts.benchmarks.peers.contract import MANY_JOBS, Database, Recovery, TaskName, WorkerSettings
from scripts.benchmarks.peers.sql import one_value

CHUNK = 5_000


class PgQueuer:
    """It deletes a finished job and writes to its log; it stores no result."""

    name = "pgqueuer"
    package = "pgqueuer"
    database: Database = "postgresql"
    batch = 1_000
    most_jobs = MANY_JOBS
    keeps_results = False
    settings = (
        f"batch_size {batch:,} (the default is 10; its docs: raise it for short jobs), no limit of tasks, one"
        " asyncpg connection, uvloop, `pgq autovac`"
    )
    recoveries: tuple[Recovery, ...] = (
        Recovery("out of the box: heartbeat_timeout 30 s, dequeue_timeout 30 s"),
        Recovery("heartbeat_timeout 10 s, dequeue_timeout 1 s", {"heartbeat_timeout": 10, "dequeue_timeout": 1}),
    )

    def prepare(self, target: str) -> None:
        asyncio.run(_install(target))

    def enqueue(self, target: str, task: TaskName, jobs: int) -> None:
        asyncio.run(_enqueue(target, task, jobs))

    def work(self, target: str, worker: WorkerSettings) -> None:
        import uvloop

        uvloop.run(_work(target, worker, self.batch))

    def finished(self, target: str) -> int:
        return int(one_value(target, "SELECT count(*) FROM pgqueuer_log WHERE status = 'successful'"))

    def unfinished(self, target: str) -> int:
        return int(one_value(target, "SELECT count(*) FROM pgqueuer"))

    def claimed_at(self, target: str) -> float | None:
        query = "SELECT extract(epoch FROM min(created)) FROM pgqueuer_log WHERE status = 'picked'"
        return float(one_value(target, query))


class PgQueuerAsItComes(PgQueuer):
    """The same with the batch that it has by default, for its speed only."""

    name = "pgqueuer (batch 10)"
    batch = 10
    settings = "batch_size 10, its default; else as above"
    recoveries = ()


async def _install(target: str) -> None:
    queries = await _queries(target)
    await queries.install()
    await queries.optimize_autovacuum()


async def _enqueue(target: str, task: TaskName, jobs: int) -> None:
    queries = await _queries(target)
    for first in range(0, jobs, CHUNK):
        numbers = range(first, min(first + CHUNK, jobs))
        await queries.enqueue([task] * len(numbers), [str(n).encode() for n in numbers], [0] * len(numbers))


async def _queries(target: str) -> Any:  # noqa: ANN401 - not importable here
    import asyncpg
    from pgqueuer.db import AsyncpgDriver
    from pgqueuer.queries import Queries

    return Queries(AsyncpgDriver(await asyncpg.connect(target)))


async def _work(target: str, worker: WorkerSettings, fastest: int) -> None:
    import asyncpg
    from pgqueuer import PgQueuer as Application
    from pgqueuer.models import Job

    application = Application.from_asyncpg_connection(await asyncpg.connect(target))

    @application.entrypoint("nothing")
    async def nothing(_job: Job) -> None:
        tasks.nothing()

    @application.entrypoint("sleeping")
    async def sleeping(job: Job) -> None:
        await tasks.sleeping(int(job.payload))

    # Its limit of tasks must be at least twice the batch.
    batch, limit = (worker.slots // 2, worker.slots) if worker.slots else (fastest, None)
    seconds = {name: timedelta(seconds=value) for name, value in worker.options.items()}
    await application.run(batch_size=batch, max_concurrent_tasks=limit, **seconds)
