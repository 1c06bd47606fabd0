"""How much each measurement does: quick, default and scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sizes:
    """Jobs, calls and rounds. More make the figures steadier; in `claims`, `memory`, `library` they are the point."""

    rounds: int = 3
    noop_jobs: int = 60_000
    single_step_jobs: int = 2_000
    fast_calls: int = 6_000
    sdk_calls: int = 2_000
    slow_calls: int = 6_000
    wide_calls: int = 10_000
    shared_jobs: int = 60_000
    enqueue_rows: int = 100_000
    finished_rows: int = 500_000
    waiting_rows: int = 100_000
    claims: int = 50
    # Below this SQLite's page cache (16 MB) is not full yet, and any larger batch would look like growth.
    small_batch: int = 50_000
    large_batch: int = 100_000
    library_jobs: tuple[int, ...] = (10_000, 100_000)
    starts: int = 9
    # 0: leave the longer runs out.
    long_limited_jobs: int = 600
    further_limiters: bool = True
    minute_jobs: int = 720
    storm_jobs: int = 600
    storm_retry_afters: tuple[float, ...] = (1.0, 0.5)


DEFAULT = Sizes()
QUICK = Sizes(
    rounds=1,
    noop_jobs=8_000,
    single_step_jobs=200,
    fast_calls=1_000,
    sdk_calls=300,
    slow_calls=1_000,
    wide_calls=1_536,
    shared_jobs=4_000,
    enqueue_rows=20_000,
    finished_rows=50_000,
    waiting_rows=10_000,
    claims=20,
    small_batch=1_000,
    large_batch=5_000,
    library_jobs=(10_000,),
    starts=3,
    long_limited_jobs=0,
    further_limiters=False,
    minute_jobs=200,
    storm_jobs=120,
    storm_retry_afters=(0.5,),
)
SCALE = Sizes(
    finished_rows=5_000_000,
    waiting_rows=1_000_000,
    small_batch=100_000,
    large_batch=1_000_000,
    library_jobs=(10_000, 100_000, 1_000_000),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a group of rows is given: its sizes, and an empty directory of its own."""

    sizes: Sizes
    directory: Path


def interleaved(rounds: int, *measures: Callable[[], T]) -> list[list[T]]:
    """Take every measurement once per round, in turn, so that all of them see the same machine."""
    found: list[list[T]] = [[] for _ in measures]
    for _ in range(rounds):
        for results, measure in zip(found, measures, strict=True):
            results.append(measure())
    return found
