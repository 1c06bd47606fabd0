"""What an answer says of itself besides its text: tokens, cost and where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from batchq.worker import Answer, Json, Usage
from batchq_workers.json_values import Object, count_of, lower_names, object_of

_MOST_DOLLARS = 1e6


def account(
    result: Json, finish_reason: str | None, content: Object, headers: Mapping[str, str], response: Json
) -> Answer:
    """Return `result` as an answer with what `content` says of its usage, cost and origin.

    `usage` is counted as in the chat API (`prompt_tokens`) or as in the Responses API (`input_tokens`). What
    is missing or makes no sense is unknown. `response` is the whole decoded body.
    """
    usage = object_of(content.get("usage"))
    return Answer(
        result,
        _usage(usage),
        _cost(usage),
        _origin(content, headers),
        finish_reason,
        response=response,
    )


def account_for_failure(content: Object, headers: Mapping[str, str]) -> Answer | None:
    """Return what a failed call has used up, as an answer without a result; None if the body does not say."""
    if not isinstance(content.get("usage"), dict):
        return None
    return account(None, None, content, headers, content)


def _usage(usage: Object) -> Usage:
    inputs = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    outputs = usage.get("completion_tokens_details") or usage.get("output_tokens_details")
    return Usage(
        count_of(usage.get("prompt_tokens", usage.get("input_tokens"))),
        count_of(usage.get("completion_tokens", usage.get("output_tokens"))),
        count_of(inputs.get("cached_tokens")) if isinstance(inputs, dict) else None,
        count_of(outputs.get("reasoning_tokens")) if isinstance(outputs, dict) else None,
    )


def _cost(usage: Object) -> Decimal | None:
    """Return OpenRouter's price of the call in US dollars: 0 is known to be free, None is not known."""
    cost = usage.get("cost")
    if isinstance(cost, bool) or not isinstance(cost, int | float) or not 0 <= cost < _MOST_DOLLARS:
        return None
    return Decimal(str(cost))


def _origin(content: Object, headers: Mapping[str, str]) -> dict[str, Json]:
    origin: dict[str, Json] = {}
    for name in ("id", "provider", "model"):
        value = content.get(name)
        if isinstance(value, str):
            origin[name] = value
    if not origin.get("id"):
        generation = lower_names(headers).get("x-generation-id")
        if generation:
            origin["id"] = generation
    return origin
