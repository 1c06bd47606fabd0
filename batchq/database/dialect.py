"""The few expressions that SQLite and PostgreSQL spell differently, as SQLAlchemy elements."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from sqlalchemy import BigInteger, Select, Subquery, Table, Text, bindparam, func, literal_column, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeEngine


class clock_ms(FunctionElement[int]):  # noqa: N801 - reads like the SQL function that it is
    """The database's clock: milliseconds since the epoch. Read once per transaction, then bound."""

    type = BigInteger()
    inherit_cache = True


@compiles(clock_ms, "sqlite")
def _clock_ms_sqlite(_element: clock_ms, _compiler: SQLCompiler, **_options: object) -> str:
    # unixepoch('subsec') is NULL before SQLite 3.42.
    return "CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)"


class random_below(FunctionElement[int]):  # noqa: N801
    """A random integer from 0 up to its argument, drawn anew for every row."""

    type = BigInteger()
    inherit_cache = True


@compiles(random_below, "sqlite")
def _random_below_sqlite(element: random_below, compiler: SQLCompiler, **options: object) -> str:
    bound = compiler.process(element.clauses, **options)
    # abs(random()) overflows on the one value that has no positive twin.
    return f"((random() & 9223372036854775807) % ({bound}))"


def json_rows(name: str, columns: Mapping[str, TypeEngine[Any]]) -> Subquery:
    """Return the rows of the JSON array of arrays bound as `name`, as a table with these columns.

    One statement and one parameter carry any number of rows, so that the round trips of an exchange
    do not grow with the jobs, and no limit on bound parameters applies.
    """
    item = func.json_each(bindparam(name, type_=Text)).table_valued("value", name=f"{name}_item")
    fields: list[ColumnElement[Any]] = [
        func.json_extract(item.c.value, literal_column(f"'$[{index}]'"), type_=kind).label(column)
        for index, (column, kind) in enumerate(columns.items())
    ]
    return select(*fields).select_from(item).subquery(name)


def json_list(name: str) -> Select[tuple[int]]:
    """Return a SELECT of the values in the JSON array bound as `name`, for use with IN."""
    item = func.json_each(bindparam(name, type_=Text)).table_valued("value", name=f"{name}_item")
    return select(item.c.value)


@cache
def upsert(table: Table, key: tuple[str, ...]) -> sqlite.Insert:
    """Return an INSERT that replaces the row with the same key, if there is one."""
    statement = sqlite.insert(table)
    return statement.on_conflict_do_update(
        index_elements=list(key),
        set_={column.name: statement.excluded[column.name] for column in table.columns if column.name not in key},
    )


@cache
def upsert_adding(table: Table, key: tuple[str, ...]) -> sqlite.Insert:
    """Return an INSERT that adds each number to the row with the same key, if there is one."""
    statement = sqlite.insert(table)
    return statement.on_conflict_do_update(
        index_elements=list(key),
        set_={
            column.name: column + statement.excluded[column.name] for column in table.columns if column.name not in key
        },
    )
