"""How soon workers are back at full speed when PostgreSQL was away, by the times in the rows themselves."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path

from batchq import open_queue
from scripts.benchmarks.processes import BATCHQ, ROOT, running, wait_until
from scripts.benchmarks.queues import prompts
from scripts.benchmarks.sizes import Plan
from scripts.benchmarks.table import Row
from scripts.postgres_server import PostgresServer, postgres_server

NAP = f"{__name__}:nap"
NAP_SECONDS = 0.1
PROCESSES, SLOTS = 2, 16
STEADY_SECONDS = 4.0
AWAY_SECONDS = 3.0
KILLS, BETWEEN_KILLS = 6, 0.5
GOAL_SECONDS = 10.0
FULL_SPEED = 0.9
# Longer than the wait between two tries, so that one burst is no full speed.
WINDOW_MS, STEP_MS = 1_000, 100


async def nap(prompt: str) -> str:
    """Take as long as a quick model does."""
    await asyncio.sleep(NAP_SECONDS)
    return prompt


def measure(_plan: Plan) -> list[Row]:
    """Seconds until two workers are back at 90 % of their speed: after a crash of the server, after killed backends.

    A server of its own that syncs. Crash: `stop -m immediate`, three seconds of nothing, then `start`, from the
    beginning of which the time counts. Killed: all connections twice a second for three seconds; the time counts
    from the last one. The speed before is the median of the seconds before, the speed after is that of the first
    second that reaches it; the time ends with that second.
    """
    return [
        _row("after `pg_ctl stop -m immediate` and `start`", _crash),
        _row("after all backends were killed twice a second", _kill),
    ]


def _row(what: str, disturb: Callable[[PostgresServer], int]) -> Row:
    seconds, before = _recovery(disturb)
    note = f"{PROCESSES} processes of {SLOTS} slots, {before:,.0f} jobs/s before; the goal is {GOAL_SECONDS:.0f} s"
    return Row(f"PostgreSQL: seconds to full speed {what}", seconds, GOAL_SECONDS, note, at_most=True, unit="s")


def _crash(server: PostgresServer) -> int:
    """Stop the server as a crash does, and start it again; return when that began."""
    server.stop("immediate")
    time.sleep(AWAY_SECONDS)
    began = round(time.time() * 1000)
    server.start()
    return began


def _kill(server: PostgresServer) -> int:
    """End the connections of all workers again and again; return when that ended."""
    for _ in range(KILLS):
        server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        time.sleep(BETWEEN_KILLS)
    return round((time.time() - BETWEEN_KILLS) * 1000)


def _recovery(disturb: Callable[[PostgresServer], int]) -> tuple[float, float]:
    """Disturb two workers; return the seconds that it took them to recover, and their jobs/s before."""
    with postgres_server(durable=True) as server:
        url = server.url()
        asyncio.run(_fill(url))
        with _workers(url, server):
            time.sleep(STEADY_SECONDS)
            quiet = round(time.time() * 1000)
            since = disturb(server)
            deadline = time.monotonic() + 6 * GOAL_SECONDS
            before = _speed_before(server, quiet)
            while (seconds := _full_speed_after(server, since, before)) is None and time.monotonic() < deadline:
                time.sleep(STEP_MS / 1000)
    if seconds is None:
        raise RuntimeError(f"the workers were not back at full speed after {6 * GOAL_SECONDS:.0f} s")
    return seconds, before


async def _fill(url: str) -> None:
    """Enqueue more than can be done meanwhile."""
    jobs = round((STEADY_SECONDS + AWAY_SECONDS + 7 * GOAL_SECONDS) * PROCESSES * SLOTS / NAP_SECONDS)
    async with open_queue(url) as queue:
        await queue.enqueue(islice(prompts(jobs), jobs), batch="main", worker=NAP)


@contextmanager
def _workers(url: str, server: PostgresServer) -> Iterator[None]:
    command: list[str | Path] = [
        BATCHQ,
        "worker",
        f"--db={url}",
        f"--worker={NAP}",
        f"--concurrency={SLOTS}",
        "--log-level=error",
    ]
    with ExitStack() as stack:
        started = [stack.enter_context(running(command, PYTHONPATH=str(ROOT))) for _ in range(PROCESSES)]
        busy = "SELECT count(DISTINCT claimed_by) FROM jobs WHERE state = 'done'"
        wait_until(lambda: bool(server.execute(busy) == [(PROCESSES,)]), "workers", *started)
        yield


def _speed_before(server: PostgresServer, quiet: int) -> float:
    """Return the median of the jobs that ended in each of the seconds before."""
    rows = server.execute(
        f"SELECT count(*) FROM jobs WHERE finished_at >= {quiet - 1000 * round(STEADY_SECONDS)}"
        f" AND finished_at < {quiet} GROUP BY ({quiet} - finished_at - 1) / 1000"
    )
    return float(statistics.median(count for (count,) in rows))


def _full_speed_after(server: PostgresServer, since: int, before: float) -> float | None:
    """Return after how many seconds the first full second of full speed had gone by; None if none has."""
    ended = sorted(at for (at,) in server.execute(f"SELECT finished_at FROM jobs WHERE finished_at >= {since}"))
    if not ended:
        return None
    for end in range(since + WINDOW_MS, ended[-1] + 1, STEP_MS):
        if sum(end - WINDOW_MS <= at < end for at in ended) >= FULL_SPEED * before * WINDOW_MS / 1000:
            return (end - since) / 1000
    return None
