"""`batchq run`: enqueue, worker and collect in one process; run again, it resumes."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchq.cli.collected import exit_code, report
from batchq.cli.enqueue import checked_name
from batchq.cli.limit import LimitsAsked, asked_limits, limit_options
from batchq.cli.log_options import log_options
from batchq.cli.opening import open_queue
from batchq.cli.options import (
    HELP_NAMES,
    command_class,
    command_line,
    concurrency_option,
    database_path,
    db_option,
    drain_option,
    insecure_option,
    json_option,
    lease_option,
    quiet_option,
    settings_of,
)
from batchq.cli.output_options import output_options, output_options_of
from batchq.cli.request_options import (
    Asked,
    batch_name,
    policy_of,
    request_options,
    say_policy,
    surveyed,
    thrift_of,
    told_thrift,
)
from batchq.cli.run_outputs import outputs_of, spare_input
from batchq.cli.servers import named_elsewhere, servers_of
from batchq.cli.worker import require_lease
from batchq.display.messages import is_quiet, say
from batchq.display.text import plural

if TYPE_CHECKING:
    from batchq.collecting import Collected, Output
    from batchq.config import Settings
    from batchq.discovery import FoundWorker
    from batchq.generations import Synchronised
    from batchq.jobs import Batch, Json, NewBatch
    from batchq.runner import RunnerOptions
    from batchq.store import Store
    from batchq.survey import Survey
    from batchq.worker import Endpoint

_KEEP_SECONDS = 2.0


@click.command(cls=command_class(), context_settings=HELP_NAMES, short_help="Enqueue, work and collect in one.")
@click.argument("source", metavar="INPUT")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, metavar="FILE",
    help="Where to; with several models, {model} in it stands for each.",
)  # fmt: skip
@click.option("--batch", metavar="NAME", help="The batch's name; else the file's, with a hash of the settings.")
@click.option("--fresh", is_flag=True, help="Ask everything again, whatever was answered before.")
@concurrency_option
@click.option("--base-url", metavar="URL", help="The server of the endpoint `default`, instead of OpenRouter.")
@insecure_option
@click.option("--api-key-file", type=click.Path(path_type=Path), metavar="FILE", help="A file that holds its key.")
@lease_option
@drain_option
@output_options
@click.option("--strict", is_flag=True, help="Exit with 3 if any job failed or was cancelled.")
@click.option("--force", is_flag=True, help="Overwrite FILE even if it does not hold results.")
@log_options(default="warning")
@request_options
@limit_options
@db_option
@json_option
@quiet_option
def run(
    source: str,
    out: Path,
    *,
    batch: str | None,
    fresh: bool,
    concurrency: int | None,
    base_url: str | None,
    insecure: bool,
    api_key_file: Path | None,
    lease: float | None,
    drain_timeout: float | None,
    strict: bool,
    force: bool,
    log_level: str | None,
    log_format: str | None,
    db: str | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> int:
    """Run the prompts of INPUT and write the answers to FILE, in order; run it again to resume.

    \b
    batchq run prompts.jsonl -o answers.jsonl --model openai/gpt-4o-mini
    batchq run reviews.csv -o labels.csv --prompt "Positive or negative? {{ text }}" --with-input reviews.csv

    Where INPUT has changed, only what is new in it is asked.
    """
    from batchq.collecting import check_output
    from batchq.runner import RunnerOptions
    from batchq.terms import server_setting

    limits, shape = asked_limits(options), output_options_of(options)
    asked, path = Asked(**options), None if source == "-" else Path(source)
    outputs = outputs_of(out, asked, shape)
    name = checked_name(batch, path)
    require_lease(lease)
    settings = settings_of(
        db=db,
        base_url=base_url,
        insecure=insecure or None,
        api_key_file=api_key_file,
        concurrency=concurrency,
        lease=lease,
        drain_timeout=drain_timeout,
        log_level=log_level,
        log_format=log_format,
    )
    for output in outputs:
        spare_input(output, path, asked.skip_bad)
        check_output(output, overwrite=force, database=database_path(settings))
    endpoint = settings.require_endpoint(asked.endpoint)
    settings.refuse_insecure(endpoint)
    for called in servers_of(settings, {asked.endpoint}.intersection(named_elsewhere(settings))):
        say(f"batchq: {called.told()}")
    workers = _ready_workers(asked.worker, endpoint)
    runs = RunnerOptions(settings.concurrency, round(settings.lease * 1000), settings.drain_timeout, until_empty=True)
    with surveyed(path, asked, settings) as (survey, unnamed):
        own = next(iter(workers.values()))
        server = server_setting(endpoint.base_url)
        full = [_with_own(item, own, asked.models, server) for item in unnamed]
        new = [_named(item, name, asked.models, given=batch is not None) for item in full]
        work = _Work(settings, survey, new, asked, limits, workers, endpoint, runs, fresh)
        code = work.run(db)
    if code:
        for found in work.batches:
            say(f"batchq: {found.name} is kept as it is; the same command goes on with it")
        return code
    return max(
        _collect(work, found.name, output, db, strict=strict, as_json=as_json)
        for output, found in zip(outputs, work.batches, strict=True)
    )


def _collect(work: _Work, name: str, output: Output, db: str | None, *, strict: bool, as_json: bool) -> int:
    """Write what a batch has come to and say so; return the exit code that this means."""
    from batchq.process import run_event_loop

    collected = run_event_loop(partial(_write, work.settings, name, output))
    report(collected, output, db, as_json=as_json)
    return exit_code(collected, strict=strict)


def _with_own(new: NewBatch, worker: FoundWorker, models: tuple[str, ...], server: dict[str, Json]) -> NewBatch:
    """Return a batch with what its worker says of its requests (an agent's instructions, say), and its server."""
    model = new.model if models else worker.model or new.model
    return replace(new, model=model, settings={**worker.settings, **new.settings, **server})


def _named(new: NewBatch, stem: str, models: tuple[str, ...], *, given: bool) -> NewBatch:
    from batchq.producer import run_name
    from batchq.terms import check_name

    name = batch_name(stem, new, models)
    named = replace(new, name=name if given else run_name(name, new))
    check_name(named.name)
    return named


def _ready_workers(reference: str, endpoint: Endpoint) -> dict[str, FoundWorker]:
    """Find the worker, and raise ConfigurationError before anything is enqueued where it could not be opened."""
    from batchq.process import gather_workers

    workers = gather_workers([reference])
    for worker in workers.values():
        worker.check(endpoint)
    return workers


@dataclass(slots=True)
class _Work:
    """Enqueues, and runs what was enqueued to its end."""

    settings: Settings
    survey: Survey
    new: list[NewBatch]
    asked: Asked
    limits: LimitsAsked
    workers: dict[str, FoundWorker]
    endpoint: Endpoint
    options: RunnerOptions
    fresh: bool
    batches: list[Batch] = field(default_factory=list)

    def run(self, db: str | None) -> int:
        """Return the exit code; where it can't go on, say also how to take it up again, and what there is by then."""
        from batchq.errors import CannotGoOn
        from batchq.log import set_up_logging
        from batchq.process import run_event_loop
        from batchq.telemetry.exporting import exporting

        level = self.settings.log_level if "log_level" in self.settings.model_fields_set else _usual_level()
        set_up_logging(level, json_lines={"json": True, "text": False}.get(self.settings.log_format))
        try:
            with exporting(os.environ):
                return run_event_loop(self._enqueue_and_work)
        except CannotGoOn as error:
            name = self.batches[0].name if self.batches else self.new[0].name
            collect = command_line("collect", name, "--no-wait", "-o", "FILE", db=db)
            raise CannotGoOn(f"{error}; then run the same command again. What is done by now: {collect}") from error

    async def _enqueue_and_work(self) -> int:
        from batchq.process import beside, run_until_interrupted
        from batchq.runner import Runner

        on_locked = lambda why: say(f"batchq: {why}")  # noqa: E731
        async with await open_queue(self.settings.db, create=True, on_locked=on_locked) as store:
            for new in self.new:
                done = await beside(partial(self._synchronise, store, new), partial(self._keep_wanted, store))
                self.batches.append(done.batch)
                _tell(done, store)
            options = replace(self.options, batch_ids=frozenset(batch.id for batch in self.batches))
            runner = Runner(store, self.workers, {self.endpoint.name: self.endpoint}, options)
            return await self._watched(store, partial(run_until_interrupted, runner, say))

    async def _synchronise(self, store: Store, new: NewBatch) -> Synchronised:
        from batchq.generations import Wishes, synchronise

        setter = self.limits.setter(store, new.worker, self.endpoint.base_url, new.model)
        on_waiting = lambda why: say(f"batchq: {why}")  # noqa: E731
        wishes = Wishes(policy_of(self.asked), thrift_of(self.asked), self.fresh, setter, on_waiting)
        return await synchronise(store, self.survey, new, wishes)

    async def _keep_wanted(self, store: Store) -> None:
        """Keep others from taking the place of the batches that are there already, until their runner starts."""
        import anyio

        while True:
            for batch in self.batches:
                await store.keep_alive(batch)
            await anyio.sleep(_KEEP_SECONDS)

    async def _watched(self, store: Store, main: Callable[[], Coroutine[Any, Any, int]]) -> int:
        """Run `main` and show how far the batches are."""
        from batchq.coordinator import wait_until_finished
        from batchq.display.progress import show_progress
        from batchq.process import beside

        with show_progress(store.location) as update:

            async def watch() -> None:
                for batch in self.batches:
                    await wait_until_finished(store, batch.name, on_progress=update)

            return await beside(main, watch)


def _tell(found: Synchronised, store: Store) -> None:
    done = found.enqueued
    say_policy(done)
    parts = [plural(done.total, "job")]
    if done.skipped:
        parts.append(f"{done.skipped:,} there already")
    if found.revived:
        parts.append(f"{found.revived:,} cancelled ones taken up again")
    if found.retried:
        parts.append(f"{found.retried:,} failed ones tried again")
    parts += told_thrift(done)
    say(f"batchq: {done.batch.name} in {store.location}: {', '.join(parts)}")
    for name in found.superseded:
        say(f"batchq: {name}, which had other rows, is cancelled: {done.batch.name} takes its place")


def _usual_level() -> str:
    return "error" if is_quiet() else "warning"


async def _write(settings: Settings, name: str, output: Output) -> Collected:
    from batchq.collecting import write_results
    from batchq.errors import CannotGoOn
    from batchq.waiting import why_waiting

    async with await open_queue(settings.db) as store:
        progress = await store.progress(name)
        if not progress.finished:
            why = why_waiting(progress, store.location) or "run it again to go on with it"
            raise CannotGoOn(f"{name} has {plural(progress.counts.live, 'unfinished job')}: {why}")
        return await write_results(store, name, output)
