"""Which schema a database has, and what to say where it is another one than this batchq knows."""

from __future__ import annotations

import shlex

from sqlalchemy import select

from batchq.database.contract import Transaction
from batchq.database.dialect import clock_ms
from batchq.database.moving import Standing, schema_in_use
from batchq.errors import DatabaseUnavailable, SchemaMismatch
from batchq.schema import MOVED, REMOVED, SCHEMA_VERSION, meta

VERSION = select(meta.c.value).where(meta.c.name == "schema_version")
# Read together at the start of each transaction, so that an old worker stops after an upgrade.
CLOCK_AND_VERSION = select(clock_ms(), VERSION.scalar_subquery())


def check_version(location: object, version: str | None, *, writing: bool = True) -> None:
    """Raise SchemaMismatch unless the schema is the one that this batchq knows.

    Raises DatabaseUnavailable or QueueMoved while the queue is not, or not any more, in this database.
    """
    version = schema_in_use(location, version, writing=writing)
    if version == str(SCHEMA_VERSION):
        return
    if version == REMOVED:
        raise DatabaseUnavailable(f"{location} was empty and is being removed by another process: run this again")
    if outdated(version):
        raise SchemaMismatch(
            f"{location} has schema {version}, this batchq needs {SCHEMA_VERSION}: {_upgrading(location)} upgrades it"
        )
    if _number(version) > SCHEMA_VERSION:
        raise SchemaMismatch(
            f"{location} was made or upgraded by a newer batchq (schema {version}, this one knows {SCHEMA_VERSION}):"
            " upgrade batchq here, and start this process again"
        )
    raise SchemaMismatch(f"{location} has schema {version}, which no batchq made; this one needs {SCHEMA_VERSION}")


def outdated(version: str | None) -> int | None:
    """Return the version of a schema that can be upgraded to this batchq's; None where it can't, or need not."""
    number = _number(version)
    return number if 0 < number < SCHEMA_VERSION else None


def read_moved_to(tx: Transaction) -> str | None:
    """Return the place that the queue went to, or is on its way to; None while it is in use here."""
    found = Standing.read(tx.connection.execute(VERSION).scalar_one_or_none())
    return found.place if found.word == MOVED else None


def _upgrading(location: object) -> str:
    """Return the command that upgrades a database, by the name that is shown of it: without its password."""
    return f"`{shlex.join(['batchq', 'db', 'upgrade', '--db', str(location)])}`"


def _number(version: str | None) -> int:
    return int(version) if version is not None and version.isascii() and version.isdigit() else 0
