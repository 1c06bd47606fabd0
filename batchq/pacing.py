"""How long to wait: back-off with full jitter, and a lane's pause when a provider names none."""

from __future__ import annotations

import random

BACK_OFF_BASE_MS = 1_000
BACK_OFF_CAP_MS = 120_000
MAX_RETRY_AFTER_MS = 24 * 3_600_000
DEFAULT_PAUSE_MS = 2_000


def back_off_ms(attempt: int) -> int:
    """Return a delay before attempt `attempt` + 1: uniform between 0 and 1, 2, 4 … 120 s.

    Full jitter spreads a crowd that failed together (AWS Architecture Blog, "Exponential Backoff
    And Jitter").
    """
    ceiling = min(BACK_OFF_CAP_MS, BACK_OFF_BASE_MS * 2 ** min(attempt - 1, 20))
    return random.randint(0, ceiling)


def delay_ms(after: float | None, attempt: int) -> int:
    """Return what the provider asked for, in ms, or a back-off where it asked for nothing."""
    if after is None:
        return back_off_ms(attempt)
    return min(MAX_RETRY_AFTER_MS, max(0, round(after * 1000)))


def pause_ms(after: float | None) -> int:
    """Return how long a throttled lane waits."""
    return DEFAULT_PAUSE_MS if after is None else min(MAX_RETRY_AFTER_MS, max(0, round(after * 1000)))
