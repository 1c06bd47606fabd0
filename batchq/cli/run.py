"""`batchq run`: enqueue, worker and collect in one process; run again, it resumes."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchq.cli.collect import exit_code, report
from batchq.cli.enqueue import checked_name, refuse_bad_name
from batchq.cli.limit import LimitsAsked, asked_limits, limit_options
from batchq.cli.options import (
    DURATION,
    HELP_NAMES,
    MAX_CONCURRENCY,
    command_class,
    command_line,
    database_path,
    db_option,
    settings_of,
)
from batchq.cli.request_options import Asked, policy_of, request_options, say_policy, surveyed
from batchq.cli.worker import lease_in_ms
from batchq.display.messages import say
from batchq.display.text import plural

if TYPE_CHECKING:
    from batchq.config import Settings
    from batchq.coordinator import Collected
    from batchq.discovery import FoundWorker
    from batchq.jobs import Batch, NewBatch
    from batchq.producer import Policy
    from batchq.runner import RunnerOptions
    from batchq.store import Store
    from batchq.survey import Survey
    from batchq.worker import Endpoint


@click.command(cls=command_class(), context_settings=HELP_NAMES, short_help="Enqueue, work and collect in one.")
@click.argument("source", metavar="INPUT")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, metavar="FILE", help="Where to.")
@click.option("--batch", metavar="NAME", help="The batch's name; else the file's, with a hash of the settings.")
@click.option(
    "-c", "--concurrency", type=click.IntRange(1, MAX_CONCURRENCY), default=16, show_default=True, help="Calls at once."
)
@click.option("--base-url", metavar="URL", help="The server of the endpoint `default`, instead of OpenRouter.")
@click.option("--api-key-file", type=click.Path(path_type=Path), metavar="FILE", help="A file that holds its key.")
@click.option("--lease", type=DURATION, default="60s", show_default=True, help="How long a claim lasts unless renewed.")
@click.option("--drain-timeout", type=DURATION, default="120s", show_default=True, help="Time to finish after Ctrl-C.")
@click.option("--with-prompt", is_flag=True, help="Put each prompt beside its result.")
@click.option("--strict", is_flag=True, help="Exit with 3 if any job failed or was cancelled.")
@click.option("--force", is_flag=True, help="Overwrite FILE even if it does not hold results.")
@request_options
@limit_options
@db_option
def run(
    source: str,
    out: Path,
    *,
    batch: str | None,
    concurrency: int,
    base_url: str | None,
    api_key_file: Path | None,
    lease: float,
    drain_timeout: float,
    with_prompt: bool,
    strict: bool,
    force: bool,
    db: str | None,
    **options: Any,  # noqa: ANN401
) -> int:
    """Run the prompts of INPUT and write the answers to FILE, in order; run it again to resume.

    \b
    batchq run prompts.jsonl -o answers.jsonl --model openai/gpt-4o-mini
    batchq run reviews.csv -o labels.jsonl --prompt-field text --system "Positive or negative?"
    """
    from batchq.coordinator import check_output
    from batchq.process import run_event_loop
    from batchq.producer import run_name
    from batchq.runner import RunnerOptions

    limits = asked_limits(options)
    asked, path = Asked(**options), None if source == "-" else Path(source)
    _spare(out, path, asked.skip_bad)
    name = checked_name(batch, path)
    settings = settings_of(db=db, base_url=base_url, api_key_file=api_key_file)
    check_output(out, overwrite=force, database=database_path(settings))
    endpoint = settings.require_endpoint(asked.endpoint)
    workers = _ready_workers(asked.worker, endpoint)
    runs = RunnerOptions(concurrency, lease_in_ms(lease), drain_timeout, until_empty=True)
    with surveyed(path, asked, settings) as (survey, unnamed):
        new = replace(unnamed, name=name if batch else run_name(name, unnamed))
        refuse_bad_name(new.name)
        work = partial(_enqueue_and_work, settings, survey, new, policy_of(asked), limits, workers, endpoint, runs)
        code = _work_off(work, new, db)
    if code:
        say(f"batchq: {new.name} is kept as it is; the same command goes on with it")
        return code
    collected = run_event_loop(lambda: _write(settings, new.name, out, with_prompt=with_prompt))
    report(collected, out, db)
    return exit_code(collected, strict=strict)


def _work_off(main: Callable[[], Coroutine[Any, Any, int]], new: NewBatch, db: str | None) -> int:
    """Run `main`; where it can't go on, say also how to take it up again, and what there is by then."""
    from batchq.errors import CannotGoOn
    from batchq.log import set_up_logging
    from batchq.process import run_event_loop

    set_up_logging("warning")
    try:
        return run_event_loop(main)
    except CannotGoOn as error:
        collect = command_line("collect", new.name, "--no-wait", "-o", "FILE", db=db)
        raise CannotGoOn(f"{error}; then run the same command again. What is done by now: {collect}") from error


def _ready_workers(reference: str, endpoint: Endpoint) -> dict[str, FoundWorker]:
    """Find the worker, and raise ConfigurationError before anything is enqueued where it could not be opened."""
    from batchq.process import gather_workers

    workers = gather_workers([reference])
    for worker in workers.values():
        worker.check(endpoint)
    return workers


def _spare(out: Path, source: Path | None, skip_bad: Path | None) -> None:
    """Raise a usage error where the results would replace the input, or the bad rows that were set aside."""
    from batchq.formats import same_file

    if source is not None and same_file(out, source):
        raise click.UsageError(f"{out} is the input itself: name another file with -o")
    if skip_bad is not None and same_file(out, skip_bad):
        raise click.UsageError(f"{out} can't hold both the results (-o) and the bad rows (--skip-bad)")


async def _enqueue_and_work(
    settings: Settings,
    survey: Survey,
    new: NewBatch,
    policy: Policy,
    limits: LimitsAsked,
    workers: dict[str, FoundWorker],
    endpoint: Endpoint,
    options: RunnerOptions,
) -> int:
    from batchq.coordinator import wait_until_finished
    from batchq.display.progress import show_progress
    from batchq.process import beside, run_until_interrupted
    from batchq.producer import enqueue
    from batchq.runner import Runner
    from batchq.store import open_store

    async with await open_store(settings.db, create=True, on_locked=lambda why: say(f"batchq: {why}")) as store:
        setter = limits.setter(store, new.worker, endpoint.base_url, new.model)
        done = await enqueue(store, survey, new, whole=True, policy=policy, before_adding=setter)
        say_policy(done)
        retried = await _retry_what_may_pass(store, done.batch)
        say(
            f"batchq: {done.batch.name} in {store.location}: {plural(done.total, 'job')}"
            + (f", {done.skipped:,} there already" if done.skipped else "")
            + (f", {retried:,} failed ones tried again" if retried else "")
        )
        options = replace(options, batch_ids=frozenset([done.batch.id]))
        with show_progress(store.location) as update:

            async def watch() -> None:
                await wait_until_finished(store, done.batch.name, on_progress=update)

            runner = Runner(store, workers, {endpoint.name: endpoint}, options)
            return await beside(lambda: run_until_interrupted(runner, say), watch)


async def _retry_what_may_pass(store: Store, batch: Batch) -> int:
    """Send failed jobs back whose reason may have passed; not those whose request was refused."""
    from batchq.settlement import REFUSED_CLASSES

    groups = await store.errors(batch)
    again = [group.error_class for group in groups if group.error_class not in REFUSED_CLASSES]
    return sum([await store.retry(batch, error_class=name) for name in again])


async def _write(settings: Settings, name: str, out: Path, *, with_prompt: bool) -> Collected:
    from batchq.coordinator import write_results
    from batchq.errors import CannotGoOn
    from batchq.store import open_store
    from batchq.waiting import why_waiting

    async with await open_store(settings.db) as store:
        progress = await store.progress(name)
        if not progress.finished:
            why = why_waiting(progress, store.location) or "run it again to go on with it"
            raise CannotGoOn(f"{name} has {plural(progress.counts.live, 'unfinished job')}: {why}")
        return await write_results(store, name, out, with_prompt=with_prompt)
