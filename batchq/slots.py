"""The claims in hand: running in slots, or ended and not settled yet. A slot is free once both are over."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskGroup

from batchq import log
from batchq.clock import uptime
from batchq.executor import execute
from batchq.jobs import AtWork, Claim, Ended, Held, Outcome, Released
from batchq.telemetry import Observe
from batchq.windows import Place, Windows
from batchq.worker import Handler

# What a call sends leaves when the event loop gets to its sockets: after so many, it does.
BEGIN_AT_ONCE = 16


@dataclass(slots=True)
class _Running:
    """A claim at work. `given_up` marks one whose job is somebody else's by now."""

    claim: Claim
    handler: Handler
    held: Held
    renewed_at: float
    place: Place
    began_at: float | None = None
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    given_up: bool = False


class Slots:
    """Runs claims beside each other and keeps what they left behind until it is settled."""

    def __init__(
        self, concurrency: int, on_end: Callable[[], None], logger: log.Logger, observe: Observe | None = None
    ) -> None:
        """Call `on_end` whenever an attempt ended; `observe` follows each from its beginning."""
        self._observe = observe
        self._on_end = on_end
        self._log = logger
        self.windows = Windows(concurrency)
        self._running: dict[int, _Running] = {}
        self._unbegun: deque[_Running] = deque()
        self._suspects = 0
        self._tasks = 0
        self._idle: deque[asyncio.Future[None]] = deque()
        self._beginning = False
        self.ended: list[Ended] = []
        self.released = 0

    @property
    def running(self) -> int:
        """How many calls are running."""
        return len(self._running)

    @property
    def empty(self) -> bool:
        """Whether nothing is in hand."""
        return not self._running and not self.ended

    @property
    def holds_suspect(self) -> bool:
        """Whether a job that may have killed its workers is running here."""
        return self._suspects > 0

    def told_lost(self) -> str:
        """Say what goes down with a database that is gone."""
        return f"{len(self.ended):,} answers in hand are lost with it, and {self.running:,} calls are broken off"

    @property
    def answers_in_hand(self) -> int:
        """How many calls have ended by themselves and are not settled."""
        return sum(not isinstance(item.outcome, Released) for item in self.ended)

    def at_work(self) -> list[str]:
        """Return the names of the workers whose calls are in hand."""
        claims = [item.claim for item in self._running.values()] + [item.claim for item in self.ended]
        return sorted({claim.batch.worker for claim in claims})

    def calls(self) -> list[AtWork]:
        """Return the calls that are running, the longest first."""
        now = uptime()
        began = [(item, item.began_at) for item in self._running.values() if item.began_at is not None]
        return sorted((AtWork(item.claim, now - at) for item, at in began), key=lambda call: -call.seconds)

    def assign(self, claim: Claim, handler: Handler, group: TaskGroup) -> None:
        """Give a claim to a free slot; slots are tasks that stay, since starting one per job costs more."""
        held = Held(claim.job_id, claim.token, renew=False)
        running = _Running(claim, handler, held, uptime(), self.windows.begin(claim))
        self._running[claim.job_id] = running
        self._suspects += claim.is_suspect
        self._unbegun.append(running)
        if len(self._running) > self._tasks:
            self._tasks += 1
            group.start_soon(self._fill)
        self._begin_soon()

    def held(self, now: float, renew_seconds: float) -> list[Held]:
        """Return everything in hand; what was renewed long ago asks for it again."""
        due = now - renew_seconds
        held = [
            item.held if item.renewed_at > due else Held(job_id, item.claim.token, renew=True)
            for job_id, item in self._running.items()
        ]
        return held + [Held(item.claim.job_id, item.claim.token, renew=False) for item in self.ended]

    def renewed(self, held: Collection[Held], now: float) -> None:
        """Take note of the leases that an exchange renewed."""
        for item in held:
            if item.renew and (running := self._running.get(item.job_id)):
                running.renewed_at = now

    def next_renewal(self, renew_seconds: float) -> float:
        """Return when the next lease wants renewing."""
        return min((item.renewed_at for item in self._running.values()), default=float("inf")) + renew_seconds

    def give_up(self, lost: frozenset[int]) -> None:
        """Cancel the calls whose jobs are somebody else's by now."""
        for job_id in lost:
            if running := self._running.get(job_id):
                running.given_up = True
                running.scope.cancel()
                log.log_lost(self._log, running.claim)

    def cancel(self) -> None:
        """Cancel all calls: they end as released."""
        for running in self._running.values():
            running.scope.cancel()

    def give_back_unbegun(self) -> None:
        """Release the claims that no slot has begun."""
        while self._unbegun:
            unbegun = self._unbegun.popleft()
            self._forget(unbegun, Released())
            self.ended.append(Ended(unbegun.claim, Released(), 0))

    def rest(self) -> list[Ended]:
        """Return what ended, and, as released, what still runs although it was cancelled."""
        return [*self.ended, *(Ended(item.claim, Released(), 0) for item in self._running.values())]

    def _forget(self, running: _Running, outcome: Outcome) -> None:
        del self._running[running.claim.job_id]
        self._suspects -= running.claim.is_suspect
        self.windows.end(running.claim, running.place, outcome)

    def _begin_soon(self) -> None:
        if self._unbegun and self._idle and not self._beginning:
            self._beginning = True
            asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        """Wake some of the idle slots, and the next ones when these have begun."""
        self._beginning = False
        for _ in range(min(BEGIN_AT_ONCE, len(self._unbegun), len(self._idle))):
            turn = self._idle.popleft()
            if not turn.done():  # else its slot was cancelled
                turn.set_result(None)
        self._begin_soon()

    async def _fill(self) -> None:
        while True:
            turn = asyncio.get_running_loop().create_future()
            self._idle.append(turn)
            self._begin_soon()
            await turn
            if self._unbegun:  # else given back meanwhile
                await self._attempt(self._unbegun.popleft())

    async def _attempt(self, running: _Running) -> None:
        """Run one claim and leave its end behind, whatever happens."""
        claim, began = running.claim, time.monotonic()
        running.began_at = uptime()
        log.CALL.set(claim)
        observed = None if self._observe is None else self._observe(claim)
        outcome: Outcome = Released()
        try:
            outcome = await execute(claim, running.handler, running.scope)
        finally:
            seconds = time.monotonic() - began
            self._forget(running, outcome)
            ended = Ended(claim, outcome, round(seconds * 1000))
            # What was lost and has no answer has nothing to say; a late answer is logged with its cost.
            if not (running.given_up and isinstance(outcome, Released)):
                self.released += isinstance(outcome, Released)
                self.ended.append(ended)
            self._on_end()
            if observed is not None:
                observed.end(outcome, seconds)
