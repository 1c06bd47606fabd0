"""One attempt at one job: the worker's answer, or whatever went wrong, as an Outcome. Knows no database."""

from __future__ import annotations

import asyncio
import json
import re
from decimal import Decimal, InvalidOperation

import anyio

from batchq import worker as steering
from batchq.jobs import (
    NANO,
    Answer,
    Answered,
    Claim,
    Failed,
    Halted,
    Json,
    Outcome,
    Reason,
    Released,
    Retry,
    Succeeded,
    Throttled,
    Usage,
)
from batchq.request import DEFAULT_URL, encode, merge_body, prompt_of
from batchq.worker import Handler, Request

MESSAGE_LIMIT = 1_000

# What looks like a key must not reach the database or a log through an error text.
_KEY = re.compile(r"\b(sk|pk|rk|gsk|key|hf)[-_][A-Za-z0-9_-]{8,}|(?i:bearer)\s+[A-Za-z0-9._~+/=-]{8,}")


async def execute(claim: Claim, handler: Handler, scope: anyio.CancelScope | None = None) -> Outcome:
    """Answer one job within its call timeout.

    Cancelling `scope` gives the job up (Released); any other cancellation from outside is raised.
    """
    try:
        request = build_request(claim)
    except (ValueError, TypeError, RecursionError) as error:
        return Failed(Reason("bad_row", f"the stored prompt can't be read: {shorten(str(error))}"))
    seconds = claim.batch.call_timeout_ms / 1000
    scope = scope or anyio.CancelScope()
    scope.deadline = deadline = anyio.current_time() + seconds
    try:
        with scope:
            return _keep(await handler(request))
        if anyio.current_time() < deadline:
            return Released()
        return Retry(Reason("timeout", f"no answer within {seconds:g} s"))
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        return Retry(Reason("cancelled_itself", "the worker cancelled its own call"))
    except steering.Steer as decision:
        return _steered(decision)
    except GeneratorExit:
        raise
    except BaseException as error:  # noqa: BLE001 - a SystemExit in a worker ends its job, not the process
        return _raised(error)


def build_request(claim: Claim) -> Request:
    """Decode the job and merge it with its batch. Raises ValueError for a row that can't be read."""
    payload: Json = json.loads(claim.payload)
    batch = claim.batch
    return Request(
        prompt=prompt_of(payload),
        body=merge_body(batch.model, batch.settings, payload),
        url=str(batch.settings.get("url") or DEFAULT_URL),
        model=batch.model,
        settings=batch.settings,
        batch=batch.name,
        position=claim.position,
        custom_id=claim.custom_id,
        attempt=claim.attempts,
    )


def shorten(text: str) -> str:
    """Return an error text fit to be kept: without keys, at most 1,000 characters."""
    text = _KEY.sub("[redacted]", storable(text.strip()))
    return text if len(text) <= MESSAGE_LIMIT else text[: MESSAGE_LIMIT - 1] + "…"


def storable(text: str) -> str:
    """Return text that any database can hold: lone surrogates and NUL become question marks."""
    return text.encode("utf-8", "replace").decode().replace("\0", "?")


def _keep(value: Json | Answer) -> Outcome:
    try:
        return Succeeded(_answered(value if isinstance(value, Answer) else Answer(value)))
    except (TypeError, ValueError, RecursionError, InvalidOperation) as error:
        return Failed(Reason("bad_result", f"the worker returned what JSON can't hold: {shorten(str(error))}"))


def _answered(answer: Answer) -> Answered:
    cost = None if answer.cost is None else round(Decimal(str(answer.cost)) * NANO)
    return Answered(
        result=encode(answer.result),
        usage=answer.usage or Usage(),
        cost=cost,
        cost_source=None if cost is None else "provider",
        meta=None if answer.meta is None else encode(dict(answer.meta)),
        finish_reason=None if answer.finish_reason is None else storable(answer.finish_reason),
    )


def _steered(decision: steering.Steer) -> Outcome:
    try:
        answer = None if decision.answer is None else _answered(decision.answer)
    except (TypeError, ValueError, RecursionError, InvalidOperation):
        answer = None
    default = {"RetryLater": "retry_later", "Reject": "rejected", "Throttled": "throttled", "Halt": "halted"}
    reason = Reason(
        storable(decision.error_class or "") or default.get(type(decision).__name__, "worker"),
        shorten(decision.message) or type(decision).__name__,
        decision.status,
    )
    match decision:
        case steering.Reject():
            return Failed(reason, answer)
        case steering.Throttled(after=after):
            return Throttled(reason, after, answer)
        case steering.Halt():
            return Halted(reason)
        case steering.RetryLater(after=after):
            return Retry(reason, after, answer)
        case _:
            return Retry(reason, None, answer)


def _raised(error: BaseException) -> Outcome:
    name = type(error).__name__
    if isinstance(error, TimeoutError):
        return Retry(Reason("timeout", shorten(str(error)) or "the call timed out"))
    text = shorten(str(error))
    return Retry(Reason(name, f"{name}: {text}" if text else name))
