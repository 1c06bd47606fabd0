"""The answers of the Responses API, whose output is a list of items."""

from __future__ import annotations

from collections.abc import Mapping

from batchq.worker import Answer, Json, Reject, RetryLater, Steer
from batchq_workers.accounting import account
from batchq_workers.answer_body import cut_off, empty_answer, is_blank, withheld
from batchq_workers.json_values import Object, list_of, object_of, text_of

_UNFINISHED = frozenset({"queued", "in_progress"})
_BROKEN_OFF = frozenset({"failed", "cancelled"})


def read_response(content: Object, headers: Mapping[str, str]) -> Answer | Steer:
    """Return the text of a response, with its function calls in the shape of the chat API if there are any."""
    state = text_of(content.get("status")).strip()
    items = [object_of(item) for item in list_of(content.get("output"))]
    text, refusal = _said(items, "output_text", "text"), _said(items, "refusal", "refusal")
    calls: list[Json] = [_chat_call(item) for item in items if item.get("type") == "function_call"]
    result: Json = text or refusal
    if calls:
        result = {"content": result or None, "tool_calls": calls}
    why = text_of(object_of(content.get("incomplete_details")).get("reason"))
    answer = account(result, why or state or None, content, headers, content)
    if state in _UNFINISHED:
        reason = "the request asks for an answer in the background, which nobody waits for"
        return Reject(reason, error_class="bad_request", status=200, answer=answer)
    if state in _BROKEN_OFF:
        return RetryLater(f"the response was {state}", error_class="broken_answer", status=200, answer=answer)
    if refusal or why == "content_filter":
        return withheld(answer, refusal)
    if state == "incomplete":
        return cut_off(answer)
    return empty_answer(answer) if is_blank(result) else answer


def _said(items: list[Object], kind: str, name: str) -> str:
    """Join the parts of one kind of the messages; reasoning is no part of the answer."""
    messages = [item for item in items if item.get("type", "message") == "message"]
    parts = [object_of(part) for message in messages for part in list_of(message.get("content"))]
    return "".join(text_of(part.get(name)) for part in parts if part.get("type") == kind)


def _chat_call(item: Object) -> Object:
    call: Object = {"name": item.get("name"), "arguments": item.get("arguments")}
    return {"id": item.get("call_id"), "type": "function", "function": call}
