"""Tables page by page, in the order of their keys, as values that are the same in any database."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from typing import Any

from sqlalchemy import Column, ColumnElement, Table, Text, bindparam, select, tuple_

from batchq.database import Transaction
from batchq.database.wholesale import bytewise
from batchq.schema import attempts, batches, jobs, lanes, runners, tallies
from batchq.store.find import AnySelect

PAGE_ROWS = 2_000
PAGE_BYTES = 4_000_000
# Rows of one statement: what stands behind the last one may be larger than all before it.
STEP_ROWS = 100

# What others refer to comes first.
TABLES = {table.name: table for table in (batches, jobs, attempts, lanes, tallies, runners)}

Row = tuple[object, ...]
Key = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """Some rows of a table in the order of its key, and the key of the last one."""

    rows: tuple[Row, ...]
    last: Key | None

    def __bool__(self) -> bool:
        """Whether it holds any rows."""
        return bool(self.rows)


def key_columns(table: Table) -> list[Column[Any]]:
    """Return the columns of a table's primary key."""
    return list(table.primary_key.columns)


@cache
def _page_statement(name: str, *, first: bool) -> AnySelect:
    table = TABLES[name]
    keys: list[ColumnElement[Any]] = [
        bytewise(column) if isinstance(column.type, Text) else column for column in key_columns(table)
    ]
    statement = select(*table.columns).order_by(*keys).limit(bindparam("most"))
    if first:
        return statement
    bound = [bindparam(f"after_{column.name}", type_=column.type) for column in key_columns(table)]
    # A comparison of rows, so that the key's index leads to the first one.
    return statement.where(tuple_(*keys) > tuple_(*bound) if len(keys) > 1 else keys[0] > bound[0])


def read_page(
    tx: Transaction, table: Table, after: Key | None, limit: int, most_bytes: int | None, step: int
) -> tuple[Page, int]:
    """Return a page, and how many rows the first step of the next one had better take."""
    names = [column.name for column in key_columns(table)]
    rows: list[Row] = []
    size = 0
    while len(rows) < limit and (most_bytes is None or size < most_bytes):
        wanted = min(step, limit - len(rows))
        bound = {} if after is None else {f"after_{name}": part for name, part in zip(names, after, strict=True)}
        statement = _page_statement(table.name, first=after is None)
        came = [tuple(row) for row in tx.connection.execute(statement, {"most": wanted, **bound}).all()]
        rows += came
        size += sum(len(value) for row in came for value in row if isinstance(value, str))
        if len(came) < wanted:
            break
        after = _key_of(table, rows[-1])
        step = _rows_of(max(PAGE_BYTES - size, 1), len(rows), size)
    return Page(tuple(rows), _key_of(table, rows[-1]) if rows else after), _rows_of(PAGE_BYTES, len(rows), size)


def _rows_of(most_bytes: int, rows: int, size: int) -> int:
    """Return how many rows one statement had better ask for, where `rows` of them held `size`."""
    return min(STEP_ROWS, max(1, most_bytes * rows // max(size, 1))) if rows else STEP_ROWS


def with_later_times(table: Table, page: Page, shift_ms: int) -> Page:
    """Return a page with all its times later; what has no time, or 0, keeps it."""
    if not shift_ms:
        return page
    times = [column.name.endswith(("_at", "_until")) for column in table.columns]
    rows = tuple(
        tuple(
            value + shift_ms if is_time and isinstance(value, int) and value else value
            for value, is_time in zip(row, times, strict=True)
        )
        for row in page.rows
    )
    return Page(rows, page.last)


def states_of(page: Page) -> Iterable[str]:
    """Return the states of jobs."""
    place = list(jobs.columns).index(jobs.c.state)
    return (str(row[place]) for row in page.rows)


def as_text(page: Page) -> bytes:
    """Return a page's values as bytes that are the same for the same values, wherever they were read."""
    return "".join(f"{row!r}\n" for row in page.rows).encode("utf-8", "surrogatepass")


def first_difference(table: Table, expected: Page, found: Page) -> str:
    """Return a phrase about the first row in which two pages differ; it holds no prompt and no answer."""
    names = [column.name for column in table.columns]
    for one, other in zip_longest(expected.rows, found.rows):
        if repr(one) == repr(other):
            continue
        wanted, there = ((), ()) if one is None or other is None else (_key_of(table, one), _key_of(table, other))
        if other is None or wanted < there:
            return f"{table.name} lacks {_named(table, one)}"
        if one is None or there < wanted:
            return f"{table.name} has {_named(table, other)}, which should not be there"
        columns = [name for name, left, right in zip(names, one, other, strict=True) if repr(left) != repr(right)]
        return f"{table.name} differs at {_named(table, one)} in {', '.join(columns)}"
    return f"{table.name} is the same"


def _key_of(table: Table, row: Row) -> Any:  # noqa: ANN401 - whatever can be compared
    return tuple(row[place] for place in _key_places(table.name))


def _named(table: Table, row: Row) -> str:
    return ", ".join(
        f"{column.name} {part}" for column, part in zip(key_columns(table), _key_of(table, row), strict=True)
    )


@cache
def _key_places(name: str) -> tuple[int, ...]:
    columns = list(TABLES[name].columns)
    return tuple(columns.index(column) for column in key_columns(TABLES[name]))
