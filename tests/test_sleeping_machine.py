"""A machine that sleeps, a loop that is blocked, a lock that lasts: leases run out, and nothing is asked twice for it."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from fake_provider import Provider, running_provider
from processes import ON_BOTH, Bench, bench_for, wait_for
from raw_connection import connect
from set_clock import SetClock

BLOCKS_ITS_LOOP = """
import pathlib, time, anyio

async def answer(prompt):
    if prompt == "prompt 1" and not pathlib.Path("blocked").exists():
        pathlib.Path("blocked").touch()
        time.sleep(4)
    await anyio.sleep(0.2)
    return prompt.upper()
"""


@pytest.fixture
def place(request, tmp_path):
    with bench_for(request, tmp_path, PYTHONPATH=str(Path(__file__).parent)) as made:
        yield made


def enqueue(place: Bench, count: int, *options: str) -> None:
    added = place.run("enqueue", str(place.write_prompts(count)), *options)
    assert added.returncode == 0, added.stderr


def worker(place: Bench, provider: Provider, *options: str) -> subprocess.Popen:
    return place.start("worker", "--base-url", provider.base_url, "--until-empty", *options)


def told(place: Bench, process: subprocess.Popen, event: str) -> list[dict]:
    lines = [json.loads(line) for line in place.errors(process).splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


@ON_BOTH
def test_a_machine_that_slept_for_half_an_hour_asks_nothing_twice(place):
    file = place.directory / "clock"
    file.write_text("0")
    place.environment["CLOCK_FILE"], place.module = str(file), "set_clock"
    with running_provider(latency=2.0) as provider:
        enqueue(place, 16, "--model", "m")
        workers = [worker(place, provider, "--concurrency", "4", "--lease", "8s") for _ in range(2)]
        wait_for(lambda: all(place.held_by(process) == 4 for process in workers), "eight calls in flight")
        for process in workers:
            process.send_signal(signal.SIGSTOP)
        SetClock(file).set(30 * 60)  # the provider does not sleep: its answers have come by then
        wait_for(lambda: provider.ledger()["in_flight"] == 0, "the answers to calls of before")
        for process in workers:
            process.send_signal(signal.SIGCONT)

        assert [process.wait(60) for process in workers] == [0, 0]
        assert place.query("SELECT DISTINCT state, attempts, losses FROM jobs") == [("done", 1, 0)]
        assert provider.ledger()["calls"] == 16


@ON_BOTH
def test_a_worker_that_blocks_its_loop_past_the_lease_is_told_of_and_accepted_once(place):
    (place.directory / "mine.py").write_text(BLOCKS_ITS_LOOP)
    enqueue(place, 8, "--worker", "mine.py:answer")
    options = ("worker", "--worker", "mine.py:answer", "--until-empty", "--concurrency", "4", "--lease", "1s")
    blocked = place.start(*options)
    wait_for((place.directory / "blocked").exists, "the loop to be blocked")
    other = place.start(*options)

    assert [process.wait(60) for process in (blocked, other)] == [0, 0]
    accepted = "SELECT job_id FROM attempts WHERE outcome = 'succeeded' AND NOT late GROUP BY 1 HAVING count(*) = 1"
    assert place.query(f"SELECT count(*) FROM ({accepted}) AS once") == [(8,)]
    assert [row["result"] for row in place.results("prompts")] == [f"PROMPT {number}" for number in range(8)]
    # Those beside it were lost with it, and are not taken for what kills its worker.
    assert place.query("SELECT max(losses) FROM jobs") == [(1,)]
    (warning,) = told(place, blocked, "worker.stood_still")
    assert (warning["workers"], warning["level"]) == (["mine.py:answer"], "warning")
    assert 2.5 <= warning["seconds"] < 60
    assert "a function that is not async" in warning["reason"]
    assert told(place, blocked, "job.lost") or place.query("SELECT count(*) FROM attempts WHERE late")[0][0]


@ON_BOTH
def test_a_lock_of_ten_seconds_outlasts_leases_and_costs_nothing(place):
    with running_provider(latency=0.5) as provider:
        enqueue(place, 32, "--model", "m")
        workers = [worker(place, provider, "--concurrency", "4", "--lease", "3s") for _ in range(2)]
        wait_for(lambda: place.count("done") >= 4 and all(map(place.held_by, workers)), "the first answers")
        with connect(place.database) as other:
            # One table is enough there: two that lock several wait for each other.
            other.lock_out_writers() if other.is_sqlite else other.execute("BEGIN; LOCK TABLE jobs IN EXCLUSIVE MODE")
            locked = time.monotonic()
            held = place.query("SELECT count(*) FROM jobs WHERE state = 'inflight'")[0][0]
            wait_for(lambda: provider.ledger()["in_flight"] == 0, "the calls to end")
            calls = provider.ledger()["calls"]
            wait_for(lambda: time.monotonic() - locked > 10, "ten seconds")
            assert (held > 0, provider.ledger()["calls"]) == (True, calls)
            other.execute("ROLLBACK")

        assert [process.wait(60) for process in workers] == [0, 0]
        assert place.query("SELECT DISTINCT state, attempts, losses FROM jobs") == [("done", 1, 0)]
        assert provider.ledger()["calls"] == 32
        for process in workers:
            said = place.errors(process)
            assert "locked" in said or "lock" in said, said
            assert "Traceback" not in said
