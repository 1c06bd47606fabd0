"""What users test their own code with."""

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import anyio
import pytest

from batchq import (
    Answer,
    CannotGoOn,
    Halt,
    JobState,
    Reject,
    RetryLater,
    Throttled,
    TimedOutWaiting,
)
from batchq.testing import Call, Drained, ScriptedWorker, VirtualClock, drain, open_temporary, temporary_queue

pytestmark = pytest.mark.anyio


@pytest.fixture
async def queue():
    with anyio.fail_after(30):
        async with temporary_queue(VirtualClock()) as opened:
            yield opened


async def upper(prompt):
    return prompt.upper()


async def values(queue, batch="demo"):
    return [result.value async for result in queue.results(batch)]


# The clock and the queue


def test_a_virtual_clock_stands_still():
    clock = VirtualClock(1_000)
    assert clock() == 1_000
    clock.advance(0.5)
    assert clock() == 1_500
    with pytest.raises(ValueError, match="does not go back"):
        clock.advance(-1)
    assert abs(VirtualClock()() / 1000 - time.time()) < 5


async def test_a_temporary_queue_leaves_nothing_behind():
    async with temporary_queue() as queue:
        await queue.enqueue(["a"], batch="demo", worker="echo")
        location = queue.location
        assert queue.clock is None
    assert not Path(location).parent.exists()


# The script


async def test_answers_by_prompt(queue):
    worker = ScriptedWorker({"a": "A", "id-1": {"n": 1}, "hi": Answer([1, 2]), "x": len})
    await queue.enqueue(["a", "x"], batch="texts", worker="echo")
    await queue.enqueue([{"custom_id": "id-1", "prompt": "whatever"}], batch="ids", worker="echo")
    await queue.enqueue([[{"role": "user", "content": "hi"}]], batch="messages", worker="echo")
    assert await drain(queue, worker) == Drained(4, 0)
    assert await values(queue, "texts") == ["A", 1]
    assert await values(queue, "ids") == [{"n": 1}]
    assert await values(queue, "messages") == [[1, 2]]


async def test_it_remembers_its_calls(queue):
    worker = ScriptedWorker({"a": [RetryLater(after=5), "A"]})
    await queue.enqueue([{"custom_id": "x", "prompt": "a"}], batch="demo", model="m", worker="openrouter")
    await drain(queue, worker)
    assert worker.calls == [Call("a", 1, "x", 0, "demo", "m"), Call("a", 2, "x", 0, "demo", "m")]
    assert worker.prompts == ["a", "a"]


async def test_answers_by_call_order(queue):
    await queue.enqueue(["a", "b", "c"], batch="demo", worker="echo")
    await drain(queue, ScriptedWorker(["one", Reject("no"), "three"]), concurrency=1)
    results = [result async for result in queue.results("demo")]
    assert [(result.state, result.value) for result in results] == [
        (JobState.DONE, "one"), (JobState.FAILED, None), (JobState.DONE, "three"),
    ]  # fmt: skip


async def test_a_function_answers_everything(queue):
    await queue.enqueue(["a", "b"], batch="demo", worker="echo")
    await drain(queue, ScriptedWorker(upper))
    assert await values(queue) == ["A", "B"]


@pytest.mark.parametrize("script", [{"a": "A"}, ["A"], {"a": "A", "b": []}])
async def test_a_call_that_the_script_has_nothing_for_fails_the_test(queue, script):
    await queue.enqueue(["a", "b"], batch="demo", worker="echo")
    with pytest.raises(AssertionError, match=r"no answer for 'b' \(position 1 of demo, attempt 1\)"):
        await drain(queue, ScriptedWorker(script), concurrency=1)


async def test_exceptions_are_raised_as_a_worker_would(queue):
    worker = ScriptedWorker({"a": ValueError("odd"), "b": TimeoutError})
    await queue.enqueue(["a", "b"], batch="demo", worker="echo", max_attempts=3)
    drained = await drain(queue, worker)
    assert drained.attempts == 6
    assert {group.error_class: group.example for group in await queue.errors("demo")} == {
        "ValueError": "ValueError: odd (gave up after 3 attempts)",
        "timeout": "the call timed out (gave up after 3 attempts)",
    }  # fmt: skip


# Draining


async def test_a_retry_takes_no_real_time(queue):
    began, before = time.monotonic(), queue.clock()
    worker = ScriptedWorker({"a": [RetryLater(after=3_600), RetryLater(after=7_200), "A"], "b": "B"})
    await queue.enqueue(["a", "b"], batch="demo", worker="echo")
    drained = await drain(queue, worker)
    assert await values(queue) == ["A", "B"]
    assert drained.attempts == 4
    assert drained.waited == pytest.approx(10_800)
    assert queue.clock() - before == pytest.approx(10_800_000)
    assert time.monotonic() - began < 5


async def test_back_off_and_throttling_go_by_the_clock(queue):
    worker = ScriptedWorker({"a": [ValueError("odd")] * 6 + ["A"], "b": [Throttled(after=60), "B"]})
    await queue.enqueue(["a", "b"], batch="demo", worker="echo")
    drained = await drain(queue, worker)
    assert await values(queue) == ["A", "B"]
    assert drained.waited >= 60


async def test_limits_go_by_the_clock(queue):
    await queue.set_limits("m", rpm=60, burst=1)
    await queue.enqueue([str(n) for n in range(11)], batch="demo", model="m")
    drained = await drain(queue, upper)
    assert 9 < drained.waited < 12
    assert (await queue.progress("demo")).counts.done == 11


async def test_a_lease_that_was_left_behind_runs_out(queue):
    gone = anyio.Event()

    async def hang(prompt):
        gone.set()
        await anyio.sleep_forever()

    await queue.enqueue(["a"], batch="demo", worker="echo")
    async with anyio.create_task_group() as group:
        group.start_soon(drain, queue, hang)
        await gone.wait()
        group.cancel_scope.cancel()
    assert (await queue.progress("demo")).counts.inflight == 1
    assert (await drain(queue, upper)).waited == pytest.approx(60, abs=1)
    job, attempts = await queue.job("demo", 0)
    assert (job.value, [attempt.outcome for attempt in attempts]) == ("A", ["lost", "succeeded"])


async def test_one_batch_or_all(queue):
    for name in ("one", "two"):
        await queue.enqueue(["a"], batch=name, worker="echo")
    await drain(queue, upper, batch="one")
    assert [(await queue.progress(name)).finished for name in ("one", "two")] == [True, False]
    await drain(queue, upper)
    assert (await queue.progress("two")).finished
    assert await drain(queue, upper) == Drained(0, 0)


async def test_workers_may_enqueue_more(queue):
    async def ask_on(prompt):
        if prompt == "a":
            await queue.enqueue(["b"], batch="more", worker="other.py:function")
        return prompt

    await queue.enqueue(["a"], batch="demo", worker="echo")
    assert (await drain(queue, ask_on)).attempts == 2
    assert await values(queue, "more") == ["b"]


async def test_a_batch_need_not_be_sealed(queue):
    await queue.enqueue([{"custom_id": "1", "prompt": "a"}], batch="demo", worker="echo", seal=False)
    assert (await drain(queue, upper)).waited == 0
    assert await values(queue) == ["A"]


async def test_what_cannot_go_on_is_told(queue):
    await queue.enqueue(["a"], batch="demo", worker="echo")
    await queue.pause("demo")
    with pytest.raises(CannotGoOn, match="paused"):
        await drain(queue, upper)
    await queue.resume("demo")
    with pytest.raises(CannotGoOn, match="no credit"):
        await drain(queue, ScriptedWorker({"a": Halt("no credit")}))
    assert await queue.resume("demo") == 1
    await drain(queue, upper)


async def test_patience_ends(queue):
    await queue.enqueue(["a"], batch="demo", worker="echo")
    with pytest.raises(TimedOutWaiting, match="jobs of demo are throttled"):
        await drain(queue, ScriptedWorker({"a": Throttled("slow down", after=60)}), patience=600)


async def test_without_a_virtual_clock_time_is_waited_for():
    async with temporary_queue() as queue:
        await queue.enqueue(["a"], batch="demo", worker="echo")
        began = time.monotonic()
        drained = await drain(queue, ScriptedWorker({"a": [RetryLater(after=0.3), "A"]}))
        assert time.monotonic() - began >= 0.29
        assert drained.waited > 0
        assert await values(queue) == ["A"]


async def test_the_installed_workers_can_be_drained_too(queue):
    await queue.enqueue(["a"], batch="demo", model="m")
    await drain(queue, "echo")
    assert await values(queue) == ["a"]


async def test_a_queue_may_be_kept(tmp_path):
    async with await open_temporary(tmp_path / "q.db") as queue:
        await queue.enqueue(["a"], batch="demo", worker="echo")
    async with await open_temporary(tmp_path / "q.db") as queue:
        await drain(queue, upper)
        assert await values(queue) == ["A"]


# Users' own tests

APPLICATION = """
    from batchq import open_queue

    async def label(queue, texts):
        await queue.enqueue(texts, batch="labels", model="m", system="Label it")

    async def label_at(url, texts):
        async with open_queue(url) as queue:
            await label(queue, texts)

    async def labels(queue):
        return [result.value async for result in queue.results("labels")]
"""

TESTS = """
    import asyncio
    import pytest
    from application import label, label_at, labels
    from batchq import RetryLater
    from batchq.testing import ScriptedWorker, drain
    FIXTURES

    async def check(queue):
        worker = ScriptedWorker({"good": [RetryLater(after=60), "positive"], "bad": "negative"})
        drained = await drain(queue, worker)
        assert drained.waited >= 60
        assert await labels(queue) == ["positive", "negative"]

    MARK
    async def test_labels(queue):
        await label(queue, ["good", "bad"])
        await check(queue)

    MARK
    async def test_an_application_that_opens_the_queue_itself(queue, queue_url):
        await label_at(queue_url, ["good", "bad"])
        await check(queue)

    def test_without_any_plugin(queue):
        async def main():
            await label(queue, ["good", "bad"])
            await check(queue)
        asyncio.run(main())
"""
CONFIGURATION = """
    [pytest]
    filterwarnings = error
"""


@pytest.mark.parametrize(
    "fixtures", ["from batchq.testing.fixtures import queue, queue_url", 'pytest_plugins = ["batchq.testing.fixtures"]']
)
def test_a_users_test_suite(tmp_path, fixtures):
    (tmp_path / "application.py").write_text(textwrap.dedent(APPLICATION))
    tests = textwrap.dedent(TESTS).replace("MARK", "@pytest.mark.anyio").replace("FIXTURES", fixtures)
    (tmp_path / "test_application.py").write_text(tests)
    (tmp_path / "conftest.py").write_text(
        "import pytest\n@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n"
    )
    (tmp_path / "pytest.ini").write_text(textwrap.dedent(CONFIGURATION))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        check=False, cwd=tmp_path, text=True, capture_output=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def test_it_needs_no_pytest():
    code = "import batchq.testing, sys; assert not {'pytest', '_pytest'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
