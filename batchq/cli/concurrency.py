"""`batchq concurrency`: how many calls running workers make at once."""

from __future__ import annotations

import json

import click

from batchq.cli.opening import open_queue
from batchq.cli.options import (
    HELP_NAMES,
    MAX_CONCURRENCY,
    MAX_INTEGER,
    command_class,
    database_of,
    db_option,
    json_option,
    quiet_option,
    run_async,
)
from batchq.display.messages import say
from batchq.display.text import plural


@click.command(cls=command_class(), context_settings=HELP_NAMES, short_help="Change how many calls workers make.")
@click.argument("calls", type=click.IntRange(1, MAX_CONCURRENCY))
@click.option("--pid", type=click.IntRange(1, MAX_INTEGER), help="Only the worker with this process id.")
@click.option("--host", metavar="NAME", help="Only workers on this host.")
@db_option
@json_option
@quiet_option
def concurrency(calls: int, *, pid: int | None, host: str | None, db: str | None, as_json: bool) -> None:
    """Let running workers make CALLS calls at once from now on; each takes it over within seconds.

    \b
    batchq concurrency 32
    batchq concurrency 4 --pid 4711
    """
    from batchq.errors import UsageError

    changed = run_async(lambda: _change(database_of(db), calls, pid, host))
    if not changed:
        which = " like that" if pid or host else ""
        raise UsageError(f"there is no live worker{which}: `batchq status` lists them")
    say(f"batchq: {plural(changed, 'worker')} will make {plural(calls, 'call')} at once")
    if as_json:
        click.echo(json.dumps({"workers": changed, "concurrency": calls}))


async def _change(location: str, calls: int, pid: int | None, host: str | None) -> int:
    from batchq.operating import set_concurrency

    async with await open_queue(location) as store:
        return await set_concurrency(store, calls, pid=pid, host=host)
