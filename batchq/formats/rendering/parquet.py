"""Parquet: typed columns, compressed with zstd, in row groups of bounded size."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any, Final, NamedTuple

from batchq.formats.arrow import import_arrow
from batchq.formats.rendering.flat import FlatColumn, flat_columns
from batchq.formats.rendering.layout import Column, Entry, Layout
from batchq.formats.rendering.sheet import BinaryFile
from batchq.formats.rendering.values import dollars, encode, fit_for_utf8
from batchq.jobs import Json

# What the metadata of the schema says of a file of results.
MARK: Final = {b"batchq": b"results"}

_GROUP_ROWS = 2_000
_GROUP_CHARACTERS = 16 << 20

ArrowType = Any  # pyarrow says nothing about its types
_Fields = dict[str, Json]


class ParquetSheet:
    """Writes jobs in row groups; half surrogate pairs become U+FFFD."""

    def __init__(self, file: BinaryFile, layout: Layout) -> None:
        """Start the file."""
        self._arrow = import_arrow()
        self._columns = [_given_column(column, self._arrow) for column in layout.columns or ()]
        self._columns += [_own_column(column, self._arrow) for column in flat_columns(layout)]
        self._schema = self._arrow.schema([(column.name, column.type) for column in self._columns], metadata=MARK)
        self._file = _Output(file)
        parquet = import_arrow("pyarrow.parquet")
        self._writer = parquet.ParquetWriter(self._file, self._schema, compression="zstd")
        self._group: list[Entry] = []
        self._characters = 0

    def write(self, entries: Sequence[Entry]) -> int:
        """Take rows in; return how many."""
        for entry in entries:
            self._group.append(entry)
            self._characters += len(entry.result.result or "") + len(entry.result.payload or "")
            self._characters += len(entry.fields or "")
            if len(self._group) >= _GROUP_ROWS or self._characters >= _GROUP_CHARACTERS:
                self._write_group()
        return len(entries)

    def close(self) -> None:
        """Write the rows that are left, and the footer."""
        if self._group:
            self._write_group()
        self._writer.close()

    def abandon(self) -> None:
        """Write nothing any more."""
        self._file.closed = True
        with suppress(Exception):
            self._writer.close()

    def _write_group(self) -> None:
        fields: list[_Fields] = [json.loads(entry.fields) if entry.fields else {} for entry in self._group]
        arrays = [column.array(self._arrow, self._group, fields) for column in self._columns]
        self._writer.write_table(self._arrow.Table.from_arrays(arrays, schema=self._schema))
        self._group.clear()
        self._characters = 0


class _ParquetColumn(NamedTuple):
    """A column of the file; `is_text` has its values as texts, which become its type when they are written."""

    name: str
    type: ArrowType
    is_text: bool
    value: Callable[[Entry, _Fields], object]

    def array(self, arrow: ModuleType, group: Sequence[Entry], fields: Sequence[_Fields]) -> ArrowType:
        values = [self.value(entry, given) for entry, given in zip(group, fields, strict=True)]
        if self.is_text:
            return arrow.array(values, arrow.string()).cast(self.type)
        return arrow.array(values, self.type)


def _given_column(column: Column, arrow: ModuleType) -> _ParquetColumn:
    name, kind = column.name, column.kind
    if kind in {"text", "json"}:
        return _ParquetColumn(
            name, column.arrow_type or arrow.string(), True, lambda _entry, fields: _text(fields.get(name))
        )
    types = {"integer": arrow.int64(), "number": arrow.float64(), "boolean": arrow.bool_(), "typed": column.arrow_type}
    return _ParquetColumn(name, types[kind], False, lambda _entry, fields: fields.get(name))


def _own_column(column: FlatColumn, arrow: ModuleType) -> _ParquetColumn:
    value = column.value
    if column.kind == "text":
        return _ParquetColumn(column.name, arrow.string(), True, lambda entry, _fields: _text(value(entry.result)))
    if column.kind == "money":
        return _ParquetColumn(column.name, arrow.float64(), False, lambda entry, _fields: _money(value(entry.result)))
    return _ParquetColumn(column.name, arrow.int64(), False, lambda entry, _fields: value(entry.result))


def _text(value: Json) -> str | None:
    """Return a text as it is, and any other value as JSON."""
    if value is None:
        return None
    return fit_for_utf8(value) if isinstance(value, str) else encode(value)


def _money(nano: str | int | None) -> float | None:
    return float(dollars(nano)) if isinstance(nano, int) else None


class _Output:
    """A file as pyarrow wants one: it may also be a pipe, which does not know where it stands."""

    def __init__(self, file: BinaryFile) -> None:
        self.closed = False
        self._file = file
        self._at = 0

    def write(self, data: bytes) -> int:
        if not self.closed:
            self._file.write(bytes(data))
        self._at += len(data)
        return len(data)

    def tell(self) -> int:
        return self._at

    def flush(self) -> None:
        """Leave that to the file."""

    def close(self) -> None:
        """Leave the file open."""
