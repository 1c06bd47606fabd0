"""What is asked of a queue without changing it: each method one short read, or pages of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path

from batchq.database import Database, Inspection, Watcher, inspect_database
from batchq.database.moving import queue_moved
from batchq.database.version import read_moved_to
from batchq.errors import UnknownBatch
from batchq.jobs import (
    Attempt,
    Batch,
    BatchTotals,
    EndedPage,
    ErrorGroup,
    FinishedPage,
    FinishedPlace,
    Lane,
    NewJob,
    Overview,
    Progress,
    Result,
    RunnerInfo,
    Unfinished,
)
from batchq.store import adding, audit, enqueue, finished, measures, operate, overview, results, runners, unfinished
from batchq.store.audit import Audit
from batchq.store.damage import naming
from batchq.store.lanes import read_lanes

PAGE_ROWS = 500
KEYS_PAGE_ROWS = 5_000
MEASURE_PATIENCE = 1.0
SHOWN_UNFINISHED = 1_000
SHOWN_BATCHES = 100


class Reading:
    """The reading half of `Store`."""

    def __init__(self, database: Database) -> None:
        """Wrap an open database."""
        self._database = database

    @property
    def location(self) -> str:
        """What people call the database: an absolute path, or a URL without its password."""
        return self._database.location

    @property
    def file(self) -> Path | None:
        """The file of the database; None for one on a server."""
        return self._database.file

    @property
    def upgraded_from(self) -> int | None:
        """The schema version that the database had, if it was upgraded when it was opened here."""
        return self._database.upgraded_from

    def watch(self, notice: Callable[[], None] | None = None) -> Watcher:
        """Return what tells one waiter whether anybody, also this process, may have committed; the caller closes it.

        `notice` is called as soon as others tell of new work, on PostgreSQL.
        """
        return self._database.watch(notice)

    async def moved_to(self) -> str | None:
        """Return the place that the queue was moved to, or is being copied to, without password; None if it is here.

        Which of the two it is only the other place knows.
        """
        return await self._database.read(read_moved_to)

    async def refuse_moved(self) -> None:
        """Raise QueueMoved where the queue was moved away: it is only read here."""
        if (place := await self.moved_to()) is not None:
            raise queue_moved(self.location, place)

    async def unfinished(self) -> Unfinished:
        """Return all that is left to do, and the lanes that it goes through, as of one moment."""
        return await self._database.read(unfinished.read_unfinished)

    async def existing_jobs(self, batch: Batch, chunk: Sequence[NewJob]) -> dict[object, adding.Existing]:
        """Return what the batch holds under the chunk's custom_ids, or positions."""
        return await self._database.read(partial(adding.existing_jobs, batch_id=batch.id, chunk=chunk))

    async def has_custom_ids(self, batch: Batch) -> bool | None:
        """Whether the batch's jobs have custom_ids; None while it has no jobs."""
        return await self._database.read(partial(enqueue.has_custom_ids, batch_id=batch.id))

    async def first_keys(self, batch_ids: Sequence[int]) -> dict[int, str]:
        """Return the key of the first job of each batch that has one."""
        return await self._database.read(partial(adding.first_keys, batch_ids=batch_ids))

    async def generations(self, base: str) -> list[Batch]:
        """Return the batches named `base`, `base~2`, `base~3`, …, newest first."""
        return await self._database.read(partial(enqueue.find_generations, base=base))

    async def keys(self, batch: Batch) -> AsyncIterator[adding.Existing]:
        """Yield the jobs of a batch that follow no other, in order, with their keys."""
        after = -1
        while page := await self._database.read(
            partial(adding.read_keys, batch_id=batch.id, after=after, limit=KEYS_PAGE_ROWS)
        ):
            for item in page:
                yield item
            after = page[-1].position

    async def find_batch(self, name: str) -> Batch | None:
        """Return the batch of that name, or None."""
        return await self._database.read(partial(enqueue.find_batch, name=name))

    async def batch(self, name: str) -> Batch:
        """Return the batch of that name. Raises UnknownBatch, naming the nearest."""
        found = await self.find_batch(name)
        if found is None:
            raise await self._unknown(name)
        return found

    async def batches(self) -> list[Batch]:
        """Return all batches, newest first."""
        return await self._database.read(enqueue.list_batches)

    async def progress(self, name: str, *, patience: float | None = None) -> Progress:
        """Return where a batch stands. Raises UnknownBatch.

        A server that is away is waited for, up to `patience` seconds, else for a minute.
        """
        found = await self._database.read(partial(results.read_progress, name=name), patience=patience)
        if found is None:
            raise await self._unknown(name)
        return found

    async def overview(
        self,
        name: str | None = None,
        *,
        unfinished: int = SHOWN_UNFINISHED,
        shown: int = SHOWN_BATCHES,
        patience: float | None = None,
    ) -> Overview:
        """Return the queue at one moment: up to so many unfinished batches and the newest ones, or the one of a name.

        Raises UnknownBatch. It costs the same however many batches and jobs have ended.
        """
        if name is None:
            body = partial(overview.read_overview, database=self.location, unfinished=unfinished, shown=shown)
            return await self._database.read(body, patience=patience)
        body_of = partial(overview.read_overview_of, database=self.location, name=name)
        found = await self._database.read(body_of, patience=patience)
        if found is None:
            raise await self._unknown(name)
        return found

    async def totals(self, *, patience: float | None = None) -> tuple[int, dict[int, BatchTotals]]:
        """Return the time of the database, and what each batch has come to."""
        return await self._database.read(measures.read_all_totals, patience=patience)

    async def ended(self, batch_id: int, place: FinishedPlace, since: int, limit: int = KEYS_PAGE_ROWS) -> EndedPage:
        """Return the next jobs of a batch that ended behind `place`, and their attempts that ended after `since`."""
        return await self._database.read(
            partial(measures.read_ended, batch_id=batch_id, place=place, since=since, limit=limit),
            patience=MEASURE_PATIENCE,
        )

    async def results(
        self,
        batch: Batch,
        *,
        with_prompt: bool = False,
        unique: bool = False,
        after: int = -1,
        page_rows: int = PAGE_ROWS,
    ) -> AsyncIterator[Result]:
        """Yield the jobs of a batch behind position `after` in input order, read in short pages.

        `unique` leaves out those that follow another one.
        """
        while True:
            body = partial(
                results.read_results,
                batch_id=batch.id,
                after=after,
                limit=page_rows,
                with_prompt=with_prompt,
                unique=unique,
            )
            with naming(batch):
                page = await self._database.read(body)
            for result in page:
                yield result
            if len(page) < page_rows:
                return
            after = page[-1].position

    async def finished(
        self, batch: Batch, place: FinishedPlace, *, page_rows: int = PAGE_ROWS, running: bool = False
    ) -> FinishedPage:
        """Return the next jobs that ended behind `place`, in that order, with those that follow them.

        There are up to `page_rows` of either kind: many followers of one job take several pages. What ended while
        the clock was set back, or was committed late, may stand before `place`; while the batch is `running`, what is
        being committed is left for the next time.
        """
        body = partial(finished.read_finished, batch_id=batch.id, place=place, limit=page_rows, running=running)
        with naming(batch):
            return await self._database.read(body)

    async def job(self, batch: Batch, position: int) -> tuple[Result, list[Attempt]] | None:
        """Return one job with its attempts; None if there is no such position."""
        with naming(batch):
            return await self._database.read(partial(results.read_job, batch_id=batch.id, position=position))

    async def errors(self, batch: Batch) -> list[ErrorGroup]:
        """Return the batch's failures by class, with an example each."""
        return await self._database.read(partial(results.read_errors, batch_id=batch.id))

    async def runners(self) -> tuple[RunnerInfo, ...]:
        """Return the runners that did not say goodbye."""
        return await self._database.read(runners.read_runners)

    async def holders(self, batch: Batch) -> frozenset[str]:
        """Return the ids of the runners that hold jobs of a batch under leases that have not run out."""
        return await self._database.read(partial(operate.holders, batch_id=batch.id))

    async def lanes(self) -> tuple[Lane, ...]:
        """Return the lanes that ever had news."""
        return await self._database.read(read_lanes)

    async def recount(self, batch: Batch) -> dict[str, int]:
        """Count a batch's jobs by state, row by row: what the tallies must agree with."""
        return await self._database.read(partial(results.recount, batch_id=batch.id))

    async def inspect(self) -> Inspection:
        """Look at the database as a whole; on SQLite this reads all of it."""
        return await self._database.read(inspect_database)

    async def audit(self, batch: Batch) -> Audit | None:
        """Count the rows of a batch in chunks, beside what is told of them; None where it is gone, or being purged."""
        found, after = None, -1
        while chunk := await self._database.read(partial(audit.read_chunk, batch_id=batch.id, after=after)):
            found = found or Audit(chunk.told, chunk.size)
            found.add(chunk)
            if chunk.last is None:
                return found
            after = chunk.last
        return None

    async def strays(self) -> tuple[list[int], int]:
        """Return the ids of batches that have jobs and do not exist, and how many jobs of the log do not."""
        batch_ids = await self._database.read(audit.read_stray_batches)
        count, after = 0, -1
        while page := await self._database.read(partial(audit.read_stray_log, after=after)):
            count, after = count + page[0], page[1]
        return batch_ids, count

    async def finished_before(self, age_ms: int) -> list[Batch]:
        """Return the batches that have been finished for longer than `age_ms`."""
        return await self._database.read(lambda tx: operate.finished_before(tx, tx.now - age_ms))

    async def _unknown(self, name: str) -> UnknownBatch:
        known = [batch.name for batch in await self.batches()]
        return UnknownBatch(_unknown_message(name, known, self.location))


def _unknown_message(name: str, known: list[str], location: str) -> str:
    import difflib

    if not known:
        return f"there is no batch {name!r}: {location} has none"
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "`batchq status` lists them"
    return f"there is no batch {name!r} in {location}; {hint}"
