"""The steps from each schema version to the next, as Alembic revisions: "0002" makes version 2 of version 1.

Alembic's own table of versions is not used: which version a database has stands in `meta`, where each transaction
reads it. A step knows the tables as they were, so it imports nothing of batchq.
"""

from __future__ import annotations

from pathlib import Path

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

_KEEP = text("UPDATE meta SET value = :version WHERE name = 'schema_version'")


def upgrade(connection: Connection, since: int, to: int) -> None:
    """Take a database from one version to a later one, in the transaction that the caller has begun.

    Version 0 is an empty database.
    """
    steps = ScriptDirectory(str(Path(__file__).parent))
    chosen = list(steps.iterate_revisions(_revision(to), _revision(since) if since else "base"))
    with Operations.context(MigrationContext.configure(connection)):
        for step in reversed(chosen):
            step.module.upgrade()
            connection.execute(_KEEP, {"version": str(int(step.revision))})


def _revision(version: int) -> str:
    return f"{version:04}"
