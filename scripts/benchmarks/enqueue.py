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
from scripts.benchmarks.places import POSTGRESQL, SQLITE, Home, PostgresPlace
from scripts.benchmarks.processes import in_child
from scripts.benchmarks.queues import CHUNK, MODEL, make_queue, prompts
from scripts.benchmarks.sizes import Plan, interleaved
from scripts.benchmarks.table import Row

_WRITTEN = "batch_id, position, custom_id, key, payload, state, claimable_at, created_at"
_SELECT = f"SELECT {_WRITTEN} FROM jobs ORDER BY position"
_INSERT = f"INSERT INTO jobs ({_WRITTEN}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"


def measure(plan: Plan) -> list[Row]:
    """Rows/s of an enqueue, end to end, against the quickest bare way into the same tables and indexes.

    batchq: both passes over a JSONL file of short prompts (validate; read, hash, write), in a fresh
    process, without its start. Baselines: the rows as batchq wrote them, in memory beforehand. On SQLite
    `executemany`, 2,000 rows per commit, WAL, FULL; on PostgreSQL one COPY of all of them.
    """
    source = plan.directory / "main.jsonl"
    with source.open("w") as file:
        file.writelines(json.dumps({"prompt": text}) + "\n" for text in prompts(plan.sizes.enqueue_rows))
    return [_measure(plan, home, source) for home in plan.homes]


def _measure(plan: Plan, home: Home, source: Path) -> Row:
    sizes, (empty, queue, bare) = plan.sizes, (home.place(name) for name in ("empty", "queue", "bare"))
    what, seconds = {SQLITE: ("executemany", executemany_seconds), POSTGRESQL: ("COPY", copy_seconds)}[home.database]
    make_queue(empty, "echo", {"main": ()})

    def ours() -> float:
        queue.clear()
        return sizes.enqueue_rows / in_child(enqueue_seconds, str(source), queue.location)

    def theirs() -> float:
        bare.copy(empty)
        return sizes.enqueue_rows / in_child(seconds, queue.location, bare.location)

    rate, bare_rate = (max(found) for found in interleaved(sizes.rounds, ours, theirs))
    note = f"{rate:,.0f} rows/s against {bare_rate:,.0f}, {sizes.enqueue_rows:,} rows; best of {sizes.rounds}"
    return Row(f"{home.database}: enqueue rows/s against a bare {what}", rate / bare_rate, 0.3, note)


def enqueue_seconds(source: str, location: str) -> float:
    """Enqueue a file into a new queue and return how long that took."""
    began = time.perf_counter()
    with survey_input(Path(source), ReadOptions()) as survey:

        async def main() -> None:
            async with await open_store(location, create=True) as store:
                await enqueue(store, survey, NewBatch("main", "echo", model=MODEL))

        asyncio.run(main())
    return time.perf_counter() - began


def executemany_seconds(filled: str, path: str) -> float:
    """Insert the rows of a filled queue into an empty one, and return how long the writing took."""
    with closing(sqlite3.connect(filled)) as connection:
        rows = connection.execute(_SELECT).fetchall()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA fullfsync=ON")
        began = time.perf_counter()
        for start in range(0, len(rows), CHUNK):
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(_INSERT, rows[start : start + CHUNK])
            connection.execute("COMMIT")
        return time.perf_counter() - began


def copy_seconds(filled: str, url: str) -> float:
    """Copy the rows of a filled queue into an empty one, and return how long the writing took."""
    with PostgresPlace.at(filled).connect() as connection:
        rows = connection.execute(_SELECT.encode()).fetchall()
    with PostgresPlace.at(url).connect() as connection:
        began = time.perf_counter()
        with connection.cursor().copy(f"COPY jobs ({_WRITTEN}) FROM STDIN".encode()) as copy:
            for row in rows:
                copy.write_row(row)
        return time.perf_counter() - began
