"""`batchq worker`: run jobs until stopped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from batchq.cli.exits import say
from batchq.cli.options import DURATION, HELP_NAMES, command_class, db_option
from batchq.cli.text import plural

if TYPE_CHECKING:
    from batchq.config import Settings
    from batchq.runner import RunnerOptions
    from batchq.store import Store
    from batchq.worker import FoundWorker

MIN_LEASE_SECONDS = 1.0
_SHOWN_BATCHES = 10


@click.command(cls=command_class(), context_settings=HELP_NAMES, short_help="Run jobs; start as many as you like.")
@click.option("-c", "--concurrency", type=click.IntRange(min=1), default=16, show_default=True, help="Calls at once.")
@click.option("--batch", "batches", multiple=True, metavar="NAME", help="Serve only this batch. Repeatable.")
@click.option(
    "--worker",
    "references",
    multiple=True,
    metavar="NAME",
    help="Serve this worker: installed, module:function or script.py:function. Repeatable.  [default: all installed]",
)
@click.option("--base-url", metavar="URL", help="The server of the endpoint `default`, instead of OpenRouter.")
@click.option("--api-key-file", type=click.Path(path_type=Path), metavar="FILE", help="A file that holds its key.")
@click.option("--until-empty", is_flag=True, help="End when nothing is left to do: 0, or 5 if what is left is stuck.")
@click.option("--lease", type=DURATION, default="60s", show_default=True, help="How long a claim lasts unless renewed.")
@click.option(
    "--drain-timeout",
    type=DURATION,
    default="120s",
    show_default=True,
    help="How long calls may finish after the first Ctrl-C or SIGTERM.",
)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
@db_option
def worker(
    concurrency: int,
    batches: tuple[str, ...],
    references: tuple[str, ...],
    *,
    base_url: str | None,
    api_key_file: Path | None,
    until_empty: bool,
    lease: float,
    drain_timeout: float,
    log_level: str,
    db: str | None,
) -> int:
    """Run the jobs of all batches that this process can serve, until stopped.

    \b
    batchq worker --concurrency 16
    batchq worker --worker script.py:function --until-empty
    batchq worker --base-url http://127.0.0.1:8000/v1

    Ctrl-C or SIGTERM once: finish what runs and end. Twice: give it back at once.
    """  # fmt: skip
    from batchq.config import load_settings
    from batchq.log import set_up_logging
    from batchq.process import gather_workers, run_event_loop
    from batchq.runner import RunnerOptions

    settings = load_settings(db=db, base_url=base_url, api_key_file=api_key_file)
    options = RunnerOptions(concurrency, lease_in_ms(lease), drain_timeout, until_empty)
    workers = gather_workers(references)
    set_up_logging(log_level)
    return run_event_loop(lambda: _serve(settings, workers, options, batches))


def lease_in_ms(seconds: float) -> int:
    """Return a lease in ms; raise a usage error for one too short to be renewed in time."""
    if seconds < MIN_LEASE_SECONDS:
        raise click.UsageError(f"--lease must be at least {MIN_LEASE_SECONDS:g}s")
    return round(seconds * 1000)


async def _serve(
    settings: Settings, workers: dict[str, FoundWorker], options: RunnerOptions, names: tuple[str, ...]
) -> int:
    from dataclasses import replace

    from batchq.process import gather_endpoints, run_until_signalled
    from batchq.runner import Runner
    from batchq.store import open_store

    async with await open_store(settings.db, create=not names) as store:
        if names:
            options = replace(options, batch_ids=frozenset([(await store.batch(name)).id for name in names]))
        await _announce(store, workers, options)
        runner = Runner(store, workers, gather_endpoints(settings), options, lambda why: say(f"batchq: waiting: {why}"))
        return await run_until_signalled(runner, say)


async def _announce(store: Store, workers: dict[str, FoundWorker], options: RunnerOptions) -> None:
    """Say where this process works and what it will serve, with counts."""
    calls = plural(options.concurrency, "call")
    say(f"batchq: worker on {store.location}, {calls} at once, serving {', '.join(workers)}")
    live = [
        batch
        for batch, _, _ in await store.live_batches()
        if options.batch_ids is None or batch.id in options.batch_ids
    ]
    served = [batch for batch in live if batch.worker in workers]
    for batch in served[:_SHOWN_BATCHES]:
        counts = (await store.progress(batch.name)).counts
        state = "" if batch.state == "open" else f" ({batch.state})"
        say(f"batchq:   {batch.name}{state}: {counts.pending:,} pending, {counts.inflight:,} in flight")
    if len(served) > _SHOWN_BATCHES:
        say(f"batchq:   and {plural(len(served) - _SHOWN_BATCHES, 'batch')} more")
    for batch in live:
        if batch.worker not in workers:
            say(f"batchq:   {batch.name} is left alone: it needs --worker {batch.worker}")
    if not served:
        say("batchq:   empty" + ("" if options.until_empty else ", waiting"))
