"""A connection to a queue's database past batchq: to look at rows, to change them by hand, and to be in the way."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

import psycopg
from psycopg.rows import dict_row, tuple_row

from batchq.schema import metadata

# A row that no table takes, whoever writes it.
INTEGRITY_ERRORS = (sqlite3.IntegrityError, psycopg.IntegrityError)
# What a look into a queue meets whose tables somebody is just making.
NOT_THERE_YET = (sqlite3.OperationalError, psycopg.errors.UndefinedTable)


class RawConnection:
    """Runs SQL with `?` for parameters; each statement commits by itself unless BEGIN was said."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.is_sqlite = isinstance(connection, sqlite3.Connection)

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> list[Mapping[str, Any]]:
        """Return rows by the names of their columns."""
        return self._run(self._connection.cursor(), sql, parameters)

    def tuples(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Return rows as they stand."""
        if self.is_sqlite:
            return [tuple(row) for row in self.execute(sql, parameters)]
        return self._run(self._connection.cursor(row_factory=tuple_row), sql, parameters)

    def _run(self, cursor: Any, sql: str, parameters: Sequence[object]) -> list[Any]:
        if parameters and not self.is_sqlite:
            sql = sql.replace("%", "%%").replace("?", "%s")
        cursor.execute(sql, *([parameters] if parameters else []))
        return cursor.fetchall() if cursor.description else []

    def lock_out_writers(self, *, wait: bool = True) -> None:
        """Begin a transaction beside which everybody may read and nobody write, not even a look that locks rows."""
        if self.is_sqlite:
            self.execute(f"PRAGMA busy_timeout = {10_000 if wait else 0}")
            self.execute("BEGIN IMMEDIATE")
            return
        self.execute("BEGIN")
        tables = ", ".join(metadata.tables)
        self.execute(f"LOCK TABLE {tables} IN EXCLUSIVE MODE {'' if wait else 'NOWAIT'}")


@contextmanager
def connect(location: object) -> Iterator[RawConnection]:
    """Open a path, or the URL of a PostgreSQL database."""
    text = str(location)
    if "://" in text:
        with psycopg.connect(text.replace("+psycopg", "").replace("+asyncpg", ""), autocommit=True,
                             row_factory=dict_row) as connection:  # fmt: skip
            yield RawConnection(connection)
        return
    with closing(sqlite3.connect(text, isolation_level=None, timeout=10, check_same_thread=False)) as connection:
        connection.row_factory = sqlite3.Row
        yield RawConnection(connection)
