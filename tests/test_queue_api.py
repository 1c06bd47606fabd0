"""`open_queue`: what applications do with a queue, on a real one, with real runners."""

import json
import math
from contextlib import asynccontextmanager
from decimal import Decimal

import anyio
import pytest
from pydantic import BaseModel

import batchq
from batchq import (
    Answer,
    BadInput,
    BatchConflict,
    BatchState,
    CannotGoOn,
    ConfigurationError,
    Halt,
    JobState,
    NoDatabase,
    Plugin,
    Purged,
    Queue,
    Reject,
    RetryLater,
    TimedOutWaiting,
    UnknownBatch,
    UsageError,
    open_queue,
)
from batchq.testing import ScriptedWorker

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """No settings of the machine's."""
    monkeypatch.chdir(tmp_path)
    for name in ("MODEL", "BATCHQ_MODEL", "BATCHQ_DB", "OPENROUTER_API_KEY", "OPENAI_API_KEY", "BATCHQ_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def queue(tmp_path):
    with anyio.fail_after(60):
        async with open_queue(tmp_path / "queue.db") as opened:
            yield opened


async def values(queue, batch="demo"):
    return [result.value async for result in queue.results(batch)]


async def upper(prompt):
    return prompt.upper()


async def shout(prompt):
    return prompt + "!"


# Opening


async def test_a_queue_is_entered_or_awaited(tmp_path):
    queue = await open_queue(f"sqlite+aiosqlite:///{tmp_path / 'q.db'}")
    assert queue.location == str(tmp_path / "q.db")
    await queue.close()
    async with await open_queue(tmp_path / "q.db") as again:
        assert await again.batches() == []
    async with open_queue(str(tmp_path / "q.db"), create=False) as once_more:
        assert isinstance(once_more, Queue)


async def test_the_settings_name_the_queue(tmp_path, monkeypatch):
    async with open_queue() as queue:
        assert queue.location == str(tmp_path / "runs.db")
    monkeypatch.setenv("BATCHQ_DB", "other.db")
    async with open_queue() as queue:
        assert queue.location == str(tmp_path / "other.db")


async def test_no_queue_is_made_where_none_is_wanted(tmp_path):
    with pytest.raises(NoDatabase):
        await open_queue(tmp_path / "none.db", create=False)


# Enqueueing, working, reading


async def test_enqueue_work_and_read(queue):
    done = await queue.enqueue(["a", "b", "c"], batch="demo", worker=upper)
    assert (done.added, done.total, done.sealed, done.batch.name) == (3, 3, True, "demo")
    await queue.work(upper)
    progress = await queue.wait("demo", timeout=10)
    assert progress.finished
    assert progress.counts.done == 3
    results = [result async for result in queue.results(done.batch, with_prompt=True)]
    assert [(result.position, result.prompt, result.value) for result in results] == [
        (0, "a", "A"), (1, "b", "B"), (2, "c", "C"),
    ]  # fmt: skip
    assert [batch.name for batch in await queue.batches()] == ["demo"]


async def test_the_same_again_adds_only_what_is_missing(queue):
    rows = [{"custom_id": str(n), "prompt": f"p{n}"} for n in range(5)]
    await queue.enqueue(rows[:3], batch="demo", worker="echo")
    again = await queue.enqueue(rows, batch="demo", worker="echo")
    assert (again.added, again.skipped) == (2, 3)
    with pytest.raises(BatchConflict, match=r"prompts\[1\]"):
        await queue.enqueue([rows[0], {"custom_id": "1", "prompt": "other"}], batch="demo", worker="echo")
    with pytest.raises(BatchConflict, match="makes other requests"):
        await queue.enqueue(rows, batch="demo", worker="echo", system="other")


async def test_prompts_that_come_in_pieces(queue):
    async def piece(start):
        for n in range(start, start + 2):
            yield {"custom_id": str(n), "prompt": f"p{n}"}

    for start in (0, 2):
        done = await queue.enqueue(piece(start), batch="demo", worker="echo", seal=False)
        assert not done.sealed
    with pytest.raises(TimedOutWaiting):
        await queue.wait("demo", timeout=0)
    await queue.seal("demo")
    await queue.work("echo")
    assert await values(queue) == ["p0", "p1", "p2", "p3"]


async def test_nothing_is_a_batch_without_jobs(queue):
    done = await queue.enqueue([], batch="demo", worker="echo")
    assert (done.added, done.total, done.sealed) == (0, 0, True)
    assert (await queue.wait("demo", timeout=1)).counts.total == 0
    assert await values(queue) == []
    open_still = await queue.enqueue(iter(()), batch="open", worker="echo", seal=False)
    assert not open_still.sealed


async def test_bad_prompts_are_named_and_nothing_is_written(queue):
    with pytest.raises(BadInput, match=r"prompts\[1\]: empty prompt"):
        await queue.enqueue(["a", " "], batch="demo", worker="echo")
    assert await queue.batches() == []


async def test_what_a_request_is_made_of(queue):
    class Label(BaseModel):
        label: str

    done = await queue.enqueue(
        [{"text": "x"}], batch="demo", worker=upper, model="m", system="Be brief", params={"temperature": 0},
        schema=Label, schema_tries=2, samples=3, template="Label: {{ text }}", dedupe=True, priority=5,
        max_attempts=2, call_timeout=1.5, budget=0.25, allow_unknown_cost=True, allow_truncated=True, keep_response=True,
    )  # fmt: skip
    batch = done.batch
    assert batch.model == "m"
    assert batch.settings["schema"]["properties"] == {"label": {"title": "Label", "type": "string"}}
    assert {name: batch.settings[name] for name in ("system", "params", "schema_tries", "samples")} == {
        "system": "Be brief", "params": {"temperature": 0}, "schema_tries": 2, "samples": 3,
    }  # fmt: skip
    assert (batch.priority, batch.max_attempts, batch.call_timeout_ms, batch.budget) == (5, 2, 1_500, 250_000_000)
    assert (batch.allow_unknown_cost, batch.allow_truncated, batch.keep_response) == (True, True, True)
    assert done.added == 3
    assert (await queue.job("demo", 2))[0].prompt == "Label: x"


async def test_a_policy_changes_a_batch_that_is_there(queue):
    await queue.enqueue(["a"], batch="demo", worker="echo", priority=1, max_attempts=3)
    done = await queue.enqueue(["a"], batch="demo", worker="echo", max_attempts=5)
    assert done.changed == {"max_attempts": 5}
    assert (done.batch.priority, done.batch.max_attempts) == (1, 5)


async def test_dedupe_and_reuse(queue):
    worker = ScriptedWorker(upper)
    done = await queue.enqueue(["a", "b", "a"], batch="demo", worker="openrouter", model="m", dedupe=True)
    assert done.followers == 1
    await queue.work({"openrouter": worker})
    assert await values(queue) == ["A", "B", "A"]
    assert len(worker.calls) == 2
    again = await queue.enqueue(["b", "c"], batch="more", worker="openrouter", model="m", reuse=True)
    assert again.reused == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"batch": " "}, "can't be the name of a batch"),
        ({"batch": "-x"}, "begins with a dash"),
        ({"samples": 0}, "samples is 0"),
        ({"max_attempts": 0}, "max_attempts is 0"),
        ({"call_timeout": 0}, "must be longer than nothing"),
        ({"budget": -1}, "not an amount between 0"),
        ({"budget": float("nan")}, "not an amount between 0"),
        ({"schema_tries": 2}, "goes with a schema"),
        ({"schema": {"type": "array"}}, "the schema can't be used"),
        ({"params": {"model": "x"}}, "params can't set 'model'"),
        ({"params": {"x": object()}}, "must be JSON"),
        ({"template": "{{"}, "template"),
        ({"worker": "openrouter"}, "needs a model: pass model="),
    ],
)
async def test_what_cannot_be_asked_for(queue, options, reason):
    with pytest.raises(UsageError, match=reason):
        await queue.enqueue(["a"], **{"batch": "demo", "worker": "echo", **options})
    assert await queue.batches() == []


async def test_the_model_comes_from_the_settings_where_nobody_names_one(queue, monkeypatch):
    monkeypatch.setenv("MODEL", "of/settings")
    assert (await queue.enqueue(["a"], batch="one")).batch.model == "of/settings"
    assert (await queue.enqueue(["a"], batch="two", model="mine")).batch.model == "mine"
    assert (await queue.enqueue([], batch="three")).batch.model == "of/settings"
    assert (await queue.enqueue(["a"], batch="four", worker="echo")).batch.model == ""


async def test_a_plugin_says_what_makes_its_requests(queue):
    @asynccontextmanager
    async def open_worker(endpoint):
        yield upper

    plugin = Plugin(open_worker, name="mine", model="m", settings={"agent": "v1"})
    done = await queue.enqueue(["a"], batch="demo", worker=plugin)
    assert (done.batch.worker, done.batch.model, done.batch.settings) == ("mine", "m", {"agent": "v1"})
    await queue.work([plugin])
    assert await values(queue) == ["A"]


async def test_work_serves_what_it_is_given(queue):
    await queue.enqueue(["a"], batch="one", worker=upper)
    await queue.enqueue(["b"], batch="two", worker=shout)
    await queue.work([upper])
    assert (await queue.progress("one")).finished
    assert not (await queue.progress("two")).finished
    await queue.work([upper, shout], batches=["two"])
    assert await values(queue, "two") == ["b!"]


async def test_work_may_be_started_before_there_is_any(queue):
    async with anyio.create_task_group() as group:

        async def work():
            await queue.work(upper, until_empty=False)

        group.start_soon(work)
        await queue.enqueue(["a"], batch="demo", worker=upper)
        seen = [progress.counts.done async for progress in queue.watch("demo")]
        group.cancel_scope.cancel()
    assert seen[-1] == 1


async def test_a_cancelled_run_gives_back_what_it_holds(queue):
    begun = anyio.Event()

    async def hang(prompt):
        begun.set()
        await anyio.sleep_forever()

    await queue.enqueue(["a"], batch="demo", worker="echo")
    async with anyio.create_task_group() as group:

        async def work():
            await queue.work({"echo": hang})

        group.start_soon(work)
        await begun.wait()
        group.cancel_scope.cancel()
    job, attempts = await queue.job("demo", 0)
    assert (job.state, job.attempts) == (JobState.PENDING, 0)
    assert [attempt.outcome for attempt in attempts] == ["released"]
    assert [runner.live for runner in await queue.runners()] in ([], [False])


async def test_work_says_what_keeps_it_from_going_on(queue):
    with pytest.raises(ConfigurationError, match="no worker named"):
        await queue.work("nobody")
    with pytest.raises(UsageError, match="concurrency is 0"):
        await queue.work(upper, concurrency=0)
    with pytest.raises(UsageError, match="lease is"):
        await queue.work(upper, lease=0.1)
    await queue.enqueue(["a"], batch="keyless", model="m")
    with pytest.raises(ConfigurationError, match=r"batch 'keyless' can't run: .*OPENROUTER_API_KEY"):
        await queue.work()

    async def broke(prompt):
        raise Halt("no credit left")

    await queue.enqueue(["a"], batch="demo", worker="echo")
    with pytest.raises(CannotGoOn, match="no credit left"):
        await queue.work({"echo": broke})
    assert "no credit left" in await queue.why_waiting("demo")
    assert await queue.resume() == 1
    await queue.work("echo")
    assert await values(queue) == ["a"]


async def test_failures_are_told_with_their_attempts(queue):
    worker = ScriptedWorker({"a": [RetryLater("later", after=0), Answer("A", cost=0.5)], "b": Reject("no", status=400)})
    await queue.enqueue(["a", "b"], batch="demo", worker="echo")
    await queue.work({"echo": worker})
    (group,) = await queue.errors("demo")
    assert (group.error_class, group.count, group.example) == ("rejected", 1, "no")
    job, attempts = await queue.job("demo", 0)
    assert (job.value, job.prompt, job.cost) == ("A", "a", 500_000_000)
    assert [attempt.outcome for attempt in attempts] == ["retry", "succeeded"]
    assert (await queue.job("demo", 1))[0].status == 400
    with pytest.raises(UsageError, match="has no position 2"):
        await queue.job("demo", 2)
    assert await queue.retry("demo", error_class="timeout") == 0
    assert await queue.retry("demo") == 1
    await queue.work({"echo": upper})
    assert await values(queue) == ["A", "B"]


# Collecting


async def test_collect_writes_a_file(queue, tmp_path):
    await queue.enqueue(["a", "b"], batch="demo", worker="echo")
    out = tmp_path / "answers.jsonl"
    with pytest.raises(TimedOutWaiting):
        await queue.collect("demo", out, timeout=0)
    part = await queue.collect("demo", out, wait=False)
    assert part.counts.pending == 2
    await queue.work("echo")
    collected = await queue.collect("demo", out, with_prompt=True)
    assert collected.counts.done == 2
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["prompt"], line["result"]) for line in lines] == [("a", "a"), ("b", "b")]
    other = tmp_path / "mine.txt"
    other.write_text("mine")
    with pytest.raises(UsageError):
        await queue.collect("demo", other)
    await queue.collect("demo", other, format="txt", overwrite=True)
    assert other.read_text() == "a\nb\n"
    with pytest.raises(UsageError, match="belongs to the queue"):
        await queue.collect("demo", tmp_path / "queue.db", overwrite=True)


# Operating


async def test_pause_resume_cancel_retry(queue):
    await queue.enqueue(["a", "b"], batch="demo", worker="echo")
    await queue.pause("demo")
    with pytest.raises(CannotGoOn, match="paused"):
        await queue.work("echo")
    assert (await queue.progress("demo")).batch.state is BatchState.PAUSED
    assert await queue.resume("demo") == 0
    assert await queue.cancel("demo") == 2
    assert (await queue.wait("demo", timeout=5)).counts.cancelled == 2
    for act in (queue.pause, queue.resume):
        with pytest.raises(UsageError, match="`retry` revives it"):
            await act("demo")
    assert await queue.retry("demo") == 2
    await queue.work("echo")
    assert await values(queue) == ["a", "b"]


async def test_purge(queue):
    await queue.enqueue(["a", "b"], batch="demo", worker="echo")
    with pytest.raises(UsageError, match="has 2 unfinished jobs"):
        await queue.purge("demo")
    assert await queue.purge("demo", force=True) == 2
    assert await queue.batches() == []
    await queue.enqueue(["a"], batch="old", worker="echo")
    await queue.work("echo")
    assert await queue.purge_finished(3600) == []
    await anyio.sleep(0.01)
    assert [batch.name for batch in await queue.purge_finished(0)] == ["old"]


async def test_results_of_what_is_being_purged_are_refused(queue):
    await queue.enqueue(["a"], batch="demo", worker="echo")
    await queue.store.update_policy(await queue.store.batch("demo"), {"state": "purging"})
    with pytest.raises(Purged):
        await values(queue)
    with pytest.raises(Purged):
        await queue.wait("demo")


async def test_limits(queue):
    lane = await queue.set_limits("m", rpm=600, tpm=1e6, burst=4)
    assert (lane.worker, lane.model, lane.rpm, lane.tpm, lane.burst) == ("openrouter", "m", 600, 1e6, 4)
    assert lane.base_url == "https://openrouter.ai/api/v1"
    lane = await queue.set_limits("m", rpm=math.inf, max_inflight=3)
    assert (lane.rpm, lane.tpm, lane.max_inflight) == (None, 1e6, 3)
    assert (await queue.set_limits("m")).max_inflight == 3
    other = await queue.set_limits("m", rpm=1, worker=upper, base_url="http://127.0.0.1:1/v1")
    assert (other.worker, other.base_url) == (f"{__name__}:upper", "http://127.0.0.1:1/v1")
    assert len(await queue.lanes()) == 2
    for wrong in ({"rpm": 0}, {"rpm": -1}, {"rpm": math.nan}, {"max_inflight": 1.5}, {"burst": 0.5}):
        with pytest.raises(UsageError):
            await queue.set_limits("m", **wrong)
    with pytest.raises(ConfigurationError, match="no endpoint 'nowhere'"):
        await queue.set_limits("m", endpoint="nowhere", rpm=1)


async def test_budget(queue):
    await queue.enqueue(["a"], batch="demo", worker="echo", budget=Decimal("1.5"))
    assert (await queue.progress("demo")).batch.budget == 1_500_000_000
    assert (await queue.set_budget("demo", 0.1)).budget == 100_000_000
    assert (await queue.set_budget("demo", None)).budget is None
    with pytest.raises(UsageError):
        await queue.set_budget("demo", 0)


async def test_concurrency(queue):
    assert await queue.set_concurrency(4) == 0
    begun = anyio.Event()

    async def wait(prompt):
        begun.set()
        await anyio.sleep_forever()

    await queue.enqueue(["a"], batch="demo", worker="echo")
    async with anyio.create_task_group() as group:

        async def work():
            await queue.work({"echo": wait}, lease=1)

        group.start_soon(work)
        await begun.wait()
        assert await queue.set_concurrency(4, pid=1) == 0
        assert await queue.set_concurrency(4, host="elsewhere") == 0
        assert await queue.set_concurrency(4) == 1
        group.cancel_scope.cancel()


async def test_what_is_not_there_is_named(queue):
    await queue.enqueue(["a"], batch="demo", worker="echo")
    for ask in (
        queue.progress,
        queue.wait,
        queue.errors,
        queue.cancel,
        queue.retry,
        queue.pause,
        queue.seal,
        queue.purge,
    ):
        with pytest.raises(UnknownBatch, match="did you mean 'demo'"):
            await ask("demmo")
    with pytest.raises(UnknownBatch):
        await values(queue, "demmo")
    with pytest.raises(UnknownBatch):
        await queue.work("echo", batches=["demmo"])


def test_what_the_library_offers_can_be_imported():
    for name in batchq.__all__:
        assert getattr(batchq, name) is not None
