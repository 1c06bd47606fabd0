"""Makes the tables of a queue on PostgreSQL, where there are none, and upgrades them, where that is asked for."""

from __future__ import annotations

from sqlalchemy import Connection, text

from batchq.database.postgres.driver import transaction
from batchq.database.version import VERSION, check_version, outdated
from batchq.errors import NoDatabase
from batchq.schema import SCHEMA_VERSION, meta, metadata

# Many processes may start at once. Held for one transaction, so that it works through poolers too ("bchq").
_LOCK = text("SELECT pg_advisory_xact_lock(1650681969)")
# Not to_regclass('meta'): asked again in one transaction, it may not know yet what others have made meanwhile.
_THERE = text("SELECT EXISTS (SELECT FROM pg_class WHERE relname = 'meta' AND pg_table_is_visible(oid))")


def prepare(connection: Connection, location: str, *, create: bool) -> None:
    """Make the tables if they are missing and `create`, in a transaction of its own. Raises NoDatabase."""
    with transaction(connection):
        if connection.execute(_THERE).scalar_one():
            return
        if not create:
            raise _no_queue(location)
        connection.execute(_LOCK)
        if not connection.execute(_THERE).scalar_one():
            metadata.create_all(connection, checkfirst=False)
            connection.execute(meta.insert(), {"name": "schema_version", "value": str(SCHEMA_VERSION)})
        connection.execute(VERSION).scalar_one()


def upgrade(connection: Connection, location: str) -> int | None:
    """Bring an older schema to this version, in a transaction of its own; return which one it was.

    None if there was nothing to do, or somebody else did it. Raises NoDatabase, or SchemaMismatch for a newer one.
    """
    import batchq.migrations  # noqa: F401 - before locks are taken: Alembic takes its time

    with transaction(connection):
        return _upgrade(connection, location)


def _upgrade(connection: Connection, location: str) -> int | None:
    from batchq.migrations import upgrade

    connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
    connection.execute(_LOCK)
    if not connection.execute(_THERE).scalar_one():
        raise _no_queue(location)
    found = connection.execute(VERSION).scalar_one_or_none()
    version = outdated(found)
    if version is None:
        check_version(location, found)
        return None
    # Who is at work has read the version, and holds this lock until his transaction ends. All others wait for it
    # before they touch anything else, so that no tables are waited for crosswise.
    connection.exec_driver_sql("LOCK TABLE meta IN ACCESS EXCLUSIVE MODE")
    upgrade(connection, version, SCHEMA_VERSION)
    return version


def _no_queue(location: str) -> NoDatabase:
    return NoDatabase(f"there is no queue in {location}; enqueue something first, or name another with --db")
