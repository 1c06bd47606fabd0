"""This process's own clock, for its own waits; leases and due times are the database's."""

from __future__ import annotations

import time


def uptime() -> float:
    """Return seconds on a clock that never jumps and goes on while the machine sleeps, where there is one."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)
