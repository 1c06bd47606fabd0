"""What a worker process is doing, told on SIGUSR1 while it goes on: its calls, where its tasks and threads are."""

from __future__ import annotations

import faulthandler
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from batchq import log
from batchq.runner import Runner
from batchq.stacks import stacks_of_tasks

# None where there is no such signal: on Windows.
DUMP_SIGNAL: Final[signal.Signals | None] = getattr(signal, "SIGUSR1", None)

_MOST_CALLS = 1_000
_MOST_STACKS = 100
_STDERR = 2


def dump_threads_from_now_on() -> None:
    """Take the signal for what it is before anybody listens: it would end a process that waits for its database."""
    if DUMP_SIGNAL is not None:
        signal.signal(DUMP_SIGNAL, lambda _number, _frame: None)
        _dump_threads(DUMP_SIGNAL)


def stop_dumping_threads() -> None:
    """Leave the signal to whoever has its handler."""
    if DUMP_SIGNAL is not None:
        faulthandler.unregister(DUMP_SIGNAL)


@contextmanager
def dumping_threads() -> Iterator[None]:
    """Write the stacks of all threads on the signal, and let whoever has its handler by now hear of it too."""
    if DUMP_SIGNAL is not None:
        _dump_threads(DUMP_SIGNAL)
    try:
        yield
    finally:
        stop_dumping_threads()


def _dump_threads(number: signal.Signals) -> None:
    # Without any value in them, and without Python's help: also where the event loop hangs, or the interpreter does.
    faulthandler.register(number, file=_STDERR, all_threads=True, chain=True)


def dump_runner(runner: Runner) -> None:
    """Log where a runner stands, which calls are running, the longest first, and where its tasks wait.

    Who asks for them wants to see them, however little is logged.
    """
    logger = log.get_answering_logger().bind(worker=runner.identity.id[:8])
    report, calls, stacks = runner.report(), runner.calls(), stacks_of_tasks()
    logger.warning(
        log.DUMP_RUNNER,
        phase=report.phase.value,
        concurrency=report.concurrency,
        in_flight=report.in_flight,
        done=report.done,
        failed=report.failed,
        drain_seconds=None if report.drain_seconds is None else round(report.drain_seconds, 1),
        away=report.away,
        calls=len(calls),
        tasks=sum(count for _, count in stacks),
    )
    for call in calls[:_MOST_CALLS]:
        log.dump_call(logger, call)
    for stack, count in stacks[:_MOST_STACKS]:
        logger.warning(log.DUMP_TASKS, count=count, stack=list(stack))
