"""What an outcome does to its job and to its lane: the one place where outcomes are matched."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
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
from batchq.pacing import asked_ms, delay_ms

# The class of a stored row that can't be read: nothing was sent.
BAD_ROW = "bad_row"

# The class of an answer that was cut off at its token limit, unless that is allowed.
TRUNCATED = "truncated"

# Why a request can't succeed however often it is made: `run` does not try these again.
REFUSED_CLASSES = frozenset(
    {
        "bad_image", "bad_request", "bad_row", "content_filter", "context_length", "moderation",
        "refused", "rejected", "too_expensive", "too_large", "truncated", "unstorable", "worker_died",
    }
)  # fmt: skip

# A job that halts its lane so often, though answers came through meanwhile, is its own cause. Not with these
# classes of error: they are the account's affair, or that of one process among others.
MOST_HALTS = 3
_OF_THE_ACCOUNT = frozenset({"bad_key", "hanging", "no_credit"})


@dataclass(frozen=True, slots=True)
class Settlement:
    """An ended attempt as the store writes it.

    `state` is where the job goes, `delay_ms` how long a pending one waits, `charged` whether the
    attempt counts. `throttled` and `halt` act on the lane, `pause_ms` is the time that the provider
    named; `proves_lane` says that an answer came through, which reopens a halted lane. `blamed` marks
    the job whose answer halted a lane that was open, or a probe's, `unsent` one that never reached its worker.
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
    blamed: bool = False
    unsent: bool = False

    @property
    def let_through(self) -> bool:
        """Whether the provider's limits let the call pass."""
        return self.charged and not self.throttled and not self.unsent


def settle(ended: Ended) -> Settlement:
    """Decide what becomes of the job."""
    match ended.outcome:
        case Succeeded(answer):
            return Settlement(ended, "succeeded", JobState.DONE, answer=answer, proves_lane=True)
        case Failed(reason, answer):
            sent = reason.error_class != BAD_ROW
            return Settlement(
                ended, "failed", JobState.FAILED, reason=reason, answer=answer, proves_lane=sent, unsent=not sent
            )
        case Retry() as retry:
            return _retry(ended, retry)
        case Throttled(reason, after, answer):
            return Settlement(
                ended, "throttled", JobState.PENDING, charged=False, throttled=True,
                reason=reason, answer=answer, pause_ms=asked_ms(after),
            )  # fmt: skip
        case Halted(reason, answer):
            # Behind all that is due: what halts a lane may be the matter of this one job.
            return Settlement(
                ended, "halted", JobState.PENDING, 1, charged=False, reason=reason, answer=answer, halt=True
            )
        case Released():
            return Settlement(ended, "released", JobState.PENDING, charged=False)
        case _ as unreachable:
            assert_never(unreachable)


def _retry(ended: Ended, retry: Retry) -> Settlement:
    claim, reason = ended.claim, retry.reason
    strikes = claim.strikes + 1 if claim.strike_class == reason.error_class else 1
    struck_out = retry.at_most is not None and strikes >= retry.at_most
    if struck_out or claim.attempts >= claim.batch.max_attempts:
        tries = strikes if struck_out else claim.attempts
        gave_up = replace(reason, message=f"{reason.message} (gave up after {_attempts(tries)})")
        return Settlement(ended, "retry", JobState.FAILED, reason=gave_up, answer=retry.answer)
    delay = delay_ms(retry.after, claim.attempts)
    return Settlement(ended, "retry", JobState.PENDING, delay, reason=reason, answer=retry.answer)


def may_be_its_own(settlement: Settlement) -> bool:
    """Whether what halted a lane may be the matter of this one job."""
    return settlement.reason is None or settlement.reason.error_class not in _OF_THE_ACCOUNT


def condemn(settlement: Settlement) -> Settlement:
    """Return what becomes of a job that halts its lane again and again while others are answered: it fails."""
    reason = settlement.reason
    assert reason is not None  # noqa: S101 - a halt has one
    told = replace(reason, message=f"{reason.message} (halted its lane {MOST_HALTS} times while others were answered)")
    # The lane was halted by this job alone: without it, it is open.
    return replace(
        settlement, outcome="failed", state=JobState.FAILED, charged=True, reason=told, halt=False, proves_lane=True
    )


def condemned_among(settlements: Iterable[Settlement]) -> frozenset[int]:
    """Return the ids of the jobs that were condemned."""
    return frozenset(
        item.ended.claim.job_id
        for item in settlements
        if item.state is JobState.FAILED and isinstance(item.ended.outcome, Halted)
    )


def _attempts(count: int) -> str:
    return "1 attempt" if count == 1 else f"{count} attempts"
