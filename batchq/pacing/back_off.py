"""How long a job waits before its next attempt, and a lane where the provider names no time."""

from __future__ import annotations

import random

BACK_OFF_BASE_MS = 1_000
BACK_OFF_CAP_MS = 120_000
MAX_RETRY_AFTER_MS = 24 * 3_600_000
FIRST_PAUSE_MS = 500
LONGEST_PAUSE_MS = 60_000
# A clock that is off, or a Retry-After of 0, would make a loop of calls and refusals.
LEAST_PAUSE_MS, SHORT_MS = 100, 1_000
LONGEST_ADDED_MS = 10_000


def back_off_ms(attempt: int) -> int:
    """Return a delay before attempt `attempt` + 1: uniform between 0 and 1, 2, 4 … 120 s.

    Full jitter spreads a crowd that failed together (AWS Architecture Blog, "Exponential Backoff
    And Jitter").
    """
    ceiling = min(BACK_OFF_CAP_MS, BACK_OFF_BASE_MS * 2 ** min(attempt - 1, 20))
    return random.randint(0, ceiling)


def delay_ms(after: float | None, attempt: int) -> int:
    """Return what was asked for, in ms, or a back-off where nothing was."""
    asked = asked_ms(after)
    return back_off_ms(attempt) if asked is None else asked


def asked_ms(after: float | None) -> int | None:
    """Return the time that a provider asked for, in ms and within a day; None where it asked for nothing."""
    return None if after is None else min(MAX_RETRY_AFTER_MS, max(0, round(after * 1000)))


def pause_ms(asked: int | None, vain_pauses: int) -> int:
    """Return how long a throttled lane waits: what the provider asked for, or 0.5, 1, 2 … 60 s where it names no time.

    That is short, since the lane's rate is what keeps it from the next 429, and doubles with every pause after
    which not one call was let through. A time of less than a second that proved too short is made longer too.
    """
    growing = FIRST_PAUSE_MS << min(vain_pauses, 20)
    if asked is None:
        return min(LONGEST_PAUSE_MS, growing)
    if asked >= SHORT_MS:
        return asked
    return max(asked, LEAST_PAUSE_MS, min(LONGEST_ADDED_MS, growing) if vain_pauses else 0)
