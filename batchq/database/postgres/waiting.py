"""Waits before another try: for a server that is away, for a lock that others hold, after a lost race."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from enum import Enum

from batchq.database.contract import OnLocked
from batchq.database.postgres.refusal import NotLetIn, ServerBusy
from batchq.errors import ConfigurationError, DatabaseBusy, DatabaseUnavailable

_CONFLICTS = 20
_CONFLICT_SECONDS = (0.005, 0.05)
_AWAY_SECONDS = (0.1, 0.5)
_LONG_SECONDS = 5.0


class Obstacle(Enum):
    """Why nothing was done."""

    AWAY = "the server can't be used at the moment"
    LOCKED = "others held a lock for longer than a statement waits for one"
    CONFLICT = "the transaction lost to another one, or was not begun: it may be repeated at once"


@dataclass(frozen=True, slots=True)
class NotNow:
    """Nothing was done, and it may be tried again."""

    reason: Exception
    obstacle: Obstacle


class Wait:
    """The wait of one call: as long as patience allows, not at all without any, and told of once when it lasts."""

    def __init__(
        self,
        location: str,
        patience: float | None,
        on_locked: OnLocked | None,
        *,
        locked: type[DatabaseBusy | DatabaseUnavailable] = DatabaseBusy,
        opening: bool = False,
    ) -> None:
        """Begin to wait; `locked` is what to raise where patience ends at a lock."""
        self._location = location
        self._patience = patience or 0.0
        self._on_locked = on_locked
        self._locked = locked
        self._opening = opening
        self._conflicts = 0
        self._began = time.monotonic()

    async def a_moment(self, not_now: NotNow) -> None:
        """Sleep before the next try. Raises the reason when patience has ended, or when waiting can't help."""
        match not_now.obstacle:
            case Obstacle.CONFLICT:
                self._count_conflict(not_now.reason)
                await asyncio.sleep(random.uniform(*_CONFLICT_SECONDS))
            case Obstacle.LOCKED:
                self._wait_for_lock(not_now.reason)
                await asyncio.sleep(random.uniform(*_CONFLICT_SECONDS))  # the wait itself was the server's
            case Obstacle.AWAY:
                self._wait_for_server(not_now.reason)
                await asyncio.sleep(random.uniform(*_AWAY_SECONDS))

    def _count_conflict(self, reason: Exception) -> None:
        self._conflicts += 1
        if self._conflicts > _CONFLICTS:
            raise DatabaseUnavailable(f"{self._location}: others were in the way {self._conflicts} times") from reason

    def _wait_for_lock(self, reason: Exception) -> None:
        said = f"{self._location} is locked by others"
        if self._patience <= 0:
            raise DatabaseUnavailable(f"{said} right now") from reason
        if self._waited() >= self._patience:
            raise self._locked(f"{said}; waited {self._patience:g} s") from reason
        self._tell(said)

    def _wait_for_server(self, reason: Exception) -> None:
        """Who opens a database may have named the wrong one: only one that is there, and busy, is waited for."""
        if self._opening and isinstance(reason, NotLetIn):
            raise ConfigurationError(str(reason)) from reason
        awaited = ServerBusy if self._opening else DatabaseUnavailable
        if self._waited() >= self._patience or not isinstance(reason, awaited):
            raise reason
        self._tell(str(reason))

    def _waited(self) -> float:
        return time.monotonic() - self._began

    def _tell(self, said: str) -> None:
        if self._on_locked is not None and self._waited() >= _LONG_SECONDS:
            self._on_locked(f"{said}; waiting for it")
            self._on_locked = None
