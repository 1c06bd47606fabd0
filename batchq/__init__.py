"""A durable queue for running many prompts through a language model.

`prompt_map` for scripts and notebooks, `open_queue` for applications, and what a worker of your own needs.
Everything is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchq.api.answers import AnswerRow, AnswerUsage, Summary
    from batchq.api.call import DB_URL_DEFAULT
    from batchq.api.export import export_jsonl
    from batchq.api.opening import open_queue
    from batchq.api.prompt_map import prompt_map
    from batchq.api.prompt_stream import prompt_stream
    from batchq.api.queue import Queue
    from batchq.api.sync import export_jsonl_sync, prompt_map_sync
    from batchq.collecting import Collected, Output
    from batchq.errors import (
        BadInput,
        BatchConflict,
        BatchqError,
        CannotGoOn,
        ConfigurationError,
        NoDatabase,
        Purged,
        StoreError,
        TimedOutWaiting,
        UnknownBatch,
        UsageError,
    )
    from batchq.jobs import (
        Attempt,
        Batch,
        BatchState,
        Counts,
        ErrorGroup,
        JobState,
        Lane,
        Progress,
        Result,
        RunnerInfo,
    )
    from batchq.producer import Enqueued
    from batchq.worker import (
        Answer,
        Endpoint,
        Halt,
        Json,
        Plugin,
        Reject,
        Request,
        RetryLater,
        Throttled,
        Usage,
    )

_ROOMS = {
    "batchq.api.answers": ("AnswerRow", "AnswerUsage", "Summary"),
    "batchq.api.call": ("DB_URL_DEFAULT",),
    "batchq.api.export": ("export_jsonl",),
    "batchq.api.opening": ("open_queue",),
    "batchq.api.prompt_map": ("prompt_map",),
    "batchq.api.prompt_stream": ("prompt_stream",),
    "batchq.api.queue": ("Queue",),
    "batchq.api.sync": ("export_jsonl_sync", "prompt_map_sync"),
    "batchq.collecting": ("Collected", "Output"),
    "batchq.errors": (
        "BadInput", "BatchConflict", "BatchqError", "CannotGoOn", "ConfigurationError", "NoDatabase", "Purged",
        "StoreError", "TimedOutWaiting", "UnknownBatch", "UsageError",
    ),
    "batchq.jobs": (
        "Attempt", "Batch", "BatchState", "Counts", "ErrorGroup", "JobState", "Lane", "Progress", "Result",
        "RunnerInfo",
    ),
    "batchq.producer": ("Enqueued",),
    "batchq.worker": (
        "Answer", "Endpoint", "Halt", "Json", "Plugin", "Reject", "Request", "RetryLater", "Throttled", "Usage",
    ),
}  # fmt: skip
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
    "DB_URL_DEFAULT",
    "Answer",
    "AnswerRow",
    "AnswerUsage",
    "Attempt",
    "BadInput",
    "Batch",
    "BatchConflict",
    "BatchState",
    "BatchqError",
    "CannotGoOn",
    "Collected",
    "ConfigurationError",
    "Counts",
    "Endpoint",
    "Enqueued",
    "ErrorGroup",
    "Halt",
    "JobState",
    "Json",
    "Lane",
    "NoDatabase",
    "Output",
    "Plugin",
    "Progress",
    "Purged",
    "Queue",
    "Reject",
    "Request",
    "Result",
    "RetryLater",
    "RunnerInfo",
    "StoreError",
    "Summary",
    "Throttled",
    "TimedOutWaiting",
    "UnknownBatch",
    "Usage",
    "UsageError",
    "export_jsonl",
    "export_jsonl_sync",
    "open_queue",
    "prompt_map",
    "prompt_map_sync",
    "prompt_stream",
]


def __getattr__(name: str) -> object:
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'batchq' has no attribute {name!r}")
    return getattr(import_module(_ROOM_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
