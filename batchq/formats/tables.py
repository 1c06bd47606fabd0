"""Rows of tables in memory: pandas, polars, and whatever speaks Arrow's C stream."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, TypeAlias

from batchq.errors import UsageError
from batchq.formats.arrow import import_arrow
from batchq.formats.record_batches import python_rows
from batchq.formats.rows import names
from batchq.formats.values import json_row
from batchq.jobs import Json

if TYPE_CHECKING:
    from typing import Any

Rows: TypeAlias = Iterator[Mapping[str, object]]

_ROWS_AT_ONCE = 1_000


def rows_of_table(data: object) -> Iterator[dict[str, Json]] | None:
    """Return the rows of a table as JSON objects, made as they are asked for; None for what is no table.

    A table is a DataFrame of pandas or polars, which need no pyarrow, or an object that offers
    `__arrow_c_stream__` (pyarrow, DuckDB, …). A stream can be read once. Series, arrays and lists are no
    tables. A value that JSON has nothing for, such as bytes, is left out of its row: whoever asks for its
    field is told that it is not there. Raises UsageError for two columns of one name.
    """
    rows = _pandas_rows(data) or _polars_rows(data) or _arrow_rows(data)
    return None if rows is None else map(json_row, rows)


def _pandas_rows(data: Any) -> Rows | None:  # noqa: ANN401 -- pandas has no types here
    pandas = sys.modules.get("pandas")
    if pandas is None or not isinstance(data, pandas.DataFrame):
        return None
    header = [str(column) for column in data.columns]
    _check_header(header)
    return (
        dict(zip(header, values, strict=True))
        for start in range(0, len(data), _ROWS_AT_ONCE)
        for values in data.iloc[start : start + _ROWS_AT_ONCE].itertuples(index=False, name=None)
    )


def _polars_rows(data: Any) -> Rows | None:  # noqa: ANN401 -- polars may be missing
    polars = sys.modules.get("polars")
    if polars is None or not isinstance(data, polars.DataFrame):
        return None
    rows: Rows = data.iter_rows(named=True, buffer_size=_ROWS_AT_ONCE)
    return rows


def _arrow_rows(data: object) -> Rows | None:
    if not hasattr(data, "__arrow_c_stream__") or _is_series(data):
        return None
    try:
        pa = import_arrow()
    except UsageError:
        raise UsageError(f"a {type(data).__name__} is read through pyarrow: pip install 'batchq[parquet]'") from None
    if isinstance(data, pa.ChunkedArray):
        return None
    try:
        reader = pa.RecordBatchReader.from_stream(data)
    except (pa.ArrowException, TypeError):
        return None  # a stream of plain values
    _check_header(reader.schema.names)
    rows: Rows = chain.from_iterable(map(python_rows, reader))
    return rows


def _is_series(data: object) -> bool:
    return any(isinstance(data, sys.modules[name].Series) for name in ("pandas", "polars") if name in sys.modules)


def _check_header(header: Iterable[str]) -> None:
    doubled = [column for column, count in Counter(header).items() if count > 1]
    if doubled:
        raise UsageError(f"the table has more than one column {names(doubled)}: give each its own name")
