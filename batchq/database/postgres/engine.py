"""Connections to PostgreSQL: how they are made, and kept alive."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.engine import URL
from sqlalchemy.exc import NoSuchModuleError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from batchq.database.postgres.silence import noticed
from batchq.errors import ConfigurationError

CONNECT_SECONDS = 10
_POOL = 3

# Whoever is stopped in the middle of a transaction must not hold up the others for long.
SESSION = {
    "idle_in_transaction_session_timeout": "30s",
    "lock_timeout": "10s",
    "statement_timeout": "24s",
    "jit": "off",
}
# The system finds out within about 25 s that the other side is gone (libpq's parameters; asyncpg has none).
_ALIVE = {
    "keepalives": 1, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 20_000,
}  # fmt: skip
# Arguments of SQLAlchemy's adapters that the drivers themselves don't know.
_OF_ADAPTERS = ("async_creator_fn", "prepared_statement_cache_size", "prepared_statement_name_func")


def make_engine(url: URL, *, pooled: bool) -> AsyncEngine:
    """Return an engine whose connections begin no transaction by themselves.

    `pooled` ones go through a pooler that hands out server connections per transaction: no session settings, no
    prepared statements. Raises ConfigurationError where the driver is not installed.
    """
    asyncpg = is_asyncpg(url)
    arguments = _asyncpg_arguments(pooled=pooled) if asyncpg else _psycopg_arguments(url, pooled=pooled)
    try:
        return create_async_engine(
            url,
            isolation_level="AUTOCOMMIT",
            pool_size=_POOL,
            max_overflow=0,
            pool_reset_on_return=None,
            connect_args={**arguments, "async_creator_fn": noticed(_connect_of(asyncpg=asyncpg))},
        )
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        driver, extra = ("asyncpg", "asyncpg") if asyncpg else ("psycopg", "postgres")
        raise ConfigurationError(f"{driver} is not installed: pip install 'batchq[{extra}]'") from error


async def connect_alone(engine: AsyncEngine) -> Any:  # noqa: ANN401 - psycopg's or asyncpg's
    """Make a connection of the driver itself, as the engine makes its own; the caller closes it."""
    asyncpg, url = is_asyncpg(engine.url), engine.url
    arguments = _asyncpg_arguments(pooled=False) if asyncpg else _psycopg_arguments(url, pooled=False)
    found: Mapping[str, Any] = engine.dialect.create_connect_args(url)[1]
    more: dict[str, object] = {} if asyncpg else {"autocommit": True}
    known = {name: value for name, value in {**found, **arguments, **more}.items() if name not in _OF_ADAPTERS}
    return await noticed(_connect_of(asyncpg=asyncpg))(**known)


def is_pooled(connection: Connection) -> bool:
    """Whether somebody between gives us the server's connections: they are not the one that we were told of.

    It matters before anything is prepared: the numbers of our statements are those of others' there, too.
    """
    driver: Any = connection.connection.driver_connection
    told = driver.get_server_pid() if is_asyncpg(connection.engine.url) else driver.info.backend_pid
    return bool(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one() != told)


def is_asyncpg(url: URL) -> bool:
    """Whether it is asyncpg that talks to the server; else it is psycopg."""
    return url.get_driver_name() == "asyncpg"


def _connect_of(*, asyncpg: bool) -> Any:  # noqa: ANN401
    if asyncpg:
        import asyncpg as driver

        return driver.connect
    from psycopg import AsyncConnection

    return AsyncConnection.connect


def _psycopg_arguments(url: URL, *, pooled: bool) -> dict[str, object]:
    arguments: dict[str, object] = {"application_name": "batchq", "connect_timeout": CONNECT_SECONDS, **_ALIVE}
    if pooled:
        arguments["prepare_threshold"] = None
    else:
        arguments["options"] = " ".join(f"-c {name}={value}" for name, value in SESSION.items())
    # What the URL says itself counts.
    return {name: value for name, value in arguments.items() if name not in url.query}


def _asyncpg_arguments(*, pooled: bool) -> dict[str, object]:
    arguments: dict[str, object] = {"timeout": CONNECT_SECONDS, "server_settings": {"application_name": "batchq"}}
    if pooled:
        # Statements without a name leave nothing behind on the server's connection.
        unnamed = {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
        return {**arguments, **unnamed, "prepared_statement_name_func": str}
    session = {"application_name": "batchq", **SESSION}
    return {**arguments, "server_settings": session, "prepared_statement_name_func": lambda: uuid.uuid4().hex}
