"""`batchq status`: the batches with their spend and errors, the workers, the lanes, and why what waits is waiting."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from batchq.cli.opening import open_queue
from batchq.cli.options import HELP_NAMES, command_class, database_of, db_option, json_option, run_async
from batchq.cli.status_view import Status, json_of, lines_of
from batchq.display.messages import is_terminal
from batchq.escapes import clean

if TYPE_CHECKING:
    from batchq.store import Store

SHOWN_BATCHES = 100
SHOWN_WITH_ERRORS = 10
WATCH_SECONDS = 1.0
_CLEAR = "\x1b[H\x1b[J"


@click.command(cls=command_class(), context_settings=HELP_NAMES, short_help="Show batches, workers and what waits.")
@click.argument("name", required=False)
@click.option("--watch", is_flag=True, help="Show it again each second; a named batch until it is finished.")
@db_option
@json_option
def status(name: str | None, *, watch: bool, db: str | None, as_json: bool) -> None:
    """Show all batches, or the batch NAME: how far they are, who works on them, and why one waits."""
    location = database_of(db)
    run_async(lambda: _status(location, name, watch=watch, for_machines=as_json))


async def _status(location: str, name: str | None, *, watch: bool, for_machines: bool) -> None:
    import anyio

    async with await open_queue(location) as store:
        while True:
            found = await read_status(store, name)
            _print(found, for_machines=for_machines, clear=watch and is_terminal(sys.stdout))
            if not watch or (name is not None and found.batches[0].finished):
                return
            await anyio.sleep(WATCH_SECONDS)


async def read_status(store: Store, name: str | None) -> Status:
    """Read the batch of that name, or all unfinished and the newest other ones."""
    older = 0
    if name is not None:
        names = [name]
    else:
        batches = await store.batches()
        left = await store.unfinished()
        live = {batch.id for batch in (*(found.batch for found in left.live), *left.unsealed)}
        names = [batch.name for index, batch in enumerate(batches) if index < SHOWN_BATCHES or batch.id in live]
        older = len(batches) - len(names)
    found = tuple([await store.progress(each) for each in names])
    runners = tuple(runner for runner in await store.runners() if runner.live)
    failing = [progress.batch for progress in found if progress.counts.failed][:SHOWN_WITH_ERRORS]
    errors = {batch.name: tuple(await store.errors(batch)) for batch in failing}
    now = max((progress.now for progress in found), default=0)
    lanes, moved_to = await store.lanes(), await store.moved_to()
    return Status(store.location, found, older, runners, lanes, errors, now, moved_to)


def _print(found: Status, *, for_machines: bool, clear: bool) -> None:
    if for_machines:
        click.echo(json.dumps(json_of(found)))
        return
    text = "\n".join(clean(line) for line in lines_of(found))
    click.echo((_CLEAR if clear else "") + text)
