"""The disk is full: commands say so and can be run again; a worker holds what it has, calls no more, and goes on by itself."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import forked
import pytest
from fake_provider import Provider, running_provider
from processes import Bench, bench, wait_for
from store_driver import Hand, check_tallies, done, fill, job_row, log_of, new_jobs, open_queue

from batchq.errors import DatabaseUnavailable
from batchq.jobs import NewBatch
from batchq.store import Store

JOBS = 40
SLOTS = 4
FULL = "can't grow: database or disk is full; what was stored before is whole: make room on the disk"


# What a store says


async def limit_pages(store: Store, more: int | None) -> None:
    """Let the database grow by so many pages; by all that there are if None."""

    def limit(connection) -> None:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        most = 2**31 if more is None else pages + more
        connection.exec_driver_sql(f"PRAGMA max_page_count={most}")

    await store._database._writer.call(limit)


@pytest.mark.anyio
async def test_a_full_database_refuses_to_take_in_jobs_and_takes_them_when_there_is_room(path, clock):
    async with await open_queue(path, clock) as store:
        batch = await store.open_batch(NewBatch("demo", "echo"))
        await limit_pages(store, 4)
        with pytest.raises(DatabaseUnavailable, match=FULL):
            for start in range(0, 2_000, 50):
                await store.add_jobs(batch, new_jobs(50, start))
        there = (await store.batch("demo")).size
        assert 0 < there < 2_000
        assert there % 50 == 0, "half a chunk was written"

        await limit_pages(store, None)
        await fill(store, 2_000)
        assert (await store.batch("demo")).size == 2_000
        await check_tallies(store, batch)


@pytest.mark.anyio
async def test_a_full_database_claims_and_settles_nothing_and_charges_nothing_for_it(path, clock):
    async with await open_queue(path, clock) as store:
        batch = await fill(store, 200)
        hand = Hand(store)
        (claim,) = await hand.claim(1)
        await limit_pages(store, 0)

        answers = [done(claim, "x" * 50_000)]
        for _ in range(3):
            with pytest.raises(DatabaseUnavailable, match=FULL):
                await hand.send(hand.request(answers, slots=1))
        row = job_row(store, claim.job_id)
        assert (row["state"], row["attempts"], row["token"]) == ("inflight", 1, claim.token)
        assert log_of(store, claim.job_id) == []
        assert (await store.progress("demo")).counts.inflight == 1, "a job was claimed that could not be settled"

        await limit_pages(store, None)
        reply = await hand.send(hand.request(answers, slots=1))
        assert (len(reply.claims), job_row(store, claim.job_id)["state"]) == (1, "done")
        await check_tallies(store, batch)


# What processes do


def limit(process: subprocess.Popen, size: int | None) -> None:
    """Bound the size of the files that a process writes, or let it write on."""
    most = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most if size is None else size, most))


@pytest.fixture
def provider() -> Iterator[Provider]:
    with running_provider(latency=0.05) as running:
        yield running


def log_lines(place: Bench, process: subprocess.Popen, event: str) -> list[dict]:
    lines = [json.loads(line) for line in place.errors(process).splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


def judge(place: Bench, provider: Provider, jobs: int = JOBS) -> None:
    """Each job was asked once and charged one attempt, and all are done."""
    assert place.query("SELECT state, attempts, count(*) FROM jobs GROUP BY 1, 2") == [("done", 1, jobs)]
    assert place.query("SELECT outcome, charged, late, count(*) FROM attempts GROUP BY 1, 2, 3") == [
        ("succeeded", 1, 0, jobs)
    ]
    ledger = provider.ledger(prompts=True)
    assert (ledger["calls"], len(ledger["prompts"])) == (jobs, jobs)


def full_for_a_worker(
    place: Bench, provider: Provider, fill_up: Callable[[subprocess.Popen], Callable[[], None]]
) -> None:
    """Let a worker run into a full disk, see what it does then, make room, and see it end."""
    worker = place.start("worker", "--base-url", provider.base_url, "-c", str(SLOTS), "--until-empty")
    wait_for(lambda: place.count("done") >= SLOTS, "the first answers")
    make_room = fill_up(worker)
    wait_for(lambda: log_lines(place, worker, "database.unavailable"), "a word about the disk")
    wait_for(lambda: provider.ledger()["in_flight"] == 0, "the end of the calls that were made by then")
    calls, finished = provider.ledger()["calls"], place.count("done")
    assert calls - finished <= SLOTS, "more was called than can be held"
    # It asks again and again meanwhile, and makes no call.
    told = len(log_lines(place, worker, "database.unavailable"))
    wait_for(lambda: len(log_lines(place, worker, "database.unavailable")) > told, "another try")
    assert provider.ledger()["calls"] == calls
    assert worker.poll() is None

    make_room()
    assert worker.wait(60) == 0
    first = log_lines(place, worker, "database.unavailable")[0]
    assert "make room" in first["reason"] or "look at the disk" in first["reason"]
    assert max(line["results_in_hand"] for line in log_lines(place, worker, "database.unavailable")) == calls - finished
    assert len(log_lines(place, worker, "database.back")) >= 1
    judge(place, provider)


def test_a_worker_that_may_write_no_more_holds_its_results_and_goes_on_when_it_may(tmp_path, provider):
    with bench(tmp_path) as place:
        place.write_prompts(JOBS)
        assert place.run("enqueue", "prompts.jsonl", "--batch", "demo", "--model", "m").returncode == 0

        def fill_up(worker: subprocess.Popen) -> Callable[[], None]:
            limit(worker, (tmp_path / "runs.db-wal").stat().st_size // 2)
            return lambda: limit(worker, None)

        full_for_a_worker(place, provider, fill_up)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system with little room."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(directory)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this user may mount nothing; the limit of a process stands for a full disk in the test before")
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def test_a_worker_on_a_full_disk_holds_its_results_and_goes_on_when_there_is_room(tmp_path, small_disk, provider):
    with bench(tmp_path, BATCHQ_DB=str(small_disk / "runs.db")) as place:
        place.write_prompts(JOBS)
        assert place.run("enqueue", "prompts.jsonl", "--batch", "demo", "--model", "m").returncode == 0
        ballast = small_disk / "ballast"

        def fill_up(_worker: subprocess.Popen) -> Callable[[], None]:
            with ballast.open("wb", buffering=0) as file:
                while True:
                    try:
                        file.write(bytes(4096))
                    except OSError:
                        break
            return ballast.unlink

        full_for_a_worker(place, provider, fill_up)


def enqueue_within(place: Bench, size: int, *arguments: str) -> subprocess.CompletedProcess:
    """Run `enqueue` in a process whose files may be so large and no larger."""
    limited = f"""
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
sys.argv = ["batchq", "enqueue", *{arguments!r}]
runpy.run_module("batchq", run_name="__main__")
"""
    return forked.run(
        [sys.executable, "-c", limited], cwd=place.directory, env=place.environment, text=True, timeout=60
    )


def test_enqueue_on_a_full_disk_says_so_and_may_be_run_again(tmp_path):
    with bench(tmp_path) as place:
        (tmp_path / "in.txt").write_text("".join(f"prompt {number} {'x' * 500}\n" for number in range(6_000)))
        command = ["in.txt", "--batch", "demo", "--model", "m"]
        refused = enqueue_within(place, 3_000_000, *command)
        assert refused.returncode == 1
        assert "look at the disk" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert refused.stdout == ""
        assert place.query("SELECT sealed_at FROM batches") == [(None,)]
        (half,) = place.query("SELECT count(*) FROM jobs")[0]
        assert 0 < half < 6_000

        again = place.run("enqueue", *command)
        assert again.returncode == 0, again.stderr
        assert place.query("SELECT size, sealed_at IS NOT NULL FROM batches") == [(6_000, 1)]
        assert place.query("SELECT count(*), count(DISTINCT position) FROM jobs") == [(6_000, 6_000)]


@pytest.mark.parametrize("rows", ["custom_ids", "keys"])
def test_enqueue_without_room_for_its_notes_says_so_and_writes_nothing(tmp_path, rows):
    with bench(tmp_path) as place:
        if rows == "custom_ids":
            lines = (f'{{"custom_id": "{number} {"x" * 300}", "prompt": "p"}}\n' for number in range(12_000))
            (tmp_path / "in.jsonl").write_text("".join(lines))
            refused = enqueue_within(place, 500_000, "in.jsonl", "--model", "m")
        else:
            (tmp_path / "in.txt").write_text("".join(f"{number}\n" for number in range(60_000)))
            refused = enqueue_within(place, 500_000, "in.txt", "--model", "m", "--dedupe")
        assert refused.returncode == 1
        assert "can't take notes about the input in the temporary directory" in refused.stderr
        assert "unexpected" not in refused.stderr
        assert place.query("SELECT count(*) FROM jobs") in ([], [(0,)])


def test_a_worker_that_is_stopped_on_a_full_disk_says_what_it_could_not_store(tmp_path, provider):
    with bench(tmp_path) as place:
        place.write_prompts(JOBS)
        assert place.run("enqueue", "prompts.jsonl", "--batch", "demo", "--model", "m").returncode == 0
        worker = place.start("worker", "--base-url", provider.base_url, "-c", str(SLOTS), "--drain-timeout", "1s")
        wait_for(lambda: place.count("done") >= SLOTS, "the first answers")
        limit(worker, (tmp_path / "runs.db-wal").stat().st_size // 2)
        wait_for(lambda: provider.ledger()["calls"] > place.count("done"), "an answer that can't be stored")
        wait_for(lambda: log_lines(place, worker, "database.unavailable"), "a word about the disk")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) in {75, 143}, place.errors(worker)
        lost = provider.ledger()["calls"] - place.count("done")
        assert log_lines(place, worker, "database.unavailable")[-1]["results_in_hand"] == lost
        assert [line["results"] for line in log_lines(place, worker, "results.lost")] == [lost]
