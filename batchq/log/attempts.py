"""What is told of attempts and lanes: where they are, how long they took, what they cost; never a word of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Final

from batchq.jobs import (
    NANO,
    Answered,
    AtWork,
    Claim,
    Exchanged,
    JobState,
    LaneChange,
    LaneMove,
)
from batchq.log import events
from batchq.log.writing import Logger, get_logger
from batchq.settlement import Settlement, condemn
from batchq.stacks import class_of, stack_of

# What is going on here: what a worker's own code logs meanwhile is told with it.
CALL: Final[ContextVar[Claim | None]] = ContextVar("call", default=None)
WORKER: Final[ContextVar[str | None]] = ContextVar("worker", default=None)

_MOST_PLACES = 1_000
_told_places: set[tuple[str, str]] = set()


def job_fields(claim: Claim) -> dict[str, object]:
    """Return which job it is."""
    return {
        "batch": claim.batch.name,
        "position": claim.position,
        "attempt": claim.attempts,
        "lane": claim.lane.strip(),
    }


def call_fields() -> dict[str, object]:
    """Return whose call this code belongs to: that of the task, or of the thread that it started."""
    worker, claim = WORKER.get(), CALL.get()
    return ({} if worker is None else {"worker": worker}) | ({} if claim is None else job_fields(claim))


def log_claims(logger: Logger, claims: Iterable[Claim]) -> None:
    """Log what was claimed."""
    if hears(logger, logging.DEBUG):
        for claim in claims:
            logger.debug(events.JOB_CLAIMED, **job_fields(claim))


def log_exchange(logger: Logger, settlements: Iterable[Settlement], reply: Exchanged) -> None:
    """Log what became of ended attempts, once the database has taken them, and of their lanes.

    The words of an error may quote the prompt or the answer: they are in the database, for `batchq show`. What a
    lane waits for is said in the provider's words.
    """
    all_of_them = hears(logger, logging.DEBUG)
    for item in settlements:
        # Nearly all of them; a late answer is told of in any case.
        if item.state is JobState.DONE and not (all_of_them or reply.came_late):
            continue
        job_id = item.ended.claim.job_id
        if job_id in reply.came_late:
            logger.warning(events.JOB_LATE, **_ended_fields(item))
        else:
            _log_settled(logger, condemn(item) if job_id in reply.condemned else item, debug=all_of_them)
    for change in reply.lanes:
        _log_lane(logger, change)


def _log_settled(logger: Logger, item: Settlement, *, debug: bool) -> None:
    match item.state, item.outcome:
        case JobState.DONE, _:
            if debug:
                logger.debug(events.JOB_DONE, **_ended_fields(item))
        case JobState.FAILED, _:
            logger.warning(events.JOB_FAILED, **_ended_fields(item))
        case _, "retry":
            logger.info(events.JOB_RETRY, **_ended_fields(item), retry_seconds=item.delay_ms / 1000)
        case _, "released":
            logger.info(events.JOB_RELEASED, **job_fields(item.ended.claim), duration_ms=item.ended.duration_ms)
        case _ if debug:  # what they mean for their lane is told once for all
            logger.debug(events.JOB_HALTED if item.halt else events.JOB_THROTTLED, **_ended_fields(item))


def _ended_fields(item: Settlement) -> dict[str, object]:
    fields = {**job_fields(item.ended.claim), "duration_ms": item.ended.duration_ms, **_paid_fields(item.answer)}
    if item.reason is not None:
        fields |= {"error": item.reason.error_class, "status": item.reason.status}
    return {name: value for name, value in fields.items() if value is not None}


def _paid_fields(answer: Answered | None) -> dict[str, object]:
    if answer is None:
        return {}
    return {
        "input_tokens": answer.usage.input_tokens,
        "output_tokens": answer.usage.output_tokens,
        "cost": None if answer.cost is None else answer.cost / NANO,
    }


def _log_lane(logger: Logger, change: LaneChange) -> None:
    match change.move:
        case LaneMove.THROTTLED:
            logger.info(events.LANE_THROTTLED, lane=change.lane.strip(), reason=change.reason, seconds=change.seconds)
        case LaneMove.HALTED:
            logger.error(
                events.LANE_HALTED, lane=change.lane.strip(), reason=change.reason, what_to_do=events.AFTER_A_HALT
            )
        case LaneMove.REOPENED:
            logger.info(events.LANE_REOPENED, lane=change.lane.strip())


def log_lost(logger: Logger, claim: Claim) -> None:
    """Log that a job in hand is somebody else's by now."""
    logger.warning(events.JOB_LOST, **job_fields(claim))


def log_raised(claim: Claim, error: BaseException) -> None:
    """Log what a worker raised that is no word of the contract: where, not what it said, which may quote a prompt.

    The first time as a warning, and each time at debug.
    """
    logger = get_logger()
    if not hears(logger, logging.WARNING):
        return
    stack = stack_of(error)
    place = (class_of(error), stack[-1] if stack else "")
    told = place in _told_places or len(_told_places) >= _MOST_PLACES
    _told_places.add(place)
    tell = logger.debug if told else logger.warning
    tell(events.WORKER_RAISED, **call_fields() | job_fields(claim), error=place[0], stack=stack)


def dump_call(logger: Logger, call: AtWork) -> None:
    """Log a call that is running."""
    logger.warning(events.DUMP_CALL, **job_fields(call.claim), seconds=round(call.seconds, 3))


def hears(logger: Logger, level: int) -> bool:
    """Whether a logger takes events of this level; one that can't tell may."""
    # Asked of the class: an instance may take any name for that of an event.
    ask = getattr(type(logger), "is_enabled_for", None)
    return ask is None or bool(ask(logger, level))
