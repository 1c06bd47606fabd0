"""Rows of tables in memory: pandas, polars, and what speaks Arrow's C stream."""

import json
import subprocess
import sys
import tracemalloc
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from uuid import UUID

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchq.errors import UsageError
from batchq.formats import rows_of_table

AT = datetime(2024, 5, 6, 7, 8, 9, 500_000, tzinfo=UTC)
COLUMNS = {
    "text": ["a\n\u2028\0", "", None],
    "count": [1, 2, 3],
    "share": [0.5, float("nan"), float("inf")],
    "yes": [True, False, True],
    "day": [date(2024, 5, 6), None, date(2024, 5, 6)],
    "at": [AT, None, AT],
    "price": [Decimal("1.50"), None, Decimal("2.50")],
    "tags": [["x"], [], ["y", "z"]],
    "meta": [{"k": 1}, {"k": 2}, {"k": 3}],
}
ROWS = [
    {"text": "a\n\u2028\0", "count": 1, "share": 0.5, "yes": True, "day": "2024-05-06",
     "at": "2024-05-06T07:08:09.500000+00:00", "price": "1.50", "tags": ["x"], "meta": {"k": 1}},
    {"text": "", "count": 2, "share": None, "yes": False, "day": None, "at": None, "price": None, "tags": [],
     "meta": {"k": 2}},
    {"text": None, "count": 3, "share": None, "yes": True, "day": "2024-05-06",
     "at": "2024-05-06T07:08:09.500000+00:00", "price": "2.50", "tags": ["y", "z"], "meta": {"k": 3}},
]  # fmt: skip


class Stream:
    """Something that is known for nothing but its stream, as DuckDB's relations are."""

    def __init__(self, table):
        self._table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self._table.__arrow_c_stream__(requested_schema)


def arrow():
    return pa.table(COLUMNS)


@pytest.mark.parametrize(
    "make",
    [
        lambda: pd.DataFrame(COLUMNS),
        lambda: pd.DataFrame(COLUMNS, index=[7, 7, 7]),
        lambda: arrow().to_pandas(),
        lambda: arrow().to_pandas(types_mapper=pd.ArrowDtype),
        lambda: pl.DataFrame(COLUMNS, strict=False),
        arrow,
        lambda: arrow().to_batches()[0],
        lambda: pa.RecordBatchReader.from_batches(arrow().schema, arrow().to_batches(max_chunksize=1)),
        lambda: Stream(arrow()),
    ],
    ids=["pandas", "pandas-index", "pandas-numpy", "pandas-arrow", "polars", "table", "batch", "reader", "stream"],
)
def test_a_table_is_rows_of_json(make):
    rows = list(rows_of_table(make()))
    assert rows == ROWS
    assert [list(row) for row in rows] == [list(COLUMNS)] * 3
    json.dumps(rows, allow_nan=False)
    assert all(type(row["count"]) is int and type(row["yes"]) is bool for row in rows)


@pytest.mark.parametrize(
    "data",
    [
        [{"prompt": "a"}], {"prompt": ["a"]}, "text", None, 3, iter(()), np.array(["a"]),
        pd.Series(["a"]), pl.Series(["a"]), pa.array(["a"]), pa.chunked_array([["a"]]),
        Stream(pl.Series(["a"])), pd.Index(["a"]),
    ],
    ids=lambda data: type(data).__name__,
)  # fmt: skip
def test_anything_else_is_no_table(data):
    assert rows_of_table(data) is None


@pytest.mark.filterwarnings("ignore:The .generic. unit for NumPy timedelta:DeprecationWarning")  # of pandas itself
def test_pandas_own_kinds_of_values():
    frame = pd.DataFrame({
        "whole": pd.array([1, None], dtype="Int64"),
        "flag": pd.array([True, None], dtype="boolean"),
        "kind": pd.Categorical(["x", None]),
        "at": [pd.Timestamp("2024-05-06 07:08:09"), pd.NaT],
        "lasted": [pd.Timedelta(hours=1), pd.NaT],
        "mixed": [np.int64(3), pd.NA],
        "vector": [np.array([1.5, np.nan]), np.float32(0.5)],
        "time": pd.Series([np.datetime64("2024-05-06T01:02:03", "ns"), np.datetime64("NaT")], dtype=object),
    })  # fmt: skip
    assert list(rows_of_table(frame)) == [
        {"whole": 1, "flag": True, "kind": "x", "at": "2024-05-06T07:08:09", "lasted": "0 days 01:00:00",
         "mixed": 3, "vector": [1.5, None], "time": "2024-05-06T01:02:03.000000000"},
        {"whole": None, "flag": None, "kind": None, "at": None, "lasted": None, "mixed": None, "vector": 0.5, "time": None},
    ]  # fmt: skip


def test_times_and_ids_are_text():
    table = pa.table({"t": [time(1, 2, 3)], "d": [timedelta(days=1, seconds=2)]})
    assert list(rows_of_table(table)) == [{"t": "01:02:03", "d": "1 day, 0:00:02"}]
    uuid = UUID(int=1)
    assert list(rows_of_table(pd.DataFrame({"u": [uuid]}))) == [{"u": str(uuid)}]


def test_nanoseconds_are_cut_the_same_way_without_pandas():
    table = pa.table({"at": pa.array([1_700_000_000_123_456_789], pa.timestamp("ns"))})
    assert list(rows_of_table(table)) == [{"at": "2023-11-14T22:13:20.123456"}]


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, pa.table])
def test_what_json_has_nothing_for_is_left_out(make):
    rows = list(rows_of_table(make({"text": ["a"], "photo": [b"\xff"], "parts": [[b"\xff"]]})))
    assert rows == [{"text": "a", "parts": [None]}]


def test_names_of_columns_are_text_and_differ():
    assert list(rows_of_table(pd.DataFrame([["a", "b"]]))) == [{"0": "a", "1": "b"}]
    for table in (pd.DataFrame([[1, 2]], columns=["x", "x"]), pa.table([[1], [2]], names=["x", "x"])):
        with pytest.raises(UsageError, match="more than one column `x`"):
            rows_of_table(table)


def test_empty_tables_have_no_rows():
    for table in (pd.DataFrame({"a": []}), pl.DataFrame(), pa.table({"a": pa.array([], pa.string())})):
        assert list(rows_of_table(table)) == []


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, pa.table])
def test_rows_are_made_as_they_are_asked_for(make):
    table = make({"text": [f"{i}" * 40 for i in range(30_000)], "n": range(30_000)})
    next(rows_of_table(table))
    tracemalloc.start()
    try:
        assert sum(1 for _ in rows_of_table(table)) == 30_000
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("library", "works"), [("pandas", True), ("polars", True), ("Stream", False)])
def test_data_frames_need_no_pyarrow(library, works):
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "class Stream:\n"
        "    def __arrow_c_stream__(self, requested_schema=None): raise AssertionError\n"
        "from batchq.formats import rows_of_table\n"
        + (
            "data = Stream()\n"
            if library == "Stream"
            else f"import {library}; data = {library}.DataFrame({{'a': ['x']}})\n"
        )
        + "print(list(rows_of_table(data)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    if works:
        assert found.stdout == "[{'a': 'x'}]\n", found.stderr
    else:
        assert "a Stream is read through pyarrow: pip install 'batchq[parquet]'" in found.stderr


values = st.one_of(
    st.none(), st.text(), st.integers(-(2**40), 2**40), st.booleans(), st.floats(), st.dates(), st.binary()
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(values, min_size=2, max_size=2), max_size=5))
def test_any_frame_is_rows_that_json_can_hold(rows):
    frame = pd.DataFrame(rows, columns=["a", "b"], dtype=object)
    found = list(rows_of_table(frame))
    assert len(found) == len(rows)
    for made, given_row in zip(found, rows, strict=True):
        json.dumps(made, allow_nan=False)
        for name, value in zip(("a", "b"), given_row, strict=True):
            if isinstance(value, str):
                assert made[name] == value
            assert (name in made) is not isinstance(value, bytes)
