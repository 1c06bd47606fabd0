"""Whether a claim takes longer the more rows there are."""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Connection, Engine, event

from batchq.config import OPENROUTER_URL
from batchq.jobs import DEFAULT_LEASE_MS, RunnerIdentity, Serving, Wants
from batchq.store import ExchangeRequest, open_store
from scripts.benchmarks.processes import in_child
from scripts.benchmarks.queues import make_queue
from scripts.benchmarks.sizes import Plan
from scripts.benchmarks.table import Row

CLAIM = 16
CHUNK = 100_000
_FILL = """
    INSERT INTO jobs (batch_id, position, key, payload, state, claimable_at, token, attempts, claimed_by,
                      claimed_at, result, created_at, finished_at)
    WITH RECURSIVE numbers(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < :end)
    SELECT 1, n, printf('%032x', n), json_quote('What is the capital of country number ' || n || '?'), :state,
           :now, :final, :final, iif(:final, 'bench', NULL), iif(:final, :now, NULL),
           iif(:final, json_quote('The capital of country number ' || n), NULL), :now, iif(:final, :now, NULL)
    FROM numbers
"""


def measure(plan: Plan) -> list[Row]:
    """Time of a `store.exchange` that claims 16 jobs, in a full queue relative to a nearly empty one.

    Two files open in one process, claimed from in turn, medians. The ratio is of the time up to COMMIT,
    which has all that batchq and SQLite do to find and take the rows; that of the whole exchange, with
    the write to the disk, is in the note.
    """
    sizes = plan.sizes
    few = (sizes.claims + 2) * CLAIM
    empty, full = plan.directory / "empty.db", plan.directory / "full.db"
    for path, finished, waiting in ((empty, 0, few), (full, sizes.finished_rows, sizes.waiting_rows)):
        make_queue(path, "echo", {"main": ()})
        in_child(fill, str(path), finished, waiting)
    small, large = in_child(claim_times, [str(empty), str(full)], sizes.claims)
    note = (
        f"{large[0]:.2f} ms against {small[0]:.2f} with {few:,} waiting rows; with COMMIT {large[1]:.2f}"
        f" against {small[1]:.2f} ({large[1] / small[1]:.2f} ×); median of {sizes.claims}"
    )
    name = f"claim of {CLAIM} with {_count(sizes.finished_rows)} finished + {_count(sizes.waiting_rows)} waiting rows"
    return [Row(f"{name}, relative to an empty queue", large[0] / small[0], 1.5, note, at_most=True)]


def fill(path: str, finished: int, waiting: int) -> int:
    """Write jobs of batch 1 straight into the file: first finished, then waiting ones."""
    now = round(time.time() * 1000)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        for state, first, end in (("done", 0, finished), ("pending", finished, finished + waiting)):
            for start in range(first, end, CHUNK):
                values = {"first": start, "end": min(start + CHUNK, end), "now": now}
                connection.execute(_FILL, values | {"state": state, "final": int(state == "done")})
        connection.execute("UPDATE batches SET size = ?", (finished + waiting,))
        # Everything to the disk now, or the claims would wait for what is left in the system's buffers.
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("UPDATE batches SET size = size")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return finished + waiting


def claim_times(paths: list[str], claims: int) -> list[tuple[float, float]]:
    """Return for each queue the median milliseconds of a claim, up to COMMIT and with it."""
    watch = _CommitWatch()
    event.listen(Engine, "commit", watch.note)
    return asyncio.run(_claim_times([Path(path) for path in paths], claims, watch))


@dataclass(slots=True)
class _CommitWatch:
    """Notes when a transaction is about to be committed."""

    at: float = 0.0

    def note(self, _connection: Connection) -> None:
        self.at = time.perf_counter()


@dataclass(slots=True)
class _Times:
    to_commit: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)

    @property
    def medians(self) -> tuple[float, float]:
        return statistics.median(self.to_commit) * 1000, statistics.median(self.whole) * 1000


async def _claim_times(paths: list[Path], claims: int, watch: _CommitWatch) -> list[tuple[float, float]]:
    request = _request()
    stores = [await open_store(str(path)) for path in paths]
    times = [_Times() for _ in stores]
    for number in range(claims + 1):
        for store, found in zip(stores, times, strict=True):
            began = time.perf_counter()
            reply = await store.exchange(request)
            ended = time.perf_counter()
            if len(reply.claims) != CLAIM:
                raise RuntimeError(f"claimed {len(reply.claims)} jobs instead of {CLAIM}: nothing was measured")
            if number:  # the first one of each compiles the statements
                found.to_commit.append(watch.at - began)
                found.whole.append(ended - began)
    for store in stores:
        await store.close()
    return [found.medians for found in times]


def _request() -> ExchangeRequest:
    serving = Serving("echo", "default", OPENROUTER_URL, opened=True)
    runner = RunnerIdentity("bench", "localhost", 1, CLAIM, "echo", DEFAULT_LEASE_MS)
    return ExchangeRequest(runner, (), (), Wants(CLAIM, (serving,)))


def _count(rows: int) -> str:
    return f"{rows // 1_000_000} M" if rows >= 1_000_000 else f"{rows // 1_000} k"
