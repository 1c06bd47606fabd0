"""Runs jobs within this process, as `Queue.work` is asked to."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from batchq.api.workers import WorkersLike, gather_given
from batchq.config import load_settings
from batchq.errors import UsageError
from batchq.process import check_keys, gather_endpoints
from batchq.runner import Runner, RunnerOptions
from batchq.store import Store

MIN_LEASE_SECONDS = 1.0


async def work(
    store: Store,
    workers: WorkersLike | None,
    options: RunnerOptions,
    *,
    base_url: str | None = None,
    api_key_file: Path | None = None,
) -> None:
    """Run a runner until nothing is left, or for good; a cancellation gives back what it holds."""
    settings = load_settings(db=store.location, base_url=base_url, api_key_file=api_key_file)
    found, endpoints = gather_given(workers), gather_endpoints(settings)
    await check_keys(store, found, endpoints, options.batch_ids)
    await Runner(store, found, endpoints, options).run()


async def runner_options(
    store: Store, concurrency: int, lease: float, batches: Iterable[str] | None, *, until_empty: bool
) -> RunnerOptions:
    """Return a runner's options; `lease` is in seconds, `batches` are names. Raises UsageError, UnknownBatch."""
    if concurrency < 1:
        raise UsageError(f"concurrency is {concurrency}: it must be at least 1")
    if lease < MIN_LEASE_SECONDS:
        raise UsageError(f"lease is {lease:g} s: it must be at least {MIN_LEASE_SECONDS:g} s")
    ids = None if batches is None else frozenset([(await store.batch(name)).id for name in batches])
    return RunnerOptions(concurrency, round(lease * 1000), until_empty=until_empty, batch_ids=ids)
