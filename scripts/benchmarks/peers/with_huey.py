"""huey with its SQLite storage: tasks are run by the threads of a consumer."""

from __future__ import annotations

# mypy: disable-error-code="import-not-found,untyped-decorator"
import logging
from typing import Any

from scripts.benchmarks.peers import tasks
from scripts.benchmarks.peers.contract import MANY_JOBS, QUEUE, Database, Recovery, TaskName, WorkerSettings
from scripts.benchmarks.peers.sql import one_value

FASTEST_THREADS = 4


class Huey:
    """It stores a result per task, and forgets a task when a worker has taken it."""

    name = "huey"
    package = "huey"
    database: Database = "sqlite"
    most_jobs = MANY_JOBS
    keeps_results = True
    settings = (
        f"SqliteHuey with results; {FASTEST_THREADS} worker threads (faster here than 1, 8 and 16);"
        " WAL with SQLite's own synchronous=FULL"
    )
    recoveries = (
        Recovery("out of the box", otherwise="never: its docs say that a task interrupted by SIGKILL is lost"),
    )

    def prepare(self, target: str) -> None:
        _open(target)

    def enqueue(self, target: str, task: TaskName, jobs: int) -> None:
        huey, functions = _open(target)
        with huey.storage.db() as cursor:
            cursor.execute("begin")
            rows = ((huey.name, huey.serialize_task(functions[task].s(number))) for number in range(jobs))
            cursor.executemany("insert into task (queue, data) values (?, ?)", rows)
            cursor.execute("commit")

    def work(self, target: str, worker: WorkerSettings) -> None:
        logging.basicConfig(level=logging.ERROR)
        huey, _ = _open(target)
        huey.create_consumer(workers=worker.slots or FASTEST_THREADS, periodic=False).run()

    def finished(self, target: str) -> int:
        return int(one_value(target, "SELECT count(*) FROM kv"))

    def unfinished(self, target: str) -> int:
        return int(one_value(target, "SELECT count(*) FROM task"))

    def claimed_at(self, target: str) -> float | None:  # noqa: ARG002 - it stores no times
        return None


def _open(target: str) -> tuple[Any, dict[TaskName, Any]]:
    from huey import SqliteHuey

    huey = SqliteHuey(QUEUE, filename=target)

    @huey.task()
    def nothing(_number: int) -> str:
        return tasks.nothing()

    @huey.task()
    def sleeping(number: int) -> str:
        return tasks.sleeping_thread(number)

    return huey, {"nothing": nothing, "sleeping": sleeping}
