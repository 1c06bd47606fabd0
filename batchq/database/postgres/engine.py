"""Connections to PostgreSQL: how they are made, kept alive, and cut when nothing comes back."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

from sqlalchemy.engine import URL
from sqlalchemy.exc import NoSuchModuleError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from batchq.errors import ConfigurationError

CONNECT_SECONDS = 10
# Longer than any transaction of batchq takes. A connection that is silent for so long is cut.
SILENCE_SECONDS = 25.0
_POOL = 3

# Whoever is stopped in the middle of a transaction must not hold up the others for long.
_SESSION = {"idle_in_transaction_session_timeout": "30s", "lock_timeout": "10s", "statement_timeout": "24s"}
# The system finds out within about 25 s that the other side is gone (libpq's parameters; asyncpg has none).
_ALIVE = {
    "keepalives": 1, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 20_000,
}  # fmt: skip


def make_engine(url: URL, *, pooled: bool) -> AsyncEngine:
    """Return an engine whose connections begin no transaction by themselves.

    `pooled` ones go through a pooler that hands out server connections per transaction: no session settings, no
    prepared statements. Raises ConfigurationError where the driver is not installed.
    """
    asyncpg = url.get_driver_name() == "asyncpg"
    try:
        return create_async_engine(
            url,
            isolation_level="AUTOCOMMIT",
            pool_size=_POOL,
            max_overflow=0,
            pool_reset_on_return=None,
            connect_args=_asyncpg_arguments(pooled=pooled) if asyncpg else _psycopg_arguments(url, pooled=pooled),
        )
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        driver, extra = ("asyncpg", "asyncpg") if asyncpg else ("psycopg", "postgres")
        raise ConfigurationError(f"{driver} is not installed: pip install 'batchq[{extra}]'") from error


def _psycopg_arguments(url: URL, *, pooled: bool) -> dict[str, object]:
    arguments: dict[str, object] = {"application_name": "batchq", "connect_timeout": CONNECT_SECONDS, **_ALIVE}
    if pooled:
        arguments["prepare_threshold"] = None
    else:
        arguments["options"] = " ".join(f"-c {name}={value}" for name, value in _SESSION.items())
    # What the URL says itself counts.
    return {name: value for name, value in arguments.items() if name not in url.query}


def _asyncpg_arguments(*, pooled: bool) -> dict[str, object]:
    if pooled:
        return {"timeout": CONNECT_SECONDS, "statement_cache_size": 0, "prepared_statement_cache_size": 0}
    return {"timeout": CONNECT_SECONDS, "server_settings": {"application_name": "batchq", **_SESSION}}


@contextmanager
def cut_when_silent(connection: AsyncConnection, cut: Callable[[float, Callable[[], None]], Any]) -> Iterator[None]:
    """Cut the connection if the block takes too long: what waits on it hears that the server is gone.

    `cut` is the loop's `call_later`. A cancellation would not do: drivers wait for the server's word first, which
    never comes through a connection that is half open.
    """
    handle = cut(SILENCE_SECONDS, _cutter(connection))
    try:
        yield
    finally:
        handle.cancel()


def _cutter(connection: AsyncConnection) -> Callable[[], None]:
    def cut() -> None:
        with suppress(Exception):
            _cut(connection.sync_connection.connection.driver_connection)  # type: ignore[union-attr]

    return cut


def _cut(driver: object) -> None:
    terminate = getattr(driver, "terminate", None)
    if terminate is not None:  # asyncpg
        terminate()
        return
    with socket.socket(fileno=os.dup(cast("Any", driver).fileno())) as same:
        same.shutdown(socket.SHUT_RDWR)
