"""What `--db` names: a file, or a database on a PostgreSQL server."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from batchq.errors import ConfigurationError

_DRIVERS = {
    "postgresql": "psycopg", "postgres": "psycopg", "postgresql+psycopg": "psycopg", "postgresql+asyncpg": "asyncpg",
}  # fmt: skip
# psycopg hands all that a URL asks for to libpq; asyncpg has arguments of its own.
_ASYNCPG_OPTIONS = frozenset({"ssl", "options", "passfile", "host", "port", "timeout", "command_timeout"})
_PASSWORDS = frozenset({"password", "sslpassword"})
_SHOWN = 80
_IN_MEMORY = ":memory:"
_NO_FILE = "a queue needs a file: an in-memory database can't be shared or survive"
_ESCAPES = "in a password write @ : / # ? % as %40 %3A %2F %23 %3F %25"
# A URL without its slashes, or without its scheme, would be a path, and its password be shown.
_LIKE_A_URL = re.compile(r"(postgres(ql)?(\+\w+)?:/?[^/])|([^/\s]+:[^/\s]*@[^/\s]+/)", re.IGNORECASE)


def locate(location: str) -> Path | URL:
    """Return the absolute path of a SQLite file, or the URL of a PostgreSQL database with its driver.

    `location` is a path, a `sqlite://` URL or a `postgresql://` URL. Raises ConfigurationError for any other.
    """
    location = location.strip()
    if "://" not in location:
        if location == _IN_MEMORY:
            raise ConfigurationError(_NO_FILE)
        if _LIKE_A_URL.match(location):
            raise ConfigurationError(
                "the database is neither a path nor a URL: write postgresql+psycopg://host/database"
            )
        return _usable(location)
    try:
        url = make_url(location)
    except (ArgumentError, ValueError):
        raise ConfigurationError(f"{_without_password(location)!r} is not a database URL; {_ESCAPES}") from None
    if url.get_backend_name() == "sqlite":
        return _file_of(url)
    driver = _DRIVERS.get(url.drivername.lower())
    if driver is None:
        raise ConfigurationError(
            f"{url.drivername} is not supported; use a path, sqlite:///path, postgresql+psycopg:// or"
            " postgresql+asyncpg://"
        )
    if not url.database and not os.environ.get("PGDATABASE"):
        raise ConfigurationError(f"{shown(url)} names no database: write postgresql+psycopg://host/database")
    url = url.set(drivername=f"postgresql+{driver}", database=url.database.rstrip("/") if url.database else None)
    return _for_asyncpg(url) if driver == "asyncpg" else url


def shown_location(location: str) -> str:
    """Return what `--db` was given for people to read: a URL without its password."""
    if "://" not in location:
        return location
    try:
        return shown(make_url(location.strip()))
    except (ArgumentError, ValueError):
        return _without_password(location)


def database_file(location: str) -> Path | None:
    """Return the file that `location` names; None for a database on a server."""
    found = locate(location)
    return found if isinstance(found, Path) else None


def holds_password(location: str) -> bool:
    """Whether `location` is a URL with a password in it."""
    found = locate(location)
    return isinstance(found, URL) and (found.password is not None or not _PASSWORDS.isdisjoint(found.query))


def shown(url: URL) -> str:
    """Return a URL for people to read: without its password, wherever it stands in it."""
    query = {name: value for name, value in url.query.items() if name not in {*_PASSWORDS, "passfile"}}
    public = URL.create(url.drivername, url.username, None, url.host, url.port, url.database, query)
    return public.render_as_string(hide_password=False)


def _for_asyncpg(url: URL) -> URL:
    """Return the URL with the options that asyncpg has. Raises ConfigurationError for any other."""
    query = {("ssl" if name == "sslmode" else name): value for name, value in url.query.items()}
    unknown = sorted(query.keys() - _ASYNCPG_OPTIONS)
    if unknown:
        raise ConfigurationError(
            f"asyncpg knows no {', '.join(unknown)} (in {shown(url)}); psycopg knows all that libpq does: write"
            " postgresql+psycopg://"
        )
    return url.set(query=query)


def _file_of(url: URL) -> Path:
    if not url.database or url.database == _IN_MEMORY:
        raise ConfigurationError(_NO_FILE)
    return _usable(url.database)


def _usable(path: str) -> Path:
    """Return the absolute path of a file. Raises ConfigurationError for a name that no file can have."""
    try:
        path.encode()
        found = Path(path).expanduser().absolute()
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            found.stat()
    except UnicodeEncodeError:
        raise ConfigurationError(f"{path!r} can't be the name of a database: it is not UTF-8") from None
    except (OSError, ValueError, RuntimeError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        short = path if len(path) <= _SHOWN else path[:_SHOWN] + "…"
        raise ConfigurationError(f"{short!r} can't be the name of a database: {reason}") from None
    return found


def _without_password(location: str) -> str:
    """Return what can be shown of a URL that can't be parsed: a password may be anywhere before the last @."""
    scheme, _, rest = location.partition("://")
    return f"{scheme}://…{rest.rpartition('@')[2]}" if "@" in rest else location
