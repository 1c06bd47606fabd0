"""What the bodies of OpenAI's APIs share: who answered, what was said, the tokens."""

from __future__ import annotations

import json
from typing import NamedTuple, Self

from batchq.formats.rendering.values import encode
from batchq.jobs import Batch, Json, Result, Usage

Object = dict[str, Json]


class Origin(NamedTuple):
    """What an answer tells of itself: its own id where that is known, when it came, and which model gave it."""

    id: str | None
    stand_in: str
    created: int
    model: str

    @classmethod
    def of(cls, result: Result, batch: Batch, stand_in: str) -> Self:
        """Return what is known of an answer; `stand_in` makes an id where it has none."""
        meta: Json = json.loads(result.meta) if result.meta else {}
        told = meta if isinstance(meta, dict) else {}
        name, model = told.get("id"), told.get("model")
        return cls(
            name if isinstance(name, str) and name else None,
            stand_in,
            (batch.created_at if result.finished_at is None else result.finished_at) // 1000,
            model if isinstance(model, str) and model else batch.model,
        )

    def id_for(self, prefix: str) -> str:
        """Return the answer's id, which has this prefix if it is made up."""
        return self.id or f"{prefix}{self.stand_in}"


def said_as_text(said: Json) -> str:
    """Return what a model said as the text that it was: JSON where a schema made it a value."""
    return said if isinstance(said, str) else encode(said)


def tool_calls(said: Json) -> list[Object]:
    """Return the calls of tools, in the shape of the chat API, that an answer holds instead of a text or beside it."""
    calls = said.get("tool_calls") if isinstance(said, dict) and said.keys() <= {"content", "tool_calls"} else None
    found = [call for call in calls if isinstance(call, dict) and _is_call(call)] if isinstance(calls, list) else []
    return found if isinstance(calls, list) and len(found) == len(calls) else []


def _is_call(call: Object) -> bool:
    function = call.get("function")
    if call.get("type") != "function" or not isinstance(function, dict):
        return False
    return all(isinstance(text, str) for text in (call.get("id"), function.get("name"), function.get("arguments")))


def chat_usage(usage: Usage) -> Object:
    """Return `usage` as the chat API counts; nothing where a number that it must have is unknown."""
    if usage.input_tokens is None or usage.output_tokens is None:
        return {}
    counted: Object = {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }
    if usage.cached_tokens is not None:
        counted["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
    if usage.reasoning_tokens is not None:
        counted["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return {"usage": counted}
