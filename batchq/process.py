"""A worker process: what it serves, its signals, its exit code."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import TypeVar

import anyio

from batchq.config import Settings
from batchq.errors import BatchqError, ConfigurationError
from batchq.runner import Runner, Stop
from batchq.worker import Endpoint, FoundWorker, find_worker, installed_workers

T = TypeVar("T")

EXIT_RELEASED = 75
_GRACE_SECONDS = 5.0


def gather_workers(references: Sequence[str]) -> dict[str, FoundWorker]:
    """Return the workers that a process serves: those named, or all installed ones that can be loaded.

    Raises ConfigurationError for a named one that can't be found.
    """
    if references:
        found = [find_worker(reference) for reference in references]
        return {worker.name: worker for worker in found}
    workers: dict[str, FoundWorker] = {}
    for name in installed_workers():
        try:
            workers[name] = find_worker(name)
        except ConfigurationError:
            continue  # an extra that is not installed; its batches are reported as not served
    return workers


def gather_endpoints(settings: Settings) -> dict[str, Endpoint]:
    """Return the endpoints that this process's own settings know."""
    found = (settings.endpoint(name) for name in settings.known_endpoints())
    return {endpoint.name: endpoint for endpoint in found if endpoint is not None}


def run_event_loop(main: Callable[[], Coroutine[object, object, T]]) -> T:
    """Run `main` on asyncio, on uvloop where it is installed."""
    import importlib.util

    fast = sys.platform != "win32" and importlib.util.find_spec("uvloop") is not None
    return anyio.run(main, backend_options={"use_uvloop": fast})


async def run_until_signalled(runner: Runner, say: Callable[[str], None]) -> int:
    """Run until done or told to stop; return the exit code.

    First SIGTERM or SIGINT: claim no more, drain; 0 when all drained, 75 when some were released at the
    deadline. Second: release at once; 143 or 130.
    """
    code: int | None = None

    async def listen(*, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        nonlocal code
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            asked = False
            async for number in signals:
                if not asked:
                    asked = True
                    say(f"stopping: {runner.in_flight} in flight may finish; once more to stop at once")
                    runner.stop()
                    continue
                code = 128 + number
                runner.stop(now=True)
                await anyio.sleep(_GRACE_SECONDS)
                group.cancel_scope.cancel()

    ended: Stop | BatchqError = Stop.RELEASED
    async with anyio.create_task_group() as group:
        await group.start(listen)
        try:
            ended = await runner.run()
        except BatchqError as error:  # carried out by hand: a task group would wrap it
            ended = error
        group.cancel_scope.cancel()
    if isinstance(ended, BatchqError):
        raise ended
    if code is not None:
        return code
    return EXIT_RELEASED if ended is Stop.RELEASED else 0
