"""The first rows of an input, or some at random: the same ones in both passes, and again."""

import io
import random
import sys

import pyarrow as pa
import pytest
from completing import rows_of, with_store, write_lines
from pyarrow import parquet

from batchq import source
from batchq.cli.commands import batchq
from batchq.cli.exits import run_command
from batchq.errors import BadInput, UsageError
from batchq.formats import PromptTemplate, ReadOptions
from batchq.jobs import NewBatch
from batchq.producer import complete, enqueue
from batchq.source import Selection
from batchq.survey import survey_input

FORMATS = ("jsonl", "txt", "csv", "tsv", "parquet")


def write(directory, input_format, prompts):
    path = directory / f"in.{input_format}"
    if input_format == "jsonl":
        return write_lines(path, prompts)
    if input_format == "parquet":
        parquet.write_table(pa.table({"prompt": prompts}), path, row_group_size=9)
    elif input_format == "txt":
        path.write_text("".join(f"{prompt}\n" for prompt in prompts))
    else:
        path.write_text("prompt\n" + "".join(f'"{prompt}"\n' for prompt in prompts))
    return path


def chosen(path, *, limit=None, sample=None, skip_bad=None, **options):
    """Return the prompts that a selection leaves, after they were seen to be the same in another pass."""
    selection = Selection(limit, sample)
    with survey_input(path, ReadOptions(**options), selection=selection, skip_bad=skip_bad) as survey:
        rows = list(survey.good_rows())
        assert list(survey.good_rows()) == rows
        assert survey.rows == len(rows)
        survey.check_unchanged()
        return [row.payload for row in rows]


def bad(path, **selected):
    with pytest.raises(BadInput) as caught:
        chosen(path, **selected)
    return caught.value


# The first ones


@pytest.mark.parametrize("input_format", FORMATS)
def test_the_first_rows_of_each_format(tmp_path, input_format):
    prompts = [f"p{i}" for i in range(30)]
    path = write(tmp_path, input_format, prompts)
    for count in (1, 9, 10, 29, 30, 31, 10**9):
        assert chosen(path, limit=count) == prompts[:count]


def test_what_lies_behind_the_first_rows_is_not_read(tmp_path):
    path = tmp_path / "in.csv"
    path.write_bytes(b'prompt,custom_id\na,1\nb,2\n\xff,3\n"never closed')
    assert chosen(path, limit=2) == ["a", "b"]
    path = write_lines(tmp_path / "in.jsonl", [{"prompt": "a", "custom_id": "x"}, {"prompt": "b", "custom_id": "x"}])
    assert chosen(path, limit=1) == ["a"]
    assert "duplicate custom_id 'x'" in bad(path, limit=2).examples[0]


def test_bad_rows_among_the_first_are_told_and_do_not_count(tmp_path):
    path = write_lines(tmp_path / "in.jsonl", ["a", "", "b", "", "c", "d", ""])
    error = bad(path, limit=3)
    assert error.examples == (f"{path}:2: empty prompt", f"{path}:4: empty prompt")
    aside = tmp_path / "bad"
    assert chosen(path, limit=3, skip_bad=aside) == ["a", "b", "c"]
    assert aside.read_text() == '""\n""\n'
    assert chosen(path, limit=1) == ["a"]


def test_first_rows_with_another_model_do_not_count(tmp_path):
    def line(name, model):
        body = {"model": model, "messages": [{"role": "user", "content": name}]}
        return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}

    path = write_lines(tmp_path / "in.jsonl", [line("a", "m"), line("b", "n"), line("c", "m"), line("d", "n")])
    aside = tmp_path / "bad"
    assert len(chosen(path, limit=2, skip_bad=aside)) == 2
    assert aside.read_text().count("\n") == 1
    assert len(chosen(path, limit=1)) == 1


# Some at random


@pytest.mark.parametrize("input_format", FORMATS)
def test_a_sample_of_each_format_is_in_order_and_the_same_each_time(tmp_path, input_format):
    prompts = [f"p{i:03}" for i in range(200)]
    path = write(tmp_path, input_format, prompts)
    found = chosen(path, sample=20)
    assert len(found) == 20
    assert found == sorted(found)
    random.seed(1)
    assert chosen(path, sample=20) == found
    assert set(found) < set(chosen(path, sample=50))
    assert found != prompts[:20]
    for count in (200, 201, 10**9):
        assert chosen(path, sample=count) == prompts


def test_a_sample_is_spread_evenly():
    drawn = source.heapq.nsmallest(20_000, range(1, 100_001), key=source._lot)
    for tenth in range(10):
        assert 1800 < sum(tenth * 10_000 < line <= (tenth + 1) * 10_000 for line in drawn) < 2200
    assert 9_700 < sum(line % 2 for line in drawn) < 10_300


def test_rows_outside_of_a_sample_are_not_looked_at(tmp_path):
    prompts = [f"p{i}" for i in range(100)]
    path = write_lines(tmp_path / "in.jsonl", prompts)
    wanted = set(chosen(path, sample=10))
    lines = [prompt if prompt in wanted else {"nonsense": prompt} for prompt in prompts]
    assert set(chosen(write_lines(path, lines), sample=10)) == wanted
    assert bad(path, sample=11).count == 1


def test_a_bad_row_of_a_sample_is_told_and_set_aside_whole(tmp_path):
    path, aside = tmp_path / "in.csv", tmp_path / "bad.csv"
    path.write_text("prompt,x\n" + "".join(f'"p{i}\n{i}",1\n' for i in range(50)))
    with survey_input(path, ReadOptions(), selection=Selection(sample=5)) as survey:
        lines = [row.line for row in survey.good_rows()]
    text = path.read_text().splitlines(keepends=True)
    text[lines[2]] = text[lines[2]].replace(",1", ",1,2")
    path.write_text("".join(text))
    assert bad(path, sample=5).examples == (f"{path}:{lines[2]}: 3 fields, the header has 2",)
    assert len(chosen(path, sample=5, skip_bad=aside)) == 4
    assert aside.read_text() == "prompt,x\n" + text[lines[2] - 1] + text[lines[2]]


def test_with_a_template_and_blank_lines(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("\n\n".join(f'{{"n": {i}}}' for i in range(20)) + "\n\n\n")
    options = {"template": PromptTemplate("n={{ n }}")}
    assert chosen(path, limit=2, **options) == ["n=0", "n=1"]
    assert len(chosen(path, sample=7, **options)) == 7
    assert len(chosen(path, sample=20, **options)) == 20


@pytest.mark.parametrize(
    ("name", "data"), [("in.jsonl", b"\n\n"), ("in.txt", b"\n"), ("in.csv", b"prompt\n"), ("in.csv", b"")]
)
def test_nothing_to_choose_from(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    for selected in ({"limit": 3}, {"sample": 3}):
        with pytest.raises(UsageError, match="is empty"):
            chosen(path, **selected)


def test_a_sample_that_draws_only_blank_lines_of_a_text_says_so(tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("a\n" * 9)
    with survey_input(path, ReadOptions(), selection=Selection(sample=1)) as survey:
        (row,) = survey.good_rows()
    path.write_text("".join("\n" if line == row.line else "a\n" for line in range(1, 10)))
    assert bad(path, sample=1).examples == (f"{path}:{row.line}: empty prompt",)


def test_both_or_none_of_them_make_no_sense():
    with pytest.raises(UsageError, match="--limit and --sample both"):
        Selection(1, 1)
    for wrong in ({"limit": 0}, {"sample": -1}):
        with pytest.raises(UsageError, match="at least 1"):
            Selection(**wrong)


# Enqueued


def test_of_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'"a"\n"b"\n""\n')))
    assert chosen(None, limit=2) == ["a", "b"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'"a"\n"b"\n')))
    assert chosen(None, sample=2) == ["a", "b"]


def test_a_longer_limit_goes_on_where_the_shorter_one_ended(tmp_path):
    path = write_lines(tmp_path / "in.jsonl", [f"p{i}" for i in range(10)])

    def add(limit):
        with survey_input(path, ReadOptions(), selection=Selection(limit)) as survey:
            new = complete(NewBatch("b", "echo"), survey)
            return with_store(tmp_path / "q.db", lambda store: enqueue(store, survey, new))

    assert (add(3).added, add(3).added, add(7).added, add(None).added) == (3, 0, 4, 3)
    assert [payload for _, _, payload in rows_of(tmp_path / "q.db")] == [f'"p{i}"' for i in range(10)]


def test_from_the_command_line(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BATCHQ_DB", raising=False)
    write_lines(tmp_path / "in.jsonl", [f"p{i}" for i in range(50)] + [""])
    command = ["enqueue", "in.jsonl", "--worker", "echo"]
    assert run_command(batchq, [*command, "--limit", "3"]) == 0
    assert run_command(batchq, [*command, "--limit", "3"]) == 0
    assert rows_of("runs.db") == [(i, None, f'"p{i}"') for i in range(3)]
    assert run_command(batchq, [*command, "--sample", "5", "--batch", "some", "--db", "some.db"]) == 0
    capfd.readouterr()
    assert run_command(batchq, [*command, "--sample", "5", "--batch", "some", "--db", "some.db"]) == 0
    assert "all 5 rows are in some already" in capfd.readouterr().err
    assert len(rows_of("some.db")) == 5
    assert run_command(batchq, [*command, "--limit", "3", "--sample", "5"]) == 2
    assert run_command(batchq, [*command, "--limit", "0"]) == 2
    assert "leave one out" in capfd.readouterr().err
