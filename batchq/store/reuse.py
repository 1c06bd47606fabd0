"""Reuse: a request that was answered before, in this database, becomes a job that is done from the start."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Text, and_, bindparam, func, insert, or_, select
from sqlalchemy.types import Boolean

from batchq.database import Transaction
from batchq.database.dialect import json_list, json_rows
from batchq.jobs import JobState, Reuse
from batchq.schema import ENDED, jobs
from batchq.settlement import REFUSED_CLASSES, TRUNCATED
from batchq.store.find import AnyRow, AnySelect, now_ms
from batchq.store.followers import Placed
from batchq.store.tally import Tally

_KEPT = ("state", "result", "response", "error", "error_class", "status", "finish_reason", "meta")
_FREE = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens", "cost")

_allow_truncated = bindparam("allow_truncated", type_=Boolean())
_keep_response = bindparam("keep_response", type_=Boolean())
# What providers call an answer that was cut off at its token limit.
_CUT_OFF = ("length", "max_tokens", "max_output_tokens")

_copied = json_rows(
    "copied",
    {
        "batch_id": BigInteger(),
        "position": BigInteger(),
        "custom_id": Text(),
        "key": Text(),
        "payload": Text(),
        "source": BigInteger(),
    },
)
_source = jobs.alias("source")
_columns: dict[str, ColumnElement[Any]] = {
    **{name: _copied.c[name] for name in ("batch_id", "position", "custom_id", "key", "payload")},
    **{name: _source.c[name] for name in _KEPT},
    **{name: bindparam("nothing", 0, type_=BigInteger()) for name in _FREE},
    "claimable_at": now_ms,
    "created_at": now_ms,
    "finished_at": now_ms,
}
_COPY = (
    insert(jobs)
    .from_select(
        list(_columns),
        # Between the two statements a source may have been purged, or sent back.
        select(*_columns.values())
        .select_from(_copied)
        .join(_source, and_(_source.c.id == _copied.c.source, _source.c.state.in_(("done", "failed")))),
    )
    .returning(jobs.c.position, jobs.c.state)
)


def find_statement(state: JobState, *, narrowed: bool) -> AnySelect:
    """Return the SELECT of the newest answer for each of the bound `keys`."""
    chosen = select(func.max(jobs.c.id).label("id"), jobs.c.key).where(
        ENDED,
        jobs.c.key.in_(json_list("keys", Text())),
        jobs.c.state == state.value,
        # What this batch would not have taken, or would have kept, is no answer to it.
        or_(_allow_truncated, jobs.c.finish_reason.is_(None), jobs.c.finish_reason.not_in(_CUT_OFF)),
        or_(~_keep_response, jobs.c.response.is_not(None), jobs.c.state == JobState.FAILED.value),
    )
    if state is JobState.FAILED:
        chosen = chosen.where(
            jobs.c.error_class.in_(sorted(REFUSED_CLASSES)), or_(~_allow_truncated, jobs.c.error_class != TRUNCATED)
        )
    if narrowed:
        chosen = chosen.where(jobs.c.batch_id.in_(json_list("batch_ids")))
    return chosen.group_by(jobs.c.key)


def add_reused(
    tx: Transaction, batch: AnyRow, placed: Sequence[Placed], reuse: Reuse, tally: Tally
) -> tuple[list[Placed], int]:
    """Add the jobs whose request has an answer, with it; return the others, and how many were added."""
    sources = _answers(tx, batch, {item.job.key for item in placed}, JobState.DONE, reuse)
    if reuse.refusals:
        missing = {item.job.key for item in placed} - sources.keys()
        sources |= _answers(tx, batch, missing, JobState.FAILED, reuse)
    rows = [
        (batch.id, item.position, item.job.custom_id, item.job.key, item.job.payload, sources[item.job.key])
        for item in placed
        if item.job.key in sources
    ]
    if not rows:
        return list(placed), 0
    added: dict[int, str] = dict(
        tx.connection.execute(_COPY, {"copied": json.dumps(rows), "now": tx.now, "nothing": 0}).all()
    )
    for state in added.values():
        tally.move(batch.id, None, state)
    return [item for item in placed if item.position not in added], len(added)


def _answers(tx: Transaction, batch: AnyRow, keys: set[str], state: JobState, reuse: Reuse) -> dict[str, int]:
    if not keys:
        return {}
    parameters: dict[str, object] = {
        "keys": json.dumps(sorted(keys)),
        "allow_truncated": batch.allow_truncated,
        "keep_response": batch.keep_response,
    }
    if reuse.batch_ids is not None:
        parameters["batch_ids"] = json.dumps(sorted(reuse.batch_ids))
    statement = find_statement(state, narrowed=reuse.batch_ids is not None)
    return {row.key: row.id for row in tx.connection.execute(statement, parameters).all()}
