"""What is enqueued: batches and their jobs, and the states that they can be in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

DEFAULT_MAX_ATTEMPTS = 8
DEFAULT_CALL_TIMEOUT_MS = 300_000

# How many answers may tell no cost, in a batch with a budget, before claiming stops.
UNKNOWN_COST_ANSWERS = 3


class JobState(StrEnum):
    """Where a job stands; `done`, `failed` and `cancelled` are final."""

    PENDING = "pending"
    INFLIGHT = "inflight"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class BatchState(StrEnum):
    """Whether a batch's jobs may be claimed. One that is `purging` is on its way out, and never a whole again."""

    OPEN = "open"
    PAUSED = "paused"
    CANCELLED = "cancelled"
    PURGING = "purging"


@dataclass(frozen=True, slots=True)
class NewBatch:
    """What `enqueue` asks for: the shared part of every request of a batch.

    `source` names the input that the rows come from. `budget` is in nano-dollars; a batch that has spent
    it is not claimed from, nor one whose provider tells no cost, unless `allow_unknown_cost`.
    `allow_truncated` takes an answer that was cut off at its token limit, `keep_response` stores the
    provider's whole answer. One that is `synchronised` holds just what an input holds: `run` and
    `prompt_map` made it, and start its next generation where the input has changed.
    """

    name: str
    worker: str
    endpoint: str = "default"
    model: str = ""
    settings: Mapping[str, Json] = field(default_factory=dict)
    priority: int = 0
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    call_timeout_ms: int = DEFAULT_CALL_TIMEOUT_MS
    budget: int | None = None
    source: str | None = None
    allow_unknown_cost: bool = False
    allow_truncated: bool = False
    keep_response: bool = False
    synchronised: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts enqueued together under one name: a row of `batches`.

    `settings` is the shared part of the request: `system`, `params` (merged into the body), `schema`
    (what answers must be, sent along as `response_format`) and `url` (the path of the API,
    `/v1/chat/completions` when absent). `fault` says what something else than batchq has made of the row: nothing
    of it can be asked then.
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
    source: str | None = None
    allow_unknown_cost: bool = False
    allow_truncated: bool = False
    keep_response: bool = False
    synchronised: bool = False
    fault: str | None = None

    def has_spent(self, cost: int | None, priced: int, unpriced: int) -> bool:
        """Whether `cost` nano-dollars, told by `priced` answers, use up the budget.

        The `unpriced` ones count like those, unless costs may be unknown: who tells some may not tell all.
        """
        if self.budget is None or not priced:
            return False
        answers = priced if self.allow_unknown_cost else priced + unpriced
        return (cost or 0) * answers >= self.budget * priced

    def lacks_costs(self, cost: int | None, unpriced: int) -> bool:
        """Whether the budget can't be held, since `unpriced` answers told no cost and none told one."""
        unknown = cost is None and unpriced >= UNKNOWN_COST_ANSWERS
        return self.budget is not None and not self.allow_unknown_cost and unknown


@dataclass(frozen=True, slots=True)
class NewJob:
    """One row to enqueue: `payload` is ASCII-escaped JSON, `key` the hash of its request.

    `leader` names the row of the same batch that runs for this one, since their requests are the same: by
    its custom_id, or its position where rows have none.
    """

    position: int
    custom_id: str | None
    key: str
    payload: str
    leader: int | str | None = None


@dataclass(frozen=True, slots=True)
class Reuse:
    """Whose answers new jobs may take over: those of all batches, or of `batch_ids` only.

    `refusals` takes over failures too, where the request itself was refused.
    """

    batch_ids: frozenset[int] | None = None
    refusals: bool = False


@dataclass(frozen=True, slots=True)
class Added:
    """How many jobs were added; of these `reused` had an answer already, and `followers` follow others."""

    jobs: int = 0
    reused: int = 0
    followers: int = 0

    def __add__(self, other: Added) -> Added:
        """Return the sum."""
        return Added(self.jobs + other.jobs, self.reused + other.reused, self.followers + other.followers)
