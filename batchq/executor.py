"""One attempt at one job: the worker's answer, or whatever went wrong, as an Outcome. Knows no database."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import cast

import anyio

from batchq import worker as steering
from batchq.concealing import conceal_json, without_keys, without_quotes
from batchq.jobs import (
    ESTIMATE,
    NANO,
    PROVIDER,
    Answer,
    Answered,
    Batch,
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
from batchq.log import log_raised
from batchq.plain import plain
from batchq.request import encode, merge_body, prompt_of, texts_in, url_of
from batchq.structured import DEFAULT_SCHEMA_TRIES, SchemaMismatch, hold_to
from batchq.worker import Handler, Request

MESSAGE_LIMIT = 1_000
_CLASS_LIMIT = 100
TRUNCATED = "truncated"
_LARGEST = 2**62
# What a worker may raise; all else is a mistake in it, or a fault that it does not know.
_EXPECTED = (steering.Steer, asyncio.CancelledError, TimeoutError)
# Of an error text: there may be megabytes of it, and all jobs would wait until it is searched for keys.
_READ_OF_ERROR = 20 * MESSAGE_LIMIT


async def execute(claim: Claim, handler: Handler, scope: anyio.CancelScope | None = None) -> Outcome:
    """Answer one job within its call timeout, whatever the worker does.

    Cancelling `scope` gives the job up (Released); only a cancellation of what surrounds it is raised. What the worker
    raises, also when it is cancelled at its deadline, may carry the answer that was paid for, as `answer`.
    """
    try:
        request = build_request(claim)
    except Exception as error:  # noqa: BLE001 - whatever somebody has made of the row, the others go on
        return Failed(Reason("bad_row", f"the stored prompt can't be read: {shorten(_text(error))}"))
    seconds = claim.batch.call_timeout_ms / 1000
    now = asyncio.get_running_loop().time  # anyio's clock, which anyio asks by way of several functions
    scope, task = scope or anyio.CancelScope(), _current_task()
    scope.deadline = deadline = now() + seconds
    failure: BaseException | None = None
    try:
        with scope:
            try:
                return _keep(claim.batch, await handler(request))
            except BaseException as error:
                failure = error  # the scope swallows its own cancellation
                raise
    except asyncio.CancelledError as error:
        _raise_if_surrounded()
        failure = error
    except GeneratorExit as error:
        if _current_task() is not task:
            raise  # this coroutine is being closed, and not by its worker
        failure = error
    except BaseException as error:  # noqa: BLE001 - a SystemExit in a worker ends its job, not the process
        failure = error
    if scope.cancel_called:
        # A worker may turn our cancellation into an exception of its own: it is ours all the same.
        timed_out = now() >= deadline
        if not timed_out:
            return Released()
        return Retry(Reason("timeout", f"no answer within {seconds:g} s"), answer=_paid_for(claim.batch, failure))
    if failure is not None and not isinstance(failure, _EXPECTED):
        log_raised(claim, failure)
    return _fit_for_all(_ended_by(claim.batch, failure), request)


def _fit_for_all(outcome: Outcome, request: Request) -> Outcome:
    """Return an outcome whose reason may be told of the whole lane, in logs too: it quotes no prompt and no answer.

    A job's own reason is kept as it is: it is shown beside the job alone.
    """
    if not isinstance(outcome, Throttled | Halted):
        return outcome
    sources = [*texts_in(request.prompt), *_texts_of_settings(request.settings)]
    if outcome.answer is not None:
        sources += texts_in(json.loads(outcome.answer.result))
    message = without_quotes(outcome.reason.message, sources)
    return replace(outcome, reason=replace(outcome.reason, message=message))


def _texts_of_settings(settings: Mapping[str, Json]) -> Iterator[str]:
    """Yield what a batch says to the model beside each prompt."""
    yield from texts_in(settings.get("system"))
    params = settings.get("params")
    for name in ("messages", "instructions", "system"):
        yield from texts_in(params.get(name) if isinstance(params, dict) else None)


def _current_task() -> asyncio.Task[object] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop runs any more
        return None


def _raise_if_surrounded() -> None:
    """Re-raise a cancellation that came from outside; take back one that a worker aimed at its own task."""
    if anyio.current_effective_deadline() == -math.inf:
        raise  # noqa: PLE0704 - called while the cancellation is being handled
    task = asyncio.current_task()
    while task is not None and task.uncancel() > 0:
        pass


def build_request(claim: Claim) -> Request:
    """Decode the job and merge it with its batch. Raises ValueError for a row that can't be read."""
    batch = claim.batch
    if batch.fault is not None:
        raise ValueError(f"in the row of its batch {batch.fault}")
    payload: Json = json.loads(claim.payload)
    return Request(
        prompt=prompt_of(payload),
        body=merge_body(batch.model, batch.settings, payload),
        url=url_of(batch.settings),
        model=batch.model,
        settings=batch.settings,
        batch=batch.name,
        position=claim.position,
        custom_id=claim.custom_id,
        attempt=claim.attempts,
    )


def shorten(text: str) -> str:
    """Return an error text fit to be kept: without keys, at most 1,000 characters."""
    text = without_keys(storable(text[:_READ_OF_ERROR].strip()))
    return text if len(text) <= MESSAGE_LIMIT else text[: MESSAGE_LIMIT - 1] + "…"


def storable(text: str) -> str:
    """Return text that any database can hold: lone surrogates and NUL become question marks."""
    return text.encode("utf-8", "replace").decode().replace("\0", "?")


def _keep(batch: Batch, value: Json | Answer) -> Outcome:
    """Turn what a worker returned into an outcome, held to the batch's schema if it has one."""
    answer = value if isinstance(value, Answer) else Answer(value)
    try:
        if not isinstance(answer.result, str):
            answer = replace(answer, result=plain(answer.result))
        kept = _answered(batch, answer)
    except (TypeError, ValueError, RecursionError) as error:
        reason = Reason("bad_result", f"the worker returned what JSON can't hold: {shorten(_text(error))}")
        return Failed(reason, _answered(batch, replace(answer, result=None)))
    schema = batch.settings.get("schema")
    if not isinstance(schema, dict):
        return Succeeded(kept)
    try:
        return Succeeded(replace(kept, result=conceal_json(encode(hold_to(encode(schema), answer.result)))))
    except (SchemaMismatch, TypeError, ValueError, RecursionError) as error:
        reason = Reason("schema_mismatch", shorten(_text(error)))
        return Retry(reason, answer=kept, at_most=_schema_tries(batch))


def _schema_tries(batch: Batch) -> int:
    tries = batch.settings.get("schema_tries")
    return tries if isinstance(tries, int) else DEFAULT_SCHEMA_TRIES


def _answered(batch: Batch, answer: Answer) -> Answered:
    """Keep a paid answer; usage, cost and meta that make no sense are unknown. Raises for a result that is no JSON."""
    cost = _nano(answer.cost)
    source = ESTIMATE if answer.estimated else PROVIDER
    return Answered(
        result=conceal_json(encode(answer.result)),
        usage=_usage(answer.usage),
        cost=cost,
        cost_source=None if cost is None else source,
        meta=_meta(answer.meta),
        finish_reason=None if answer.finish_reason is None else shorten(str(answer.finish_reason)),
        response=_json(answer.response) if batch.keep_response and answer.response is not None else None,
    )


def _usage(usage: object) -> Usage:
    return Usage(
        _count(getattr(usage, "input_tokens", None)),
        _count(getattr(usage, "output_tokens", None)),
        _count(getattr(usage, "cached_tokens", None)),
        _count(getattr(usage, "reasoning_tokens", None)),
    )


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST else None


def _nano(cost: object) -> int | None:
    if isinstance(cost, bool) or not isinstance(cost, int | float | Decimal):
        return None
    try:
        nano = round(Decimal(str(cost)) * NANO)
    except (ArithmeticError, ValueError):
        return None
    return nano if 0 <= nano <= _LARGEST else None


def _meta(meta: object) -> str | None:
    return _json(dict(meta)) if isinstance(meta, Mapping) else None


def _json(value: Json) -> str | None:
    try:
        return conceal_json(encode(value))
    except (TypeError, ValueError, RecursionError):
        return None


def _ended_by(batch: Batch, failure: BaseException | None) -> Outcome:
    """Turn what a worker raised into an outcome; what it put into the exception is not to be trusted."""
    if isinstance(failure, steering.Steer):
        return _steered(batch, failure)
    if isinstance(failure, asyncio.CancelledError) or failure is None:
        return Retry(Reason("cancelled_itself", "the worker cancelled its own call"), answer=_paid_for(batch, failure))
    text = shorten(_text(failure))
    if isinstance(failure, TimeoutError):
        return Retry(Reason("timeout", text or "the call timed out"), answer=_paid_for(batch, failure))
    name = _class_name(type(failure).__name__)
    return Retry(Reason(name, f"{name}: {text}" if text else name), answer=_paid_for(batch, failure))


def _steered(batch: Batch, decision: steering.Steer) -> Outcome:
    answer = _paid_for(batch, decision)
    status = decision.status if isinstance(decision.status, int) and 0 <= decision.status < 1000 else None
    error_class = _class_name(decision.error_class) if decision.error_class else decision.default_class
    reason = Reason(error_class, shorten(_text(decision)) or type(decision).__name__, status)
    match decision:
        case steering.Reject() if error_class == TRUNCATED and answer is not None and batch.allow_truncated:
            outcome = _keep(batch, cast("Answer", decision.answer))
            # What was cut off and fits no schema is paid for once.
            return outcome if isinstance(outcome, Succeeded) else Failed(reason, answer)
        case steering.Reject():
            return Failed(reason, answer)
        case steering.Throttled(after=after):
            return Throttled(reason, _seconds(after), answer)
        case steering.Halt():
            return Halted(reason, answer)
        case steering.RetryLater(after=after, at_most=at_most):
            return Retry(reason, _seconds(after), answer, at_most if isinstance(at_most, int) else None)
        case _:
            return Retry(reason, None, answer)


def _class_name(name: object) -> str:
    """Return a class of errors as databases can index it."""
    return shorten(str(name))[:_CLASS_LIMIT]


def _paid_for(batch: Batch, failure: BaseException | None) -> Answered | None:
    answer = getattr(failure, "answer", None)
    if not isinstance(answer, Answer):
        return None
    try:
        return _answered(batch, answer)
    except (TypeError, ValueError, RecursionError):
        return None


def _seconds(after: object) -> float | None:
    """Read a time to wait that may be a header's text; None where it is no time."""
    try:
        seconds = float(after)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:  # noqa: BLE001 - a broken __str__ must not take the other jobs down
        return ""
