"""What shares a file, a machine or a memory with a worker: forks of its own, other versions, processes of its pid."""

from __future__ import annotations

import os

import pytest
from fake_provider import running_provider
from processes import ON_BOTH, Bench, bench_for, wait_for
from raw_connection import connect
from store_driver import LEASE_MS, Hand, done, fill, job_row, open_queue

from batchq.runner import Runner, RunnerOptions
from batchq.schema import SCHEMA_VERSION
from batchq.worker import Endpoint

FORKS = """
import multiprocessing, os, time, anyio

def in_a_child(number):
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=theirs.send, args=[number * 2])
    process.start()
    process.join()
    return ours.recv()

def end_a_child():
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=[60])
    process.start()
    process.terminate()
    process.join()
    return process.exitcode

async def answer(prompt):
    await anyio.sleep(0.05)
    number = int(prompt.split()[1])
    match number % 4:
        case 1:  # beside its event loop and its connections
            return in_a_child(number)
        case 2:
            if not (child := os.fork()):
                os._exit(number)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) * 2
        case 3:
            return number * 2 if end_a_child() == -15 else None
    return number * 2

def block(prompt):  # in a thread
    return in_a_child(int(prompt.split()[1])) if end_a_child() == -15 else None
"""
SLOW = "import anyio\nasync def answer(prompt):\n    await anyio.sleep({seconds})\n    return prompt\n"


@pytest.fixture
def place(request, tmp_path):
    with bench_for(request, tmp_path) as made:
        yield made


def enqueue(place: Bench, count: int, reference: str) -> None:
    added = place.run("enqueue", str(place.write_prompts(count)), "--worker", reference, "--batch", reference[-5:])
    assert added.returncode == 0, added.stderr


@ON_BOTH
def test_functions_that_fork_harm_neither_the_queue_nor_their_neighbours(place):
    (place.directory / "mine.py").write_text(FORKS)
    for reference in ("mine.py:answer", "mine.py:block"):
        enqueue(place, 8, reference)

    ended = place.run("worker", "--worker", "mine.py:answer", "--worker", "mine.py:block", "--until-empty")

    assert ended.returncode == 0, ended.stderr
    for name in ("nswer", "block"):
        assert [row["result"] for row in place.results(name)] == [number * 2 for number in range(8)]
    assert place.query("SELECT DISTINCT attempts FROM jobs") == [(1,)]
    assert "unavailable" not in ended.stderr
    assert place.run("db", "check").returncode == 0


@ON_BOTH
def test_a_worker_stops_with_a_sentence_when_a_newer_batchq_has_upgraded_the_queue(place):
    (place.directory / "mine.py").write_text(SLOW.format(seconds=0.3))
    enqueue(place, 200, "mine.py:answer")
    working = place.start("worker", "--worker", "mine.py:answer", "--concurrency", "4")
    wait_for(lambda: place.count("done") >= 4, "the first answers")

    set_version(place, SCHEMA_VERSION + 1)

    assert working.wait(30) == 1
    assert "upgrade batchq here, and start this process again" in place.errors(working)
    assert "Traceback" not in place.errors(working)
    left = place.query("SELECT id, state, token, attempts FROM jobs ORDER BY id")
    refused = place.run("worker", "--worker", "mine.py:answer", "--until-empty")
    assert (refused.returncode, "newer batchq" in refused.stderr) == (1, True)
    assert place.query("SELECT id, state, token, attempts FROM jobs ORDER BY id") == left


def set_version(place: Bench, version: int) -> None:
    with connect(place.database) as raw:
        raw.execute("UPDATE meta SET value = ? WHERE name = 'schema_version'", [str(version)])


def test_a_row_that_cannot_be_read_fails_alone_among_those_that_were_claimed_with_it(place):
    with running_provider() as provider:
        added = place.run("enqueue", str(place.write_prompts(16)), "--model", "m")
        assert added.returncode == 0, added.stderr
        with connect(place.database) as raw:  # as somebody may by hand
            raw.execute("UPDATE jobs SET payload = '{' WHERE position = 0")

        ended = place.run("worker", "--base-url", provider.base_url, "--until-empty")

        assert ended.returncode == 0, ended.stderr
        rows = place.results("prompts")
        assert [row["state"] for row in rows] == ["failed"] + ["done"] * 15
        assert (rows[0]["error"]["class"], rows[0]["attempts"]) == ("bad_row", 1)
        assert provider.ledger()["calls"] == 15


@pytest.mark.anyio
async def test_who_starts_again_with_the_same_pid_is_somebody_else(store, location, clock):
    await fill(store, 1)
    before, after = (Runner(store, {}, {"default": Endpoint("default", "http://x/v1")}, RunnerOptions()) for _ in "ab")
    assert before.identity.pid == after.identity.pid == os.getpid()
    assert before.identity.host == after.identity.host
    assert before.identity.id != after.identity.id
    first, second = Hand(store, before.identity.id), Hand(store, after.identity.id)
    (claim,) = await first.claim()
    first.forget()
    async with await open_queue(location, clock) as fresh:
        second.store = fresh
        assert await second.claim(adopt=True) == ()
        clock.advance(LEASE_MS)
        (again,) = await second.claim(adopt=True)
    assert again.token > claim.token
    assert (await first.settle(done(claim))).late == 1
    assert job_row(store, claim.job_id)["claimed_by"] == after.identity.id
