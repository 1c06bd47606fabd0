"""Asks a database for one value, on a connection of its own."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any, LiteralString


def one_value(target: str, query: LiteralString) -> Any:  # noqa: ANN401 - a value of the database
    """Return the first value of a query."""
    if target.startswith("postgresql"):
        import psycopg

        with psycopg.connect(target) as connection:
            row = connection.execute(query).fetchone()
    else:
        with closing(sqlite3.connect(target, timeout=30)) as file:
            row = file.execute(query).fetchone()
    return row[0] if row else None
