"""Rows that are written while their batch runs, by processes that die in the middle of a line."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import forked
import pytest
from completing import end_jobs, fail_odd, with_store
from fake_provider import running_provider
from processes import bench, wait_for

from batchq.collecting import Output, follow, write_results
from batchq.errors import Purged, TimedOutWaiting, UsageError
from batchq.jobs import Answered, Failed, NewBatch, NewJob, Reason, Succeeded, Usage
from batchq.store import open_store, operate

GROWING = ("jsonl", "csv", "tsv", "txt", "openai")
HARD = 'a"b,c\td\\n\r\ne\u2028é🜂'


@pytest.fixture
def database(tmp_path):
    return tmp_path / "queue.db"


def outcome(claim):
    if claim.position % 3 == 1:
        return Failed(Reason("bad_request", f"no {HARD}", 400))
    return Succeeded(Answered(json.dumps(f"{HARD} {claim.position}"), Usage(3, 5), cost=1_000_000))


async def fill(store, count, *, seal=True, start=0):
    batch = await store.open_batch(NewBatch("demo", "echo", model="m"))
    await store.add_jobs(
        batch, [NewJob(i, f"id{i}", f"k{i}", json.dumps(f"p{i}")) for i in range(start, start + count)]
    )
    if seal:
        await store.seal(batch)
    return batch


def finished(database: Path, count: int) -> None:
    async def main(store):
        await fill(store, count)
        await end_jobs(store, outcome)

    with_store(database, main)


def go_on(database: Path, output: Output, **options):
    return with_store(database, lambda store: follow(store, "demo", output, wait_timeout=20, **options))


def whole(database: Path, output: Output) -> bytes:
    """What a collect at the end writes."""
    with_store(database, lambda store: write_results(store, "demo", output))
    return output.path.read_bytes()


async def until(condition, what):
    try:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"waited in vain for {what}") from None


def test_rows_come_in_order_as_soon_as_all_before_them_are_final(database, tmp_path):
    out = tmp_path / "out.jsonl"

    def lines():
        return out.read_bytes().splitlines() if out.exists() else []

    async def main(store):
        await fill(store, 6, seal=False)
        seen = []
        async with await open_store(str(database)) as other:
            task = asyncio.create_task(follow(other, "demo", Output(out), on_progress=seen.append))
            await end_jobs(store, at_most=2)
            await until(lambda: len(lines()) == 2, "two lines")
            claims = await hold(store, 2)
            await end_jobs(store, at_most=1)
            await until(lambda: seen[-1].counts.done == 3, "a look at the third answer, which is ahead of others")
            assert len(lines()) == 2
            await give_back(store, claims)
            await end_jobs(store)
            await until(lambda: len(lines()) == 6, "six lines")
            assert not task.done()
            await store.seal(await store.batch("demo"))
            collected = await asyncio.wait_for(task, 10)
            assert (collected.written, collected.counts.done) == (6, 6)

    with_store(database, main)
    assert [json.loads(line)["position"] for line in lines()] == list(range(6))


async def hold(store, count):
    from completing import RUNNER

    from batchq.jobs import Serving, Wants
    from batchq.store import ExchangeRequest

    serving = (Serving("echo", "default", "http://127.0.0.1:1/v1", opened=True),)
    return (await store.exchange(ExchangeRequest(RUNNER, [], [], Wants(count, serving)))).claims


async def give_back(store, claims):
    from completing import RUNNER, succeed

    from batchq.jobs import Ended, Wants
    from batchq.settlement import settle
    from batchq.store import ExchangeRequest

    ended = [settle(Ended(claim, succeed(claim), 7)) for claim in claims]
    await store.exchange(ExchangeRequest(RUNNER, ended, [], Wants(0, ())))


@pytest.mark.parametrize("output_format", GROWING)
@pytest.mark.parametrize("with_errors", [True, False])
def test_a_file_that_was_cut_anywhere_is_gone_on_with(database, tmp_path, output_format, with_errors):
    finished(database, 9)
    errors, old_errors = (tmp_path / "errors", tmp_path / "old-errors") if with_errors else (None, None)
    expected = whole(database, Output(tmp_path / "whole", output_format, errors=old_errors))
    bad = old_errors.read_bytes() if with_errors else b""
    out = tmp_path / "out"
    lots = random.Random(3)
    for cut in sorted({0, 1, len(expected) - 1, len(expected), *lots.sample(range(len(expected)), 12)}):
        out.write_bytes(expected[:cut])
        if with_errors:
            errors.write_bytes(bad[: lots.randint(0, len(bad))])
        go_on(database, Output(out, output_format, errors=errors))
        assert out.read_bytes() == expected
        assert not with_errors or errors.read_bytes() == bad


def test_the_input_stands_beside_rows_that_are_gone_on_with(database, tmp_path):
    finished(database, 3)
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"p{i}", "custom_id": f"id{i}"}) + "\n" for i in range(3)))
    expected = whole(database, Output(tmp_path / "whole.csv", with_input=source))
    out = tmp_path / "out.csv"
    for cut in (0, 40, len(expected) - 7):
        out.write_bytes(expected[:cut])
        go_on(database, Output(out, with_input=source))
        assert out.read_bytes() == expected


@pytest.mark.parametrize("output_format", GROWING)
def test_another_file_is_refused_with_its_line_and_stays_what_it_is(database, tmp_path, output_format):
    finished(database, 9)
    expected = whole(database, Output(tmp_path / "whole", output_format))
    out = tmp_path / "out"
    place = len(expected) // 2
    line = expected[:place].count(b"\n") + 1
    for content, reason in (
        (expected[:place] + b"?" + expected[place + 1 :], rf"out differs from the results of demo at line {line}:"),
        (expected + b"more\n", rf"goes on after the last row of demo, at line {expected.count(10) + 1}:"),
        (b"my only copy", "differs from the results of demo at line 1"),
    ):
        out.write_bytes(content)
        with pytest.raises(UsageError, match=reason):
            go_on(database, Output(out, output_format))
        assert out.read_bytes() == content
    go_on(database, Output(out, output_format), start_over=True)
    assert out.read_bytes() == expected


def test_a_job_that_ran_again_since_makes_another_file_of_it(database, tmp_path):
    out = tmp_path / "out.jsonl"
    finished(database, 3)
    go_on(database, Output(out))

    async def again(store):
        await store.retry(await store.batch("demo"))
        await end_jobs(store)

    with_store(database, again)
    with pytest.raises(UsageError, match="at line 2: it holds something else, or jobs have run again since"):
        go_on(database, Output(out))


def test_parquet_is_written_whole(database, tmp_path):
    finished(database, 1)
    with pytest.raises(UsageError, match="a Parquet file is written whole: --follow takes jsonl"):
        go_on(database, Output(tmp_path / "out.parquet"))


def test_what_has_not_come_in_time_is_told_and_what_has_stays(database, tmp_path):
    out = tmp_path / "out.jsonl"

    async def main(store):
        await fill(store, 3)
        await end_jobs(store, at_most=1)
        with pytest.raises(TimedOutWaiting, match="1 of 3 jobs have ended"):
            await follow(store, "demo", Output(out), wait_timeout=0.5)

    with_store(database, main)
    assert len(out.read_bytes().splitlines()) == 1


def test_an_empty_and_a_cancelled_batch_end(database, tmp_path):
    async def main(store):
        batch = await fill(store, 2, seal=False)
        await store.cancel(batch)
        collected = await follow(store, "demo", Output(tmp_path / "out.jsonl"), wait_timeout=5)
        assert collected.counts.cancelled == 2
        empty = await store.open_batch(NewBatch("empty", "echo"))
        await store.seal(empty)
        await follow(store, "empty", Output(tmp_path / "empty.csv"), wait_timeout=5)

    with_store(database, main)
    assert (tmp_path / "empty.csv").read_bytes().startswith(b"position,state,")


def test_a_batch_that_is_being_purged_is_no_whole(database, tmp_path, monkeypatch):
    monkeypatch.setattr(operate, "CHUNK_ROWS", 3)

    async def main(store):
        batch = await fill(store, 8)
        await end_jobs(store)
        await store._write(lambda tx: operate.purge_chunk(tx, batch.id))
        with pytest.raises(Purged, match="is being purged"):
            await follow(store, "demo", Output(tmp_path / "out.jsonl"), wait_timeout=5)

    with_store(database, main)


def test_a_pipe_gets_each_row_at_once(database, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received = []
    seen = threading.Event()

    def read():
        with pipe.open("rb") as file:
            received.append(file.readline())
            seen.set()
            received.extend(file)

    reader = threading.Thread(target=read)
    reader.start()

    async def main(store):
        await fill(store, 2)
        await end_jobs(store, at_most=1)
        task = asyncio.create_task(follow(store, "demo", Output(pipe), wait_timeout=20))
        await until(seen.is_set, "the first row")
        await end_jobs(store)
        await task

    with_store(database, main)
    reader.join()
    assert [json.loads(line)["position"] for line in received] == [0, 1]


def test_a_follower_that_is_killed_in_the_middle_of_a_line_loses_and_doubles_nothing(tmp_path):
    """Real processes: the first follower is killed while the batch runs, and its last line torn; the next goes on."""
    with bench(tmp_path) as place, running_provider(latency=0.02, spread=0.02) as provider:
        count = 400
        done = place.run("enqueue", str(place.write_prompts(count)), "--model", "m", "--batch", "demo")
        assert done.returncode == 0, done.stderr
        out = tmp_path / "out.jsonl"
        place.start("worker", "--base-url", provider.base_url, "--concurrency", "8", "--until-empty")
        follower = place.start("collect", "demo", "-o", "out.jsonl", "--follow")
        size = 0
        for _ in range(3):
            wait_for(lambda least=size + 2_000: out.exists() and out.stat().st_size > least, "the file to grow")
            follower.kill()
            follower.wait(10)
            size = out.stat().st_size
            if out.read_bytes().endswith(b"\n"):
                os.truncate(out, size - 17)
            follower = place.start("collect", "demo", "-o", "out.jsonl", "--follow")
        assert follower.wait(60) == 0, place.errors(follower)
        assert f"wrote {count} lines to out.jsonl" in place.errors(follower)
        positions = [json.loads(line)["position"] for line in out.read_bytes().splitlines()]
        assert positions == list(range(count))
        assert place.run("collect", "demo", "-o", "whole.jsonl").returncode == 0
        assert (tmp_path / "whole.jsonl").read_bytes() == out.read_bytes()


def test_the_command_line_follows_to_standard_output_and_stops_at_a_signal(tmp_path):
    with bench(tmp_path) as place:
        place.write_prompts(3, "demo.jsonl")
        assert place.run("enqueue", "demo.jsonl", "--worker", "echo").returncode == 0
        with_store(place.database, lambda store: end_jobs(store, fail_odd, at_most=2))
        command = [sys.executable, "-m", "batchq", "collect", "demo", "--follow", "--format", "csv"]
        with forked.Popen(command, cwd=tmp_path, env=place.environment, stdout=subprocess.PIPE) as process:
            place.started.append(process)
            lines = [process.stdout.readline().decode().split(",")[:2] for _ in range(3)]
            assert lines == [["position", "state"], ["0", "done"], ["1", "failed"]]
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            assert process.returncode == 130
        for wrong, reason in (
            (["--no-wait"], "--follow waits for the batch"),
            (["--format", "parquet", "-o", "x"], "is written whole"),
        ):
            done = place.run("collect", "demo", "--follow", *wrong)
            assert (done.returncode, reason in done.stderr) == (2, True), done.stderr
