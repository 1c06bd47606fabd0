"""Adopt: take in hand what this runner holds by the database's word, after a commit that was not confirmed."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace

from sqlalchemy import Text, select, update

from batchq.database import Transaction
from batchq.database.dialect import json_list
from batchq.jobs import Batch, Claim, RunnerIdentity, Wants
from batchq.pacing.lane import FIRST_TOKENS
from batchq.schema import batches, jobs, lanes
from batchq.store.claim import LEASE, ME, TAKEN, claim_of
from batchq.store.find import AMONG_LIVE, INFLIGHT, AnyRow, batch_from, lane_name, live_batches, now_ms

# Batch by batch, so that the index leads to the rows in flight, past all that wait.
# What another one is about to claim is not ours any more.
_mine = (
    select(jobs.c.id)
    .where(
        jobs.c.batch_id.in_(select(live_batches().c.batch_id)),
        AMONG_LIVE,
        INFLIGHT,
        jobs.c.claimed_by == ME,
        jobs.c.id.not_in(json_list("in_hand")),
    )
    .with_for_update(skip_locked=True)
    .cte("mine")
)
# The lease begins anew: the outage may have outlasted it.
_ADOPT = (
    update(jobs)
    .where(jobs.c.id.in_(select(_mine.c.id)))
    .values(claimable_at=now_ms + LEASE)
    .returning(*TAKEN, jobs.c.batch_id)
)
_BATCHES = select(batches).where(batches.c.id.in_(json_list("batch_ids")))
_LANES = select(lanes).where(lanes.c.name.in_(json_list("names", Text())))


def adopt(tx: Transaction, runner: RunnerIdentity, in_hand: Collection[int], wants: Wants) -> list[Claim]:
    """Return the claims that this runner does not know of, with fresh leases.

    Their calls begin now: they carry their lanes as they are now, and probe those that are halted.
    """
    parameters = {"me": runner.id, "in_hand": json.dumps(list(in_hand)), "now": tx.now, "lease_ms": runner.lease_ms}
    rows = tx.connection.execute(_ADOPT, parameters).all()
    if not rows:
        return []
    ids = json.dumps(sorted({row.batch_id for row in rows}))
    found = {row.id: batch_from(row) for row in tx.connection.execute(_BATCHES, {"batch_ids": ids}).all()}
    names = {batch.id: _lane_of(batch, wants) for batch in found.values()}
    known = {row.name: row for row in tx.connection.execute(_LANES, {"names": json.dumps(list(names.values()))}).all()}
    rows = sorted(rows, key=lambda row: row.position)
    return [_adopted(row, found[row.batch_id], names[row.batch_id], known.get(names[row.batch_id])) for row in rows]


def _lane_of(batch: Batch, wants: Wants) -> str:
    """Return the name of the lane that this process would call; '' where it serves the batch no more."""
    for serving in wants.serving:
        if (serving.worker, serving.endpoint) == (batch.worker, batch.endpoint):
            return lane_name(batch.worker, serving.base_url, batch.model)
    return ""


def _adopted(job: AnyRow, batch: Batch, name: str, lane: AnyRow | None) -> Claim:
    if lane is None:
        return claim_of(job, batch, name, 0, probe=False)
    claim = claim_of(job, batch, name, lane.epoch, probe=lane.halted_at is not None)
    # The claim that was not confirmed has reserved them.
    return claim if lane.tpm is None else replace(claim, tokens=lane.tokens_mean or FIRST_TOKENS)
