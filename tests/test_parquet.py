"""Reading Parquet: what was written comes back, in bounded memory, and what is damaged says so."""

import csv
import io
import json
import subprocess
import sys
import tempfile
import tracemalloc
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
from completing import rows_of, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from batchq.cli.commands import batchq
from batchq.cli.exits import run_command
from batchq.errors import UsageError
from batchq.formats import BadRow, PromptTemplate, ReadOptions, Row, read_rows
from batchq.survey import survey_input

MESSAGES = [{"role": "user", "content": "Hi"}]
PNG = b"\x89PNG\r\n\x1a\nrest"


def write(path, columns, **options):
    parquet.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path, **options)
    return path


@pytest.fixture
def file(tmp_path):
    return tmp_path / "in.parquet"


def read(path, **options):
    return list(read_rows(path, ReadOptions(**options)))


def payloads(rows):
    assert [row for row in rows if isinstance(row, BadRow)] == []
    return [row.payload for row in rows]


# Which columns mean what


def test_the_prompt_column_and_the_id(file):
    write(file, {"x": [0, 1], "prompt": ["a", "b"], "custom_id": ["i", "j"]})
    assert read(file) == [Row(1, "i", "a"), Row(2, "j", "b")]
    assert read(file, id_field="x") == [Row(1, "0", "a"), Row(2, "1", "b")]
    assert read(write(file, {"question": ["a"]})) == [Row(1, None, "a")]
    assert read(write(file, {"q": ["a"], "n": [1]}), prompt_field="q") == [Row(1, None, "a")]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"a": ["x"], "b": ["y"]}, {}, "no column `prompt`, only `a`, `b`: name the prompt's with --prompt-field"),
        ({"prompt": ["x"]}, {"prompt_field": "q"}, "no column `q`, only `prompt`.*--prompt-field"),
        ({"prompt": ["x"]}, {"id_field": "q"}, "no column `q`, only `prompt`.*--id-field"),
        ({"prompt": ["x"]}, {"image_field": "q"}, "no column `q`, only `prompt`.*--image-field"),
        ({"prompt": ["x"], "messages": [MESSAGES]}, {}, "ambiguous: it has the columns `prompt` and `messages`"),
        (pa.table([[1], [2]], names=["x", "x"]), {}, "more than one column `x`"),
        ({"prompt": pa.array([], pa.string())}, {}, r"in\.parquet is empty"),
    ],
)
def test_unusable_tables(file, columns, options, message):
    with pytest.raises(UsageError, match=message):
        read(write(file, columns), **options)


def test_bad_rows_have_the_number_of_their_row(file):
    write(file, {"prompt": ["a", None, "", "d"], "custom_id": [1, 2, 3, None]})
    rows = read(file)
    assert rows[0] == Row(1, "1", "a")
    assert [(row.line, row.reason) for row in rows[1:]] == [
        (2, "`prompt` is null, not a string"),
        (3, "empty prompt"),
        (4, "this line has no `custom_id`, the lines before it have one"),
    ]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([7], "`prompt` is a number"),
        ([float("nan")], "`prompt` is a number"),
        ([b"x"], "`prompt` is a value of type bytes"),
        ([date(2024, 5, 6)], "`prompt` is a value of type date"),
        ([Decimal("1.50")], "`prompt` is a value of type Decimal"),
        ([["a"]], "`prompt` is a list"),
    ],
)
def test_what_json_lacks_is_no_prompt_but_prints_in_a_template(file, values, reason):
    write(file, {"prompt": values})
    (row,) = read(file)
    assert reason in row.reason
    assert payloads(read(file, template=PromptTemplate("<{{ prompt }}>"))) == [f"<{values[0]}>"]


def test_messages_lose_what_is_null_in_them(file):
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("name", pa.string()),
                               ("tool_calls", pa.list_(pa.struct([("id", pa.string()), ("index", pa.int64())])))]))  # fmt: skip
    called = [{"role": "assistant", "content": None, "tool_calls": [{"id": "c", "index": None}]}]
    write(
        file, {"messages": pa.array([MESSAGES, called, [{"role": "user"}], [], None], kind), "custom_id": list("abcde")}
    )
    rows = read(file)
    assert rows[0] == Row(1, "a", {"messages": MESSAGES})
    assert rows[1] == Row(2, "b", {"messages": [{"role": "assistant", "tool_calls": [{"id": "c"}]}]})
    assert [row.reason for row in rows[2:]] == [
        "message 1 has no `content`",
        "`messages` is an empty list, not a list of messages",
        "`messages` is missing, not a list of messages",
    ]


def test_messages_that_can_not_be_sent(file):
    write(file, {"messages": ["x"], "custom_id": ["a"]})
    assert read(file)[0].reason == "`messages` is a string, not a list of messages"
    write(file, {"messages": [[{"role": "user", "content": "x", "at": date(2024, 1, 1)}]]})
    assert read(file)[0].reason == "`messages` holds a value of type date, which JSON does not know"


def test_a_template_over_all_kinds_of_columns(file):
    at = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
    write(file, {
        "text": pa.array(["a", "b"]).dictionary_encode(), "day": [date(2024, 5, 6)] * 2, "price": [Decimal("1.50")] * 2,
        "at": pa.array([at, at], pa.timestamp("ns", "UTC")), "tags": [["x", "y"], []], "meta": [{"k": 1}, {"k": None}],
        "unused": [float("nan")] * 2,
    })  # fmt: skip
    template = "{{ text }} {{ day }} {{ price }} {{ at }} {{ tags | join('+') }} {{ meta | tojson }}"
    time = "2024-05-06 07:08:09.123456+00:00"
    assert payloads(read(file, template=PromptTemplate(template))) == [
        f'a 2024-05-06 1.50 {time} x+y {{"k": 1}}',
        f'b 2024-05-06 1.50 {time}  {{"k": null}}',
    ]
    (first, _) = read(file, template=PromptTemplate("{{ txt }}"))
    names = "`text`, `day`, `price`, `at`, `tags`, `meta`, `unused`"
    assert (first.line, first.reason) == (1, f"no field `txt`; the line has {names}")
    assert payloads(read(file, template=PromptTemplate("{{ row.text }}"))) == ["a", "b"]


def test_images_as_paths_bytes_and_the_structs_of_data_sets(file):
    (file.parent / "x.png").write_bytes(PNG)
    url = "data:image/png;base64,iVBORw0KGgpyZXN0"
    for cells in (
        ["x.png", ""],
        [PNG, None],
        [{"bytes": PNG, "path": "gone.png"}, None],
        [{"bytes": None, "path": "x.png"}, None],
    ):
        write(file, {"prompt": ["a", "b"], "image": cells})
        first, second = payloads(read(file, image_field="image"))
        assert first["messages"][0]["content"][1]["image_url"]["url"] == url
        assert second == "b"


# The file


def test_told_by_its_name_or_by_an_option(tmp_path):
    path = write(tmp_path / "data", {"prompt": ["a"]})
    assert read(path, input_format="parquet") == [Row(1, None, "a")]
    assert read(path.rename(tmp_path / "IN.PARQUET")) == [Row(1, None, "a")]


@pytest.mark.parametrize("damage", [lambda data: b"\n" * 100, lambda data: b"x", lambda data: data[:-20],
                                    lambda data: data[:10] + b"\xff" * 200 + data[210:],
                                    lambda data: data[:-60] + b"\0" * 40 + data[-20:]])  # fmt: skip
def test_a_damaged_file_is_a_usage_error(file, damage):
    write(file, {"prompt": [f"prompt {i}" for i in range(1000)]}, compression="none", use_dictionary=False)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UsageError, match=r"in\.parquet can't be read as Parquet: .*make it anew"):
        read(file)


def test_files_that_are_not_there(tmp_path):
    (tmp_path / "dir.parquet").mkdir()
    (tmp_path / "empty.parquet").touch()
    for name, message in (("no", "does not exist"), ("dir", "is a directory"), ("empty", "is empty")):
        with pytest.raises(UsageError, match=rf"{name}\.parquet {message}"):
            read(tmp_path / f"{name}.parquet")


def test_without_pyarrow_it_says_what_to_install(file):
    write(file, {"prompt": ["a"]})
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from pathlib import Path; from batchq.formats import ReadOptions, read_rows\n"
        "list(read_rows(Path(sys.argv[1]), ReadOptions()))"
    )
    found = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=False, timeout=60)
    assert "UsageError" in found.stderr
    assert "pip install 'batchq[parquet]'" in found.stderr


def test_nothing_of_it_is_imported_for_other_files(tmp_path):
    path = write_lines(tmp_path / "in.jsonl", ["a"])
    code = (
        "import sys; from pathlib import Path; from batchq.formats import ReadOptions, read_rows\n"
        "list(read_rows(Path(sys.argv[1]), ReadOptions()))\n"
        "print({'pyarrow', 'jinja2', 'pandas', 'polars'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout == "set()\n"


@pytest.mark.parametrize("group", [10_000, 100_000])
def test_memory_does_not_grow_with_the_rows(file, group):
    texts = [f"{i}" * 40 for i in range(100_000)]
    write(file, {"prompt": texts, "other": texts}, row_group_size=group)
    del texts
    before, most = pa.total_allocated_bytes(), 0
    tracemalloc.start()
    try:
        for number, row in enumerate(read_rows(file, ReadOptions()), 1):
            assert row.line == number
            if number % 1000 == 1:
                most = max(most, pa.total_allocated_bytes() - before)
        assert number == 100_000
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
        assert most < 12 << 20
    finally:
        tracemalloc.stop()


def test_rows_keep_their_numbers_across_row_groups(file):
    write(file, {"prompt": [f"p{i}" for i in range(2500)]}, row_group_size=7)
    assert read(file) == [Row(i + 1, None, f"p{i}") for i in range(2500)]
    only = frozenset({1, 7, 8, 1234, 2500})
    assert read(file, only=only) == [Row(i, None, f"p{i - 1}") for i in sorted(only)]


def test_bad_rows_can_not_be_set_aside(file):
    write(file, {"prompt": ["a", ""]})
    message = r"Parquet, whose bad rows can't be set aside.*leave out --skip-bad"
    with pytest.raises(UsageError, match=message), survey_input(file, ReadOptions(), skip_bad=file.parent / "bad"):
        pass


def test_enqueued_from_the_command_line(file, monkeypatch, capfd):
    monkeypatch.chdir(file.parent)
    monkeypatch.delenv("BATCHQ_DB", raising=False)
    write(file, {"text": ["a", "b"], "custom_id": [5, 6]})
    command = ["enqueue", "in.parquet", "--worker", "echo", "--prompt", "Say {{ text }}"]
    assert run_command(batchq, command) == 0
    assert rows_of("runs.db") == [(0, "5", '"Say a"'), (1, "6", '"Say b"')]
    assert run_command(batchq, command) == 0
    assert "all 2 rows are in in already" in capfd.readouterr().err
    write(file, {"prompt": ["a", None]})
    assert run_command(batchq, ["enqueue", "in.parquet", "--worker", "echo", "--batch", "x"]) == 2
    assert "in.parquet:2: `prompt` is null" in capfd.readouterr().err


# What is written comes back

texts = st.text(
    st.characters(codec="utf-8") | st.sampled_from("\n\r\t\0\"',\u2028\u2029\x85\ufeff{}[]\\"), min_size=1
).filter(lambda text: not text.isspace())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=8))
def test_csv_tsv_jsonl_and_parquet_give_back_what_was_written(rows):
    prompts, others = [list(column) for column in zip(*rows, strict=True)]
    template = PromptTemplate("{{ other }}|{{ prompt }}")
    with tempfile.TemporaryDirectory() as directory:
        for path in _written(Path(directory), prompts, others):
            assert payloads(read(path)) == prompts
            expected = [f"{other}|{prompt}" for prompt, other in rows]
            assert payloads(read(path, template=template)) == expected


def _written(directory, prompts, others):
    yield write(directory / "in.parquet", {"prompt": prompts, "other": others})
    objects = [{"prompt": prompt, "other": other} for prompt, other in zip(prompts, others, strict=True)]
    yield write_lines(directory / "in.jsonl", objects)
    raw = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in objects)
    (directory / "raw.jsonl").write_bytes(raw.encode())
    yield directory / "raw.jsonl"
    for name, delimiter in (("in.csv", ","), ("in.tsv", "\t")):
        table = io.StringIO()
        csv.writer(table, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows(
            [("prompt", "other"), *zip(prompts, others, strict=True)]
        )
        (directory / name).write_bytes(table.getvalue().encode())
        yield directory / name
