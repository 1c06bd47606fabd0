"""What all tables share: their metadata, the type of ids, and how PostgreSQL keeps up with rows that change."""

from __future__ import annotations

from sqlalchemy import BigInteger, Integer, MetaData

metadata = MetaData()

# BIGINT keys would not alias SQLite's rowid: AUTOINCREMENT needs INTEGER there.
Id = BigInteger().with_variant(Integer, "sqlite")

# Each change of a row leaves a dead one behind. By default PostgreSQL cleans up when a fifth of a table is dead:
# of a million jobs, too late. `fillfactor` leaves room for the next version of a row beside it.
CLEANED_SOON = {"autovacuum_vacuum_scale_factor": "0.02", "autovacuum_vacuum_cost_delay": "1"}
MANY_ROWS = {"fillfactor": "85", **CLEANED_SOON}
FEW_HOT_ROWS = {
    "fillfactor": "50",
    "autovacuum_vacuum_scale_factor": "0",
    "autovacuum_vacuum_threshold": "200",
    "autovacuum_vacuum_cost_delay": "0",
}
