"""Writes `rows.json`: the schema and the rows of a queue as the program of schema version 1 left them.

It ran once, on that program:

    git archive 21f1f84 | tar -x -C DIRECTORY
    PYTHONPATH=DIRECTORY:DIRECTORY/tests python tests/version_1/make.py
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from store_driver import (
    Clock,
    Hand,
    done,
    failed,
    fill,
    halted,
    identity,
    new_jobs,
    open_queue,
    released,
    retry,
    throttled,
)

from batchq.jobs import NewBatch, NewJob, Serving, Usage
from batchq.pacing import Limits

# Long ago, by whatever clock the tests run.
MADE_AT = 1_700_000_000_000
STUCK = (Serving("echo", "stuck", "http://localhost/stuck", opened=True),)
URL = "http://localhost/v1"


async def make(path: Path) -> None:
    clock = Clock()
    clock.now = MADE_AT
    async with await open_queue(path, clock) as store:
        crashed, worker = Hand(store, "crashed", lease_ms=1_000), Hand(store, "worker")
        await store.register(crashed.runner)
        await store.register(worker.runner)
        await store.register(identity("gone"))
        await store.retire(identity("gone"))

        states = await fill(store, 8, "states", model="model-a", budget=5_000_000_000, allow_unknown_cost=True)
        lost = (await crashed.claim(1, batch_ids=[states.id]))[0]
        clock.advance(2_000)
        again, answered, refused, later, slow = await worker.claim(5, batch_ids=[states.id])
        assert again.job_id == lost.job_id
        await worker.settle(
            done(answered, {"answer": "ä \ud83d"}, cost=7_000, usage=Usage(10, 20, 3, 4)),
            failed(refused, "no such parameter"),
            retry(later, 3_600.0, cost=5_000),
            throttled(slow, 0.0),
        )
        await crashed.settle(done(lost, "too late", cost=9_000))  # its claim is another's by now

        await fill(store, 2, "called_off")
        await worker.claim(1, batch_ids=[(await store.batch("called_off")).id])
        await store.cancel(await store.batch("called_off"))
        await fill(store, 2, "paused", priority=3)
        await store.pause(await store.batch("paused"))

        doubles = await store.open_batch(NewBatch("doubles", "echo"))
        await store.add_jobs(doubles, new_jobs(2, named="c"))
        leader = new_jobs(1, named="c")[0]
        await store.add_jobs(
            doubles, [NewJob(2 + n, f"same{n}", leader.key, leader.payload, leader="c0") for n in range(2)]
        )
        await store.seal(doubles)
        (first,) = await worker.claim(1, batch_ids=[doubles.id])
        await worker.settle(done(first, "for all"))

        named = await store.open_batch(NewBatch("unsealed", "echo", max_attempts=2, keep_response=True))
        await store.add_jobs(named, new_jobs(3, named="id"))
        stuck = await fill(store, 1, "stuck", endpoint="stuck", model="model-b")
        (halting,) = await worker.claim(1, batch_ids=[stuck.id], serving=STUCK)
        await worker.settle(halted(halting))
        await store.set_limits("echo", URL, "model-a", Limits(rpm=600.0, tpm=None, max_inflight=8))
        (given_back,) = await worker.claim(1, batch_ids=[named.id])
        await worker.settle(released(given_back))


def dump(path: Path) -> dict[str, object]:
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        made = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
        tables = [row["name"] for row in made if row["type"] == "table" and not row["name"].startswith("sqlite_")]
        return {
            "application_id": connection.execute("PRAGMA application_id").fetchone()[0],
            "schema": {row["name"]: row["sql"] for row in made},
            "rows": {name: [dict(row) for row in connection.execute(f"SELECT * FROM {name}")] for name in tables},
        }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(make(Path(directory) / "queue.db"))
        content = dump(Path(directory) / "queue.db")
    Path(__file__).with_name("rows.json").write_text(json.dumps(content, indent=1) + "\n")
