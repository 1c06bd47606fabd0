"""How a name or an object becomes a worker: an installed entry point, what the command line names, or a script holds.

Nothing in the database can make a process import code.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from operator import attrgetter
from pathlib import Path
from typing import cast

from batchq.adapting import adapt, is_async, origin
from batchq.errors import ConfigurationError
from batchq.jobs import Json
from batchq.worker import Endpoint, Handler, Plugin, WorkerFactory, WorkerFunction

ENTRY_POINT_GROUP = "batchq.workers"

_loading: ContextVar[bool] = ContextVar("loading", default=False)


def _accept(_endpoint: Endpoint) -> None:
    """Find nothing wrong with an endpoint."""


@dataclass(frozen=True, slots=True)
class FoundWorker:
    """A worker that this process can serve, under the name that batches know it by.

    `model` and `settings` are a Plugin's own, which make its requests others.
    """

    name: str
    open: Callable[[Endpoint], AbstractAsyncContextManager[Handler]]
    needs_model: bool = False
    check: Callable[[Endpoint], None] = _accept
    model: str = ""
    settings: Mapping[str, Json] = field(default_factory=dict)


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
    token = _loading.set(True)
    try:
        found = _load_reference(reference) if ":" in reference else _load_entry_point(reference)
    finally:
        _loading.reset(token)
    return wrap_worker(found, worker_name(reference))


def is_loading() -> bool:
    """Whether this code runs because find_worker imports it: what starts a run here lacks a `__main__` guard."""
    return _loading.get()


def wrap_worker(found: object, name: str) -> FoundWorker:
    """Make a worker, under this name, of a Plugin, a function, or an async context manager factory.

    Raises ConfigurationError for what can't be one.
    """
    if isinstance(found, Plugin):
        handlers, check = _handlers_from(found.open), found.check or _accept
        return FoundWorker(name, handlers, found.needs_model, check, found.model, found.settings)
    if (reason := _why_not(found)) is not None:
        raise ConfigurationError(f"{name} is not a worker: {reason}")
    if not is_async(found) and inspect.isasyncgenfunction(origin(found)):  # what @asynccontextmanager leaves behind
        return FoundWorker(name, _handlers_from(cast("WorkerFactory", found)))
    return FoundWorker(name, _always(adapt(cast("WorkerFunction", found))))


def _why_not(found: object) -> str | None:
    """Return what keeps something from being a worker; None for a function or a factory."""
    if inspect.isclass(found):
        return "it is a class; make an object of it, or write a function"
    if not callable(found):
        return f"expected `async def function(prompt)` or `def function(prompt)`, found {type(found).__name__}"
    if is_async(found):
        return None
    if inspect.isasyncgenfunction(found):
        return "it is an async generator; return the answer, or add @asynccontextmanager if it opens a client"
    if inspect.isgeneratorfunction(found):
        return "it is a generator; return the answer instead of yielding it"
    if inspect.isgeneratorfunction(origin(found)):
        return "it is made with @contextmanager; write `async def` with @asynccontextmanager"
    return None


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
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            raise ConfigurationError(f"worker {name!r} is installed but can't be imported: {told}") from error
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
        return cast("object", attrgetter(function)(module))
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
