"""Reads CSV and TSV: a header, then a prompt per record; quoted fields may span lines."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence

from batchq.errors import UsageError
from batchq.formats.columns import check_columns, id_column, prompt_column
from batchq.formats.lines import MAX_LINE_BYTES, TOO_LONG
from batchq.formats.prompts import Prompts
from batchq.formats.rows import BadRow, Ids, ReadOptions, Row, RowError, Rows, bad_utf8, bare, checked_prompt, names
from batchq.jobs import Json

_MAX_FIELD = 2**31 - 1  # the most that every platform takes
_SEPARATORS = {";": "semicolons", "\t": "tabs", ",": "commas", "|": "bars"}
_MAX_OPEN_QUOTE = MAX_LINE_BYTES


def read_delimited(
    lines: Iterable[bytes], options: ReadOptions, prompts: Prompts, *, name: str, delimiter: str
) -> Rows:
    """Yield a row per record of the file that messages call `name`."""
    csv.field_size_limit(_MAX_FIELD)
    records = _Records(lines, name, delimiter)
    columns = _Columns(name, records.header(), options, prompts)
    found = False
    for record in records:
        found = True
        if not options.wants(records.start):
            continue
        if isinstance(record, str):
            yield BadRow(records.start, record, records.raw())
            continue
        row: Row | BadRow
        try:
            row = columns.row(records.start, record)
        except RowError as error:
            row = BadRow(records.start, str(error), records.raw())
        yield row
    if not found:
        raise UsageError(f"{name} is empty: it has a header but no rows")
    return True


def delimited_lines(lines: Iterable[bytes], *, name: str, delimiter: str) -> Iterator[int]:
    """Yield the line on which each record below the header starts, good or bad."""
    csv.field_size_limit(_MAX_FIELD)
    records = _Records(lines, name, delimiter)
    records.header()
    return (records.start for _ in records)


class _Columns:
    """Which columns hold the prompt and the id."""

    def __init__(self, name: str, header: Sequence[str], options: ReadOptions, prompts: Prompts) -> None:
        _refuse_other_separators(name, header, options)
        check_columns(name, header, options)
        self._header = header
        self._prompts = prompts
        self._prompt_name = prompt_column(name, header, options)
        self._prompt = header.index(self._prompt_name) if prompts.is_plain else -1
        self._id_name = id_column(header, options)
        self._id = None if self._id_name is None else header.index(self._id_name)
        self._ids = Ids(options.id_field)

    def row(self, line: int, record: Sequence[str]) -> Row:
        """Return the row that a record stands for."""
        width = len(self._header)
        if len(record) != width:
            fields = "1 field" if len(record) == 1 else f"{len(record)} fields"
            raise RowError(f"{fields}, the header has {width}")
        if self._prompts.is_plain:
            payload: Json = checked_prompt(record[self._prompt], self._prompt_name)
        else:
            payload = self._prompts.payload(dict(zip(self._header, record, strict=True)), self._prompt_name)
        if self._id is None or self._id_name is None:
            return Row(line, None, payload)
        return Row(line, self._ids.take({self._id_name: record[self._id]}), payload)


def _refuse_other_separators(name: str, header: Sequence[str], options: ReadOptions) -> None:
    """Raise UsageError where a single column looks like several: they would be asked as one prompt."""
    if len(header) > 1 or options.prompt_field == header[0]:
        return
    found = next((sign for sign in ";\t,|" if sign in header[0]), None)
    if found is not None:
        raise UsageError(
            f"{name} has one column, {names(header)}: its fields seem to be separated by {_SEPARATORS[found]}. Save it"
            " with commas (.csv) or tabs (.tsv); --prompt-field names the column if that is its name"
        )


class _Records:
    """The records of a file, each a list of fields or the reason why it is bad.

    `start` and `raw()` tell which lines the last record came from.
    """

    def __init__(self, lines: Iterable[bytes], name: str, delimiter: str) -> None:
        self.start = 0
        self._name = name
        self._line = 0
        self._raws: list[bytes] = []
        self._faults: list[str] = []
        self._reader = csv.reader(self._text(lines), delimiter=delimiter, strict=True)

    def header(self) -> Sequence[str]:
        """Return the first record, which must be good."""
        first = next(self, None)
        if first is None:
            raise UsageError(f"{self._name} is empty")
        if isinstance(first, str):
            raise UsageError(f"{self._name}, line {self.start}: the header can't be read: {first}")
        return first

    def raw(self) -> bytes:
        """Return the bytes of the last record, without its line end."""
        return bare(b"".join(self._raws))

    def __iter__(self) -> Iterator[list[str] | str]:
        """Iterate over what is left."""
        return self

    def __next__(self) -> list[str] | str:
        """Return the next record that is not a blank line."""
        while True:
            self._raws.clear()
            self._faults.clear()
            self.start = self._line + 1
            try:
                record = next(self._reader)
            except csv.Error as error:
                return self._faults[0] if self._faults else _reason(error)
            if self._faults:
                return self._faults[0]
            if record and not (len(record) == 1 and self._is_blank()):
                return record

    def _is_blank(self) -> bool:
        return len(self._raws) == 1 and self._raws[0].isspace()

    def _text(self, lines: Iterable[bytes]) -> Iterator[str]:
        size = 0
        for raw in lines:
            self._line += 1
            size = size + len(raw) if self._raws else len(raw)
            self._raws.append(raw)
            if len(raw) > MAX_LINE_BYTES:
                raise UsageError(f"{self._name}:{self._line}: {TOO_LONG}")
            if size > _MAX_OPEN_QUOTE and len(self._raws) > 1:
                raise UsageError(
                    f"{self._name}, line {self.start}: a quoted field is not closed within"
                    f" {_MAX_OPEN_QUOTE >> 20} MiB: add its closing quote"
                )
            try:
                text = raw.decode()
            except UnicodeDecodeError as error:
                self._faults.append(bad_utf8(error))
                # The quotes still tell where the record ends.
                text = raw.decode(errors="surrogateescape")
            yield text


def _reason(error: csv.Error) -> str:
    if "unexpected end of data" in str(error):
        return "a quoted field is not closed before the end of the file"
    if "new-line character" in str(error):
        return "a carriage return in a field that is not quoted"
    return f"not valid CSV: {error}"
