"""`out=` of `prompt_map`: the rows that were asked for, in a file that held nothing else before."""

from __future__ import annotations

import csv
import json
from contextlib import asynccontextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from batchq import Plugin, UsageError, open_queue, prompt_map
from batchq.collecting import Output, write_results
from batchq.jobs import NewJob

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BATCHQ_DB", raising=False)
    return tmp_path


class Counting:
    def __init__(self):
        self.calls = []

    async def __call__(self, prompt: str) -> str:
        self.calls.append(prompt)
        return f"{prompt.upper()}!"


@pytest.fixture
def counting():
    return Counting()


@pytest.fixture
def ask(counting):
    async def shout(prompt: str) -> str:
        return await counting(prompt)

    @asynccontextmanager
    async def opened(_endpoint):
        yield shout

    return Plugin(opened, name="shout")


READ = {
    "jsonl": lambda path: [line["result"] for line in map(json.loads, path.read_text().splitlines())],
    "csv": lambda path: [row["result"] for row in csv.DictReader(path.read_text().splitlines())],
    "tsv": lambda path: [row["result"] for row in csv.DictReader(path.read_text().splitlines(), delimiter="\t")],
    "txt": lambda path: path.read_text().splitlines(),
    "parquet": lambda path: [row["result"] for row in pq.read_table(path).to_pylist()],
}


@pytest.mark.parametrize("kind", READ)
@pytest.mark.parametrize("shape", ["original", "unique"])
async def test_each_documented_format_is_written_and_replaced_by_the_next_run(here, ask, counting, kind, shape):
    out = here / f"answers.{kind}"
    call = {"worker": ask, "out": out, "output_shape": shape, "batch": "b", "verbose": False}
    first = await prompt_map(["a", "b", "a"], **call)
    expected = ["A!", "B!", "A!"] if shape == "original" else ["A!", "B!"]
    assert READ[kind](out) == expected
    assert (first.done, first.total) == (len(expected), len(expected))
    assert await prompt_map(["a", "b", "a"], **call) == first
    await prompt_map(["a", "b", "a", "c"], **call)
    assert READ[kind](out) == [*expected, "C!"]
    assert len(counting.calls) == 3
    for _ in range(2):
        await prompt_map(["a", "b", "a", "d"], **call, teardown=True, db_url="other.db")
        assert READ[kind](out) == [*expected, "D!"]
        assert not (here / "other.db").exists()


@pytest.mark.parametrize("kind", [kind for kind in READ if kind != "txt"])
async def test_prompts_stand_beside_the_answers_where_there_is_a_place(here, ask, kind):
    await prompt_map(["a"], worker=ask, out=here / f"o.{kind}", verbose=False)
    assert b"prompt" in (here / f"o.{kind}").read_bytes()


PRECIOUS = {
    "mine.jsonl": '{"prompt":"precious"}\n',
    "mine.csv": "id,text\n1,precious\n",
    "mine.parquet": "no such thing\n",
    "notes.txt": "precious\nnotes\nof mine\n",
    "prompts.txt": "a\nb",
    "results.csv": '{"custom_id":null,"position":0,"state":"done"}\n',
}


@pytest.mark.parametrize("name", PRECIOUS)
async def test_what_is_no_result_is_kept_and_nothing_is_asked(here, ask, counting, name):
    path = here / name
    path.write_text(PRECIOUS[name])
    with pytest.raises(UsageError, match=r"exists.*name another file with out="):
        await prompt_map(["a", "b"], worker=ask, out=path, verbose=False)
    assert path.read_text() == PRECIOUS[name]
    assert counting.calls == []
    assert [left.name for left in here.iterdir() if left.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["in.txt", "in.jsonl"])
async def test_the_input_is_never_replaced(here, ask, counting, name):
    path = here / name
    path.write_text('"A!"\n' if name.endswith("l") else "A!\n")
    with pytest.raises(UsageError, match="another file"):
        await prompt_map(path, worker=ask, out=path, verbose=False)
    assert counting.calls == []


async def test_a_text_of_fewer_answers_is_gone_on_with_and_one_of_other_lines_is_not(here, ask):
    call = {"worker": ask, "out": here / "o.txt", "batch": "b", "verbose": False}
    await prompt_map(["a", "b"], **call)
    (here / "o.txt").write_text("A!\nmine\n")
    with pytest.raises(UsageError, match="its 2 lines are answers"):
        await prompt_map(["a", "b", "c"], **call)
    (here / "o.txt").write_text("A!\nB!\nand\nmine\n")
    with pytest.raises(UsageError, match="its 4 lines are answers"):
        await prompt_map(["a", "b", "c"], **call)
    (here / "o.txt").write_text("A!\nB!\n")
    assert (await prompt_map(["a", "b", "c"], **call)).done == 3


async def test_answers_that_repeat_their_prompts_replace_them(here):
    call = {"worker": lambda prompt: prompt, "out": here / "o.txt", "batch": "b", "verbose": False}
    for _ in range(2):
        assert (await prompt_map(["a", "b"], **call)).done == 2


async def test_a_file_that_can_not_be_written_is_told_before_anything_is_asked(here, ask, counting):
    for out in ("no/such/directory.jsonl", ".", "runs.db"):
        with pytest.raises(UsageError):
            await prompt_map(["a"], worker=ask, out=out, verbose=False)
    assert counting.calls == []
    assert not (here / "runs.db").exists()


@pytest.mark.parametrize("kind", ["jsonl", "txt"])
async def test_rows_behind_the_last_one_that_is_wanted_are_not_written(here, ask, kind):
    out = here / f"o.{kind}"
    async with open_queue("runs.db") as queue:
        await queue.enqueue(["a", "b", "c"], batch="b", worker=ask, dedupe=True)
        await queue.work(ask)
        batch = await queue.store.batch("b")
        collected = await write_results(queue.store, batch.name, Output(out, most=2))
        assert collected.counts.total == 2
    assert READ[kind](out) == ["A!", "B!"]


async def test_a_row_that_is_added_while_a_call_runs_is_not_written(here, counting):
    async def ask(prompt: str) -> str:
        if prompt == "a":
            async with open_queue("runs.db") as queue:
                batch = await queue.store.batch("b")
                await queue.store.add_jobs(batch, [NewJob(2, None, "0" * 32, '"late"')])
                await queue.store.seal(batch)
        return f"{prompt.upper()}!"

    summary = await prompt_map(["a", "b"], worker=ask, out=Path("o.txt"), batch="b", verbose=False)
    assert Path("o.txt").read_text() == "A!\nB!\n"
    assert summary.total == 2
