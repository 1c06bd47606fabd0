"""What a provider's answer must have looked like, where only what it said was kept."""

from __future__ import annotations

from batchq.formats.rendering.openai_parts import Object, Origin, chat_usage, said_as_text, tool_calls
from batchq.formats.rendering.openai_response import response_body
from batchq.jobs import Batch, Json, Result, Usage
from batchq.request import COMPLETIONS, EMBEDDINGS, RESPONSES

_CHAT_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})
_COMPLETION_REASONS = frozenset({"stop", "length", "content_filter"})


def answer_body(result: Result, batch: Batch, stand_in: str) -> Object:
    """Return a body that says what a job's result says, in the shape of the API that its batch calls."""
    said = result.value
    origin = Origin.of(result, batch, stand_in)
    url = batch.settings.get("url")
    if url == EMBEDDINGS:
        return _embeddings(said, result.usage, origin)
    if url == RESPONSES:
        return response_body(said, result.usage, origin)
    choices = _choices(said, batch)
    if url == COMPLETIONS:
        return _completion(choices, result, origin)
    return _chat(choices, result, origin)


def _choices(said: Json, batch: Batch) -> list[Json]:
    """Return each answer of a request that asked for several."""
    params = batch.settings.get("params")
    asked = params.get("n") if isinstance(params, dict) else None
    if isinstance(said, list) and isinstance(asked, int) and asked > 1 and len(said) == asked:
        return said
    return [said]


def _chat(choices: list[Json], result: Result, origin: Origin) -> Object:
    listed: list[Json] = []
    for index, said in enumerate(choices):
        message = _message(said)
        usual = "tool_calls" if "tool_calls" in message else "stop"
        reason = result.finish_reason if result.finish_reason in _CHAT_REASONS else usual
        listed.append({"index": index, "message": message, "logprobs": None, "finish_reason": reason})
    return {
        "id": origin.id_for("chatcmpl-"),
        "object": "chat.completion",
        "created": origin.created,
        "model": origin.model,
        "choices": listed,
        **chat_usage(result.usage),
    }


def _message(said: Json) -> Object:
    calls: list[Json] = [*tool_calls(said)]
    if not calls or not isinstance(said, dict):
        return {"role": "assistant", "content": said_as_text(said), "refusal": None}
    content = said.get("content")
    text = None if content is None else said_as_text(content)
    return {"role": "assistant", "content": text, "refusal": None, "tool_calls": calls}


def _completion(choices: list[Json], result: Result, origin: Origin) -> Object:
    reason = result.finish_reason if result.finish_reason in _COMPLETION_REASONS else "stop"
    return {
        "id": origin.id_for("cmpl-"),
        "object": "text_completion",
        "created": origin.created,
        "model": origin.model,
        "choices": [
            {"index": index, "text": said_as_text(said), "logprobs": None, "finish_reason": reason}
            for index, said in enumerate(choices)
        ],
        **chat_usage(result.usage),
    }


def _embeddings(said: Json, usage: Usage, origin: Origin) -> Object:
    """Return the vectors; their usage must be there, and is 0 where it is unknown."""
    several = isinstance(said, list) and bool(said) and not isinstance(said[0], int | float)
    vectors = said if several and isinstance(said, list) else [said]
    tokens = usage.input_tokens or 0
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)],
        "model": origin.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
