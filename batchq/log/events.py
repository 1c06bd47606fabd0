"""The events of the log: their names, and the fields that each may have beside `ts`, `level` and `event`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

WORKER_SERVING: Final = "worker.serving"
WORKER_STARTED: Final = "worker.started"
WORKER_PROGRESS: Final = "worker.progress"
WORKER_CONCURRENCY: Final = "worker.concurrency"
WORKER_EMPTY: Final = "worker.empty"
WORKER_WAITING: Final = "worker.waiting"
WORKER_LEAVES: Final = "worker.leaves_alone"
WORKER_UNAVAILABLE: Final = "worker.unavailable"
WORKER_RAISED: Final = "worker.raised"
WORKER_STOOD_STILL: Final = "worker.stood_still"
WORKER_DRAINING: Final = "worker.draining"
WORKER_STOPPED: Final = "worker.stopped"
WORKER_FAILED: Final = "worker.failed"
WORKER_SAYS: Final = "worker.says"
BATCH_SERVED: Final = "batch.served"
BATCH_LEFT_ALONE: Final = "batch.left_alone"
JOB_CLAIMED: Final = "job.claimed"
JOB_DONE: Final = "job.done"
JOB_FAILED: Final = "job.failed"
JOB_RETRY: Final = "job.retry"
JOB_THROTTLED: Final = "job.throttled"
JOB_HALTED: Final = "job.halted"
JOB_RELEASED: Final = "job.released"
JOB_LATE: Final = "job.late"
JOB_LOST: Final = "job.lost"
LANE_THROTTLED: Final = "lane.throttled"
LANE_HALTED: Final = "lane.halted"
LANE_REOPENED: Final = "lane.reopened"
DATABASE_UNAVAILABLE: Final = "database.unavailable"
DATABASE_BACK: Final = "database.back"
DATABASE_UPGRADED: Final = "database.upgraded"
HEALTH_UNTOLD: Final = "health.untold"
CLOCK_SET: Final = "clock.set"
RESULT_REFUSED: Final = "result.refused"
RESULTS_LOST: Final = "results.lost"
DATA_REFUSED: Final = "data.refused"
DUMP_RUNNER: Final = "dump.runner"
DUMP_CALL: Final = "dump.call"
DUMP_TASKS: Final = "dump.tasks"
TELEMETRY_STARTED: Final = "telemetry.started"
TELEMETRY_UNAVAILABLE: Final = "telemetry.unavailable"
PYTHON_LOGGED: Final = "python.logged"
PYTHON_WARNED: Final = "python.warned"
PYTHON_RAISED: Final = "python.raised"

# Which job: the same names wherever one is told of.
_JOB = ("worker", "batch", "position", "attempt", "lane")
_ENDED = (*_JOB, "duration_ms", "input_tokens", "output_tokens", "cost")
_WHY = ("error", "status")

EVENTS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        WORKER_SERVING: ("database", "concurrency", "workers"),
        WORKER_STARTED: ("worker", "pid", "concurrency"),
        WORKER_PROGRESS: ("worker", "done", "failed", "in_flight", "seconds"),
        WORKER_CONCURRENCY: ("worker", "concurrency", "before"),
        WORKER_EMPTY: ("waiting",),
        WORKER_WAITING: ("worker", "reason"),
        WORKER_LEAVES: ("worker", "batches", "reason"),
        WORKER_UNAVAILABLE: ("worker", "reason"),
        WORKER_RAISED: (*_JOB, "error", "stack"),
        WORKER_STOOD_STILL: ("worker", "seconds", "workers", "reason"),
        WORKER_DRAINING: ("worker", "in_flight"),
        WORKER_STOPPED: ("worker", "released"),
        WORKER_FAILED: ("reason", "exit_code"),
        WORKER_SAYS: ("message",),
        BATCH_SERVED: ("batch", "state", "pending", "inflight"),
        BATCH_LEFT_ALONE: ("batch", "reason"),
        JOB_CLAIMED: _JOB,
        JOB_DONE: _ENDED,
        JOB_FAILED: (*_ENDED, *_WHY),
        JOB_RETRY: (*_ENDED, *_WHY, "retry_seconds"),
        JOB_THROTTLED: (*_ENDED, *_WHY),
        JOB_HALTED: (*_ENDED, *_WHY),
        JOB_RELEASED: (*_JOB, "duration_ms"),
        JOB_LATE: (*_ENDED, *_WHY),
        JOB_LOST: _JOB,
        LANE_THROTTLED: ("worker", "lane", "reason", "seconds"),
        LANE_HALTED: ("worker", "lane", "reason", "what_to_do"),
        LANE_REOPENED: ("worker", "lane"),
        DATABASE_UNAVAILABLE: ("worker", "reason", "results_in_hand", "away_seconds"),
        DATABASE_BACK: ("worker", "away_seconds"),
        DATABASE_UPGRADED: ("database", "since", "to"),
        HEALTH_UNTOLD: ("reason", "directory", "meaning"),
        CLOCK_SET: ("worker", "seconds", "what_it_does"),
        RESULT_REFUSED: ("worker", "batch", "position", "reason"),
        RESULTS_LOST: ("worker", "results", "reason"),
        DATA_REFUSED: ("worker", "reason"),
        DUMP_RUNNER: (
            "worker", "phase", "concurrency", "in_flight", "done", "failed", "drain_seconds", "away", "calls", "tasks"
        ),
        DUMP_CALL: (*_JOB, "seconds"),
        DUMP_TASKS: ("worker", "count", "stack"),
        TELEMETRY_STARTED: ("traces", "metrics"),
        TELEMETRY_UNAVAILABLE: ("reason",),
        PYTHON_LOGGED: (*_JOB, "logger", "message", "error", "stack"),
        PYTHON_WARNED: (*_JOB, "category", "place", "message"),
        PYTHON_RAISED: ("thread", "error", "stack"),
    }
)  # fmt: skip

AFTER_A_HALT: Final = "mend the cause: a job tries again within a minute at the latest, `batchq resume` at once"
WHAT_A_JUMP_DOES: Final = "the database's clock was set: no job is lost; those of a worker that died may start later"
WHY_UNTOLD: Final = "`batchq health` can't tell that this worker is well; the worker goes on all the same"
WHY_LOST: Final = "the database took them no more, and this worker had to end; their calls are made again"
WHY_STOOD_STILL: Final = (
    "these workers kept the event loop to themselves, or the process was stopped, or the machine slept: what blocks"
    " belongs into a function that is not async, which runs in a thread"
)
