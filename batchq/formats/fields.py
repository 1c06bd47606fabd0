"""Reads the rows of an input as they are: their own fields, without a look at which is the prompt."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from batchq.errors import UsageError
from batchq.formats.columns import check_columns
from batchq.formats.lines import text_lines
from batchq.formats.reading import format_of
from batchq.formats.rendering import Column
from batchq.formats.rows import PROMPT_COLUMN, ReadOptions, RowError, bad_utf8, bare, kind_name
from batchq.jobs import Json

_MAX_FIELD: Final = 2**31 - 1  # the most that every platform takes


class FieldRow(NamedTuple):
    """A row of an input, and the 1-based line on which it starts."""

    line: int
    fields: dict[str, Json]


# What is known of a file's columns before its rows are read.
OnColumns = Callable[[tuple[Column, ...]], None]


def read_fields(path: Path, options: ReadOptions, on_columns: OnColumns) -> Iterator[FieldRow]:
    """Yield the rows of an input that are wanted, in order.

    `on_columns` hears first of the columns of a file that declares them. Raises UsageError, with the line, at
    the first row that can't be read.
    """
    return (row for row in _read(path, options, on_columns) if options.wants(row.line))


def _read(path: Path, options: ReadOptions, on_columns: OnColumns) -> Iterator[FieldRow]:
    input_format = format_of(path, options)
    if input_format == "parquet":
        from batchq.formats.parquet_fields import read_parquet_fields

        yield from read_parquet_fields(path, options, on_columns)
        return
    try:
        with path.open("rb") as file:
            if input_format == "jsonl":
                yield from _read_jsonl(text_lines(file, str(path)), path)
            elif input_format == "txt":
                yield from _read_text(text_lines(file, str(path)), path)
            else:
                records = _Records(text_lines(file, str(path)), path, "," if input_format == "csv" else "\t")
                yield from records.read(options, on_columns)
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror or error}") from error


def bad_row(path: Path, line: int, reason: object) -> UsageError:
    """Return the error for a row that can't be read."""
    return UsageError(f"{path}:{line}: {reason}; --with-input takes the file that was enqueued, without bad rows")


def _read_jsonl(lines: Iterable[bytes], path: Path) -> Iterator[FieldRow]:
    for line, raw in enumerate(lines, 1):
        if raw.isspace():
            continue
        try:
            fields = _fields_of(_parse(raw))
        except UnicodeDecodeError as error:
            raise bad_row(path, line, bad_utf8(error)) from None
        except RecursionError:
            raise bad_row(path, line, "JSON nested too deep") from None
        except RowError as error:
            raise bad_row(path, line, error) from None
        yield FieldRow(line, fields)


def _fields_of(value: Json) -> dict[str, Json]:
    if isinstance(value, dict):
        return value
    if isinstance(value, str):
        return {PROMPT_COLUMN: value}
    raise RowError(f"the line is {kind_name(value)}, not an object or a string")


def _parse(raw: bytes) -> Json:
    try:
        value: Json = _decoder.decode(raw.decode().strip())
    except json.JSONDecodeError as error:
        raise RowError(f"not valid JSON: {error.msg} (column {error.pos + 1})") from None
    except UnicodeDecodeError:
        raise
    except ValueError as error:  # an integer of more digits than Python converts
        raise RowError("not valid JSON: a number has too many digits") from error
    return value


def _finite(text: str) -> float:
    value = float(text)
    if value in {float("inf"), float("-inf")}:
        raise RowError("not valid JSON: a number is too large")
    return value


def _not_json(name: str) -> NoReturn:
    raise RowError(f"not valid JSON: {name} is not a JSON value")


_decoder = json.JSONDecoder(parse_constant=_not_json, parse_float=_finite)


def _read_text(lines: Iterable[bytes], path: Path) -> Iterator[FieldRow]:
    for line, raw in enumerate(lines, 1):
        try:
            prompt = bare(raw).decode()
        except UnicodeDecodeError as error:
            raise bad_row(path, line, bad_utf8(error)) from None
        if not prompt or prompt.isspace():
            raise bad_row(path, line, "empty prompt")
        yield FieldRow(line, {PROMPT_COLUMN: prompt})


class _Records:
    """The records of a CSV or TSV file."""

    def __init__(self, lines: Iterable[bytes], path: Path, delimiter: str) -> None:
        csv.field_size_limit(_MAX_FIELD)
        self._path = path
        self._line = 0
        self._reader = csv.reader(self._text(lines), delimiter=delimiter, strict=True)

    def read(self, options: ReadOptions, on_columns: OnColumns) -> Iterator[FieldRow]:
        """Yield the records below the header, which names their fields."""
        records = self._records()
        _, header = next(records, (0, []))
        if not header:
            raise UsageError(f"{self._path} is empty")
        check_columns(str(self._path), header, options)
        on_columns(tuple(Column(name, "text") for name in header))
        for line, record in records:
            if len(record) != len(header):
                raise bad_row(self._path, line, f"{len(record)} fields, the header has {len(header)}")
            yield FieldRow(line, dict(zip(header, record, strict=True)))

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        while True:
            start = self._line + 1
            try:
                record = next(self._reader, None)
            except csv.Error as error:
                raise bad_row(self._path, start, f"not valid CSV: {error}") from None
            if record is None:
                return
            is_blank = not record or (len(record) == 1 and self._line == start and self._blank)
            if not is_blank:
                yield start, record

    def _text(self, lines: Iterable[bytes]) -> Iterator[str]:
        for raw in lines:
            self._line += 1
            self._blank = raw.isspace()
            try:
                yield raw.decode()
            except UnicodeDecodeError as error:
                raise bad_row(self._path, self._line, bad_utf8(error)) from None
