"""Version 2: runners say which batchq they are; what waits stands first in the index that finding work reads.

PostgreSQL checks no foreign keys row by row any more, and cleans up in time.
"""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Text, text

revision = "0002"
down_revision = "0001"

_CLAIMABLE = text("state IN ('pending','inflight') AND leader_id IS NULL")
_DROPPED = (("jobs", "jobs_batch_id_fkey"), ("attempts", "attempts_job_id_fkey"))

_HOT = (
    "fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200,"
    " autovacuum_vacuum_cost_delay = 0"
)
_STORED = {
    "jobs": "fillfactor = 85, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 1",
    "attempts": "autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 1",
    "batches": _HOT,
    "tallies": _HOT,
    "lanes": _HOT,
    "runners": _HOT,
}


def upgrade() -> None:
    """Add the column; on PostgreSQL drop the constraints, and set how rows are stored from now on."""
    op.add_column("runners", Column("version", Text))
    op.drop_index("job_claimable", "jobs")
    op.create_index(
        "job_claimable",
        "jobs",
        ["batch_id", text("state DESC"), "claimable_at", "id", "losses"],
        sqlite_where=_CLAIMABLE,
        postgresql_where=_CLAIMABLE,
    )
    if op.get_bind().dialect.name != "postgresql":
        return
    for table, constraint in _DROPPED:
        op.drop_constraint(constraint, table, type_="foreignkey", if_exists=True)
    for table, parameters in _STORED.items():
        op.execute(f"ALTER TABLE {table} SET ({parameters})")
