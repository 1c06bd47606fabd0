"""Which schema a database has, and what to say where it is another one than this batchq knows."""

from __future__ import annotations

from sqlalchemy import select

from batchq.database.dialect import clock_ms
from batchq.database.moving import schema_in_use
from batchq.errors import DatabaseUnavailable, SchemaMismatch
from batchq.schema import REMOVED, SCHEMA_VERSION, meta

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
            f"{location} has schema {version}, this batchq needs {SCHEMA_VERSION}: `batchq db upgrade` upgrades it"
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


def _number(version: str | None) -> int:
    return int(version) if version is not None and version.isascii() and version.isdigit() else 0
