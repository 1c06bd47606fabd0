"""Results beside the rows that they answer: joined, written, and enqueued again."""

from __future__ import annotations

import csv
import datetime as dt
import decimal
import json
import math
import sqlite3
import tracemalloc
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from completing import end_jobs, fail_odd, with_store, write_lines
from processes import bench

from batchq.cli.commands import batchq
from batchq.cli.exits import run_command
from batchq.collecting import Output, check_output, write_results
from batchq.errors import UsageError
from batchq.formats import ReadOptions
from batchq.jobs import NewBatch, NewJob

MESSAGES = [{"role": "user", "content": "Hi\u2028"}]
HARD = 'a"b,c\td\\n\r\ne\u2028é🜂\0'


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("MODEL", "BATCHQ_MODEL", "BATCHQ_DB", "BATCHQ_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def command(*arguments: object) -> None:
    assert run_command(batchq, [str(argument) for argument in arguments]) == 0


def enqueue(source: str, *options: str, name: str = "first") -> None:
    command("enqueue", source, "--batch", name, "--worker", "echo", "--model", "m", *options)


def finish(outcome=None) -> None:
    async def main(store):
        await (end_jobs(store) if outcome is None else end_jobs(store, outcome))

    with_store("runs.db", main)


def collect(output: Output, name: str = "first"):
    return with_store("runs.db", lambda store: write_results(store, name, output))


def lines_of(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def records_of(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, strict=True))


def write_csv(path: str, *rows: list[str]) -> None:
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def keys(name: str) -> list[str]:
    query = "SELECT key FROM jobs JOIN batches ON batches.id = batch_id WHERE name = ? ORDER BY position"
    with closing(sqlite3.connect("runs.db")) as database:
        return [key for (key,) in database.execute(query, (name,))]


def check_same_keys(source: str, out: str, *options: str) -> None:
    """Enqueue an input, write the results beside it, enqueue that, and compare the keys."""
    enqueue(source, *options)
    finish(fail_odd)
    output = Output(Path(out), with_input=Path(source))
    collect(output)
    check_output(output)
    enqueue(out, *options, name="second")
    assert keys("second") == keys("first") != []


# Enqueued again


def batch_line(number: int, **fields: object) -> dict[str, object]:
    body = {"model": "m", "messages": MESSAGES, "temperature": 1e-7, "seed": 2**60 + number}
    return {"custom_id": f"c{number}", "method": "POST", "url": "/v1/chat/completions", "body": body, **fields}


@pytest.mark.parametrize(
    "rows",
    [
        [{"prompt": "a", "label": 1.0}, {"prompt": HARD, "label": None}, {"label": [HARD], "prompt": "\ud800"}],
        ["a", HARD, "\ud800"],
        [{"messages": MESSAGES}, {"custom_id": None, "messages": [{"role": "system", "content": HARD}, *MESSAGES]}],
        [{"id": 1, "messages": MESSAGES, "custom_id": 7}, {"messages": MESSAGES, "custom_id": 8}],
        [batch_line(0), batch_line(1, note=HARD), batch_line(2)],
        [{"prompt": "a", "position": 1, "state": "Ohio", "usage": "rare"}, {"prompt": "b"}],
    ],
)
def test_json_lines_enqueue_again_to_the_same_keys(rows):
    write_lines(Path("in.jsonl"), rows)
    check_same_keys("in.jsonl", "out.jsonl")


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_tables_enqueue_again_to_the_same_keys(ending):
    rows = [["prompt", "x"], ["a", HARD], [HARD, ""], [" b ", "1"], ["c\n", "\r"]]
    with Path(f"in.{ending}").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="," if ending == "csv" else "\t").writerows(rows)
    check_same_keys(f"in.{ending}", f"out.{ending}")
    with Path(f"out.{ending}").open(newline="", encoding="utf-8") as file:
        written = list(csv.reader(file, delimiter="," if ending == "csv" else "\t", strict=True))
    assert [row[:2] for row in written] == rows
    assert written[0][2:5] == ["position", "state", "result"]


def test_texts_and_named_columns_enqueue_again_to_the_same_keys():
    Path("in.txt").write_text("\ufeffa\nb\\n\u2028 \n", encoding="utf-8")
    check_same_keys("in.txt", "out.jsonl")
    write_csv("q.csv", ["id", "question"], ["7", "Why?"], ["8", "How\n?"])
    enqueue("q.csv", "--prompt-field", "question", "--id-field", "id", name="third")
    finish()
    collect(Output(Path("q-out.csv"), with_input=Path("q.csv"), read=ReadOptions(id_field="id")), "third")
    assert [row["custom_id"] for row in records_of("q-out.csv")] == ["7", "8"]
    enqueue("q-out.csv", "--prompt-field", "question", name="fourth")
    assert keys("fourth") == keys("third")


def test_a_parquet_file_enqueues_again_to_the_same_keys():
    pq.write_table(pa.table({"prompt": ["a", HARD], "custom_id": ["x", "y"], "n": [1, None]}), "in.parquet")
    check_same_keys("in.parquet", "out.parquet")


# What stands where


def test_the_fields_of_the_input_stand_first_as_they_are():
    write_lines(Path("in.jsonl"), [{"z": [1, {"é": None}], "prompt": "a", "n": 1.0}, {"prompt": "b"}])
    enqueue("in.jsonl")
    finish(fail_odd)
    collected = collect(Output(Path("out.jsonl"), with_input=Path("in.jsonl")))
    first, second = lines_of("out.jsonl")
    assert collected.written == 2
    assert list(first) == ["z", "prompt", "n", "position", "state", "result", "attempts", "usage"]
    assert (first["z"], first["n"], first["result"]) == ([1, {"é": None}], 1.0, "answer 0")
    assert list(second) == ["prompt", "position", "state", "error", "attempts", "usage"]
    assert b'"n":1.0' in Path("out.jsonl").read_bytes()


def test_an_id_of_another_name_stands_beside_the_custom_id():
    write_lines(Path("in.jsonl"), [{"prompt": "a", "id": 7}, {"prompt": "b", "id": 8}])
    enqueue("in.jsonl", "--id-field", "id")
    finish()
    collect(Output(Path("out.jsonl"), with_input=Path("in.jsonl")))
    assert [(line["id"], line["custom_id"]) for line in lines_of("out.jsonl")] == [(7, "7"), (8, "8")]
    enqueue("out.jsonl", name="second")
    assert keys("second") == keys("first")


def test_a_second_pass_keeps_the_first_and_a_third_both():
    write_csv("in.csv", ["prompt", "x"], ["a", "1"], ["b", "2"])
    source = "in.csv"
    for number, suffix in ((1, ""), (2, "_2"), (3, "_3")):
        name, out = f"pass{number}", f"out{number}.csv"
        enqueue(source, name=name)
        finish(fail_odd)
        collect(Output(Path(out), with_input=Path(source)), name)
        check_output(Output(Path(out)))
        header = list(records_of(out)[0])
        assert header[-3:] == [f"output_tokens{suffix}", f"cost{suffix}", f"finish_reason{suffix}"]
        source = out
    record = records_of(source)[1]
    assert [record["x"], record["state"], record["state_2"], record["state_3"]] == ["2", "failed", "failed", "failed"]
    assert len(record) == 2 + 3 * 10


def test_fields_of_json_lines_become_columns():
    rows = [
        {"prompt": "a", "n": 1, "tags": ["x"]},
        {"prompt": "b", "score": 0.5, "n": 2**53 + 1},
        {"prompt": "c", "ok": True},
    ]
    write_lines(Path("in.jsonl"), rows)
    enqueue("in.jsonl")
    finish()
    collect(Output(Path("out.csv"), with_input=Path("in.jsonl")))
    assert [[row[name] for name in ("prompt", "n", "tags", "score", "ok")] for row in records_of("out.csv")] == [
        ["a", "1", '["x"]', "", ""], ["b", "9007199254740993", "", "0.5", ""], ["c", "", "", "", "true"],
    ]  # fmt: skip
    collect(Output(Path("out.parquet"), with_input=Path("in.jsonl")))
    table = pq.read_table("out.parquet")
    types = {name: str(table.schema.field(name).type) for name in ("prompt", "n", "tags", "score", "ok", "state")}
    assert types == {
        "prompt": "string", "n": "int64", "tags": "string", "score": "double", "ok": "bool", "state": "string",
    }  # fmt: skip
    assert table["n"].to_pylist() == [1, 2**53 + 1, None]
    assert table["tags"].to_pylist() == ['["x"]', None, None]


def test_columns_of_parquet_stay_what_they_are():
    moment = dt.datetime(2026, 11, 24, 12, 30, 1, 5, tzinfo=dt.UTC)
    columns = {
        "prompt": pa.array(["a", "b"]),
        "small": pa.array([1, None], pa.int16()),
        "real": pa.array([math.nan, math.inf], pa.float32()),
        "kind": pa.array(["x", "y"]).dictionary_encode(),
        "when": pa.array([moment, None], pa.timestamp("ns", "UTC")),
        "day": pa.array([dt.date(2026, 1, 2), None]),
        "price": pa.array([decimal.Decimal("1.50"), None], pa.decimal128(10, 2)),
        "nested": pa.array([{"a": [1, 2]}, None]),
        "raw": pa.array([b"\xff\x00", None]),
        "image": pa.array([{"bytes": b"\xff", "path": None}, None]),
        "hour": pa.array([dt.time(12, 30), None]),
        "large": pa.array(["x", None], pa.large_string()),
    }
    pq.write_table(pa.table(columns), "in.parquet")
    enqueue("in.parquet")
    finish()
    collect(Output(Path("out.parquet"), with_input=Path("in.parquet")))
    table = pq.read_table("out.parquet")
    given = pa.table(columns)
    for name in ("prompt", "small", "when", "day", "price", "nested", "large"):
        assert table[name].type == given[name].type, name
        assert table[name].to_pylist() == given[name].to_pylist()
    assert math.isnan(table["real"][0].as_py())
    assert table["real"].type == pa.float32()
    assert table["real"][1].as_py() == math.inf
    assert table["kind"].to_pylist() == ["x", "y"]
    assert table["raw"].to_pylist() == ["/wA=", None]
    assert table["hour"].to_pylist() == ["12:30:00.000000", None]
    assert json.loads(table["image"].to_pylist()[0]) == {"bytes": "/w==", "path": None}
    collect(Output(Path("out.jsonl"), with_input=Path("in.parquet")))
    first = lines_of("out.jsonl")[0]
    assert (first["real"], first["day"], first["price"], first["nested"]) == (None, "2026-01-02", "1.50", {"a": [1, 2]})


# Who belongs to whom


def test_rows_are_found_by_custom_id_in_whatever_order():
    write_lines(Path("in.jsonl"), [{"prompt": f"p{i}", "custom_id": f"c{i}"} for i in range(5)])
    enqueue("in.jsonl")
    finish()
    write_lines(Path("mixed.jsonl"), [{"prompt": f"p{i}", "custom_id": f"c{i}", "more": i} for i in (3, 1, 4, 0, 2)])
    collect(Output(Path("out.jsonl"), with_input=Path("mixed.jsonl")))
    lines = lines_of("out.jsonl")
    assert [line["position"] for line in lines] == [0, 1, 2, 3, 4]
    assert all(line["custom_id"] == f"c{line['position']}" and line["more"] == line["position"] for line in lines)


@pytest.mark.parametrize("named", [True, False])
def test_samples_share_their_row(named):
    async def fill(store):
        batch = await store.open_batch(NewBatch("first", "echo", settings={"samples": 2}))
        jobs = [
            NewJob(i, f"c#{i // 2}#{i % 2 + 1}" if named else None, f"k{i}", json.dumps(f"p{i // 2}")) for i in range(6)
        ]
        await store.add_jobs(batch, jobs)
        await store.seal(batch)
        await end_jobs(store)

    with_store("runs.db", fill)
    rows = [{"prompt": f"p{i}"} | ({"custom_id": f"c#{i}"} if named else {}) for i in range(3)]
    write_lines(Path("in.jsonl"), rows)
    collect(Output(Path("out.jsonl"), with_input=Path("in.jsonl")))
    assert [line["prompt"] for line in lines_of("out.jsonl")] == ["p0", "p0", "p1", "p1", "p2", "p2"]
    write_lines(Path("in.jsonl"), [*rows, {"prompt": "x", "custom_id": "x"} if named else "x"])
    with pytest.raises(UsageError, match=r"in.jsonl has 4 rows, first has 6 jobs \(2 samples of each row\)"):
        collect(Output(Path("out.jsonl"), with_input=Path("in.jsonl")))


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"prompt": "p0", "custom_id": "c0"}], r"in\.jsonl has 1 rows, first has 2 jobs"),
        ([{"prompt": "p", "custom_id": f"c{i}"} for i in range(3)], r"in\.jsonl has 3 rows, first has 2 jobs"),
        (
            [{"prompt": "p0", "custom_id": "c0"}, {"prompt": "p1", "custom_id": "other"}],
            "no row for the job with custom_id 'c1', though in.jsonl has 2 rows, first has 2 jobs",
        ),
        ([{"prompt": "p0", "custom_id": "c0"}] * 2, r"in\.jsonl:2: duplicate custom_id 'c0', first on line 1"),
        ([{"prompt": "p0", "custom_id": "c0"}, {"prompt": "p1"}], r"in\.jsonl:2: this line has no `custom_id`"),
        ([{"prompt": "p0", "custom_id": "c0"}, 7], r"in\.jsonl:2: the line is a number"),
    ],
)
def test_another_input_is_refused_and_nothing_is_written(rows, reason):
    write_lines(Path("in.jsonl"), [{"prompt": f"p{i}", "custom_id": f"c{i}"} for i in range(2)])
    enqueue("in.jsonl")
    finish()
    write_lines(Path("in.jsonl"), rows)
    with pytest.raises(UsageError, match=reason):
        collect(Output(Path("out.jsonl"), with_input=Path("in.jsonl")))
    assert not Path("out.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("in.jsonl", b'"a"\n\n{"prompt": NaN}\n', "in.jsonl:3: not valid JSON: NaN is not a JSON value"),
        ("in.jsonl", b'"a"\n{"x": 1e999}\n', "in.jsonl:2: not valid JSON: a number is too large"),
        ("in.jsonl", b'"a"\n"b\n', "in.jsonl:2: not valid JSON: "),
        ("in.jsonl", b'"a"\n"\xff"\n', "in.jsonl:2: invalid UTF-8 at byte 2"),
        ("in.jsonl", b'"a"\n' + b"[" * 100_000, "in.jsonl:2: "),
        ("in.jsonl", b"1" * 5000, "in.jsonl:1: .* too many digits"),
        ("in.csv", b"prompt,x\na,b\nc\n", "in.csv:3: 1 fields, the header has 2"),
        ("in.csv", b'prompt,x\na,b\n"c"d,e\n', "in.csv:3: not valid CSV"),
        ("in.csv", b"prompt,x\na,\xff\n", "in.csv:2: invalid UTF-8"),
        ("in.csv", b"prompt,x,x\n", "more than one column `x`"),
        ("in.csv", b"", "in.csv is empty"),
        ("in.txt", b"a\n\n", "in.txt:2: empty prompt"),
        ("in.txt", b"a\n\xff\n", "in.txt:2: invalid UTF-8"),
        ("in.parquet", b"PAR1nonsense", "in.parquet can't be read as Parquet"),
        ("in.json", b"", "batchq reads JSON Lines"),
        ("no.jsonl", None, "no.jsonl can't be read: No such file"),
    ],
)
def test_rows_that_can_not_be_read_are_told_with_their_place(name, content, reason):
    write_lines(Path("two.jsonl"), ["a", "b"])
    enqueue("two.jsonl")
    finish()
    if content is not None:
        Path(name).write_bytes(content)
    with pytest.raises(UsageError, match=reason):
        collect(Output(Path("out.jsonl"), with_input=Path(name)))


def test_blank_lines_and_records_are_no_rows():
    Path("in.csv").write_bytes(b"\xef\xbb\xbf\r\nprompt,x\r\n\r\na,b\r\n \r\nc,d")
    enqueue("in.csv")
    finish()
    collect(Output(Path("out.csv"), with_input=Path("in.csv")))
    assert [(row["prompt"], row["x"]) for row in records_of("out.csv")] == [("a", "b"), ("c", "d")]


def test_an_id_field_of_jobs_without_ids_is_refused():
    write_lines(Path("in.jsonl"), [{"prompt": "a", "id": 7}])
    enqueue("in.jsonl")
    finish()
    with pytest.raises(UsageError, match="have no custom_ids: leave out --id-field"):
        collect(Output(Path("out.jsonl"), with_input=Path("in.jsonl"), read=ReadOptions(id_field="id")))


def test_memory_does_not_grow_with_the_rows():
    count = 8_000
    write_lines(Path("in.jsonl"), [{"prompt": f"p{i}", "custom_id": f"c{i}", "x": "y" * 400} for i in range(count)])
    enqueue("in.jsonl")
    finish()
    tracemalloc.start()
    try:
        collect(Output(Path("out.jsonl"), with_input=Path("in.jsonl")))
        assert tracemalloc.get_traced_memory()[1] < 5 << 20
    finally:
        tracemalloc.stop()


def test_the_command_line_joins_and_sets_aside(tmp_path):
    with bench(tmp_path) as place:
        write_csv("in.csv", ["id", "text"], ["7", "Why?"], ["8", HARD])
        done = place.run("enqueue", "in.csv", "--worker", "echo", "--prompt-field", "text", "--id-field", "id")
        assert done.returncode == 0, done.stderr
        finish(fail_odd)
        options = ("--with-input", "in.csv", "--id-field", "id", "--errors", "failed.csv")
        done = place.run("collect", "in", "-o", "out.csv", *options)
        assert done.returncode == 0, done.stderr
        assert "; wrote 1 row to out.csv, 1 row to failed.csv" in done.stderr
        assert [(row["id"], row["custom_id"], row["result"]) for row in records_of("out.csv")] == [
            ("7", "7", "answer 0")
        ]
        assert [row["text"] for row in records_of("failed.csv")] == [HARD]
        assert place.run("collect", "in", "-o", "out.csv", *options).returncode == 0
        for wrong, reason in (
            (("-o", "in.csv", "--with-input", "in.csv", "--force"), "is the input itself"),
            (("--id-field", "id"), "goes with --with-input"),
            (("--input-format", "csv"), "goes with --with-input"),
            (("-o", "x", "--errors", "x"), "can't hold both"),
        ):
            done = place.run("collect", "in", *wrong)
            assert (done.returncode, reason in done.stderr) == (2, True), done.stderr
