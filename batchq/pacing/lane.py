"""A lane's state, and what it lets through: configured limits, the learned rate, pauses and halts.

Pure functions from one frozen state to the next. The store reads a state, asks, and writes it back in
the claiming transaction, under the database's lock: so limits hold across processes and machines.
Times are milliseconds of the database's clock.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from batchq.pacing import learning
from batchq.pacing.back_off import pause_ms

FIRST_PROBE_MS = 1_000
PROBE_EVERY_MS = 60_000

# The burst where none is configured: two calls, or what a limit of so many seconds is worth.
BURST_CALLS, BURST_SECONDS = 2.0, 0.1
TOKEN_BURST_SECONDS = 6.0
# What a call is taken to cost in a lane that counts tokens, until some have been answered.
FIRST_TOKENS = 1_000.0
_MEAN_WEIGHT = 0.1
_TAUGHT = (
    "learned_rate", "rate_at_last_429", "rate_before", "rate_proven", "learned_left", "learned_burst", "opening",
    "saturated", "sustained", "resumed_at", "started", "rejected", "accepted", "vain_pauses", "cut_at", "paused_until",
)  # fmt: skip
_LONGEST_WAIT_MS = 366 * 24 * 3_600_000
_EVERY_MS = 60_000.0


@dataclass(frozen=True, slots=True)
class LaneState:
    """What one rate limit covers: a worker at a base URL with a model.

    `rpm`, `tpm`, `max_inflight` and `burst` are configured. `requests_left` and `tokens_left` are what
    their buckets held at `refilled_at`. The fields from `learned_rate` to `cut_at` belong to `learning`.
    `epoch` rises with every 429 that counts, halt and resume; `vain_probes` counts the probes of this
    halt that halted again; `proved_at` is when an answer last reopened the lane.
    """

    name: str
    worker: str
    base_url: str
    model: str
    rpm: float | None = None
    tpm: float | None = None
    max_inflight: int | None = None
    burst: float | None = None
    requests_left: float = 0.0
    tokens_left: float = 0.0
    tokens_mean: float | None = None
    refilled_at: int = 0
    learned_rate: float | None = None
    rate_at_last_429: float | None = None
    rate_before: float = 0.0
    rate_proven: float = 0.0
    learned_left: float = 0.0
    learned_burst: float = 1.0
    opening: float = 1.0
    saturated: bool = False
    sustained: int = 0
    resumed_at: int = 0
    started: int = 0
    rejected: int = 0
    accepted: int = 0
    vain_pauses: int = 0
    cut_at: int | None = None
    paused_until: int | None = None
    halted_at: int | None = None
    probe_at: int | None = None
    vain_probes: int = 0
    proved_at: int | None = None
    reason: str | None = None
    ready_at: int = 0
    epoch: int = 0

    @property
    def limited(self) -> bool:
        """Whether claims must be counted; in other lanes nothing is written as long as all goes well."""
        configured = self.rpm is not None or self.tpm is not None or self.max_inflight is not None
        return configured or self.learned_rate is not None or self.cut_at is not None

    @property
    def request_burst(self) -> float:
        """How many calls the requests' bucket holds."""
        if self.burst is not None:
            return self.burst
        return max(BURST_CALLS, (self.rpm or 0.0) / 60 * BURST_SECONDS)

    @property
    def token_burst(self) -> float:
        """How many tokens the tokens' bucket holds."""
        return (self.tpm or 0.0) / 60 * TOKEN_BURST_SECONDS

    @property
    def call_tokens(self) -> float:
        """How many tokens a call is taken to cost before its answer tells."""
        return FIRST_TOKENS if self.tokens_mean is None else self.tokens_mean


@dataclass(frozen=True, slots=True)
class Limits:
    """What an operator sets for a lane: per minute, in flight, and how many calls may start at once."""

    rpm: float | None = None
    tpm: float | None = None
    max_inflight: int | None = None
    burst: float | None = None


def configure(state: LaneState, limits: Limits, now: int) -> LaneState:
    """Return the lane with other limits; buckets that are new are full, others keep what they hold."""
    before = refill(state, now)
    after = replace(before, rpm=limits.rpm, tpm=limits.tpm, max_inflight=limits.max_inflight, burst=limits.burst)
    return replace(
        after,
        requests_left=after.request_burst if before.rpm is None else min(before.requests_left, after.request_burst),
        tokens_left=after.token_burst if before.tpm is None else min(before.tokens_left, after.token_burst),
    )


def refill(state: LaneState, now: int) -> LaneState:
    """Return the lane with its buckets as they are now."""
    passed = max(0, now - state.refilled_at)
    if state.rpm is not None:
        left = min(state.request_burst, state.requests_left + passed * state.rpm / _EVERY_MS)
        state = replace(state, requests_left=left)
    if state.tpm is not None:
        left = min(state.token_burst, state.tokens_left + passed * state.tpm / _EVERY_MS)
        state = replace(state, tokens_left=left)
    # Of two transactions the later one may have read the clock first.
    return replace(learning.refill(state, passed), refilled_at=max(now, state.refilled_at))


def wake(state: LaneState, now: int, in_flight: int) -> LaneState:
    """Return the lane at this moment: refilled, and, behind a pause, with the rate that the 429 taught.

    `in_flight` is how many of its calls run.
    """
    if state.cut_at is not None and now >= (state.paused_until or 0):
        state = learning.resume(refill(state, now), now, in_flight)
    return refill(state, now)


def room(state: LaneState, in_flight: int) -> int | None:
    """Return how many calls may start in a lane that is awake and ready; None: as many as one likes."""
    rooms = []
    if state.rpm is not None:
        rooms.append(_whole(state.requests_left))
    if state.tpm is not None:
        rooms.append(_whole(state.tokens_left / state.call_tokens + 1) if state.tokens_left > 0 else 0)
    if state.max_inflight is not None:
        rooms.append(max(0, state.max_inflight - in_flight))
    if state.learned_rate is not None:
        rooms.append(_whole(state.learned_left))
    return min(rooms) if rooms else None


def draw(state: LaneState, calls: int, wanted: int, now: int) -> LaneState:
    """Return the lane after `calls` of the `wanted` ones have started."""
    if state.rpm is not None:
        state = replace(state, requests_left=state.requests_left - calls)
    if state.tpm is not None:
        state = replace(state, tokens_left=state.tokens_left - calls * state.call_tokens)
    return learning.draw(state, calls, wanted, now)


def answered(state: LaneState, calls: int) -> LaneState:
    """Return the lane after the provider let `calls` of its calls through."""
    return replace(state, accepted=state.accepted + calls, vain_pauses=0)


def correct_tokens(state: LaneState, reserved: float, used: int | None, *, made: bool) -> LaneState:
    """Return the lane after a call that reserved tokens has used others.

    What a call that was `made` has used without telling (None) is what it reserved.
    """
    if state.tpm is None or (used is None and made):
        return state
    left = state.tokens_left + reserved - (used or 0)
    mean = state.tokens_mean
    if used:
        mean = float(used) if mean is None else mean + _MEAN_WEIGHT * (used - mean)
    return replace(state, tokens_left=min(left, state.token_burst), tokens_mean=mean)


def throttle(state: LaneState, epoch: int, asked: int | None, reason: str | None, now: int) -> LaneState:
    """Return the lane after a 429 to a claim of `epoch`; `asked` is the time that the provider named.

    The first 429 of an epoch ends it and starts a pause. Those of calls that were on their way by then
    lengthen the pause if they name a time, and teach nothing but that they were refused too.
    """
    current = epoch == state.epoch
    if current:
        until = now + pause_ms(asked, state.vain_pauses)
        state = replace(
            state,
            epoch=state.epoch + 1,
            cut_at=now,
            accepted=0,
            vain_pauses=state.vain_pauses + 1,
            paused_until=max(until, state.paused_until or 0),
        )
    elif asked is not None:
        state = replace(state, paused_until=max(now + asked, state.paused_until or 0))
    if current or epoch == state.epoch - 1:
        state = replace(state, rejected=state.rejected + 1)
    return state if state.halted_at is not None else replace(state, reason=reason)


def halt(state: LaneState, epoch: int, reason: str | None, now: int) -> LaneState:
    """Return the lane halted, unless the claim is of an older epoch: its news is of before a halt or a resume."""
    if epoch != state.epoch:
        return state
    vain = state.vain_probes + 1 if state.halted_at is not None else 0
    # Soon at first: what halts a lane may be the matter of one job, and another shows that at once.
    wait = min(PROBE_EVERY_MS, FIRST_PROBE_MS * 2 ** min(vain, 20))
    return replace(state, epoch=epoch + 1, halted_at=now, probe_at=now + wait, vain_probes=vain, reason=reason)


def reopen(state: LaneState) -> LaneState:
    """Return a halted lane open again."""
    return replace(state, epoch=state.epoch + 1, halted_at=None, probe_at=None, vain_probes=0, reason=None)


def prove(state: LaneState, epoch: int, now: int) -> LaneState:
    """Return the lane reopened by the answer to a probe of `epoch`, unless that is of before this halt.

    Of two probes beside each other one may halt again, which raises the epoch: the other's answer counts.
    """
    if state.halted_at is None or not state.epoch - state.vain_probes <= epoch <= state.epoch:
        return state
    return replace(reopen(state), proved_at=now)


def set_back(state: LaneState, now: int, by: int) -> LaneState:
    """Return the lane with its times moved by as much as the clock was set back: waits last no longer for it."""

    def waits(at: int | None) -> int | None:
        return at if at is None or at <= now else at - by

    def passed(at: int | None) -> int | None:
        return None if at is None else min(at, now)

    return replace(
        state,
        refilled_at=min(state.refilled_at, now),
        resumed_at=min(state.resumed_at, now),
        cut_at=passed(state.cut_at),
        halted_at=passed(state.halted_at),
        proved_at=passed(state.proved_at),
        paused_until=waits(state.paused_until),
        probe_at=waits(state.probe_at),
    )


def forget(state: LaneState) -> LaneState:
    """Return the lane without what its 429s taught, their pause included; limits and a halt stay."""
    fresh = LaneState(state.name, state.worker, state.base_url, state.model)
    return replace(
        state,
        **{name: getattr(fresh, name) for name in _TAUGHT},
        epoch=state.epoch if state.halted_at is not None else state.epoch + 1,
    )


def ready_at(state: LaneState) -> int:
    """Return when a claim may succeed at the earliest, as far as time decides it: buckets fill from `refilled_at`."""
    times = [state.paused_until or 0]
    if state.halted_at is not None:
        times.append(state.probe_at or 0)
    since = state.refilled_at
    if state.rpm is not None and state.requests_left < 1:
        times.append(since + _ceil((1 - state.requests_left) * _EVERY_MS / state.rpm))
    if state.tpm is not None and state.tokens_left <= 0:
        times.append(since + _ceil(-state.tokens_left * _EVERY_MS / state.tpm + 0.001))
    if state.learned_rate is not None and state.cut_at is None and state.learned_left < 1:
        times.append(since + _ceil((1 - state.learned_left) * 1000 / state.learned_rate))
    return max(times)


def _whole(amount: float) -> int:
    # What is a whole number but for the error of its arithmetic is one.
    return max(0, int(amount + 1e-6))


def _ceil(milliseconds: float) -> int:
    return -int(-min(milliseconds, _LONGEST_WAIT_MS) // 1)
