"""litequeue: a table in a SQLite file with `put`, `pop`, `done`; the worker is the user's own loop."""

from __future__ import annotations

# mypy: disable-error-code="import-not-found"
import time
from concurrent.futures import ThreadPoolExecutor

from scripts.benchmarks.peers import tasks
from scripts.benchmarks.peers.contract import Database, Recovery, TaskName, WorkerSettings
from scripts.benchmarks.peers.sql import one_value


class Litequeue:
    """Its documentation has no worker: this one pops, runs and marks done, as its README shows."""

    name = "litequeue"
    package = "litequeue"
    database: Database = "sqlite"
    most_jobs = 5_000
    keeps_results = False
    settings = (
        "one loop of pop, run, done: it has no worker and no batches, and its claim sorts all that waits; WAL with"
        " synchronous=NORMAL, as it sets it, which may lose ends in a power cut"
    )
    recoveries = (
        Recovery("out of the box", otherwise="needs a loop of the user's over list_locked() and retry()"),
        Recovery("list_locked(10) and retry() every second, no heartbeat", {"locked_seconds": 10}),
    )

    def prepare(self, target: str) -> None:
        from litequeue import LiteQueue

        LiteQueue(target).close()

    def enqueue(self, target: str, task: TaskName, jobs: int) -> None:
        from litequeue import LiteQueue

        queue = LiteQueue(target)
        with queue.transaction():
            for number in range(jobs):
                queue.put(f"{task} {number}")
        queue.close()

    def work(self, target: str, worker: WorkerSettings) -> None:
        if worker.slots:
            with ThreadPoolExecutor(worker.slots) as pool:
                futures = [pool.submit(self._loop, target, worker) for _ in range(worker.slots)]
                futures[0].result()
        self._loop(target, worker)

    def finished(self, target: str) -> int:
        return int(one_value(target, "SELECT count(*) FROM Queue WHERE status = 2"))

    def unfinished(self, target: str) -> int:
        return int(one_value(target, "SELECT count(*) FROM Queue WHERE status IN (0, 1)"))

    def claimed_at(self, target: str) -> float | None:
        return float(one_value(target, "SELECT min(lock_time) / 1e9 FROM Queue"))

    def _loop(self, target: str, worker: WorkerSettings) -> None:
        from litequeue import LiteQueue

        # sqlite3's own 5 seconds are short for 32 threads on one file.
        queue, locked_seconds, looked_at = LiteQueue(target, timeout=60), worker.options.get("locked_seconds"), 0.0
        while True:
            if locked_seconds and time.monotonic() - looked_at > 1:
                looked_at = time.monotonic()
                for message in list(queue.list_locked(locked_seconds)):
                    queue.retry(message.message_id)
            message = queue.pop()
            if message is None:
                time.sleep(0.1)
                continue
            task, number = message.data.split()
            if task == "nothing":
                tasks.nothing()
            else:
                tasks.sleeping_thread(int(number))
            queue.done(message.message_id)
