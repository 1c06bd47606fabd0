"""What the queue itself costs: jobs that do nothing, in one process and in several on one file."""

from __future__ import annotations

import sqlite3
import statistics
import time
from contextlib import closing
from functools import partial
from pathlib import Path

from batchq.config import OPENROUTER_URL
from batchq.discovery import find_worker
from batchq.log import set_up_logging
from batchq.process import run_event_loop
from batchq.runner import Runner, RunnerOptions
from batchq.store import open_store
from batchq.worker import Endpoint
from scripts.benchmarks.processes import in_child
from scripts.benchmarks.queues import ask, copy_queue, make_queue, prompts, resume, wait_until_empty, workers
from scripts.benchmarks.sizes import Plan, interleaved
from scripts.benchmarks.table import Row

ONE_PROCESS_SLOTS = 1024
SHARED_SLOTS = 256
NOTHING = f"{__name__}:nothing"

_CLAIM = """
    UPDATE jobs SET state = 'inflight', token = token + 1, attempts = attempts + 1, claimed_by = 'loop',
           claimed_at = :now, claimable_at = :now + 60000
    WHERE id = (SELECT id FROM jobs
                WHERE batch_id = 1 AND state = 'pending' AND state IN ('pending', 'inflight')
                      AND leader_id IS NULL AND claimable_at <= :now
                ORDER BY claimable_at, id LIMIT 1)
    RETURNING id, token, payload
"""
_FINISH = """
    UPDATE jobs SET state = 'done', result = :result, finished_at = :now
    WHERE id = :id AND token = :token AND state = 'inflight'
"""


async def nothing(_prompt: str) -> str:
    """Answer at once: the worker of the first row."""
    return "ok"


def measure_noop(plan: Plan) -> list[Row]:
    """No-op jobs/s of one process against a loop that makes two transactions per job.

    batchq: the real Runner in a fresh process, 1,024 slots, an async function that returns at once; from
    the call of `run` to its end, with the jobs enqueued beforehand. Baseline: bare sqlite3 on a copy of
    the same file and schema (WAL, FULL): claim one job and commit, complete it and commit; no log.
    """
    sizes, queue = plan.sizes, plan.directory / "queue.db"
    template, small = plan.directory / "jobs.db", plan.directory / "few.db"
    make_queue(template, NOTHING, {"main": prompts(sizes.noop_jobs)})
    make_queue(small, NOTHING, {"main": prompts(sizes.single_step_jobs)})

    def batched() -> float:
        copy_queue(template, queue)
        return sizes.noop_jobs / in_child(noop_seconds, str(queue))

    def single_steps() -> float:
        copy_queue(small, queue)
        return sizes.single_step_jobs / in_child(single_step_seconds, str(queue))

    # Medians, not bests: the baseline is one wait for the disk after another, and some disks have moods.
    ours, theirs = (statistics.median(found) for found in interleaved(sizes.rounds, batched, single_steps))
    note = (
        f"{ours:,.0f} jobs/s with {ONE_PROCESS_SLOTS:,} slots against {theirs:,.0f} with two transactions per"
        f" job, {500 / theirs:.2f} ms each on this disk; median of {sizes.rounds}"
    )
    return [Row("no-op jobs/s, one process, against one transaction per step", ours / theirs, 50, note)]


def noop_seconds(path: str) -> float:
    """Run all jobs of a queue with `nothing` and return how long that took."""
    set_up_logging("error")
    return run_event_loop(partial(_run_noop, path))


async def _run_noop(path: str) -> float:
    worker, endpoint = find_worker(NOTHING), Endpoint("default", OPENROUTER_URL)
    options = RunnerOptions(ONE_PROCESS_SLOTS, until_empty=True)
    async with await open_store(path) as store:
        runner = Runner(store, {worker.name: worker}, {endpoint.name: endpoint}, options)
        began = time.perf_counter()
        await runner.run()
        return time.perf_counter() - began


def single_step_seconds(path: str) -> float:
    """Claim and complete all jobs one by one, each step a transaction, and return how long that took."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA fullfsync=ON")
        began = time.perf_counter()
        while job := _step(connection, _CLAIM):
            _step(connection, _FINISH, id=job[0], token=job[1], result='"ok"')
        return time.perf_counter() - began


def _step(connection: sqlite3.Connection, sql: str, **values: object) -> tuple[int, int] | None:
    connection.execute("BEGIN IMMEDIATE")
    rows = connection.execute(sql, values | {"now": round(time.time() * 1000)}).fetchall()
    connection.execute("COMMIT")
    return (rows[0][0], rows[0][1]) if rows else None


def measure_processes(plan: Plan) -> list[Row]:
    """No-op jobs/s of 2 and 4 `batchq worker` processes on one file, relative to one.

    The `echo` worker, 256 slots per process. All processes are up before the batch is resumed; the time
    is that from the first claim to the last finish in the rows themselves.
    """
    sizes, template = plan.sizes, plan.directory / "jobs.db"
    make_queue(template, "echo", {"main": prompts(sizes.shared_jobs)}, paused="main")

    def measure(processes: int) -> float:
        return _shared_rate(template, plan.directory / "queue.db", processes)

    found = interleaved(sizes.rounds, *(partial(measure, processes) for processes in (1, 2, 4)))
    one, two, four = (max(rates) for rates in found)
    return [
        Row(
            f"no-op jobs/s of {processes} processes on one file, relative to one",
            rate / one,
            0.85,
            f"{rate:,.0f} jobs/s together against {one:,.0f} of one, {SHARED_SLOTS} slots each; best of {sizes.rounds}",
        )
        for processes, rate in ((2, two), (4, four))
    ]


def _shared_rate(template: Path, queue: Path, processes: int) -> float:
    copy_queue(template, queue)
    with workers(queue, processes, SHARED_SLOTS) as started:
        resume(queue, "main")
        wait_until_empty(queue, "main", started)
    jobs = ask(queue, "SELECT count(*) FROM jobs")
    milliseconds = ask(queue, "SELECT max(finished_at) - min(claimed_at) FROM jobs")
    return float(jobs * 1000 / milliseconds)
