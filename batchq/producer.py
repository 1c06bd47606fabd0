"""Pass two: what a survey found good becomes the jobs of a batch, in chunks.

Strict and idempotent: rows that are already there are skipped, a row that differs from what the batch
holds is an error before anything is written, and one killed half-way is resumed by running it again.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b

from batchq.errors import BatchConflict, UsageError
from batchq.jobs import Batch, Json, NewBatch, NewJob
from batchq.request import DEFAULT_URL, RequestKeys, canonical, encode
from batchq.store import Store
from batchq.store.enqueue import conflict_message
from batchq.survey import Survey

CHUNK_ROWS = 2_000
CHUNK_BYTES = 4 << 20
_SAY_ALIVE_SECONDS = 10.0


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
class Enqueued:
    """What an enqueue did: `total` good rows in the input, of which some were there already.

    `absent` counts the jobs of the batch that the input has no row for, `changed` holds the new values of
    a policy that had others.
    """

    batch: Batch
    added: int
    skipped: int
    bad: int
    total: int
    sealed: bool
    absent: int
    changed: dict[str, int | bool]


def complete(new: NewBatch, survey: Survey, *, default_model: str | None = None, needs_model: bool = False) -> NewBatch:
    """Fill in what the file names: itself, its url, and its model where the user chose none.

    `default_model` stands in where neither does. Raises UsageError where a model is needed and missing.
    """
    model = survey.model or default_model or ""
    if needs_model and not model:
        raise UsageError(f"{new.worker} needs a model: pass --model, or set MODEL in the environment or in .env")
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
    whole: bool = False,
    policy: Policy | None = None,
    before_adding: Callable[[], Awaitable[None]] | None = None,
) -> Enqueued:
    """Add the surveyed rows to the batch that `new` describes, and seal it.

    `whole` says that the input is all of the batch. A `policy` also changes a batch that is there already.
    `before_adding` runs when all is found to fit, before there is anything to claim.
    Raises BatchConflict where rows or settings contradict what the batch holds: before anything is written,
    unless it is another enqueue that adds them meanwhile.
    """
    batch = await store.open_batch(new)
    keys = RequestKeys(batch.worker, batch.endpoint, batch.model, batch.settings)
    present = await _compare(store, survey, batch, keys) if batch.size else 0
    absent = max(0, batch.size - present)
    if whole and absent:
        raise BatchConflict(
            f"batch {batch.name!r} has {_rows(batch.size)}, {survey.name} {survey.rows:,}: {absent:,} of the batch"
            " not among them; run it under another name with --batch"
        )
    batch, changed = await _apply(store, batch, policy or Policy(), new.source)
    if before_adding is not None:
        await before_adding()
    added = 0
    if present < survey.rows:
        start = 0 if survey.has_ids else present
        for chunk in _chunks(survey, keys, start):
            added += await store.add_jobs(batch, [job for _, job in chunk])
    survey.check_unchanged()
    if seal and (added or batch.sealed_at is None):
        await store.seal(batch)
    sealed = seal or (not added and batch.sealed_at is not None)
    return Enqueued(batch, added, survey.rows - added, survey.bad, survey.rows, sealed, absent, changed)


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


async def _compare(store: Store, survey: Survey, batch: Batch, keys: RequestKeys) -> int:
    """Hold all rows against what the batch has; return how many are there. Raises BatchConflict."""
    await _compare_ids(store, survey, batch)
    present = 0
    said_at = time.monotonic()
    for chunk in _chunks(survey, keys, 0):
        if time.monotonic() - said_at > _SAY_ALIVE_SECONDS:
            await store.keep_alive(batch)
            said_at = time.monotonic()
        existing = await store.existing_jobs(batch, [job for _, job in chunk])
        for line, job in chunk:
            found = existing.get(job.custom_id if survey.has_ids else job.position)
            if found is None:
                continue
            if found.key != job.key:
                raise BatchConflict(
                    f"{survey.source.place(line)}: {conflict_message(job, found, batch.name)}{_way_out(survey)}"
                )
            present += 1
        if not survey.has_ids and present < chunk[-1][1].position + 1:
            break  # the rows of a batch without custom_ids have no gaps: what follows is new
    return present


def _way_out(survey: Survey) -> str:
    if survey.source.is_copy and not survey.has_ids:
        return (
            "; rows without a custom_id are known by their position, so that a further input must repeat the rows"
            " that are there: give each row a custom_id, or enqueue these under another name with --batch"
        )
    return "; enqueue changed rows under another name with --batch"


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


async def _compare_ids(store: Store, survey: Survey, batch: Batch) -> None:
    with_ids = await store.has_custom_ids(batch)
    if with_ids is not None and with_ids is not survey.has_ids:
        ours, theirs = ("have", "have none") if survey.has_ids else ("have no", "have them")
        raise BatchConflict(
            f"{survey.name}: its rows {ours} custom_ids, those of batch {batch.name!r} {theirs}:"
            " enqueue it under another name with --batch"
        )


def _chunks(survey: Survey, keys: RequestKeys, start: int) -> Iterator[list[tuple[int, NewJob]]]:
    """Yield the jobs from position `start` with their lines, up to 2,000 rows or 4 MB at a time."""
    chunk: list[tuple[int, NewJob]] = []
    size = 0
    for position, row in enumerate(survey.good_rows()):
        if position < start:
            continue
        payload = encode(row.payload)
        chunk.append((row.line, NewJob(position, row.custom_id, keys.key(row.payload, payload), payload)))
        size += len(payload)
        if len(chunk) == CHUNK_ROWS or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
