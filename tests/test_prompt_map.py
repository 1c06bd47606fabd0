"""`prompt_map` from a script: resumes, pays once, keeps everything, and cleans up only after success."""

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import textwrap
import typing
from contextlib import aclosing, closing

import forked
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from fake_provider import running_provider
from processes import bench, wait_for
from pydantic import BaseModel, field_validator

from batchq import (
    DB_URL_DEFAULT,
    Answer,
    BadInput,
    CannotGoOn,
    ConfigurationError,
    Reject,
    RetryLater,
    Usage,
    UsageError,
    export_jsonl,
    prompt_map,
    prompt_map_sync,
    prompt_stream,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("BATCHQ_", "OPEN", "MODEL"))]:
        monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture(scope="module")
def provider():
    with running_provider() as running:
        yield running


@pytest.fixture
def ledger(provider):
    provider.reset()
    return lambda: provider.ledger()["calls"]


class Counting:
    """A worker that counts its calls."""

    def __init__(self, answer=str.upper):
        self.calls = []
        self.answer = answer

    async def __call__(self, prompt):
        self.calls.append(prompt)
        await asyncio.sleep(0)
        return self.answer(prompt)


async def echo_worker(p: str) -> str:
    return p


# The snippets of the README, with only the base URL added.


async def test_a_model_from_the_environment(provider, ledger, monkeypatch, here):
    monkeypatch.setenv("MODEL", "openai/gpt-4o-mini")
    monkeypatch.setenv("OPENROUTER_API_KEY", "sk-or-planted")
    prompts = [f"prompt {i}" for i in range(40)]
    results = await prompt_map(prompts, concurrency=16, teardown=True, base_url=provider.base_url)
    assert [row["idx"] for row in results] == list(range(40))
    assert [row["prompt"] for row in results] == prompts
    assert {row["status"] for row in results} == {"done"}
    assert all(row["result"] for row in results)
    assert all(row["usage"]["input_tokens"] > 0 and row["usage"]["cost"] > 0 for row in results)
    assert ledger() == 40
    assert list(here.iterdir()) == []


async def test_a_model_and_a_key_given(provider, ledger):
    results = await prompt_map(
        ["a"], model_name="openai/gpt-4o-mini", openrouter_api_key="sk-or-planted", base_url=provider.base_url
    )
    assert results[0]["status"] == "done"


async def test_a_worker_of_ones_own_and_the_export(here):
    results = await prompt_map(["b", "a"], worker=echo_worker)
    assert [row["result"] for row in results] == ["b", "a"]
    assert await export_jsonl(DB_URL_DEFAULT, out="results.jsonl") == 2
    lines = [json.loads(line) for line in (here / "results.jsonl").read_text().splitlines()]
    assert lines == [{"idx": 0, "prompt": "b", "result": "b"}, {"idx": 1, "prompt": "a", "result": "a"}]


# Resuming, and what is another request.


async def test_run_again_it_asks_nothing_twice():
    worker = Counting()
    first = await prompt_map(["a", "b", "a"], worker=worker)
    again = await prompt_map(["a", "b", "a"], worker=worker)
    assert sorted(worker.calls) == ["a", "b"]
    assert [row["result"] for row in first] == [row["result"] for row in again] == ["A", "B", "A"]


async def test_an_edited_list_pays_only_for_what_is_new():
    worker = Counting()
    await prompt_map(["a", "b", "c"], worker=worker)
    results = await prompt_map(["c", "x", "a"], worker=worker)
    assert worker.calls[3:] == ["x"]
    assert [row["result"] for row in results] == ["C", "X", "A"]
    fresh = await prompt_map(["c", "x", "a"], worker=worker, fresh=True)
    assert sorted(worker.calls[4:]) == ["a", "c", "x"]
    assert [row["result"] for row in fresh] == ["C", "X", "A"]


@pytest.mark.parametrize(
    "other",
    [{"model_name": "other"}, {"system": "be brief"}, {"params": {"temperature": 0}}, {"template": "{{ prompt }}!"}],
    ids=lambda other: next(iter(other)),
)
async def test_another_model_system_prompt_or_parameter_is_another_request(provider, ledger, other):
    call = {"model_name": "m", "base_url": provider.base_url}
    await prompt_map(["a"], **call)
    await prompt_map(["a"], **(call | other))
    assert ledger() == 2
    await prompt_map(["a"], **call)
    await prompt_map(["a"], **(call | other))
    assert ledger() == 2


async def test_two_calls_of_one_script_with_other_prompts_keep_apart():
    worker = Counting()
    for _ in range(2):
        assert [row["result"] for row in await prompt_map(["a"], worker=worker)] == ["A"]
        assert [row["result"] for row in await prompt_map(["b"], worker=worker)] == ["B"]
    assert worker.calls == ["a", "b"]


async def test_two_calls_at_once_with_other_prompts_keep_apart():
    worker = Counting()
    one, two = [f"one {i}" for i in range(50)], [f"two {i}" for i in range(50)]
    first, second = await asyncio.gather(prompt_map(one, worker=worker), prompt_map(two, worker=worker))
    assert [row["prompt"] for row in first] == one
    assert [row["prompt"] for row in second] == two
    assert len(worker.calls) == 100


async def test_a_lambda_with_another_text_is_another_worker():
    assert await prompt_map(["a"], worker=lambda p: p + "1", return_dtype=list[str]) == ["a1"]
    assert await prompt_map(["a"], worker=lambda p: p + "2", return_dtype=list[str]) == ["a2"]


# Rows.


async def test_what_a_worker_raises_fails_its_row_and_not_the_call():
    async def picky(prompt: str) -> str:
        if prompt == "bad":
            raise Reject("not this one", error_class="picky")
        if prompt == "half":
            raise Reject("cut off", answer=Answer("half an answ"))
        return prompt

    results = await prompt_map(["ok", "bad", "half"], worker=picky)
    assert [row["status"] for row in results] == ["done", "failed", "failed"]
    assert (results[1]["error"], results[1]["error_class"], results[1]["result"]) == ("not this one", "picky", None)
    assert results[2]["result"] == "half an answ"


async def test_failures_run_again_the_next_time_unless_the_request_was_refused():
    broken = [True]
    calls = []

    async def flaky(prompt: str) -> str:
        calls.append(prompt)
        if prompt == "refused":
            raise Reject("never")
        if broken:
            raise RetryLater("later", after=0, at_most=1)
        return prompt

    first = await prompt_map(["a", "refused"], worker=flaky)
    broken.clear()
    second = await prompt_map(["a", "refused"], worker=flaky)
    assert [row["status"] for row in first + second] == ["failed", "failed", "done", "failed"]
    assert sorted(calls) == ["a", "a", "refused"]


async def test_usage_and_cost_are_of_the_row():
    async def paid(prompt: str) -> Answer:
        return Answer(prompt, Usage(3, 5), cost=0.25)

    (row, twin) = await prompt_map(["a", "a"], worker=paid)
    assert row["usage"] == {
        "input_tokens": 3, "output_tokens": 5, "cached_tokens": None, "reasoning_tokens": None, "cost": 0.25,
    }  # fmt: skip
    assert twin["usage"]["cost"] == 0.0


@pytest.mark.parametrize("shape", ["original", "unique"])
async def test_shapes_and_types(shape):
    call = {"worker": Counting(), "output_shape": shape}
    prompts = ["a", "b", "a"]
    expected = ["A", "B", "A"] if shape == "original" else ["A", "B"]
    rows = await prompt_map(prompts, **call)
    assert list(rows[0]) == ["idx", "key", "prompt", "status", "result", "error", "error_class", "usage"]
    assert [row["result"] for row in rows] == expected
    assert await prompt_map(prompts, **call, return_dtype=list[str]) == expected
    pairs = await prompt_map(prompts, **call, return_dtype=list[tuple[str, str]])
    assert pairs == [(answer.lower(), answer) for answer in expected]
    frame = await prompt_map(prompts, **call, return_dtype="polars")
    assert isinstance(frame, pl.DataFrame)
    assert frame["result"].to_list() == expected
    table = await prompt_map(prompts, **call, return_dtype=pd.DataFrame)
    assert isinstance(table, pd.DataFrame)
    assert list(table["result"]) == expected
    assert list(table.columns) == frame.columns


async def test_the_older_spelling_of_types_is_understood():
    assert await prompt_map(["a"], worker=Counting(), return_dtype=typing.List[str]) == ["A"]  # noqa: UP006


async def test_a_parameter_that_is_none_is_told_by_a_stream_too():
    with pytest.raises(TypeError, match="concurency"):
        [row async for row in prompt_stream(["a"], worker=echo_worker, concurency=3)]


async def test_a_request_with_parameters_of_its_own_is_refused():
    messages = [{"role": "user", "content": "a"}]
    with pytest.raises(BadInput, match=r"prompts\[0\].*temperature"):
        await prompt_map([{"messages": messages, "temperature": 0}], worker=echo_worker)


async def test_two_servers_are_two_requests(provider, ledger):
    other = provider.base_url.replace("127.0.0.1", "localhost")
    for base_url in (provider.base_url, other, provider.base_url):
        await prompt_map(["a"], model_name="m", base_url=base_url)
    assert ledger() == 2


async def test_many_small_calls_at_once(here):
    worker = Counting()
    lists = [[f"{i} a", f"{i} b"] for i in range(10)]
    found = await asyncio.gather(*(prompt_map(some, worker=worker, return_dtype=list[str]) for some in lists))
    assert found == [[prompt.upper() for prompt in some] for some in lists]
    assert len(worker.calls) == 20


async def test_an_export_is_of_the_batch_that_was_run_last(here):
    worker = Counting()
    for prompts in (["a", "b"], ["c"], ["a", "b"]):
        await prompt_map(prompts, worker=worker)
    assert await export_jsonl(out="results.jsonl") == 2


async def test_no_prompts_are_no_rows(here):
    assert await prompt_map([], worker=echo_worker) == []
    assert await prompt_map([], worker=echo_worker, return_dtype=list[str]) == []
    assert (await prompt_map([], worker=echo_worker, return_dtype="polars")).height == 0
    assert len(await prompt_map([], worker=echo_worker, return_dtype="pandas")) == 0


async def test_json_answers_are_values_in_rows_and_text_elsewhere():
    async def count(prompt: str) -> dict:
        return {"length": len(prompt)}

    (row,) = await prompt_map(["abc"], worker=count)
    assert row["result"] == {"length": 3}
    assert await prompt_map(["abc"], worker=count, return_dtype=list[str]) == ['{"length":3}']


async def test_out_writes_a_file_and_returns_what_it_came_to(here):
    async def paid(prompt: str) -> Answer:
        if prompt == "bad":
            raise Reject("no")
        return Answer(prompt, Usage(1, 2), cost=0.5)

    summary = await prompt_map(["a", "bad", "c"], worker=paid, out="answers.csv")
    assert (summary.done, summary.failed, summary.total, summary.cost) == (2, 1, 3, 1.0)
    assert len((here / "answers.csv").read_text().splitlines()) == 4
    await prompt_map(["a", "bad", "c"], worker=paid, out=here / "answers.jsonl")
    lines = [json.loads(line) for line in (here / "answers.jsonl").read_text().splitlines()]
    assert [line["state"] for line in lines] == ["done", "failed", "done"]
    with pytest.raises(UsageError):
        await prompt_map(["a"], worker=paid, out=here / "runs.db")


# What prompts may be.


async def _later(items):
    for item in items:
        await asyncio.sleep(0)
        yield item


@pytest.mark.parametrize(
    "prompts",
    [
        ("a", "b"),
        (prompt for prompt in "ab"),
        [{"prompt": "a"}, {"prompt": "b"}],
        pd.DataFrame({"prompt": ["a", "b"], "other": [1, 2]}),
        pl.DataFrame({"prompt": ["a", "b"]}),
        pa.table({"prompt": ["a", "b"]}),
        pd.Series(["a", "b"]),
        pl.Series(["a", "b"]),
    ],
    ids=lambda prompts: type(prompts).__module__.split(".")[0] + "." + type(prompts).__name__,
)
async def test_prompts_come_in_many_forms(prompts):
    assert await prompt_map(prompts, worker=Counting(), return_dtype=list[str]) == ["A", "B"]


async def test_an_async_iterable_and_a_file(here):
    assert await prompt_map(_later("ab"), worker=Counting(), return_dtype=list[str]) == ["A", "B"]
    (here / "in.txt").write_text("a\nb\n")
    assert await prompt_map(here / "in.txt", worker=Counting(), return_dtype=list[str]) == ["A", "B"]


async def test_messages_and_bodies_are_requests(provider, ledger):
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    (row,) = await prompt_map([{"messages": messages}], model_name="m", base_url=provider.base_url)
    assert row["prompt"] == {"messages": messages}
    (row,) = await prompt_map([messages], model_name="m", base_url=provider.base_url)
    assert row["status"] == "done"
    assert ledger() == 1


async def test_a_template_over_rows():
    rows = [{"text": "good", "id": 1}, {"text": "bad", "id": 2}]
    asked = await prompt_map(rows, worker=echo_worker, template="Label {{ text }}", return_dtype=list[str])
    assert asked == ["Label good", "Label bad"]
    with pytest.raises(BadInput, match=r"prompts\[1\].*nothing"):
        await prompt_map([{"nothing": 1}, {}], worker=echo_worker, template="{{ nothing }}")


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("one", "put it in a list"),
        (["a", 3], r"prompts\[1\]"),
        (["a", ""], r"prompts\[1\].*empty"),
        ([{"prompt": object()}], r"prompts\[0\]"),
        ([float("nan")], r"prompts\[0\]"),
        (3, "iterable"),
    ],
)
async def test_what_is_no_prompt_is_refused_with_its_place_and_nothing_is_written(here, prompts, message):
    with pytest.raises(UsageError, match=message):
        await prompt_map(prompts, worker=echo_worker)
    if (here / "runs.db").exists():
        with sqlite3.connect(here / "runs.db") as connection:
            assert connection.execute("SELECT count(*) FROM batches").fetchone() == (0,)
        connection.close()


# What keeps a call from going on.


async def test_a_missing_key_or_model_is_told_before_anything_is_made(here):
    with pytest.raises(ConfigurationError, match="OPENROUTER_API_KEY"):
        await prompt_map(["a"], model_name="m")
    assert list(here.iterdir()) == []


async def test_a_missing_model_names_the_parameter(provider):
    with pytest.raises(ConfigurationError, match="model_name="):
        await prompt_map(["a"], base_url=provider.base_url)


async def test_a_halted_lane_raises_and_keeps_everything(provider):
    provider.behave(error_mix="401:1")
    try:
        with pytest.raises(CannotGoOn, match="all that is done is kept"):
            await prompt_map(["a", "b"], model_name="halted", base_url=provider.base_url, teardown=True)
    finally:
        provider.behave(error_mix="")
    assert [row["status"] for row in await prompt_map(["a", "b"], model_name="halted", base_url=provider.base_url)] == [
        "done", "done",
    ]  # fmt: skip


async def test_a_spent_budget_raises(provider):
    prompts = [f"p{i}" for i in range(30)]
    call = {"model_name": "dear", "base_url": provider.base_url, "concurrency": 1}
    with pytest.raises(CannotGoOn, match="budget"):
        await prompt_map(prompts, **call, budget=0.000001)
    rows = await prompt_map(prompts, **call, budget=100)
    assert {row["status"] for row in rows} == {"done"}


@pytest.mark.parametrize(
    "wrong",
    [{"return_dtype": dict}, {"output_shape": "round"}, {"concurrency": 0}, {"template": "{{ a"}, {"worker": Counting}],
    ids=lambda wrong: next(iter(wrong)),
)
async def test_wrong_parameters_are_told(wrong):
    with pytest.raises((UsageError, ConfigurationError)):
        await prompt_map(["a"], **({"worker": echo_worker} | wrong))


# Structured answers.


class Label(BaseModel):
    """What a text is."""

    label: str
    score: int

    @field_validator("score")
    @classmethod
    def in_range(cls, score):
        if not 0 <= score <= 10:
            raise ValueError("a score is between 0 and 10")
        return score


async def test_a_response_model_makes_instances_and_json_text():
    async def label(prompt: str) -> str:
        return json.dumps({"label": prompt, "score": 7})

    (row,) = await prompt_map(["a"], worker=label, response_model=Label)
    assert row["result"] == Label(label="a", score=7)
    assert await prompt_map(["a"], worker=label, response_model=Label, return_dtype=list[str]) == [
        '{"label":"a","score":7}'
    ]


async def test_an_answer_that_its_validators_refuse_is_asked_again():
    scores = iter([99, 42, 7])

    async def label(prompt: str) -> dict:
        return {"label": prompt, "score": next(scores)}

    (row,) = await prompt_map(["a"], worker=label, response_model=Label)
    assert row["result"] == Label(label="a", score=7)


async def test_an_instance_may_be_returned_and_what_never_fits_fails():
    async def label(prompt: str) -> Label:
        return Label(label=prompt, score=1)

    async def no_label(prompt: str) -> str:
        return "nothing of the kind"

    assert (await prompt_map(["a"], worker=label, response_model=Label))[0]["result"] == Label(label="a", score=1)
    (row,) = await prompt_map(["a"], worker=no_label, response_model=Label)
    assert (row["status"], row["error_class"], row["result"]) == ("failed", "schema_mismatch", None)


# Limits.


async def test_rpm_limit_sets_the_lanes_limit_and_none_leaves_it(here, provider):
    call = {"model_name": "limited", "base_url": provider.base_url}
    await prompt_map(["a"], **call, rpm_limit=600)
    await prompt_map(["a", "b"], **call)
    with sqlite3.connect(here / "runs.db") as connection:
        assert connection.execute("SELECT rpm FROM lanes").fetchall() == [(600.0,)]
    connection.close()


# Streams.


async def test_a_stream_yields_each_row_once_as_it_ends():
    worker = Counting()
    prompts = [f"p{i % 60}" for i in range(200)]
    rows = [row async for row in prompt_stream(prompts, worker=worker, concurrency=4)]
    assert sorted(row["idx"] for row in rows) == list(range(200))
    assert all(row["result"] == row["prompt"].upper() for row in rows)
    assert len(worker.calls) == 60
    unique = [row async for row in prompt_stream(prompts, worker=worker, output_shape="unique")]
    assert len(unique) == 60
    assert len(worker.calls) == 60


async def test_a_stream_yields_before_all_is_done():
    gate = asyncio.Event()

    async def gated(prompt: str) -> str:
        if prompt == "last":
            await gate.wait()
        return prompt

    seen = []
    async for row in prompt_stream(["first", "last"], worker=gated):
        seen.append(row["prompt"])
        gate.set()
    assert seen == ["first", "last"]


async def test_a_stream_that_is_left_gives_back_what_runs(here):
    worker = Counting()
    async with aclosing(prompt_stream([f"p{i}" for i in range(500)], worker=worker, concurrency=2)) as rows:
        async for _ in rows:
            break
    with sqlite3.connect(here / "runs.db") as connection:
        assert connection.execute("SELECT count(*) FROM jobs WHERE state = 'inflight'").fetchone() == (0,)
    connection.close()
    assert len(await prompt_map([f"p{i}" for i in range(500)], worker=worker)) == 500
    assert len(worker.calls) < 560


async def test_a_stream_raises_at_its_end_what_kept_it(provider):
    provider.behave(error_mix="401:1")
    try:
        with pytest.raises(CannotGoOn):
            [row async for row in prompt_stream(["a"], model_name="halted stream", base_url=provider.base_url)]
    finally:
        provider.behave(error_mix="")


# Teardown.


async def test_teardown_keeps_everything_after_a_failure(here):
    async def refuse(prompt: str) -> str:
        raise Reject("no")

    await prompt_map(["a"], worker=refuse, teardown=True)
    assert (here / "runs.db").exists()


async def test_teardown_spares_what_else_is_in_the_file(here):
    await prompt_map(["a"], worker=echo_worker, batch="mine")
    await prompt_map(["b"], worker=Counting(), batch="gone", teardown=True)
    with sqlite3.connect(here / "runs.db") as connection:
        assert connection.execute("SELECT name FROM batches").fetchall() == [("mine",)]
    connection.close()


async def test_teardown_takes_the_generations_with_it_that_it_took_the_place_of(here):
    fails = [True]

    async def moody(prompt: str) -> str:
        if fails:
            raise asyncio.CancelledError
        return prompt

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await prompt_map(["a", "b"], worker=moody, teardown=True, max_attempts=8)
    fails.clear()
    await prompt_map(["c"], worker=moody, teardown=True)
    assert list(here.iterdir()) == []


async def test_cancellation_releases_and_keeps(here):
    started = asyncio.Event()

    async def hang(prompt: str) -> str:
        started.set()
        await asyncio.sleep(3600)
        return prompt

    task = asyncio.create_task(prompt_map(["a", "b"], worker=hang, teardown=True))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with sqlite3.connect(here / "runs.db") as connection:
        assert connection.execute("SELECT state, attempts FROM jobs").fetchall() == [("pending", 0)] * 2
    connection.close()


# From plain code, scripts, notebooks, and beside other processes.


def test_sync_from_plain_code():
    assert prompt_map_sync(["a"], worker=echo_worker, return_dtype=list[str]) == ["a"]


async def test_sync_where_a_loop_runs():
    assert prompt_map_sync(["a"], worker=echo_worker, return_dtype=list[str]) == ["a"]


def script(place, text, name="script.py"):
    (place.directory / name).write_text(textwrap.dedent(text))
    return forked.run([sys.executable, name], cwd=place.directory, env=place.environment, text=True, timeout=60)


ECHO_SCRIPT = """
    import asyncio
    from batchq import prompt_map

    async def shout(prompt: str) -> str:
        await asyncio.sleep(0.05)
        with open("calls.txt", "a") as file:
            file.write(prompt + "\\n")
        return prompt.upper()

    async def main():
        rows = await prompt_map([f"p{i}" for i in range(COUNT)], worker=shout, concurrency=2, progress_every=10)
        print(sum(row["status"] == "done" for row in rows))

    if __name__ == "__main__":
        asyncio.run(main())
"""


def test_a_script_prints_rows_on_stdout_progress_on_stderr_and_the_line_that_looks_at_it(tmp_path):
    with bench(tmp_path) as place:
        done = script(place, ECHO_SCRIPT.replace("COUNT", "40"))
        assert done.stdout == "40\n"
        assert "batchq status script-" in done.stderr
        assert done.stderr.count(" of 40 done") >= 3
        (name,) = [name for (name,) in place.query("SELECT name FROM batches")]
        assert place.run("status", name).returncode == 0


def test_a_killed_script_goes_on_and_another_terminal_can_help(tmp_path):
    with bench(tmp_path) as place:
        text = ECHO_SCRIPT.replace("COUNT", "300")
        (place.directory / "script.py").write_text(textwrap.dedent(text))
        command = [sys.executable, "script.py"]
        process = forked.Popen(command, cwd=place.directory, env=place.environment, stderr=subprocess.DEVNULL)
        wait_for(lambda: place.count("done") >= 10, "ten answers")
        process.kill()
        process.wait()
        # Its leases run out; one is a minute, which a test does not wait.
        with closing(sqlite3.connect(place.database)) as connection, connection:
            connection.execute("UPDATE jobs SET claimable_at = 0 WHERE state = 'inflight'")
        helper = place.start("worker", "--worker", "script.py:shout", "--concurrency", "8", "--lease", "2s")
        done = script(place, text)
        assert done.stdout == "300\n", done.stderr
        helper.terminate()
        helper.wait()
        runners = place.query("SELECT count(DISTINCT runner) FROM attempts WHERE outcome = 'succeeded'")
        assert runners[0][0] >= 3
        calls = (place.directory / "calls.txt").read_text().split()
        # Twice only what was in flight when the process was killed.
        assert len(calls) <= 302
        assert len(set(calls)) == 300


def test_a_script_without_a_main_guard_is_told_so_when_a_worker_imports_it(tmp_path):
    with bench(tmp_path) as place:
        (place.directory / "script.py").write_text(
            "from batchq import prompt_map_sync\n"
            "async def shout(prompt: str) -> str:\n    return prompt\n"
            "prompt_map_sync(['a'], worker=shout)\n"
        )
        done = place.run("worker", "--worker", "script.py:shout", "--until-empty")
        assert done.returncode == 78
        assert "__main__" in done.stderr


def test_logs_of_the_library_are_quiet_unless_asked_for(tmp_path):
    with bench(tmp_path) as place:
        done = script(
            place,
            """
            import logging, sys
            from batchq import prompt_map_sync
            def shout(prompt: str) -> str:
                return prompt.upper()
            if __name__ == "__main__":
                prompt_map_sync(["a"], worker=shout, verbose=False)
                logging.basicConfig(level="INFO", stream=sys.stdout)
                prompt_map_sync(["b"], worker=shout, verbose=False)
            """,
        )
        assert done.stderr == ""
        lines = done.stdout.splitlines()
        assert any("worker.started" in line for line in lines)
        assert sum("worker.started" in line for line in lines) == 1


def test_in_a_notebook(tmp_path, monkeypatch):
    from jupyter_client.manager import start_new_kernel

    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(tmp_path))
    try:
        reply, shown = [], []
        client.execute_interactive(
            "from batchq import prompt_map, prompt_map_sync\n"
            "async def shout(prompt: str) -> str:\n    return prompt.upper()\n"
            "one = await prompt_map(['a', 'b'], worker=shout, return_dtype=list[str])\n"
            "two = prompt_map_sync(['a', 'c'], worker=shout, return_dtype=list[str])\n"
            "print(one, two)\n",
            output_hook=lambda message: shown.append(message["content"].get("text", "")),
            timeout=60,
        )
        del reply
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert "['A', 'B'] ['A', 'C']" in "".join(shown)
