"""Calls of a driver's own, past SQLAlchemy, which fail as SQLAlchemy's do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from sqlalchemy import Connection, exc
from sqlalchemy.util import await_only

from batchq.database.postgres.silence import progress

T = TypeVar("T")

# asyncpg's own, where it loses its way: a connection that is lost in the middle of COPY.
_ASTRAY = "InternalClientError"
_OF_ASYNCPG = {"OSError": exc.OperationalError, _ASTRAY: exc.InternalError, "PostgresError": exc.DBAPIError}


def on_driver(connection: Connection, statement: str, call: Callable[[Any], Awaitable[T]]) -> T:
    """Return what a coroutine of psycopg's or asyncpg's connection returns. Raises DBAPIError."""
    driver: Any = connection.connection.driver_connection
    progress()
    try:
        return await_only(call(driver))
    except Exception as error:
        names = [kind.__name__ for kind in type(error).__mro__]
        kind = _kind_of(names)
        if kind is None:
            raise
        lost = _ASTRAY in names or bool(driver.is_closed() if hasattr(driver, "is_closed") else driver.closed)
        if lost:
            connection.invalidate(error)
        raise kind(statement, None, error, connection_invalidated=lost) from error


def say(connection: Connection, word: str) -> None:
    """Begin or end a transaction: BEGIN, COMMIT or ROLLBACK. Raises DBAPIError.

    asyncpg would prepare that first, through a pooler maybe on another of the server's connections.
    """
    if connection.dialect.driver == "asyncpg":
        on_driver(connection, word, lambda driver: driver.execute(word))
    else:
        connection.exec_driver_sql(word)


@contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """Commit what is done within, or roll it back: the connection may be used again."""
    say(connection, "BEGIN ISOLATION LEVEL READ COMMITTED")
    try:
        yield
        say(connection, "COMMIT")
    except BaseException:
        if not connection.invalidated:
            with suppress(exc.DBAPIError):
                say(connection, "ROLLBACK")
        raise


def _kind_of(names: list[str]) -> type[exc.DBAPIError] | None:
    """Return SQLAlchemy's class for a driver's error, which bears the same name; None for any other error."""
    for name in names:
        kind = _OF_ASYNCPG.get(name) or getattr(exc, name, None)
        if isinstance(kind, type) and issubclass(kind, exc.DBAPIError):
            return kind
    return None
