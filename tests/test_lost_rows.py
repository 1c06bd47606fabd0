"""A batch that is deleted while it is read: whoever reads it is told, and gets no part for a whole."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from importlib import import_module

import pytest

from batchq import export_jsonl, open_queue, prompt_map, prompt_stream
from batchq.collecting import Output, whole_results, write_results
from batchq.errors import CannotGoOn, Purged, UnknownBatch
from batchq.store import Store, operate

pytestmark = pytest.mark.anyio

CHUNK = 500  # that a purge takes at once; as much as a reader does
ROWS = 3 * CHUNK


@pytest.fixture(autouse=True)
def here(request, tmp_path, monkeypatch):
    """A directory whose queue is in a file there, or on PostgreSQL for tests that are marked ON_BOTH."""
    monkeypatch.chdir(tmp_path)
    on_postgres = getattr(request, "param", "sqlite") == "postgresql"
    monkeypatch.setenv("BATCHQ_DB", request.getfixturevalue("postgres_queue") if on_postgres else "runs.db")
    monkeypatch.setattr(operate, "CHUNK_ROWS", CHUNK)
    return tmp_path


ON_BOTH = pytest.mark.parametrize("here", ["sqlite", "postgresql"], indirect=True)


async def echo(prompt: str) -> str:
    return prompt


async def purge_a_part(store: Store, name: str = "b") -> None:
    batch = await store.batch(name)
    await store._write(partial(operate.purge_chunk, batch_id=batch.id))


async def complete(queue, prompts):
    await queue.enqueue(prompts, batch="b", worker=echo, dedupe=True)
    await queue.work(echo, concurrency=500)


@ON_BOTH
async def test_what_is_left_of_a_batch_is_not_exported(here):
    async with open_queue() as queue:
        await complete(queue, [f"p{i}" for i in range(ROWS)])
        (here / "out.jsonl").write_text("before\n")
        await purge_a_part(queue.store)
        with pytest.raises(Purged):
            await export_jsonl(out="out.jsonl")
        with pytest.raises(Purged):
            [row async for row in queue.results("b")]
    assert (here / "out.jsonl").read_text() == "before\n"


@pytest.fixture
def purged_after_a_page(monkeypatch):
    """Let somebody begin to delete a batch when the first row of it was read."""
    read = Store.results

    async def results(self, batch, **options):
        first = True
        async for result in read(self, batch, **options):
            yield result
            if first:
                await purge_a_part(self)
                await purge_a_part(self)
            first = False

    monkeypatch.setattr(Store, "results", results)


@pytest.mark.usefixtures("purged_after_a_page")
class TestDeletedWhileItIsRead:
    PROMPTS = tuple(f"p{i}" for i in range(ROWS))

    @pytest.mark.parametrize("shape", ["original", "unique"])
    @pytest.mark.parametrize("out", [None, "out.jsonl"])
    async def test_prompt_map(self, here, shape, out):
        call = {"worker": echo, "batch": "b", "output_shape": shape, "verbose": False, "concurrency": 500}
        with pytest.raises(Purged, match="somebody purges it"):
            await prompt_map(self.PROMPTS, **call, out=out)
        assert not (here / "out.jsonl").exists()

    @ON_BOTH
    async def test_readers_of_a_queue(self, here):
        async with open_queue() as queue:
            await complete(queue, self.PROMPTS)
            count = 0
            with pytest.raises(Purged, match="of 1,500 are left"):
                async for _ in queue.results("b"):
                    count += 1
            assert 0 < count < ROWS

    async def test_export(self, here):
        async with open_queue() as queue:
            await complete(queue, self.PROMPTS)
        with pytest.raises(Purged):
            await export_jsonl(out="out.jsonl")
        assert not (here / "out.jsonl").exists()

    async def test_a_file(self, here):
        async with open_queue() as queue:
            await complete(queue, self.PROMPTS)
            with pytest.raises(Purged):
                await write_results(queue.store, "b", Output(here / "out.csv"))
        assert not (here / "out.csv").exists()


@ON_BOTH
async def test_followers_of_a_job_that_is_gone_are_lost_too():
    async with open_queue() as queue:
        await complete(queue, [*(f"p{i}" for i in range(CHUNK)), "p0", "p1"])
        batch = await queue.store.batch("b")
        rows = []
        with pytest.raises(Purged):
            async for row in whole_results(queue.store, batch, most=CHUNK + 2):
                rows.append(row)
                if len(rows) == CHUNK:
                    await purge_a_part(queue.store)
        assert len(rows) == CHUNK + 2


@ON_BOTH
async def test_a_call_whose_batch_is_deleted_under_it_raises_what_it_found():
    started = asyncio.Event()

    async def hang(prompt: str) -> str:
        started.set()
        await asyncio.sleep(3600)
        return prompt

    call = asyncio.create_task(prompt_map(["a"], worker=hang, batch="b", verbose=False))
    await started.wait()
    async with open_queue() as queue:
        await queue.purge("b", force=True)
    with pytest.raises((Purged, UnknownBatch, CannotGoOn)):
        await asyncio.wait_for(call, 20)


async def test_what_runs_is_no_loss():
    async with open_queue() as queue:
        await queue.enqueue(["a", "b"], batch="b", worker=echo, seal=False)
        assert [row.state async for row in queue.results("b")] == ["pending", "pending"]


async def test_a_stream_tells_that_rows_are_lost(monkeypatch):
    module = import_module("batchq.api.prompt_stream")
    run, ended, purged = module.run_batch, Store.finished, asyncio.Event()

    async def run_and_purge(store, *arguments):
        progress = await run(store, *arguments)
        await purge_a_part(store)
        purged.set()
        return progress

    async def finished(*arguments, **options):
        await purged.wait()
        return await ended(*arguments, **options)

    monkeypatch.setattr(module, "run_batch", run_and_purge)
    monkeypatch.setattr(Store, "finished", finished)
    prompts, count = [f"p{i}" for i in range(ROWS)], 0
    with pytest.raises(Purged, match="1,000 of 1,500"):
        async for _ in prompt_stream(prompts, worker=echo, batch="b", concurrency=500, verbose=False):
            count += 1
    assert count == ROWS - CHUNK


async def test_a_stream_is_read_once_where_nothing_is_missing(monkeypatch):
    read = []
    results = Store.results
    monkeypatch.setattr(Store, "results", lambda self, *a, **b: read.append(a) or results(self, *a, **b))
    rows = [row async for row in prompt_stream(["a", "b", "a"], worker=echo, verbose=False)]
    assert sorted(json.dumps(row["idx"]) for row in rows) == ["0", "1", "2"]
    assert read == []
