"""The rows of the input, each found by the job that was made of it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path

from batchq.collecting.field_kinds import FieldKinds
from batchq.errors import UsageError
from batchq.formats import Column, ReadOptions
from batchq.formats.fields import FieldRow, bad_row, read_fields
from batchq.formats.rows import Ids, RowError
from batchq.jobs import Batch, Result
from batchq.request import samples_of

_CHUNK_ROWS = 2_000
_encode = json.JSONEncoder(separators=(",", ":")).encode


@contextmanager
def input_rows(path: Path, options: ReadOptions, batch: Batch, *, has_ids: bool) -> Iterator[InputRows]:
    """Read the input of a batch. Raises UsageError where its rows can't be those that the jobs were made of.

    They belong together by custom_id where the jobs and the rows have one, else by position.
    """
    if options.id_field is not None and not has_ids:
        raise UsageError(f"the jobs of {batch.name} have no custom_ids: leave out --id-field")
    # An empty name is a file that SQLite makes in the temporary directory and removes on closing.
    with closing(sqlite3.connect("", isolation_level=None, check_same_thread=False)) as database:
        for statement in ("PRAGMA journal_mode=OFF", "PRAGMA synchronous=OFF", "BEGIN"):
            database.execute(statement)
        rows = InputRows(database, path, batch)
        rows.read(options, Ids(options.id_field) if has_ids else None)
        yield rows


class InputRows:
    """The rows of an input in a temporary database on disk, so that memory does not grow with them."""

    def __init__(self, database: sqlite3.Connection, path: Path, batch: Batch) -> None:
        """Prepare an empty table."""
        self._database = database
        self._path = path
        self._batch = batch
        self._samples = samples_of(batch.settings)
        self._by_id = False
        self.count = 0
        self.columns: tuple[Column, ...] = ()
        database.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, id TEXT, line INTEGER, fields TEXT NOT NULL)")

    def read(self, options: ReadOptions, ids: Ids | None) -> None:
        """Take in all rows of the file."""
        kinds = FieldKinds()
        rows = self._records(read_fields(self._path, options, kinds.declare), kinds, ids)
        while chunk := list(islice(rows, _CHUNK_ROWS)):
            self._database.executemany("INSERT INTO rows VALUES (?, ?, ?, ?)", chunk)
        self.columns = kinds.columns()
        if self.count * self._samples != self._batch.size:
            raise UsageError(f"{self._numbers()}: --with-input takes the very file that the batch was enqueued from")
        if self._by_id:
            self._index_ids()

    def of(self, result: Result) -> str:
        """Return the fields of a job's row as a JSON object. Raises UsageError where it has none."""
        if self._by_id:
            name = self._row_id(result)
            found = self._database.execute("SELECT fields FROM rows WHERE id = ?", (name,)).fetchone()
        else:
            number = result.position // self._samples
            found = self._database.execute("SELECT fields FROM rows WHERE number = ?", (number,)).fetchone()
        if found is None:
            named = f"custom_id {result.custom_id!r}" if self._by_id else f"position {result.position}"
            raise UsageError(f"{self._path} has no row for the job with {named}, though {self._numbers()}")
        fields: str = found[0]
        return fields

    def _records(
        self, rows: Iterator[FieldRow], kinds: FieldKinds, ids: Ids | None
    ) -> Iterator[tuple[int, str | None, int, str]]:
        for row in rows:
            try:
                name = None if ids is None else ids.take(row.fields)
            except RowError as error:
                raise bad_row(self._path, row.line, error) from None
            self._by_id = name is not None
            kinds.saw(row.fields)
            yield self.count, name, row.line, _encode(row.fields)
            self.count += 1

    def _index_ids(self) -> None:
        self._database.execute("CREATE INDEX by_id ON rows (id)")
        doubled = self._database.execute(
            "SELECT max(line), min(line), id FROM rows GROUP BY id HAVING count(*) > 1 ORDER BY 1 LIMIT 1"
        ).fetchone()
        if doubled is not None:
            line, first, name = doubled
            raise bad_row(self._path, line, f"duplicate custom_id {name[:80]!r}, first on line {first}")

    def _row_id(self, result: Result) -> str:
        name = result.custom_id or ""
        return name.rpartition("#")[0] if self._samples > 1 else name

    def _numbers(self) -> str:
        each = f" ({self._samples} samples of each row)" if self._samples > 1 else ""
        return f"{self._path} has {self.count:,} rows, {self._batch.name} has {self._batch.size:,} jobs{each}"
