"""The few expressions that SQLite and PostgreSQL spell differently, as SQLAlchemy elements."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from sqlalchemy import CTE, BigInteger, Cast, Select, Table, Text, bindparam, literal_column, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeEngine

from batchq.database.contract import Transaction


class clock_ms(FunctionElement[int]):  # noqa: N801 - reads like the SQL function that it is
    """The database's clock: milliseconds since the epoch. Read once per transaction, then bound."""

    type = BigInteger()
    inherit_cache = True


@compiles(clock_ms, "sqlite")
def _clock_ms_sqlite(_element: clock_ms, _compiler: SQLCompiler, **_options: object) -> str:
    # unixepoch('subsec') is NULL before SQLite 3.42.
    return "CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)"


@compiles(clock_ms, "postgresql")
def _clock_ms_postgresql(_element: clock_ms, _compiler: SQLCompiler, **_options: object) -> str:
    # now() would be the time at which the transaction began.
    return "CAST(floor(EXTRACT(EPOCH FROM clock_timestamp()) * 1000) AS BIGINT)"


class lock_order(FunctionElement[int]):  # noqa: N801
    """What a SELECT … FOR UPDATE is ordered by, so that of two transactions none waits for the other.

    SQLite has one lock for all, and sorts nothing.
    """

    inherit_cache = True


@compiles(lock_order, "sqlite")
def _lock_order_sqlite(_element: lock_order, _compiler: SQLCompiler, **_options: object) -> str:
    return "NULL"


@compiles(lock_order, "postgresql")
def _lock_order_postgresql(element: lock_order, compiler: SQLCompiler, **options: object) -> str:
    (column,) = element.clauses
    # As Python orders names, whatever the database's language.
    collated = ' COLLATE "C"' if isinstance(column.type, Text) else ""
    return compiler.process(column, **options) + collated


class on_sqlite(FunctionElement[bool]):  # noqa: N801
    """A condition that only SQLite is told: it has no other way to see that an index applies.

    PostgreSQL sees that by itself, and would count a condition that follows from another one twice.
    """

    # Of no type: SQLAlchemy would compare a boolean with 1 there, which is no condition of an index.
    inherit_cache = True


@compiles(on_sqlite, "sqlite")
def _on_sqlite_sqlite(element: on_sqlite, compiler: SQLCompiler, **options: object) -> str:
    return compiler.process(element.clauses, **options)


@compiles(on_sqlite, "postgresql")
def _on_sqlite_postgresql(_element: on_sqlite, _compiler: SQLCompiler, **_options: object) -> str:
    return "TRUE"


class random_below(FunctionElement[int]):  # noqa: N801
    """A random integer from 0 up to its argument, drawn anew for every row."""

    type = BigInteger()
    inherit_cache = True


@compiles(random_below, "sqlite")
def _random_below_sqlite(element: random_below, compiler: SQLCompiler, **options: object) -> str:
    bound = compiler.process(element.clauses, **options)
    # abs(random()) overflows on the one value that has no positive twin.
    return f"((random() & 9223372036854775807) % ({bound}))"


@compiles(random_below, "postgresql")
def _random_below_postgresql(element: random_below, compiler: SQLCompiler, **options: object) -> str:
    return f"CAST(floor(random() * ({compiler.process(element.clauses, **options)})) AS BIGINT)"


class _items(FunctionElement[str]):  # noqa: N801
    """The items of a JSON array, as rows of one column."""

    inherit_cache = True
    name = "items"


@compiles(_items, "sqlite")
def _items_sqlite(element: _items, compiler: SQLCompiler, **options: object) -> str:
    return f"json_each({compiler.process(element.clauses, **options)})"


@compiles(_items, "postgresql")
def _items_postgresql(element: _items, compiler: SQLCompiler, **options: object) -> str:
    # The alias names the column too: (value).
    return f"jsonb_array_elements(CAST({compiler.process(element.clauses, **options)} AS JSONB))"


class _part(FunctionElement[str]):  # noqa: N801
    """One value of an item that is an array itself, without its type: arguments are the item, and the index."""

    inherit_cache = True


@compiles(_part, "sqlite")
def _part_sqlite(element: _part, compiler: SQLCompiler, **options: object) -> str:
    item, index = (compiler.process(clause, **options) for clause in element.clauses)
    return f"json_extract({item}, '$[{index}]')"


@compiles(_part, "postgresql")
def _part_postgresql(element: _part, compiler: SQLCompiler, **options: object) -> str:
    item, index = (compiler.process(clause, **options) for clause in element.clauses)
    return f"({item} ->> {index})"


class _scalar(FunctionElement[str]):  # noqa: N801
    """An item that is a plain value, without its type."""

    inherit_cache = True


@compiles(_scalar, "sqlite")
def _scalar_sqlite(element: _scalar, compiler: SQLCompiler, **options: object) -> str:
    return compiler.process(element.clauses, **options)


@compiles(_scalar, "postgresql")
def _scalar_postgresql(element: _scalar, compiler: SQLCompiler, **options: object) -> str:
    return f"({compiler.process(element.clauses, **options)} #>> '{{}}')"


class _typed(Cast[Any]):  # noqa: N801
    """A value out of JSON with its type: PostgreSQL has text there, and SQLite the value itself."""

    inherit_cache = True


@compiles(_typed, "sqlite")
def _typed_sqlite(element: _typed, compiler: SQLCompiler, **options: object) -> str:
    return compiler.process(element.clause, **options)


@compiles(_typed, "postgresql")
def _typed_postgresql(element: _typed, compiler: SQLCompiler, **options: object) -> str:
    return str(compiler.visit_cast(element, **options))  # type: ignore[no-untyped-call]


def json_rows(name: str, columns: Mapping[str, TypeEngine[Any]]) -> CTE:
    """Return the rows of the JSON array of arrays bound as `name`, as a table with these columns.

    One statement and one parameter carry any number of rows, so that the round trips of an exchange
    do not grow with the jobs, and no limit on bound parameters applies.
    """
    item = _items(bindparam(name, type_=Text)).table_valued("value", name=f"{name}_item")
    fields = [
        _typed(_part(item.c.value, literal_column(str(index))), kind).label(column)
        for index, (column, kind) in enumerate(columns.items())
    ]
    # Read once, however often a statement names a column.
    return select(*fields).select_from(item).cte(name).prefix_with("MATERIALIZED", dialect="postgresql")


def json_list(name: str, kind: TypeEngine[Any] | None = None) -> Select[tuple[Any]]:
    """Return a SELECT of the values in the JSON array bound as `name`, for use with IN: ids unless `kind` says else."""
    item = _items(bindparam(name, type_=Text)).table_valued("value", name=f"{name}_item")
    return select(_typed(_scalar(item.c.value), kind or BigInteger()))


@cache
def upsert(table: Table, key: tuple[str, ...], changed: tuple[str, ...] = ()) -> postgresql.Insert:
    """Return an INSERT that changes the row with the same key, if there is one: these columns, or all."""
    statement = postgresql.insert(table)  # SQLite's compiler takes it, and not the other way round
    names = changed or tuple(column.name for column in table.columns if column.name not in key)
    return statement.on_conflict_do_update(
        index_elements=list(key), set_={name: statement.excluded[name] for name in names}
    )


@cache
def upsert_adding(table: Table, key: tuple[str, ...]) -> postgresql.Insert:
    """Return an INSERT that adds each number to the row with the same key, if there is one."""
    statement = postgresql.insert(table)
    return statement.on_conflict_do_update(
        index_elements=list(key),
        set_={
            column.name: column + statement.excluded[column.name] for column in table.columns if column.name not in key
        },
    )


@cache
def insert_missing(table: Table, key: tuple[str, ...]) -> postgresql.Insert:
    """Return an INSERT that leaves alone the row with the same key, if there is one."""
    return postgresql.insert(table).on_conflict_do_nothing(index_elements=list(key))


def writes_in_with(tx: Transaction) -> bool:
    """Whether a WITH may hold statements that write, so that one statement does what needs two."""
    return tx.connection.dialect.name == "postgresql"


_CLOCK = select(clock_ms())
# A transaction that took no longer has not waited for anybody.
_WAITED_SECONDS = 0.05


def after_waiting(tx: Transaction) -> Transaction:
    """Return the transaction with the time of now, where it may have waited for rows: what it grants begins now."""
    if not locks_rows(tx) or time.monotonic() - tx.began < _WAITED_SECONDS:
        return tx
    now = tx.connection.execute(_CLOCK).scalar_one() if tx.clock is None else tx.clock()
    return replace(tx, now=max(now, tx.now))


def locks_rows(tx: Transaction) -> bool:
    """Whether writers lock rows; where they do not, one has the whole database to itself."""
    return tx.connection.dialect.name == "postgresql"
