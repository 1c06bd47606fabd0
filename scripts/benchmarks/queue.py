"""What the queue itself costs: jobs that do nothing, in one process and in several on one queue."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

from batchq.config import OPENROUTER_URL
from batchq.discovery import find_worker
from batchq.log import set_up_logging
from batchq.process import run_event_loop
from batchq.runner import Runner, RunnerOptions
from batchq.store import open_store
from batchq.worker import Endpoint
from scripts.benchmarks.places import POSTGRESQL, SQLITE, Home, Place
from scripts.benchmarks.processes import in_child
from scripts.benchmarks.queues import make_queue, prompts, resume, wait_until_empty, workers
from scripts.benchmarks.single_steps import sqlite3_seconds, store_seconds
from scripts.benchmarks.sizes import Plan, Sizes, interleaved
from scripts.benchmarks.table import Row

ONE_PROCESS_SLOTS = 1024
SHARED_SLOTS = 256
NOTHING = f"{__name__}:nothing"
# How many processes share a queue, and what they must do together, relative to one.
SHARING: dict[str, dict[int, float | None]] = {SQLITE: {2: 0.85, 4: 0.85}, POSTGRESQL: {2: None, 4: 1.0}}


async def nothing(_prompt: str) -> str:
    """Answer at once: the worker of the first rows."""
    return "ok"


def measure_noop(plan: Plan) -> list[Row]:
    """No-op jobs/s of one process against a loop over the same store that makes a transaction of each step.

    batchq: the real Runner in a fresh process, 1,024 slots, an async function that returns at once; from
    the call of `run` to its end, with the jobs enqueued beforehand. Baseline: `Store.exchange` on a copy
    of the same queue, which claims one job, then settles it. SQLite also against the same loop in bare sqlite3.
    """
    return [row for home in plan.homes for row in _measure_noop(plan.sizes, home)]


def _measure_noop(sizes: Sizes, home: Home) -> list[Row]:
    queue, template, small = (home.place(name) for name in ("queue", "jobs", "few"))
    make_queue(template, NOTHING, {"main": prompts(sizes.noop_jobs)})
    make_queue(small, NOTHING, {"main": prompts(sizes.single_step_jobs)})
    worker = find_worker(NOTHING).name

    def batched() -> float:
        queue.copy(template)
        return sizes.noop_jobs / in_child(noop_seconds, queue.location)

    def stepwise(loop: Callable[..., float], *arguments: str) -> float:
        queue.copy(small)
        return sizes.single_step_jobs / in_child(loop, queue.location, *arguments)

    measures: list[Callable[[], float]] = [batched, partial(stepwise, store_seconds, worker)]
    if home.database == SQLITE:
        measures.append(partial(stepwise, sqlite3_seconds))
    # Medians, not bests: the baselines are one wait for the disk after another, and some disks have moods.
    ours, *theirs = (statistics.median(found) for found in interleaved(sizes.rounds, *measures))
    against = [("the same store, one transaction per step", 50.0), ("bare sqlite3, two transactions per job", None)]
    note = "{:,.0f} jobs/s with {:,} slots against {:,.0f}, {:.2f} ms per job; median of {}"
    return [
        Row(
            f"{home.database}: no-op jobs/s, one process, against {what}",
            ours / rate,
            required,
            note.format(ours, ONE_PROCESS_SLOTS, rate, 1000 / rate, sizes.rounds),
        )
        for rate, (what, required) in zip(theirs, against, strict=False)
    ]


def noop_seconds(location: str) -> float:
    """Run all jobs of a queue with `nothing` and return how long that took."""
    set_up_logging("error")
    return run_event_loop(partial(_run_noop, location))


async def _run_noop(location: str) -> float:
    worker, endpoint = find_worker(NOTHING), Endpoint("default", OPENROUTER_URL)
    options = RunnerOptions(ONE_PROCESS_SLOTS, until_empty=True)
    async with await open_store(location) as store:
        runner = Runner(store, {worker.name: worker}, {endpoint.name: endpoint}, options)
        began = time.perf_counter()
        await runner.run()
        return time.perf_counter() - began


def measure_processes(plan: Plan) -> list[Row]:
    """No-op jobs/s of 2 and 4 `batchq worker` processes on one queue, relative to one.

    The `echo` worker, 256 slots per process. All processes are up before the batch is resumed; the time
    is that from the first claim to the last finish in the rows themselves.
    """
    return [row for home in plan.homes for row in _measure_processes(plan.sizes, home)]


def _measure_processes(sizes: Sizes, home: Home) -> list[Row]:
    template, queue, sharing = home.place("jobs"), home.place("queue"), SHARING[home.database]
    make_queue(template, "echo", {"main": prompts(sizes.shared_jobs)}, paused="main")
    measures = [partial(_shared_rate, template, queue, processes) for processes in (1, *sharing)]
    one, *others = (max(rates) for rates in interleaved(sizes.rounds, *measures))
    return [
        Row(
            f"{home.database}: no-op jobs/s of {processes} processes on one queue, relative to one",
            rate / one,
            required,
            f"{rate:,.0f} jobs/s together against {one:,.0f} of one, {SHARED_SLOTS} slots each; best of {sizes.rounds}",
        )
        for rate, (processes, required) in zip(others, sharing.items(), strict=True)
    ]


def _shared_rate(template: Place, queue: Place, processes: int) -> float:
    queue.copy(template)
    with workers(queue, processes, SHARED_SLOTS) as started:
        resume(queue, "main")
        wait_until_empty(queue, "main", started)
    jobs = queue.ask("SELECT count(*) FROM jobs")
    milliseconds = queue.ask("SELECT max(finished_at) - min(claimed_at) FROM jobs")
    return float(jobs * 1000 / milliseconds)
