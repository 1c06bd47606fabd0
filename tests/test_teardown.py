"""Taking down: only what nobody else wants, and never the answers of a call that still reads them."""

import asyncio
import os
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from completing import end_jobs, with_store, write_lines
from processes import wait_for

from batchq import prompt_map, prompt_stream
from batchq.database import remove_if_empty
from batchq.errors import StoreError
from batchq.formats import ReadOptions
from batchq.generations import Wishes, synchronise
from batchq.jobs import NewBatch, RunnerIdentity
from batchq.schema import REMOVED
from batchq.store import open_store
from batchq.survey import survey_input


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("BATCHQ_", "OPEN", "MODEL"))]:
        monkeypatch.delenv(name)
    return tmp_path


async def echo(prompt: str) -> str:
    await asyncio.sleep(0.001)
    return prompt


def batches(path="runs.db"):
    with closing(sqlite3.connect(path)) as connection:
        return [name for (name,) in connection.execute("SELECT name FROM batches ORDER BY id")]


@pytest.mark.anyio
async def test_two_equal_calls_at_once_both_get_all_their_rows(here):
    prompts = [f"p{i}" for i in range(3_000)]
    call = {"worker": echo, "concurrency": 64, "teardown": True, "return_dtype": list[str], "verbose": False}
    first, second = await asyncio.gather(prompt_map(prompts, **call), prompt_map(prompts, **call))
    assert first == second == prompts


@pytest.mark.anyio
async def test_a_stream_and_a_call_at_once_both_get_all_their_rows():
    prompts = [f"p{i}" for i in range(1_000)]

    async def stream():
        return [row["prompt"] async for row in prompt_stream(prompts, worker=echo, teardown=True, verbose=False)]

    streamed, mapped = await asyncio.gather(stream(), prompt_map(prompts, worker=echo, teardown=True, verbose=False))
    assert sorted(streamed) == sorted(prompts)
    assert [row["result"] for row in mapped] == prompts


@pytest.mark.anyio
async def test_another_batch_of_a_name_that_looks_alike_is_spared():
    await prompt_map(["a"], worker=echo, batch="exp")
    with closing(sqlite3.connect("runs.db")) as connection, connection:
        connection.execute("UPDATE batches SET state = 'cancelled'")
    await prompt_map(["b"], worker=echo, batch="exp~2", teardown=True)
    assert batches() == ["exp"]


@pytest.mark.parametrize("wanted", ["rows appended", "about to run", "a live runner", "paused"])
def test_a_batch_that_somebody_wants_is_not_purged(here, wanted):
    path = here / "queue.db"

    async def try_to_purge(store):
        with survey_input(write_lines(here / "in.jsonl", ["a"]), ReadOptions()) as survey:
            found = await synchronise(store, survey, NewBatch("b", "echo"), Wishes())
        runner = RunnerIdentity("r", "host", 1, 1, "echo", 60_000, batch_ids=frozenset([found.batch.id]))
        if wanted != "about to run":
            await store.register(runner)
        if wanted != "a live runner":
            await store.retire(runner)
        await end_jobs(store)
        seen = await store.batch("b")
        if wanted == "rows appended":
            with survey_input(write_lines(here / "in.jsonl", ["a", "b"]), ReadOptions()) as survey:
                await synchronise(store, survey, NewBatch("b", "echo"), Wishes())
        if wanted == "paused":
            await store.pause(seen)
        return await store.purge_if_unwanted(seen)

    assert with_store(path, try_to_purge) is False
    assert batches(path) == ["b"]


def test_an_empty_queue_is_removed_whole(here):
    path = here / "queue.db"
    with_store(path, lambda store: store.batches())
    assert remove_if_empty(path)
    assert list(here.iterdir()) == []
    assert with_store(path, lambda store: store.batches()) == []


def test_a_queue_with_a_batch_stays_and_works(here):
    path = here / "queue.db"
    with_store(path, lambda store: store.open_batch(NewBatch("b", "echo")))
    assert not remove_if_empty(path)
    assert [batch.name for batch in with_store(path, lambda store: store.batches())] == ["b"]


def test_a_queue_that_another_process_has_open_stays(here):
    path = here / "queue.db"
    with_store(path, lambda store: store.batches())
    code = (
        "import sqlite3, sys, time; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM batches').fetchall();"
        " print('open', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "open\n"
        assert not remove_if_empty(path)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert with_store(path, lambda store: store.batches()) == []
    wait_for(lambda: remove_if_empty(path), "the file to be free")


def test_who_has_opened_the_file_in_that_moment_writes_nothing_into_it(here):
    path = here / "queue.db"

    async def enqueue_after_the_removal():
        async with await open_store(str(path), create=True) as store:
            with closing(sqlite3.connect(path)) as connection, connection:
                connection.execute("UPDATE meta SET value = ? WHERE name = 'schema_version'", (REMOVED,))
            await store.open_batch(NewBatch("b", "echo"))

    with pytest.raises(StoreError, match="run this again"):
        asyncio.run(enqueue_after_the_removal())
