"""Runs blocking functions in threads, as many at once as are asked for.

They are no threads of anyio's: a process waits for those when it exits, and so a call that hangs would hold it.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TypeVar

IDLE_SECONDS = 10.0

A = TypeVar("A")
T = TypeVar("T")


class Threads:
    """The threads of one blocking function: idle ones are used again, and end after a while."""

    def __init__(self) -> None:
        """Start none yet."""
        self._idle: deque[_Thread] = deque()
        self._running: set[object] = set()
        self._awaited = 0

    @property
    def abandoned(self) -> int:
        """How many calls go on that nobody waits for any more; each of them holds a thread."""
        return max(0, len(self._running) - self._awaited)

    async def run(self, function: Callable[[A], T], argument: A) -> T:
        """Call a function in a thread, in the context of this task.

        A call that is cancelled is abandoned: its thread goes on, and what comes of it is dropped.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        context = copy_context()
        context.run(_leave_event_loop)
        self._running.add(future)
        self._take().calls.put(partial(self._call, partial(context.run, function, argument), future))
        self._awaited += 1
        try:
            return await future
        finally:
            self._awaited -= 1

    def _call(self, function: Callable[[], T], future: asyncio.Future[T]) -> Callable[[], None]:
        report = _call(function, future)
        self._running.discard(future)
        return report

    def _take(self) -> _Thread:
        try:
            return self._idle.pop()
        except IndexError:
            thread = _Thread(self._idle)
            thread.start()
            return thread


class _Thread(Thread):
    """Makes calls, each of which returns how to report its end, until none came for a while."""

    def __init__(self, idle: deque[_Thread]) -> None:
        super().__init__(name="batchq worker function", daemon=True)
        self._idle = idle
        self.calls: SimpleQueue[Callable[[], Callable[[], None]]] = SimpleQueue()

    def run(self) -> None:
        while self._serve():
            pass

    def _serve(self) -> bool:
        try:
            call = self.calls.get(timeout=IDLE_SECONDS)
        except Empty:
            try:
                self._idle.remove(self)
            except ValueError:  # taken at this moment: a call is on its way
                return True
            return False
        report = call()
        self._idle.append(self)
        report()
        return True


def _call(function: Callable[[], T], future: asyncio.Future[T]) -> Callable[[], None]:
    try:
        return partial(_report, future, partial(future.set_result, function()))
    except (StopIteration, GeneratorExit) as error:  # a future can't hold the one, the other closes who awaits it
        failure: BaseException = RuntimeError(f"the function raised {type(error).__name__}")
        failure.__cause__ = error
    except BaseException as error:  # noqa: BLE001 - it is raised where the call is awaited
        failure = error
    return partial(_report, future, partial(future.set_exception, failure))


def _report(future: asyncio.Future[T], end: Callable[[], None]) -> None:
    def report() -> None:
        if not future.done():  # else abandoned
            end()

    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        future.get_loop().call_soon_threadsafe(report)


def _leave_event_loop() -> None:
    """Let the function run a loop of its own: no event loop is running in its thread."""
    if (sniffio := sys.modules.get("sniffio")) is not None:
        sniffio.current_async_library_cvar.set(None)
