"""Which schema a database has, and what to say where it is another one than this batchq knows."""

from __future__ import annotations

from sqlalchemy import select

from batchq.database.dialect import clock_ms
from batchq.errors import DatabaseUnavailable, SchemaMismatch
from batchq.schema import REMOVED, SCHEMA_VERSION, meta

VERSION = select(meta.c.value).where(meta.c.name == "schema_version")
# Read together at the start of each transaction, so that an old worker stops after an upgrade.
CLOCK_AND_VERSION = select(clock_ms(), VERSION.scalar_subquery())


def check_version(location: object, version: str | None) -> None:
    """Raise SchemaMismatch unless the schema is the one that this batchq knows."""
    if version == str(SCHEMA_VERSION):
        return
    if version == REMOVED:
        raise DatabaseUnavailable(f"{location} was empty and is being removed by another process: run this again")
    if version is not None and int(version) > SCHEMA_VERSION:
        raise SchemaMismatch(
            f"{location} was made by a newer batchq (schema {version}, this one knows {SCHEMA_VERSION}); upgrade batchq"
        )
    raise SchemaMismatch(f"{location} has schema {version}, this batchq needs {SCHEMA_VERSION}")
