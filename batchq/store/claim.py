"""Claim jobs: expired leases first, then what is due, each row under a new token."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, cast

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    Select,
    Text,
    Update,
    bindparam,
    case,
    exists,
    literal,
    literal_column,
    null,
    or_,
    select,
    update,
)

from batchq.database import Transaction
from batchq.database.dialect import json_list, locks_rows, random_below
from batchq.jobs import SUSPECT_LOSSES, Batch, Claim, RunnerIdentity
from batchq.pacing import BACK_OFF_BASE_MS, PROBE_EVERY_MS, LaneState
from batchq.schema import batches, jobs
from batchq.store.find import AMONG_LIVE, AnyRow, batch_from, is_suspect, now_ms, tasters, within_budget
from batchq.store.lanes import LaneBook
from batchq.store.locks import take_batch
from batchq.store.log import log_taken_away
from batchq.store.tally import Tally

_batch = bindparam("of_batch", type_=BigInteger)
_limit = bindparam("limit", type_=Integer)
_max_attempts = bindparam("attempt_limit", type_=Integer)
# Counted anew where several may count at once.
AFFORDABLE = select(within_budget, tasters).select_from(batches).where(batches.c.id == _batch)
LEASE = bindparam("lease_ms", type_=BigInteger)
ME = bindparam("me", type_=Text)
LANE = bindparam("of_lane", type_=Text)

# Pause and cancel are one row's change: repeated here, since the walk may have read it before.
_still_open = exists().where(batches.c.id == _batch, batches.c.state == literal_column("'open'"))


# An alias keeps the subselect from being correlated with the UPDATE's own table.
_candidate = jobs.alias("candidate")


def _due(state: str, *conditions: ColumnElement[bool]) -> Select[tuple[int]]:
    """Return the SELECT of rows to take, once and for all: what others hold at the moment is passed over.

    As a CTE it is evaluated once. A plain subselect may be evaluated for each row on PostgreSQL, beyond its LIMIT.
    """
    chosen = (
        select(_candidate.c.id)
        .where(
            _candidate.c.batch_id == _batch,
            _candidate.c.state == literal_column(f"'{state}'"),
            AMONG_LIVE,
            _candidate.c.claimable_at <= now_ms,
            *conditions,
            # Also a pending job may be in hand: its lease was lost, and who took over gave it back.
            _candidate.c.id.not_in(json_list("in_hand")),
        )
        .order_by(_candidate.c.claimable_at, _candidate.c.id)
        .limit(_limit)
        .with_for_update(skip_locked=True)
        .cte("chosen")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    return select(chosen.c.id)


TAKEN = (
    jobs.c.id,
    jobs.c.state,
    jobs.c.token,
    jobs.c.position,
    jobs.c.custom_id,
    jobs.c.payload,
    jobs.c.attempts,
    jobs.c.losses,
    jobs.c.throttles,
    jobs.c.strikes,
    jobs.c.strike_class,
    jobs.c.halts,
    jobs.c.halted_at,
    jobs.c.followers,
)


def _claim_pending(condition: ColumnElement[bool]) -> Update:
    return (
        update(jobs)
        .where(jobs.c.id.in_(_due("pending", condition)), _still_open)
        .values(
            state=literal_column("'inflight'"),
            token=jobs.c.token + 1,
            attempts=jobs.c.attempts + 1,
            claimed_by=ME,
            claimed_at=now_ms,
            lane=LANE,
            claimable_at=now_ms + LEASE,
        )
        .returning(*TAKEN)
    )


# A suspect is claimed by itself: of two in one hand, nobody could tell which killed the process, and
# neighbours that run for long would die with it again and again.
CLAIM_PENDING = _claim_pending(~is_suspect(_candidate.c.losses))
CLAIM_SUSPECT = _claim_pending(is_suspect(_candidate.c.losses))

# What becomes of a job whose lease ran out: it fails, waits apart as a suspect, or runs again.
_exhausted = jobs.c.attempts >= _max_attempts
_apart = jobs.c.losses + 1 >= SUSPECT_LOSSES
_apart_ms = literal(BACK_OFF_BASE_MS) * case(
    (jobs.c.losses >= 6, 128), else_=literal(1).bitwise_lshift(jobs.c.losses + 1)
)
_death = literal("its worker died (") + (jobs.c.losses + 1).cast(Text) + literal("×) and no attempt is left")


def _if_again(value: ColumnElement[Any], column: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return `value` for the rows that run again at once; the others keep what they have."""
    return case((or_(_exhausted, _apart), column), else_=value)


def _if_failed(value: object) -> ColumnElement[Any]:
    return case((_exhausted, value), else_=null())


# Chosen first: what is logged and what is claimed must be the same rows.
CHOOSE_EXPIRED = _due("inflight").where(_still_open)
_chosen = jobs.c.id.in_(json_list("chosen"))

CLAIM_EXPIRED: Update = (
    update(jobs)
    .where(_chosen)
    .values(
        state=case((_exhausted, "failed"), (_apart, "pending"), else_="inflight"),
        token=_if_again(jobs.c.token + 1, jobs.c.token),
        attempts=_if_again(jobs.c.attempts + 1, jobs.c.attempts),
        losses=jobs.c.losses + 1,
        claimed_by=_if_again(ME, jobs.c.claimed_by),
        claimed_at=_if_again(now_ms, jobs.c.claimed_at),
        lane=_if_again(LANE, jobs.c.lane),
        claimable_at=case(
            (_exhausted, jobs.c.claimable_at), (_apart, now_ms + random_below(_apart_ms)), else_=now_ms + LEASE
        ),
        finished_at=_if_failed(now_ms),
        error=_if_failed(_death),
        error_class=_if_failed("worker_died"),
    )
    .returning(*TAKEN)
)

_LOG_LOST = log_taken_away("lost", _chosen, charged=True, error_class="worker_died")


_POSITION = itemgetter(TAKEN.index(jobs.c.position))
_FOLLOWERS = itemgetter(TAKEN.index(jobs.c.followers))


@dataclass(slots=True)
class Share:
    """What one exchange may claim: `slots` jobs, one suspect among them if `suspects`.

    `rooms` are how many calls this process would still make in some lanes.
    """

    runner: RunnerIdentity
    in_hand: Collection[int]
    slots: int
    suspects: bool
    expired_too: bool
    rooms: dict[str, int]


def claim_share(tx: Transaction, book: LaneBook, due: Sequence[AnyRow], share: Share, tally: Tally) -> list[Claim]:
    """Claim from the batches in `due`: better priority first, equal ones in equal parts, no lane beyond its room."""
    ready = [row for row in due if row.opened]
    claims: list[Claim] = []
    probed: set[str] = set()
    for index, row in enumerate(ready):
        free = share.slots - len(claims)
        if free <= 0:
            break
        if row.lane in probed:
            continue  # batches that share a halted lane share its probe
        peers = sum(1 for other in ready[index:] if other.priority == row.priority)
        lane = book.get(row.lane)  # as it is under the lock: the row may have been read before
        halted = lane is not None and lane.halted_at is not None
        wanted = 1 if halted else -(-free // peers)
        taken = _claim_within(tx, book, row, wanted, share, tally)
        drawn = book.get(row.lane)
        if drawn is not None and halted and taken:
            probed.add(row.lane)
            book.put(replace(drawn, probe_at=tx.now + PROBE_EVERY_MS))
        share.suspects = share.suspects and not any(claim.is_suspect for claim in taken)
        claims += taken
    return claims


def _claim_within(tx: Transaction, book: LaneBook, row: AnyRow, wanted: int, share: Share, tally: Tally) -> list[Claim]:
    """Claim up to `wanted` jobs of a batch, as far as its lane and its budget have room, and draw on both."""
    window, own = book.room(row.lane), share.rooms.get(row.lane)
    most = min([wanted, *(room for room in (window, own, _count_affordable(tx, row)) if room is not None)])
    if most <= 0:
        return []
    taken = _claim_from(tx, row, book.get(row.lane), most, share, tally)
    # Where fewer were due than there is room for, nobody wanted more.
    asked = len(taken) if len(taken) < most else wanted if own is None else min(wanted, own)
    book.draw(row.lane, len(taken), asked)
    if own is not None:
        share.rooms[row.lane] = own - len(taken)
    state = book.get(row.lane)
    if state is not None and state.tpm is not None:
        return [replace(claim, tokens=state.call_tokens) for claim in taken]
    return taken


def _count_affordable(tx: Transaction, row: AnyRow) -> int | None:
    """Return how many calls a batch's budget still allows, None for any number, counted under a lock.

    Of two that settle and claim at once, each would see only its own costs: together they could pay for another round
    of calls. Before any answer has told a cost, few may find out whether one does.
    """
    if row.budget is None or not locks_rows(tx):
        return cast("int | None", row.tasters)
    if not take_batch(tx, row.id):
        return 0
    within, allowed = tx.connection.execute(AFFORDABLE, {"of_batch": row.id, "now": tx.now}).one()
    return cast("int | None", allowed) if within else 0


def _claim_from(
    tx: Transaction, row: AnyRow, lane: LaneState | None, limit: int, share: Share, tally: Tally
) -> list[Claim]:
    parameters: dict[str, object] = {
        "of_batch": row.id,
        "now": tx.now,
        "me": share.runner.id,
        "of_lane": row.lane,
        "lease_ms": share.runner.lease_ms,
        "in_hand": json.dumps(list(share.in_hand)),
    }
    taken: list[AnyRow] = []
    if row.expired and share.expired_too:
        taken += _take_expired(tx, parameters | {"limit": limit}, row.max_attempts, tally)
    if row.due and len(taken) < limit:
        taken += _take_pending(tx, parameters, limit - len(taken), tally, suspects=share.suspects)
    tally.count(row.id, "attempts", len(taken))
    batch = batch_from(row)
    # RETURNING comes in any order; the oldest first is what people expect.
    taken.sort(key=_POSITION)
    epoch, probe = (0, False) if lane is None else (lane.epoch, lane.halted_at is not None)
    return [claim_of(job, batch, row.lane, epoch, probe=probe) for job in taken]


def _take_pending(
    tx: Transaction, parameters: dict[str, object], limit: int, tally: Tally, *, suspects: bool
) -> list[AnyRow]:
    """Take what is due; a suspect only where nothing else is left, so that no fresh culprit is beside it."""
    taken = list(tx.connection.execute(CLAIM_PENDING, parameters | {"limit": limit}).all())
    if suspects and len(taken) < limit:
        taken += tx.connection.execute(CLAIM_SUSPECT, parameters | {"limit": 1}).all()
    batch_id = cast("int", parameters["of_batch"])
    tally.move(batch_id, "pending", "inflight", len(taken) + sum(map(_FOLLOWERS, taken)))
    return taken


def _take_expired(tx: Transaction, parameters: dict[str, object], max_attempts: int, tally: Tally) -> list[AnyRow]:
    batch_id = cast("int", parameters["of_batch"])
    chosen = tx.connection.execute(CHOOSE_EXPIRED, parameters).scalars().all()
    if not chosen:
        return []
    parameters = parameters | {"attempt_limit": max_attempts, "chosen": json.dumps(chosen)}
    tx.connection.execute(_LOG_LOST, parameters)
    rows = tx.connection.execute(CLAIM_EXPIRED, parameters).all()
    for job in rows:
        tally.count(batch_id, "losses")
        if job.state != "inflight":
            tally.move(batch_id, "inflight", job.state, 1 + job.followers)
    return [job for job in rows if job.state == "inflight"]


def claim_of(job: AnyRow, batch: Batch, lane: str, epoch: int, *, probe: bool) -> Claim:
    """Build the value from a row that has the columns `TAKEN`."""
    # Unpacked: by name each column costs as much as building the whole value does.
    (
        job_id, _state, token, position, custom_id, payload, attempts, losses, throttles,
        strikes, strike_class, halts, halted_at, *_others,
    ) = job  # fmt: skip
    return Claim(
        job_id,
        token,
        batch,
        position,
        custom_id,
        payload,
        attempts,
        losses,
        throttles,
        lane,
        epoch,
        probe,
        strikes=strikes,
        strike_class=strike_class,
        halts=halts,
        halted_at=halted_at,
    )
