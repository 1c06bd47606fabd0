"""Watching a batch, why it waits, and its ordered output."""

import asyncio
import json
import time
from contextlib import closing
from dataclasses import replace

import pytest
from completing import RUNNER, end_jobs, fail_odd, with_store

from batchq.collecting import Output, check_output, collect, write_results
from batchq.coordinator import Pace, wait_until_finished, watch
from batchq.display.progress import show_progress
from batchq.errors import Purged, TimedOutWaiting, UnknownBatch, UsageError
from batchq.jobs import Batch, BatchState, Counts, Lane, NewBatch, NewJob, Progress, RunnerInfo, Usage
from batchq.store import open_store, operate
from batchq.waiting import why_waiting

NOW = 1_800_000_000_000
DB = "/queue/runs.db"
OPEN = Batch(1, "demo", "echo", "default", "", {}, 0, 8, 1000, None, BatchState.OPEN, 10, NOW, NOW, NOW)
IDLE = RunnerInfo("r", "host", 1, 16, 0, "echo,openrouter", NOW, NOW, live=True)
HALTED = Lane("echo", "http://x/v1", "m", None, NOW, NOW + 5000, "no credit")
THROTTLED = Lane("echo", "http://x/v1", "m", NOW + 60_000, None, None, "slow down")


def progress(batch=OPEN, counts=None, *, finished=False, due=NOW, runners=(IDLE,), lanes=(), leased=None):
    counts = counts or Counts(pending=4, done=6)
    return Progress(batch, counts, finished, NOW, Usage(), None, 0, 0, due, tuple(runners), tuple(lanes), leased)


async def fill(store, count, name="demo", *, seal=True):
    batch = await store.open_batch(NewBatch(name, "echo"))
    await store.add_jobs(batch, [NewJob(i, f"id{i}", f"k{i}", json.dumps(f"prompt {i}")) for i in range(count)])
    if seal:
        await store.seal(batch)
    return batch


@pytest.fixture
def database(location):
    return location


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        (progress(finished=True), None),
        (progress(), None),
        (progress(runners=()), "no live worker serves echo: start one with `batchq worker --db /queue/runs.db`"),
        (progress(replace(OPEN, worker="m.py:f"), runners=()), "`batchq worker --worker m.py:f --db"),
        (progress(runners=[replace(IDLE, serves="openrouter")]), "(those at work serve openrouter)"),
        (replace(progress(runners=()), away="no"), "the database is away (no); asking again"),
        (progress(replace(OPEN, state=BatchState.PAUSED)), "paused: `batchq resume demo --db /queue/runs.db`"),
        (progress(replace(OPEN, state=BatchState.CANCELLED)), "cancelled: its last 4 jobs"),
        (progress(replace(OPEN, sealed_at=None, enqueue_until=NOW + 1), Counts(done=6)), "a producer is still adding"),
        (progress(replace(OPEN, sealed_at=None), Counts(done=6)), "or, if all is there, `batchq seal demo --db"),
        (progress(replace(OPEN, sealed_at=None)), None),
        (progress(lanes=[HALTED]), "halted at http://x/v1 (m, worker echo): no credit; when that is mended, `batchq resume demo"),
        (progress(lanes=[THROTTLED]), ": slow down"),
        (progress(lanes=[replace(THROTTLED, paused_until=NOW - 1)]), None),
        (progress(due=NOW + 60_000), "all 4 jobs left are delayed by an earlier failure, the first until"),
        (progress(counts=Counts(pending=1), due=NOW + 60_000), "the last job is delayed"),
        (progress(counts=Counts(pending=1, inflight=1), due=NOW + 60_000, leased=NOW + 1), None),
        (progress(replace(OPEN, state=BatchState.PURGING)), "being purged, by somebody else or half-way: `batchq purge"),
        # The lane of a server that no process calls any more says nothing about those that run.
        (progress(counts=Counts(pending=3, inflight=1), leased=NOW + 1, lanes=[HALTED]), None),
        (progress(due=NOW + 60_000, lanes=[HALTED]), "all 4 jobs left are delayed"),
        (progress(lanes=[replace(HALTED, probe_at=NOW - 60_000)]), None),
        # A lease that ran out is nobody's: what keeps its job is said.
        (progress(counts=Counts(inflight=1), due=None, leased=NOW, lanes=[HALTED]), "halted at http://x/v1 (m, worker echo)"),
        (progress(runners=[replace(IDLE, in_flight=16)]), "the live workers are busy with other batches"),
        (progress(replace(OPEN, endpoint="mine")), "may not name the endpoint 'mine'"),
    ],
)  # fmt: skip
def test_what_waits_says_why(where, reason):
    said = why_waiting(where, DB)
    assert said == reason if reason is None else reason in said


def test_throttled_says_until_when():
    until = time.strftime("%H:%M:%S", time.localtime((NOW + 60_000) / 1000))
    assert f"{until} at http://x/v1 (m, worker echo): slow down" in why_waiting(progress(lanes=[THROTTLED]), DB)


def test_pace_is_that_of_the_last_half_minute():
    pace = Pace()
    assert pace.per_second is None
    for second in range(100):
        done = min(second, 60) * 10
        pace.note(progress(counts=Counts(pending=1000 - done, done=done)), now=float(second))
        if second == 50:
            assert pace.per_second == pytest.approx(10)
            assert pace.seconds_left(progress(counts=Counts(pending=500, done=500))) == pytest.approx(50)
    assert pace.per_second == 0
    assert pace.seconds_left(progress()) is None


def test_pace_starts_anew_after_a_retry():
    pace = Pace()
    pace.note(progress(counts=Counts(done=10)), now=0.0)
    pace.note(progress(counts=Counts(pending=5, done=5)), now=1.0)
    assert pace.per_second is None


def test_pace_does_not_count_the_time_that_the_database_was_away():
    pace = Pace()
    for second in range(10):
        pace.note(progress(counts=Counts(pending=90, done=second)), now=float(second))
    pace.note(replace(progress(), away="no"), now=10.0)
    assert pace.per_second is None
    pace.note(progress(counts=Counts(pending=50, done=10)), now=70.0)
    assert pace.per_second is None
    pace.note(progress(counts=Counts(pending=50, done=12)), now=71.0)
    assert pace.per_second == 2


@pytest.mark.parametrize("every", [None, 1])
def test_where_lines_are_written_an_outage_and_its_end_are_told_once(capsys, every):
    with show_progress(DB, every=every) as update:
        update(progress(counts=Counts(pending=4, done=6)))
        capsys.readouterr()
        for _ in range(3):
            update(replace(progress(counts=Counts(pending=4, done=6)), away="Connection refused"))
        assert capsys.readouterr().err == "batchq: the database is away (Connection refused); asking again\n"
        update(progress(counts=Counts(pending=4, done=6)))
        assert capsys.readouterr().err == "batchq: the database is back\n"
        update(progress(counts=Counts(pending=4, done=6)))
        assert capsys.readouterr().err == ""


def test_watch_notices_a_change_at_once_and_ends_when_finished(database):
    async def main():
        async with await open_store(str(database), create=True) as ours, await open_store(str(database)) as theirs:
            await fill(ours, 3)
            seen = []

            async def look():
                async for moment in watch(ours, "demo"):
                    at = time.monotonic()
                    seen.append((at, moment.counts.done, moment.finished))

            task = asyncio.create_task(look())
            while not seen:
                await asyncio.sleep(0.01)
            changed = time.monotonic()
            await end_jobs(theirs)
            await asyncio.wait_for(task, 5)
            assert seen[0][1:] == (0, False)
            assert seen[-1][1:] == (3, True)
            # What a runner settles wakes nobody on PostgreSQL, since each notice costs its whole server: readers poll.
            assert seen[-1][0] - changed < (0.8 if ours.file is not None else 2.0)

    asyncio.run(main())


def test_one_that_watches_takes_no_news_from_another(database):
    """A runner and a progress display share a store: each hears of every commit."""

    async def main(store):
        await fill(store, 1, seal=False)
        with closing(store.watch()) as runner:
            display = watch(store, "demo")
            await anext(display)
            await fill(store, 2, seal=False)
            await anext(display)
            assert runner.changed()
            assert not runner.changed()
            await display.aclose()

    with_store(database, main)


def test_results_come_in_input_order_whole_and_twice_the_same(database, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text('{"custom_id":null,"position":0,"state":"done"}\n')

    async def main(store):
        await fill(store, 1201)
        await end_jobs(store, fail_odd)
        first = await collect(store, "demo", Output(out))
        return first, out.read_bytes(), await collect(store, "demo", Output(out)), out.read_bytes()

    first, bytes_once, _, bytes_twice = with_store(database, main)
    assert bytes_once == bytes_twice
    lines = [json.loads(line) for line in bytes_once.splitlines()]
    assert [line["position"] for line in lines] == list(range(1201))
    assert [line["custom_id"] for line in lines[:2]] == ["id0", "id1"]
    assert (lines[0]["state"], lines[0]["result"], lines[0]["attempts"]) == ("done", "answer 0", 1)
    assert lines[0]["usage"]["output_tokens"] == 5
    assert (lines[1]["state"], lines[1]["error"]["class"]) == ("failed", "bad_request")
    assert first.counts == Counts(done=601, failed=600)
    assert [(group.error_class, group.count, group.example_position) for group in first.errors] == [
        ("bad_request", 600, 1)
    ]
    assert [path.name for path in tmp_path.glob("*.tmp")] == []


def test_without_waiting_it_writes_what_there_is(database, tmp_path):
    out = tmp_path / "out.jsonl"

    async def main(store):
        await fill(store, 5)
        await end_jobs(store, at_most=2)
        return await write_results(store, "demo", Output(out, with_prompt=True))

    found = with_store(database, main)
    assert found.counts == Counts(done=2, pending=3)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 5
    assert lines[4]["prompt"] == "prompt 4"


def test_waiting_ends_with_the_reason_when_its_time_is_up(database, tmp_path):
    out = tmp_path / "out.jsonl"

    async def main(store):
        await fill(store, 2)
        with pytest.raises(TimedOutWaiting, match="0 of 2 jobs have ended; no live worker"):
            await collect(store, "demo", Output(out), wait_timeout=0.05)

    with_store(database, main)
    assert not out.exists()


def test_half_a_batch_is_not_taken_for_a_whole(database):
    async def main(store):
        batch = await fill(store, 2, seal=False)
        await store.register(RUNNER)
        await end_jobs(store)
        with pytest.raises(TimedOutWaiting, match="a producer is still adding"):
            await wait_until_finished(store, "demo", wait_timeout=0.05)
        await store.seal(batch)
        return await wait_until_finished(store, "demo", wait_timeout=5)

    assert with_store(database, main).finished


def test_a_cancelled_batch_is_finished_even_if_it_was_never_complete(database):
    async def main(store):
        batch = await fill(store, 2, seal=False)
        await store.cancel(batch)
        assert (await store.unfinished()).unsealed == ()
        return await wait_until_finished(store, "demo", wait_timeout=5)

    assert with_store(database, main).counts == Counts(cancelled=2)


def test_a_batch_that_is_half_purged_is_never_collected(database, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    monkeypatch.setattr(operate, "CHUNK_ROWS", 3)

    async def main(store):
        batch = await fill(store, 8)
        await end_jobs(store)
        assert await store._write(lambda tx: operate.purge_chunk(tx, batch.id)) == 3
        assert not (await store.progress("demo")).finished
        with pytest.raises(Purged, match="is being purged"):
            await collect(store, "demo", Output(out), wait_timeout=5)
        with pytest.raises(Purged, match="is being purged"):
            await write_results(store, "demo", Output(out))
        assert await store.purge(batch) == 5
        assert await store.find_batch("demo") is None

    with_store(database, main)
    assert not out.exists()


def test_a_batch_that_is_purged_while_it_is_collected_leaves_no_file(database, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    monkeypatch.setattr(operate, "CHUNK_ROWS", 300)

    async def main(store):
        batch = await fill(store, 1200)
        await end_jobs(store)
        page, reads = store._database.read, 0

        async def read(body, **options):
            nonlocal reads
            reads += 1
            if reads == 4:  # its progress, whether it has ids, and the first page were read
                await store.purge(batch)
            return await page(body, **options)

        store._database.read = read
        with pytest.raises(Purged, match="500 of 1,200 are left"):
            await write_results(store, "demo", Output(out))

    with_store(database, main)
    assert not out.exists()


def test_an_unknown_batch_suggests_the_nearest(database):
    async def main(store):
        await fill(store, 1, "prompts")
        with pytest.raises(UnknownBatch, match="did you mean 'prompts'"):
            await wait_until_finished(store, "promts", wait_timeout=5)

    with_store(database, main)


def test_results_replace_results_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    check_output(Output(path))
    for harmless in ("", '{"custom_id":null,"position":0,"state":"done"}\n', '{"custom_id":"a\\"b","position":12,'):
        path.write_text(harmless)
        check_output(Output(path))
    for precious in ("prompts", '{"custom_id": "a", "method": "POST"}\n', '{"prompt": "x"}\n', "\n"):
        path.write_text(precious)
        with pytest.raises(UsageError, match="--force"):
            check_output(Output(path))
        check_output(Output(path), overwrite=True)
    with pytest.raises(UsageError, match="a directory"):
        check_output(Output(tmp_path))
    with pytest.raises(UsageError, match="does not exist"):
        check_output(Output(tmp_path / "no" / "file"))
