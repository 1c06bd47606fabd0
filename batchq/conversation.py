"""A runner's side of the exchange: waits out outages, and finds the one result that can't be stored."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace

import anyio

from batchq import log
from batchq.errors import DatabaseUnavailable, DataRefused
from batchq.jobs import Ended, Exchanged, Failed, Held, Reason, RunnerIdentity, Wants
from batchq.settlement import Settlement, settle
from batchq.store import ExchangeRequest, Store

_FIRST_DELAY = 0.2
_LAST_DELAY = 5.0


class Conversation:
    """Exchanges that end only when they are committed."""

    def __init__(self, store: Store, runner: RunnerIdentity) -> None:
        """Speak for `runner`."""
        self._store = store
        self._runner = runner
        self._adopt = False
        self._last = time.time()
        self._careful_until = 0.0
        self._log = log.get_logger().bind(worker=runner.id[:8])

    async def exchange(
        self, ended: Sequence[Ended], held: Sequence[Held], wants: Wants, *, beat: bool = False
    ) -> Exchanged:
        """Settle, renew and claim; while the database is away, wait and keep the results in hand."""
        settlements = [settle(item) for item in ended]
        delay = _FIRST_DELAY
        while True:
            request = ExchangeRequest(
                self._runner, settlements, held, wants, expired_too=self._may_recover(), adopt=self._adopt, beat=beat
            )
            try:
                reply = await self._store.exchange(request)
            except DatabaseUnavailable as error:
                self._adopt = True  # the commit may have happened all the same
                self._log.warning(log.DATABASE_UNAVAILABLE, reason=str(error), results_in_hand=len(settlements))
                await anyio.sleep(random.uniform(delay / 2, delay))
                delay = min(delay * 2, _LAST_DELAY)
            except DataRefused as error:
                settlements = await self._settle_one_by_one(request, settlements, error)
            else:
                self._adopt = False
                self._last = time.time()
                if delay > _FIRST_DELAY:
                    self._log.info(log.DATABASE_BACK)
                return reply

    def _may_recover(self) -> bool:
        """Whether expired jobs may be claimed: not right after a gap, since others slept through it too."""
        now, quarter = time.time(), self._runner.lease_ms / 4000
        if now - self._last > quarter:
            self._careful_until = now + quarter
        return now >= self._careful_until

    async def _settle_one_by_one(
        self, request: ExchangeRequest, settlements: Sequence[Settlement], error: DataRefused
    ) -> list[Settlement]:
        """Settle in halves without claiming; return the one left over, as a failure that can be stored."""
        if not settlements:
            raise error
        if len(settlements) == 1:
            return [self._failure(settlements[0], error)]
        middle = len(settlements) // 2
        left: list[Settlement] = []
        for half in (settlements[:middle], settlements[middle:]):
            part = replace(request, settlements=half, wants=Wants(0, ()), beat=False, adopt=False)
            try:
                await self._store.exchange(part)
            except DataRefused as refused:
                left += await self._settle_one_by_one(request, half, refused)
        return left

    def _failure(self, settlement: Settlement, error: DataRefused) -> Settlement:
        claim = settlement.ended.claim
        self._log.error(log.RESULT_REFUSED, batch=claim.batch.name, position=claim.position, reason=str(error))
        reason = Reason("unstorable", f"the answer can't be stored: {error}")
        return settle(replace(settlement.ended, outcome=Failed(reason)))
