"""Makes queues to measure on, runs worker processes on them, and watches them from outside."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from scripts.benchmarks.processes import BATCHQ, in_child, running, wait_until

CHUNK = 2_000
MODEL = "fake/model"


def prompt(number: int) -> str:
    """Return a short prompt, distinct from all others."""
    return f"What is the capital of country number {number}?"


def make_queue(path: Path, batches: dict[str, Sequence[str]], *, worker: str, paused: str = "") -> None:
    """Create a queue with these batches of prompts through batchq's own store; `paused` names one to hold back.

    In a child, so that this process stays small and batchq's imports cost no measurement anything.
    """
    in_child(_make_queue, str(path), {name: list(each) for name, each in batches.items()}, worker, paused)


def make_numbered_queue(path: Path, jobs: int, *, worker: str, paused: bool = False) -> None:
    """Create a queue with one batch `main` of numbered prompts."""
    in_child(_make_numbered_queue, str(path), jobs, worker, paused)


def resume(path: Path, name: str) -> None:
    """Let a paused batch's jobs be claimed."""
    in_child(_resume, str(path), name)


@contextmanager
def workers(
    path: Path, processes: int, concurrency: int, *options: str
) -> Iterator[list[object]]:
    """Run `batchq worker` processes on a queue; they are all registered when the block begins."""
    command = [BATCHQ, "worker", f"--db={path}", f"--concurrency={concurrency}", "--log-level=error", *options]
    with ExitStack() as stack:
        started = [stack.enter_context(running(command, stderr=-3)) for _ in range(processes)]
        wait_until(lambda: ask(path, "SELECT count(*) FROM runners") == processes, "workers", *started)
        yield list(started)
