"""Kills a worker with jobs in flight and watches, from outside, when they run again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import Popen
from threading import Event, Semaphore

from scripts.benchmarks.peers.calling import Failed, Installed, call, worker
from scripts.benchmarks.peers.contract import SLOTS, Recovery, WorkerSettings
from scripts.benchmarks.peers.ledger import Verdict, ended, in_flight, judge, read

JOBS = 96
DEADLINE = 70.0
START_SECONDS = 60.0
FULL_SECONDS = 3.0
QUIET_SECONDS = 4.0
POLL_SECONDS = 0.02
# Starting takes the processor: not all tools at once.
_starting = Semaphore(2)
# Set when the run is given up: then nobody waits for jobs any more.
given_up = Event()


@dataclass(frozen=True, slots=True)
class Recovered:
    """How a tool recovered in one way; `unfinished` jobs are still in its database at the end."""

    recovery: Recovery
    verdict: Verdict
    unfinished: int


def recover(tool: Installed, recovery: Recovery, target: str, ledger: Path) -> Recovered:
    """Kill one of two workers with 16 jobs in flight that sleep 2 s each, and judge by the ledger.

    The other worker is there already, or it is the killed one that is started again right after.
    """
    settings = WorkerSettings("first", SLOTS, recovery.options)
    with ExitStack() as stack:
        with _starting:
            call(tool, "fill", target, {"task": "sleeping", "jobs": JOBS})
            first = stack.enter_context(worker(tool, target, settings, ledger))
            others = [] if recovery.restarts else [replace(settings, name="second")]
            started = [first, *(stack.enter_context(worker(tool, target, other, ledger)) for other in others)]
            killed_at = _kill(first, started, ledger)
            if recovery.restarts:
                again = stack.enter_context(worker(tool, target, settings, ledger))
                _wait_for_work([again], ledger)
        _watch(ledger, killed_at + DEADLINE)
        # Asked before the ledger is read: a job that ends in between is not taken for one that is gone.
        unfinished = int(call(tool, "unfinished", target)) if len(ended(read(ledger))) < JOBS else 0
        verdict = judge(read(ledger), JOBS, first.pid, killed_at)
    return Recovered(recovery, verdict, unfinished)


def _kill(first: Popen[str], started: list[Popen[str]], ledger: Path) -> float:
    with _explained_by_logs(ledger):
        _wait_for_work(started, ledger)
        full = time.monotonic()
        while len(in_flight(read(ledger), first.pid)) < SLOTS and time.monotonic() - full < FULL_SECONDS:
            time.sleep(POLL_SECONDS)
    killed_at = time.time()
    first.kill()
    first.wait()
    if not in_flight(read(ledger), first.pid):
        raise Failed("the worker was killed when it had nothing in flight")
    return killed_at


def _wait_for_work(workers: list[Popen[str]], ledger: Path) -> None:
    """Wait until each of these has a job in flight."""
    deadline = time.monotonic() + START_SECONDS
    while any(not in_flight(read(ledger), process.pid) for process in workers):
        if any(process.poll() is not None for process in workers):
            raise Failed("a worker ended by itself")
        if time.monotonic() > deadline:
            raise Failed("a worker began no job")
        time.sleep(POLL_SECONDS)


@contextmanager
def _explained_by_logs(ledger: Path) -> Iterator[None]:
    """Add the last words of a worker's log to what went wrong."""
    try:
        yield
    except Failed as failure:
        logs = ledger.parent.glob(f"{ledger.stem}.*.log")
        lines = [line for log in logs for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise Failed(f"{failure}{': ' + lines[-1][:200] if lines else ''}") from None


def _watch(ledger: Path, deadline: float) -> None:
    """Wait until all jobs have ended and nothing was run for some seconds, or until the deadline."""
    while time.time() < deadline and not given_up.is_set():
        lines = read(ledger)
        if len(ended(lines)) == JOBS and time.time() - max(line.at for line in lines) > QUIET_SECONDS:
            return
        time.sleep(0.1)
