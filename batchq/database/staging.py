"""Rows that one transaction carries into its statements, however many they are, as a table to be joined.

On SQLite they are put into a temporary table, in memory: half the price of reading them out of JSON. PostgreSQL
reads them from one parameter: a temporary table there would write to the catalogue, and not survive a pooler.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import Delete, Insert, Select, Update, column, table
from sqlalchemy.types import TypeEngine

from batchq.database.contract import Transaction
from batchq.database.dialect import json_rows, writes_in_with

Statement = TypeVar("Statement", Insert, Update, Delete, Select[Any])


class StagedRows:
    """A table of the given name and columns that exists for one transaction; `rows` stands for it in statements."""

    def __init__(self, name: str, columns: Mapping[str, TypeEngine[Any]]) -> None:
        """Describe it: nothing is made before `stage`."""
        self.rows = table(name, *(column(field, kind) for field, kind in columns.items()))
        self._name = name
        self._in_json = json_rows(name, columns)
        marks = ", ".join("?" * len(columns))
        self._create = f"CREATE TEMPORARY TABLE IF NOT EXISTS {name} ({', '.join(columns)})"
        self._delete = f"DELETE FROM temp.{name}"
        self._insert = f"INSERT INTO temp.{name} VALUES ({marks})"

    def stage(self, tx: Transaction, rows: list[tuple[object, ...]]) -> dict[str, object]:
        """Bring rows in, in the place of those before; return the parameters that statements need for them."""
        if writes_in_with(tx):
            return {self._name: json.dumps(rows)}
        driver: sqlite3.Connection = tx.connection.connection.driver_connection  # type: ignore[assignment]
        for statement in (self._create, self._delete):  # past SQLAlchemy: they are as old as the connection
            driver.execute(statement)
        tx.connection.exec_driver_sql(self._insert, rows)
        return {}

    def joined(self, tx: Transaction, statement: Statement) -> Statement:
        """Return a statement that names `rows` as this database has to see it."""
        return self._with_rows(statement) if writes_in_with(tx) else statement

    @cache  # noqa: B019 - there are as many of these as statements in the program
    def _with_rows(self, statement: Statement) -> Statement:
        return statement.add_cte(self._in_json)
