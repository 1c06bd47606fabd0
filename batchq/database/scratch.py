"""A process's own notes, in a temporary SQLite file: memory does not grow with them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from batchq.errors import OutputFailed


class Scratch:
    """Tables that nobody else sees, gone when it is closed. Raises OutputFailed where they find no room."""

    def __init__(self, *tables: str) -> None:
        """Make tables by their CREATE statements."""
        # An empty name is a file that SQLite makes in the temporary directory and removes on closing.
        self._connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for statement in ("PRAGMA journal_mode=OFF", "PRAGMA synchronous=OFF", *tables, "BEGIN"):
            self.run(statement)

    def close(self) -> None:
        """Remove the file."""
        self._connection.close()

    def run(self, statement: str) -> None:
        """Run a statement."""
        with _telling():
            self._connection.execute(statement)

    def add(self, statement: str, rows: Iterable[Sequence[object]]) -> None:
        """Run a statement once for each row of parameters."""
        with _telling():
            self._connection.executemany(statement, rows)

    def rows(self, statement: str, *parameters: object) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a query as they are asked for."""
        with _telling():
            yield from self._connection.execute(statement, parameters)


@contextmanager
def _telling() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        if code is None or code & 0xFF not in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}:
            raise
        raise OutputFailed(
            f"can't take notes about the input in the temporary directory: {error}; make room there, or name another"
            " directory in TMPDIR, and run this again"
        ) from error
