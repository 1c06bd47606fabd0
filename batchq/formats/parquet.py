"""Reads Parquet by record batches, through pyarrow: a prompt or a list of messages per row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from batchq.errors import UsageError
from batchq.formats.arrow import import_arrow
from batchq.formats.columns import check_columns, id_column, prompt_column
from batchq.formats.messages import checked_messages
from batchq.formats.prompts import Prompts
from batchq.formats.record_batches import python_rows, rows_at_once
from batchq.formats.rows import PROMPT_COLUMN, BadRow, Ids, ReadOptions, Row, RowError, Rows, kind_name
from batchq.formats.template import WHOLE_ROW
from batchq.formats.values import Unknown, json_value
from batchq.jobs import Json

if TYPE_CHECKING:
    from typing import Any

_MESSAGES = "messages"
_PAGE_BUFFER = 1 << 20  # a column is read in pieces of it; without one, a row group's whole column is in memory


def read_parquet(path: Path, options: ReadOptions, prompts: Prompts, *, name: str) -> Rows:
    """Yield a row per row of the file that messages call `name`; its `line` is its number, from 1."""
    with _opened(path, name) as file:
        header: list[str] = file.schema_arrow.names
        columns = _Columns(name, header, options, prompts)
        for line, fields in _rows(file, columns.used(header), options):
            row: Row | BadRow
            try:
                row = columns.row(line, fields)
            except RowError as error:
                row = BadRow(line, str(error), b"")
            yield row
        return bool(file.metadata.num_rows)


def parquet_lines(path: Path, *, name: str) -> Iterator[int]:
    """Yield the number of each row."""
    with _opened(path, name) as file:
        count: int = file.metadata.num_rows
    return iter(range(1, count + 1))


class _Columns:
    """Which columns hold the prompt or the messages, and the id."""

    def __init__(self, name: str, header: Sequence[str], options: ReadOptions, prompts: Prompts) -> None:
        check_columns(name, header, options)
        self._template = options.template
        self._image = options.image_field
        self._prompts = prompts
        self._messages = prompts.is_plain and options.prompt_field is None and _MESSAGES in header
        if self._messages and PROMPT_COLUMN in header:
            raise UsageError(
                f"{name} is ambiguous: it has the columns `prompt` and `messages`;"
                " name the prompt's with --prompt-field, or write a file with the one that is meant"
            )
        self._prompt = _MESSAGES if self._messages else prompt_column(name, header, options)
        self._id = id_column(header, options)
        self._ids = Ids(options.id_field)

    def used(self, header: Sequence[str]) -> list[str] | None:
        """Return the columns that have to be read; None for all."""
        wanted = {self._id, self._image}
        if self._template is None:
            wanted.add(self._prompt)
        elif self._template.fields <= set(header) and WHOLE_ROW not in self._template.fields:
            wanted |= self._template.fields
        else:
            return None  # a message about a field that is missing tells those that there are
        return [column for column in header if column in wanted]

    def row(self, line: int, fields: Mapping[str, object]) -> Row:
        """Return the row that a record stands for."""
        if self._messages:
            payload: Json = {_MESSAGES: checked_messages(_sendable(fields[_MESSAGES]))}
        else:
            payload = self._prompts.payload(fields, self._prompt)
        return Row(line, self._ids.take({} if self._id is None else {self._id: fields[self._id]}), payload)


def _sendable(value: object) -> Json:
    """Return messages without the members that are null: a column's structs all have the same ones."""
    if isinstance(value, Mapping):
        return {str(name): _sendable(member) for name, member in value.items() if member is not None}
    if isinstance(value, list):
        return [_sendable(item) for item in value]
    converted = json_value(value)
    if isinstance(converted, Unknown) or type(converted) is not type(value):
        raise RowError(f"`messages` holds {kind_name(value)}, which JSON does not know")
    return converted


def _rows(
    file: Any,  # noqa: ANN401 -- pyarrow has no types
    columns: list[str] | None,
    options: ReadOptions,
) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield the wanted rows with their numbers, without a look at row groups that have none of them."""
    start = 1
    for index in range(file.num_row_groups):
        group = file.metadata.row_group(index)
        end = start + group.num_rows
        if options.only is None or not options.only.isdisjoint(range(start, end)):
            at_once = rows_at_once(group.num_rows, group.total_byte_size)
            line = start
            for batch in file.iter_batches(at_once, row_groups=[index], columns=columns, use_threads=False):
                for fields in python_rows(batch):
                    if options.wants(line):
                        yield line, fields
                    line += 1
        start = end


@contextmanager
def _opened(path: Path, name: str) -> Iterator[Any]:
    """Open a file as Parquet; raise UsageError, then and while it is read, where it is none."""
    pa, parquet = import_arrow(), import_arrow("pyarrow.parquet")
    try:
        with pa.OSFile(str(path)) as file:
            if not file.size():
                raise UsageError(f"{name} is empty: it needs at least one prompt")
            yield parquet.ParquetFile(file, pre_buffer=False, buffer_size=_PAGE_BUFFER)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{name} can't be read as Parquet: {reason}; if it is Parquet, make it anew") from None
