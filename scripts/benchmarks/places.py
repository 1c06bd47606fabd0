"""Where queues lie while they are measured: SQLite files, or databases on a PostgreSQL server."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

import psycopg

from scripts.postgres_server import Postgres, postgres_server

SQLITE, POSTGRESQL = "SQLite", "PostgreSQL"


class Place(Protocol):
    """One queue's place, seen from outside of batchq. Statements number their parameters: $1, $2, …"""

    @property
    def location(self) -> str:
        """What `--db` and `open_store` call it."""

    def clear(self) -> None:
        """Make it a place without a queue."""

    def copy(self, template: Place) -> None:
        """Put a copy of a queue here, one that nobody has open."""

    def ask(self, sql: str, *parameters: object) -> Any:  # noqa: ANN401 - a value of the database
        """Return the first value of a query."""

    def snapshot(self) -> AbstractContextManager[None]:
        """Hold a read transaction open for the length of the block."""


Where = Place | Path | str


def place_at(where: Where) -> Place:
    """Return the place that a path or a URL names; a place is one already."""
    if isinstance(where, (Path, str)):
        return PostgresPlace.at(where) if isinstance(where, str) and "://" in where else SqlitePlace(Path(where))
    return where


class SqlitePlace:
    """A SQLite file. Each question has a connection of its own."""

    def __init__(self, path: Path) -> None:
        """Name the file, which may not be there yet."""
        self.path = path
        self.log = Path(f"{path}-wal")

    @property
    def location(self) -> str:
        return str(self.path)

    def clear(self) -> None:
        for file in (self.path, self.log, Path(f"{self.path}-shm")):
            file.unlink(missing_ok=True)

    def copy(self, template: Place) -> None:
        self.clear()
        shutil.copyfile(template.location, self.path)

    def ask(self, sql: str, *parameters: object) -> Any:  # noqa: ANN401
        with closing(sqlite3.connect(self.path, timeout=10)) as connection:
            numbered = {str(number): value for number, value in enumerate(parameters, 1)}
            return connection.execute(sql, numbered).fetchone()[0]

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        with closing(sqlite3.connect(self.path, timeout=10, isolation_level=None)) as connection:
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM batches").fetchone()
            yield
            connection.execute("COMMIT")


class PostgresPlace:
    """A database on a server. Questions share one connection, since making one costs the server milliseconds."""

    def __init__(self, server: Postgres, name: str) -> None:
        """Name the database, which may not be there yet."""
        self._server = server
        self.name = name
        self._connection: psycopg.Connection[Any] | None = None

    @classmethod
    def at(cls, url: str) -> PostgresPlace:
        """Return the place of a database by its URL."""
        parts = urlsplit(url)
        return cls(Postgres(urlunsplit(parts._replace(path="/postgres"))), parts.path.lstrip("/"))

    @property
    def location(self) -> str:
        return self._server.url(self.name)

    def clear(self) -> None:
        self._make(None)

    def copy(self, template: Place) -> None:
        assert isinstance(template, PostgresPlace)
        template.leave()
        self._make(template.name)

    def ask(self, sql: str, *parameters: object) -> Any:  # noqa: ANN401
        if self._connection is None:
            self._connection = self.connect()
        row = psycopg.RawCursor(self._connection).execute(sql.encode(), parameters).fetchone()
        return None if row is None else row[0]

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        with self.connect() as connection:
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            connection.execute("SELECT count(*) FROM batches")
            yield
            connection.execute("COMMIT")

    def connect(self) -> psycopg.Connection[Any]:
        """Return a connection, for the caller to close."""
        return self._server.connect(self.name)

    def leave(self) -> None:
        """Close the connection: nobody may be connected to a database that is copied."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _make(self, template: str | None) -> None:
        self.leave()
        self._server.drop_database(self.name)
        self._server.create_database(self.name, template)


class Home(Protocol):
    """Where the places of one measurement are made."""

    @property
    def database(self) -> str:
        """The name of the database, for the table."""

    def place(self, name: str) -> Place:
        """Return the place of that name; there is no queue yet."""


class SqliteHome:
    """A directory."""

    database = SQLITE

    def __init__(self, directory: Path) -> None:
        """Take an empty directory."""
        self._directory = directory

    def place(self, name: str) -> SqlitePlace:
        return SqlitePlace(self._directory / f"{name}.db")


class PostgresHome:
    """A server."""

    database = POSTGRESQL

    def __init__(self, server: Postgres) -> None:
        """Take a server that has none of the places yet."""
        self._server = server

    def place(self, name: str) -> PostgresPlace:
        return PostgresPlace(self._server, name)


@contextmanager
def homes(directory: Path, databases: tuple[str, ...]) -> Iterator[tuple[Home, ...]]:
    """Yield a home on each of these databases; the server is one of our own, with PostgreSQL's default settings."""
    with ExitStack() as stack:
        found: list[Home] = []
        if SQLITE in databases:
            found.append(SqliteHome(directory))
        if POSTGRESQL in databases:
            found.append(PostgresHome(stack.enter_context(postgres_server(durable=True))))
        yield tuple(found)
