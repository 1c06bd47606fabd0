"""How a name becomes a worker: an installed entry point, or a function that the command line names.

Nothing in the database can make a process import code.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import cast, get_type_hints

from batchq.errors import ConfigurationError
from batchq.jobs import Answer, Json
from batchq.worker import Endpoint, Handler, Plugin, Request, WorkerFactory, WorkerFunction

ENTRY_POINT_GROUP = "batchq.workers"


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
