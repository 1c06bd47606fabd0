"""How an attempt ends: the outcomes, and the answer or the reason that they carry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from batchq.jobs.batch import Json

NANO = 1_000_000_000

# Where a cost comes from: the provider's own word, or a price list.
PROVIDER, ESTIMATE = "provider", "estimate"


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

    `cost` is in US dollars, None where it is not known, and `estimated` where it was worked out from a
    price list. `meta` is any JSON worth keeping beside the result (provider, generation id),
    `finish_reason` is the provider's word, `response` its whole answer, which batches made with
    `--keep-response` store.
    """

    result: Json
    usage: Usage | None = None
    cost: Decimal | float | None = None
    meta: Mapping[str, Json] | None = None
    finish_reason: str | None = None
    estimated: bool = False
    response: Json = None


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer as the store keeps it: `result`, `meta` and `response` are JSON text, `cost` nano-dollars.

    `cost_source` is `provider` or `estimate`; None where the cost is unknown.
    """

    result: str
    usage: Usage = Usage()
    cost: int | None = None
    cost_source: str | None = None
    meta: str | None = None
    finish_reason: str | None = None
    response: str | None = None


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

    `after` is in seconds; None means exponential back-off with full jitter. `at_most` is how often in a
    row a job may end like this, with this class of error, before it fails; None: as often as attempts last.
    """

    reason: Reason
    after: float | None = None
    answer: Answered | None = None
    at_most: int | None = None


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
    answer: Answered | None = None


@dataclass(frozen=True, slots=True)
class Released:
    """The attempt was given back unfinished, because its process is stopping; refunded."""


Outcome = Succeeded | Failed | Retry | Throttled | Halted | Released
