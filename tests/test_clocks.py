"""A process whose clock is wrong changes nothing: leases and times in the rows are the database's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from raw_connection import connect
from store_driver import LEASE_MS

HOUR = 3_600
# Runs before anything of batchq is imported: this process's own clocks are off, and nobody else's.
WRONG_CLOCK = """
import datetime, os, time
true, off = time.time, float(os.environ["CLOCK_OFF"])
time.time = lambda: true() + off
time.time_ns = lambda: int((true() + off) * 1e9)

class Wrong(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(true() + off, tz)

datetime.datetime = Wrong
"""
WORK = """
import asyncio, json, sys, time
from store_driver import Hand, done, fill, halted, open_store, retry

async def main():
    async with await open_store(sys.argv[1], create=True) as store:
        hand = Hand(store)
        await store.register(hand.runner)
        await fill(store, 4)
        first, second, *_held = await hand.claim(4)
        await hand.settle(done(first), retry(second, after=60))
        await hand.renew()
        print(json.dumps(time.time()))

asyncio.run(main())
"""


@pytest.mark.parametrize("off", [-HOUR, HOUR])
def test_a_clock_that_is_an_hour_off_changes_nothing(location, tmp_path, off):
    (tmp_path / "sitecustomize.py").write_text(WRONG_CLOCK)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parent)])
    began = time.time()
    done = subprocess.run(
        [sys.executable, "-c", WORK, location],
        env=os.environ | {"PYTHONPATH": path, "CLOCK_OFF": str(off)},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    ended = time.time()
    assert began + off <= json.loads(done.stdout) <= ended + off

    def is_of_now(milliseconds: int, later_ms: int = 0) -> bool:
        return began * 1000 - 5 <= milliseconds - later_ms <= ended * 1000 + 5

    with connect(location) as raw:
        jobs = raw.execute(
            "SELECT state, claimable_at, claimed_at, finished_at, created_at FROM jobs ORDER BY position"
        )
        (batch,) = raw.execute("SELECT created_at, enqueue_until FROM batches")
        (runner,) = raw.execute("SELECT seen_at, started_at FROM runners")
        log = raw.execute("SELECT started_at, ended_at FROM attempts")
    assert [job["state"] for job in jobs] == ["done", "pending", "inflight", "inflight"]
    assert all(is_of_now(job["created_at"]) and is_of_now(job["claimed_at"]) for job in jobs)
    assert is_of_now(jobs[0]["finished_at"])
    assert is_of_now(jobs[1]["claimable_at"], 60_000)
    assert all(is_of_now(job["claimable_at"], LEASE_MS) for job in jobs[2:])
    assert is_of_now(batch["created_at"])
    assert is_of_now(runner["seen_at"])
    assert all(is_of_now(entry["started_at"]) and is_of_now(entry["ended_at"]) for entry in log)
