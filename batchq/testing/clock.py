"""A clock that stands still until it is told."""

from __future__ import annotations

import time


class VirtualClock:
    """The clock of a queue's database, in integer milliseconds: leases, back-offs and limits go by it."""

    def __init__(self, start_ms: int | None = None) -> None:
        """Start at a time in milliseconds since the epoch, or now."""
        self._now = round(time.time() * 1000) if start_ms is None else start_ms

    def __call__(self) -> int:
        """Return the time, in milliseconds since the epoch."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass; it never goes back."""
        if seconds < 0:
            raise ValueError(f"time does not go back: {seconds}")
        self._now += round(seconds * 1000)
