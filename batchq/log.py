"""Logging: structlog on stderr, lines for people on a terminal, JSON elsewhere; the list of events.

One event per change of state, named `noun.verb`, with fields instead of sentences. Never a prompt, an
answer or a key.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TextIO, cast

import structlog

from batchq.concealing import conceal
from batchq.escapes import clean
from batchq.jobs import Ended, Failed, Halted, Released, Retry, Succeeded, Throttled

WORKER_STARTED: Final = "worker.started"
WORKER_SERVING: Final = "worker.serving"
WORKER_CONCURRENCY: Final = "worker.concurrency"
WORKER_EMPTY: Final = "worker.empty"
WORKER_SAYS: Final = "worker.says"
WORKER_FAILED: Final = "worker.failed"
BATCH_SERVED: Final = "batch.served"
BATCH_LEFT_ALONE: Final = "batch.left_alone"
WORKER_WAITING: Final = "worker.waiting"
WORKER_DRAINING: Final = "worker.draining"
WORKER_STOPPED: Final = "worker.stopped"
WORKER_STOOD_STILL: Final = "worker.stood_still"
JOB_DONE: Final = "job.done"
JOB_FAILED: Final = "job.failed"
JOB_RETRY: Final = "job.retry"
JOB_LATE: Final = "job.late"
JOB_LOST: Final = "job.lost"
LANE_THROTTLED: Final = "lane.throttled"
LANE_HALTED: Final = "lane.halted"
DATABASE_UNAVAILABLE: Final = "database.unavailable"
DATABASE_UPGRADED: Final = "database.upgraded"
DATABASE_BACK: Final = "database.back"
CLOCK_SET: Final = "clock.set"
RESULT_REFUSED: Final = "result.refused"
DATA_REFUSED: Final = "data.refused"
RESULTS_LOST: Final = "results.lost"
WORKER_UNAVAILABLE: Final = "worker.unavailable"
WORKER_LEAVES: Final = "worker.leaves_alone"

AFTER_A_HALT: Final = "mend the cause: a job tries again within a minute at the latest, `batchq resume` at once"
WHAT_A_JUMP_DOES: Final = "the database's clock was set: no job is lost; those of a worker that died may start later"
WHY_LOST: Final = "the database took them no more, and this worker had to end; their calls are made again"
WHY_STOOD_STILL: Final = (
    "these workers kept the event loop to themselves, or the process was stopped, or the machine slept: what blocks"
    " belongs into a function that is not async, which runs in a thread"
)

Logger = structlog.typing.FilteringBoundLogger


_library = logging.getLogger("batchq")
_library.addHandler(logging.NullHandler())


def get_logger() -> Logger:
    """Return the logger of batchq: structlog's as the application has set it up, else `logging`'s, which is quiet."""
    if structlog.is_configured():
        return cast("Logger", structlog.get_logger("batchq"))
    return cast(
        "Logger",
        structlog.wrap_logger(
            _library,
            processors=[
                structlog.stdlib.filter_by_level,
                _without_keys,
                structlog.processors.KeyValueRenderer(key_order=["event"]),
            ],
            wrapper_class=structlog.stdlib.BoundLogger,
        ),
    )


def set_up_logging(level: str = "info", *, json_lines: bool | None = None) -> None:
    """Write log lines to stderr: JSON where stderr is not a terminal, or as asked."""
    as_json = not (sys.stderr and sys.stderr.isatty()) if json_lines is None else json_lines
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
            _without_keys,
            *([] if as_json else [_cleaned]),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(file=cast("TextIO", _Stderr())),
        cache_logger_on_first_use=False,
    )


def _without_keys(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Take the keys of this process out of an event, whoever has put them in."""
    return {name: _each_text(value, conceal) for name, value in event.items()}


def _cleaned(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Write out what would move a terminal's cursor; JSON has escapes of its own."""
    return {name: _each_text(value, clean) for name, value in event.items()}


def _each_text(value: object, change: Callable[[str], str]) -> object:
    if isinstance(value, str):
        return change(value)
    return [_each_text(item, change) for item in value] if isinstance(value, list | tuple) else value


def log_ended(logger: Logger, ended: Ended) -> None:
    """Log how an attempt ended: its place and the class of its error.

    The words of an error may quote the prompt or the answer: they are in the database, for `batchq show`. What a
    lane waits for is said in the provider's words.
    """
    if isinstance(ended.outcome, Succeeded) and not _hears(logger, logging.DEBUG):
        return  # nearly all of them, and most loggers take their time to find out
    claim = ended.claim
    place = {
        "batch": claim.batch.name,
        "position": claim.position,
        "attempt": claim.attempts,
        "ms": ended.duration_ms,
    }
    match ended.outcome:
        case Succeeded():
            logger.debug(JOB_DONE, **place)
        case Failed(reason):
            logger.warning(JOB_FAILED, **place, error=reason.error_class, status=reason.status)
        case Retry(reason):
            logger.info(JOB_RETRY, **place, error=reason.error_class, status=reason.status)
        case Throttled(reason, after):
            logger.info(LANE_THROTTLED, **place, lane=claim.lane, reason=reason.message, after=after)
        case Halted(reason):
            logger.error(LANE_HALTED, **place, lane=claim.lane, reason=reason.message, what_to_do=AFTER_A_HALT)
        case Released():
            pass


def _hears(logger: Logger, level: int) -> bool:
    """Whether a logger takes events of this level; one that can't tell may."""
    # Asked of the class: an instance may take any name for that of an event.
    ask = getattr(type(logger), "is_enabled_for", None)
    return ask is None or bool(ask(logger, level))


class _Stderr:
    """Whatever stderr is at the moment; a full disk or a reader that left costs log lines, not calls."""

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()
