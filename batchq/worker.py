"""The contract that a worker implements, and how a name becomes a worker.

A worker is an async function that answers one prompt:

    async def shout(prompt: str) -> str:
        return prompt.upper()

It is given the prompt (a string, or a dict when the input line held messages or a body). One that
annotates its first parameter with `Request` gets everything there is to know instead. It returns a
string, any JSON value, or an `Answer` with usage and cost. It steers by raising `RetryLater`,
`Reject`, `Throttled` or `Halt`; any other exception is retried with back-off.

A worker that owns a client is an async context manager factory, opened once per process:

    @asynccontextmanager
    async def open_worker(endpoint: Endpoint) -> AsyncIterator[WorkerFunction]: ...

A process finds workers by name among the installed entry points of the group `batchq.workers`, and
by `module:function` or `script.py:function` when that is given on its own command line. Nothing in
the database can make a process import code.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import cast, get_type_hints
from urllib.parse import urlsplit

from batchq.errors import ConfigurationError
from batchq.jobs import Answer, Json, Usage

__all__ = [
    "Answer",
    "ConfigurationError",
    "Endpoint",
    "Halt",
    "Handler",
    "Json",
    "Plugin",
    "Reject",
    "Request",
    "RetryLater",
    "Steer",
    "Throttled",
    "Usage",
    "WorkerFunction",
    "find_worker",
    "installed_workers",
    "is_openrouter",
    "worker_name",
]

ENTRY_POINT_GROUP = "batchq.workers"
DEFAULT_WORKER = "openrouter"


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


WorkerFunction = Callable[..., Awaitable[Json | Answer]]
Handler = Callable[[Request], Awaitable[Json | Answer]]
WorkerFactory = Callable[[Endpoint], AbstractAsyncContextManager[WorkerFunction]]


@dataclass(frozen=True, slots=True)
class Plugin:
    """A worker with its needs: what an entry point names when a bare function does not say enough.

    `check` raises ConfigurationError for an endpoint that it could not serve, such as one without a key:
    at once, without opening anything.
    """

    open: WorkerFactory
    needs_model: bool = False
    check: Callable[[Endpoint], None] | None = None


@dataclass(frozen=True, slots=True)
class FoundWorker:
    """A worker that this process can serve, under the name that batches know it by."""

    name: str
    open: Callable[[Endpoint], AbstractAsyncContextManager[Handler]]
    needs_model: bool = False
    check: Callable[[Endpoint], None] = lambda _endpoint: None


def worker_name(reference: str) -> str:
    """Return the name that a batch records for `reference`: the same from every directory.

    `scripts/mine.py:answer` is recorded as `mine.py:answer`; anything else as it stands.
    """
    target, separator, function = reference.rpartition(":")
    if separator and target.endswith(".py"):
        return f"{Path(target).name}:{function}"
    return reference


def installed_workers() -> list[str]:
    """Return the names of the workers that installed packages offer, sorted."""
    return sorted({point.name for point in entry_points(group=ENTRY_POINT_GROUP)})


def find_worker(reference: str) -> FoundWorker:
    """Find a worker by installed name, `module:function` or `script.py:function`.

    Raises ConfigurationError when there is none, or when it can't be a worker.
    """
    found = _load_reference(reference) if ":" in reference else _load_entry_point(reference)
    name = worker_name(reference)
    if isinstance(found, Plugin):
        handlers = _handlers_from(found.open)
        if found.check is None:
            return FoundWorker(name, handlers, needs_model=found.needs_model)
        return FoundWorker(name, handlers, needs_model=found.needs_model, check=found.check)
    if inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(getattr(found, "__call__", None)):  # noqa: B004
        return FoundWorker(name, _always(adapt(cast("WorkerFunction", found))))
    if callable(found) and hasattr(found, "__wrapped__"):  # what @asynccontextmanager leaves behind
        return FoundWorker(name, _handlers_from(found))
    raise ConfigurationError(
        f"{reference} is not a worker: expected `async def function(prompt)`, found {type(found).__name__}"
    )


def adapt(function: WorkerFunction) -> Handler:
    """Give a plain function its prompt, and one that annotates `Request` the whole request."""
    if _wants_request(function):
        return function

    async def answer_prompt(request: Request) -> Json | Answer:
        return await function(request.prompt)

    return answer_prompt


def _wants_request(function: WorkerFunction) -> bool:
    target = function if inspect.isfunction(function) or inspect.ismethod(function) else function.__call__  # type: ignore[operator]
    parameters = list(inspect.signature(target).parameters.values())
    if not parameters:
        raise ConfigurationError("a worker takes one argument, the prompt; this one takes none")
    try:
        hints = get_type_hints(target)
    except (NameError, TypeError):  # an annotation only a type checker can resolve
        hints = {}
    annotation = hints.get(parameters[0].name, parameters[0].annotation)
    return annotation is Request or annotation in {"Request", "batchq.Request"}


def _always(handler: Handler) -> Callable[[Endpoint], AbstractAsyncContextManager[Handler]]:
    @asynccontextmanager
    async def open_handler(endpoint: Endpoint) -> AsyncIterator[Handler]:  # noqa: ARG001 - it has no client
        yield handler

    return open_handler


def _handlers_from(factory: WorkerFactory) -> Callable[[Endpoint], AbstractAsyncContextManager[Handler]]:
    @asynccontextmanager
    async def open_handler(endpoint: Endpoint) -> AsyncIterator[Handler]:
        async with factory(endpoint) as function:
            yield adapt(function)

    return open_handler


def _load_entry_point(name: str) -> object:
    for point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        try:
            return point.load()
        except ImportError as error:
            raise ConfigurationError(f"worker {name!r} is installed but can't be imported: {error}") from error
    known = ", ".join(installed_workers())
    raise ConfigurationError(
        f"no worker named {name!r}; installed: {known}. A function of yours: module:function or script.py:function"
    )


def _load_reference(reference: str) -> object:
    target, _, function = reference.rpartition(":")
    try:
        module = _load_script(Path(target)) if target.endswith(".py") else _load_module(target)
    except (ConfigurationError, ImportError) as error:
        raise ConfigurationError(f"can't import {target}: {error}") from error
    except Exception as error:
        raise ConfigurationError(f"can't import {target}: {type(error).__name__}: {error}") from error
    try:
        return getattr(module, function)
    except AttributeError:
        raise ConfigurationError(f"{target} has no function {function!r}") from None


def _load_module(name: str) -> object:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    return importlib.import_module(name)


def _load_script(path: Path) -> object:
    if not path.is_file():
        raise ConfigurationError(f"there is no file {path.absolute()}")
    directory = str(path.absolute().parent)
    if directory not in sys.path:
        sys.path.insert(0, directory)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigurationError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses and pickles inside the script look themselves up here
    spec.loader.exec_module(module)
    return module
