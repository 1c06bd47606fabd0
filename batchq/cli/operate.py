"""`batchq retry`, `cancel`, `pause`, `resume` and `seal`: what an operator does to a batch."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import click

from batchq.cli.naming import batch_argument
from batchq.cli.opening import open_queue
from batchq.cli.options import (
    HELP_NAMES,
    command_class,
    command_line,
    database_of,
    db_option,
    json_option,
    quiet_option,
    run_async,
)
from batchq.display.messages import say
from batchq.display.text import plural

if TYPE_CHECKING:
    from batchq.jobs import Batch
    from batchq.store import Store

# What was done, for people, and the same for machines.
Told = tuple[str, dict[str, Any]]
Action = Callable[["Store", "Batch"], Awaitable[Told]]


@click.command(cls=command_class(), context_settings=HELP_NAMES, short_help="Run a batch's failed jobs again.")
@batch_argument()
@click.option("--error", "error_class", metavar="CLASS", help="Only those that failed with this class of error.")
@db_option
@json_option
@quiet_option
def retry(name: str, *, error_class: str | None, db: str | None, as_json: bool) -> None:
    """Send the failed and cancelled jobs of the batch NAME back to the queue; what is done stays done.

    \b
    batchq retry demo
    batchq retry demo --error timeout
    """  # fmt: skip

    async def act(store: Store, batch: Batch) -> Told:
        if moved := await store.retry(batch, error_class=error_class):
            following = command_line("collect", name, db=db)
            return f"{plural(moved, 'job')} of {name} will run again; next: {following}", {"retried": moved}
        await _refuse_unknown_class(store, batch, error_class)
        return f"no job of {name} has failed or was cancelled", {"retried": 0}

    _operate(name, db, act, as_json=as_json)


async def _refuse_unknown_class(store: Store, batch: Batch, error_class: str | None) -> None:
    from batchq.errors import UsageError

    known = [group.error_class for group in await store.errors(batch)]
    if (await store.progress(batch.name)).counts.cancelled:
        known.append("cancelled")
    if error_class and known:
        raise UsageError(f"no job of {batch.name} failed with {error_class!r}; there is {', '.join(known)}")


@click.command(cls=command_class(), context_settings=HELP_NAMES, short_help="Cancel what a batch has not finished.")
@batch_argument()
@db_option
@json_option
@quiet_option
def cancel(name: str, *, db: str | None, as_json: bool) -> None:
    """Cancel the jobs of the batch NAME that have not ended; calls in flight are dropped.

    \b
    batchq cancel demo
    """  # fmt: skip

    async def act(store: Store, batch: Batch) -> Told:
        if (await store.progress(name)).finished:
            return f"{name} has ended already: there is nothing to cancel", {"cancelled": 0}
        moved = await store.cancel(batch)
        revives = command_line("retry", name, db=db)
        return f"cancelled {plural(moved, 'job')} of {name}; {revives} revives them", {"cancelled": moved}

    _operate(name, db, act, as_json=as_json)


@click.command(cls=command_class(), context_settings=HELP_NAMES, short_help="Start no more jobs of a batch.")
@batch_argument()
@db_option
@json_option
@quiet_option
def pause(name: str, *, db: str | None, as_json: bool) -> None:
    """Start no more jobs of the batch NAME; those in flight finish.

    \b
    batchq pause demo
    """  # fmt: skip

    async def act(store: Store, batch: Batch) -> Told:
        from batchq.jobs import BatchState

        _refuse_cancelled(batch, db)
        if batch.state is BatchState.PAUSED:
            return f"{name} is paused already: nothing changed", {"changed": False}
        if (await store.progress(name)).finished:
            return f"{name} has ended already: nothing changed", {"changed": False}
        await store.pause(batch)
        return f"{name} is paused; {command_line('resume', name, db=db)} goes on", {"changed": True}

    _operate(name, db, act, as_json=as_json)


@click.command(cls=command_class(), context_settings=HELP_NAMES, short_help="Go on after a pause or a halt.")
@batch_argument(required=False)
@db_option
@json_option
@quiet_option
def resume(name: str | None, *, db: str | None, as_json: bool) -> None:
    """Go on with the batch NAME, also after a halt; without NAME, lift all halts.

    \b
    batchq resume demo
    batchq resume
    """  # fmt: skip

    async def act(store: Store, batch: Batch) -> Told:
        from batchq.jobs import BatchState

        _refuse_cancelled(batch, db)
        reopened = await store.resume(batch)
        changed = batch.state is BatchState.PAUSED or reopened > 0
        facts = {"changed": changed, "halts_lifted": reopened}
        if not changed:
            ended = (await store.progress(batch.name)).finished
            return f"{name} {'has ended' if ended else 'was neither paused nor halted'}: nothing changed", facts
        return f"{name} goes on" + (f"; {plural(reopened, 'halt')} lifted" if reopened else ""), facts

    if name is not None:
        _operate(name, db, act, as_json=as_json)
        return
    reopened = run_async(lambda: _reopen_all(database_of(db)))
    told = f"{plural(reopened, 'halt')} lifted" if reopened else "nothing was halted"
    _tell((told, {"changed": reopened > 0, "halts_lifted": reopened}), None, as_json=as_json)


@click.command(cls=command_class(), context_settings=HELP_NAMES, short_help="Say that a batch is complete.")
@batch_argument()
@db_option
@json_option
@quiet_option
def seal(name: str, *, db: str | None, as_json: bool) -> None:
    """Say that all jobs of the batch NAME are there, so that it can finish.

    \b
    batchq seal demo
    """  # fmt: skip

    async def act(store: Store, batch: Batch) -> Told:
        if batch.sealed_at is not None:
            return f"{name} is sealed already", {"changed": False, "jobs": batch.size}
        await store.seal(batch)
        return f"{name} is complete with {plural(batch.size, 'job')}", {"changed": True, "jobs": batch.size}

    _operate(name, db, act, as_json=as_json)


def _operate(name: str, db: str | None, act: Action, *, as_json: bool) -> None:
    _tell(run_async(lambda: _on_batch(database_of(db), name, act)), name, as_json=as_json)


def _tell(told: Told, name: str | None, *, as_json: bool) -> None:
    sentence, facts = told
    say(f"batchq: {sentence}")
    if as_json:
        click.echo(json.dumps({"batch": name} | facts))


async def _on_batch(location: str, name: str, act: Action) -> Told:
    async with await open_queue(location) as store:
        return await act(store, await store.batch(name))


async def _reopen_all(location: str) -> int:
    async with await open_queue(location) as store:
        return await store.reopen_lanes()


def _refuse_cancelled(batch: Batch, db: str | None) -> None:
    from batchq.operating import refuse_cancelled

    refuse_cancelled(batch, command_line("retry", batch.name, db=db))
