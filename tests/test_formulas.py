"""`--guard-formulas`: what a spreadsheet program would run is text in CSV and TSV, and numbers stay numbers."""

from __future__ import annotations

import csv
import io
import json

import pytest
from processes import bench

from batchq.collecting import Output
from batchq.errors import UsageError
from batchq.formats.rendering import Column, Entry, Layout, renderer_for
from batchq.jobs import JobState, Result, Usage

RUN_BY_SPREADSHEETS = [
    "=1+1",
    "+1+cmd|'/c calc'!A0",
    "-1+1",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "-",
    "=",
    "＝1+1",
    "-1-",
    "+49 30 1234",
    '=HYPERLINK("http://evil")',
]
HARMLESS = ["-1", "+2", "-1.5", "+.5", "-1e9", "-2E-3", "1=1", "a-b", "", "'=1", " =1", "5 - 3"]


def rows_of(texts: list[str], *options: str, tmp_path, name: str = "out.csv") -> tuple[list[dict[str, str]], bytes]:
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"custom_id": f"={i}", "prompt": text}) + "\n" for i, text in enumerate(texts))
    )
    with bench(tmp_path) as place:
        done = place.run("run", "prompts.jsonl", "--worker", "echo", "-o", name, "--with-prompt", *options)
        assert done.returncode == 0, done.stderr
    written = (tmp_path / name).read_bytes()
    delimiter = "\t" if name.endswith("tsv") else ","
    return [*csv.DictReader(io.StringIO(written.decode(), newline=""), delimiter=delimiter)], written


@pytest.mark.parametrize("name", ["out.csv", "out.tsv"])
def test_a_guarded_table_holds_no_formula_and_all_numbers(tmp_path, name):
    texts = [text for text in RUN_BY_SPREADSHEETS + HARMLESS if text]
    rows, _ = rows_of(texts, "--guard-formulas", tmp_path=tmp_path, name=name)
    assert [row["result"] for row in rows] == [f"'{text}" if text in RUN_BY_SPREADSHEETS else text for text in texts]
    assert [row["prompt"] for row in rows] == [row["result"] for row in rows]
    assert [row["custom_id"] for row in rows] == [f"'={i}" for i in range(len(texts))]


def test_without_the_option_nothing_is_changed(tmp_path):
    rows, _ = rows_of(RUN_BY_SPREADSHEETS, tmp_path=tmp_path)
    assert [row["result"] for row in rows] == RUN_BY_SPREADSHEETS


def test_columns_of_the_input_are_guarded_with_their_names_and_other_values_are_json():
    columns = (Column("=cmd", "text"), Column("n", "json"))
    result = Result(0, None, "k", JobState.DONE, 1, '{"a":-1}', None, None, None, Usage(), None, None, None)
    layout = Layout(None, columns=columns, guard_formulas=True)  # type: ignore[arg-type] - the batch is not asked
    renderer = renderer_for("csv", layout)
    assert renderer is not None
    assert renderer.head().startswith(b"'=cmd,n,position")
    row = next(csv.reader(io.StringIO(renderer.row(Entry(result, '{"=cmd":"@x","n":-5}')).decode())))
    assert row[:4] == ["'@x", "-5", "0", "done"]


@pytest.mark.parametrize("chosen", ["jsonl", "txt", "openai", "parquet"])
def test_formats_without_formulas_refuse_the_option(chosen):
    with pytest.raises(UsageError, match="has no formulas: --guard-formulas goes with csv and tsv"):
        Output(format=chosen, guard_formulas=True).check()
