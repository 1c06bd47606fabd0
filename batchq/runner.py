"""The loop of a worker process: exchange with the store, run what was claimed, stop in good order.

One task group holds it all. The loop settles what ended, renews what is held and claims up to the
free slots in one exchange; each claim runs in a task of its own and leaves an `Ended` behind.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from enum import Enum

import anyio
from anyio.abc import TaskGroup

from batchq import log
from batchq.conversation import Conversation
from batchq.errors import BatchqError, CannotGoOn
from batchq.executor import execute
from batchq.jobs import (
    DEFAULT_LEASE_MS,
    Claim,
    Ended,
    Exchanged,
    Failed,
    Halted,
    Held,
    Outcome,
    Released,
    Retry,
    RunnerIdentity,
    Serving,
    Succeeded,
    Throttled,
    Wants,
)
from batchq.outlook import Blocked, Finished, Outlook, Waiting, look_ahead
from batchq.store import Store
from batchq.worker import Endpoint, FoundWorker, Handler

IDLE_POLL_SECONDS = 0.05
RELEASE_SECONDS = 2.0
MAX_BEAT_SECONDS = 5.0
OUTLOOK_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """How a runner works: `lease_ms` and `drain_seconds` as on the command line.

    `batch_ids` narrows it to these batches; `until_empty` ends it when nothing served is left.
    """

    concurrency: int = 16
    lease_ms: int = DEFAULT_LEASE_MS
    drain_seconds: float = 120.0
    until_empty: bool = False
    batch_ids: frozenset[int] | None = None

    @property
    def renew_seconds(self) -> float:
        """How old a lease may get before it is renewed; a cancelled job is noticed by then."""
        return min(self.lease_ms / 4000, MAX_BEAT_SECONDS)


class Stop(Enum):
    """How a runner ended."""

    EMPTY = "nothing left to do"
    DRAINED = "drained"
    RELEASED = "released unfinished jobs"


@dataclass(slots=True)
class _Running:
    """A claim at work. `lost` marks one whose job is somebody else's by now."""

    claim: Claim
    renewed_at: float
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    lost: bool = False


class Runner:
    """Runs the jobs of the batches that this process serves, until stopped."""

    def __init__(
        self,
        store: Store,
        workers: Mapping[str, FoundWorker],
        endpoints: Mapping[str, Endpoint],
        options: RunnerOptions,
        on_waiting: Callable[[str], None] | None = None,
    ) -> None:
        """Serve `workers` at `endpoints`; `on_waiting` hears why nothing moves, each time it changes."""
        self._store = store
        self._workers = workers
        self._endpoints = endpoints
        self._options = options
        self._on_waiting = on_waiting
        self.identity = RunnerIdentity(
            id=uuid.uuid4().hex,
            host=socket.gethostname(),
            pid=os.getpid(),
            concurrency=options.concurrency,
            serves=",".join(sorted(workers)),
            lease_ms=options.lease_ms,
        )
        self._conversation = Conversation(store, self.identity)
        self._handlers: dict[tuple[str, str], Handler] = {}
        self._running: dict[int, _Running] = {}
        self._assigned: asyncio.Queue[_Running] = asyncio.Queue()
        self._slots = 0
        self._ended: list[Ended] = []
        self._wake = anyio.Event()
        self._stopping = False
        self._drain_deadline = float("inf")
        self._released = False
        self._beat_at = 0.0
        self._outlook_at = 0.0
        self._said = ""
        self._log = log.get_logger().bind(worker=self.identity.id[:8])

    def stop(self, *, now: bool = False) -> None:
        """Claim no more and let what runs finish within the drain timeout; `now` releases it at once."""
        if not self._stopping:
            self._stopping = True
            self._drain_deadline = _uptime() + self._options.drain_seconds
            self._log.info(log.WORKER_DRAINING, in_flight=len(self._running))
        if now:
            self._drain_deadline = 0.0
        self._wake.set()

    @property
    def in_flight(self) -> int:
        """How many calls are running."""
        return len(self._running)

    async def run(self) -> Stop:
        """Work until stopped, or until empty if so asked.

        Raises CannotGoOn where what is left can't run until somebody acts, ConfigurationError where a
        worker can't be opened. Cancellation releases what is held.
        """
        await self._store.register(self.identity)
        self._log.info(log.WORKER_STARTED, pid=self.identity.pid, concurrency=self._options.concurrency)
        ended: Stop | BatchqError = Stop.RELEASED
        try:
            async with AsyncExitStack() as clients, anyio.create_task_group() as group:
                try:
                    ended = await self._loop(clients, group)
                except BatchqError as error:  # carried out by hand: a task group would wrap it
                    ended = error
                finally:
                    group.cancel_scope.cancel()
        finally:
            with anyio.move_on_after(RELEASE_SECONDS, shield=True):
                await self._leave()
        if isinstance(ended, BatchqError):
            raise ended
        return ended

    async def _loop(self, clients: AsyncExitStack, group: TaskGroup) -> Stop:
        while True:
            reply = await self._exchange()
            for claim in reply.claims:
                self._assign(_Running(claim, _uptime()), group)
            for serving in reply.unopened:
                await self._open(serving, clients)
            if self._stopping and not self._running and not self._ended:
                return Stop.RELEASED if self._released else Stop.DRAINED
            if self._options.until_empty and self._idle(reply) and await self._is_over():
                return Stop.EMPTY
            if not reply.unopened:
                await self._wait(reply)

    async def _exchange(self) -> Exchanged:
        """Have one exchange with the store and take note of what it says."""
        self._wake = anyio.Event()
        now = _uptime()
        if now > self._drain_deadline:
            self._released = self._released or bool(self._running)
            self._cancel_running()
        ended, beat = list(self._ended), now >= self._beat_at
        held = [
            Held(job_id, item.claim.token, renew=now - item.renewed_at >= self._options.renew_seconds)
            for job_id, item in self._running.items()
        ]
        held += [Held(item.claim.job_id, item.claim.token, renew=False) for item in ended]
        wants = Wants(
            slots=0 if self._stopping else self._options.concurrency - len(self._running),
            serving=self._serving(),
            batch_ids=self._options.batch_ids,
        )
        reply = await self._conversation.exchange(ended, held, wants, beat=beat)
        del self._ended[: len(ended)]
        if beat:
            self._beat_at = now + self._options.renew_seconds
        for item in held:
            if item.renew and (renewed := self._running.get(item.job_id)):
                renewed.renewed_at = now
        self._give_up(reply.lost)
        if reply.late:
            self._log.warning(log.JOB_LATE, count=reply.late)
        return reply

    def _assign(self, running: _Running, group: TaskGroup) -> None:
        """Give a claim to a free slot; slots are tasks that stay, since starting one per job costs more."""
        self._running[running.claim.job_id] = running
        self._assigned.put_nowait(running)
        if len(self._running) > self._slots:
            self._slots += 1
            group.start_soon(self._fill_slot)

    async def _fill_slot(self) -> None:
        while True:
            await self._attempt(await self._assigned.get())

    async def _attempt(self, running: _Running) -> None:
        """Run one claim and leave its end behind, whatever happens."""
        claim, began = running.claim, time.monotonic()
        outcome: Outcome = Released()
        try:
            handler = self._handlers[claim.batch.worker, claim.batch.endpoint]
            outcome = await execute(claim, handler, running.scope)
        finally:
            del self._running[claim.job_id]
            ended = Ended(claim, outcome, round((time.monotonic() - began) * 1000))
            # What was lost and has no answer has nothing to say; a late answer is logged with its cost.
            if not (running.lost and isinstance(outcome, Released)):
                self._ended.append(ended)
                self._report(ended)
            self._wake.set()

    async def _wait(self, reply: Exchanged) -> None:
        """Sleep until an attempt ends, a lease wants renewing, or there may be something to claim."""
        if self._ended:
            return
        now = _uptime()
        until = min(self._beat_at, self._drain_deadline, now + MAX_BEAT_SECONDS)
        if self._running:
            oldest = min(item.renewed_at for item in self._running.values())
            until = min(until, oldest + self._options.renew_seconds)
        hungry = not self._stopping and len(self._running) < self._options.concurrency
        if hungry and reply.wake_in_ms is not None:
            until = min(until, now + reply.wake_in_ms / 1000)
        while (left := until - _uptime()) > 0:
            with anyio.move_on_after(min(left, IDLE_POLL_SECONDS) if hungry else left):
                await self._wake.wait()
            if self._wake.is_set() or (hungry and self._store.changed()):
                return

    def _idle(self, reply: Exchanged) -> bool:
        return not (self._running or self._ended or reply.claims or reply.unopened or self._stopping)

    async def _is_over(self) -> bool:
        """Whether nothing served is left; raises CannotGoOn where waiting would be in vain."""
        if _uptime() < self._outlook_at:
            return False
        self._outlook_at = _uptime() + OUTLOOK_SECONDS
        outlook: Outlook = await look_ahead(
            self._store, frozenset(self._workers), frozenset(self._endpoints), self._options.batch_ids
        )
        match outlook:
            case Finished():
                return True
            case Blocked(reasons):
                raise CannotGoOn("; ".join(reasons))
            case Waiting(reason):
                if reason != self._said:
                    self._said = reason
                    self._log.info(log.WORKER_WAITING, reason=reason)
                    if self._on_waiting:
                        self._on_waiting(reason)
        return False

    async def _open(self, serving: Serving, clients: AsyncExitStack) -> None:
        worker, endpoint = self._workers[serving.worker], self._endpoints[serving.endpoint]
        handler = await clients.enter_async_context(worker.open(endpoint))
        self._handlers[serving.worker, serving.endpoint] = handler

    def _serving(self) -> tuple[Serving, ...]:
        return tuple(
            Serving(worker, endpoint.name, endpoint.base_url, opened=(worker, endpoint.name) in self._handlers)
            for worker in self._workers
            for endpoint in self._endpoints.values()
        )

    def _give_up(self, lost: frozenset[int]) -> None:
        for job_id in lost:
            if running := self._running.get(job_id):
                running.lost = True
                running.scope.cancel()
                self._log.warning(log.JOB_LOST, batch=running.claim.batch.name, position=running.claim.position)

    def _cancel_running(self) -> None:
        for running in self._running.values():
            running.scope.cancel()

    async def _leave(self) -> None:
        """Settle or release what is left and say goodbye; what can't be written expires by itself."""
        # What was assigned to a slot that never began it is given back too.
        self._ended += [Ended(item.claim, Released(), 0) for item in self._running.values()]
        if self._ended:
            held = [Held(item.claim.job_id, item.claim.token, renew=False) for item in self._ended]
            await self._conversation.exchange(self._ended, held, Wants(0, ()))
        await self._store.retire(self.identity)
        self._log.info(log.WORKER_STOPPED)

    def _report(self, ended: Ended) -> None:
        """Log how an attempt ended: its place and reason, never its prompt or answer."""
        claim, outcome = ended.claim, ended.outcome
        entry = self._log.bind(
            batch=claim.batch.name, position=claim.position, attempt=claim.attempts, ms=ended.duration_ms
        )
        match outcome:
            case Succeeded():
                entry.debug(log.JOB_DONE)
            case Failed(reason):
                entry.warning(log.JOB_FAILED, error=reason.error_class, reason=reason.message)
            case Retry(reason):
                entry.info(log.JOB_RETRY, error=reason.error_class, reason=reason.message)
            case Throttled(reason, after):
                entry.info(log.LANE_THROTTLED, lane=claim.lane, reason=reason.message, after=after)
            case Halted(reason):
                entry.error(log.LANE_HALTED, lane=claim.lane, reason=reason.message)
            case Released():
                pass


def _uptime() -> float:
    """Seconds on a clock that goes on while the machine sleeps, where there is one."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)
