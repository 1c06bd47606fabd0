"""What a PostgreSQL server says of itself and of those who use it: reads of its own views, which cost little."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text

from batchq.database.contract import Transaction
from batchq.schema import metadata

_SERVER = text("""
    SELECT current_setting('server_version_num')::int AS version_number, current_setting('server_version') AS version,
           pg_is_in_recovery() AS standby, current_setting('default_transaction_read_only') = 'on' AS read_only,
           current_setting('fsync') = 'on' AS fsync, current_setting('synchronous_commit') AS synchronous_commit,
           current_setting('autovacuum') = 'on' AS autovacuum, current_setting('track_counts') = 'on' AS track_counts,
           current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int AS slots,
           (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS connections,
           pg_has_role('pg_read_all_stats', 'USAGE') AS sees_others, pg_database_size(current_database()) AS bytes
""")
# Whose snapshot keeps dead rows of this database from being removed, and for how long. Of other roles' sessions
# the server tells no more than that they are there.
_OLD = text("""
    SELECT pid, application_name AS program, usename AS role, state,
           EXTRACT(EPOCH FROM clock_timestamp() - xact_start)::bigint AS seconds
    FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
      AND xact_start < clock_timestamp() - make_interval(secs => :seconds)
    ORDER BY xact_start LIMIT 10
""")
_PREPARED = text("""
    SELECT gid, owner AS role, EXTRACT(EPOCH FROM clock_timestamp() - prepared)::bigint AS seconds
    FROM pg_prepared_xacts
    WHERE database = current_database() AND prepared < clock_timestamp() - make_interval(secs => :seconds)
    ORDER BY prepared LIMIT 10
""")
_TABLES = text("""
    SELECT class.relname AS name, stat.n_live_tup AS live, stat.n_dead_tup AS dead,
           COALESCE((SELECT option_value = 'false' FROM pg_options_to_table(class.reloptions)
                     WHERE option_name = 'autovacuum_enabled'), FALSE) AS left_alone
    FROM pg_class AS class JOIN pg_stat_all_tables AS stat ON stat.relid = class.oid
    WHERE pg_table_is_visible(class.oid) AND class.relkind IN ('r', 'p') AND class.relname = ANY(:names)
    ORDER BY class.relname
""")


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """A server's version and settings; `slots` are the connections that it has for all who are no superusers.

    `sees_others` tells whether this role is told what sessions of other roles do.
    """

    version_number: int
    version: str
    standby: bool
    read_only: bool
    fsync: bool
    synchronous_commit: str
    autovacuum: bool
    track_counts: bool
    slots: int
    connections: int
    sees_others: bool
    bytes: int


@dataclass(frozen=True, slots=True)
class OpenTransaction:
    """A transaction that has been open for long: a session's, or a prepared one, which has no `pid`."""

    seconds: int
    role: str
    pid: int | None = None
    program: str = ""
    state: str = ""
    gid: str = ""


@dataclass(frozen=True, slots=True)
class TableFacts:
    """How many rows of a table are dead, by the server's own count; `left_alone` by autovacuum."""

    name: str
    live: int
    dead: int
    left_alone: bool


def read_server(tx: Transaction) -> ServerFacts:
    """Return what the server says of itself."""
    return ServerFacts(**tx.connection.execute(_SERVER).mappings().one())


def read_open_transactions(tx: Transaction, seconds: int) -> list[OpenTransaction]:
    """Return the oldest transactions of this database that have been open for so long."""
    bound = {"seconds": seconds}
    of_sessions = [OpenTransaction(**row) for row in tx.connection.execute(_OLD, bound).mappings()]
    return of_sessions + [OpenTransaction(**row) for row in tx.connection.execute(_PREPARED, bound).mappings()]


def read_tables(tx: Transaction) -> list[TableFacts]:
    """Return the state of the queue's tables."""
    bound = {"names": list(metadata.tables)}
    return [TableFacts(**row) for row in tx.connection.execute(_TABLES, bound).mappings()]
