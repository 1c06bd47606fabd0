"""Runs all that is in a queue, in rounds: claim, answer, settle; where nothing is due, time passes."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import anyio

from batchq.api.queue import Queue
from batchq.api.workers import WorkerLike, named
from batchq.config import load_settings
from batchq.errors import CannotGoOn, TimedOutWaiting
from batchq.executor import execute
from batchq.installed import installed_version
from batchq.jobs import DEFAULT_LEASE_MS, Batch, Claim, Ended, Failed, RunnerIdentity, Serving, Unfinished, Wants
from batchq.outlook import Blocked, Finished, Waiting, weigh
from batchq.settlement import settle
from batchq.store import ExchangeRequest, Store
from batchq.testing.clock import VirtualClock
from batchq.testing.scripted import UNSCRIPTED
from batchq.testing.temporary import TemporaryQueue
from batchq.worker import Endpoint, Handler

NOWHERE = "http://127.0.0.1:1/v1"
_LOOK_AGAIN_MS = 1_000
_LONGEST_SLEEP_MS = 50


@dataclass(frozen=True, slots=True)
class Drained:
    """What it took: how many attempts, and how many seconds passed by the queue's clock between them."""

    attempts: int
    waited: float


async def drain(
    queue: Queue,
    worker: WorkerLike,
    *,
    concurrency: int = 8,
    batch: str | Batch | None = None,
    clock: VirtualClock | None = None,
    patience: float = 86_400.0,
) -> Drained:
    """Run until no job is left, of one batch or of all, whatever worker and endpoint they name.

    Up to `concurrency` jobs are answered beside each other, and settled before the next are claimed. Where nothing
    is due, a `clock` (a TemporaryQueue has its own) is set to when something will be: after a back-off, a pause, the
    lease of a job that was left behind; without one, that time is waited for. A batch need not be sealed.

    Raises CannotGoOn for what is paused, halted or over its budget, TimedOutWaiting when `patience` seconds passed
    by the clock, AssertionError where a ScriptedWorker had no answer.
    """
    if clock is None and isinstance(queue, TemporaryQueue):
        clock = queue.clock
    name = batch.name if isinstance(batch, Batch) else batch
    ids = None if name is None else frozenset([(await queue.store.batch(name)).id])
    async with AsyncExitStack() as clients:
        drainer = _Drainer(queue.store, _Answerers(queue.store, worker, clients), concurrency, ids, clock)
        return await drainer.run(patience)


class _Answerers:
    """The one worker under all the names that batches call it by, opened once for each endpoint."""

    def __init__(self, store: Store, worker: WorkerLike, clients: AsyncExitStack) -> None:
        self._settings = load_settings(db=store.location)
        self._worker = worker
        self._clients = clients
        self._endpoints: dict[str, Endpoint] = {}
        self._handlers: dict[str, Handler] = {}
        self._names: set[str] = set()

    @property
    def names(self) -> frozenset[str]:
        """The workers that it stands in for."""
        return frozenset(self._names)

    @property
    def urls(self) -> dict[str, str]:
        """The endpoints' base URLs."""
        return {name: endpoint.base_url for name, endpoint in self._endpoints.items()}

    @property
    def serving(self) -> tuple[Serving, ...]:
        """What it can answer."""
        return tuple(
            Serving(name, at, url, opened=True) for name in sorted(self._names) for at, url in self.urls.items()
        )

    def handler(self, endpoint: str) -> Handler:
        """Return the open worker."""
        return self._handlers[endpoint]

    async def stand_in(self, batch: Batch) -> None:
        """Answer for a batch's worker at its endpoint."""
        self._names.add(batch.worker)
        if batch.endpoint not in self._handlers:
            endpoint = self._settings.endpoint(batch.endpoint) or Endpoint(batch.endpoint, NOWHERE)
            opened = named(self._worker, batch.worker).open(endpoint)
            self._handlers[batch.endpoint] = await self._clients.enter_async_context(opened)
            self._endpoints[batch.endpoint] = endpoint


class _Drainer:
    """Drains one queue."""

    def __init__(
        self,
        store: Store,
        answerers: _Answerers,
        concurrency: int,
        batch_ids: frozenset[int] | None,
        clock: VirtualClock | None,
    ) -> None:
        self._store = store
        self._answerers = answerers
        self._concurrency = concurrency
        self._batch_ids = batch_ids
        self._clock = clock
        self._runner: RunnerIdentity  # made when it is known what there is to serve
        self._attempts = 0
        self._waited_ms = 0

    async def run(self, patience: float) -> Drained:
        """Run until no job is left."""
        await self._look()
        self._runner = self._identity()
        await self._store.register(self._runner)
        try:
            await self._run(patience)
        finally:
            with anyio.CancelScope(shield=True):
                await self._store.retire(self._runner)
        return Drained(self._attempts, self._waited_ms / 1000)

    async def _run(self, patience: float) -> None:
        ended: Sequence[Ended] = ()
        while True:
            wants = Wants(self._concurrency, self._answerers.serving, self._batch_ids)
            settlements = [settle(item) for item in ended]
            reply = await self._store.exchange(ExchangeRequest(self._runner, settlements, (), wants))
            _refuse_unscripted(ended)
            if reply.claims:
                ended = await self._answer(reply.claims)
                continue
            ended = ()
            reason = await self._why_not_yet()
            if reason is None:
                return
            if self._waited_ms > patience * 1000:
                raise TimedOutWaiting(f"{patience:g} s of the queue's clock have passed, and still {reason}")
            await self._pass_time(reply.wake_in_ms)

    async def _answer(self, claims: Sequence[Claim]) -> Sequence[Ended]:
        ended: list[Ended] = []

        async def attempt(claim: Claim) -> None:
            began = time.monotonic()
            outcome = await execute(claim, self._answerers.handler(claim.batch.endpoint))
            ended.append(Ended(claim, outcome, round((time.monotonic() - began) * 1000)))

        async with anyio.create_task_group() as group:
            for claim in claims:
                group.start_soon(attempt, claim)
        self._attempts += len(claims)
        return ended

    async def _why_not_yet(self) -> str | None:
        """Return what is waited for; None where no job is left. Raises CannotGoOn."""
        await self._store.finish_cancels()
        left = await self._look()
        answerers = self._answerers
        match weigh(left, answerers.names, answerers.urls, self._batch_ids, self._store.location):
            case Finished():
                return None
            case Blocked(reasons):
                raise CannotGoOn("; ".join(reasons))
            case Waiting(reason):
                return reason

    async def _look(self) -> Unfinished:
        """Read what is left, and stand in for the workers of it. Batches that wait only for more jobs don't count."""
        left = await self._store.unfinished()
        for found in left.live:
            if self._batch_ids is None or found.batch.id in self._batch_ids:
                await self._answerers.stand_in(found.batch)
        return replace(left, unsealed=())

    async def _pass_time(self, wake_in_ms: int | None) -> None:
        step = max(1, _LOOK_AGAIN_MS if wake_in_ms is None else wake_in_ms)
        if self._clock is not None:
            self._clock.advance(step / 1000)
        else:  # others may end what is waited for
            step = min(step, _LONGEST_SLEEP_MS)
            await anyio.sleep(step / 1000)
        self._waited_ms += step

    def _identity(self) -> RunnerIdentity:
        return RunnerIdentity(
            id=uuid.uuid4().hex,
            host=socket.gethostname(),
            pid=os.getpid(),
            concurrency=self._concurrency,
            serves=",".join(sorted(self._answerers.names)),
            lease_ms=DEFAULT_LEASE_MS,
            endpoints=json.dumps(self._answerers.urls),
            batch_ids=self._batch_ids,
            version=installed_version(),
        )


def _refuse_unscripted(ended: Sequence[Ended]) -> None:
    missing = [
        item.outcome.reason.message
        for item in ended
        if isinstance(item.outcome, Failed) and item.outcome.reason.error_class == UNSCRIPTED
    ]
    if missing:
        raise AssertionError("; ".join(missing))
