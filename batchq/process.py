"""A worker process: what it serves, its signals, its exit code."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import AsyncIterable, Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from typing import Final, TypeVar

import anyio

from batchq import log
from batchq.config import Settings
from batchq.discovery import FoundWorker, find_worker, installed_workers
from batchq.dump import DUMP_SIGNAL, dump_runner, dump_threads_from_now_on, dumping_threads, stop_dumping_threads
from batchq.errors import ConfigurationError
from batchq.exit_codes import ExitCode
from batchq.jobs import Batch, BatchState
from batchq.runner import Runner, Stop
from batchq.stacks import class_of, stack_of
from batchq.store import Store
from batchq.worker import Endpoint

T = TypeVar("T")

EXIT_RELEASED = ExitCode.RELEASED.value
NEW_OBJECTS_PER_COLLECTION = 10_000


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
    """Return the endpoints that this process's own settings know. Raises ConfigurationError for an insecure one."""
    found = {name: settings.require_endpoint(name) for name in settings.known_endpoints()}
    for name, endpoint in found.items():
        try:
            settings.refuse_insecure(endpoint)
        except ConfigurationError as error:
            raise ConfigurationError(f"the endpoint {name}: {error}") from None
    return found


async def live_batches(store: Store, batch_ids: Collection[int] | None = None) -> list[Batch]:
    """Return the unfinished batches, all or those among `batch_ids`."""
    left = await store.unfinished()
    return [found.batch for found in left.live if batch_ids is None or found.batch.id in batch_ids]


async def check_keys(
    store: Store,
    workers: Mapping[str, FoundWorker],
    endpoints: Mapping[str, Endpoint],
    batch_ids: Collection[int] | None = None,
    *,
    advice: Callable[[Batch], str] = lambda _batch: "",
) -> None:
    """Raise ConfigurationError, before anything is claimed, if a batch that waits needs a key that is not there.

    `advice` ends the message.
    """
    for batch in await live_batches(store, batch_ids):
        worker, endpoint = workers.get(batch.worker), endpoints.get(batch.endpoint)
        if worker is None or endpoint is None or batch.state is not BatchState.OPEN:
            continue
        try:
            worker.check(endpoint)
        except ConfigurationError as error:
            raise ConfigurationError(f"batch {batch.name!r} can't run: {error}{advice(batch)}") from error


def run_event_loop(main: Callable[[], Coroutine[object, object, T]]) -> T:
    """Run `main` on asyncio, on uvloop where it is installed."""
    import importlib.util

    fast = sys.platform != "win32" and importlib.util.find_spec("uvloop") is not None
    return anyio.run(main, backend_options={"use_uvloop": fast})


async def beside(main: Callable[[], Awaitable[T]], *others: Callable[[], Coroutine[object, object, None]]) -> T:
    """Run `main` with others beside it, and end those with it.

    What the first of them raises ends all the others and is raised itself, not wrapped in a group. A cancellation
    of what surrounds them goes before it.
    """
    ended: list[T] = []
    failures: list[Exception] = []
    async with anyio.create_task_group() as group:

        async def run_other(other: Callable[[], Coroutine[object, object, None]]) -> None:
            try:
                await other()
            except Exception as error:  # noqa: BLE001 - carried out by hand: a task group would wrap it
                failures.append(error)
                group.cancel_scope.cancel()

        for other in others:
            group.start_soon(run_other, other)
        try:
            ended.append(await main())
        except Exception as error:  # noqa: BLE001 - as above
            failures.append(error)
        group.cancel_scope.cancel()
    if failures:
        raise _unwrapped(failures[0])
    return ended[0]


def _unwrapped(error: Exception) -> Exception:
    """Return what a group holds that holds just one."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def collect_garbage_less_often() -> None:
    """Let more objects gather before Python looks for cycles among them: of a process that is ours alone.

    Jobs in hand are many objects, none of them in a cycle, beside the many more of what is imported; looking
    through all of these over and over took a seventh of a worker's CPU.
    """
    gc.set_threshold(NEW_OBJECTS_PER_COLLECTION, *gc.get_threshold()[1:])


async def run_until_signalled(runner: Runner, say: Callable[[str], None]) -> int:
    """Run until done or told to stop; return the exit code.

    First SIGTERM, SIGINT or SIGHUP: claim no more, drain; 0 when all drained, 75 when some were released at the
    deadline. Second: release at once; 143, 130 or 129. Third: leave.
    """
    listener = _Listener(runner, say)
    ended = await _run_and_listen(runner, listener)
    if listener.second is not None:
        return 128 + listener.second
    return EXIT_RELEASED if ended is Stop.RELEASED else 0


async def run_until_interrupted(runner: Runner, say: Callable[[str], None]) -> int:
    """Run as a command that a person waits for: return 0 when done, 130 or 143 after any signal."""
    listener = _Listener(runner, say)
    await _run_and_listen(runner, listener)
    return 0 if listener.first is None else 128 + listener.first


async def _run_and_listen(runner: Runner, listener: _Listener) -> Stop:
    collect_garbage_less_often()
    stop_dumping_threads()  # else the receiver would take the place of it
    with ExitStack() as closing, anyio.open_signal_receiver(*_heard()) as signals, dumping_threads():
        _keep_signals_from_forks()
        try:
            return await beside(runner.run, lambda: listener.listen(signals))
        finally:
            _hold_signals()
            closing.callback(_hear_while_closing, told_before=listener.first is not None)


def _hear_while_closing(*, told_before: bool) -> None:
    """Take the place of the receiver for what is left to do: no signal is a death by it."""
    if told_before:
        _leave_at_once_when_told_again()
    dump_threads_from_now_on()
    _let_signals()


def _leave_at_once_when_told_again() -> None:
    """Let one more signal end what is left, the closing of connections: with its code, not as a death by it."""
    for number in _heard() - {DUMP_SIGNAL}:
        signal.signal(number, lambda heard, _frame: os._exit(128 + heard))


@cache
def _keep_signals_from_forks() -> None:
    """Let a process that a worker's function forks hear its own signals, and tell nobody of them.

    It would write them into the pipe that it shares with this process: whoever ends a child would end the worker.
    """
    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(before=_hold_signals, after_in_parent=_let_signals, after_in_child=_hear_as_any_process)


# A terminal that is closed; None where there is no such signal: on Windows.
_HANG_UP: Final[signal.Signals | None] = getattr(signal, "SIGHUP", None)


def _heard() -> set[signal.Signals]:
    """Return the signals to hear: not a hang-up that `nohup` has this process pass over."""
    heard = {signal.SIGINT, signal.SIGTERM, DUMP_SIGNAL}
    if _HANG_UP is not None and signal.getsignal(_HANG_UP) is not signal.SIG_IGN:
        heard.add(_HANG_UP)
    return {number for number in heard if number is not None}


def _hold_signals() -> None:
    """Let those wait that come before the child has done so."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _heard())


def _let_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _heard())


def _hear_as_any_process() -> None:
    signal.set_wakeup_fd(-1)
    stop_dumping_threads()
    if DUMP_SIGNAL is not None:
        signal.signal(DUMP_SIGNAL, signal.SIG_DFL)
    for number in _heard() & {signal.SIGTERM, _HANG_UP}:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _let_signals()


def _dump(runner: Runner) -> None:
    """Tell what is running; whatever that meets, the worker goes on."""
    try:
        dump_runner(runner)
    except Exception as error:  # noqa: BLE001 - awaitables of others may raise anything when they are looked at
        log.get_logger().warning(log.DUMP_TASKS, count=0, stack=[class_of(error), *stack_of(error)])


class _Listener:
    """Turns signals into stops: the first drains, the second releases. One more only asks what is running."""

    def __init__(self, runner: Runner, say: Callable[[str], None]) -> None:
        self._runner = runner
        self._say = say
        self.first: int | None = None
        self.second: int | None = None

    async def listen(self, signals: AsyncIterable[signal.Signals]) -> None:
        """Hear signals until cancelled."""
        async for number in signals:
            if number == DUMP_SIGNAL:
                _dump(self._runner)
            elif self.first is None:
                self.first = number
                self._say(f"batchq: stopping; {self._runner.in_flight} in flight may finish, once more to stop at once")
                self._runner.stop()
            elif self.second is None:
                self.second = number
                self._say("batchq: stopping at once; a third time leaves the rest to the leases")
                self._runner.stop(now=True)
            else:
                os._exit(128 + number)  # a call that ignores its cancellation can't be waited for
