"""Settle what ended and renew what is held: every write to a claimed row passes the token guard."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    FromClause,
    Insert,
    Integer,
    Text,
    Update,
    and_,
    bindparam,
    case,
    func,
    insert,
    literal,
    literal_column,
    null,
    select,
    update,
)
from sqlalchemy.types import TypeEngine

from batchq.database import Transaction
from batchq.database.dialect import json_rows, lock_order, writes_in_with
from batchq.database.staging import StagedRows
from batchq.jobs import ESTIMATE, Held, JobState
from batchq.schema import attempts, jobs
from batchq.settlement import Settlement
from batchq.store.find import AnyRow, now_ms
from batchq.store.tally import Tally


@dataclass(frozen=True, slots=True)
class _Field:
    """A value of an ended attempt: its type, its attribute, and the tables that keep it under this name.

    `escaped` marks text that is not JSON, `spent` what a job adds up over its attempts.
    """

    kind: TypeEngine[Any]
    path: str
    escaped: bool = False
    in_job: bool = False
    in_log: bool = False
    in_late_log: bool = False
    spent: bool = False


def _spent(path: str) -> _Field:
    """Return a number that was paid for: the log keeps it, however late it comes, and the job adds it up."""
    return _Field(BigInteger(), path, in_log=True, in_late_log=True, spent=True)


# Everything that an exchange tells of an ended attempt, in the order of its JSON row: what is always
# there, what its reason says if it has one, and what its answer says if it has one.
_ALWAYS = {
    "job_id": _Field(BigInteger(), "ended.claim.job_id"),
    "token": _Field(BigInteger(), "ended.claim.token"),
    "state": _Field(Text(), "state.value"),
    "delay_ms": _Field(BigInteger(), "delay_ms"),
    "throttled": _Field(Boolean(), "throttled"),
    "blamed": _Field(Boolean(), "blamed"),
    "outcome": _Field(Text(), "outcome", in_log=True),
    "charged": _Field(Boolean(), "charged", in_log=True),
    "duration_ms": _Field(BigInteger(), "ended.duration_ms", in_log=True, in_late_log=True),
}
_OF_REASON = {
    "error": _Field(Text(), "message", escaped=True, in_job=True, in_log=True),
    "error_class": _Field(Text(), "error_class", escaped=True, in_job=True, in_log=True),
    "status": _Field(Integer(), "status", in_job=True, in_log=True, in_late_log=True),
}
_OF_ANSWER = {
    "result": _Field(Text(), "result", in_job=True),
    "response": _Field(Text(), "response", in_job=True),
    "meta": _Field(Text(), "meta", in_job=True),
    "finish_reason": _Field(Text(), "finish_reason", escaped=True, in_job=True),
    "input_tokens": _spent("usage.input_tokens"),
    "output_tokens": _spent("usage.output_tokens"),
    "cached_tokens": _spent("usage.cached_tokens"),
    "reasoning_tokens": _spent("usage.reasoning_tokens"),
    "cost": _spent("cost"),
    "cost_source": _Field(Text(), "cost_source", in_log=True, in_late_log=True),
}
_FIELDS = _ALWAYS | _OF_REASON | _OF_ANSWER
_ESCAPED = tuple(index for index, field in enumerate(_FIELDS.values()) if field.escaped)


def _reader(fields: dict[str, _Field]) -> Callable[[object], tuple[object, ...]]:
    # Four times as fast as a function for each field, and this runs for each job.
    return attrgetter(*(field.path for field in fields.values()))


_always, _of_reason, _of_answer = _reader(_ALWAYS), _reader(_OF_REASON), _reader(_OF_ANSWER)
_no_reason, _no_answer = (None,) * len(_OF_REASON), (None,) * len(_OF_ANSWER)

ENDED = StagedRows("ended", {name: field.kind for name, field in _FIELDS.items()})
ended_rows = ENDED.rows
held_rows = json_rows("held", {"job_id": BigInteger(), "token": BigInteger()})


def _values(wanted: Callable[[_Field], bool]) -> dict[str, ColumnElement[Any]]:
    return {name: ended_rows.c[name] for name, field in _FIELDS.items() if wanted(field)}


def holds(rows: FromClause) -> ColumnElement[bool]:
    """Return the guard: the row is still held by the very claim that ended.

    The token grows with every claim and never goes back; owner, attempt number or time would all let
    a stale claim through (tests/test_state_machine.py finds each). Time is left out on purpose: an
    answer whose lease ran out but whose job nobody re-claimed was paid for, and is accepted.
    """
    # Asked of both tables at once: statistics that say that hardly a row is in flight, as they do before a batch
    # begins, would have PostgreSQL read all of `jobs` for each row.
    inflight = case((rows.c.token.is_not(None), literal_column("'inflight'")))
    return and_(jobs.c.id == rows.c.job_id, jobs.c.token == rows.c.token, jobs.c.state == inflight)


def log_statement(guard: ColumnElement[bool]) -> Insert:
    """Return the INSERT that writes an attempt for each ended row that passes the guard.

    On PostgreSQL it locks the jobs, in the order of their ids, so that none changes before it is settled.
    """
    values: dict[str, ColumnElement[Any]] = {
        "job_id": ended_rows.c.job_id,
        "token": jobs.c.token,
        "number": jobs.c.attempts,
        "runner": jobs.c.claimed_by,
        "started_at": jobs.c.claimed_at,
        "ended_at": now_ms,
        "late": literal(False),
        **_values(lambda field: field.in_log),
    }
    chosen = select(*values.values()).select_from(ended_rows).join(jobs, guard)
    locking = chosen.order_by(lock_order(jobs.c.id)).with_for_update(of=jobs)
    return insert(attempts).from_select(list(values), locking)


def _spending() -> dict[str, ColumnElement[Any]]:
    """Return what a job has spent with this attempt: unknown stays unknown, an estimate makes the sum one."""
    source = ended_rows.c.cost_source
    added: dict[str, ColumnElement[Any]] = {
        name: case(
            (ended_rows.c[name].is_(None), jobs.c[name]),
            else_=func.coalesce(jobs.c[name], 0) + ended_rows.c[name],
        )
        for name, field in _FIELDS.items()
        if field.spent
    }
    added["cost_source"] = case(
        (source.is_(None), jobs.c.cost_source),
        (jobs.c.cost_source == ESTIMATE, jobs.c.cost_source),
        else_=source,
    )
    return added


def _count(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return case((condition, 1), else_=0)


def settle_statement(guard: ColumnElement[bool]) -> Update:
    """Return the UPDATE that moves each ended row that passes the guard."""
    charged = ended_rows.c.charged
    again = jobs.c.strike_class == ended_rows.c.error_class
    pending = ended_rows.c.state == literal_column("'pending'")
    return (
        update(jobs)
        .where(guard)
        .values(
            state=ended_rows.c.state,
            claimable_at=case((pending, now_ms + ended_rows.c.delay_ms), else_=jobs.c.claimable_at),
            attempts=jobs.c.attempts - _count(~charged),
            throttles=jobs.c.throttles + _count(ended_rows.c.throttled),
            strikes=case((charged, case((again, jobs.c.strikes), else_=0) + 1), else_=jobs.c.strikes),
            strike_class=case((charged, ended_rows.c.error_class), else_=jobs.c.strike_class),
            halts=jobs.c.halts + _count(ended_rows.c.blamed),
            halted_at=case((ended_rows.c.blamed, func.coalesce(jobs.c.halted_at, now_ms)), else_=jobs.c.halted_at),
            finished_at=case((pending, null()), else_=now_ms),
            **_values(lambda field: field.in_job),
            **_spending(),
        )
        .returning(jobs.c.id, jobs.c.token, jobs.c.followers)
    )


_guard = holds(ended_rows)
LOG_ENDED = log_statement(_guard)
SETTLE = settle_statement(_guard)


@cache
def _settle_and_log(log: Insert, settle: Update) -> Update:
    """Return one statement that does both, where the database can: what was logged is settled."""
    logged = log.returning(attempts.c.job_id).cte("logged")
    return settle.where(jobs.c.id == logged.c.job_id)


def _settle(tx: Transaction, settlements: Sequence[Settlement]) -> Sequence[AnyRow]:
    """Log and settle what is still held; return the rows that were."""
    parameters = _stage(tx, settlements)
    if writes_in_with(tx):
        return tx.connection.execute(ENDED.joined(tx, _settle_and_log(LOG_ENDED, SETTLE)), parameters).all()
    tx.connection.execute(LOG_ENDED, parameters)
    return tx.connection.execute(SETTLE, parameters).all()


# What was taken away has a row in the log, and a late answer is added to it. Whoever settled before has one
# too: an exchange that is repeated, since its commit was not confirmed, adds nothing.
_LOG_LATE = (
    update(attempts)
    .where(
        attempts.c.job_id == ended_rows.c.job_id,
        attempts.c.token == ended_rows.c.token,
        attempts.c.outcome.in_(("lost", "cancelled")),
        attempts.c.late.is_(False),
    )
    .values(late=True, ended_at=now_ms, late_result=ended_rows.c.result, **_values(lambda field: field.in_late_log))
    .returning(attempts.c.job_id, attempts.c.token)
)

_RENEW = (
    update(jobs)
    .where(holds(held_rows))
    .values(claimable_at=now_ms + bindparam("lease_ms", type_=BigInteger))
    .returning(jobs.c.id)
)


def write_settlements(
    tx: Transaction, settlements: Sequence[Settlement], tally: Tally
) -> tuple[list[Settlement], tuple[int, ...]]:
    """Settle what still holds its job, log the rest as late; return what was settled and whose outcomes were late."""
    if not settlements:
        return [], ()
    rows = _settle(tx, settlements)
    followers = {(job_id, token): count for job_id, token, count in rows}
    settled, missed = [], []
    for item in settlements:
        claim = item.ended.claim
        if (claim.job_id, claim.token) not in followers:
            missed.append(item)
            continue
        settled.append(item)
        tally.move(claim.batch.id, JobState.INFLIGHT, item.state, 1 + followers[claim.job_id, claim.token])
        if item.throttled:
            tally.count(claim.batch.id, "throttles")
        if item.answer is not None:
            tally.spend(claim.batch.id, item.answer)
    return settled, _log_late(tx, missed, tally) if missed else ()


def renew(tx: Transaction, held: Sequence[Held], lease_ms: int) -> frozenset[int]:
    """Extend the leases of what is held; return the ids that are no longer ours."""
    if not held:
        return frozenset()
    rows = json.dumps([(item.job_id, item.token) for item in held])
    kept = tx.connection.execute(_RENEW, {"held": rows, "now": tx.now, "lease_ms": lease_ms}).scalars().all()
    return frozenset(item.job_id for item in held) - frozenset(kept)


def _log_late(tx: Transaction, missed: Sequence[Settlement], tally: Tally) -> tuple[int, ...]:
    """Keep what came too late, with its cost; skip what was settled before, or belongs to a purged job."""
    rows = tx.connection.execute(ENDED.joined(tx, _LOG_LATE), _stage(tx, missed)).all()
    logged = {(job_id, token) for job_id, token in rows}
    late = [item for item in missed if (item.ended.claim.job_id, item.ended.claim.token) in logged]
    for item in late:
        tally.count(item.ended.claim.batch.id, "late")
        if item.answer is not None:
            tally.spend(item.ended.claim.batch.id, item.answer)
    return tuple(job_id for job_id, _ in logged)


def _stage(tx: Transaction, settlements: Sequence[Settlement]) -> dict[str, object]:
    return {"now": tx.now, **ENDED.stage(tx, [_row(item) for item in settlements])}


def _row(item: Settlement) -> tuple[object, ...]:
    row = [
        *_always(item),
        *(_no_reason if item.reason is None else _of_reason(item.reason)),
        *(_no_answer if item.answer is None else _of_answer(item.answer)),
    ]
    for index in _ESCAPED:
        if row[index] is not None:
            row[index] = _plain(str(row[index]))
    return tuple(row)


def _plain(text: str) -> str:
    """Escape what the database can't hold in text that is not JSON: one such row would spoil its whole page."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
