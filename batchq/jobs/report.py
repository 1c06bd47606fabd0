"""What people and programs read about a queue: results, attempts, progress, lanes, runners."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn, cast

from batchq.errors import DamagedRow
from batchq.jobs.batch import Batch, JobState, Json
from batchq.jobs.outcome import Usage


@dataclass(frozen=True, slots=True)
class Result:
    """A job as `collect` and `show` read it; `result`, `response` and `payload` are JSON text.

    `usage` and `cost` are what all its attempts came to. `status` is the HTTP status of the answer that
    failed it, `finished_at` when it ended. A job that follows another in its batch (`leader` is that one's
    position) has its state, result and error; it cost nothing itself.
    """

    position: int
    custom_id: str | None
    key: str
    state: JobState
    attempts: int
    result: str | None
    error: str | None
    error_class: str | None
    finish_reason: str | None
    usage: Usage
    cost: int | None
    meta: str | None
    payload: str | None
    cost_source: str | None = None
    response: str | None = None
    status: int | None = None
    finished_at: int | None = None
    leader: int | None = None

    @property
    def value(self) -> Json:
        """The answer itself; None where there is none."""
        return self._decoded("result", self.result)

    @property
    def prompt(self) -> Json:
        """What was asked, as the input had it; None where it was not read along."""
        return self._decoded("payload", self.payload)

    def refuse_damaged(self) -> None:
        """Raise DamagedRow where what should be JSON is none: something else than batchq has changed it."""
        for column in ("result", "payload", "response", "meta"):
            self._decoded(column, getattr(self, column))

    def _decoded(self, column: str, text: str | None) -> Json:
        try:
            return None if text is None else cast("Json", json.loads(text, parse_constant=_refuse_constant))
        except (ValueError, RecursionError) as error:
            raise DamagedRow(
                f"the job at position {self.position} can't be read: its {column} is not JSON ({error});"
                " something else than batchq has changed the database"
            ) from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"JSON has no {name}")


@dataclass(frozen=True, slots=True)
class FinishedPlace:
    """Where a reader of finished jobs stands: behind the one that ended last of those that it has read.

    `follower_id` is the last one read of those that follow it; None where they are all read.
    """

    at: int = -1
    job_id: int = -1
    follower_id: int | None = None


@dataclass(frozen=True, slots=True)
class FinishedPage:
    """Jobs that ended, with those that follow them, and the place behind them."""

    results: tuple[Result, ...]
    place: FinishedPlace


@dataclass(frozen=True, slots=True)
class Attempt:
    """One row of the attempts log; `cost_source` is `provider` or `estimate`."""

    token: int
    number: int
    runner: str | None
    started_at: int | None
    ended_at: int
    outcome: str
    charged: bool
    error: str | None
    error_class: str | None
    status: int | None
    usage: Usage
    cost: int | None
    late: bool
    cost_source: str | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """How many jobs of a batch are in each state, from the tallies."""

    pending: int = 0
    inflight: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0

    @property
    def total(self) -> int:
        """All jobs of the batch."""
        return self.pending + self.inflight + self.final

    @property
    def final(self) -> int:
        """Jobs that ended."""
        return self.done + self.failed + self.cancelled

    @property
    def live(self) -> int:
        """Jobs that have not ended."""
        return self.pending + self.inflight


@dataclass(frozen=True, slots=True)
class Lane:
    """What one rate limit covers: worker, base URL and model.

    Limits are per minute; None where none is configured. `burst` is what may start at once, as asked for
    in `asked_burst` or by default. `learned_rpm` is what 429s taught, `ready_at` when a call may start.
    `vain_probes` counts the probes of a halt that halted again. `in_flight`
    counts its running calls.
    """

    worker: str
    base_url: str
    model: str
    paused_until: int | None
    halted_at: int | None
    probe_at: int | None
    reason: str | None
    rpm: float | None = None
    tpm: float | None = None
    max_inflight: int | None = None
    burst: float | None = None
    asked_burst: float | None = None
    learned_rpm: float | None = None
    in_flight: int = 0
    ready_at: int = 0
    vain_probes: int = 0


@dataclass(frozen=True, slots=True)
class RunnerInfo:
    """A worker process as people see it; never used for correctness.

    `endpoints` are its base URLs by name, `batch_ids` the batches that it serves, None where it serves any,
    `pid_space` tells among which processes its `pid` means something, `version` which batchq it is.
    """

    id: str
    host: str
    pid: int
    concurrency: int
    in_flight: int
    serves: str
    started_at: int
    seen_at: int
    live: bool
    endpoints: Mapping[str, str] = field(default_factory=dict)
    batch_ids: frozenset[int] | None = None
    pid_space: str | None = None
    version: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """A batch at one moment: what there is to know while waiting for it.

    `finished` is asked of the index (sealed and no live row), never of the tallies.
    `runners` are the live ones, `lanes` those of the batch's worker and model, at whatever server.
    `leased_until` is when the last lease ends. Of `cost`, `estimated` was worked out from price lists;
    `unpriced` answers told no cost, and of `throttles` claims the provider asked to come later. Where the database is
    `away` (why), it is as it stood before.
    """

    batch: Batch
    counts: Counts
    finished: bool
    now: int
    usage: Usage
    cost: int | None
    attempts: int
    losses: int
    next_due_at: int | None
    runners: tuple[RunnerInfo, ...]
    lanes: tuple[Lane, ...]
    leased_until: int | None = None
    estimated: int = 0
    priced: int = 0
    unpriced: int = 0
    throttles: int = 0
    away: str | None = None

    @property
    def running(self) -> bool:
        """Whether a job is in flight under a lease that has not run out."""
        return self.leased_until is not None and self.leased_until > self.now

    @property
    def over_budget(self) -> bool:
        """Whether its budget is spent."""
        return self.batch.has_spent(self.cost, self.priced, self.unpriced)

    @property
    def starting(self) -> bool:
        """Whether somebody has just completed it, and is about to run it."""
        return self.batch.sealed_at is not None and self.batch.enqueue_until > self.now

    @property
    def enqueueing(self) -> bool:
        """Whether a live `enqueue` is still adding rows."""
        return self.batch.sealed_at is None and self.batch.enqueue_until > self.now


@dataclass(frozen=True, slots=True)
class LiveBatch:
    """A batch with unfinished jobs: when the next pending one is due, and when the last lease ends.

    `spent` is None while no answer told a cost.
    """

    batch: Batch
    next_due_at: int | None
    leased_until: int | None
    spent: int | None = None
    priced: int = 0
    unpriced: int = 0

    @property
    def over_budget(self) -> bool:
        """Whether its budget is spent."""
        return self.batch.has_spent(self.spent, self.priced, self.unpriced)


@dataclass(frozen=True, slots=True)
class Unfinished:
    """What there is left to do in the whole queue, at one moment.

    `unsealed` are the batches that a producer has not completed; one of them may be in `live` too.
    """

    now: int
    live: tuple[LiveBatch, ...]
    unsealed: tuple[Batch, ...]
    lanes: tuple[Lane, ...]


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """Failures of one class in a batch, with one example."""

    error_class: str
    count: int
    example_position: int
    example: str
