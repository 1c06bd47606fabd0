"""What an outcome does to its job and to its lane: the one place where outcomes are matched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from batchq.jobs import (
    Answered,
    Ended,
    Failed,
    Halted,
    JobState,
    Reason,
    Released,
    Retry,
    Succeeded,
    Throttled,
)
from batchq.pacing import delay_ms, pause_ms

# Why a request can't succeed however often it is made: `run` does not try these again.
REFUSED_CLASSES = frozenset(
    {
        "bad_request", "bad_result", "bad_row", "content_filter", "moderation", "refused", "rejected",
        "too_expensive", "too_large", "truncated", "unstorable", "worker_died",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settlement:
    """An ended attempt as the store writes it.

    `state` is where the job goes, `delay_ms` how long a pending one waits, `charged` whether the
    attempt counts. `pause_ms` and `halt` act on the lane; `proves_lane` says that an answer came
    through, which reopens a halted lane.
    """

    ended: Ended
    outcome: str
    state: JobState
    delay_ms: int = 0
    charged: bool = True
    throttled: bool = False
    reason: Reason | None = None
    answer: Answered | None = None
    pause_ms: int | None = None
    halt: bool = False
    proves_lane: bool = False


def settle(ended: Ended) -> Settlement:
    """Decide what becomes of the job."""
    match ended.outcome:
        case Succeeded(answer):
            return Settlement(ended, "succeeded", JobState.DONE, answer=answer, proves_lane=True)
        case Failed(reason, answer):
            return Settlement(ended, "failed", JobState.FAILED, reason=reason, answer=answer, proves_lane=True)
        case Retry(reason, after, answer):
            return _retry(ended, reason, after, answer)
        case Throttled(reason, after, answer):
            return Settlement(
                ended, "throttled", JobState.PENDING, charged=False, throttled=True,
                reason=reason, answer=answer, pause_ms=pause_ms(after),
            )  # fmt: skip
        case Halted(reason):
            return Settlement(ended, "halted", JobState.PENDING, charged=False, reason=reason, halt=True)
        case Released():
            return Settlement(ended, "released", JobState.PENDING, charged=False)
        case _ as unreachable:
            assert_never(unreachable)


def _retry(ended: Ended, reason: Reason, after: float | None, answer: Answered | None) -> Settlement:
    claim = ended.claim
    if claim.attempts >= claim.batch.max_attempts:
        tries = "1 attempt" if claim.attempts == 1 else f"{claim.attempts} attempts"
        gave_up = Reason(reason.error_class, f"{reason.message} (gave up after {tries})", reason.status)
        return Settlement(ended, "retry", JobState.FAILED, reason=gave_up, answer=answer)
    delay = delay_ms(after, claim.attempts)
    return Settlement(ended, "retry", JobState.PENDING, delay, reason=reason, answer=answer)
