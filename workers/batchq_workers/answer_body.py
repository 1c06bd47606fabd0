"""The answers of the chat, completions and embeddings APIs, whole or spoiled."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import NamedTuple

from batchq.worker import Answer, Json, Reject, RetryLater, Steer
from batchq_workers.accounting import account
from batchq_workers.error_decision import decide_inner_error
from batchq_workers.json_values import Object, count_of, list_of, object_of, text_of

# How often in a row a job is asked whose answer is finished, but empty: it may well stay so.
EMPTY_AT_MOST = 3

# What vLLM and DeepSeek say instead of OpenRouter's `error`, and Mistral and others instead of `length`.
_BROKEN_OFF = frozenset({"error", "abort", "insufficient_system_resource"})
_CUT_OFF = frozenset({"length", "max_tokens", "model_length"})
_SPOILED = _BROKEN_OFF | _CUT_OFF | {"content_filter"}

# What a message may hold besides its content, and then also in place of it.
_BESIDE_CONTENT = ("tool_calls", "function_call", "images", "audio")


class _Choice(NamedTuple):
    result: Json
    finish: str
    refusal: str
    error: Json


def read_choices(content: Object, headers: Mapping[str, str], body: bytes) -> Answer | Steer:
    """Return the answer of the chat or the completions API: of several choices, the list of their contents.

    The first choice that is spoiled decides. `content` is the decoded `body`.
    """
    response, content = content, _unwrap(content)
    listed = content.get("choices")
    if not isinstance(listed, list) or not listed:
        if content.get("object") == "error":  # old vLLM has no `error` around its errors
            return decide_inner_error(headers, content, body, None)
        return RetryLater("an answer without choices", error_class="broken_answer", status=200)
    choices = [_read_choice(choice) for choice in in_order(listed)]
    spoiled = next(filter(_is_spoiled, choices), None)
    contents = [choice.result for choice in choices]
    result = contents[0] if len(contents) == 1 else contents
    answer = account(result, (spoiled or choices[0]).finish or None, content, headers, response)
    if spoiled is not None:
        return _decide_spoiled(spoiled, answer, headers, body)
    if all(map(is_blank, contents)):
        return empty_answer(answer)
    return answer


def read_embeddings(content: Object, headers: Mapping[str, str]) -> Answer | Steer:
    """Return the vector of an embeddings answer, or the list of vectors if several inputs were given."""
    data = in_order(list_of(content.get("data")))
    vectors = [item.get("embedding") for item in data]
    if not vectors or not all(vector and isinstance(vector, list | str) for vector in vectors):
        return RetryLater("an answer without embeddings", error_class="broken_answer", status=200)
    return account(vectors[0] if len(vectors) == 1 else vectors, None, content, headers, content)


def empty_answer(answer: Answer) -> RetryLater:
    """Return the decision on an answer with nothing in it: if it was finished, it may well stay empty."""
    if answer.finish_reason:
        return RetryLater(
            "an empty answer", at_most=EMPTY_AT_MOST, error_class="empty_answer", status=200, answer=answer
        )
    return RetryLater("an empty answer, not finished", error_class="broken_answer", status=200, answer=answer)


def broken_off(answer: Answer) -> RetryLater:
    """Return the decision on an answer that the provider itself did not get to the end of."""
    reason = "the provider broke off its answer"
    return RetryLater(reason, error_class="broken_answer", status=200, answer=answer)


def cut_off(answer: Answer) -> Reject:
    """Return the decision on an answer that reached the token limit."""
    return Reject("cut off at the token limit", error_class="truncated", status=200, answer=answer)


def withheld(answer: Answer, refusal: str) -> Reject:
    """Return the decision on an answer that the model refused or a filter held back."""
    reason = refusal or "the answer was withheld by the content filter"
    return Reject(reason, error_class="content_filter", status=200, answer=answer)


def is_blank(result: Json) -> bool:
    """Whether an answer holds nothing: null, white space, or parts of text that do."""
    if isinstance(result, str):
        return not result or result.isspace()
    if isinstance(result, list):
        parts = [object_of(part) for part in result]
        return all(part.get("type", "text") == "text" and not text_of(part.get("text")).strip() for part in parts)
    return result is None or result == {}


def in_order(items: list[Json]) -> list[Object]:
    """Return choices or vectors by their `index`, which need not be how they are listed; else as they are."""
    objects = [object_of(item) for item in items]
    if len(objects) == 1:
        return objects
    places = [count_of(item.get("index")) for item in objects]
    known = [place for place in places if place is not None]
    if len(known) < len(places):
        return objects
    return [item for _, item in sorted(zip(known, objects, strict=True), key=itemgetter(0))]


def _unwrap(content: Object) -> Object:
    """Return the completion that OpenRouter has at times put into `provider` (pydantic-ai #3994)."""
    provider = content.get("provider")
    if isinstance(provider, dict) and not content.get("choices") and isinstance(provider.get("choices"), list):
        return {**content, **provider}
    return content


def _read_choice(choice: Object) -> _Choice:
    message = choice.get("message")
    finish, error = text_of(choice.get("finish_reason")).strip(), choice.get("error")
    if not isinstance(message, dict):
        return _Choice(choice.get("text"), finish, "", error)
    result, refusal = message.get("content"), text_of(message.get("refusal"))
    if refusal and is_blank(result):
        result = refusal
    beside = {name: message[name] for name in _BESIDE_CONTENT if message.get(name)}
    return _Choice({"content": result, **beside} if beside else result, finish, refusal, error)


def _is_spoiled(choice: _Choice) -> bool:
    return choice.finish in _SPOILED or bool(choice.refusal or choice.error)


def _decide_spoiled(choice: _Choice, answer: Answer, headers: Mapping[str, str], body: bytes) -> Steer:
    if choice.error:
        return decide_inner_error(headers, choice.error, body, answer)
    if choice.finish in _BROKEN_OFF:
        return broken_off(answer)
    if choice.finish in _CUT_OFF:
        return cut_off(answer)
    return withheld(answer, choice.refusal)
