"""Pass two: what a survey found good becomes the jobs of a batch, in chunks.

Strict and idempotent: rows that are already there are skipped, a row that differs from what the batch
holds is an error before anything is written, and one killed half-way is resumed by running it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b

from batchq.comparison import Comparison, compare, find_leaders
from batchq.errors import BatchConflict, UsageError
from batchq.jobs import Added, Batch, Json, NewBatch, Reuse
from batchq.leaders import Leaders
from batchq.request import DEFAULT_URL, canonical
from batchq.rows import Chunk, Rows
from batchq.store import Store
from batchq.survey import Survey

BeforeAdding = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Policy:
    """What may change while a batch lives, since it is no part of its requests; None stays as it is."""

    priority: int | None = None
    max_attempts: int | None = None
    call_timeout_ms: int | None = None
    budget: int | None = None
    allow_unknown_cost: bool | None = None
    allow_truncated: bool | None = None
    keep_response: bool | None = None


@dataclass(frozen=True, slots=True)
class Thrift:
    """What need not be paid for: `dedupe` runs equal requests once, `reuse` takes over answers of before."""

    dedupe: bool = False
    reuse: Reuse | None = None


@dataclass(frozen=True, slots=True)
class Enqueued:
    """What an enqueue did: `total` jobs that the input asks for, of which some were there already.

    `absent` counts the jobs of the batch that the input has no row for, `changed` holds the new values of
    a policy that had others. Of the jobs `added`, `reused` had an answer, `followers` follow an equal one.
    """

    batch: Batch
    added: int
    skipped: int
    bad: int
    total: int
    sealed: bool
    absent: int
    changed: dict[str, int | bool]
    reused: int = 0
    followers: int = 0


def complete(new: NewBatch, survey: Survey, *, default_model: str | None = None, needs_model: bool = False) -> NewBatch:
    """Fill in what the file names: itself, its url, and its model where the user chose none.

    `default_model` stands in where neither does. Raises UsageError where a model is needed and missing.
    """
    model = survey.model or default_model or ""
    if needs_model and not model:
        raise UsageError(f"{new.worker} needs a model: pass --model, or set MODEL in the environment or in .env")
    if model and not model.isprintable():
        raise UsageError(f"{model!r} is not the name of a model: it has characters that nobody can see")
    settings: dict[str, Json] = dict(new.settings)
    if survey.url is not None and survey.url != DEFAULT_URL:
        settings["url"] = survey.url
    return replace(new, model=model, settings=settings, source=survey.source.origin)


def run_name(stem: str, new: NewBatch) -> str:
    """Return the name of a `run`'s batch: the same input with other settings is another batch."""
    request: Json = [new.worker, new.endpoint, new.model, dict(new.settings)]
    return f"{stem}-{blake2b(canonical(request).encode(), digest_size=4).hexdigest()}"


async def enqueue(
    store: Store,
    survey: Survey,
    new: NewBatch,
    *,
    seal: bool = True,
    policy: Policy | None = None,
    thrift: Thrift | None = None,
    before_adding: BeforeAdding | None = None,
) -> Enqueued:
    """Add the surveyed rows to the batch that `new` describes, and seal it.

    A `policy` also changes a batch that is there already. `before_adding` runs when all is found to fit,
    before there is anything to claim. Raises BatchConflict where rows or settings contradict what the batch
    holds: before anything is written, unless it is another enqueue that adds them meanwhile.
    """
    batch = await store.open_batch(new)
    comparison = await compare(store, survey, batch)
    if comparison.conflict is not None:
        raise BatchConflict(comparison.conflict)
    rows = Rows(survey, batch)
    return await fill(
        store, rows, batch, comparison, seal=seal, policy=policy, thrift=thrift, source=new.source,
        before_adding=before_adding,
    )  # fmt: skip


async def fill(
    store: Store,
    rows: Rows,
    batch: Batch,
    comparison: Comparison,
    *,
    seal: bool = True,
    policy: Policy | None = None,
    thrift: Thrift | None = None,
    source: str | None = None,
    before_adding: BeforeAdding | None = None,
) -> Enqueued:
    """Add to a batch what it lacks of an input that it was compared with; see `enqueue`."""
    batch, changed = await _apply(store, batch, policy or Policy(), source)
    if before_adding is not None:
        await before_adding()
    thrift = thrift or Thrift()
    added = Added()
    if comparison.present < rows.total:
        start = 0 if rows.has_ids else comparison.present
        with closing(Leaders()) as leaders:
            if thrift.dedupe:
                await find_leaders(store, rows, batch, leaders)
            chunks = rows.chunks(start, leaders if thrift.dedupe else None, size=store.rows_per_write)
            added = await _add(store, batch, chunks, thrift.reuse)
    rows.survey.check_unchanged()
    if seal and (added.jobs or batch.sealed_at is None):
        await store.seal(batch)
    sealed = seal or (not added.jobs and batch.sealed_at is not None)
    return Enqueued(
        batch, added.jobs, rows.total - added.jobs, rows.survey.bad, rows.total, sealed, comparison.absent, changed,
        added.reused, added.followers,
    )  # fmt: skip


async def _add(store: Store, batch: Batch, chunks: AsyncIterator[Chunk], reuse: Reuse | None) -> Added:
    """Add chunk after chunk, preparing each while the database takes in the one before."""
    added = Added()
    adding: asyncio.Task[Added] | None = None
    try:
        async for chunk in chunks:
            if adding is not None:
                added += await adding
            adding = asyncio.create_task(  # noqa: RUF006 - the next round or the end awaits it
                store.add_jobs(batch, [job for _, job in chunk], reuse)
            )
        return added if adding is None else added + await adding
    finally:
        if adding is not None:
            adding.cancel()
            await asyncio.gather(adding, return_exceptions=True)


async def _apply(store: Store, batch: Batch, policy: Policy, source: str | None) -> tuple[Batch, dict[str, int | bool]]:
    """Give the batch the policy and the source that it does not have yet; return it with what changed."""
    changed: dict[str, int | bool] = {
        name: value for name, value in asdict(policy).items() if value not in {None, getattr(batch, name)}
    }
    # The same command again resumes: what an operator has raised since stays raised.
    if batch.budget is not None and changed.get("budget", 0) < batch.budget:
        changed.pop("budget", None)
    moved: dict[str, object] = {"source": source} if source not in {None, batch.source} else {}
    if changed or moved:
        batch = await store.update_policy(batch, {**changed, **moved})
    return batch, changed
