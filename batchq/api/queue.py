"""What applications do with a queue: all that the commands do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Self, TypeAlias

from batchq import operating
from batchq.api import enqueueing, working
from batchq.api.spool import Prompts
from batchq.api.workers import WorkerLike, WorkersLike
from batchq.collecting import Collected, Output, check_not_source, check_output, whole_results, write_results
from batchq.config import DEFAULT_ENDPOINT, load_settings
from batchq.coordinator import wait_until_finished, watch
from batchq.formats.template import PromptTemplate
from batchq.jobs import Attempt, Batch, ErrorGroup, Json, Lane, Progress, Result, RunnerInfo
from batchq.limits import change_limits, limits_given
from batchq.money import nano_dollars
from batchq.producer import Enqueued
from batchq.store import Store
from batchq.terms import DEFAULT_WORKER, Terms
from batchq.waiting import why_waiting

BatchLike: TypeAlias = str | Batch


class Queue:
    """A queue. A batch is meant by its name, or by a `Batch`; what there is not raises UnknownBatch."""

    def __init__(self, store: Store) -> None:
        """Wrap an open store; `open_queue` is the way in."""
        self._store = store

    async def __aenter__(self) -> Self:
        """Return the queue."""
        return self

    async def __aexit__(self, *_exception: object) -> None:
        """Close the queue."""
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._store.close()

    @property
    def store(self) -> Store:
        """The store beneath: every statement that is sent to the database."""
        return self._store

    @property
    def location(self) -> str:
        """The absolute path of the database."""
        return self._store.location

    # Producing.

    async def enqueue(
        self,
        prompts: Prompts,
        *,
        batch: str,
        worker: WorkerLike = DEFAULT_WORKER,
        endpoint: str = DEFAULT_ENDPOINT,
        model: str | None = None,
        system: str | None = None,
        params: Mapping[str, Json] | None = None,
        schema: Mapping[str, Json] | type | None = None,
        schema_tries: int | None = None,
        samples: int = 1,
        template: str | PromptTemplate | None = None,
        prompt_field: str | None = None,
        id_field: str | None = None,
        image_field: str | None = None,
        input_format: str | None = None,
        dedupe: bool = False,
        reuse: bool = False,
        priority: int | None = None,
        max_attempts: int | None = None,
        call_timeout: float | None = None,
        budget: Decimal | float | None = None,
        allow_unknown_cost: bool | None = None,
        allow_truncated: bool | None = None,
        keep_response: bool | None = None,
        seal: bool = True,
    ) -> Enqueued:
        """Add prompts to a batch, which is made if it is not there; what is there already is skipped.

        `prompts` are strings, request dicts (`{"prompt"}`, `{"messages"}`, OpenAI Batch lines) or lists of
        messages, from any iterable, async or not; a table; or a file, by its Path. `schema` is a JSON Schema or a
        Pydantic model. `call_timeout` is in seconds, `budget` in US dollars. All is checked before anything is
        written. Options that are None change nothing of a batch that is there. With `seal=False` more may follow.

        Raises BadInput for what is no prompt, BatchConflict for rows or settings that contradict the batch.
        """
        answerer = enqueueing.answerer_of(self._store, worker)
        policy = enqueueing.policy_of(
            priority, max_attempts, call_timeout, budget, allow_unknown_cost, allow_truncated, keep_response
        )
        terms = Terms(
            answerer.name, endpoint, system, params or {}, enqueueing.schema_given(schema), schema_tries, samples,
            answerer.settings, policy,
        )  # fmt: skip
        order = enqueueing.Order(
            batch,
            terms,
            model,
            answerer.default_model,
            answerer.needs_model,
            enqueueing.thrift_of(dedupe=dedupe, reuse=reuse),
            enqueueing.reading_of(prompt_field, id_field, image_field, template, input_format),
            seal,
        )
        return await enqueueing.enqueue(self._store, prompts, order)

    async def seal(self, batch: BatchLike) -> None:
        """Say that a batch is complete, so that it can finish."""
        await self._store.seal(await self._find(batch))

    # Working.

    async def work(
        self,
        workers: WorkersLike | None = None,
        *,
        concurrency: int = 16,
        until_empty: bool = True,
        batches: Iterable[BatchLike] | None = None,
        base_url: str | None = None,
        api_key_file: Path | None = None,
        lease: float = 60.0,
    ) -> None:
        """Run jobs in this process, until nothing is left that it serves or, without `until_empty`, for good.

        `workers` are functions, Plugins or references (`openrouter`, `module:function`); a mapping names each as
        batches call it; None is all installed ones. `batches` narrows it. Keys come from the settings; `lease` is
        in seconds. No signal is handled: a cancellation gives back what is held, at once.

        Raises CannotGoOn where what is left can't run until somebody acts, ConfigurationError where a key or a
        worker is missing.
        """
        names = None if batches is None else [_name(batch) for batch in batches]
        options = await working.runner_options(self._store, concurrency, lease, names, until_empty=until_empty)
        await working.work(self._store, workers, options, base_url=base_url, api_key_file=api_key_file)

    # Reading.

    async def batches(self) -> list[Batch]:
        """Return all batches, newest first."""
        return await self._store.batches()

    async def progress(self, batch: BatchLike) -> Progress:
        """Return where a batch stands."""
        return await self._store.progress(_name(batch))

    async def why_waiting(self, batch: BatchLike) -> str | None:
        """Return one sentence about what a batch waits for; None if it moves, or has ended."""
        return why_waiting(await self.progress(batch), self.location)

    def watch(self, batch: BatchLike) -> AsyncIterator[Progress]:
        """Yield where a batch stands until it is finished: at each change, and at least once a second."""
        return watch(self._store, _name(batch))

    async def wait(self, batch: BatchLike, timeout: float | None = None) -> Progress:  # noqa: ASYNC109
        """Return when every job of a batch has ended. Raises TimedOutWaiting after `timeout` seconds."""
        return await wait_until_finished(self._store, _name(batch), wait_timeout=timeout)

    async def results(self, batch: BatchLike, *, with_prompt: bool = False) -> AsyncIterator[Result]:
        """Yield every job of a batch as it stands now, in input order; `wait` first for what is final.

        `value` of a result is the answer itself. Raises Purged for a batch that is being deleted, also at the end
        where that has begun meanwhile.
        """
        async for result in whole_results(self._store, await self._find(batch), with_prompt=with_prompt):
            yield result

    async def job(self, batch: BatchLike, position: int) -> tuple[Result, list[Attempt]]:
        """Return one job with its prompt and its attempts, oldest first. Raises UsageError where there is none."""
        return await operating.find_job(self._store, _name(batch), position)

    async def errors(self, batch: BatchLike) -> list[ErrorGroup]:
        """Return a batch's failures by class, most frequent first, with an example each."""
        return await self._store.errors(await self._find(batch))

    async def runners(self) -> tuple[RunnerInfo, ...]:
        """Return the worker processes that did not say goodbye; `live` tells those that are at work."""
        return await self._store.runners()

    async def lanes(self) -> tuple[Lane, ...]:
        """Return the lanes that have limits, or ever had news."""
        return await self._store.lanes()

    async def collect(
        self,
        batch: BatchLike,
        path: str | Path,
        *,
        wait: bool = True,
        timeout: float | None = None,  # noqa: ASYNC109
        format: str | None = None,  # noqa: A002 - as Output calls it
        with_prompt: bool = False,
        with_input: Path | None = None,
        errors: Path | None = None,
        guard_formulas: bool = False,
        overwrite: bool = False,
    ) -> Collected:
        """Wait until a batch is finished, then write its results to a file, in input order.

        See `Output` for what may stand in it and beside it. The file appears whole or not at all; one that is there
        and holds no results is replaced only if `overwrite`. Raises UsageError where it can't be written,
        TimedOutWaiting after `timeout` seconds.
        """
        output = Output(Path(path), format, with_prompt, with_input, errors=errors, guard_formulas=guard_formulas)
        check_output(output, overwrite=overwrite, database=self._store.file)
        check_not_source(output, await self._find(batch))
        if wait:
            await self.wait(batch, timeout)
        return await write_results(self._store, _name(batch), output)

    # Operating.

    async def cancel(self, batch: BatchLike) -> int:
        """Cancel what a batch has not finished; return how many jobs."""
        return await self._store.cancel(await self._find(batch))

    async def retry(self, batch: BatchLike, error_class: str | None = None) -> int:
        """Send failed and cancelled jobs back, all or those of a class; return how many."""
        return await self._store.retry(await self._find(batch), error_class=error_class)

    async def pause(self, batch: BatchLike) -> None:
        """Start no more jobs of a batch. Raises UsageError for a cancelled one."""
        found = await self._find(batch)
        operating.refuse_cancelled(found, "`retry`")
        await self._store.pause(found)

    async def resume(self, batch: BatchLike | None = None) -> int:
        """Go on with a batch, also after a halt, or lift all halts; return how many lanes were reopened.

        Raises UsageError for a cancelled batch.
        """
        if batch is None:
            return await self._store.reopen_lanes()
        found = await self._find(batch)
        operating.refuse_cancelled(found, "`retry`")
        return await self._store.resume(found)

    async def purge(self, batch: BatchLike, *, force: bool = False) -> int:
        """Delete a batch with all its jobs; return how many. `force` takes one that is not finished, too."""
        found = await operating.find_purgeable(self._store, _name(batch), force=force)
        return await operating.purge(self._store, found)

    async def purge_finished(self, older_than: float) -> list[Batch]:
        """Delete the batches that have been finished for longer, in seconds, and return them."""
        found = await self._store.finished_before(round(older_than * 1000))
        for batch in found:
            await operating.purge(self._store, batch)
        return found

    async def set_limits(
        self,
        model: str,
        *,
        rpm: float | None = None,
        tpm: float | None = None,
        max_inflight: float | None = None,
        burst: float | None = None,
        worker: WorkerLike = DEFAULT_WORKER,
        endpoint: str = DEFAULT_ENDPOINT,
        base_url: str | None = None,
        forget: bool = False,
    ) -> Lane:
        """Set what a model may be asked, by all processes together, and return its lane; None leaves one as it is.

        `rpm` and `tpm` are per minute, `max_inflight` are calls at once, `burst` what may start at once; `math.inf`
        lifts a limit. `base_url` is that of the endpoint `default`. `forget` drops what 429s have taught.
        """
        changes = limits_given(rpm=rpm, tpm=tpm, max_inflight=max_inflight, burst=burst)
        url = load_settings(db=self.location, base_url=base_url).require_server(endpoint).base_url
        name = enqueueing.answerer_of(self._store, worker).name
        return await change_limits(self._store, name, url, model, changes, forget=forget)

    async def set_budget(self, batch: BatchLike, dollars: Decimal | float | None) -> Batch:
        """Change what a batch may cost, in US dollars, or lift the budget; return the batch as it is now."""
        nano = None if dollars is None else nano_dollars(dollars)
        return await self._store.update_policy(await self._find(batch), {"budget": nano})

    async def set_concurrency(self, calls: int, *, pid: int | None = None, host: str | None = None) -> int:
        """Let live worker processes make `calls` at once from now on, all or some; return how many were asked."""
        return await operating.set_concurrency(self._store, calls, pid=pid, host=host)

    async def _find(self, batch: BatchLike) -> Batch:
        return await self._store.batch(_name(batch))


def _name(batch: BatchLike) -> str:
    return batch if isinstance(batch, str) else batch.name
