"""The look ahead of an idle runner: whether all is done, and else why nothing moves, told once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from batchq import log
from batchq.clock import uptime
from batchq.errors import CannotGoOn, DamagedRow, StoreError
from batchq.outlook import Blocked, Finished, Outlook, Waiting, look_ahead
from batchq.store import Store

LOOK_SECONDS = 0.25
PATIENT_LOOK_SECONDS = 5.0


class Lookout:
    """Looks ahead for a runner with nothing to do: not at each of its rounds, and for no longer than it has nothing.

    With `until_empty` the runner wants to end; otherwise it stays, whatever is left, and says why it waits.
    """

    def __init__(
        self,
        store: Store,
        workers: Collection[str],
        base_urls: Mapping[str, str],
        batch_ids: Collection[int] | None,
        logger: log.Logger,
        *,
        until_empty: bool,
        on_waiting: Callable[[str], None] | None,
    ) -> None:
        """Look for who serves `workers` at `base_urls`; `on_waiting` hears why nothing moves, each time it changes."""
        self._store = store
        self._workers = workers
        self._base_urls = base_urls
        self._batch_ids = batch_ids
        self._log = logger
        self._until_empty = until_empty
        self._on_waiting = on_waiting
        self._blocked = False
        self._said = ""
        self.next_at = 0.0

    async def sees_the_end(self, *, careful: bool) -> bool:
        """Whether nothing served is left. Raises CannotGoOn where what is left is stuck.

        Not while the runner is `careful`: what looks stuck may be somebody who slept, too.
        """
        if uptime() < self.next_at:
            return False
        outlook = await self._look()
        # Once is not enough: the clock may have been set between the exchange and this look.
        blocked_before, self._blocked = self._blocked, isinstance(outlook, Blocked)
        match outlook:
            case Finished(unserved) if self._until_empty:
                if unserved:
                    self._log.warning(log.WORKER_LEAVES, batches=list(unserved), reason="not served by this process")
                return True
            case Blocked(reasons) if self._until_empty:
                if blocked_before and not careful:
                    raise CannotGoOn("; ".join(reasons))
            case Blocked(reasons):
                self.say_once(log.WORKER_WAITING, "; ".join(reasons))
            case Waiting(reason):
                if self.say_once(log.WORKER_WAITING, reason) and self._on_waiting:
                    self._on_waiting(reason)
            case _:
                pass
        return False

    def say_once(self, event: str, reason: str) -> bool:
        """Log a reason when it is another than the last time."""
        if reason == self._said:
            return False
        self._said = reason
        self._log.warning(event, reason=reason)
        return True

    async def _look(self) -> Outlook | None:
        """Weigh what is left; None while the database is away."""
        self.next_at = uptime() + (LOOK_SECONDS if self._until_empty else PATIENT_LOOK_SECONDS)
        try:
            return await look_ahead(self._store, self._workers, self._base_urls, self._batch_ids)
        except StoreError as error:  # the next exchange waits it out
            if isinstance(error, DamagedRow) and self._until_empty:
                raise  # that will not pass
            self._log.warning(log.DATABASE_UNAVAILABLE, reason=str(error))
            return None
