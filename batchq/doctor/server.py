"""A PostgreSQL server: its version, its settings, its room, and who keeps it from cleaning up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import partial

from batchq.database.postgres.facts import (
    OpenTransaction,
    ServerFacts,
    read_open_transactions,
    read_server,
    read_tables,
)
from batchq.doctor.finding import Finding, error, ok, warning
from batchq.store.examining import Examined

LEAST_VERSION = 130_000
LONG_SECONDS = 300
# A worker takes three connections, a command two.
_FEW_SLOTS = 10
_DEAD_ROWS, _DEAD_PART = 20_000, 0.2
_MB = 1024**2


async def check_server(queue: Examined) -> AsyncIterator[Finding]:
    """Look at the server's version and settings, and at its connections."""
    facts = await queue.read(read_server)
    for finding in (*_judge_version(queue.location, facts), *_judge_settings(facts), *_judge_connections(facts)):
        yield finding


async def check_transactions(queue: Examined) -> AsyncIterator[Finding]:
    """Look for transactions that have been open for long."""
    found = await queue.read(partial(read_open_transactions, seconds=LONG_SECONDS))
    for transaction in found:
        yield _judge_transaction(transaction)
    if not found:
        yield ok("transactions", f"none has been open for {LONG_SECONDS // 60} min")


async def check_vacuum(queue: Examined) -> AsyncIterator[Finding]:
    """Look at the dead rows of the queue's tables."""
    tables = await queue.read(read_tables)
    wrong = False
    for table in tables:
        if table.left_alone:
            wrong = True
            yield warning(
                "vacuum", f"autovacuum is off for the table {table.name}",
                f"ALTER TABLE {table.name} RESET (autovacuum_enabled)",
            )  # fmt: skip
        if table.dead > _DEAD_ROWS + _DEAD_PART * table.live:
            wrong = True
            yield warning(
                "vacuum",
                f"{table.dead:,} rows of {table.name} are dead, and {table.live:,} live: claims get slow",
                f"end what `transactions` names; then VACUUM ANALYZE {table.name}",
            )
    if not wrong:
        dead = sum(table.dead for table in tables)
        yield ok("vacuum", f"{dead:,} dead rows in {len(tables)} tables, which is no trouble")


def _judge_version(location: str, facts: ServerFacts) -> Iterator[Finding]:
    told = f"PostgreSQL {facts.version}"
    yield ok("database", f"{location}, {facts.bytes / _MB:,.1f} MB")
    if facts.version_number < LEAST_VERSION:
        yield warning("server", told, "it is older than any that batchq is tested with: upgrade the server")
    else:
        yield ok("server", told)
    if facts.standby:
        yield error("server", "it is a standby, and only reads", "name the primary in the URL")
    elif facts.read_only:
        yield error("server", "transactions only read by default", "SET default_transaction_read_only = off")


def _judge_settings(facts: ServerFacts) -> Iterator[Finding]:
    if not facts.fsync:
        yield warning("server", "fsync is off: a crash of its machine may damage the database", "set fsync = on")
    if facts.synchronous_commit == "off":
        told = "synchronous_commit is off: a crash may lose the last answers, which are paid for again"
        yield warning("server", told, "set synchronous_commit = on, for this database or role at least")
    if not facts.autovacuum or not facts.track_counts:
        off = "autovacuum" if not facts.autovacuum else "track_counts, which autovacuum needs,"
        yield warning("vacuum", f"{off} is off: dead rows are never removed, and claims get slower", "set it to on")


def _judge_connections(facts: ServerFacts) -> Iterator[Finding]:
    told = f"{facts.connections} of {facts.slots} connections are in use"
    if facts.slots - facts.connections < _FEW_SLOTS:
        advice = "raise max_connections, put a pooler before it, or run fewer workers: each takes up to three"
        yield warning("connections", told, advice)
    else:
        yield ok("connections", told)
    if not facts.sees_others:
        yield ok(
            "connections", "what sessions of other roles do is not told to this role (GRANT pg_read_all_stats TO …)"
        )


def _judge_transaction(found: OpenTransaction) -> Finding:
    minutes = f"{found.seconds // 60:,} min"
    if found.pid is None:
        return warning(
            "transactions",
            f"the prepared transaction {found.gid} of {found.role} has been open for {minutes}: dead rows can't be"
            " removed, and what it has locked stays locked",
            f"COMMIT PREPARED '{found.gid}' or ROLLBACK PREPARED '{found.gid}'",
        )  # fmt: skip
    who = f"{found.program or 'a program'} of {found.role} (pid {found.pid}, {found.state or 'state unknown'})"
    return warning(
        "transactions",
        f"{who} has had a transaction open for {minutes}: dead rows can't be removed meanwhile",
        f"end it there, or SELECT pg_terminate_backend({found.pid})",
    )
