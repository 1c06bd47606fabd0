"""Real worker processes, killed, stopped and started, with the provider's ledger as the judge."""

import json
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress

import pytest
from fake_provider import running_provider
from processes import ON_BOTH, Bench, bench_for, wait_for

from batchq.schema import SCHEMA_VERSION


@pytest.fixture
def place(request, tmp_path):
    with bench_for(request, tmp_path) as made:
        yield made


def enqueue(place: Bench, count: int, *options: str, name: str = "prompts") -> None:
    done = place.run("enqueue", str(place.write_prompts(count, f"{name}.jsonl")), "--model", "m", *options)
    assert done.returncode == 0, done.stderr


def _runners(path) -> int:
    """Count the registered workers of a queue that may not be there yet."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as queue:
        return queue.execute("SELECT count(*) FROM runners").fetchone()[0]
    return 0


def worker(place: Bench, provider, *options: str) -> subprocess.Popen:
    return place.start("worker", "--base-url", provider.base_url, *options)


@ON_BOTH
def test_four_workers_one_killed_one_stopped_lose_and_double_nothing(place):
    with running_provider(latency=0.2, spread=0.1) as provider:
        jobs = 800
        enqueue(place, jobs)
        workers = [worker(place, provider, "--concurrency", "16", "--lease", "3s") for _ in range(4)]
        wait_for(lambda: place.count("done") >= 200, "the first 200 answers")
        wait_for(lambda: place.held_by(workers[0]) >= 8, "calls in flight in the worker to be killed")
        workers[0].kill()
        workers[1].send_signal(signal.SIGTERM)

        rows = place.results("prompts")

        assert workers[1].wait(30) == 0
        assert [row["position"] for row in rows] == list(range(jobs))
        assert {row["state"] for row in rows} == {"done"}
        assert [row["result"] for row in rows] == [f"echo: prompt {i}" for i in range(jobs)]
        ledger = provider.ledger(prompts=True)
        assert len(ledger["prompts"]) == jobs
        lost = place.query("SELECT count(*) FROM attempts WHERE outcome = 'lost'")[0][0]
        assert ledger["calls"] - jobs <= lost <= 16
        assert place.query("SELECT max(attempts), count(*) FROM jobs WHERE attempts > 2")[0] == (None, 0)


@ON_BOTH
def test_a_worker_stopped_past_its_lease_comes_back_too_late(place):
    with running_provider(latency=1.0) as provider:
        enqueue(place, 4)
        frozen = worker(place, provider, "--concurrency", "4", "--lease", "1s")
        wait_for(lambda: place.held_by(frozen) == 4, "four calls in flight")
        frozen.send_signal(signal.SIGSTOP)
        other = worker(place, provider, "--concurrency", "4", "--lease", "5s", "--until-empty")
        assert other.wait(60) == 0, place.errors(other)
        before = place.query("SELECT id, state, token, result, finished_at, claimed_by FROM jobs ORDER BY id")
        assert [row[1] for row in before] == ["done"] * 4

        frozen.send_signal(signal.SIGCONT)
        wait_for(
            lambda: place.query("SELECT count(*) FROM attempts WHERE late")[0][0] or "job.lost" in place.errors(frozen),
            "the late answers to be refused",
        )
        frozen.send_signal(signal.SIGTERM)

        assert frozen.wait(30) == 0
        assert place.query("SELECT id, state, token, result, finished_at, claimed_by FROM jobs ORDER BY id") == before
        assert place.query("SELECT count(*) FROM attempts WHERE outcome = 'lost'")[0][0] == 4
        assert {
            tuple(row.items()) for row in ({"calls": n} for n in provider.ledger(prompts=True)["prompts"].values())
        } == {(("calls", 2),)}


@ON_BOTH
def test_a_worker_stopped_past_its_lease_is_believed_if_nobody_took_over(place):
    with running_provider(latency=0.5) as provider:
        enqueue(place, 4)
        frozen = worker(place, provider, "--concurrency", "4", "--lease", "1s", "--until-empty")
        wait_for(lambda: place.held_by(frozen) == 4, "four calls in flight")
        frozen.send_signal(signal.SIGSTOP)
        time.sleep(2)
        frozen.send_signal(signal.SIGCONT)

        assert frozen.wait(30) == 0
        assert place.count("done") == 4
        assert provider.ledger()["calls"] == 4


@ON_BOTH
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_second_signal_releases_at_once_and_charges_nothing(place, number, code):
    with running_provider() as provider:
        provider.behave(latency=60)
        enqueue(place, 10)
        stopped = worker(place, provider, "--concurrency", "4")
        wait_for(lambda: place.held_by(stopped) == 4, "four calls in flight")
        stopped.send_signal(number)
        wait_for(lambda: "stopping" in place.errors(stopped), "the first signal to be heard")
        stopped.send_signal(number)

        assert stopped.wait(20) == code
        assert place.query("SELECT DISTINCT state, attempts FROM jobs") == [("pending", 0)]


# What closes last, a connection to a server far away, may take its time.
CLOSES_SLOWLY = """
import asyncio, sys, time
from batchq.process import run_until_signalled
from batchq.runner import Runner, RunnerOptions
from batchq.store import open_store

async def main():
    async with await open_store("runs.db", create=True) as store:
        code = await run_until_signalled(Runner(store, {}, {}, RunnerOptions()), print)
    print("closing", code, flush=True)
    time.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_comes_while_it_closes_ends_it_with_its_code_not_by_the_signal(tmp_path, number, code):
    running = subprocess.Popen(
        [sys.executable, "-u", "-c", CLOSES_SLOWLY], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        wait_for(lambda: _runners(tmp_path / "runs.db"), "its runner")
        running.send_signal(number)
        wait_for(lambda: "closing 0" in running.stdout.readline(), "it to close")
        running.send_signal(number)

        assert running.wait(20) == code
    finally:
        running.kill()
        running.communicate()


@ON_BOTH
def test_the_drain_deadline_ends_with_75(place):
    with running_provider() as provider:
        provider.behave(latency=60)
        enqueue(place, 10)
        stopped = worker(place, provider, "--concurrency", "4", "--drain-timeout", "1s")
        wait_for(lambda: place.held_by(stopped) == 4, "four calls in flight")
        stopped.send_signal(signal.SIGTERM)

        assert stopped.wait(20) == 75
        assert place.query("SELECT DISTINCT state, attempts FROM jobs") == [("pending", 0)]


@ON_BOTH
def test_a_drained_worker_ends_with_0(place):
    with running_provider(latency=1.0) as provider:
        enqueue(place, 10)
        stopped = worker(place, provider, "--concurrency", "4")
        wait_for(lambda: place.held_by(stopped) == 4, "four calls in flight")
        stopped.send_signal(signal.SIGTERM)

        assert stopped.wait(20) == 0
        assert (place.count("done"), place.count("pending")) == (4, 6)


# Several connections each, of the hundred that a PostgreSQL server has.
@pytest.mark.parametrize(("place", "starts"), [("sqlite", 50), ("postgresql", 16)], indirect=["place"])
def test_many_workers_start_at_once_on_an_empty_directory(place, starts):
    workers = [place.start("worker", "--worker", "echo", "--until-empty") for _ in range(starts)]

    codes = [process.wait(180) for process in workers]

    assert codes == [0] * starts, [
        place.errors(process)[-300:] for process, code in zip(workers, codes, strict=True) if code
    ]
    assert place.query("SELECT value FROM meta WHERE name = 'schema_version'") == [(str(SCHEMA_VERSION),)]
    assert place.query("SELECT count(*) FROM runners") == [(starts,)]


POISON = """
import os, signal, anyio
async def answer(prompt):
    if prompt == "prompt 3":
        os.kill(os.getpid(), signal.SIGKILL)
    await anyio.sleep(0.05)
    return prompt.upper()
"""


def test_a_job_that_kills_its_worker_fails_alone(place):
    (place.directory / "mine.py").write_text(POISON)
    enqueue(place, 16, "--worker", "mine.py:answer", "--max-attempts", "3")
    deaths = 0
    deadline = time.monotonic() + 120
    while place.count("pending") + place.count("inflight") and time.monotonic() < deadline:
        process = place.start("worker", "--worker", "mine.py:answer", "--until-empty", "--lease", "1s")
        code = process.wait(60)
        assert code in {0, -signal.SIGKILL}, place.errors(process)
        deaths += code == -signal.SIGKILL

    rows = {row["position"]: row for row in place.results("prompts")}
    assert rows.pop(3)["error"]["class"] == "worker_died"
    assert {row["state"] for row in rows.values()} == {"done"}
    assert deaths == 3


def test_a_missing_key_is_said_before_anything_is_claimed(place):
    enqueue(place, 3)

    done = place.run("worker", "--until-empty", "--base-url", "https://api.example.com/v1")

    assert done.returncode == 78
    assert "OPENAI_API_KEY" in done.stderr
    assert "Traceback" not in done.stderr
    assert place.query("SELECT DISTINCT state, attempts, token FROM jobs") == [("pending", 0, 0)]


def test_a_function_of_the_current_directory_is_a_worker(place):
    (place.directory / "shout.py").write_text("async def shout(prompt):\n    return prompt.upper()\n")
    for reference in ("shout:shout", "shout.py:shout"):
        name = reference.replace(":", "-")
        enqueue(place, 5, "--worker", reference, name=name)
        done = place.run("worker", "--worker", reference, "--until-empty")
        assert done.returncode == 0, done.stderr
        assert [row["result"] for row in place.results(name)] == [f"PROMPT {i}" for i in range(5)]


def test_a_worker_says_where_it_works_and_what_it_serves(place):
    enqueue(place, 3)
    done = place.run("worker", "--worker", "echo", "--until-empty")
    assert done.returncode == 0
    assert str(place.database) in done.stderr
    assert "prompts" in done.stderr

    empty = place.run("worker", "--worker", "echo", "--until-empty", "--db", "other.db")
    assert empty.returncode == 0
    assert "empty" in empty.stderr


@ON_BOTH
def test_a_worker_picks_up_what_is_enqueued_while_it_waits(place):
    with running_provider() as provider:
        waiting = worker(place, provider)
        wait_for(lambda: place.query("SELECT 1 FROM runners"), "the worker to start")
        enqueue(place, 50)

        rows = place.results("prompts")

        assert [row["result"] for row in rows] == [f"echo: prompt {i}" for i in range(50)]
        waiting.send_signal(signal.SIGTERM)
        assert waiting.wait(20) == 0


def test_run_is_interrupted_and_resumed(place):
    with running_provider(latency=0.2) as provider:
        prompts = place.write_prompts(100)
        command = ["run", str(prompts), "-o", "out.jsonl", "--model", "m", "--base-url", provider.base_url]
        first = place.start(*command, "--concurrency", "4")
        wait_for(lambda: place.count("done") >= 8, "the first answers")
        first.send_signal(signal.SIGINT)
        assert first.wait(30) == 130
        assert not (place.directory / "out.jsonl").exists()

        second = place.run(*command)

        assert second.returncode == 0, second.stderr
        rows = [json.loads(line) for line in (place.directory / "out.jsonl").read_text().splitlines()]
        assert [row["result"] for row in rows] == [f"echo: prompt {i}" for i in range(100)]
        assert provider.ledger()["calls"] == 100

        third = place.run(*command)
        assert third.returncode == 0
        assert provider.ledger()["calls"] == 100


@ON_BOTH
def test_run_killed_hard_finishes_when_run_again(place):
    with running_provider(latency=0.2) as provider:
        prompts = place.write_prompts(60)
        command = ["run", str(prompts), "-o", "out.jsonl", "--model", "m", "--base-url", provider.base_url]
        command += ["--concurrency", "8", "--lease", "1s"]
        first = place.start(*command)
        wait_for(lambda: place.count("done") >= 8, "the first answers")
        first.kill()
        first.wait()

        second = place.run(*command)

        assert second.returncode == 0, second.stderr
        assert len((place.directory / "out.jsonl").read_text().splitlines()) == 60
        assert provider.ledger()["calls"] <= 60 + 8


def test_enqueue_says_which_row_of_a_changed_input_differs(place):
    prompts = place.write_prompts(5)
    command = ["enqueue", str(prompts), "--worker", "echo"]
    assert place.run(*command).returncode == 0
    prompts.write_text(prompts.read_text().replace("prompt 2", "prompt two"))

    done = place.run(*command)

    assert done.returncode == 2
    assert "prompts.jsonl:3" in done.stderr
    assert "--batch" in done.stderr
