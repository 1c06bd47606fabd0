"""A durable queue for running many prompts through a language model.

What a worker of your own needs is here; everything is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchq.errors import (
        BatchqError,
        CannotGoOn,
        ConfigurationError,
        StoreError,
        TimedOutWaiting,
        UsageError,
    )
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

__all__ = [
    "Answer",
    "BatchqError",
    "CannotGoOn",
    "ConfigurationError",
    "Endpoint",
    "Halt",
    "Json",
    "Plugin",
    "Reject",
    "Request",
    "RetryLater",
    "StoreError",
    "Throttled",
    "TimedOutWaiting",
    "Usage",
    "UsageError",
]

_ERRORS = {"BatchqError", "CannotGoOn", "ConfigurationError", "StoreError", "TimedOutWaiting", "UsageError"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'batchq' has no attribute {name!r}")
    return getattr(import_module("batchq.errors" if name in _ERRORS else "batchq.worker"), name)


def __dir__() -> list[str]:
    return __all__
