"""Every output format, written to real files and read back by others' readers."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import forked
import pyarrow.parquet as pq
import pytest
from completing import end_jobs, with_store
from hypothesis import example, given, settings
from hypothesis import strategies as st
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from batchq.collecting import Output, check_output, write_results
from batchq.errors import OutputFailed, UsageError
from batchq.formats import OUTPUT_FORMATS
from batchq.formats.rendering import Column, Entry, Layout, parquet, sheet_for
from batchq.jobs import (
    Answered,
    Batch,
    BatchState,
    Failed,
    JobState,
    NewBatch,
    NewJob,
    Reason,
    Result,
    Succeeded,
    Usage,
)
from batchq.request import COMPLETIONS, EMBEDDINGS, RESPONSES

QUICK = settings(max_examples=60, deadline=None)
NOW = 1_800_000_000_000
BATCH = Batch(7, "demo", "echo", "default", "m", {}, 0, 8, 1000, None, BatchState.OPEN, 1, NOW, NOW, NOW)
HARD = 'a"b,c\td\\n\r\ne\r\0\u2028\u0085é🜂\ud800'

texts = st.one_of(st.text(st.characters(codec=None), max_size=20), st.text('",\\\r\n\t\0a\u2028', max_size=8))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
counts = st.none() | st.integers(0, 2**40)


@st.composite
def results(draw: st.DrawFn, position: int = 3) -> Result:
    state = draw(st.sampled_from(JobState))
    said = None if state in {JobState.PENDING, JobState.CANCELLED} else json.dumps(draw(values))
    fails = state is JobState.FAILED
    return Result(
        position, draw(st.none() | texts), "key", state, draw(st.integers(0, 9)),
        said if not fails or draw(st.booleans()) else None,
        draw(texts) if fails else None, "bad_request" if fails else None, draw(st.none() | texts),
        Usage(draw(counts), draw(counts), draw(counts), draw(counts)), draw(st.none() | st.integers(0, 10**15)),
        None, json.dumps(draw(texts)), status=draw(st.sampled_from([None, 200, 400, 500])) if fails else None,
    )  # fmt: skip


def done(value: object = "yes", **changes: object) -> Result:
    usage = Usage(3, 5, 1, 2)
    plain = Result(0, None, "key", JobState.DONE, 1, json.dumps(value), None, None, "stop", usage, None, None, None)
    return replace(plain, **changes)


def failed(**changes: object) -> Result:
    return done(**{"state": JobState.FAILED, "result": None, "error": "no", "error_class": "bad_request", **changes})


def write(output_format: str, entries: list[Entry], layout: Layout, path: Path) -> None:
    with path.open("wb") as file:
        sheet = sheet_for(output_format, file, layout)
        sheet.write(entries)
        sheet.close()


def written(output_format: str, *found: Result, layout: Layout | None = None) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "out")
        write(output_format, [Entry(result) for result in found], layout or Layout(BATCH), path)
        return path.read_bytes()


def fit(text: str | None) -> str | None:
    return None if text is None else re.sub("[\ud800-\udfff]", "\ufffd", text)


def as_text(value_json: str | None) -> str | None:
    value = None if value_json is None else json.loads(value_json)
    return fit(value) if isinstance(value, str) else value_json if value_json is None else compact(value)


def compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def normal(result: Result) -> Result:
    """A result as the store holds it: compact JSON."""
    return replace(result, result=None if result.result is None else compact(json.loads(result.result)))


# JSON Lines


@QUICK
@given(st.lists(results(), min_size=1, max_size=4))
def test_jsonl_is_read_back(found):
    data = written("jsonl", *found, layout=Layout(BATCH, has_ids=True, with_prompt=True))
    assert data.isascii()
    lines = [json.loads(line) for line in data.decode().splitlines()]
    assert len(lines) == len(found)
    for line, result in zip(lines, found, strict=True):
        assert (line["custom_id"], line["state"]) == (result.custom_id, result.state)
        assert line["prompt"] == json.loads(result.payload)
        assert line.get("result") == (None if result.result is None else json.loads(result.result))
        assert line.get("error", {}).get("message") == result.error
        assert line.get("error", {}).get("status") == result.status
        assert line["usage"]["input_tokens"] == result.usage.input_tokens


def test_an_answer_that_was_paid_for_stands_beside_the_error():
    line = json.loads(written("jsonl", failed(status=200, result='"half an ans"')))
    assert (line["result"], line["error"]["status"], line["error"]["class"]) == ("half an ans", 200, "bad_request")


# CSV and TSV


@QUICK
@given(st.lists(results(), min_size=1, max_size=4), st.sampled_from(["csv", "tsv"]))
@example([done(HARD, custom_id=HARD, payload=json.dumps(HARD))], "csv")
def test_tables_are_read_back(found, output_format):
    found = list(map(normal, found))
    data = written(output_format, *found, layout=Layout(BATCH, has_ids=True, with_prompt=True))
    delimiter = "," if output_format == "csv" else "\t"
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "out")
        path.write_bytes(data)
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter=delimiter, strict=True))
    assert len(rows) == len(found)
    for row, result in zip(rows, found, strict=True):
        assert list(row) == [
            "custom_id", "position", "prompt", "state", "result", "error_class", "error", "attempts",
            "input_tokens", "output_tokens", "cost", "finish_reason",
        ]  # fmt: skip
        assert row["custom_id"] == (fit(result.custom_id) or "")
        assert row["prompt"] == as_text(result.payload)
        assert row["result"] == (as_text(result.result) or "")
        assert row["error"] == (fit(result.error) or "")
        assert row["input_tokens"] == ("" if result.usage.input_tokens is None else str(result.usage.input_tokens))
        assert row["cost"] == "" if result.cost is None else float(row["cost"]) == pytest.approx(result.cost / 1e9)


def test_a_table_tells_an_empty_answer_from_none_and_ends_its_lines_with_lf():
    data = written("csv", done(""), done(cost=1_500_000_000), failed(cost=0))
    assert data.decode().split("\n") == [
        "position,state,result,error_class,error,attempts,input_tokens,output_tokens,cost,finish_reason",
        '0,done,"",,,1,3,5,,stop',
        "0,done,yes,,,1,3,5,1.5,stop",
        "0,failed,,bad_request,no,1,3,5,0.0,stop",
        "",
    ]


# Text


def unescaped(line: str) -> str:
    return re.sub(r"\\(.)", lambda found: {"\\": "\\", "r": "\r", "n": "\n"}[found[1]], line)


@QUICK
@given(st.lists(texts, min_size=1, max_size=5))
@example([HARD, "", "\\n", "\n"])
def test_line_i_of_a_text_answers_prompt_i(said):
    data = written("txt", *map(done, said))
    lines = data.decode().split("\n")
    assert lines.pop() == ""
    assert [unescaped(line) for line in lines] == list(map(fit, said))


def test_a_text_has_json_for_values_and_an_empty_line_for_what_is_no_answer():
    found = [done({"a": "x\ny"}), failed(result='"half"'), done(state=JobState.PENDING, result=None), done("z")]
    assert written("txt", *map(normal, found)).decode() == '{"a":"x\\ny"}\n\n\nz\n'


# Parquet


@QUICK
@given(st.lists(results(), min_size=1, max_size=4))
@example([done(HARD, custom_id=HARD, payload=json.dumps(HARD))])
def test_parquet_is_read_back(found):
    found = list(map(normal, found))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "out.parquet")
        layout = Layout(BATCH, has_ids=True, with_prompt=True)
        write("parquet", [Entry(result) for result in found], layout, path)
        table = pq.read_table(path)
    assert {name: str(kind) for name, kind in zip(table.schema.names, table.schema.types, strict=True)} == {
        "custom_id": "string", "position": "int64", "prompt": "string", "state": "string", "result": "string",
        "error_class": "string", "error": "string", "attempts": "int64", "input_tokens": "int64",
        "output_tokens": "int64", "cost": "double", "finish_reason": "string",
    }  # fmt: skip
    for row, result in zip(table.to_pylist(), found, strict=True):
        assert row["custom_id"] == fit(result.custom_id)
        assert row["result"] == as_text(result.result)
        assert row["prompt"] == as_text(result.payload)
        assert row["error"] == fit(result.error)
        assert row["output_tokens"] == result.usage.output_tokens
        assert row["cost"] == (None if result.cost is None else pytest.approx(result.cost / 1e9))


def test_parquet_has_row_groups_of_bounded_size(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_GROUP_ROWS", 10)
    monkeypatch.setattr(parquet, "_GROUP_CHARACTERS", 100)
    path = tmp_path / "out.parquet"
    entries = [Entry(done("x", position=i)) for i in range(25)] + [
        Entry(done("y" * 60, position=25 + i)) for i in range(4)
    ]
    write("parquet", entries, Layout(BATCH), path)
    file = pq.ParquetFile(path)
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [10, 10, 7, 2]
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert file.read()["position"].to_pylist() == list(range(29))


def test_no_results_make_a_whole_file(tmp_path):
    for output_format in OUTPUT_FORMATS:
        write(output_format, [], Layout(BATCH), tmp_path / output_format)
    assert pq.read_table(tmp_path / "parquet").num_rows == 0
    assert (tmp_path / "jsonl").read_bytes() == b""
    assert (tmp_path / "csv").read_bytes().startswith(b"position,")


# The OpenAI Batch API


def openai_lines(*found: Result, url: str | None = None, params: dict[str, object] | None = None) -> list[dict]:
    made = {"url": url} if url else {}
    batch = replace(BATCH, settings={**made, **({"params": params} if params else {})})
    data = written("openai", *found, layout=Layout(batch))
    assert data.isascii()
    return [json.loads(line) for line in data.decode().splitlines()]


def check_line(line: dict) -> None:
    assert list(line) == ["id", "custom_id", "response", "error"]
    assert re.fullmatch(r"batch_req_[0-9a-f]{32}", line["id"])
    assert (line["response"] is None) != (line["error"] is None)
    if line["response"] is not None:
        assert list(line["response"]) == ["status_code", "request_id", "body"]
    else:
        assert list(line["error"]) == ["code", "message"]


@QUICK
@given(results())
@example(done(HARD, custom_id=HARD))
def test_lines_of_the_batch_api_are_read_back(result):
    lines = openai_lines(result)
    if result.state in {JobState.PENDING, JobState.INFLIGHT}:
        assert lines == []
        return
    (line,) = lines
    check_line(line)
    assert line["custom_id"] == (str(result.position) if result.custom_id is None else result.custom_id)
    if result.state is JobState.DONE:
        body = ChatCompletion.model_validate(line["response"]["body"])
        said = json.loads(result.result)
        assert body.choices[0].message.content == (said if isinstance(said, str) else compact(said))
        assert body.object == "chat.completion"


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def test_a_chat_answer_says_all_that_is_known():
    meta = json.dumps({"id": "gen-1", "model": "openai/gpt-4o", "provider": "x"})
    (line,) = openai_lines(done("Hi", meta=meta, finished_at=NOW + 5000, custom_id="a"))
    assert line["response"]["body"] == {
        "id": "gen-1", "object": "chat.completion", "created": NOW // 1000 + 5, "model": "openai/gpt-4o",
        "choices": [{
            "index": 0, "message": {"role": "assistant", "content": "Hi", "refusal": None}, "logprobs": None,
            "finish_reason": "stop",
        }],
        "usage": {
            "prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8,
            "prompt_tokens_details": {"cached_tokens": 1}, "completion_tokens_details": {"reasoning_tokens": 2},
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("said", "content", "reason"),
    [
        ({"content": None, "tool_calls": [CALL]}, None, "tool_calls"),
        ({"content": "wait", "tool_calls": [CALL]}, "wait", "tool_calls"),
        ({"content": "x", "tool_calls": [{"id": 3}]}, '{"content":"x","tool_calls":[{"id":3}]}', "stop"),
        ({"tool_calls": [CALL], "label": 1}, ..., "stop"),
        (["a", "b"], '["a","b"]', "stop"),
        (None, "null", "stop"),
    ],
)
def test_answers_that_are_no_text(said, content, reason):
    (line,) = openai_lines(done(said, finish_reason="end_turn", usage=Usage()))
    body = ChatCompletion.model_validate(line["response"]["body"])
    assert body.choices[0].message.content == (compact(said) if content is ... else content)
    assert body.choices[0].finish_reason == reason
    assert body.usage is None
    if reason == "tool_calls":
        assert body.choices[0].message.tool_calls[0].function.name == "f"


def test_several_answers_are_several_choices():
    (line,) = openai_lines(done(["a", "b"]), params={"n": 2})
    body = ChatCompletion.model_validate(line["response"]["body"])
    assert [(choice.index, choice.message.content) for choice in body.choices] == [(0, "a"), (1, "b")]


def test_the_other_apis_have_bodies_of_their_own():
    (line,) = openai_lines(done("Hi"), url=COMPLETIONS)
    assert Completion.model_validate(line["response"]["body"]).choices[0].text == "Hi"
    (line,) = openai_lines(done("Hi"), url=RESPONSES)
    body = Response.model_validate(line["response"]["body"])
    assert (body.output_text, body.usage.total_tokens, body.status) == ("Hi", 8, "completed")
    (line,) = openai_lines(done({"content": None, "tool_calls": [CALL]}, usage=Usage()), url=RESPONSES)
    body = Response.model_validate(line["response"]["body"])
    assert [(item.type, item.name, item.call_id) for item in body.output] == [("function_call", "f", "c1")]
    for said, vectors in (([0.5, 1], [[0.5, 1]]), ([[1.0], [2.0]], [[1.0], [2.0]])):
        (line,) = openai_lines(done(said), url=EMBEDDINGS)
        embeddings = CreateEmbeddingResponse.model_validate(line["response"]["body"])
        assert [item.embedding for item in embeddings.data] == vectors
        assert (embeddings.object, embeddings.usage.prompt_tokens) == ("list", 3)


def test_a_kept_response_is_the_body():
    kept = {"id": "x", "object": "chat.completion", "choices": [], "é": 1}
    (line,) = openai_lines(done("Hi", response=json.dumps(kept)))
    assert line["response"]["body"] == kept


def test_failures_are_http_errors_where_there_was_one():
    found = [
        failed(status=429, custom_id="a"),
        failed(status=503),
        failed(status=None),
        failed(status=200, result='"half"'),
        done(state=JobState.CANCELLED, result=None),
    ]
    lines = openai_lines(*found)
    for line in lines:
        check_line(line)
    assert lines[0]["response"]["status_code"] == 429
    assert lines[0]["response"]["body"] == {
        "error": {"message": "no", "type": "invalid_request_error", "param": None, "code": "bad_request"}
    }
    assert lines[1]["response"]["body"]["error"]["type"] == "server_error"
    assert lines[2]["error"] == lines[3]["error"] == {"code": "bad_request", "message": "no"}
    assert lines[4]["error"]["code"] == "batch_cancelled"


def test_ids_of_lines_are_stable_and_their_own():
    first, second = openai_lines(done(position=0), done(position=1))
    assert (first["custom_id"], second["custom_id"]) == ("0", "1")
    assert first["id"] != second["id"]
    assert openai_lines(done("other", position=0))[0]["id"] == first["id"]


# Whole outputs


ANSWERS = [HARD, "", {"a": [1, None]}, 7, None, "no", "half", "\n"]


def outcome(claim):
    said = Answered(json.dumps(ANSWERS[claim.position]), Usage(3, 5), cost=1_000_000)
    if claim.position == 5:
        return Failed(Reason("bad_request", HARD, 400))
    if claim.position == 6:
        return Failed(Reason("truncated", "cut off", 200), said)
    return Succeeded(said)


@pytest.fixture
def database(tmp_path):
    async def fill(store):
        batch = await store.open_batch(NewBatch("demo", "echo", model="m"))
        await store.add_jobs(batch, [NewJob(i, f"id{i}", f"k{i}", json.dumps(f"prompt {i}")) for i in range(8)])
        await store.seal(batch)
        await end_jobs(store, outcome)

    path = tmp_path / "queue.db"
    with_store(path, fill)
    return path


def collect(database: Path, output: Output):
    check_output(output, database=database)
    return with_store(database, lambda store: write_results(store, "demo", output))


def records(path: Path, output_format: str) -> list[dict]:
    if output_format == "parquet":
        return pq.read_table(path).to_pylist()
    if output_format in {"csv", "tsv"}:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file, delimiter="," if output_format == "csv" else "\t", strict=True))
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [{"line": line} if output_format == "txt" else json.loads(line) for line in lines]


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_collected_twice_the_bytes_are_the_same(database, tmp_path, output_format):
    path = tmp_path / f"out.{output_format}"
    output = Output(path, output_format, with_prompt=output_format not in {"txt", "openai"})
    collected = collect(database, output)
    assert (collected.written, collected.set_aside) == (8, 0)
    once = path.read_bytes()
    assert len(records(path, output_format)) == 8
    if output_format == "txt":
        with pytest.raises(UsageError, match=r"plain text never tells.*--force"):
            check_output(output)
        with_store(database, lambda store: write_results(store, "demo", output))
    else:
        collect(database, output)
    assert path.read_bytes() == once


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_failed_jobs_go_into_a_file_of_their_own(database, tmp_path, output_format):
    path, errors = tmp_path / "out", tmp_path / "errors"
    collected = collect(database, Output(path, output_format, errors=errors))
    assert (collected.written, collected.set_aside) == (8 if output_format == "txt" else 6, 2)
    good = records(path, output_format)
    bad = records(errors, "jsonl" if output_format == "txt" else output_format)
    assert len(bad) == 2
    if output_format == "txt":
        assert [good[5], good[6]] == [{"line": ""}] * 2
        assert (bad[1]["result"], bad[1]["error"]["class"]) == ("half", "truncated")
    elif output_format == "openai":
        assert [line["custom_id"] for line in bad] == ["id5", "id6"]
        assert {line["response"]["status_code"] for line in good} == {200}
        assert (bad[0]["response"]["status_code"], bad[1]["error"]["code"]) == (400, "truncated")
    else:
        assert {row["state"] for row in good} == {"done"}
        assert [(row["custom_id"], row["state"], row.get("result") or "") for row in bad] == [
            ("id5", "failed", ""), ("id6", "failed", "half"),
        ]  # fmt: skip


def test_a_stale_file_of_errors_is_replaced_by_an_empty_one(tmp_path):
    database, errors = tmp_path / "queue.db", tmp_path / "errors.jsonl"
    errors.write_text('{"custom_id":null,"position":0,"state":"failed"}\n')

    async def main(store):
        batch = await store.open_batch(NewBatch("demo", "echo"))
        await store.add_jobs(batch, [NewJob(0, None, "k", '"p"')])
        await store.seal(batch)
        await end_jobs(store)
        await write_results(store, "demo", Output(tmp_path / "out.jsonl", errors=errors))

    with_store(database, main)
    assert errors.read_bytes() == b""


def test_both_files_appear_or_none_does(database, tmp_path, monkeypatch):
    path, errors = tmp_path / "out.jsonl", tmp_path / "errors.jsonl"
    synced = []

    def refuse(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(OutputFailed, match="No space left"):
        with_store(database, lambda store: write_results(store, "demo", Output(path, errors=errors)))
    assert not path.exists()
    assert not errors.exists()
    assert list(tmp_path.glob(".*.tmp")) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.csv", "csv"),
        ("A.TSV", "tsv"),
        ("a.parquet", "parquet"),
        ("a.txt", "txt"),
        ("a.jsonl", "jsonl"),
        ("a", "jsonl"),
    ],
)
def test_the_name_of_a_file_tells_its_format(name, expected):
    assert Output(Path(name)).actual_format == expected
    assert Output(Path(name), "openai").actual_format == "openai"


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_only_results_of_its_own_format_are_replaced(database, tmp_path, output_format):
    for other in OUTPUT_FORMATS:
        path = tmp_path / other
        if not path.exists():
            with_store(
                database, lambda store, path=path, other=other: write_results(store, "demo", Output(path, other))
            )
        output = Output(path, output_format)
        if other == output_format != "txt":
            check_output(output)
            continue
        with pytest.raises(UsageError, match="does not hold results"):
            check_output(output)
        check_output(output, overwrite=True)
    empty = tmp_path / "empty"
    empty.touch()
    check_output(Output(empty, output_format))


@pytest.mark.parametrize(
    ("content", "output_format"),
    [
        (b"position,state\n1,2\n", "csv"),
        (b'"position,state,result,error_class,error,attempts,input_tokens,output_tokens,cost,finish_reason"\n', "csv"),
        (b'{"prompt":"{\\"position\\":3,\\"state\\":\\"done\\"}"}\n', "jsonl"),
        (b'{"prompt":"x"}\n{"custom_id":null,"position":0,"state":"done"}\n', "jsonl"),
        (b'{"prompt":"x","position":3,"state":"Ohio"}\n', "jsonl"),
        (b"PAR1 nonsense PAR1", "parquet"),
    ],
)
def test_what_only_looks_like_results_is_spared(tmp_path, content, output_format):
    path = tmp_path / "precious"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="--force"):
        check_output(Output(path, output_format))


def test_another_parquet_file_is_spared(tmp_path):
    import pyarrow as pa

    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"position": [1]}), path)
    with pytest.raises(UsageError, match="--force"):
        check_output(Output(path))


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (Output(Path("a.txt"), with_prompt=True), "no place for --with-prompt"),
        (Output(Path("a"), "openai", with_input=Path("b")), "no place for --with-input"),
        (Output(Path("a"), with_prompt=True, with_input=Path("b")), "leave out --with-prompt"),
        (Output(Path("a"), "xml"), "no output format `xml`"),
        (Output(Path("a"), errors=Path("./a")), "can't hold both"),
        (Output(Path("a"), errors=Path("-")), "--errors needs a file"),
        (Output(Path("a"), with_input=Path("./a")), "is the input itself"),
        (Output(Path("b"), errors=Path("a"), with_input=Path("a")), "is the input itself"),
        (Output(Path("b"), errors=Path("no/a")), "the directory no does not exist"),
        (Output(Path("b"), errors=Path("queue.db")), "belongs to the queue"),
    ],
)
def test_outputs_that_contradict_themselves(tmp_path, monkeypatch, output, reason):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=reason):
        check_output(output, overwrite=True, database=Path("queue.db"))


def test_without_pyarrow_it_is_told_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UsageError, match=re.escape("pip install 'batchq[parquet]'")):
        check_output(Output(tmp_path / "out.parquet"))


def test_columns_of_the_input_never_hide_those_of_batchq():
    columns = tuple(Column(name, "text") for name in ("state", "usage_2", "text"))
    layout = Layout(BATCH, has_ids=True, columns=columns)
    assert layout.suffix() == "_3"
    assert layout.adds_id
    assert Layout(BATCH, columns=(Column("text", "text"),)).suffix() == ""


def test_parquet_goes_through_a_pipe(database):
    command = [sys.executable, "-m", "batchq", "collect", "demo", "--format", "parquet", "--db", str(database)]
    done = forked.run(command, cwd=Path(__file__).parents[1])
    assert done.returncode == 0
    assert pq.read_table(io.BytesIO(done.stdout))["position"].to_pylist() == list(range(8))
    assert done.stderr.startswith(b"batchq: demo: 6 done, 2 failed")
