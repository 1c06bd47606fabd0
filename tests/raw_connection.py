"""A connection to a queue's database past batchq: to look at rows, to change them by hand, and to be in the way."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

import psycopg
from psycopg.rows import dict_row


class RawConnection:
    """Runs SQL with `?` for parameters; each statement commits by itself unless BEGIN was said."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.is_sqlite = isinstance(connection, sqlite3.Connection)

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> list[Mapping[str, Any]]:
        if not self.is_sqlite:
            sql = sql.replace("%", "%%").replace("?", "%s") if parameters else sql
        cursor = self._connection.execute(sql, parameters or ()) if parameters else self._connection.execute(sql)
        return cursor.fetchall() if cursor.description else []


@contextmanager
def connect(location: object) -> Iterator[RawConnection]:
    """Open a path, or the URL of a PostgreSQL database."""
    text = str(location)
    if "://" in text:
        with psycopg.connect(text.replace("+psycopg", "").replace("+asyncpg", ""), autocommit=True,
                             row_factory=dict_row) as connection:  # fmt: skip
            yield RawConnection(connection)
        return
    with closing(sqlite3.connect(text, isolation_level=None, timeout=10)) as connection:
        connection.row_factory = sqlite3.Row
        yield RawConnection(connection)
