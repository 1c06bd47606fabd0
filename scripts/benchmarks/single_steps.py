"""Loops that take one job at a time and make a transaction of each step: what the no-op rows are held against."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from functools import partial

from batchq.config import OPENROUTER_URL
from batchq.jobs import (
    DEFAULT_LEASE_MS,
    Answered,
    Claim,
    Ended,
    Held,
    RunnerIdentity,
    Serving,
    Succeeded,
    Wants,
)
from batchq.process import run_event_loop
from batchq.settlement import settle
from batchq.store import ExchangeRequest, open_store

_CLAIM = """
    UPDATE jobs SET state = 'inflight', token = token + 1, attempts = attempts + 1, claimed_by = 'loop',
           claimed_at = :now, claimable_at = :now + 60000
    WHERE id = (SELECT id FROM jobs
                WHERE batch_id = 1 AND state = 'pending' AND state IN ('pending', 'inflight')
                      AND leader_id IS NULL AND claimable_at <= :now
                ORDER BY claimable_at, id LIMIT 1)
    RETURNING id, token, payload
"""
_FINISH = """
    UPDATE jobs SET state = 'done', result = :result, finished_at = :now
    WHERE id = :id AND token = :token AND state = 'inflight'
"""


def store_seconds(location: str, worker: str) -> float:
    """Claim each job in an exchange and settle it in the next, through the store; return how long that took."""
    return run_event_loop(partial(_store_loop, location, worker))


async def _store_loop(location: str, worker: str) -> float:
    async with await open_store(location) as store:
        began = time.perf_counter()
        while claims := (await store.exchange(claim_request(worker, 1))).claims:
            await store.exchange(_settle_request(worker, claims[0]))
        return time.perf_counter() - began


def claim_request(worker: str, slots: int) -> ExchangeRequest:
    """Return what a runner without anything in hand brings to an exchange."""
    serving = Serving(worker, "default", OPENROUTER_URL, opened=True)
    return ExchangeRequest(_runner(worker, slots), (), (), Wants(slots, (serving,)))


def _settle_request(worker: str, claim: Claim) -> ExchangeRequest:
    settlement = settle(Ended(claim, Succeeded(Answered('"ok"')), 0))
    held = Held(claim.job_id, claim.token, renew=False)
    return ExchangeRequest(_runner(worker, 1), (settlement,), (held,), Wants(0, ()))


def _runner(worker: str, slots: int) -> RunnerIdentity:
    return RunnerIdentity("bench", "localhost", 1, slots, worker, DEFAULT_LEASE_MS)


def sqlite3_seconds(path: str) -> float:
    """Claim and complete each job with bare sqlite3, no log and no tallies; return how long that took."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA fullfsync=ON")
        began = time.perf_counter()
        while job := _step(connection, _CLAIM):
            _step(connection, _FINISH, id=job[0], token=job[1], result='"ok"')
        return time.perf_counter() - began


def _step(connection: sqlite3.Connection, sql: str, **values: object) -> tuple[int, int] | None:
    connection.execute("BEGIN IMMEDIATE")
    rows = connection.execute(sql, values | {"now": round(time.time() * 1000)}).fetchall()
    connection.execute("COMMIT")
    return (rows[0][0], rows[0][1]) if rows else None
