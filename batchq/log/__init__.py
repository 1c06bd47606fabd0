"""Logging: structlog on stderr, lines for people on a terminal, JSON elsewhere; the list of events.

One event per change of state, named `noun.verb`, with fields instead of sentences. Never a prompt, an
answer or a key.
"""

from __future__ import annotations

from batchq.log.attempts import (
    CALL,
    WORKER,
    dump_call,
    hears,
    log_claims,
    log_exchange,
    log_lost,
    log_raised,
)
from batchq.log.events import (
    BATCH_LEFT_ALONE,
    BATCH_SERVED,
    CLOCK_SET,
    DATA_REFUSED,
    DATABASE_BACK,
    DATABASE_UNAVAILABLE,
    DATABASE_UPGRADED,
    DUMP_RUNNER,
    DUMP_TASKS,
    EVENTS,
    HEALTH_UNTOLD,
    RESULT_REFUSED,
    RESULTS_LOST,
    TELEMETRY_STARTED,
    TELEMETRY_UNAVAILABLE,
    WHAT_A_JUMP_DOES,
    WHY_LOST,
    WHY_STOOD_STILL,
    WHY_UNTOLD,
    WORKER_CONCURRENCY,
    WORKER_DRAINING,
    WORKER_EMPTY,
    WORKER_FAILED,
    WORKER_LEAVES,
    WORKER_PROGRESS,
    WORKER_SAYS,
    WORKER_SERVING,
    WORKER_STARTED,
    WORKER_STOOD_STILL,
    WORKER_STOPPED,
    WORKER_UNAVAILABLE,
    WORKER_WAITING,
)
from batchq.log.foreign import make_alike, write_what_others_say
from batchq.log.writing import Logger, get_answering_logger, get_logger, shown_to_a_person, write_events

__all__ = [
    "BATCH_LEFT_ALONE",
    "BATCH_SERVED",
    "CALL",
    "CLOCK_SET",
    "DATABASE_BACK",
    "DATABASE_UNAVAILABLE",
    "DATABASE_UPGRADED",
    "DATA_REFUSED",
    "DUMP_RUNNER",
    "DUMP_TASKS",
    "EVENTS",
    "HEALTH_UNTOLD",
    "RESULTS_LOST",
    "RESULT_REFUSED",
    "TELEMETRY_STARTED",
    "TELEMETRY_UNAVAILABLE",
    "WHAT_A_JUMP_DOES",
    "WHY_LOST",
    "WHY_STOOD_STILL",
    "WHY_UNTOLD",
    "WORKER",
    "WORKER_CONCURRENCY",
    "WORKER_DRAINING",
    "WORKER_EMPTY",
    "WORKER_FAILED",
    "WORKER_LEAVES",
    "WORKER_PROGRESS",
    "WORKER_SAYS",
    "WORKER_SERVING",
    "WORKER_STARTED",
    "WORKER_STOOD_STILL",
    "WORKER_STOPPED",
    "WORKER_UNAVAILABLE",
    "WORKER_WAITING",
    "Logger",
    "dump_call",
    "get_answering_logger",
    "get_logger",
    "hears",
    "log_claims",
    "log_exchange",
    "log_lost",
    "log_raised",
    "set_up_logging",
    "shown_to_a_person",
]


def set_up_logging(level: str = "info", *, json_lines: bool | None = None) -> None:
    """Write log lines to stderr, also of what others log: JSON where stderr is not a terminal, or as asked."""
    as_json = not shown_to_a_person() if json_lines is None else json_lines
    write_events(level, as_json=as_json, alike=make_alike)
    write_what_others_say(level)
