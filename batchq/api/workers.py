"""Workers as callers give them: by name, or themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeAlias

from batchq.discovery import FoundWorker, find_worker, wrap_worker
from batchq.errors import ConfigurationError
from batchq.naming import name_of, settings_of
from batchq.process import gather_workers
from batchq.worker import Plugin, WorkerFactory, WorkerFunction

WorkerLike: TypeAlias = str | WorkerFunction | WorkerFactory | Plugin | FoundWorker
WorkersLike: TypeAlias = WorkerLike | Iterable[WorkerLike] | Mapping[str, WorkerLike]


def find_given(worker: WorkerLike) -> FoundWorker:
    """Return a worker, by its reference or itself, under the name that batches call it by.

    Raises ConfigurationError for what is none.
    """
    if isinstance(worker, str):
        return find_worker(worker)
    if isinstance(worker, FoundWorker):
        return worker
    name = name_of(worker)
    if name is None:
        raise ConfigurationError("this Plugin has no name: give it one, or keep it in a variable of its module")
    found = wrap_worker(worker, name)
    return replace(found, settings={**found.settings, **settings_of(worker)})


def gather_given(workers: WorkersLike | None) -> dict[str, FoundWorker]:
    """Return workers by the names that batches call them by: one, several, or a mapping that names each.

    None is all installed ones.
    """
    if workers is None:
        return gather_workers(())
    if isinstance(workers, Mapping):
        return {name: named(worker, name) for name, worker in workers.items()}
    given = list(workers) if isinstance(workers, Iterable) and not isinstance(workers, str) else [workers]
    return {found.name: found for found in map(find_given, given)}


def named(worker: WorkerLike, name: str) -> FoundWorker:
    """Return a worker that goes by another name than its own."""
    if isinstance(worker, str):
        worker = find_worker(worker)
    if isinstance(worker, FoundWorker):
        return replace(worker, name=name)
    return wrap_worker(worker, name)
