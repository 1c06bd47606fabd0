"""Synchronises a batch with an input: the same rows resume, more rows are added, others start a new generation.

`run` and `prompt_map` do this. The generations of a batch are named `name`, `name~2`, `name~3`, … What one of
them has answered, the next takes over by key; what an old one had still to do is cancelled, unless somebody
is at work on it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import anyio

from batchq.comparison import Comparison, compare
from batchq.errors import BatchConflict, RowConflict
from batchq.jobs import Batch, BatchState, NewBatch, Reuse, RunnerInfo
from batchq.pids import is_gone
from batchq.producer import BeforeAdding, Enqueued, Policy, Thrift, fill
from batchq.rows import Rows
from batchq.settlement import REFUSED_CLASSES, TRUNCATED
from batchq.store import Store
from batchq.store.enqueue import refuse_other_settings
from batchq.survey import Survey

# Another process may begin the same generation, or fill the one that we chose with other rows.
_TRIES = 100
_PAUSE_SECONDS = (0.02, 0.2)
_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Synchronised:
    """What became of an input: its batch, and the generations that it superseded.

    `retried` jobs had failed and run again, `revived` ones had been cancelled.
    """

    enqueued: Enqueued
    retried: int = 0
    revived: int = 0
    superseded: tuple[str, ...] = ()

    @property
    def batch(self) -> Batch:
        """The generation that holds the input."""
        return self.enqueued.batch


@dataclass(frozen=True, slots=True)
class Wishes:
    """How to synchronise: `fresh` ignores what was answered before, `thrift` says what else need not be paid for.

    `on_waiting` hears what is waited for.
    """

    policy: Policy = field(default_factory=Policy)
    thrift: Thrift = field(default_factory=Thrift)
    fresh: bool = False
    before_adding: BeforeAdding | None = None
    on_waiting: Callable[[str], None] = lambda _why: None


async def synchronise(store: Store, survey: Survey, new: NewBatch, wishes: Wishes) -> Synchronised:
    """Find or make the generation of the batch `new` that holds just the surveyed rows, and complete it.

    Failed jobs of it run again where the reason may have passed, and so do cancelled ones. Raises
    BatchConflict where there is a batch of that name with other settings, or one that was enqueued by itself
    and has other rows.
    """
    new = replace(new, synchronised=True)
    first_key = Rows(survey, new).first().key
    others: set[int] = set()  # generations that were found to hold something else, which they do for ever
    for _ in range(_TRIES):
        every = await store.generations(new.name)
        generations = [batch for batch in every if batch.state is not BatchState.PURGING]
        for generation in generations[:1]:
            refuse_other_settings(generation, new)
        try:
            alike = await _alike(store, generations, first_key, others)
            found = None if wishes.fresh else await _resume(store, survey, new, alike, generations, wishes)
            others |= {generation.id for generation in generations}
            if found is None:
                found = await _begin(store, survey, replace(new, name=_next_name(new.name, every)), generations, wishes)
        except RowConflict:
            others.clear()  # somebody else has put other rows there meanwhile
        else:
            if found is not None:
                return found
        await anyio.sleep(random.uniform(*_PAUSE_SECONDS))
    raise BatchConflict(f"{new.name!r} is being changed by several others at once: run this again")


async def _alike(store: Store, generations: Sequence[Batch], first_key: str, others: set[int]) -> list[Batch]:
    """Return the generations that may hold the input: those that were enqueued by themselves, or begin like it."""
    unknown = [generation for generation in generations if generation.id not in others]
    keys = await store.first_keys([generation.id for generation in unknown])
    return [found for found in unknown if not found.synchronised or keys.get(found.id, first_key) == first_key]


async def _resume(
    store: Store,
    survey: Survey,
    new: NewBatch,
    alike: Sequence[Batch],
    generations: Sequence[Batch],
    wishes: Wishes,
) -> Synchronised | None:
    """Go on with the newest generation whose jobs are all of the input; None where there is none."""
    for generation in alike:
        comparison = await compare(store, survey, generation)
        whole = comparison.conflict is None and not comparison.absent
        if not whole and not generation.synchronised:
            raise BatchConflict(comparison.conflict or _fewer_rows(generation, survey, comparison))
        if not whole:
            continue
        # Also in an open batch there may be some: whoever revived it last may not have come to its end.
        revived = await store.retry(generation, error_class="cancelled")
        batch = await store.open_batch(replace(new, name=generation.name))
        thrift = _with_answers_of([other for other in generations if other.id != batch.id], wishes)
        done = await fill(
            store, Rows(survey, batch), batch, comparison, policy=wishes.policy, source=new.source, thrift=thrift,
            before_adding=wishes.before_adding,
        )  # fmt: skip
        return Synchronised(done, await _retry_what_may_pass(store, done.batch), revived)
    return None


async def _retry_what_may_pass(store: Store, batch: Batch) -> int:
    """Send failed jobs back whose reason may have passed; not those whose request was refused."""
    refused = REFUSED_CLASSES - {TRUNCATED} if batch.allow_truncated else REFUSED_CLASSES
    again = [group.error_class for group in await store.errors(batch) if group.error_class not in refused]
    return sum([await store.retry(batch, error_class=name, revive=False) for name in again])


async def _begin(
    store: Store, survey: Survey, named: NewBatch, generations: Sequence[Batch], wishes: Wishes
) -> Synchronised | None:
    """Make the next generation; None where somebody else just made one of that name."""
    thrift = _with_answers_of(() if wishes.fresh else generations, wishes)
    superseded = await _supersede(store, generations, wishes)
    if wishes.before_adding is not None:
        await wishes.before_adding()
    rows = Rows(survey, named)
    # The first row comes with the batch: nobody takes it for the beginning of another input.
    made = await store.make_batch(named, [rows.first()], thrift.reuse)
    if made is None:
        return None
    batch, added = made
    done = await fill(store, rows, batch, Comparison(present=1), thrift=thrift)
    done = replace(done, added=done.added + 1, skipped=done.skipped - 1, reused=done.reused + added.reused)
    return Synchronised(done, superseded=superseded)


async def _supersede(store: Store, generations: Sequence[Batch], wishes: Wishes) -> tuple[str, ...]:
    """Cancel what old generations have still to do, unless somebody is at work on them; return their names."""
    superseded = []
    live = {found.batch.id for found in (await store.unfinished()).live} if generations else set()
    for generation in generations:
        unsealed = generation.sealed_at is None
        if generation.state is BatchState.CANCELLED or not (generation.id in live or unsealed):
            continue
        progress = await store.progress(generation.name)
        at_work = progress.enqueueing or progress.starting or is_used(generation, progress.runners)
        if progress.finished or at_work:
            continue
        await store.pause(generation)
        await _let_finish(store, generation, wishes)
        await store.cancel(generation)
        superseded.append(generation.name)
    return tuple(superseded)


async def _let_finish(store: Store, batch: Batch, wishes: Wishes) -> None:
    """Wait for the calls that workers which serve any batch are making for this one: they are being paid for."""
    until = time.monotonic() + batch.call_timeout_ms / 1000
    told = False
    while time.monotonic() < until:
        runners = (await store.progress(batch.name)).runners
        alive = {runner.id for runner in runners if runner.live and not is_gone(runner)}
        if not alive & await store.holders(batch):
            return
        if not told:
            wishes.on_waiting(f"waiting for the calls of {batch.name}, whose place is being taken")
            told = True
        await anyio.sleep(_POLL_SECONDS)


def is_used(batch: Batch, runners: Sequence[RunnerInfo]) -> bool:
    """Whether a live process was started for this very batch; those that serve any batch don't wait for it."""
    return any(runner.live and batch.id in (runner.batch_ids or ()) and not is_gone(runner) for runner in runners)


def _fewer_rows(batch: Batch, survey: Survey, comparison: Comparison) -> str:
    rows = "1 row" if batch.size == 1 else f"{batch.size:,} rows"
    return (
        f"batch {batch.name!r} has {rows}, {survey.name} {survey.rows:,}: {comparison.absent:,} of the batch not among"
        " them; give this another name with --batch"
    )


def _with_answers_of(generations: Sequence[Batch], wishes: Wishes) -> Thrift:
    if wishes.fresh:
        return replace(wishes.thrift, reuse=None)
    ids = frozenset(generation.id for generation in generations)
    if wishes.thrift.reuse is not None:
        return replace(wishes.thrift, reuse=Reuse(refusals=bool(ids)))
    return replace(wishes.thrift, reuse=Reuse(ids, refusals=True) if ids else None)


def _next_name(base: str, generations: Sequence[Batch]) -> str:
    if not generations:
        return base
    numbers = [int(generation.name[len(base) + 1 :] or 1) for generation in generations]
    return f"{base}~{max(numbers) + 1}"
