"""Runs the batch of a call in this process, beside any other that serves it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass

import anyio

from batchq.api.call import Ready
from batchq.coordinator import told_errors, wait_until_finished
from batchq.display.messages import say
from batchq.display.progress import outcome_lines, show_progress
from batchq.display.text import plural
from batchq.errors import CannotGoOn, StoreError
from batchq.generations import Synchronised
from batchq.jobs import Progress
from batchq.process import beside
from batchq.runner import Runner, RunnerOptions
from batchq.store import Store
from batchq.waiting import command_for, why_waiting


@dataclass(frozen=True, slots=True)
class Shown:
    """What a person sees of a call: nothing unless `verbose`; a line for every so many answers where no bar can be."""

    verbose: bool
    every: int


@asynccontextmanager
async def working(store: Store, ready: Ready, found: Synchronised) -> AsyncIterator[Runner]:
    """Give the runner of a call, which serves its batch alone; it says goodbye when the block ends.

    Until then its batch is spared by all others, so that its results can be read.
    """
    options = RunnerOptions(ready.call.concurrency, until_empty=True, batch_ids=frozenset([found.batch.id]), stays=True)
    runner = Runner(store, {ready.worker.name: ready.worker}, {ready.endpoint.name: ready.endpoint}, options)
    try:
        yield runner
    finally:
        with anyio.CancelScope(shield=True), suppress(StoreError):
            await runner.retire()


async def run_batch(store: Store, runner: Runner, found: Synchronised, shown: Shown) -> Progress:
    """Work until every job of the batch has ended, here or elsewhere; show how far it is.

    Raises CannotGoOn where what is left can't run until somebody acts, ConfigurationError where the worker
    can't be opened. Everything is kept then. A cancellation gives back what runs.
    """
    name = found.batch.name
    with progress_of(store, found, shown) as update:

        async def watch() -> None:
            await wait_until_finished(store, name, on_progress=update)

        try:
            await beside(runner.run, watch)
        except CannotGoOn as error:
            raise CannotGoOn(f"{error}; {kept(store, name)}") from error
    progress = await store.progress(name)
    if not progress.finished:
        why = why_waiting(progress, store.location) or "somebody has changed it meanwhile"
        left = plural(progress.counts.live, "unfinished job")
        raise CannotGoOn(f"{name} has {left}: {why}; {kept(store, name)}")
    if shown.verbose:
        for line in outcome_lines(progress, await told_errors(store, found.batch)):
            say(line)
    return progress


@contextmanager
def progress_of(store: Store, found: Synchronised, shown: Shown) -> Iterator[Callable[[Progress], None]]:
    """Say which batch it is and how to look at it; then show what the function that this yields is given."""
    if not shown.verbose:
        yield lambda _progress: None
        return
    name, done = found.batch.name, found.enqueued
    parts = [plural(done.total, "prompt")]
    parts += [f"{done.skipped:,} there already"] if done.skipped else []
    parts += [f"{plural(done.followers, 'duplicate')} of others"] if done.followers else []
    parts += [f"{plural(done.reused, 'answer')} taken over from before"] if done.reused else []
    parts += [f"{found.revived:,} cancelled ones taken up again"] if found.revived else []
    parts += [f"{found.retried:,} failed ones tried again"] if found.retried else []
    say(f"batchq: {name}: {', '.join(parts)}; to look at it: {command_for('status', store.location, name)}")
    with show_progress(store.location, every=shown.every) as update:
        yield update


def kept(store: Store, name: str) -> str:
    """Say that nothing is lost, and how to see it."""
    return f"all that is done is kept: run this again, or look at it with {command_for('status', store.location, name)}"
