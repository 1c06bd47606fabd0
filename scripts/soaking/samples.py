"""What is looked at while the workers run: their memory, files and threads, the log, the tables, the calls."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from scripts.benchmarks.places import Place, SqlitePlace
from tests.fake_provider import Provider

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_MEGABYTE = 2**20
_TABLES = "SELECT (pg_total_relation_size('jobs') + pg_total_relation_size('attempts')) / 1048576.0"


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at all of it. Of the workers the largest; `answered` counts the provider's answers so far."""

    at: float
    memory_mb: float
    descriptors: float
    threads: float
    log_mb: float
    table_mb: float
    answered: int


@contextmanager
def sampling(pids: list[int], place: Place, provider: Provider, seconds: float) -> Iterator[list[Sample]]:
    """Sample every so many seconds for the length of the block; the list grows meanwhile."""
    samples: list[Sample] = []
    over = Event()

    def repeat() -> None:
        while not over.wait(seconds):
            samples.append(take(pids, place, provider))

    thread = Thread(target=repeat)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def take(pids: list[int], place: Place, provider: Provider) -> Sample:
    """Look at everything once."""
    return Sample(
        at=time.monotonic(),
        memory_mb=_most(pids, _memory_mb),
        descriptors=_most(pids, lambda process: len(os.listdir(process / "fd"))),  # noqa: PTH208 - names will do
        threads=_most(pids, lambda process: len(os.listdir(process / "task"))),  # noqa: PTH208
        log_mb=_size_mb(place.log) if isinstance(place, SqlitePlace) else 0.0,
        table_mb=_size_mb(place.path) if isinstance(place, SqlitePlace) else float(place.ask(_TABLES)),
        answered=int(provider.ledger()["answered"]),
    )


def _most(pids: list[int], measure: Callable[[Path], float]) -> float:
    return max(measure(Path("/proc", str(pid))) for pid in pids)


def _memory_mb(process: Path) -> float:
    return int((process / "statm").read_text().split()[1]) * _PAGE_BYTES / _MEGABYTE


def _size_mb(file: Path) -> float:
    try:
        return file.stat().st_size / _MEGABYTE
    except FileNotFoundError:
        return 0.0
