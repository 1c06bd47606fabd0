"""What a call has running is given back before its queue is closed, and nothing long holds up the event loop."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest
from raw_connection import connect

from batchq import open_queue, prompt_map, prompt_stream
from batchq.collecting import Output, write_results
from batchq.collecting.joining import InputRows
from batchq.leaders import Leaders
from batchq.runner import Runner

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def here(request, tmp_path, monkeypatch):
    """A directory whose queue is in a file there, or on PostgreSQL for tests that are marked ON_BOTH."""
    monkeypatch.chdir(tmp_path)
    on_postgres = getattr(request, "param", "sqlite") == "postgresql"
    monkeypatch.setenv("BATCHQ_DB", request.getfixturevalue("postgres_queue") if on_postgres else "runs.db")
    return tmp_path


ON_BOTH = pytest.mark.parametrize("here", ["sqlite", "postgresql"], indirect=True)


async def echo(prompt: str) -> str:
    return prompt


@ON_BOTH
async def test_a_stream_that_is_cancelled_twice_gives_back_what_runs(here, monkeypatch):
    started, leaving, leave = asyncio.Event(), asyncio.Event(), asyncio.Event()
    usual = Runner._leave

    async def slowly(self, **how):
        leaving.set()
        await leave.wait()
        await usual(self, **how)

    async def hang(prompt: str) -> str:
        started.set()
        await asyncio.sleep(3600)
        return prompt

    async def read():
        return [row async for row in prompt_stream(["a", "b"], worker=hang, verbose=False)]

    monkeypatch.setattr(Runner, "_leave", slowly)
    task = asyncio.create_task(read())
    await asyncio.wait_for(started.wait(), 10)
    task.cancel()
    await asyncio.wait_for(leaving.wait(), 10)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not task.done()
    leave.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 10)
    with connect(os.environ["BATCHQ_DB"]) as connection:
        assert connection.tuples("SELECT state, attempts FROM jobs") == [("pending", 0)] * 2


def in_threads(monkeypatch, owner, name):
    """Note the threads that a method runs in."""
    threads, usual = [], getattr(owner, name)

    def noted(self, *arguments):
        threads.append(threading.current_thread())
        return usual(self, *arguments)

    monkeypatch.setattr(owner, name, noted)
    return threads


async def test_who_leads_is_decided_beside_the_event_loop(monkeypatch):
    threads = in_threads(monkeypatch, Leaders, "decide")
    rows = await prompt_map(["a", "b", "a", "c", "b"], worker=echo, verbose=False)
    assert [row["result"] for row in rows] == ["a", "b", "a", "c", "b"]
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


async def test_an_input_is_read_again_beside_the_event_loop(here, monkeypatch):
    threads = in_threads(monkeypatch, InputRows, "read")
    (here / "in.csv").write_text("prompt,n\na,1\nb,2\n")
    async with open_queue() as queue:
        await queue.enqueue(here / "in.csv", batch="b", worker=echo)
        await queue.work(echo)
        await write_results(queue.store, "b", Output(here / "out.csv", with_input=here / "in.csv"))
    assert (here / "out.csv").read_text().startswith("prompt,n,")
    assert threads
    assert threading.main_thread() not in threads
