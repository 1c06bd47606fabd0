"""A queue at one moment, as `status` and `top` show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from batchq.jobs.report import ErrorGroup, Lane, Progress, RunnerInfo


@dataclass(frozen=True, slots=True)
class Overview:
    """The queue at one moment: unfinished batches and the newest of the others, newest first; live runners; lanes.

    `older` counts ended batches that are left out; `more_unfinished` tells that unfinished ones are, too, and a lane
    then counts the calls of those that are here. `errors` are by name of the batch, as far as they were read.
    `moved_to` is the place that the queue went to.
    """

    database: str
    now: int
    batches: tuple[Progress, ...]
    older: int
    more_unfinished: bool
    runners: tuple[RunnerInfo, ...]
    lanes: tuple[Lane, ...]
    moved_to: str | None
    errors: Mapping[str, tuple[ErrorGroup, ...]] = field(default_factory=dict)
