"""What `--db` names: a file, or a database on a PostgreSQL server."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from batchq.errors import ConfigurationError

_DRIVERS = {
    "postgresql": "psycopg", "postgres": "psycopg", "postgresql+psycopg": "psycopg", "postgresql+asyncpg": "asyncpg",
}  # fmt: skip


def locate(location: str) -> Path | URL:
    """Return the absolute path of a SQLite file, or the URL of a PostgreSQL database with its driver.

    `location` is a path, a `sqlite://` URL or a `postgresql://` URL. Raises ConfigurationError for any other.
    """
    if "://" not in location:
        return Path(location).expanduser().absolute()
    try:
        url = make_url(location)
    except ArgumentError as error:
        raise ConfigurationError(f"{_without_password(location)!r} is not a database URL") from error
    if url.get_backend_name() == "sqlite":
        return _file_of(url)
    driver = _DRIVERS.get(url.drivername)
    if driver is None:
        raise ConfigurationError(
            f"{url.drivername} is not supported; use a path, sqlite:///path, postgresql+psycopg:// or"
            " postgresql+asyncpg://"
        )
    if not url.database:
        raise ConfigurationError(f"{shown(url)} names no database: write postgresql+psycopg://host/database")
    return url.set(drivername=f"postgresql+{driver}")


def database_file(location: str) -> Path | None:
    """Return the file that `location` names; None for a database on a server."""
    found = locate(location)
    return found if isinstance(found, Path) else None


def shown(url: URL) -> str:
    """Return a URL for people to read: without its password, wherever it stands in it."""
    return url.difference_update_query(["password", "passfile", "sslpassword"]).render_as_string(hide_password=True)


def _file_of(url: URL) -> Path:
    if not url.database or url.database == ":memory:":
        raise ConfigurationError("a queue needs a file: an in-memory database can't be shared or survive")
    return Path(url.database).expanduser().absolute()


def _without_password(location: str) -> str:
    """Return what can be shown of a URL that can't be parsed: a password may be anywhere before the last @."""
    scheme, _, rest = location.partition("://")
    return f"{scheme}://…{rest.rpartition('@')[2]}" if "@" in rest else location
