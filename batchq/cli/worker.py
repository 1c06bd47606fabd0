"""`batchq worker`: run jobs until stopped."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from batchq.cli.log_options import log_options
from batchq.cli.options import (
    HELP_NAMES,
    command_class,
    concurrency_option,
    db_option,
    drain_option,
    insecure_option,
    lease_option,
    settings_of,
)
from batchq.display.text import plural

if TYPE_CHECKING:
    from batchq.cli.voice import Voice
    from batchq.config import Settings
    from batchq.discovery import FoundWorker
    from batchq.jobs import Batch
    from batchq.runner import RunnerOptions
    from batchq.store import Store

MIN_LEASE_SECONDS = 1.0
_SHOWN_BATCHES = 10


@click.command(cls=command_class(), context_settings=HELP_NAMES, short_help="Run jobs; start as many as you like.")
@concurrency_option
@click.option("--batch", "batches", multiple=True, metavar="NAME", help="Serve only this batch. Repeatable.")
@click.option(
    "--worker",
    "references",
    multiple=True,
    metavar="NAME",
    help="Serve this worker: installed, module:function or script.py:function. Repeatable.  [default: all installed]",
)
@click.option("--base-url", metavar="URL", help="The server of the endpoint `default`, instead of OpenRouter.")
@insecure_option
@click.option("--api-key-file", type=click.Path(path_type=Path), metavar="FILE", help="A file that holds its key.")
@click.option("--until-empty", is_flag=True, help="End when nothing is left to do: 0, or 5 if what is left is stuck.")
@lease_option
@drain_option
@log_options(default="info")
@db_option
def worker(
    concurrency: int | None,
    batches: tuple[str, ...],
    references: tuple[str, ...],
    *,
    base_url: str | None,
    insecure: bool,
    api_key_file: Path | None,
    until_empty: bool,
    lease: float | None,
    drain_timeout: float | None,
    log_level: str | None,
    log_format: str | None,
    db: str | None,
) -> int:
    """Run the jobs of all batches that this process can serve, until stopped.

    \b
    batchq worker --concurrency 16
    batchq worker --worker script.py:function --until-empty
    batchq worker --base-url http://127.0.0.1:8000/v1

    Ctrl-C or SIGTERM once: finish what runs and end. Twice: give it back at once.
    """  # fmt: skip
    from batchq.cli.voice import start_logging
    from batchq.dump import dump_threads_from_now_on
    from batchq.errors import BatchqError
    from batchq.process import gather_workers, run_event_loop
    from batchq.runner import RunnerOptions
    from batchq.telemetry.exporting import exporting

    require_lease(lease)
    dump_threads_from_now_on()
    voice = start_logging(log_level or "info", log_format or "auto")
    try:
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
        voice = start_logging(settings.log_level, settings.log_format)
        options = RunnerOptions(settings.concurrency, round(settings.lease * 1000), settings.drain_timeout, until_empty)
        workers = gather_workers(references)
        with exporting(os.environ):
            return run_event_loop(lambda: _serve(voice, settings, workers, options, batches))
    except BatchqError as error:
        return voice.failed(error)


def require_lease(seconds: float | None) -> None:
    """Raise a usage error for a lease too short to be renewed in time."""
    if seconds is not None and seconds < MIN_LEASE_SECONDS:
        raise click.UsageError(f"--lease must be at least {MIN_LEASE_SECONDS:g}s")


async def _serve(
    voice: Voice,
    settings: Settings,
    workers: dict[str, FoundWorker],
    options: RunnerOptions,
    names: tuple[str, ...],
) -> int:
    from dataclasses import replace

    from batchq.database import database_file
    from batchq.process import check_keys, gather_endpoints, run_until_signalled
    from batchq.runner import Runner
    from batchq.store import open_store
    from batchq.supervision import watch_over
    from batchq.supervision.watches import watches_of

    endpoints = gather_endpoints(settings)
    on_locked = lambda why: voice.say(f"batchq: {why}")  # noqa: E731
    file = database_file(settings.db)
    is_new = file is not None and not file.exists()
    async with await open_store(settings.db, create=not names, on_locked=on_locked) as store:
        if is_new:
            voice.say(f"batchq: there was no queue at {file}: it was made, and is empty")
        await store.refuse_moved()
        if names:
            options = replace(options, batch_ids=frozenset([(await store.batch(name)).id for name in names]))
        await _announce(voice, store, settings, workers, options)
        advice = partial(_advise, workers)
        await check_keys(store, workers, endpoints, options.batch_ids, advice=advice)
        runner = Runner(store, workers, endpoints, options)
        watch_over(runner, watches_of(os.environ, runner.identity))
        return await run_until_signalled(runner, voice.say)


async def _announce(
    voice: Voice, store: Store, settings: Settings, workers: dict[str, FoundWorker], options: RunnerOptions
) -> None:
    """Say where this process works, what it will serve, with counts, and what it leaves alone, and why."""
    from batchq.cli.servers import named_elsewhere, servers_of
    from batchq.process import live_batches

    voice.serving(store.location, options.concurrency, list(workers))
    for called in servers_of(settings, named_elsewhere(settings)[:_SHOWN_BATCHES]):
        voice.say(f"batchq:   {called.told()}")
    live = await live_batches(store, options.batch_ids)
    problems = {batch.id: _why_not(batch, settings, workers) for batch in live}
    served = [batch for batch in live if problems[batch.id] is None]
    left_alone = [(batch, why) for batch in live if (why := problems[batch.id]) is not None]
    for batch in served[:_SHOWN_BATCHES]:
        voice.served(batch, (await store.progress(batch.name)).counts)
    if len(served) > _SHOWN_BATCHES:
        voice.say(f"batchq:   and {plural(len(served) - _SHOWN_BATCHES, 'batch')} more")
    for batch, why in left_alone[:_SHOWN_BATCHES]:
        voice.left_alone(batch, why)
    if len(left_alone) > _SHOWN_BATCHES:
        voice.say(f"batchq:   {plural(len(left_alone) - _SHOWN_BATCHES, 'batch')} more left alone")
    if not served:
        voice.empty(waiting=not options.until_empty)


def _advise(workers: dict[str, FoundWorker], batch: Batch) -> str:
    """Say how to serve other batches than the one that can't run."""
    others = [f"--worker {name}" for name in workers if name != batch.worker][:1]
    return f"; to serve other batches without it: {' or '.join([*others, '--batch NAME'])}"


def _why_not(batch: Batch, settings: Settings, workers: dict[str, FoundWorker]) -> str | None:
    """Return why this process leaves a batch alone; None if it serves it."""
    if batch.worker not in workers:
        return f"it needs --worker {batch.worker}"
    if batch.endpoint not in settings.known_endpoints():
        return settings.unknown_endpoint(batch.endpoint)
    return None
