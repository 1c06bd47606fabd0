"""Fills a queue by the million: rows as a run leaves them, made by the database itself."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from scripts.benchmarks.places import PostgresPlace

CHUNK = 100_000

_INTO_JOBS = """
    INSERT INTO jobs (batch_id, position, key, payload, state, claimable_at, token, attempts, claimed_by, claimed_at,
                      result, created_at, finished_at)
"""
_DONE = "'done', {moment}, 1, 1, 'bench', {moment}, {result}, {now}, {moment}"
_PENDING = "'pending', {now}, 0, 0, NULL, NULL, NULL, {now}, NULL"
_SQLITE_ROWS = (
    "WITH RECURSIVE numbers(n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < {end})"
    " SELECT 1, n, printf('%032x', n), json_quote('What is the capital of country number ' || n || '?'), {rest}"
    " FROM numbers"
)
_SQLITE_RESULT = "json_quote('The capital of country number ' || n)"
_POSTGRES_ROWS = (
    " SELECT 1, n, lpad(to_hex(n), 32, '0'), to_json('What is the capital of country number ' || n || '?')::text,"
    " {rest}"
    " FROM generate_series({first}, {end} - 1) AS n"
)
_POSTGRES_RESULT = "to_json('The capital of country number ' || n)::text"
_LOG = """
    INSERT INTO attempts (job_id, token, number, runner, started_at, ended_at, duration_ms, outcome, charged, late)
    SELECT id, token, 1, claimed_by, claimed_at, finished_at, 0, 'succeeded', true, false
    FROM jobs WHERE batch_id = 1 AND position >= {first} AND position < {end} AND state = 'done' ORDER BY id
"""


def fill(location: str, finished: int, waiting: int) -> int:
    """Write jobs of batch 1 into a queue without any: first finished ones, with their log, then waiting ones."""
    if "://" in location:
        _fill_postgres(location, finished, waiting)
    else:
        _fill_sqlite(Path(location), finished, waiting)
    return finished + waiting


def _fill_sqlite(path: Path, finished: int, waiting: int) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        for statement in _statements(_INTO_JOBS + _SQLITE_ROWS, _SQLITE_RESULT, finished, waiting):
            connection.execute(statement)
        # Everything to the disk now, or what is measured would wait for what is left in the system's buffers.
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("UPDATE batches SET size = size")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _fill_postgres(url: str, finished: int, waiting: int) -> None:
    with PostgresPlace.at(url).connect() as connection:
        for statement in _statements(_INTO_JOBS + _POSTGRES_ROWS, _POSTGRES_RESULT, finished, waiting):
            connection.execute(statement.encode())
        # As autovacuum does, within minutes.
        for statement in ("VACUUM (ANALYZE) jobs", "VACUUM (ANALYZE) attempts", "ANALYZE", "CHECKPOINT"):
            connection.execute(statement.encode())


def _statements(rows: str, result: str, finished: int, waiting: int) -> Iterator[str]:
    # One finished in each millisecond until now.
    now = round(time.time() * 1000)
    done = _DONE.format(moment=f"{now - finished} + n", result=result, now=now)
    for first, end in _chunks(0, finished):
        yield rows.format(first=first, end=end, rest=done)
        yield _LOG.format(first=first, end=end)
    for first, end in _chunks(finished, finished + waiting):
        yield rows.format(first=first, end=end, rest=_PENDING.format(now=now))
    yield f"UPDATE batches SET size = {finished + waiting}"
    yield (
        "INSERT INTO tallies (batch_id, runner, pending, done, attempts, unpriced)"
        f" VALUES (1, '', {waiting}, {finished}, {finished}, {finished})"
    )


def _chunks(first: int, end: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + CHUNK, end)) for start in range(first, end, CHUNK))
