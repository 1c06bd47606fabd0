"""The contract that a worker implements; `discovery` turns a name into one.

A worker is an async function that answers one prompt:

    async def shout(prompt: str) -> str:
        return prompt.upper()

It is given the prompt (a string, or a dict when the input line held messages or a body). One that
annotates its first parameter with `Request` gets everything there is to know instead. It returns a
string, any JSON value, or an `Answer` with usage and cost. It steers by raising `RetryLater`,
`Reject`, `Throttled` or `Halt`; any other exception is retried with back-off. A function that is not
async is called in a thread of its own.

A worker that owns a client is an async context manager factory, opened once per process:

    @asynccontextmanager
    async def open_worker(endpoint: Endpoint) -> AsyncGenerator[WorkerFunction, None]: ...

A process finds workers by name among the installed entry points of the group `batchq.workers`, and
by `module:function` or `script.py:function` when that is given on its own command line. Nothing in
the database can make a process import code.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from batchq.concealing import is_placeholder
from batchq.errors import ConfigurationError
from batchq.jobs import Answer, Json, Usage
from batchq.prices import Prices

__all__ = [
    "Answer",
    "ConfigurationError",
    "Endpoint",
    "Halt",
    "Handler",
    "Json",
    "Plugin",
    "Prices",
    "Reject",
    "Request",
    "RetryLater",
    "Steer",
    "Throttled",
    "Usage",
    "WorkerFactory",
    "WorkerFunction",
    "is_loopback",
    "is_openrouter",
    "is_placeholder",
]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A named server that a worker calls; lives in this process's settings, never in the database.

    `headers` go along with every call. `prices` is the name of the provider whose price list holds there,
    where the URL does not tell.
    """

    name: str
    base_url: str
    api_key: str | None = field(default=None, repr=False)
    headers: tuple[tuple[str, str], ...] = ()
    prices: str | None = None


def is_loopback(base_url: str) -> bool:
    """Whether a URL is this machine's own."""
    host = urlsplit(base_url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_openrouter(base_url: str) -> bool:
    """Whether a URL is OpenRouter's."""
    host = urlsplit(base_url).hostname or ""
    return host == "openrouter.ai" or host.endswith(".openrouter.ai")


@dataclass(frozen=True, slots=True)
class Request:
    """Everything a worker may want to know about the prompt that it answers.

    `prompt` is what a plain function gets. `body` is the whole API request: the batch's settings
    with the prompt, messages or body of the input line merged in. `attempt` counts from 1.
    """

    prompt: str | dict[str, Json]
    body: dict[str, Json]
    url: str
    model: str
    settings: Mapping[str, Json]
    batch: str
    position: int
    custom_id: str | None
    attempt: int


class Steer(Exception):
    """The base of what a worker raises to decide its job's outcome; `answer` is what was paid for."""

    default_class = "worker"

    def __init__(
        self,
        message: str = "",
        *,
        error_class: str | None = None,
        status: int | None = None,
        answer: Answer | None = None,
    ) -> None:
        """Give the reason as a person should read it."""
        super().__init__(message)
        self.error_class = error_class
        self.status = status
        self.answer = answer


class RetryLater(Steer):
    """Try again: after `after` seconds, or with back-off. Charges an attempt.

    The job fails when it has ended like this `at_most` times in a row, with this class of error.
    """

    default_class = "retry_later"

    def __init__(
        self,
        message: str = "",
        *,
        after: float | None = None,
        at_most: int | None = None,
        error_class: str | None = None,
        status: int | None = None,
        answer: Answer | None = None,
    ) -> None:
        """Give the reason and, in seconds, the time to wait."""
        super().__init__(message, error_class=error_class, status=status, answer=answer)
        self.after = after
        self.at_most = at_most


class Reject(Steer):
    """This prompt can't succeed: the job fails now."""

    default_class = "rejected"


class Throttled(Steer):
    """The provider asks for patience: the lane waits `after` seconds; no attempt is charged."""

    default_class = "throttled"

    def __init__(
        self,
        message: str = "",
        *,
        after: float | None = None,
        error_class: str | None = None,
        status: int | None = None,
        answer: Answer | None = None,
    ) -> None:
        """Give the reason and, in seconds, the time to wait."""
        super().__init__(message, error_class=error_class, status=status, answer=answer)
        self.after = after


class Halt(Steer):
    """Nothing in this lane can succeed (bad key, no credit): it stops until the cause is gone."""

    default_class = "halted"


WorkerFunction = Callable[[Any], object]
Handler = Callable[[Request], Awaitable[Json | Answer]]
WorkerFactory = Callable[[Endpoint], AbstractAsyncContextManager[WorkerFunction]]


@dataclass(frozen=True, slots=True)
class Plugin:
    """A worker with its needs: what an entry point names when a bare function does not say enough.

    `check` raises ConfigurationError for an endpoint that it could not serve, such as one without a key:
    at once, without opening anything. The rest is for workers that a script makes and gives to
    `prompt_map`: `name` is how their batches call them where no variable of the script does, `model` and
    `settings` are what else makes their requests other requests, and part of each job's key.
    """

    open: WorkerFactory
    needs_model: bool = False
    check: Callable[[Endpoint], None] | None = None
    name: str | None = None
    model: str = ""
    settings: Mapping[str, Json] = field(default_factory=dict)
