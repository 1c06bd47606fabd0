"""Claim jobs: expired leases first, then what is due, each row under a new token."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import cast

from sqlalchemy import (
    BigInteger,
    Integer,
    Select,
    Text,
    Update,
    bindparam,
    case,
    exists,
    false,
    insert,
    literal,
    literal_column,
    null,
    select,
    true,
    update,
)

from batchq.database import Transaction
from batchq.database.dialect import json_list, random_below
from batchq.jobs import Batch, Claim, RunnerIdentity
from batchq.pacing import BACK_OFF_BASE_MS
from batchq.schema import CLAIMABLE, attempts, batches, jobs, lanes
from batchq.store.find import INFLIGHT, AnyRow, batch_from, live_batches, now_ms
from batchq.store.tally import Tally

PROBE_EVERY_MS = 60_000

_batch = bindparam("of_batch", type_=BigInteger)
_limit = bindparam("limit", type_=Integer)
_lease = bindparam("lease_ms", type_=BigInteger)
_runner = bindparam("me", type_=Text)
_max_attempts = bindparam("attempt_limit", type_=Integer)

# Pause and cancel are one row's change: repeated here, since the walk may have read it before.
_still_open = exists().where(batches.c.id == _batch, batches.c.state == literal_column("'open'"))


# An alias keeps the subselect from being correlated with the UPDATE's own table.
_candidate = jobs.alias("candidate")


def _due(state: str) -> Select[tuple[int]]:
    return (
        select(_candidate.c.id)
        .where(
            _candidate.c.batch_id == _batch,
            _candidate.c.state == literal_column(f"'{state}'"),
            CLAIMABLE,
            _candidate.c.claimable_at <= now_ms,
            # Also a pending job may be in hand: its lease was lost, and who took over gave it back.
            _candidate.c.id.not_in(json_list("in_hand")),
        )
        .order_by(_candidate.c.claimable_at, _candidate.c.id)
        .limit(_limit)
    )


_TAKEN = (
    jobs.c.id,
    jobs.c.state,
    jobs.c.token,
    jobs.c.position,
    jobs.c.custom_id,
    jobs.c.payload,
    jobs.c.attempts,
    jobs.c.losses,
    jobs.c.throttles,
    jobs.c.followers,
)

CLAIM_PENDING: Update = (
    update(jobs)
    .where(jobs.c.id.in_(_due("pending")), _still_open)
    .values(
        state=literal_column("'inflight'"),
        token=jobs.c.token + 1,
        attempts=jobs.c.attempts + 1,
        claimed_by=_runner,
        claimed_at=now_ms,
        claimable_at=now_ms + _lease,
    )
    .returning(*_TAKEN)
)

_exhausted = jobs.c.attempts >= _max_attempts
# The second loss of a job makes it a suspect: claimed at once with its neighbours, it would take
# them down again. Apart by full jitter, the neighbours get through and only the culprit keeps dying.
_suspect = jobs.c.losses >= 1
_apart_ms = literal(BACK_OFF_BASE_MS) * case(
    (jobs.c.losses >= 6, 128), else_=literal(1).bitwise_lshift(jobs.c.losses + 1)
)
_death = literal("its worker died (") + (jobs.c.losses + 1).cast(Text) + literal("×) and no attempt is left")

CLAIM_EXPIRED: Update = (
    update(jobs)
    .where(jobs.c.id.in_(_due("inflight")), _still_open)
    .values(
        state=case((_exhausted, "failed"), (_suspect, "pending"), else_="inflight"),
        token=jobs.c.token + case((_exhausted, 0), (_suspect, 0), else_=1),
        attempts=jobs.c.attempts + case((_exhausted, 0), (_suspect, 0), else_=1),
        losses=jobs.c.losses + 1,
        claimed_by=case((_exhausted, jobs.c.claimed_by), (_suspect, jobs.c.claimed_by), else_=_runner),
        claimed_at=case((_exhausted, jobs.c.claimed_at), (_suspect, jobs.c.claimed_at), else_=now_ms),
        claimable_at=case(
            (_exhausted, jobs.c.claimable_at), (_suspect, now_ms + random_below(_apart_ms)), else_=now_ms + _lease
        ),
        finished_at=case((_exhausted, now_ms), else_=null()),
        error=case((_exhausted, _death), else_=null()),
        error_class=case((_exhausted, "worker_died"), else_=null()),
    )
    .returning(*_TAKEN)
)

_LOG_LOST = insert(attempts).from_select(
    ["job_id", "token", "number", "runner", "started_at", "ended_at", "outcome", "charged", "late", "error_class"],
    select(
        jobs.c.id,
        jobs.c.token,
        jobs.c.attempts,
        jobs.c.claimed_by,
        jobs.c.claimed_at,
        now_ms,
        literal("lost"),
        true(),
        false(),
        literal("worker_died"),
    ).where(jobs.c.id.in_(_due("inflight")), _still_open),
)

# Batch by batch, so that the index leads to the rows in flight, past all that wait.
_ADOPT = select(*_TAKEN, jobs.c.batch_id).where(
    jobs.c.batch_id.in_(select(live_batches().c.batch_id)),
    CLAIMABLE,
    INFLIGHT,
    jobs.c.claimed_by == _runner,
    jobs.c.id.not_in(json_list("in_hand")),
)
_BATCHES = select(batches).where(batches.c.id.in_(json_list("batch_ids")))


def claim_share(
    tx: Transaction,
    due: Sequence[AnyRow],
    slots: int,
    runner: RunnerIdentity,
    in_hand: Collection[int],
    tally: Tally,
    *,
    expired_too: bool,
) -> list[Claim]:
    """Claim up to `slots` jobs of the batches in `due`: better priority first, equal ones in equal parts."""
    ready = [row for row in due if row.opened]
    claims: list[Claim] = []
    for index, row in enumerate(ready):
        free = slots - len(claims)
        if free <= 0:
            break
        peers = sum(1 for other in ready[index:] if other.priority == row.priority)
        probe = row.halted_at is not None
        limit = 1 if probe else -(-free // peers)
        claims += _claim_from(tx, row, limit, runner, in_hand, tally, expired_too=expired_too)
    return claims


def adopt(tx: Transaction, runner: RunnerIdentity, in_hand: Collection[int]) -> list[Claim]:
    """Return what this runner holds by the database's word but not in hand: an unconfirmed claim."""
    parameters = {"me": runner.id, "in_hand": json.dumps(list(in_hand))}
    rows = tx.connection.execute(_ADOPT, parameters).all()
    ids = json.dumps(sorted({row.batch_id for row in rows}))
    found = {row.id: batch_from(row) for row in tx.connection.execute(_BATCHES, {"batch_ids": ids}).all()}
    return [_claim(row, found[row.batch_id], lane="", epoch=0, probe=False) for row in rows]


def _claim_from(
    tx: Transaction,
    row: AnyRow,
    limit: int,
    runner: RunnerIdentity,
    in_hand: Collection[int],
    tally: Tally,
    *,
    expired_too: bool,
) -> list[Claim]:
    parameters = {
        "of_batch": row.id,
        "limit": limit,
        "now": tx.now,
        "me": runner.id,
        "lease_ms": runner.lease_ms,
        "in_hand": json.dumps(list(in_hand)),
    }
    taken: list[AnyRow] = []
    if row.expired and expired_too:
        taken += _take_expired(tx, parameters, row.max_attempts, tally)
    if row.due and len(taken) < limit:
        fresh = tx.connection.execute(CLAIM_PENDING, parameters | {"limit": limit - len(taken)}).all()
        tally.move(row.id, "pending", "inflight", sum(1 + job.followers for job in fresh))
        taken += fresh
    probe = row.halted_at is not None
    if probe and taken:
        tx.connection.execute(update(lanes).where(lanes.c.name == row.lane).values(probe_at=tx.now + PROBE_EVERY_MS))
    tally.count(row.id, "attempts", len(taken))
    batch = batch_from(row)
    # RETURNING comes in any order; the oldest first is what people expect.
    taken.sort(key=lambda job: cast("int", job.position))
    return [_claim(job, batch, lane=row.lane, epoch=row.epoch, probe=probe) for job in taken]


def _take_expired(tx: Transaction, parameters: dict[str, object], max_attempts: int, tally: Tally) -> list[AnyRow]:
    batch_id = cast("int", parameters["of_batch"])
    parameters = parameters | {"attempt_limit": max_attempts}
    tx.connection.execute(_LOG_LOST, parameters)
    rows = tx.connection.execute(CLAIM_EXPIRED, parameters).all()
    for job in rows:
        tally.count(batch_id, "losses")
        if job.state != "inflight":
            tally.move(batch_id, "inflight", job.state, 1 + job.followers)
    return [job for job in rows if job.state == "inflight"]


def _claim(job: AnyRow, batch: Batch, *, lane: str, epoch: int, probe: bool) -> Claim:
    return Claim(
        job_id=job.id,
        token=job.token,
        batch=batch,
        position=job.position,
        custom_id=job.custom_id,
        payload=job.payload,
        attempts=job.attempts,
        losses=job.losses,
        throttles=job.throttles,
        lane=lane,
        epoch=epoch,
        probe=probe,
    )
