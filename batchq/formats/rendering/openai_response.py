"""The body of OpenAI's Responses API."""

from __future__ import annotations

from batchq.formats.rendering.openai_parts import Object, Origin, said_as_text, tool_calls
from batchq.jobs import Json, Usage


def response_body(said: Json, usage: Usage, origin: Origin) -> Object:
    """Return a response with what was said as its output."""
    return {
        "id": origin.id_for("resp_"),
        "object": "response",
        "created_at": origin.created,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": origin.model,
        "output": _output(said, origin),
        "parallel_tool_calls": True,
        "temperature": None,
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "usage": _usage(usage),
    }


def _output(said: Json, origin: Origin) -> list[Json]:
    calls = tool_calls(said)
    text = said.get("content") if calls and isinstance(said, dict) else said_as_text(said)
    output: list[Json] = []
    if text is not None:
        part: Object = {"type": "output_text", "text": said_as_text(text), "annotations": []}
        message: Object = {"id": f"msg_{origin.stand_in}", "type": "message", "role": "assistant"}
        output.append({**message, "status": "completed", "content": [part]})
    output += [_call(call, f"fc_{origin.stand_in}_{number}") for number, call in enumerate(calls)]
    return output


def _call(call: Object, name: str) -> Object:
    function = call["function"]
    told = function if isinstance(function, dict) else {}
    return {
        "id": name,
        "type": "function_call",
        "call_id": call["id"],
        "name": told.get("name"),
        "arguments": told.get("arguments"),
        "status": "completed",
    }


def _usage(usage: Usage) -> Json:
    if usage.input_tokens is None or usage.output_tokens is None:
        return None
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens or 0, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }
