"""`batchq retry`, `cancel`, `pause`, `resume` and `seal`: what an operator does to a batch."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import click

from batchq.cli.opening import open_queue
from batchq.cli.options import HELP_NAMES, command_class, command_line, database_of, db_option, run_async
from batchq.display.messages import say
from batchq.display.text import plural

if TYPE_CHECKING:
    from batchq.jobs import Batch
    from batchq.store import Store

Action = Callable[["Store", "Batch"], Awaitable[str]]


@click.command(cls=command_class(), context_settings=HELP_NAMES, short_help="Run a batch's failed jobs again.")
@click.argument("name")
@click.option("--error", "error_class", metavar="CLASS", help="Only those that failed with this class of error.")
@db_option
def retry(name: str, *, error_class: str | None, db: str | None) -> None:
    """Send the failed and cancelled jobs of the batch NAME back to the queue; what is done stays done."""

    async def act(store: Store, batch: Batch) -> str:
        moved = await store.retry(batch, error_class=error_class)
        if moved:
            following = command_line("collect", name, db=db)
            return f"{plural(moved, 'job')} of {name} will run again; next: {following}"
        known = [group.error_class for group in await store.errors(batch)]
        if (await store.progress(name)).counts.cancelled:
            known.append("cancelled")
        if error_class and known:
            from batchq.errors import UsageError

            raise UsageError(f"no job of {name} failed with {error_class!r}; there is {', '.join(known)}")
        return f"no job of {name} has failed or was cancelled"

    _operate(name, db, act)


@click.command(cls=command_class(), context_settings=HELP_NAMES, short_help="Cancel what a batch has not finished.")
@click.argument("name")
@db_option
def cancel(name: str, *, db: str | None) -> None:
    """Cancel the jobs of the batch NAME that have not ended; calls in flight are dropped."""

    async def act(store: Store, batch: Batch) -> str:
        if (await store.progress(name)).finished:
            return f"{name} has ended already: there is nothing to cancel"
        moved = await store.cancel(batch)
        return f"cancelled {plural(moved, 'job')} of {name}; {command_line('retry', name, db=db)} revives them"

    _operate(name, db, act)


@click.command(cls=command_class(), context_settings=HELP_NAMES, short_help="Start no more jobs of a batch.")
@click.argument("name")
@db_option
def pause(name: str, *, db: str | None) -> None:
    """Start no more jobs of the batch NAME; those in flight finish."""

    async def act(store: Store, batch: Batch) -> str:
        from batchq.jobs import BatchState

        _refuse_cancelled(batch, db)
        if batch.state is BatchState.PAUSED:
            return f"{name} is paused already: nothing changed"
        if (await store.progress(name)).finished:
            return f"{name} has ended already: nothing changed"
        await store.pause(batch)
        return f"{name} is paused; {command_line('resume', name, db=db)} goes on"

    _operate(name, db, act)


@click.command(cls=command_class(), context_settings=HELP_NAMES, short_help="Go on after a pause or a halt.")
@click.argument("name", required=False)
@db_option
def resume(name: str | None, *, db: str | None) -> None:
    """Go on with the batch NAME, also after a halt; without NAME, lift all halts."""

    async def act(store: Store, batch: Batch) -> str:
        from batchq.jobs import BatchState

        _refuse_cancelled(batch, db)
        reopened = await store.resume(batch)
        if batch.state is not BatchState.PAUSED and not reopened:
            ended = (await store.progress(batch.name)).finished
            return f"{name} {'has ended' if ended else 'was neither paused nor halted'}: nothing changed"
        return f"{name} goes on" + (f"; {plural(reopened, 'halt')} lifted" if reopened else "")

    if name is None:
        reopened = run_async(lambda: _reopen_all(database_of(db)))
        say(f"batchq: {plural(reopened, 'halt')} lifted" if reopened else "batchq: nothing was halted")
    else:
        _operate(name, db, act)


@click.command(cls=command_class(), context_settings=HELP_NAMES, short_help="Say that a batch is complete.")
@click.argument("name")
@db_option
def seal(name: str, *, db: str | None) -> None:
    """Say that all jobs of the batch NAME are there, so that it can finish."""

    async def act(store: Store, batch: Batch) -> str:
        if batch.sealed_at is not None:
            return f"{name} is sealed already"
        await store.seal(batch)
        return f"{name} is complete with {plural(batch.size, 'job')}"

    _operate(name, db, act)


def _operate(name: str, db: str | None, act: Action) -> None:
    say(f"batchq: {run_async(lambda: _on_batch(database_of(db), name, act))}")


async def _on_batch(location: str, name: str, act: Action) -> str:
    async with await open_queue(location) as store:
        return await act(store, await store.batch(name))


async def _reopen_all(location: str) -> int:
    async with await open_queue(location) as store:
        return await store.reopen_lanes()


def _refuse_cancelled(batch: Batch, db: str | None) -> None:
    from batchq.operating import refuse_cancelled

    refuse_cancelled(batch, command_line("retry", batch.name, db=db))
