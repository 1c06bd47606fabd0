"""Logging: structlog on stderr, lines for people on a terminal, JSON elsewhere; the list of events.

One event per change of state, named `noun.verb`, with fields instead of sentences. Never a prompt, an
answer or a key.
"""

from __future__ import annotations

import logging
import sys
from typing import Final, cast

import structlog

WORKER_STARTED: Final = "worker.started"
WORKER_WAITING: Final = "worker.waiting"
WORKER_DRAINING: Final = "worker.draining"
WORKER_STOPPED: Final = "worker.stopped"
JOB_DONE: Final = "job.done"
JOB_FAILED: Final = "job.failed"
JOB_RETRY: Final = "job.retry"
JOB_LATE: Final = "job.late"
JOB_LOST: Final = "job.lost"
LANE_THROTTLED: Final = "lane.throttled"
LANE_HALTED: Final = "lane.halted"
DATABASE_UNAVAILABLE: Final = "database.unavailable"
DATABASE_BACK: Final = "database.back"
RESULT_REFUSED: Final = "result.refused"

Logger = structlog.typing.FilteringBoundLogger


def get_logger() -> Logger:
    """Return the logger of batchq."""
    return cast("Logger", structlog.get_logger("batchq"))


def set_up_logging(level: str = "info", *, json_lines: bool | None = None) -> None:
    """Write log lines to stderr: JSON where stderr is not a terminal, or as asked."""
    as_json = not sys.stderr.isatty() if json_lines is None else json_lines
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
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
