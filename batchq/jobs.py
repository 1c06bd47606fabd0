"""The values that travel through batchq: batches, jobs, claims, outcomes, results, progress.

All are frozen. Times are integer milliseconds of the database's clock since the epoch,
money is integer nano-dollars (10^-9 USD), and None means unknown, never zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

DEFAULT_MAX_ATTEMPTS = 8
DEFAULT_CALL_TIMEOUT_MS = 300_000
DEFAULT_LEASE_MS = 60_000
NANO = 1_000_000_000


class JobState(StrEnum):
    """Where a job stands; `done`, `failed` and `cancelled` are final."""

    PENDING = "pending"
    INFLIGHT = "inflight"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL_STATES = frozenset({JobState.DONE, JobState.FAILED, JobState.CANCELLED})


class BatchState(StrEnum):
    """Whether a batch's jobs may be claimed."""

    OPEN = "open"
    PAUSED = "paused"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class NewBatch:
    """What `enqueue` asks for: the shared part of every request of a batch."""

    name: str
    worker: str
    endpoint: str = "default"
    model: str = ""
    settings: Mapping[str, Json] = field(default_factory=dict)
    priority: int = 0
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    call_timeout_ms: int = DEFAULT_CALL_TIMEOUT_MS
    budget: int | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts enqueued together under one name: a row of `batches`.

    `settings` is the shared part of the request: `system`, `params` (merged into the body)
    and `url` (the path of the API, `/v1/chat/completions` when absent).
    """

    id: int
    name: str
    worker: str
    endpoint: str
    model: str
    settings: Mapping[str, Json]
    priority: int
    max_attempts: int
    call_timeout_ms: int
    budget: int | None
    state: BatchState
    size: int
    created_at: int
    enqueue_until: int
    sealed_at: int | None


@dataclass(frozen=True, slots=True)
class NewJob:
    """One row to enqueue: `payload` is ASCII-escaped JSON, `key` the hash of its request."""

    position: int
    custom_id: str | None
    key: str
    payload: str


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that this runner holds under a lease, as the claim returned it.

    `payload` is still JSON text: it is decoded where the job runs, so that one bad row
    fails alone. `attempts` counts this claim. `epoch` is the lane's at the time of the claim;
    `probe` marks the one job that a halted lane lets through.
    """

    job_id: int
    token: int
    batch: Batch
    position: int
    custom_id: str | None
    payload: str
    attempts: int
    losses: int
    throttles: int
    lane: str = ""
    epoch: int = 0
    probe: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the provider counted them; cached are part of input, reasoning of output."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker may return when it knows more than the result itself.

    `cost` is in US dollars, `meta` is any JSON worth keeping beside the result (provider,
    generation id), `finish_reason` is the provider's word.
    """

    result: Json
    usage: Usage | None = None
    cost: Decimal | float | None = None
    meta: Mapping[str, Json] | None = None
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer as the store keeps it: `result` and `meta` are JSON text, `cost` nano-dollars."""

    result: str
    usage: Usage = Usage()
    cost: int | None = None
    cost_source: str | None = None
    meta: str | None = None
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an attempt did not succeed, in words for the person who reads `status`.

    `error_class` groups failures (`bad_request`, `timeout`, `worker_died`, …), `message` is
    the provider's own reason, shortened, `status` the HTTP status if there was one.
    """

    error_class: str
    message: str
    status: int | None = None


@dataclass(frozen=True, slots=True)
class Succeeded:
    """A complete answer: the job is done."""

    answer: Answered


@dataclass(frozen=True, slots=True)
class Failed:
    """The request itself can't succeed: the job fails, with the answer if one was paid for."""

    reason: Reason
    answer: Answered | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """The cause may pass: back off and try again, charging an attempt.

    `after` is in seconds; None means exponential back-off with full jitter.
    """

    reason: Reason
    after: float | None = None
    answer: Answered | None = None


@dataclass(frozen=True, slots=True)
class Throttled:
    """The provider asked for patience: the lane waits `after` seconds, the attempt is refunded."""

    reason: Reason
    after: float | None = None
    answer: Answered | None = None


@dataclass(frozen=True, slots=True)
class Halted:
    """Nothing in this lane can succeed until its cause is gone; the attempt is refunded."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class Released:
    """The attempt was given back unfinished, because its process is stopping; refunded."""


Outcome = Succeeded | Failed | Retry | Throttled | Halted | Released


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt that ended, on its way to the store. `duration_ms` is how long it ran."""

    claim: Claim
    outcome: Outcome
    duration_ms: int


@dataclass(frozen=True, slots=True)
class Serving:
    """A worker and endpoint that a runner can serve; `opened` once the worker's client is there."""

    worker: str
    endpoint: str
    base_url: str
    opened: bool


@dataclass(frozen=True, slots=True)
class RunnerIdentity:
    """Who claims: a fresh `id` per start, so that a re-used pid or name is never taken for its past."""

    id: str
    host: str
    pid: int
    concurrency: int
    serves: str
    lease_ms: int


@dataclass(frozen=True, slots=True)
class Wants:
    """What a runner asks of an exchange: up to `slots` jobs of what it serves.

    `batch_ids` narrows it to these batches.
    """

    slots: int
    serving: tuple[Serving, ...]
    batch_ids: frozenset[int] | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """A claim in hand; `renew` asks for its lease to be extended."""

    job_id: int
    token: int
    renew: bool


@dataclass(frozen=True, slots=True)
class Exchanged:
    """What an exchange brought.

    `now` is the database's clock at the exchange, `lost` the ids of held jobs that are no longer
    this runner's, `unopened` the workers to open before their jobs can be claimed, `wake_in_ms` the
    time until something becomes due (None: nothing is waiting), `late` how many outcomes were refused.
    """

    now: int
    claims: tuple[Claim, ...] = ()
    lost: frozenset[int] = frozenset()
    unopened: tuple[Serving, ...] = ()
    wake_in_ms: int | None = None
    late: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """A job as `collect` and `show` read it; `result` and `payload` are JSON text."""

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


@dataclass(frozen=True, slots=True)
class Attempt:
    """One row of the attempts log."""

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
    """What one rate limit covers: worker, base URL and model; None where there is no row."""

    worker: str
    base_url: str
    model: str
    paused_until: int | None
    halted_at: int | None
    probe_at: int | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class RunnerInfo:
    """A worker process as people see it; never used for correctness."""

    id: str
    host: str
    pid: int
    concurrency: int
    in_flight: int
    serves: str
    started_at: int
    seen_at: int
    live: bool


@dataclass(frozen=True, slots=True)
class Progress:
    """A batch at one moment: what there is to know while waiting for it.

    `finished` is asked of the index (sealed and no live row), never of the tallies.
    `runners` are the live ones that serve this batch's worker, `lanes` those of its worker and model.
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

    @property
    def enqueueing(self) -> bool:
        """Whether a live `enqueue` is still adding rows."""
        return self.batch.sealed_at is None and self.batch.enqueue_until > self.now


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """Failures of one class in a batch, with one example."""

    error_class: str
    count: int
    example_position: int
    example: str
