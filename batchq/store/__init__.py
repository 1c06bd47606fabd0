"""The store: every statement that batchq sends to the database.

What a caller may rely on:

- Two claims never hold one job: a claim gives each job a lease and a token that no other claim has.
- A result is accepted only from the claim that still holds the job. Any other is logged as late.
- A job is claimed when it is due, or when its lease has run out by the database's clock; never before.
- Settling is idempotent: an exchange whose commit was not confirmed may be repeated.
- A method reads in one transaction and writes in one, both short. What concerns rows without number
  (results, cancel, retry, purge) goes chunk by chunk, and may be repeated if it was left half-way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

from batchq.config import rules_of_settings
from batchq.database import OnLocked, Transaction, open_database
from batchq.jobs import (
    Added,
    Batch,
    Exchanged,
    Lane,
    NewBatch,
    NewJob,
    Reuse,
    RunnerIdentity,
)
from batchq.pacing import LaneState, Limits
from batchq.schema import ENDED_KEY, SCHEMA_VERSION
from batchq.store import adding, audit, enqueue, operate, runners
from batchq.store.exchange import ExchangeRequest, exchange, look
from batchq.store.find import lane_name
from batchq.store.lanes import reopen, set_limits
from batchq.store.reading import Reading

__all__ = ["ExchangeRequest", "Store", "open_store"]

T = TypeVar("T")

OPERATOR_PATIENCE = 60.0


async def open_store(
    location: str,
    *,
    create: bool = False,
    clock: Callable[[], int] | None = None,
    on_locked: OnLocked | None = None,
) -> Store:
    """Open the queue at a path or URL; use as an async context manager, or call `close`.

    Raises NoDatabase where there is none and `create` is off. `clock` replaces the database's, for tests.
    `on_locked` hears a sentence, once for each wait, when a lock or an absent server keeps it waiting for long.
    """
    database = await open_database(location, create=create, clock=clock, on_locked=on_locked, rules=rules_of_settings)
    if database.upgraded_from is not None:
        from batchq import log

        log.get_logger().info(
            log.DATABASE_UPGRADED, database=database.location, since=database.upgraded_from, to=SCHEMA_VERSION
        )
    return Store(database)


class Store(Reading):
    """A queue in a database; `open_store` is the way in."""

    _has_ended_key = False

    @property
    def rows_per_write(self) -> int:
        """How many rows to add in one transaction: more pay off where nobody waits for it."""
        return self._database.rows_per_write

    async def __aenter__(self) -> Self:
        """Return the store."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the store."""
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._database.close()

    # Running: what a runner says and hears.

    async def register(self, runner: RunnerIdentity) -> None:
        """Announce a runner; halted lanes let one job through, since the cause may be gone."""
        await self._database.write(partial(runners.register, runner=runner))

    async def retire(self, runner: RunnerIdentity) -> None:
        """Say that a runner stopped."""
        await self._database.write(partial(runners.retire, runner=runner), patience=OPERATOR_PATIENCE)

    async def exchange(self, request: ExchangeRequest) -> Exchanged:
        """Settle, renew and claim; looks for work by a read first where there is nothing to write."""
        if not request.writes:
            seen = await self._database.read(partial(look, request=request), patience=0)
            if seen is not None:
                return seen
        return await self._database.write(partial(exchange, request=request))

    # Producing.

    async def open_batch(self, new: NewBatch) -> Batch:
        """Create a batch, or return the equal one of that name. Raises BatchConflict."""
        return await self._write(partial(enqueue.open_batch, new=new))

    async def keep_alive(self, batch: Batch) -> None:
        """Say that the producer of a batch that is not complete is still at work."""
        await self._write(partial(enqueue.keep_alive, batch_id=batch.id))

    async def add_jobs(self, batch: Batch, chunk: Sequence[NewJob], reuse: Reuse | None = None) -> Added:
        """Add the jobs that are not there yet; return how many were added. Raises BatchConflict.

        `reuse` lets those whose request has an answer already have it, at no cost.
        """
        await self._prepare_reuse(reuse)
        return await self._write(partial(adding.add_jobs, batch_id=batch.id, chunk=chunk, reuse=reuse))

    async def make_batch(
        self, new: NewBatch, chunk: Sequence[NewJob], reuse: Reuse | None = None
    ) -> tuple[Batch, Added] | None:
        """Create a batch with its first jobs in it; None if there is one of that name."""
        await self._prepare_reuse(reuse)
        return await self._write(partial(adding.make_batch, new=new, chunk=chunk, reuse=reuse))

    async def update_policy(self, batch: Batch, changes: Mapping[str, object]) -> Batch:
        """Change what is no part of the request, by field of Batch; return the batch as it is now."""
        return await self._write(partial(enqueue.update_policy, batch_id=batch.id, changes=changes))

    async def seal(self, batch: Batch) -> None:
        """Say that the batch is complete."""
        await self._write(partial(enqueue.seal, batch_id=batch.id))

    # Operating.

    async def pause(self, batch: Batch) -> None:
        """Start no more jobs of a batch."""
        await self._write(partial(operate.pause, batch_id=batch.id))

    async def resume(self, batch: Batch) -> int:
        """Start jobs again, and reopen the batch's halted lanes; return how many lanes."""
        return await self._write(partial(operate.resume_batch, batch=batch))

    async def reopen_lanes(self) -> int:
        """Reopen all halted lanes; return how many."""
        return await self._write(reopen)

    async def set_limits(self, worker: str, base_url: str, model: str, limits: Limits, *, forget: bool = False) -> Lane:
        """Limit a lane, for all processes from their next claim on; `forget` what its 429s taught. Return it."""
        identity = LaneState(lane_name(worker, base_url, model), worker, base_url, model)
        return await self._write(partial(set_limits, identity=identity, limits=limits, forget=forget))

    async def set_concurrency(self, concurrency: int, runner_ids: Sequence[str]) -> int:
        """Ask live runners for another concurrency, which they take over within seconds; return how many."""
        return await self._write(partial(runners.set_concurrency, concurrency=concurrency, ids=runner_ids))

    async def cancel(self, batch: Batch) -> int:
        """Cancel what has not ended, in chunks; return how many jobs. Safe to repeat, also by others."""
        await self._write(partial(operate.start_cancel, batch_id=batch.id))
        return await self._finish_cancel(batch)

    async def finish_cancels(self) -> None:
        """Finish the cancels that their operator did not live to finish."""
        for batch in await self._database.read(operate.abandoned_cancels):
            await self._finish_cancel(batch)

    async def retry(self, batch: Batch, *, error_class: str | None = None, revive: bool = True) -> int:
        """Send failed and cancelled jobs back to pending, in chunks; return how many.

        A cancelled batch is opened again; without `revive` it is left as it is.
        """
        moved, after = 0, 0
        while True:
            count, last = await self._write(
                partial(operate.retry_chunk, batch=batch, after=after, error_class=error_class, revive=revive)
            )
            if last is None:
                return moved
            moved, after = moved + count, last

    async def mend_tallies(self, batch: Batch) -> dict[str, int]:
        """Count the jobs of a batch anew, and correct its tallies of them; return by how much, by state."""
        return await self._write(partial(audit.mend_tallies, batch_id=batch.id))

    async def purge(self, batch: Batch) -> int:
        """Delete a batch with all its jobs and their log, in chunks; return how many jobs. Safe to repeat."""
        removed = 0
        while count := await self._write(partial(operate.purge_chunk, batch_id=batch.id)):
            removed += count
        return removed

    async def purge_if_unwanted(self, batch: Batch) -> bool:
        """Delete a batch if it is as `batch` says, ended, and nobody waits for it; return whether it was."""
        if not await self._write(partial(operate.claim_purge, batch=batch)):
            return False
        await self.purge(batch)
        return True

    async def _prepare_reuse(self, reuse: Reuse | None) -> None:
        """Make the index that reuse reads: keys come in no order, so that it costs whoever does not need it."""
        if reuse is not None and not self._has_ended_key:
            await self._database.make_index(ENDED_KEY)
            self._has_ended_key = True

    async def _finish_cancel(self, batch: Batch) -> int:
        moved, more = 0, True
        while more:
            count, more = await self._write(partial(operate.cancel_chunk, batch_id=batch.id))
            moved += count
        return moved

    async def _write(self, body: Callable[[Transaction], T]) -> T:
        return await self._database.write(body, patience=OPERATOR_PATIENCE, announce=True)
