"""Reads the rows of a Parquet file as they are, in the terms of JSON."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from batchq.errors import UsageError
from batchq.formats.arrow import import_arrow
from batchq.formats.columns import check_columns
from batchq.formats.fields import FieldRow, OnColumns
from batchq.formats.rendering import Column
from batchq.formats.rows import ReadOptions
from batchq.jobs import Json

_BATCH_ROWS = 500
ArrowType = Any  # pyarrow says nothing about its types


def read_parquet_fields(path: Path, options: ReadOptions, on_columns: OnColumns) -> Iterator[FieldRow]:
    """Yield the rows of a Parquet file; their `line` is their number, from 1.

    Texts, numbers, booleans and what is nested of these stay what they are. Dates, times and decimals become
    text, and again what they were in a Parquet output; anything else becomes JSON text, bytes in base64.
    """
    arrow = import_arrow()
    try:
        with import_arrow("pyarrow.parquet").ParquetFile(path) as file:
            check_columns(str(path), file.schema_arrow.names, options)
            plans = [_plan(field.name, field.type, arrow) for field in file.schema_arrow]
            on_columns(tuple(plan.column for plan in plans))
            line = 0
            for batch in file.iter_batches(_BATCH_ROWS, use_threads=False):
                columns = [_values(batch.column(number), plan) for number, plan in enumerate(plans)]
                for values in zip(*columns, strict=True):
                    line += 1
                    yield FieldRow(line, dict(zip(file.schema_arrow.names, values, strict=True)))
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise UsageError(f"{path} can't be read as Parquet: {' '.join(str(error).split())}") from None


class _Plan(NamedTuple):
    """How a column is read: cast to `cast_to` first, if that is not None; its values are `opaque` to JSON."""

    column: Column
    cast_to: ArrowType
    opaque: bool = False


def _plan(name: str, kind: ArrowType, arrow: ModuleType) -> _Plan:
    cast_to = None
    if arrow.types.is_dictionary(kind):
        kind = cast_to = kind.value_type
    if _is_plain(kind, arrow.types):
        is_text = arrow.types.is_string(kind) or arrow.types.is_large_string(kind)
        return _Plan(Column(name, "text" if is_text else "typed", kind), cast_to)
    if arrow.types.is_temporal(kind) or arrow.types.is_decimal(kind):
        if _casts(arrow, kind, arrow.string(), kind):
            return _Plan(Column(name, "text", kind), arrow.string())
        if _casts(arrow, kind, arrow.string()):
            return _Plan(Column(name, "text"), arrow.string())
    return _Plan(Column(name, "json"), cast_to, opaque=True)


def _is_plain(kind: ArrowType, types: ModuleType) -> bool:
    if types.is_list(kind) or types.is_large_list(kind):
        return _is_plain(kind.value_type, types)
    if types.is_struct(kind):
        return all(_is_plain(field.type, types) for field in kind)
    tests = (types.is_boolean, types.is_integer, types.is_floating, types.is_string, types.is_large_string)
    return any(test(kind) for test in tests)


def _casts(arrow: ModuleType, kind: ArrowType, *targets: ArrowType) -> bool:
    """Whether pyarrow can turn values of a type into others, one after the other."""
    column = arrow.array([], kind)
    try:
        for target in targets:
            column = column.cast(target)
    except arrow.ArrowException:
        return False
    return True


def _values(column: ArrowType, plan: _Plan) -> list[Json]:
    if plan.cast_to is not None:
        column = column.cast(plan.cast_to)
    values: list[Json] = column.to_pylist()
    return [_opaque(value) for value in values] if plan.opaque else values


def _opaque(value: object) -> str | None:
    if value is None:
        return None
    return json.dumps(value, default=_as_text) if isinstance(value, list | dict | tuple) else _as_text(value)


def _as_text(value: object) -> str:
    return b64encode(value).decode() if isinstance(value, bytes) else str(value)
