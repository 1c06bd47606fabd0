"""What a Pydantic AI run has used up, over all its calls to the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.usage import RequestUsage, RunUsage

from batchq.worker import Answer, Json, Usage
from batchq_workers.json_values import Object


def summed(result: Json, answers: Sequence[Answer]) -> Answer:
    """Return `result` with what several calls used up: unknown as soon as one of them is unknown.

    Where it came from and how it ended is told by the last.
    """
    if not answers:
        return Answer(result)
    costs = [answer.cost for answer in answers]
    known = [Decimal(str(cost)) for cost in costs if cost is not None]
    return replace(
        answers[-1],
        result=result,
        usage=_sum_of([answer.usage or Usage() for answer in answers]),
        cost=sum(known, Decimal()) if len(known) == len(costs) else None,
        estimated=any(answer.estimated for answer in answers),
    )


def account_of_run(result: Json, messages: Sequence[ModelMessage], usage: RunUsage) -> Answer:
    """Return `result` with what a run has used up, from its messages and its own sum.

    The provider's own cost is taken where every call came with one, else Pydantic AI's estimate. Agents that were
    called by this one's tools are in the sum alone.
    """
    responses = _responses(messages)
    answer = summed(result, [_answer_of(response) for response in responses])
    if usage.requests > len(responses):
        answer = replace(answer, cost=usage.cost, estimated=True)
    return replace(answer, usage=_usage_of(usage))


def account_of_failed_run(messages: Sequence[ModelMessage], usage: RunUsage) -> Answer | None:
    """Return what a run that came to nothing has used up, beside the last text that came; None if that is nothing."""
    responses = _responses(messages)
    if not responses and not usage.has_values():
        return None
    return account_of_run(responses[-1].text if responses else None, messages, usage)


def leave_account(ended: BaseException, account: Answer | None) -> None:
    """Put what a run has used up on what ends it, such as the cancellation at its timeout: the queue looks there."""
    ended.answer = account  # type: ignore[attr-defined]


def _responses(messages: Sequence[ModelMessage]) -> list[ModelResponse]:
    """Return what the model said in this run, without the history that it was given."""
    return [message for message in messages if isinstance(message, ModelResponse) and message.run_id is not None]


def _answer_of(response: ModelResponse) -> Answer:
    told = _told_cost(response)
    return Answer(
        None,
        usage=_usage_of(response.usage),
        cost=response.usage.cost if told is None else told,
        meta=_origin(response),
        finish_reason=response.finish_reason,
        estimated=told is None,
    )


def _told_cost(response: ModelResponse) -> Decimal | None:
    """Return what the provider said the call has cost: OpenRouter does, and Pydantic AI leaves out its zeros."""
    details = response.provider_details or {}
    cost = details.get("cost")
    if isinstance(cost, int | float) and not isinstance(cost, bool):
        return Decimal(str(cost))
    return Decimal() if cost is None and "is_byok" in details else None


def _usage_of(usage: RequestUsage | RunUsage) -> Usage:
    if not usage.has_values():
        return Usage()
    return Usage(usage.input_tokens, usage.output_tokens, usage.cache_read_tokens, usage.output_reasoning_tokens)


def _sum_of(usages: Sequence[Usage]) -> Usage:
    def total(name: str) -> int | None:
        counts = [count for usage in usages if (count := getattr(usage, name)) is not None]
        return sum(counts) if counts else None

    return Usage(*map(total, ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens")))


def _origin(response: ModelResponse) -> Object:
    details = response.provider_details or {}
    origin = {
        "id": response.provider_response_id,
        "provider": details.get("downstream_provider") or response.provider_name,
        "model": response.model_name,
    }
    return {name: value for name, value in origin.items() if isinstance(value, str)}
