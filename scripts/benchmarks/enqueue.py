"""How fast rows come into the queue."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from batchq.formats import ReadOptions
from batchq.jobs import NewBatch
from batchq.producer import enqueue
from batchq.store import open_store
from batchq.survey import survey_input
from scripts.benchmarks.processes import in_child
from scripts.benchmarks.queues import CHUNK, MODEL, copy_queue, make_queue, prompts
from scripts.benchmarks.sizes import Plan, interleaved
from scripts.benchmarks.table import Row

_INSERT = (
    "INSERT INTO jobs (batch_id, position, custom_id, key, payload, state, claimable_at, created_at)"
    " VALUES (?, ?, ?, ?, ?, 'pending', ?, ?)"
)


def measure(plan: Plan) -> list[Row]:
    """Rows/s of an enqueue, end to end, against a bare `sqlite3.executemany` of the same rows.

    batchq: both passes over a JSONL file of short prompts (validate; read, hash, write), in a fresh
    process, without its start. Baseline: the rows as batchq wrote them, in memory beforehand, into the
    same tables with their indexes; 2,000 rows per commit, WAL, FULL.
    """
    sizes, directory = plan.sizes, plan.directory
    source, empty, queue = directory / "main.jsonl", directory / "empty.db", directory / "queue.db"
    bare, filled = directory / "bare.db", directory / "filled.db"
    with source.open("w") as file:
        file.writelines(json.dumps({"prompt": text}) + "\n" for text in prompts(sizes.enqueue_rows))
    make_queue(empty, "echo", {"main": ()})

    def ours() -> float:
        queue.unlink(missing_ok=True)
        seconds = in_child(enqueue_seconds, str(source), str(queue))
        copy_queue(queue, filled)
        return sizes.enqueue_rows / seconds

    def theirs() -> float:
        copy_queue(empty, bare)
        return sizes.enqueue_rows / in_child(executemany_seconds, str(filled), str(bare))

    rate, bare_rate = (max(found) for found in interleaved(sizes.rounds, ours, theirs))
    note = f"{rate:,.0f} rows/s against {bare_rate:,.0f}, {sizes.enqueue_rows:,} rows; best of {sizes.rounds}"
    return [Row("enqueue rows/s against bare executemany", rate / bare_rate, 0.3, note)]


def enqueue_seconds(source: str, path: str) -> float:
    """Enqueue a file into a new queue and return how long that took."""
    began = time.perf_counter()
    with survey_input(Path(source), ReadOptions()) as survey:

        async def main() -> None:
            async with await open_store(path, create=True) as store:
                await enqueue(store, survey, NewBatch("main", "echo", model=MODEL))

        asyncio.run(main())
    return time.perf_counter() - began


def executemany_seconds(filled: str, path: str) -> float:
    """Insert the rows of a filled queue into an empty one, and return how long the writing took."""
    columns = "batch_id, position, custom_id, key, payload, claimable_at, created_at"
    with closing(sqlite3.connect(filled)) as connection:
        rows = connection.execute(f"SELECT {columns} FROM jobs ORDER BY position").fetchall()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA fullfsync=ON")
        began = time.perf_counter()
        for start in range(0, len(rows), CHUNK):
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(_INSERT, rows[start : start + CHUNK])
            connection.execute("COMMIT")
        return time.perf_counter() - began
