"""The tools that are measured, by the name they have on the command line of `run`."""

from __future__ import annotations

from scripts.benchmarks.peers.contract import Peer
from scripts.benchmarks.peers.with_batchq import BatchqOnPostgres, BatchqOnSqlite
from scripts.benchmarks.peers.with_dbos import Dbos
from scripts.benchmarks.peers.with_huey import Huey
from scripts.benchmarks.peers.with_litequeue import Litequeue
from scripts.benchmarks.peers.with_pgqueuer import PgQueuer, PgQueuerAsItComes
from scripts.benchmarks.peers.with_procrastinate import Procrastinate

OURS_ON_POSTGRES = "batchq-postgresql"

PEERS: dict[str, Peer] = {
    OURS_ON_POSTGRES: BatchqOnPostgres(),
    "pgqueuer": PgQueuer(),
    "pgqueuer-10": PgQueuerAsItComes(),
    "procrastinate": Procrastinate(),
    "dbos": Dbos(),
    "batchq-sqlite": BatchqOnSqlite(),
    "litequeue": Litequeue(),
    "huey": Huey(),
}
