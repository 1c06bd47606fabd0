"""A runner's side of the exchange: waits out outages, and finds the one result that can't be stored."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import anyio

from batchq import log
from batchq.clock import Comparison, uptime
from batchq.errors import DatabaseUnavailable, DataRefused, NotWritable
from batchq.jobs import Ended, Exchanged, Failed, Held, JobState, Reason, RunnerIdentity, Wants
from batchq.settlement import Settlement, settle
from batchq.store import ExchangeRequest, Store

_FIRST_DELAY = 0.2
_LAST_DELAY = 5.0
# Of an outage that lasts longer than this, it is told only as often.
_TOLD_SECONDS = 60.0
# A commit of which no word came back may still be under way on the server: longer than any wait between two tries.
_UNSURE_SECONDS = 30.0
# Clocks are set by less all the time.
_JUMP_SECONDS = 10.0
NOTHING = Wants(0, ())


class Conversation:
    """Exchanges that are repeated until the database has taken what they settle."""

    def __init__(
        self, store: Store, runner: RunnerIdentity, in_hand: Callable[[], int], came_round: Callable[[], None]
    ) -> None:
        """Speak for `runner`; `in_hand` is how many results it holds at any moment, also those that are under way.

        `came_round` is called after each try, also while the database is `away` (why). `clock_was_set` says of the
        last exchange whether the database's clock was set before it, `settled` counts what became of the jobs.
        """
        self._store = store
        self._runner = runner
        self._in_hand = in_hand
        self._came_round = came_round
        self.away: str | None = None
        self.settled: Counter[JobState] = Counter()
        self._unsure_until = 0.0
        self._last = uptime()
        self._careful_until = 0.0
        self._database_clock = Comparison()
        self.clock_was_set = False
        self._log = log.get_logger().bind(worker=runner.id[:8])

    async def register(self) -> None:
        """Announce the runner; while the database is away, wait. Raises NotWritable: no right comes by waiting."""
        outage = self._outage()
        while True:
            try:
                await self._store.register(self._runner)
            except NotWritable:
                raise
            except DatabaseUnavailable as error:
                self._tell_round(str(error))
                await outage.wait(error)
            else:
                self._tell_round()
                outage.over()
                return

    async def exchange(
        self,
        ended: Sequence[Ended],
        held: Sequence[Held],
        wants: Wants = NOTHING,
        *,
        beat: bool = False,
        holds_suspect: bool = False,
    ) -> Exchanged:
        """Settle, renew and claim; while the database is away, wait and keep the results in hand."""
        request = ExchangeRequest(
            self._runner, [settle(item) for item in ended], held, wants, beat=beat, holds_suspect=holds_suspect
        )
        outage = self._outage()
        while True:
            try:
                reply = await self._ask(request)
            except DatabaseUnavailable as error:
                self._tell_round(str(error))
                await outage.wait(error)
            except DataRefused as error:
                if request.settlements:
                    left = await self._settle_in_parts(request)
                    request = replace(request, settlements=left)
                    if left:
                        await outage.back_off()
                else:
                    self._log.error(log.DATA_REFUSED, reason=str(error))
                    await outage.back_off()
            else:
                self._tell_round()
                outage.over()
                return reply

    def _tell_round(self, away: str | None = None) -> None:
        self.away = away
        self._came_round()

    def _outage(self) -> _Outage:
        return _Outage(self._log, self._in_hand)

    async def _ask(self, request: ExchangeRequest, *, adopt: bool = True) -> Exchanged:
        """Have one exchange; for a while after any that did not return, ask for claims that it made all the same."""
        asked = uptime()
        self._heed_gap()
        request = replace(
            request,
            expired_too=not self.is_careful,
            clock_by=self._database_clock.latest(self._quarter_seconds * 1000),
            adopt=asked < self._unsure_until and adopt,
        )
        try:
            reply = await self._store.exchange(request)
        except BaseException:
            self._unsure_until = uptime() + _UNSURE_SECONDS
            raise
        self._heed_gap()  # it may have waited for a lock that the others waited for, too
        self._last = uptime()
        self.settled.update(item.state for item in request.settlements)
        log.log_exchange(self._log, request.settlements, reply)
        self._heed_jump(self._database_clock.read(reply.now, asked))
        return reply

    @property
    def is_careful(self) -> bool:
        """Whether times in the database may have run out while nobody could renew them."""
        return uptime() < self._careful_until

    @property
    def _quarter_seconds(self) -> float:
        return self._runner.lease_ms / 4000

    def _heed_gap(self) -> None:
        """Be careful after a gap: others may have slept through it, too, and must renew first.

        Who waits for a database that was away waits no longer than it was, before he asks again.
        """
        now = uptime()
        gap = now - self._last
        if gap > self._quarter_seconds:
            self._careful_until = now + max(self._quarter_seconds, min(gap, _LAST_DELAY))

    def _heed_jump(self, seconds: float) -> None:
        """Be careful after the database's clock was set forward, as after a gap; tell of a jump."""
        if seconds > self._quarter_seconds:
            self._careful_until = uptime() + self._quarter_seconds
        self.clock_was_set = abs(seconds) > _JUMP_SECONDS
        if self.clock_was_set:
            self._log.warning(log.CLOCK_SET, seconds=round(seconds), what_it_does=log.WHAT_A_JUMP_DOES)

    async def _settle_in_parts(self, request: ExchangeRequest) -> list[Settlement]:
        """Settle in halves without claiming; return what is left, as failures that can be stored."""
        settlements = request.settlements
        try:
            await self._ask(replace(request, wants=NOTHING, beat=False), adopt=False)
        except DataRefused as refused:
            if len(settlements) == 1:
                return [self._failure(settlements[0], refused)]
            middle = len(settlements) // 2
            halves = (settlements[:middle], settlements[middle:])
            return [item for half in halves for item in await self._settle_in_parts(replace(request, settlements=half))]
        return []

    def _failure(self, settlement: Settlement, error: DataRefused) -> Settlement:
        claim = settlement.ended.claim
        self._log.error(log.RESULT_REFUSED, batch=claim.batch.name, position=claim.position, reason=str(error))
        reason = Reason("unstorable", f"the answer can't be stored: {error}")
        paid = settlement.answer
        kept = None if paid is None else replace(paid, result="null", meta=None, response=None, finish_reason=None)
        return settle(replace(settlement.ended, outcome=Failed(reason, kept)))


class _Outage:
    """Waits longer from one try to the next, and tells of an outage that may come while they last."""

    def __init__(self, logger: log.Logger, in_hand: Callable[[], int]) -> None:
        self._log = logger
        self._in_hand = in_hand
        self._delay = _FIRST_DELAY
        self._began: float | None = None
        self._told = 0.0

    async def wait(self, error: DatabaseUnavailable) -> None:
        """Wait before the database is asked again; tell why, each time at first, then once in a while."""
        now = uptime()
        if self._began is None:
            self._began = now
        if now < self._began + _TOLD_SECONDS or now >= self._told + _TOLD_SECONDS:
            self._told = now
            away = round(now - self._began, 1)
            self._log.warning(
                log.DATABASE_UNAVAILABLE, reason=str(error), results_in_hand=self._in_hand(), away_seconds=away
            )
        await self.back_off()

    async def back_off(self) -> None:
        """Wait before the next try."""
        await anyio.sleep(random.uniform(self._delay / 2, self._delay))
        self._delay = min(self._delay * 2, _LAST_DELAY)

    def over(self) -> None:
        """Tell that the database is back, where it was away."""
        if self._began is not None:
            self._log.info(log.DATABASE_BACK, away_seconds=round(uptime() - self._began, 1))
