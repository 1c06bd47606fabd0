"""A runner's side of the exchange: waits out outages, and finds the one result that can't be stored."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import anyio

from batchq import log
from batchq.clock import uptime
from batchq.errors import DatabaseUnavailable, DataRefused
from batchq.jobs import Ended, Exchanged, Failed, Held, Reason, RunnerIdentity, Wants
from batchq.settlement import Settlement, settle
from batchq.store import ExchangeRequest, Store

_FIRST_DELAY = 0.2
_LAST_DELAY = 5.0
# A commit of which no word came back may still be under way on the server: longer than any wait between two tries.
_UNSURE_SECONDS = 30.0
NOTHING = Wants(0, ())


class Conversation:
    """Exchanges that are repeated until the database has taken what they settle."""

    def __init__(self, store: Store, runner: RunnerIdentity) -> None:
        """Speak for `runner`."""
        self._store = store
        self._runner = runner
        self._unsure_until = 0.0
        self._last = uptime()
        self._careful_until = 0.0
        self._log = log.get_logger().bind(worker=runner.id[:8])

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
        delay = _FIRST_DELAY
        while True:
            try:
                reply = await self._ask(request)
            except DatabaseUnavailable as error:
                held_back = len(request.settlements)
                self._log.warning(log.DATABASE_UNAVAILABLE, reason=str(error), results_in_hand=held_back)
                delay = await _back_off(delay)
            except DataRefused as error:
                if request.settlements:
                    left = await self._settle_in_parts(request)
                    request = replace(request, settlements=left)
                    delay = await _back_off(delay) if left else delay
                else:
                    self._log.error(log.DATA_REFUSED, reason=str(error))
                    delay = await _back_off(delay)
            else:
                if delay > _FIRST_DELAY:
                    self._log.info(log.DATABASE_BACK)
                return reply

    async def _ask(self, request: ExchangeRequest, *, adopt: bool = True) -> Exchanged:
        """Have one exchange; for a while after any that did not return, ask for claims that it made all the same."""
        unsure = uptime() < self._unsure_until
        request = replace(request, expired_too=self._may_recover(), adopt=unsure and adopt)
        try:
            reply = await self._store.exchange(request)
        except BaseException:
            self._unsure_until = uptime() + _UNSURE_SECONDS
            raise
        self._last = uptime()
        return reply

    def _may_recover(self) -> bool:
        """Whether expired jobs may be claimed: not right after a gap, since others slept through it too."""
        now, quarter = uptime(), self._runner.lease_ms / 4000
        if now - self._last > quarter:
            self._careful_until = now + quarter
        return now >= self._careful_until

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


async def _back_off(delay: float) -> float:
    await anyio.sleep(random.uniform(delay / 2, delay))
    return min(delay * 2, _LAST_DELAY)
