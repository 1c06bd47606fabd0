"""procrastinate: PostgreSQL functions that fetch and finish one job each, and an asyncio worker."""

from __future__ import annotations

# mypy: disable-error-code="import-not-found,untyped-decorator"
from typing import Any

from scripts.benchmarks.peers import tasks
from scripts.benchmarks.peers.contract import MANY_JOBS, Database, Recovery, TaskName, WorkerSettings
from scripts.benchmarks.peers.sql import one_value

CHUNK = 1_000
FASTEST_CONCURRENCY = 100
FASTEST_POOL = 20


class Procrastinate:
    """It stores the state of a job and its events, and no result."""

    name = "procrastinate"
    package = "procrastinate"
    database: Database = "postgresql"
    most_jobs = MANY_JOBS
    keeps_results = False
    settings = (
        f"concurrency {FASTEST_CONCURRENCY}, {FASTEST_POOL} connections, uvloop; it fetches and finishes job by job"
    )
    recoveries = (
        Recovery(
            "out of the box",
            otherwise="needs the periodic task retry_stalled_jobs of its docs (there every 10 minutes)",
        ),
        Recovery(
            "that task every 2 s, heartbeat every 2 s, stalled after 10 s",
            {"update_heartbeat_interval": 2, "stalled_worker_timeout": 10},
        ),
    )

    def prepare(self, target: str) -> None:
        with _app(target).open() as app:
            app.schema_manager.apply_schema()

    def enqueue(self, target: str, task: TaskName, jobs: int) -> None:
        with _app(target).open() as app:
            for first in range(0, jobs, CHUNK):
                rows = ({"number": number} for number in range(first, min(first + CHUNK, jobs)))
                app.tasks[task].batch_defer(*rows)

    def work(self, target: str, worker: WorkerSettings) -> None:
        import uvloop

        uvloop.run(_work(target, worker))

    def finished(self, target: str) -> int:
        return int(one_value(target, "SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'"))

    def unfinished(self, target: str) -> int:
        query = "SELECT count(*) FROM procrastinate_jobs WHERE status IN ('todo', 'doing') AND task_name = 'sleeping'"
        return int(one_value(target, query))

    def claimed_at(self, target: str) -> float | None:
        query = "SELECT extract(epoch FROM min(at)) FROM procrastinate_events WHERE type = 'started'"
        return float(one_value(target, query))


async def _work(target: str, worker: WorkerSettings) -> None:
    app = _app(target, FASTEST_POOL, worker.options.get("stalled_worker_timeout"))
    async with app.open_async():
        await app.run_worker_async(concurrency=worker.slots or FASTEST_CONCURRENCY, **worker.options)


def _app(target: str, pool: int = 4, stalled_seconds: float | None = None) -> Any:  # noqa: ANN401 - not importable here
    from procrastinate import App, PsycopgConnector

    app = App(connector=PsycopgConnector(conninfo=target, max_size=pool))

    @app.task(name="nothing")
    async def nothing(number: int) -> str:  # noqa: ARG001 - all tools pass it
        return tasks.nothing()

    @app.task(name="sleeping")
    async def sleeping(number: int) -> str:
        return await tasks.sleeping(number)

    if stalled_seconds is not None:

        @app.periodic(cron="* * * * * */2")
        @app.task(queueing_lock="retry_stalled_jobs", pass_context=True)
        async def retry_stalled_jobs(_context: object, timestamp: int) -> None:  # noqa: ARG001 - its docs' signature
            for job in await app.job_manager.get_stalled_jobs(seconds_since_heartbeat=stalled_seconds):
                await app.job_manager.retry_job(job)

    return app
