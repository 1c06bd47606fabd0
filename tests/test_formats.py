"""Reading prompts from files, and writing results to them."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchq.errors import OutputFailed, UsageError
from batchq.formats import FORMATS, AtomicFile, BadRow, ReadOptions, Row, delimited, read_rows, render_jsonl
from batchq.jobs import JobState, Result, Usage

MESSAGES = [{"role": "user", "content": "Hi"}]
QUICK = settings(max_examples=80, deadline=None)


def read_bytes(data: bytes, name: str = "in.jsonl", **options: str) -> list[Row | BadRow]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, name)
        path.write_bytes(data)
        return list(read_rows(path, ReadOptions(**options)))


def read_lines(*lines: object, **options: str) -> list[Row | BadRow]:
    texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    return read_bytes(b"\n".join(texts) + b"\n", **options)


def payloads(rows: list[Row | BadRow]) -> list[object]:
    assert [row for row in rows if isinstance(row, BadRow)] == []
    return [row.payload for row in rows if isinstance(row, Row)]


def reasons(rows: list[Row | BadRow]) -> dict[int, str]:
    return {row.line: row.reason for row in rows if isinstance(row, BadRow)}


def names_in(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def batch_line(**changes: object) -> dict[str, object]:
    body = {"model": "m", "messages": MESSAGES, "temperature": 0.5}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body, **changes}
    return {name: value for name, value in line.items() if value is not ...}


# JSON Lines


@pytest.mark.parametrize(
    ("line", "row"),
    [
        ("Hi", Row(1, None, "Hi")),
        (" Hi\u2028there\0 ", Row(1, None, " Hi\u2028there\0 ")),
        ({"prompt": "Hi"}, Row(1, None, "Hi")),
        ({"prompt": "Hi", "custom_id": None, "label": 3}, Row(1, None, "Hi")),
        ({"prompt": "Hi", "custom_id": "a"}, Row(1, "a", "Hi")),
        ({"prompt": "Hi", "custom_id": 7}, Row(1, "7", "Hi")),
        ({"prompt": "Hi", "body": "an e-mail", "messages": None}, Row(1, None, "Hi")),
        ({"messages": MESSAGES, "custom_id": "a", "x": [1]}, Row(1, "a", {"messages": MESSAGES})),
        (b'"\\ud800"', Row(1, None, "\ud800")),
        (b' \t{"prompt": "Hi"} \r', Row(1, None, "Hi")),
        (b'\xef\xbb\xbf"Hi"', Row(1, None, "Hi")),
        (b'"a\xe2\x80\xa8b"', Row(1, None, "a\u2028b")),
        (
            batch_line(),
            Row(1, "a", {"body": {"messages": MESSAGES, "temperature": 0.5}}, "m", "/v1/chat/completions"),
        ),
        (
            batch_line(url="/v1/embeddings", body={"input": "x", "stream": False}),
            Row(1, "a", {"body": {"input": "x", "stream": False}}, None, "/v1/embeddings"),
        ),
    ],
)
def test_good_jsonl_lines(line: object, row: Row) -> None:
    assert read_lines(line) == [row]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "x"', "not valid JSON: Expecting ',' delimiter (column 15)"),
        (b'"a" "b"', "not valid JSON: Extra data (column 5)"),
        (b"nonsense", "not valid JSON: Expecting value (column 1)"),
        (b'{"prompt": "a", "x": NaN}', "not valid JSON: NaN is not a JSON value"),
        (b'{"prompt": "a", "x": -Infinity}', "not valid JSON: -Infinity is not a JSON value"),
        (b'{"prompt": "a", "x": 1e999}', "not valid JSON for a request: a number is too large"),
        (b'{"prompt": "a", "x": ' + b"1" * 5000 + b"}", "a number has too many digits"),
        (b'{"prompt": "a", "x": ' + b"[" * 100_000, "JSON nested too deep"),
        (b'{"prompt": "a", "x": ' + b"[" * 300 + b"]" * 300 + b"}", "JSON nested too deep"),
        (b'"\xff"', "invalid UTF-8 at byte 2 of the line"),
        (b'"\xed\xa0\x80"', "invalid UTF-8 at byte 2 of the line"),
        (12, "the line is a number, not an object or a string"),
        (None, "the line is null"),
        ([1], "the line is a list"),
        (True, "the line is a boolean"),
        ("", "empty prompt"),
        (" \u3000\n", "empty prompt"),
        ({}, "the line has no fields"),
        ({"text": "x", "id": 1}, "no `prompt`, `messages` or `body`; the line has `text`, `id`"),
        ({"body": "an e-mail"}, "--prompt-field"),
        ({"prompt": ["x"]}, "`prompt` is a list, not a string"),
        ({"prompt": None}, "`prompt` is null, not a string"),
        ({"prompt": ""}, "empty prompt"),
        ({"prompt": "x", "messages": MESSAGES}, "ambiguous: this line has `prompt` and has `messages`"),
        ({"messages": []}, "`messages` is an empty list"),
        ({"messages": "x"}, "`messages` is a string, not a list of messages"),
        ({"messages": ["x"]}, "message 1 is a string, not an object"),
        ({"messages": [*MESSAGES, {"content": "x"}]}, "message 2 has no `role`"),
        ({"messages": [{"role": "user"}]}, "message 1 has no `content`"),
        (
            {"messages": [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": []}]},
            "message 2 has no `content`",
        ),
        (
            {"messages": [{"role": "user", "content": 3}]},
            "the `content` of message 1 is a number, not a string or a list",
        ),
        ({"prompt": "x", "custom_id": ""}, "`custom_id` is empty"),
        ({"prompt": "x", "custom_id": True}, "`custom_id` is a boolean, not a string"),
        ({"prompt": "x", "custom_id": 1.5}, "`custom_id` is a number, not a string"),
        ({"prompt": "x", "custom_id": "a\0"}, "`custom_id` contains a NUL character"),
        ({"prompt": "x", "custom_id": "\ud800"}, "half of a surrogate pair"),
        ({"prompt": "x", "custom_id": "é" * 1001}, "`custom_id` has 2,002 bytes"),
        (batch_line(custom_id=...), "`custom_id` is missing; an OpenAI Batch line needs one"),
        (batch_line(custom_id=1), "`custom_id` is a number; an OpenAI Batch line needs one"),
        (batch_line(method="GET"), '`method` must be "POST"'),
        (batch_line(method=...), '`method` ("POST") is missing'),
        (batch_line(url=...), "`url` is missing; it is one of /v1/chat/completions"),
        (batch_line(url="/v1/images"), "`url` is none of /v1/chat/completions, /v1/responses"),
        (batch_line(url=["x"]), "`url` is none of"),
        (batch_line(body=...), "no `body`"),
        (batch_line(body="x"), "`body` is a string, not an object"),
        (batch_line(body={"messages": MESSAGES, "stream": True}), "asks for a stream"),
        (batch_line(body={"messages": MESSAGES, "model": 3}), "`model` in the body is not the name"),
        (batch_line(body={"model": "m"}), "`messages` is missing"),
    ],
)
def test_bad_jsonl_lines(line: object, reason: str) -> None:
    raw = line if isinstance(line, bytes) else json.dumps(line).encode()
    (row,) = read_bytes(raw + b"\r\n")
    assert isinstance(row, BadRow)
    assert reason in row.reason
    assert (row.line, row.raw) == (1, raw)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (
            [{"prompt": "a"}, {"messages": MESSAGES}],
            "this line has `messages`, the lines before it have `prompt`",
        ),
        (["a", {"prompt": "b"}], "this line has `prompt`, the lines before it are bare strings"),
        ([{"prompt": "a"}, "b"], "this line is a bare string, the lines before it have `prompt`"),
        (
            [{"messages": MESSAGES}, batch_line()],
            "this line is an OpenAI Batch line, the lines before it have",
        ),
        (
            [batch_line(), {"prompt": "a"}],
            "this line has `prompt`, the lines before it are OpenAI Batch lines",
        ),
        (
            [{"prompt": "a"}, {"prompt": "b", "custom_id": "x"}],
            "this line has a `custom_id`, the lines before",
        ),
        (
            [{"prompt": "a", "custom_id": "x"}, {"prompt": "b"}],
            "this line has no `custom_id`, the lines before",
        ),
    ],
)
def test_rows_are_alike(lines: list[object], reason: str) -> None:
    found = reasons(read_lines(*lines, lines[0]))
    assert list(found) == [2]
    assert reason in found[2]


def test_bad_rows_do_not_decide_the_kind() -> None:
    rows = read_lines({"prompt": ""}, {"messages": MESSAGES, "custom_id": []}, "good", "better")
    assert list(reasons(rows)) == [1, 2]


def test_line_numbers_count_blank_lines() -> None:
    rows = read_bytes(b'\n"a"\r\n  \n\xff\n"b"')
    assert [(row.line, type(row)) for row in rows] == [(2, Row), (4, BadRow), (5, Row)]


def test_prompt_and_id_fields_of_jsonl() -> None:
    rows = read_lines(
        {"q": "a", "n": 1, "messages": 3},
        {"q": "b", "n": "x", "prompt": "no"},
        {"n": 3},
        {"q": "d"},
        {"q": "e", "n": None},
        "f",
        prompt_field="q",
        id_field="n",
    )
    assert rows[:2] == [Row(1, "1", "a"), Row(2, "x", "b")]
    assert reasons(rows) == {
        3: "no field `q`; the line has `n`",
        4: "the id field `n` is missing; the line has `q`",
        5: "the id field `n` is null",
        6: "the line is a string, not an object with the field `q`",
    }


def test_id_field_of_other_kinds() -> None:
    assert "has no id field `n`" in reasons(read_lines("a", id_field="n"))[1]
    (row,) = read_lines(batch_line(custom_id=..., n=5), id_field="n")
    assert isinstance(row, Row)
    assert row.custom_id == "5"


# Text


def test_text_lines_stand_as_they_are() -> None:
    rows = read_bytes("\ufeff a \r\nb\u2028\x85\x0cc\r\r\n\n \t\nd\0".encode(), "in.txt")
    assert [row.payload for row in rows if isinstance(row, Row)] == [" a ", "b\u2028\x85\x0cc\r", "d\0"]
    assert reasons(rows) == {3: "empty prompt", 4: "empty prompt"}


def test_text_with_invalid_utf8_goes_on() -> None:
    rows = read_bytes(b"a\nb\xff\r\nc", "in.txt")
    assert rows == [
        Row(1, None, "a"),
        BadRow(2, "invalid UTF-8 at byte 2 of the line", b"b\xff"),
        Row(3, None, "c"),
    ]


# CSV and TSV


@pytest.mark.parametrize(
    ("data", "options", "rows"),
    [
        (b"prompt\na\n", {}, [Row(2, None, "a")]),
        (b"\xef\xbb\xbfprompt,x\r\na,b\r\n\r\nc,d", {}, [Row(2, None, "a"), Row(4, None, "c")]),
        (b"question\na\n", {}, [Row(2, None, "a")]),
        (b"custom_id,prompt\n7,a\n", {}, [Row(2, "7", "a")]),
        (b"q,n\na,1\n", {"prompt_field": "q", "id_field": "n"}, [Row(2, "1", "a")]),
        (b'prompt,x\n"a\r\n""b"", c",1\nd,2\n', {}, [Row(2, None, 'a\r\n"b", c'), Row(4, None, "d")]),
        (b"\n \nprompt,x\n \na,b\n", {}, [Row(5, None, "a")]),
        ("prompt\na\u2028b\n".encode(), {}, [Row(2, None, "a\u2028b")]),
    ],
)
def test_good_csv(data: bytes, options: dict[str, str], rows: list[Row]) -> None:
    assert read_bytes(data, "in.csv", **options) == rows
    if b'"' not in data:
        assert read_bytes(data.replace(b",", b"\t"), "in.tsv", **options) == rows


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"a,b,c", "3 fields, the header has 2"),
        (b"a", "1 field, the header has 2"),
        (b",b", "empty prompt"),
        (b'" \r\n",b', "empty prompt"),
        (b"a\xff,b", "invalid UTF-8 at byte 2 of the line"),
        (b'"a\n\xff\n",b', "invalid UTF-8 at byte 1 of the line"),
        (b"a,", "`custom_id` is empty"),
        (b'"a"b,c', "not valid CSV"),
        (b"a\rb,c", "a carriage return in a field that is not quoted"),
    ],
)
def test_bad_csv_records(record: bytes, reason: str) -> None:
    rows = read_bytes(b"prompt,custom_id\n" + record + b"\r\ngood,1\n", "in.csv")
    bad, good = rows
    assert isinstance(bad, BadRow)
    assert reason in bad.reason
    assert (bad.line, bad.raw) == (2, record)
    assert good == Row(3 + record.count(b"\n"), "1", "good")


def test_csv_with_an_open_quote_at_its_end() -> None:
    rows = read_bytes(b'prompt\na\n"b\nc\n', "in.csv")
    assert rows[0] == Row(2, None, "a")
    assert rows[1:] == [BadRow(3, "a quoted field is not closed before the end of the file", b'"b\nc')]


def test_csv_with_an_open_quote_stops_before_it_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "_MAX_OPEN_QUOTE", 1000)
    with pytest.raises(UsageError, match="line 2: a quoted field is not closed"):
        read_bytes(b'prompt\n"a\n' + b"b\n" * 1000, "in.csv")


def test_csv_nul_bytes_never_raise() -> None:
    assert len(read_bytes(b"prompt\na\0b\nc\n", "in.csv")) == 2


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (b"a,b\n1,2\n", {}, "no column `prompt`, only `a`, `b`: name the prompt's with --prompt-field"),
        (b"a,b\n1,2\n", {"prompt_field": "c"}, "no column `c`, only `a`, `b`.*--prompt-field"),
        (b"prompt,b\n1,2\n", {"id_field": "c"}, "no column `c`, only `prompt`, `b`.*--id-field"),
        (b"prompt,x,x\n", {}, "more than one column `x`"),
        (b"prompt\xff\na\n", {}, "line 1: the header can't be read: invalid UTF-8 at byte 7"),
        (b'"prompt', {}, "line 1: the header can't be read: a quoted field is not closed"),
        (b"prompt,x\n\n", {}, "is empty: it has a header but no rows"),
    ],
)
def test_unusable_headers(data: bytes, options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_bytes(data, "in.csv", **options)


# Files


@pytest.mark.parametrize("extension", [name for name in FORMATS if name != "parquet"])
@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf", b"\n\r\n", b"\xef\xbb\xbf \n\n"])
def test_empty_files(extension: str, data: bytes) -> None:
    with pytest.raises(UsageError, match=rf"in\.{extension} is empty"):
        read_bytes(data, f"in.{extension}")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("in.json", {}, r"in\.json is JSON, .* --input-format jsonl"),
        ("in.xml", {}, r"in\.xml .* --input-format \(jsonl, txt, csv, tsv, parquet\)"),
        ("in.xlsx", {}, r"in\.xlsx is a spreadsheet: save it as CSV"),
        ("in.csv.gz", {}, r"is compressed: .*in\.csv\.gz \| batchq enqueue - --input-format csv`"),
        ("in", {}, "--input-format"),
        (
            "in.txt",
            {"input_format": "xml"},
            "no input format `xml`: --input-format takes jsonl, txt, csv, tsv, parquet",
        ),
        ("in.txt", {"id_field": "x"}, "leave out --id-field"),
        ("in.csv", {"input_format": "txt", "prompt_field": "x"}, "leave out --prompt-field"),
        ("in.txt", {"image_field": "x"}, "leave out --image-field"),
    ],
)
def test_formats_that_can_not_be_told(name: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_bytes(b"x\n", name, **options)


@pytest.mark.parametrize("name", ["IN.JSONL", "in.ndjson", "in.text", "in.json", "in"])
def test_format_by_extension_or_option(name: str) -> None:
    told = {"input_format": "jsonl"} if name in {"in.json", "in"} else {}
    rows = read_bytes(b'"a"', name, **told)
    assert payloads(rows) == ['"a"' if name == "in.text" else "a"]


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "dir.csv").mkdir()
    (tmp_path / "file").touch()
    for name, message in (
        ("no.csv", r"no\.csv does not exist"),
        ("dir.csv", r"dir\.csv is a directory"),
        ("file/x.csv", "can't be read: Not a directory"),
    ):
        with pytest.raises(UsageError, match=message):
            list(read_rows(tmp_path / name, ReadOptions()))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.touch(mode=0)
    with pytest.raises(UsageError, match="no permission"):
        list(read_rows(path, ReadOptions()))


@pytest.mark.parametrize(("name", "head"), [("in.jsonl", b""), ("in.csv", b"prompt\n"), ("in.txt", b"")])
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, name: str, head: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(head + b'"' + b"x" * 200 + b'"\n')
    line = b'"' + b"x" * 200 + b'"\n'
    path.write_bytes(head + line * 40_000)
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_rows(path, ReadOptions())) == 40_000
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "before", "after", "size"),
    [
        ("in.jsonl", b'{"prompt":"', b'"}', 100_000_000),
        ("in.txt", b"", b"", 100_000_000),
        ("in.csv", b'prompt\n"', b'"\n', 40_000_000),
    ],
)
def test_a_very_long_line(tmp_path: Path, name: str, before: bytes, after: bytes, size: int) -> None:
    path = tmp_path / name
    path.write_bytes(before + b"x" * size + after)
    (row,) = read_rows(path, ReadOptions())
    assert isinstance(row, Row)
    assert isinstance(row.payload, str)
    assert len(row.payload) == size


# Any bytes, any prompts

fragments = st.sampled_from(
    [
        *(
            b"\n",
            b"\r\n",
            b'"',
            b",",
            b"\t",
            b"\0",
            b"\xff",
            b"\xef\xbb\xbf",
            b"prompt",
            b"custom_id",
            b"[",
            b"]",
        ),
        *(
            b'{"prompt": "a"}',
            b'{"messages": [{"role": "user"}]}',
            b'"a"',
            b"{",
            b"}",
            b":",
            b"NaN",
            b"\\ud800",
        ),
        *(
            json.dumps(batch_line()).encode(),
            b'{"prompt": "b", "custom_id": 1}',
            b"1e999",
            b" ",
            b"\xe2\x80\xa8",
        ),
    ]
)
files = st.one_of(st.binary(), st.lists(fragments | st.binary(max_size=3), max_size=30).map(b"".join))
field_names = st.sampled_from([None, "prompt", "a", ""])


@QUICK
@given(files, st.sampled_from(FORMATS), field_names, field_names)
def test_any_bytes_are_rows_or_a_usage_error(
    data: bytes, input_format: str, prompt_field: str | None, id_field: str | None
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "in")
        path.write_bytes(data)
        try:
            rows = list(read_rows(path, ReadOptions(input_format, prompt_field, id_field)))
        except UsageError as error:
            assert "in" in str(error)
            return
    numbers = [row.line for row in rows]
    assert numbers == sorted(set(numbers))
    for row in rows:
        if isinstance(row, BadRow):
            assert row.reason
            assert "\n" not in row.reason
            assert row.raw in data
        else:
            assert row.payload
            json.dumps(row.payload, allow_nan=False)


@QUICK
@given(st.binary())
def test_bad_bytes_leave_their_neighbours_alone(noise: bytes) -> None:
    noise = noise.replace(b"\n", b"")
    rows = read_bytes(b'"a"\n' + noise + b'\n"b"\n')
    assert (rows[0], rows[-1]) == (Row(1, None, "a"), Row(3, None, "b"))


any_prompt = st.text(st.characters(codec=None), min_size=1).filter(lambda text: not text.isspace())
utf8_prompt = st.text(min_size=1).filter(lambda text: not text.isspace())


@QUICK
@given(st.lists(any_prompt, min_size=1))
def test_jsonl_round_trip(prompts: list[str]) -> None:
    assert payloads(read_lines(*prompts)) == prompts
    assert payloads(read_lines(*({"prompt": prompt} for prompt in prompts))) == prompts
    chats = [{"messages": [{"role": "user", "content": prompt}]} for prompt in prompts]
    assert payloads(read_lines(*chats)) == chats


@QUICK
@given(st.lists(utf8_prompt, min_size=1))
def test_unescaped_jsonl_round_trip(prompts: list[str]) -> None:
    data = "".join(json.dumps(prompt, ensure_ascii=False) + "\r\n" for prompt in prompts)
    assert payloads(read_bytes(data.encode())) == prompts


@QUICK
@given(st.lists(utf8_prompt.filter(lambda text: "\n" not in text and text[0] != "\ufeff"), min_size=1))
def test_text_round_trip(prompts: list[str]) -> None:
    data = "".join(prompt + "\r\n" for prompt in prompts)
    assert payloads(read_bytes(data.encode(), "in.txt")) == prompts


@QUICK
@given(st.lists(utf8_prompt, min_size=1), st.sampled_from([("in.csv", ","), ("in.tsv", "\t")]))
def test_csv_round_trip(prompts: list[str], kind: tuple[str, str]) -> None:
    name, delimiter = kind
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerow(["x", "prompt"])
    writer.writerows([str(number), prompt] for number, prompt in enumerate(prompts))
    assert payloads(read_bytes(buffer.getvalue().encode(), name)) == prompts


# Results


def make_result(**changes: object) -> Result:
    values: dict[str, object] = {
        "position": 3,
        "custom_id": None,
        "key": "k",
        "state": JobState.DONE,
        "attempts": 1,
        "result": '"yes"',
        "error": None,
        "error_class": None,
        "finish_reason": None,
        "usage": Usage(),
        "cost": None,
        "meta": None,
        "payload": '"Why?"',
    }
    return Result(**{**values, **changes})  # type: ignore[arg-type]


UNKNOWN = '"usage":{"input_tokens":null,"output_tokens":null,"cached_tokens":null,"reasoning_tokens":null,"cost":null}'


@pytest.mark.parametrize(
    ("result", "with_prompt", "line"),
    [
        (
            make_result(),
            False,
            '{"custom_id":null,"position":3,"state":"done","result":"yes","attempts":1,' + UNKNOWN + "}",
        ),
        (
            make_result(
                custom_id="a\u2028é",
                usage=Usage(1, 2, 0, 4),
                cost=12_345,
                finish_reason="stop",
                payload='{"a":[]}',
            ),
            True,
            (
                '{"custom_id":"a\\u2028\\u00e9","position":3,"prompt":{"a":[]},"state":"done","result":"yes",'
                '"attempts":1,"usage":{"input_tokens":1,"output_tokens":2,"cached_tokens":0,"reasoning_tokens":4,'
                '"cost":0.000012345},"finish_reason":"stop"}'
            ),
        ),
        (
            make_result(state=JobState.FAILED, result=None, error="bad\nthing", error_class="bad_request"),
            False,
            '{"custom_id":null,"position":3,"state":"failed","error":{"class":"bad_request","message":"bad\\nthing"},'
            '"attempts":1,' + UNKNOWN + "}",
        ),
        (
            make_result(result='{\n"a": "\u2028"}', payload=None),
            True,
            '{"custom_id":null,"position":3,"prompt":null,"state":"done","result":{"a":"\\u2028"},"attempts":1,'
            + UNKNOWN
            + "}",
        ),
    ],
)
def test_rendered_lines(result: Result, with_prompt: bool, line: str) -> None:
    assert render_jsonl(result, with_prompt=with_prompt) == line
    json.loads(line)


@pytest.mark.parametrize(
    ("nano", "dollars"),
    [
        (0, "0.0"),
        (1, "0.000000001"),
        (100_000_000, "0.1"),
        (1_000_000_000, "1.0"),
        (12_345_678_901_234_567_890, "12345678901.23456789"),
        (-1_500_000_000, "-1.5"),
    ],
)
def test_cost_has_no_float_noise(nano: int, dollars: str) -> None:
    assert render_jsonl(make_result(cost=nano), with_prompt=False).endswith(f'"cost":{dollars}}}}}')


@QUICK
@given(st.text(st.characters(codec=None)), any_prompt)
def test_any_text_is_one_line(custom_id: str, prompt: str) -> None:
    result = make_result(custom_id=custom_id, payload=json.dumps(prompt), error=prompt)
    line = render_jsonl(result, with_prompt=True)
    assert line.isascii()
    assert len(line.splitlines()) == 1
    decoded = json.loads(line)
    assert (decoded["custom_id"], decoded["prompt"]) == (custom_id, prompt)


# Atomic files


def test_atomic_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with AtomicFile(path) as file:
        file.write("é\n")
        file.buffer.write(b"\xff\n")
        file.write("z\n")
        assert not path.exists()
        assert [name[0] for name in names_in(tmp_path)] == ["."]
    assert path.read_bytes() == "é\n".encode() + b"\xff\nz\n"
    assert names_in(tmp_path) == ["out.jsonl"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("old", ["old", None])
def test_atomic_file_leaves_nothing_behind(tmp_path: Path, error: type[BaseException], old: str | None) -> None:
    path = tmp_path / "out"
    if old is not None:
        path.write_text(old)
    with pytest.raises(error), AtomicFile(path) as file:
        file.write("new")
        raise error
    assert [entry.read_text() for entry in tmp_path.iterdir()] == ([] if old is None else [old])


def test_messages_with_something_in_the_place_of_content_are_good() -> None:
    call = {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f"}}]}
    messages = [*MESSAGES, call, call | {"content": None}, {"role": "tool", "content": [{"type": "text", "text": "x"}]}]
    assert payloads(read_lines({"messages": messages})) == [{"messages": messages}]


def test_atomic_file_that_fails_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out"
    path.write_text("old")

    def refuse(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OutputFailed, match=r"can't write .*out: No space"), AtomicFile(path) as file:
        file.write("new")
    assert [entry.read_text() for entry in tmp_path.iterdir()] == ["old"]


def test_atomic_file_modes(tmp_path: Path) -> None:
    path = tmp_path / "out"
    old_mask = os.umask(0o027)
    try:
        with AtomicFile(path):
            pass
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o606)
        with AtomicFile(path):
            pass
        assert stat.S_IMODE(path.stat().st_mode) == 0o606
    finally:
        os.umask(old_mask)


def test_atomic_file_follows_links(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to("there/out")
    for text in ("first", "second"):
        with AtomicFile(link) as file:
            file.write(text)
        assert link.is_symlink()
        assert (tmp_path / "there" / "out").read_text() == text


def test_atomic_file_with_a_long_name(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 127)
    with AtomicFile(path) as file:
        file.write("x")
    assert path.read_text() == "x"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dir", "dir: it is a directory"),
        ("no/out", "the directory .*no does not exist; create it first"),
        ("file/out", "file is not a directory"),
        ("x" * 300, "File name too long"),
    ],
)
def test_targets_that_can_not_be_written(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=message), AtomicFile(tmp_path / name):
        pass
    assert names_in(tmp_path) == ["dir", "file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_targets_without_permission(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch(mode=0o444)
    with pytest.raises(UsageError, match="read-only"), AtomicFile(file):
        pass
    tmp_path.chmod(0o555)
    with pytest.raises(UsageError, match="may not create files in"), AtomicFile(tmp_path / "new"):
        pass


def test_named_pipe_is_written_directly(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received: list[str] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()))
    reader.start()
    with AtomicFile(pipe) as file:
        file.write("hello")
    reader.join()
    assert received == ["hello"]
    assert pipe.is_fifo()


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1"])
def test_standard_output_appended_to_a_file(tmp_path: Path, name: str) -> None:
    log = tmp_path / "log"
    log.write_text("old\n")
    code = (
        "import pathlib, sys; from batchq.formats import AtomicFile\n"
        "with AtomicFile(pathlib.Path(sys.argv[1])) as file: file.write('new\\n')"
    )
    with log.open("a") as out:
        subprocess.run([sys.executable, "-c", code, name], stdout=out, check=True, cwd=Path(__file__).parents[1])
    assert log.read_text() == "old\nnew\n"
