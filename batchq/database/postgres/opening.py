"""Makes the tables of a queue on PostgreSQL, where there are none."""

from __future__ import annotations

from sqlalchemy import Connection, text

from batchq.database.version import VERSION
from batchq.errors import NoDatabase
from batchq.schema import SCHEMA_VERSION, meta, metadata

# Many processes may start at once. Held for one transaction, so that it works through poolers too ("bchq").
_LOCK = text("SELECT pg_advisory_xact_lock(1650681969)")
_THERE = text("SELECT to_regclass('meta') IS NOT NULL")
_OTHERS = text("SELECT to_regclass('jobs') IS NOT NULL")


def prepare(connection: Connection, location: str, *, create: bool) -> None:
    """Make the tables if they are missing and `create`. Raises NoDatabase."""
    if connection.execute(_THERE).scalar_one():
        return
    if not create:
        raise NoDatabase(f"there is no queue in {location}; enqueue something first, or name another with --db")
    connection.execute(_LOCK)
    if not connection.execute(_THERE).scalar_one():
        metadata.create_all(connection, checkfirst=False)
        connection.execute(meta.insert(), {"name": "schema_version", "value": str(SCHEMA_VERSION)})
    connection.execute(VERSION).scalar_one()
