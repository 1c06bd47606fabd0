"""What waits for a time waits no longer than it was to, where the database's clock was set back.

Runners and producers write down when they were there. A time of theirs that lies ahead shows that the clock was set
back since, and by how much at least: all times that are waited for are moved by as much. Else jobs, lanes and the
leases of the dead would wait until the clock is where it was. What is history stays as it was written.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ColumnElement, bindparam, case, func, literal, select, update

from batchq.database import Transaction
from batchq.jobs import DEFAULT_LEASE_MS
from batchq.pacing import lane
from batchq.schema import batches, jobs, meta, runners
from batchq.store.find import AMONG_LIVE, INFLIGHT, PENDING, live_batches, now_ms
from batchq.store.lanes import change_lanes

# Longer than any transaction that may have read the clock before another one, and committed after it.
NOTICED_MS = 60_000
# So many batches are looked at: not all of them, each time.
NEWEST = 100

_by = bindparam("by", type_=BigInteger)
_SEEN = select(func.max(runners.c.seen_at))
_newest = select(batches.c.created_at, batches.c.sealed_at).order_by(batches.c.id.desc()).limit(NEWEST).subquery()
_MADE = select(func.max(func.coalesce(_newest.c.sealed_at, _newest.c.created_at)))
_LATEST = select(_SEEN.scalar_subquery(), _MADE.scalar_subquery())
# One at a time: who comes second finds all moved.
_LOCK = select(meta.c.value).where(meta.c.name == "schema_version").with_for_update()


def _moved(column: Column[int]) -> ColumnElement[int]:
    return case((column > now_ms, column - _by), else_=column)


_BATCHES = update(batches).values(
    {name: _moved(batches.c[name]) for name in ("created_at", "sealed_at", "enqueue_until")}
)
_RUNNERS = update(runners).values({name: _moved(runners.c[name]) for name in ("started_at", "seen_at", "stopped_at")})
_of_live = jobs.c.batch_id.in_(select(live_batches().c.batch_id))
_WAITING = (
    update(jobs)
    .where(_of_live, PENDING, AMONG_LIVE, jobs.c.claimable_at > now_ms)
    .values(claimable_at=jobs.c.claimable_at - _by)
)
# No lease lasts longer from now on than one that is granted now; those granted since are left as they are.
_lease_ms = func.coalesce(
    select(runners.c.lease_ms).where(runners.c.id == jobs.c.claimed_by).correlate(jobs).scalar_subquery(),
    literal(DEFAULT_LEASE_MS, BigInteger),
)
_LEASED = (
    update(jobs)
    .where(_of_live, INFLIGHT, AMONG_LIVE, jobs.c.claimable_at > now_ms + _lease_ms)
    .values(claimable_at=now_ms + _lease_ms)
)


def heed_set_back(tx: Transaction) -> None:
    """Move what waits if the clock was set back since others were there.

    It must come first in its transaction: time that was spent on waiting would look like a clock that others have
    ahead.
    """
    if not ahead_ms(tx):
        return
    tx.connection.execute(_LOCK)
    if by := ahead_ms(tx):
        bound = {"now": tx.now, "by": by}
        for statement in (_BATCHES, _WAITING, _LEASED):
            tx.connection.execute(statement, bound)
        change_lanes(tx, lambda state: lane.set_back(state, tx.now, by))
        tx.connection.execute(_RUNNERS, bound)


def ahead_ms(tx: Transaction) -> int:
    """Return how far ahead of the clock somebody was; 0 where that may be a matter of waiting."""
    seen, made = tx.connection.execute(_LATEST).one()
    ahead: int = max(seen or 0, made or 0) - tx.now
    return ahead if ahead > NOTICED_MS else 0
