"""`batchq purge`: delete batches with all that belongs to them."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from batchq.cli.exits import EXIT_FAILURE
from batchq.cli.naming import batch_argument
from batchq.cli.opening import open_queue
from batchq.cli.options import (
    DURATION,
    HELP_NAMES,
    command_class,
    database_of,
    db_option,
    json_option,
    quiet_option,
    run_async,
)
from batchq.display.messages import is_terminal, say
from batchq.display.text import one_line, plural

if TYPE_CHECKING:
    from batchq.jobs import Batch

_SHOWN_BATCHES = 10


@click.command(cls=command_class(), context_settings=HELP_NAMES, short_help="Delete batches and their results.")
@batch_argument(required=False)
@click.option("--older-than", type=DURATION, metavar="AGE", help="All batches finished for longer, e.g. 30d.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Also if jobs are unfinished.")
@db_option
@json_option
@quiet_option
def purge(name: str | None, *, older_than: float | None, yes: bool, force: bool, db: str | None, as_json: bool) -> int:
    """Delete the batch NAME, or all that finished long ago: jobs, results and the log of their attempts.

    \b
    batchq purge demo
    batchq purge --older-than 30d --yes

    It asks before; where nobody can be asked, it wants --yes.
    """  # fmt: skip
    if name is None and older_than is None:
        raise click.UsageError("name a batch, or give --older-than AGE")
    if name is not None and older_than is not None:
        raise click.UsageError(f"either the batch {name!r} or --older-than AGE, not both")
    location = database_of(db)
    chosen = run_async(lambda: _choose(location, name, older_than, force=force))
    if not chosen:
        say("batchq: no batch has been finished for that long")
        _print(chosen, as_json=as_json)
        return 0
    jobs = plural(sum(batch.size for batch in chosen), "job")
    if not (yes or _confirmed(f"Delete {_names(chosen)} with {jobs} for good?")):
        say("batchq: nothing was deleted")
        return EXIT_FAILURE
    run_async(lambda: _purge(location, chosen))
    say(f"batchq: deleted {plural(len(chosen), 'batch')} with {jobs}")
    _print(chosen, as_json=as_json)
    return 0


def _print(purged: list[Batch], *, as_json: bool) -> None:
    if as_json:
        names = [batch.name for batch in purged]
        click.echo(json.dumps({"purged": names, "jobs": sum(batch.size for batch in purged)}))


async def _choose(location: str, name: str | None, older_than: float | None, *, force: bool) -> list[Batch]:
    from batchq.operating import find_purgeable

    async with await open_queue(location) as store:
        if name is None:
            return await store.finished_before(round((older_than or 0) * 1000))
        return [await find_purgeable(store, name, force=force)]


async def _purge(location: str, chosen: list[Batch]) -> None:
    from batchq.operating import purge

    async with await open_queue(location) as store:
        for batch in chosen:
            await purge(store, batch)


def _confirmed(question: str) -> bool:
    """Ask on the terminal; its end (Ctrl-D) is a no, too."""
    if not is_terminal(sys.stdin):
        raise click.UsageError("purge asks before it deletes, and there is no terminal to ask on: give --yes")
    try:
        return click.confirm(question, err=True)
    except click.Abort as abort:
        if not isinstance(abort.__context__, EOFError):
            raise
        say("")
        return False


def _names(chosen: list[Batch]) -> str:
    shown = ", ".join(one_line(batch.name, 60) for batch in chosen[:_SHOWN_BATCHES])
    return shown if len(chosen) <= _SHOWN_BATCHES else f"{shown} and {len(chosen) - _SHOWN_BATCHES:,} more"
