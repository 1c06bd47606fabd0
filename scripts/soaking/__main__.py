"""Runs the soak on one database after the other and prints one table."""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from batchq import open_queue
from scripts.benchmarks.places import POSTGRESQL, SQLITE, Home, homes
from scripts.benchmarks.processes import running
from scripts.benchmarks.table import Row, plain
from scripts.soaking.load import Load, check_running, worker_command
from scripts.soaking.samples import sampling
from scripts.soaking.verdict import judge
from tests.fake_provider import running_provider

DATABASES = {"sqlite": (SQLITE,), "postgresql": (POSTGRESQL,), "both": (SQLITE, POSTGRESQL)}
# What a provider does on a good day: a few calls fail. None is refused, since that would change the pace.
LATENCY = 0.1
ERRORS = "500:0.005,drop:0.002"
SAMPLES = 300
ROUND_SECONDS = 8.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, and with how many."""

    seconds: float
    workers: int
    concurrency: int

    @property
    def round_jobs(self) -> int:
        """Jobs of a batch: so many that one takes a few seconds, and a short run has several."""
        ideal = self.workers * self.concurrency / LATENCY
        return int(ideal * min(ROUND_SECONDS, self.seconds / 12))


def main() -> None:
    options = _parse()
    plan = Plan(options.minutes * 60, options.workers, options.concurrency)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="batchq-soak-", dir=options.dir) as name:
        directory = Path(name).resolve()
        with homes(directory, DATABASES[options.database]) as found:
            for home in found:
                rows += asyncio.run(soak(home, plan))
    if options.json:
        print(
            json.dumps([{"what": row.name, "measured": row.measured, "ok": row.ok, "note": row.note} for row in rows])
        )
    else:
        print(plain(rows))
    sys.exit(0 if all(row.ok for row in rows) else 1)


async def soak(home: Home, plan: Plan) -> list[Row]:
    """Keep workers busy on one database for so long, and judge what was sampled meanwhile."""
    place = home.place("soak")
    place.clear()
    async with await open_queue(place.location) as queue, AsyncExitStack() as stack:
        provider = stack.enter_context(running_provider(latency=LATENCY, error_mix=ERRORS, uvloop=True))
        load = Load(queue, plan.round_jobs)
        await load.keep_ahead()
        command = worker_command(place.location, provider.base_url, plan.concurrency)
        workers = [stack.enter_context(running(command, stderr=subprocess.DEVNULL)) for _ in range(plan.workers)]
        await load.finish_round()  # for the workers to warm up
        await load.keep_ahead()
        began = time.monotonic()
        with sampling([each.pid for each in workers], place, provider, plan.seconds / SAMPLES) as samples:
            while time.monotonic() < began + plan.seconds:
                await load.finish_round()
                await load.keep_ahead()
                check_running(workers)
                _say(home.database, load, time.monotonic() - began)
    return judge(home.database, samples)


def _say(database: str, load: Load, seconds: float) -> None:
    print(f"{database}: {seconds:,.0f} s, {load.checked:,} answers checked", file=sys.stderr, flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/soak", description="Run workers for long, and see that nothing grows or slows down meanwhile."
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="on each database (default: 10)")
    parser.add_argument("--database", choices=DATABASES, default="both")
    parser.add_argument("--workers", type=int, default=2, help="worker processes (default: 2)")
    parser.add_argument("--concurrency", type=int, default=32, help="calls at once in each (default: 32)")
    parser.add_argument("--dir", type=Path, help="where the SQLite file goes; the disk matters")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


if __name__ == "__main__":
    main()
