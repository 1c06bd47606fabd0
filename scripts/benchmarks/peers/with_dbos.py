"""DBOS Transact: durable workflows on a queue of PostgreSQL, run by threads and an event loop of its own."""

from __future__ import annotations

# mypy: disable-error-code="import-not-found,untyped-decorator"
import time
from typing import Any

from scripts.benchmarks.peers import tasks
from scripts.benchmarks.peers.contract import MANY_JOBS, QUEUE, Database, Recovery, TaskName, WorkerSettings
from scripts.benchmarks.peers.sql import one_value

APPLICATION = "peers"
VERSION = "1"
CHUNK = 500


class Dbos:
    """It stores the input, the state and the result of each workflow."""

    name = "DBOS"
    package = "dbos"
    database: Database = "postgresql"
    most_jobs = MANY_JOBS
    keeps_results = True
    settings = (
        "a sync workflow without steps (faster here than async), a queue without a limit, so that one claim takes all"
    )
    recoveries = (
        Recovery("out of the box", otherwise="needs its commercial Conductor, or a restart under the same executor_id"),
        Recovery("restarted under the same executor_id (its start included)", restarts=True),
    )

    def prepare(self, target: str) -> None:
        _launch(target, WorkerSettings(name="prepare")).destroy()

    def enqueue(self, target: str, task: TaskName, jobs: int) -> None:
        import sqlalchemy
        from dbos import DBOSClient

        client = DBOSClient(system_database_url=target, application_name=APPLICATION)
        engine = sqlalchemy.create_engine(target.replace("postgresql:", "postgresql+psycopg:"))
        options = {"workflow_name": task, "queue_name": QUEUE, "app_version": VERSION}
        # Its order is that of the transactions, which decides when recovered workflows have their turn.
        chunk = CHUNK if task == "nothing" else 1
        for first in range(0, jobs, chunk):
            with engine.begin() as connection:
                for number in range(first, min(first + chunk, jobs)):
                    client.enqueue_in_transaction(connection, options, number)
        client.destroy()

    def work(self, target: str, worker: WorkerSettings) -> None:
        from dbos import DBOSClient

        # Before the launch, so that its first claim knows how much it may take.
        client = DBOSClient(system_database_url=target, application_name=APPLICATION)
        client.register_queue(QUEUE, worker_concurrency=worker.slots or None)
        client.destroy()
        _launch(target, worker)
        while True:
            time.sleep(60)

    def finished(self, target: str) -> int:
        return int(one_value(target, "SELECT count(*) FROM dbos.workflow_status WHERE status = 'SUCCESS'"))

    def unfinished(self, target: str) -> int:
        query = "SELECT count(*) FROM dbos.workflow_status WHERE status IN ('ENQUEUED', 'PENDING', 'DELAYED')"
        return int(one_value(target, query))

    def claimed_at(self, target: str) -> float | None:
        return float(one_value(target, "SELECT min(started_at_epoch_ms) / 1000.0 FROM dbos.workflow_status"))


def _launch(target: str, worker: WorkerSettings) -> Any:  # noqa: ANN401 - not importable here
    from dbos import DBOS

    DBOS(
        config={
            "name": APPLICATION,
            "system_database_url": target,
            "executor_id": worker.name,
            "application_version": VERSION,
            "log_level": "ERROR",
        }
    )

    @DBOS.workflow(name="nothing")
    def nothing(_number: int) -> str:
        return tasks.nothing()

    @DBOS.workflow(name="sleeping")
    async def sleeping(number: int) -> str:
        return await tasks.sleeping(number)

    DBOS.launch()
    return DBOS
