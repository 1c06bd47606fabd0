"""Settle what ended and renew what is held: every write to a claimed row passes the token guard."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Insert,
    Integer,
    Subquery,
    Text,
    Update,
    and_,
    bindparam,
    case,
    insert,
    literal,
    literal_column,
    null,
    select,
    update,
)

from batchq.database import Transaction
from batchq.database.dialect import json_list, json_rows
from batchq.jobs import Held, JobState, Usage
from batchq.schema import attempts, jobs
from batchq.settlement import Settlement
from batchq.store.tally import Tally

_NO_USAGE = Usage()

_ANSWER_COLUMNS = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens", "cost", "cost_source")

ended_rows = json_rows(
    "ended",
    {
        "job_id": BigInteger(),
        "token": BigInteger(),
        "outcome": Text(),
        "state": Text(),
        "delay_ms": BigInteger(),
        "charged": Integer(),
        "throttled": Integer(),
        "duration_ms": BigInteger(),
        "error": Text(),
        "error_class": Text(),
        "status": Integer(),
        "result": Text(),
        "finish_reason": Text(),
        "meta": Text(),
        **{name: BigInteger() for name in _ANSWER_COLUMNS[:-1]},
        "cost_source": Text(),
    },
)
held_rows = json_rows("held", {"job_id": BigInteger(), "token": BigInteger()})

_now = bindparam("now", type_=BigInteger)
_inflight = jobs.c.state == literal_column("'inflight'")


def holds(rows: Subquery) -> ColumnElement[bool]:
    """Return the guard: the row is still held by the very claim that ended.

    The token grows with every claim and never goes back; owner, attempt number or time would all let
    a stale claim through (tests/test_state_machine.py finds each). Time is left out on purpose: an
    answer whose lease ran out but whose job nobody re-claimed was paid for, and is accepted.
    """
    return and_(jobs.c.id == rows.c.job_id, _inflight, jobs.c.token == rows.c.token)


def log_statement(guard: ColumnElement[bool]) -> Insert:
    """Return the INSERT that writes an attempt for each ended row that passes the guard."""
    values: dict[str, ColumnElement[Any]] = {
        "job_id": ended_rows.c.job_id,
        "token": jobs.c.token,
        "number": jobs.c.attempts,
        "runner": jobs.c.claimed_by,
        "started_at": jobs.c.claimed_at,
        "ended_at": _now,
        "late": literal(False),
        **{
            name: ended_rows.c[name]
            for name in ("duration_ms", "outcome", "charged", "error", "error_class", "status", *_ANSWER_COLUMNS)
        },
    }
    chosen = select(*values.values()).select_from(ended_rows).join(jobs, guard)
    return insert(attempts).from_select(list(values), chosen)


def settle_statement(guard: ColumnElement[bool]) -> Update:
    """Return the UPDATE that moves each ended row that passes the guard."""
    pending = ended_rows.c.state == literal_column("'pending'")
    return (
        update(jobs)
        .where(guard)
        .values(
            state=ended_rows.c.state,
            claimable_at=case((pending, _now + ended_rows.c.delay_ms), else_=jobs.c.claimable_at),
            attempts=jobs.c.attempts - 1 + ended_rows.c.charged,
            throttles=jobs.c.throttles + ended_rows.c.throttled,
            finished_at=case((pending, null()), else_=_now),
            **{
                name: ended_rows.c[name]
                for name in ("result", "error", "error_class", "finish_reason", "meta", *_ANSWER_COLUMNS)
            },
        )
        .returning(jobs.c.id, jobs.c.token, jobs.c.followers)
    )


_guard = holds(ended_rows)
LOG_ENDED = log_statement(_guard)
SETTLE = settle_statement(_guard)

_RENEW = (
    update(jobs)
    .where(holds(held_rows))
    .values(claimable_at=_now + bindparam("lease_ms", type_=BigInteger))
    .returning(jobs.c.id)
)

_LOGGED = select(attempts.c.job_id, attempts.c.token, attempts.c.outcome, attempts.c.late).where(
    attempts.c.job_id.in_(json_list("missed"))
)
_KNOWN = select(jobs.c.id, jobs.c.attempts, jobs.c.batch_id).where(jobs.c.id.in_(json_list("missed")))


def write_settlements(tx: Transaction, settlements: Sequence[Settlement], tally: Tally) -> tuple[list[Settlement], int]:
    """Settle what still holds its job, log the rest as late; return what was settled and how many were late."""
    if not settlements:
        return [], 0
    parameters = {"ended": json.dumps([_row(item) for item in settlements]), "now": tx.now}
    tx.connection.execute(LOG_ENDED, parameters)
    followers = {(row.id, row.token): row.followers for row in tx.connection.execute(SETTLE, parameters).all()}
    settled, missed = [], []
    for item in settlements:
        claim = item.ended.claim
        if (claim.job_id, claim.token) not in followers:
            missed.append(item)
            continue
        settled.append(item)
        tally.move(claim.batch.id, JobState.INFLIGHT, item.state, 1 + followers[claim.job_id, claim.token])
        if item.answer is not None:
            tally.spend(claim.batch.id, item.answer)
    return settled, _log_late(tx, missed, tally) if missed else 0


def renew(tx: Transaction, held: Sequence[Held], lease_ms: int) -> frozenset[int]:
    """Extend the leases of what is held; return the ids that are no longer ours."""
    if not held:
        return frozenset()
    rows = json.dumps([(item.job_id, item.token) for item in held])
    kept = tx.connection.execute(_RENEW, {"held": rows, "now": tx.now, "lease_ms": lease_ms}).scalars().all()
    return frozenset(item.job_id for item in held) - frozenset(kept)


def _row(item: Settlement) -> list[object]:
    claim, reason, answer = item.ended.claim, item.reason, item.answer
    usage = answer.usage if answer else _NO_USAGE
    return [
        claim.job_id,
        claim.token,
        item.outcome,
        item.state.value,
        item.delay_ms,
        int(item.charged),
        int(item.throttled),
        item.ended.duration_ms,
        _plain(reason.message) if reason else None,
        _plain(reason.error_class) if reason else None,
        reason.status if reason else None,
        answer.result if answer else None,
        _plain(answer.finish_reason) if answer else None,
        answer.meta if answer else None,
        usage.input_tokens,
        usage.output_tokens,
        usage.cached_tokens,
        usage.reasoning_tokens,
        answer.cost if answer else None,
        answer.cost_source if answer else None,
    ]


def _plain(text: str | None) -> str | None:
    """Escape what the database can't hold in text that is not JSON: one such row would spoil its whole page."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def _log_late(tx: Transaction, missed: Sequence[Settlement], tally: Tally) -> int:
    """Keep what came too late, with its cost; skip what an earlier, unconfirmed exchange had settled."""
    ids = {"missed": json.dumps([item.ended.claim.job_id for item in missed])}
    logged = {(row.job_id, row.token): row for row in tx.connection.execute(_LOGGED, ids).all()}
    known = {row.id: row for row in tx.connection.execute(_KNOWN, ids).all()}
    late = 0
    for item in missed:
        claim = item.ended.claim
        entry = logged.get((claim.job_id, claim.token))
        if claim.job_id not in known or (entry is not None and (entry.late or entry.outcome != "lost")):
            continue
        late += 1
        tally.count(claim.batch.id, "late")
        if item.answer is not None:
            tally.spend(claim.batch.id, item.answer)
        _write_late(tx, item, lost=entry is not None)
    return late


def _write_late(tx: Transaction, item: Settlement, *, lost: bool) -> None:
    claim, answer, reason = item.ended.claim, item.answer, item.reason
    usage = answer.usage if answer else _NO_USAGE
    values: dict[str, object] = {
        "late": True,
        "ended_at": tx.now,
        "duration_ms": item.ended.duration_ms,
        "late_result": answer.result if answer else None,
        "status": reason.status if reason else None,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cached_tokens": usage.cached_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "cost": answer.cost if answer else None,
        "cost_source": answer.cost_source if answer else None,
    }
    if lost:
        mine = and_(attempts.c.job_id == claim.job_id, attempts.c.token == claim.token)
        tx.connection.execute(update(attempts).where(mine).values(values))
        return
    tx.connection.execute(
        insert(attempts).values(
            values
            | {
                "job_id": claim.job_id,
                "token": claim.token,
                "number": claim.attempts,
                "outcome": item.outcome,
                "charged": item.charged,
                "error": _plain(reason.message) if reason else None,
                "error_class": _plain(reason.error_class) if reason else None,
            }
        )
    )
