"""What is counted of a queue while it is looked at again and again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from batchq.jobs.report import FinishedPlace


@dataclass(frozen=True, slots=True)
class BatchTotals:
    """What a batch has come to: the sums of its tallies, by their names."""

    worker: str
    model: str
    sums: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class EndedJob:
    """A job that ended: `weight` counts those that follow it, `waited_ms` is how long it waited for its first claim."""

    state: str
    weight: int
    waited_ms: int | None


@dataclass(frozen=True, slots=True)
class EndedAttempt:
    """An attempt at such a job; `duration_ms` is None where nobody measured it."""

    outcome: str
    duration_ms: int | None


@dataclass(frozen=True, slots=True)
class EndedPage:
    """Jobs that ended in the order in which they did, their attempts, and the place behind them."""

    jobs: tuple[EndedJob, ...]
    attempts: tuple[EndedAttempt, ...]
    place: FinishedPlace
    is_full: bool
