"""Learns a lane's rate from the provider's 429s.

A 429 ends an *episode*, which began when the pause before it did end. At the next resume the episode is
judged: how many calls were let through (`started - rejected`), in what time. A limiter that refuses by
rate or count lets through at least as much as it did before at the same rate, so its 429s come later and
later as the rate falls, and each one tells the rate that it stands for. 429s that come at random (an
overloaded provider, a pool shared with strangers) don't: an episode much shorter than the one before
shows them, and then the rate is not cut, since that would cost time and save nothing.

Between 429s the rate grows with the calls that start, and only while the lane is saturated: quickly up to
where the last 429 came, slowly there, and ever faster beyond it, as TCP CUBIC does (RFC 9438).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchq.pacing.lane import LaneState

LOWEST_RATE = 0.2
# How much may start at once: what the rate brings in so many seconds, so that whoever wakes late loses
# nothing; but no more than a part of what was let through at once before the first 429.
BURST_SECONDS, BURST_PART = 0.1, 0.4

# How far below the rate of the last 429 to go on, and where "near it" begins.
_BACK, _FEW_BACK, _NEAR = 0.97, 0.7, 0.97
_FEW_CALLS = 4
_PROVEN_PART, _PROVEN_FADE, _FADE = 0.7, 0.95, 0.9
# A bucket's burst is in what an episode let through, and is no part of its rate.
_BURST_SHARE, _BURST_MOST = 0.2, 5.0
_SHORTEST_MEASURE = 0.2
# After a long episode the rate itself is the better measure: nobody wakes in time for every call.
_LONG_SECONDS, _TRUSTED = 5.0, 0.95
# An episode is "much shorter" with less than this part of the calls of those before, within a second or, at a low
# rate, within the time of a few calls.
_SHORTER, _SUDDEN_SECONDS, _SUDDEN_CALLS = 0.75, 1.0, 6.0
_OPENING_MOST = 1_000.0
# Growth per call that starts, in calls per second: until the first limit is met, up to the last one, near it.
_GROW_FIRST, _GROW_BACK, _GROW_NEAR = 1.0, 0.02, 0.004
_PATIENCE_SECONDS = 10.0
# Well beyond the last 429, with none since, it was no limit that stands: more may start at once too.
_BEYOND, _BURST_GROWTH = 1.2, 0.1
# Where calls wait for the rate, one starts at least so often.
_GAP_MS, _GAP_CALLS = 10_000, 10
# A call that starts within so many ms, or calls' worth of time, of the moment it may, has waited for it.
_PROMPT_MS, _PROMPT_CALLS = 20, 2


def refill(state: LaneState, passed: int) -> LaneState:
    """Return the lane with what its learned rate brings in `passed` ms.

    Time in which nobody wanted more than there was is no part of an episode: it teaches nothing. Nor does a gap in
    which nobody started a call that could: machines slept, or the clock was set forward.
    """
    rate = state.learned_rate
    if rate is None:
        return state
    gap = passed > max(_GAP_MS, _GAP_CALLS * 1000 / rate)
    idle = passed if gap or not state.saturated else 0
    most = max(1.0, min(rate * BURST_SECONDS, state.learned_burst), state.learned_left)
    left = min(most, state.learned_left + passed / 1000 * rate)
    return replace(state, learned_left=left, resumed_at=state.resumed_at + idle)


def draw(state: LaneState, calls: int, wanted: int, now: int) -> LaneState:
    """Return the lane after `calls` started, a faster one if it was the lane that held them back the last time.

    Who has one free slot never wants more than one call: that it was waited for shows by when it starts.
    """
    if state.learned_rate is None:
        return state
    rate, burst = state.learned_rate, state.learned_burst
    prompt_ms = max(_PROMPT_MS, _PROMPT_CALLS * 1000 / rate)
    if state.saturated and calls and not state.vain_pauses:
        rate += calls * _growth(state, rate, (now - state.resumed_at) / 1000)
        if rate > _BEYOND * (state.rate_at_last_429 or rate):
            burst += _BURST_GROWTH * calls
    return replace(
        state,
        learned_rate=rate,
        learned_burst=burst,
        learned_left=state.learned_left - calls,
        started=state.started + calls,
        saturated=calls < wanted or now - state.ready_at < prompt_ms,
    )


def resume(state: LaneState, now: int, in_flight: int) -> LaneState:
    """Return the lane behind its pause, with the rate that the episode before it taught."""
    assert state.cut_at is not None  # noqa: S101 - only a lane that was cut is resumed
    pause = (now - state.cut_at) / 1000
    if state.learned_rate is None:
        state = _first_rate(state, pause, in_flight)
    else:
        state = _judge(state, state.learned_rate, pause)
    return replace(
        state,
        resumed_at=now, started=0, rejected=0, accepted=0, cut_at=None, saturated=False,
        learned_left=max(1.0, state.opening),
    )  # fmt: skip


def _first_rate(state: LaneState, pause: float, in_flight: int) -> LaneState:
    """Begin with what was let through before and during the first pause, as if it were the limiter's rate."""
    # Where nothing was let through, what was tried is the best guess: an outage tells nothing of a rate.
    calls = state.accepted + in_flight or state.rejected
    rate = max(1.0, calls / max(pause, 0.25))
    burst = BURST_PART * calls
    # Who lets more through than it refuses may not have refused for the rate: more than one call may try again.
    opening = max(1.0, burst) if state.accepted + in_flight > state.rejected else 1.0
    return replace(
        state,
        learned_rate=rate, rate_before=rate, rate_at_last_429=None,
        learned_burst=burst, opening=opening, sustained=0,
    )  # fmt: skip


def _judge(state: LaneState, rate: float, pause: float) -> LaneState:
    assert state.cut_at is not None  # noqa: S101 - as above
    calls = max(0, state.started - state.rejected)
    seconds = max(state.cut_at - state.resumed_at, 1) / 1000
    sudden = seconds < max(_SUDDEN_SECONDS, _SUDDEN_CALLS / rate) and calls < state.sustained * _SHORTER
    if sudden or not calls:
        opening = min(3 * state.opening + 1, _OPENING_MOST) if calls else max(1.0, state.opening / 3)
        return replace(
            state,
            sustained=calls,
            opening=opening,
            learned_rate=max(rate, state.rate_before),
        )
    through = calls - min(_BURST_MOST, _BURST_SHARE * calls)
    measured = through / seconds
    if state.rate_at_last_429 is None:
        # The rate was still growing fast: the limit lies between the average and what it had come to.
        measured = (measured * rate) ** 0.5
    elif seconds > _LONG_SECONDS:
        measured = max(measured, _TRUSTED * rate)
    limit = min(rate, measured)
    if seconds < _SHORTEST_MEASURE:
        limit = rate
    # What went through in all, pauses included, the lane stands in any case, by whatever else it refuses.
    proven = max(through / (seconds + pause), _PROVEN_FADE * state.rate_proven)
    slower = max(LOWEST_RATE, limit * (_FEW_BACK if calls < _FEW_CALLS else _BACK), _PROVEN_PART * proven)
    # An opening that was not used up was not what was refused.
    used_up = state.started >= state.opening or seconds < _SHORTEST_MEASURE
    opened = min(state.opening, calls) if used_up else state.opening
    return replace(
        state,
        learned_rate=slower,
        rate_at_last_429=limit,
        rate_before=slower if state.rate_at_last_429 is None else max(slower, _FADE * rate),
        rate_proven=proven,
        opening=max(1.0, 0.8 * opened),
        sustained=calls,
    )


def _growth(state: LaneState, rate: float, seconds: float) -> float:
    if state.rate_at_last_429 is None:
        return _GROW_FIRST
    if rate < _NEAR * state.rate_at_last_429:
        return _GROW_BACK
    return _GROW_NEAR * (1 + (seconds / _PATIENCE_SECONDS) ** 2)
