"""A queue as `doctor` looks at it: opened to be read and nothing else, in whatever state it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

from sqlalchemy import func, select

from batchq.database import FileFacts, Transaction, open_to_examine
from batchq.database.contract import Database
from batchq.jobs import Batch
from batchq.schema import batches, jobs
from batchq.store import operate
from batchq.store.find import AMONG_LIVE, INFLIGHT, batch_from, live_batches, next_time
from batchq.store.reading import Reading
from batchq.store.set_back import ahead_ms
from batchq.store.tally import read_totals

T = TypeVar("T")

_MOST_COUNTED = 10_000


@dataclass(frozen=True, slots=True)
class Overdue:
    """Jobs of a batch whose leases ran out a while ago, the first of them at `since`; counted up to 10,000."""

    batch: Batch
    jobs: int
    since: int


@dataclass(frozen=True, slots=True)
class Moment:
    """What the database's clock says, and how far ahead of it somebody was before: it was set back since."""

    now: int
    ahead_ms: int


async def open_to_look(location: str) -> Examined:
    """Open the queue at a path or URL for reading; what is there need not be a queue of this batchq's.

    Raises NoDatabase, NotABatchqDatabase, SchemaMismatch, DatabaseUnavailable or ConfigurationError.
    """
    return Examined(*await open_to_examine(location))


class Examined(Reading):
    """A queue that is only read; an async context manager. `facts` are those of a SQLite file, None on a server."""

    def __init__(self, database: Database, facts: FileFacts | None) -> None:
        """Wrap an open database; `open_to_look` is the way in."""
        super().__init__(database)
        self.facts = facts

    async def __aenter__(self) -> Self:
        """Return the queue."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        await self._database.close()

    async def read(self, body: Callable[[Transaction], T]) -> T:
        """Read what only one kind of database has."""
        return await self._database.read(body)

    async def moment(self) -> Moment:
        """Return what the database's clock says. Raises SchemaMismatch for a queue that this batchq can't read."""
        return await self._database.read(lambda tx: Moment(tx.now, ahead_ms(tx)))

    async def overdue(self, longer_than_ms: int) -> list[Overdue]:
        """Return the batches with leases that ran out so long ago: somebody should have taken their jobs up."""
        return await self._database.read(partial(_read_overdue, longer_than_ms=longer_than_ms))

    async def abandoned_cancels(self) -> list[Batch]:
        """Return the cancelled batches that still have jobs to cancel."""
        return await self._database.read(operate.abandoned_cancels)

    async def told_jobs(self) -> dict[int, int]:
        """Return how many jobs the tallies tell of, by the id of the batch."""
        totals = await self._database.read(read_totals)
        return {batch_id: sum(counts[state] for state in _STATES) for batch_id, counts in totals.items()}


_STATES = ("pending", "inflight", "done", "failed", "cancelled")


def _read_overdue(tx: Transaction, longer_than_ms: int) -> list[Overdue]:
    live = live_batches()
    first = next_time(INFLIGHT).label("first")
    rows = tx.connection.execute(select(batches, first).join(live, live.c.batch_id == batches.c.id)).all()
    latest = tx.now - longer_than_ms
    late = [row for row in rows if isinstance(row.first, int) and row.first < latest]
    return [Overdue(batch_from(row), _count_overdue(tx, row.id, latest), row.first) for row in late]


def _count_overdue(tx: Transaction, batch_id: int, latest: int) -> int:
    leased = select(jobs.c.id).where(jobs.c.batch_id == batch_id, INFLIGHT, AMONG_LIVE, jobs.c.claimable_at < latest)
    counted: int = tx.connection.execute(
        select(func.count()).select_from(leased.limit(_MOST_COUNTED).subquery())
    ).scalar_one()
    return counted
