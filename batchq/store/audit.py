"""Counts a batch row by row, in chunks, and looks for rows that no transaction of batchq can have left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import BigInteger, ColumnElement, and_, bindparam, case, cast, exists, func, or_, select, true

from batchq.database import Transaction
from batchq.jobs import BatchState, JobState
from batchq.schema import attempts, batches, jobs, tallies
from batchq.store.find import AnyRow
from batchq.store.followers import LEADER
from batchq.store.locks import lock_batch
from batchq.store.tally import PRODUCER, Tally, read_totals

CHUNK_ROWS = 50_000

_after = bindparam("after", type_=BigInteger)
_limit = bindparam("limit", type_=BigInteger)
_page = (
    select(*(jobs.c[name] for name in ("batch_id", "position", "state", "token", "attempts", "leader_id", "followers")))
    .where(jobs.c.batch_id == bindparam("of_batch", type_=BigInteger), jobs.c.position > _after)
    .order_by(jobs.c.position)
    .limit(_limit)
    .subquery()
)
_follows = _page.c.leader_id.is_not(None)
_astray = and_(
    _follows, or_(LEADER.c.id.is_(None), LEADER.c.batch_id != _page.c.batch_id, LEADER.c.leader_id.is_not(None))
)
_unclaimed = and_(_page.c.state == "inflight", or_(_page.c.token == 0, _page.c.attempts == 0))
_CHUNK = (
    select(
        _page.c.state,
        func.count().label("rows"),
        cast(func.sum(case((_follows, 0), else_=1 + _page.c.followers)), BigInteger).label("jobs"),
        cast(func.sum(_page.c.followers), BigInteger).label("followers"),
        func.count(case((_follows, 1))).label("following"),
        func.count(case((_astray, 1))).label("astray"),
        func.count(case((_unclaimed, 1))).label("unclaimed"),
        func.max(_page.c.position).label("last"),
    )
    .select_from(_page.outerjoin(LEADER, LEADER.c.id == _page.c.leader_id))
    .group_by(_page.c.state)
)

# In one statement, which sees one moment: whoever changes jobs changes their tally in the same transaction.
_of_batch = bindparam("of_batch", type_=BigInteger)
_STATES = [state.value for state in JobState]


def _total(amount: ColumnElement[int], state: str) -> ColumnElement[int]:
    return cast(func.coalesce(func.sum(amount), 0), BigInteger).label(state)


_weighed = (
    select(*(_total(case((jobs.c.state == state, 1 + jobs.c.followers), else_=0), state) for state in _STATES))
    .where(jobs.c.batch_id == _of_batch, jobs.c.leader_id.is_(None))
    .subquery()
)
_told = (
    select(*(_total(tallies.c[state], state) for state in _STATES)).where(tallies.c.batch_id == _of_batch).subquery()
)
_OFF = select(*((_weighed.c[state] - _told.c[state]).label(state) for state in _STATES)).select_from(
    _weighed.join(_told, true())
)

_logged = select(attempts.c.job_id).where(attempts.c.job_id > _after).distinct().order_by(attempts.c.job_id)
_log_page = _logged.limit(_limit).subquery()
_STRAY_LOG = select(
    func.count(case((jobs.c.id.is_(None), 1))).label("strays"), func.max(_log_page.c.job_id).label("last")
).select_from(_log_page.outerjoin(jobs, jobs.c.id == _log_page.c.job_id))

_BATCH_AFTER = (
    select(jobs.c.batch_id, exists().where(batches.c.id == jobs.c.batch_id).label("known"))
    .where(jobs.c.batch_id > _after)
    .order_by(jobs.c.batch_id)
    .limit(1)
)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of a batch by state, and what its tallies and itself said at that moment; `last` is None at the end."""

    rows: tuple[AnyRow, ...]
    told: Mapping[str, int]
    size: int
    last: int | None


@dataclass(slots=True)
class Audit:
    """What the rows of a batch come to: `counted` its jobs by state, where the tallies `told` them.

    `followers` are those that leaders know of, `following` the rows that follow one. `astray` follow nobody of their
    batch, `unclaimed` are in flight and were never claimed. It `moved` if somebody changed it between two chunks.
    """

    told: Mapping[str, int]
    size: int
    counted: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    followers: int = 0
    following: int = 0
    astray: int = 0
    unclaimed: int = 0
    moved: bool = False

    def add(self, chunk: Chunk) -> None:
        """Add what a chunk comes to."""
        self.moved = self.moved or (chunk.told, chunk.size) != (self.told, self.size)
        for row in chunk.rows:
            self.counted[row.state] += row.jobs
            self.rows += row.rows
            self.followers += row.followers
            self.following += row.following
            self.astray += row.astray
            self.unclaimed += row.unclaimed


def read_chunk(tx: Transaction, batch_id: int, after: int) -> Chunk | None:
    """Count the rows behind a position; None where the batch is gone, or going."""
    size = tx.connection.execute(
        select(batches.c.size).where(batches.c.id == batch_id, batches.c.state != "purging")
    ).scalar_one_or_none()
    if size is None:
        return None
    found = tx.connection.execute(_CHUNK, {"of_batch": batch_id, "after": after, "limit": CHUNK_ROWS}).all()
    complete = sum(row.rows for row in found) < CHUNK_ROWS
    last = None if complete else max(row.last for row in found)
    told = read_totals(tx, batch_id).get(batch_id, {})
    return Chunk(tuple(found), told, size, last)


def mend_tallies(tx: Transaction, batch_id: int) -> dict[str, int]:
    """Count the jobs of a batch, and correct what its tallies say of them; return by how much, by state."""
    # The lock is for others who mend it: two corrections would add up.
    if lock_batch(tx, batch_id) in {None, BatchState.PURGING}:
        return {}
    found = tx.connection.execute(_OFF, {"of_batch": batch_id}).mappings().one()
    off = {state: found[state] for state in _STATES if found[state]}
    tally = Tally()
    for state, amount in off.items():
        tally.count(batch_id, state, amount)
    tally.write(tx, PRODUCER)
    return off


def read_stray_log(tx: Transaction, after: int) -> tuple[int, int] | None:
    """Count the jobs of the log behind an id that do not exist; return the last id of these, too. None at the end."""
    row = tx.connection.execute(_STRAY_LOG, {"after": after, "limit": CHUNK_ROWS}).one()
    return None if row.last is None else (row.strays, row.last)


def read_stray_batches(tx: Transaction) -> list[int]:
    """Return the ids of batches that have jobs and do not exist."""
    found, after = [], -1
    while (row := tx.connection.execute(_BATCH_AFTER, {"after": after}).one_or_none()) is not None:
        after = row.batch_id
        if not row.known:
            found.append(after)
    return found
