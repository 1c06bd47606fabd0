"""How a function becomes a handler: given the prompt or the whole request, awaited or called in a thread."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from typing import cast, get_type_hints

from batchq.errors import ConfigurationError
from batchq.jobs import Answer, Json
from batchq.threads import Threads
from batchq.worker import Halt, Handler, Request, WorkerFunction

# How many calls that were given up may still hold a thread of this process: a system has some ten thousand for all.
MOST_ABANDONED = 1_000

_Call = Callable[[object], Awaitable[Json | Answer]]


def adapt(function: WorkerFunction) -> Handler:
    """Give a function its prompt, and one that annotates `Request` the whole request.

    One that is not async is called in a thread, and halts its lane while too many of its calls hang there though
    they were given up. Raises ConfigurationError for one that takes no prompt.
    """
    wants_request = _wants_request(function)
    call = cast("_Call", function) if is_async(function) else _in_thread(function)
    if wants_request:
        return call

    async def answer_prompt(request: Request) -> Json | Answer:
        return await call(request.prompt)

    return answer_prompt


def is_async(function: object) -> bool:
    """Whether a function, or an object that is called like one, is `async def`."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def origin(function: object) -> object:
    """Return the function inside partials and decorators."""
    target = _inside_partials(function)
    inner: object = inspect.unwrap(target) if callable(target) else target
    return inner


def _in_thread(function: WorkerFunction) -> _Call:
    threads = Threads()

    async def call(argument: object) -> Json | Answer:
        if threads.abandoned >= MOST_ABANDONED:
            raise Halt(
                f"{threads.abandoned:,} calls that were given up still run and can't be stopped: give what the function"
                " calls a timeout of its own, and start this process again",
                error_class="hanging",
            )
        answer = await threads.run(function, argument)
        # A lambda that calls an async function is not async itself.
        return cast("Json | Answer", await answer if isinstance(answer, Awaitable) else answer)

    return call


def _wants_request(function: WorkerFunction) -> bool:
    if not callable(function):
        raise ConfigurationError(f"a worker is a function; this factory gives {type(function).__name__}")
    try:
        signature = inspect.signature(function)
    except ValueError:  # of builtins that don't tell
        return False
    try:
        signature.bind(None)
    except TypeError:
        called = f"{getattr(function, '__qualname__', type(function).__name__)}({', '.join(signature.parameters)})"
        raise ConfigurationError(f"a worker takes one argument, the prompt; {called} does not") from None
    parameter = next(iter(signature.parameters.values()))
    annotation = _hints(function).get(parameter.name, parameter.annotation)
    return annotation is Request or annotation in {"Request", "batchq.Request"}


def _hints(function: WorkerFunction) -> dict[str, object]:
    target = _inside_partials(function)
    try:
        return get_type_hints(target if inspect.isroutine(target) else type(target).__call__)
    except (NameError, TypeError, AttributeError):  # what only a type checker can resolve, and builtins
        return {}


def _inside_partials(function: object) -> object:
    while isinstance(function, partial):
        function = function.func
    return function
