"""`batchq status`: the batches with their spend and errors, the workers, the lanes, and why what waits is waiting."""

from __future__ import annotations

import json

import click

from batchq.cli.naming import batch_argument
from batchq.cli.opening import open_queue
from batchq.cli.options import DURATION, HELP_NAMES, command_class, database_of, db_option, json_option, run_async
from batchq.cli.status_view import json_of, lines_of
from batchq.escapes import clean

LEAST_SECONDS = 0.1


@click.command(cls=command_class(), context_settings=HELP_NAMES, short_help="Show batches, workers and what waits.")
@batch_argument(required=False)
@click.option(
    "--watch",
    is_flag=True,
    help="Show it again and again, with rates; a named batch until it is finished. Off a terminal: when it changes.",
)
@click.option("--interval", type=DURATION, default="1s", show_default=True, help="How often, with --watch.")
@db_option
@json_option
def status(name: str | None, *, watch: bool, interval: float, db: str | None, as_json: bool) -> None:
    """Show all batches, or the batch NAME: how far they are, who works on them, and why one waits.

    \b
    batchq status
    batchq status demo --watch
    batchq status --watch --json --interval 10s | jq .workers

    `batchq top` draws the same on the whole terminal.
    """  # fmt: skip
    require_interval(interval)
    location = database_of(db)
    if watch:
        from batchq.cli.status_watch import watch_status

        run_async(lambda: watch_status(location, name, interval, for_machines=as_json))
    else:
        run_async(lambda: _status(location, name, for_machines=as_json))


def require_interval(seconds: float) -> None:
    """Raise a usage error for what would ask the database all the time."""
    if seconds < LEAST_SECONDS:
        raise click.UsageError(f"--interval must be at least {LEAST_SECONDS * 1000:g}ms")


async def _status(location: str, name: str | None, *, for_machines: bool) -> None:
    from batchq.overview import look_at

    async with await open_queue(location) as store:
        found = await look_at(store, name)
    if for_machines:
        click.echo(json.dumps(json_of(found)))
    else:
        click.echo("\n".join(clean(line) for line in lines_of(found)))
