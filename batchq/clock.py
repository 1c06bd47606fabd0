"""This process's own clock, for its own waits; leases and due times are the database's."""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio

LOOK_SECONDS = 1.0


def uptime() -> float:
    """Return seconds on a clock that never jumps and goes on while the machine sleeps, where there is one."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


class Comparison:
    """Another clock beside this process's own: what it may show next, and by how much it was set meanwhile."""

    def __init__(self) -> None:
        """Start without a reading."""
        self._shown: int | None = None
        self._asked, self._heard = 0.0, 0.0

    def latest(self, margin_ms: float) -> int | None:
        """Return what the other clock shows at most, unless it is set forward; None before its first reading."""
        return None if self._shown is None else round(self._shown + (uptime() - self._asked) * 1000 + margin_ms)

    def read(self, shown: int, asked: float) -> float:
        """Take note of what it showed at some moment since `asked`; return the seconds that it was set by, at least."""
        heard, jump = uptime(), 0.0
        if self._shown is not None:
            passed = (shown - self._shown) / 1000
            shortest, longest = asked - self._heard, heard - self._asked
            jump = passed - min(max(passed, shortest), longest)
        self._shown, self._asked, self._heard = shown, asked, heard
        return jump


async def watch_for_standstill(limit_seconds: float, tell: Callable[[float], None]) -> None:
    """Tell of each time for which this event loop did not come round for longer than the limit; until cancelled."""
    while True:
        due = uptime() + LOOK_SECONDS
        await anyio.sleep(LOOK_SECONDS)
        if (late := uptime() - due) > limit_seconds:
            tell(late)
