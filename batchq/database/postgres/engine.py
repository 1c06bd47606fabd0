"""Connections to PostgreSQL: how they are made, and kept alive."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import NoSuchModuleError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from batchq.database.postgres.silence import cut_soon, noticed, progress
from batchq.errors import ConfigurationError

CONNECT_SECONDS = 10
# One that listens comes on top.
_POOL = 2

# Whoever is stopped in the middle of a transaction must not hold up the others for long.
SESSION = {
    "idle_in_transaction_session_timeout": "30s",
    "lock_timeout": "5s",
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
    arguments = _asyncpg_arguments(url, pooled=pooled) if asyncpg else _psycopg_arguments(url, pooled=pooled)
    try:
        engine = create_async_engine(
            _without_options(url),
            isolation_level="AUTOCOMMIT",
            pool_size=_POOL,
            max_overflow=0,
            pool_reset_on_return=None,
            hide_parameters=True,  # a traceback would quote prompts
            connect_args={**arguments, "async_creator_fn": noticed(_connect_of(asyncpg=asyncpg))},
        )
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        driver, extra = ("asyncpg", "asyncpg") if asyncpg else ("psycopg", "postgres")
        raise ConfigurationError(f"{driver} is not installed: pip install 'batchq[{extra}]'") from error
    event.listen(engine.sync_engine, "before_cursor_execute", lambda *_: progress())
    if asyncpg:
        event.listen(engine.sync_engine, "close", lambda connection, _: cut_soon(connection.driver_connection))
    return engine


async def connect_alone(engine: AsyncEngine, url: URL) -> Any:  # noqa: ANN401 - psycopg's or asyncpg's
    """Make a connection of the driver itself, as the engine for `url` makes its own; the caller closes it."""
    asyncpg = is_asyncpg(url)
    arguments = _asyncpg_arguments(url, pooled=False) if asyncpg else _psycopg_arguments(url, pooled=False)
    found: Mapping[str, Any] = engine.dialect.create_connect_args(engine.url)[1]
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
    if options := _options(url, pooled=pooled):
        arguments["options"] = options
    # What the URL says itself counts.
    return {name: value for name, value in arguments.items() if name not in _without_options(url).query}


def _asyncpg_arguments(url: URL, *, pooled: bool) -> dict[str, object]:
    options = _options(url, pooled=pooled)
    settings = {"application_name": "batchq", **({"options": options} if options else {})}
    arguments: dict[str, object] = {"timeout": CONNECT_SECONDS, "server_settings": settings}
    if pooled:
        # Statements without a name leave nothing behind on the server's connection.
        unnamed = {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
        return {**arguments, **unnamed, "prepared_statement_name_func": str}
    return {**arguments, "prepared_statement_name_func": lambda: uuid.uuid4().hex}


def _options(url: URL, *, pooled: bool) -> str:
    """Return what sessions begin with: ours, and then what is said elsewhere, since the last word counts."""
    said = url.query.get("options") or os.environ.get("PGOPTIONS", "")
    ours = [] if pooled else [f"-c {name}={value}" for name, value in SESSION.items()]
    return " ".join([*ours, *([said] if isinstance(said, str) else said)]).strip()


def _without_options(url: URL) -> URL:
    return url.difference_update_query(["options"])
