"""Followers: jobs with the same request as another of their batch, their leader, which runs for all of them.

A follower is written once and never again: whoever reads it reads its leader's state, result and error, and
tallies weigh a leader with its followers. Copying an answer to 200,000 of them held the write lock for 1.5 s.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Integer, Text, case, func, insert, literal_column, select, update

from batchq.database import Transaction
from batchq.database.dialect import json_list, json_rows, lock_order
from batchq.jobs import NewJob
from batchq.schema import jobs
from batchq.store.find import AnyRow, now_ms
from batchq.store.tally import Tally

LEADER = jobs.alias("leader")
# The payload of a follower whose leader has the very same one.
_SAME_PAYLOAD = ""
_OWN = frozenset({"position", "custom_id", "key"})
_COUNTED = frozenset({"input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens", "cost"})

_new = json_rows(
    "new",
    {
        "batch_id": BigInteger(),
        "position": BigInteger(),
        "custom_id": Text(),
        "key": Text(),
        "payload": Text(),
        "leader_id": BigInteger(),
    },
)
_values: dict[str, ColumnElement[Any]] = {
    "batch_id": _new.c.batch_id,
    "position": _new.c.position,
    "custom_id": _new.c.custom_id,
    "key": _new.c.key,
    "payload": case((LEADER.c.payload == _new.c.payload, _SAME_PAYLOAD), else_=_new.c.payload),
    "state": literal_column("'pending'"),
    "claimable_at": now_ms,
    "created_at": now_ms,
    "leader_id": _new.c.leader_id,
}
_INSERT = insert(jobs).from_select(
    list(_values), select(*_values.values()).select_from(_new).join(LEADER, LEADER.c.id == _new.c.leader_id)
)
_grown = json_rows("grown", {"id": BigInteger(), "more": Integer()})
_GROW = update(jobs).where(jobs.c.id == _grown.c.id).values(followers=jobs.c.followers + _grown.c.more)
_FIND = (
    select(jobs.c.position, jobs.c.custom_id, LEADER.c.id, LEADER.c.state)
    .select_from(jobs)
    .join(LEADER, LEADER.c.id == func.coalesce(jobs.c.leader_id, jobs.c.id))
    .order_by(lock_order(LEADER.c.id))
    .with_for_update(of=LEADER)  # what a leader settles meanwhile counts its followers
)


@dataclass(frozen=True, slots=True)
class Placed:
    """A new job and the position that it gets."""

    position: int
    job: NewJob


def read_through(name: str) -> ColumnElement[Any]:
    """Return a column of a job as readers see it, for a SELECT that outer-joins `LEADER`.

    A follower has its leader's, but its own place, and it cost nothing.
    """
    own = jobs.c[name]
    if name in _OWN:
        return own
    if name == "payload":
        return case((own == _SAME_PAYLOAD, LEADER.c.payload), else_=own).label(name)
    alone = jobs.c.leader_id.is_(None)
    followed = 0 if name in _COUNTED else func.coalesce(LEADER.c[name], own) if name == "state" else LEADER.c[name]
    return case((alone, own), else_=followed).label(name)


def add_followers(tx: Transaction, batch_id: int, placed: Sequence[Placed], tally: Tally) -> list[Placed]:
    """Add jobs that follow others; return those whose leader is not there, and which must run themselves."""
    found = _leaders(tx, batch_id, [item.job.leader for item in placed])
    rows, grown, alone = [], Counter[int](), []
    for item in placed:
        job, leader = item.job, found.get(item.job.leader)
        if leader is None:
            alone.append(item)
            continue
        rows.append((batch_id, item.position, job.custom_id, job.key, job.payload, leader.id))
        grown[leader.id] += 1
        tally.move(batch_id, None, leader.state)
    if rows:
        tx.connection.execute(_INSERT, {"new": json.dumps(rows), "now": tx.now})
        tx.connection.execute(_GROW, {"grown": json.dumps(list(grown.items()))})
    return alone


def _leaders(tx: Transaction, batch_id: int, names: Sequence[int | str | None]) -> dict[int | str | None, AnyRow]:
    """Find the leaders by their custom_id, or position."""
    if not names:
        return {}
    by_id = isinstance(names[0], str)
    column = jobs.c.custom_id if by_id else jobs.c.position
    statement = _FIND.where(jobs.c.batch_id == batch_id, column.in_(json_list("wanted", column.type)))
    wanted = json.dumps(list(dict.fromkeys(names)))
    rows = tx.connection.execute(statement, {"wanted": wanted}).all()
    return {(row.custom_id if by_id else row.position): row for row in rows}
