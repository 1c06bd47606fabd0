"""How much each measurement does: quick, default and scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from scripts.benchmarks.places import Home

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sizes:
    """Jobs, calls and rounds. More make the figures steadier; in what SCALE changes they are the point."""

    rounds: int = 2
    noop_jobs: int = 60_000
    single_step_jobs: int = 1_500
    fast_calls: int = 6_000
    sdk_calls: int = 2_000
    slow_calls: int = 6_000
    wide_calls: int = 20_480  # 40 rounds of 512: with 19.5 the last half round would cost 2 %
    shared_jobs: int = 40_000
    enqueue_rows: int = 100_000
    # Finished rows of queue after queue; the last one has these waiting rows, too.
    ladder: tuple[int, ...] = (1_000, 10_000, 100_000)
    waiting_rows: int = 20_000
    claims: int = 50
    commands: int = 3
    wakes: int = 20
    idle_seconds: float = 20.0
    # Beside a reader that lets go now and then; and beside those that do so all the time, or never.
    soak_jobs: int = 80_000
    held_jobs: int = 40_000
    soak_hold: float = 1.5
    soak_pause: float = 0.5
    # Below this SQLite's page cache (16 MB) is not full yet, and any larger batch would look like growth.
    small_batch: int = 50_000
    large_batch: int = 100_000
    library_jobs: tuple[int, ...] = (10_000, 100_000)
    starts: int = 9
    # 0: leave the longer runs out.
    long_limited_jobs: int = 0
    further_limiters: bool = False
    minute_jobs: int = 200
    storm_jobs: int = 600
    storm_retry_afters: tuple[float, ...] = (1.0,)


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
    ladder=(1_000, 20_000),
    waiting_rows=10_000,
    claims=20,
    wakes=8,
    idle_seconds=5.0,
    soak_jobs=20_000,
    held_jobs=20_000,
    soak_hold=0.6,
    soak_pause=0.2,
    small_batch=1_000,
    large_batch=5_000,
    library_jobs=(10_000,),
    starts=3,
    storm_jobs=120,
    storm_retry_afters=(0.5,),
)
SCALE = Sizes(
    rounds=3,
    ladder=(1_000, 100_000, 1_000_000, 5_000_000),
    waiting_rows=1_000_000,
    soak_jobs=1_000_000,
    held_jobs=100_000,
    soak_hold=30.0,
    soak_pause=10.0,
    small_batch=100_000,
    large_batch=1_000_000,
    library_jobs=(10_000, 100_000, 1_000_000),
    long_limited_jobs=600,
    further_limiters=True,
    minute_jobs=720,
    storm_retry_afters=(1.0, 0.5),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a group of rows is given: its sizes, an empty directory of its own, and homes for its queues."""

    sizes: Sizes
    directory: Path
    homes: tuple[Home, ...] = ()


def interleaved(rounds: int, *measures: Callable[[], T]) -> list[list[T]]:
    """Take every measurement once per round, in turn, so that all of them see the same machine."""
    found: list[list[T]] = [[] for _ in measures]
    for _ in range(rounds):
        for results, measure in zip(found, measures, strict=True):
            results.append(measure())
    return found
