"""The loop of a worker process: exchange with the store, run what was claimed, stop in good order.

The loop settles what ended, renews what is held and claims up to the free slots, all in one exchange,
then sleeps until an attempt ends or there may be something to claim.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

import anyio
from anyio.abc import TaskGroup

from batchq import log
from batchq.clients import Clients
from batchq.clock import uptime, watch_for_standstill
from batchq.conversation import Conversation
from batchq.database import Watcher
from batchq.discovery import FoundWorker
from batchq.errors import BatchqError, DatabaseGone, StoreError
from batchq.installed import installed_version
from batchq.jobs import (
    DEFAULT_LEASE_MS,
    AtWork,
    Ended,
    Exchanged,
    Held,
    JobState,
    Phase,
    Released,
    RunnerIdentity,
    RunnerReport,
    Wants,
)
from batchq.lookout import Lookout
from batchq.pids import pid_space
from batchq.slots import Slots
from batchq.store import Store
from batchq.telemetry import find_observer
from batchq.worker import Endpoint

MIN_WAIT_SECONDS = 0.01
RELEASE_SECONDS = 2.0
MAX_BEAT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """How a runner works: `lease_ms` and `drain_seconds` as on the command line.

    `batch_ids` narrows it to these batches; `until_empty` ends it when nothing served is left. One that
    `stays` is registered until it is told to `retire`: somebody still reads what it has done.
    """

    concurrency: int = 16
    lease_ms: int = DEFAULT_LEASE_MS
    drain_seconds: float = 120.0
    until_empty: bool = False
    batch_ids: frozenset[int] | None = None
    stays: bool = False

    @property
    def renew_seconds(self) -> float:
        """How old a lease may get before it is renewed; a cancelled job is noticed by then."""
        return min(self.lease_ms / 4000, MAX_BEAT_SECONDS)


class Stop(Enum):
    """How a runner ended."""

    EMPTY = "nothing left to do"
    DRAINED = "drained"
    RELEASED = "released unfinished jobs"


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
        """Serve `workers` at `endpoints`; `on_waiting` hears why nothing moves, each time it changes.

        `on_round` may be set before it runs: it is called whenever the loop comes round, at least every few seconds,
        also while the database is away. Whoever watches over the process then asks for a `report`.
        """
        self.on_round: Callable[[], None] | None = None
        self._store = store
        self._workers = frozenset(workers)
        base_urls = {name: endpoint.base_url for name, endpoint in endpoints.items()}
        self._options = options
        self.identity = RunnerIdentity(
            id=uuid.uuid4().hex,
            host=socket.gethostname(),
            pid=os.getpid(),
            concurrency=options.concurrency,
            serves=",".join(sorted(workers)),
            lease_ms=options.lease_ms,
            endpoints=json.dumps(base_urls),
            batch_ids=options.batch_ids,
            pid_space=pid_space(),
            version=installed_version(),
        )
        self._log = log.get_logger().bind(worker=self.identity.id[:8])
        self._clients = Clients(workers, endpoints, self._notice)
        self._slots = Slots(options.concurrency, self._notice, self._log, find_observer(self.identity.id))
        self._lookout = Lookout(
            store, self._workers, base_urls, options.batch_ids, self._log,
            until_empty=options.until_empty, on_waiting=on_waiting,
        )  # fmt: skip
        self._conversation = Conversation(store, self.identity, lambda: len(self._slots.ended), self._come_round)
        self._watcher: Watcher  # opened by run, which closes it
        self._wake = anyio.Event()
        self._scope = anyio.CancelScope()
        self._arrival = anyio.CancelScope()
        self._phase = Phase.STARTING
        self._drain_deadline = float("inf")
        self._beat_at = 0.0
        self._settled = False
        self._hungry = False

    def stop(self, *, now: bool = False) -> None:
        """Claim no more and let what runs finish within the drain timeout; `now` releases it at once.

        Whatever the loop is waiting for, it ends soon after: also a lock, also a database that is away.
        """
        seconds = 0.0 if now else self._options.drain_seconds
        if not self._stopping:
            self._log.info(log.WORKER_DRAINING, in_flight=self.in_flight)
        self._phase = Phase.DRAINING
        self._arrival.cancel()  # nothing is in hand before
        self._drain_deadline = min(self._drain_deadline, uptime() + seconds)
        self._scope.deadline = min(self._scope.deadline, anyio.current_time() + seconds + RELEASE_SECONDS)
        self._notice()

    @property
    def in_flight(self) -> int:
        """How many calls are running."""
        return self._slots.running

    def calls(self) -> list[AtWork]:
        """Return the calls that are running, the longest first."""
        return self._slots.calls()

    def report(self) -> RunnerReport:
        """Return where it stands."""
        settled = self._conversation.settled
        return RunnerReport(
            self._phase,
            self._concurrency,
            self.in_flight,
            settled[JobState.DONE],
            settled[JobState.FAILED],
            max(0.0, self._drain_deadline - uptime()) if self._phase is Phase.DRAINING else None,
            self._conversation.away,
        )

    @property
    def phase(self) -> Phase:
        """Where it is between its start and its end."""
        return self._phase

    @property
    def _stopping(self) -> bool:
        return self._phase in {Phase.DRAINING, Phase.STOPPED}

    async def run(self) -> Stop:
        """Work until stopped, or until empty if so asked.

        Raises CannotGoOn where what is left can't run until somebody acts, ConfigurationError where a
        worker that is needed can't be opened and nothing else is left. Cancellation releases what is held.
        """
        ended: Stop | BatchqError = Stop.RELEASED
        log.WORKER.set(self.identity.id[:8])
        self._watcher = self._store.watch(self._hear)
        async with anyio.create_task_group() as clients:
            try:
                async with anyio.create_task_group() as calls:
                    try:
                        with self._scope:
                            calls.start_soon(watch_for_standstill, self._options.renew_seconds, self._tell_standstill)
                            ended = await self._work(clients, calls)
                    except DatabaseGone as error:
                        ended = DatabaseGone(f"{error}. {self._slots.told_lost()}")
                    except BatchqError as error:  # carried out by hand: a task group would wrap it
                        ended = error
                    finally:
                        with anyio.CancelScope(shield=True):
                            await self._leave(settling=not isinstance(ended, DatabaseGone))
                        calls.cancel_scope.cancel()
            finally:
                self._watcher.close()
                self._clients.close()
                clients.cancel_scope.deadline = anyio.current_time() + RELEASE_SECONDS
        if isinstance(ended, BatchqError):
            raise ended
        return ended

    async def retire(self) -> None:
        """Say goodbye: nobody has to spare this runner's batches any more."""
        await self._store.retire(self.identity)

    async def _work(self, clients: TaskGroup, calls: TaskGroup) -> Stop:
        with self._arrival:
            await self._conversation.register()
        if self._arrival.cancelled_caught:
            return Stop.DRAINED
        if not self._stopping:
            self._phase = Phase.RUNNING
        self._log.info(log.WORKER_STARTED, pid=self.identity.pid, concurrency=self._options.concurrency)
        while True:
            reply = await self._exchange()
            log.log_claims(self._log, reply.claims)
            for claim in reply.claims:
                self._slots.assign(claim, self._clients.handler(claim.batch.worker, claim.batch.endpoint), calls)
            for serving in reply.unopened:
                self._clients.open(serving, clients)
            if self._stopping and self._slots.empty:
                return Stop.RELEASED if self._slots.released else Stop.DRAINED
            if self._clients.failure is not None:
                self._lookout.say_once(log.WORKER_UNAVAILABLE, str(self._clients.failure))
            if self._idle(reply) and await self._is_over():
                return Stop.EMPTY
            await self._wait(reply)

    async def _exchange(self) -> Exchanged:
        """Have one exchange with the store and take note of what it says."""
        self._wake = anyio.Event()
        now, renew_seconds = uptime(), self._options.renew_seconds
        if now >= self._drain_deadline:
            self._slots.cancel()
        ended, held, beat = list(self._slots.ended), self._slots.held(now, renew_seconds), now >= self._beat_at
        wants = Wants(
            slots=0 if self._stopping else max(0, self._concurrency - self._slots.running),
            serving=self._clients.serving,
            batch_ids=self._options.batch_ids,
            rooms=self._slots.windows.rooms,
        )
        reply = await self._conversation.exchange(
            ended, held, wants, beat=beat, holds_suspect=self._slots.holds_suspect
        )
        del self._slots.ended[: len(ended)]
        self._slots.renewed(held, now)
        self._slots.give_up(reply.lost)
        if reply.concurrency not in {None, self._concurrency}:
            self._change_concurrency(reply.concurrency or 1)
        if beat:
            self._beat_at = now + renew_seconds
            await self._finish_cancels()
        if self._conversation.clock_was_set:
            self._beat_at = now  # by which all know what the clock shows by now
        return reply

    async def _wait(self, reply: Exchanged) -> None:
        """Sleep until an attempt ends, a lease wants renewing, or there may be something to claim."""
        if self._slots.ended:
            return
        now = uptime()
        renewal = self._slots.next_renewal(self._options.renew_seconds)
        until = min(self._beat_at, self._drain_deadline, renewal, now + MAX_BEAT_SECONDS)
        self._hungry = hungry = not self._stopping and self._slots.running < self._concurrency
        if hungry and reply.wake_in_ms is not None:
            until = min(until, now + reply.wake_in_ms / 1000)
        if self._slots.empty and self._options.until_empty:
            until = min(until, self._lookout.next_at)
        # Never in a tight loop: a call that ignores its cancellation would keep a passed deadline due.
        until = max(until, now + MIN_WAIT_SECONDS)
        while (left := until - uptime()) > 0:
            with anyio.move_on_after(min(left, self._watcher.poll_seconds) if hungry else left):
                await self._wake.wait()
            if self._wake.is_set() or (hungry and self._watcher.changed()):
                return

    @property
    def _concurrency(self) -> int:
        """How many calls to make at once: as started, or as an operator said since."""
        return self._slots.windows.concurrency

    def _change_concurrency(self, concurrency: int) -> None:
        self._log.info(log.WORKER_CONCURRENCY, concurrency=concurrency, before=self._concurrency)
        self._slots.windows.widen(concurrency)

    def _idle(self, reply: Exchanged) -> bool:
        return self._slots.empty and not (reply.claims or self._clients.busy or self._stopping)

    async def _is_over(self) -> bool:
        """Whether nothing served is left; raises what keeps this process from going on."""
        if self._clients.failure is not None:
            raise self._clients.failure
        return await self._lookout.sees_the_end(careful=self._conversation.is_careful)

    def _tell_standstill(self, seconds: float) -> None:
        workers = self._slots.at_work() or sorted(self._workers)
        reason = log.WHY_STOOD_STILL
        self._log.warning(log.WORKER_STOOD_STILL, seconds=round(seconds, 1), workers=workers, reason=reason)

    async def _finish_cancels(self) -> None:
        """Finish what an operator began to cancel and did not live to end."""
        if self._stopping:
            return
        try:
            await self._store.finish_cancels()
        except StoreError as error:
            self._log.warning(log.DATABASE_UNAVAILABLE, reason=str(error))

    def _come_round(self) -> None:
        if self.on_round is not None:
            self.on_round()

    def _notice(self) -> None:
        self._wake.set()

    def _hear(self) -> None:
        """Hear that there may be work."""
        if self._hungry:
            self._notice()

    async def _leave(self, *, settling: bool) -> None:
        """Settle or release what is left and say goodbye; what can't be written expires by itself."""
        self._slots.cancel()
        self._slots.give_back_unbegun()
        with anyio.move_on_after(RELEASE_SECONDS):
            while self._slots.running:
                self._wake = anyio.Event()
                await self._wake.wait()
        if settling:
            with anyio.move_on_after(RELEASE_SECONDS):
                await self._settle_and_retire()
            if not self._settled and (lost := self._slots.answers_in_hand):
                self._log.error(log.RESULTS_LOST, results=lost, reason=log.WHY_LOST)
        self._phase = Phase.STOPPED
        self._come_round()
        self._log.info(log.WORKER_STOPPED, released=self._slots.released)

    async def _settle_and_retire(self) -> None:
        try:
            await self._settle_rest()
            self._settled = True
            if not self._options.stays:
                await self.retire()
        except BatchqError as error:  # what ended the runner is told by who runs it
            self._log.warning(log.DATABASE_UNAVAILABLE, reason=str(error))

    async def _settle_rest(self) -> None:
        rest = self._slots.rest()
        held = [Held(item.claim.job_id, item.claim.token, renew=False) for item in rest]
        reply = await self._conversation.exchange(rest, held)
        if reply.claims:  # of an exchange that was broken off: adopted, to be given back
            await self._conversation.exchange([Ended(claim, Released(), 0) for claim in reply.claims], [])
