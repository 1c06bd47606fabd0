"""How soon an idle worker notices new work, and what it costs while it is idle."""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import sys
import time
from pathlib import Path

from batchq.jobs import NewJob
from batchq.store import open_store
from scripts.benchmarks.places import POSTGRESQL, SQLITE, Home, Place
from scripts.benchmarks.processes import in_child, wait_until
from scripts.benchmarks.queues import make_queue, workers
from scripts.benchmarks.sizes import Plan, Sizes
from scripts.benchmarks.table import Row

SLOTS = 16
WAKE_MS = {SQLITE: 100, POSTGRESQL: 50}
CORE_SHARE = 0.01
# Until a worker that was just started has nothing more to set up, and has heard of what others wrote before.
SETTLED_SECONDS = 2.0
_BETWEEN_SECONDS = (0.2, 0.45)
_PATIENCE_SECONDS = 10.0
_BACKENDS = (
    "SELECT array_agg(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'batchq'"
)


def measure(plan: Plan) -> list[Row]:
    """A `batchq worker` on a queue with nothing to do: its share of a core, then how soon it claims what is enqueued.

    Another process adds jobs one by one, at random moments. Both times of a job are the database's clock in
    its row: `created_at`, read as the enqueue's transaction begins, and `claimed_at`, as the claim's does. So
    the enqueue's COMMIT counts as waiting, too. The processor time is the system's account of the process.
    """
    return [row for home in plan.homes for row in _measure(plan.sizes, home)]


def _measure(sizes: Sizes, home: Home) -> list[Row]:
    queue = home.place("queue")
    make_queue(queue, "echo", {"main": ["warm-up"]})
    with workers(queue, 1, SLOTS) as (worker,):
        wait_until(lambda: queue.ask("SELECT count(finished_at) FROM jobs") == 1, "the first job", worker)
        time.sleep(SETTLED_SECONDS)
        rows = [_idle_row(home, queue, worker.pid, sizes.idle_seconds)] if sys.platform == "linux" else []
        in_child(add_now_and_then, queue.location, sizes.wakes)
        return [_wake_row(home, queue, sizes.wakes), *rows]


def _wake_row(home: Home, queue: Place, wakes: int) -> Row:
    waits, runs = (
        [queue.ask(f"SELECT {later} - {earlier} FROM jobs WHERE position = $1", position) for position in _added(wakes)]
        for earlier, later in (("created_at", "claimed_at"), ("claimed_at", "finished_at"))
    )
    limit, worst = WAKE_MS[home.database], max(waits)
    note = (
        f"{worst} ms, median {statistics.median(waits):.0f}; then {statistics.median(runs):.0f} ms until it is done;"
        f" {wakes} times"
    )
    name = f"{home.database}: an idle worker claims what is enqueued, worst, relative to {limit} ms"
    return Row(name, worst / limit, 1, note, at_most=True)


def _idle_row(home: Home, queue: Place, pid: int, seconds: float) -> Row:
    backends = queue.ask(_BACKENDS) or [] if home.database == POSTGRESQL else []
    before, began = (_cpu_seconds([pid]), _cpu_seconds(backends)), time.perf_counter()
    time.sleep(seconds)
    spent = time.perf_counter() - began
    own, theirs = (_cpu_seconds([pid]) - before[0]) / spent, (_cpu_seconds(backends) - before[1]) / spent
    served = f"; its {len(backends)} backends {theirs:.2%}" if backends else ""
    name = f"{home.database}: processor time of an idle worker, relative to 1 % of a core"
    return Row(name, own / CORE_SHARE, 1, f"{own:.2%} of a core in {spent:.0f} s{served}", at_most=True)


def _cpu_seconds(pids: list[int]) -> float:
    """Return what Linux has counted for these processes, user and system."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _added(wakes: int) -> range:
    return range(1, wakes + 1)


def add_now_and_then(location: str, wakes: int) -> int:
    """Add jobs one by one, each when the one before is done."""
    asyncio.run(_add_now_and_then(location, wakes))
    return wakes


async def _add_now_and_then(location: str, wakes: int) -> None:
    async with await open_store(location) as store:
        batch = await store.batch("main")
        for position in _added(wakes):
            await asyncio.sleep(random.uniform(*_BETWEEN_SECONDS))
            await store.add_jobs(batch, [NewJob(position, None, f"{position:032x}", '"hello"')])
            async with asyncio.timeout(_PATIENCE_SECONDS):
                while (found := await store.job(batch, position)) is None or found[0].finished_at is None:
                    await asyncio.sleep(0.05)
