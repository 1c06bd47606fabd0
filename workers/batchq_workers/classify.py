"""From (status, headers, body) to an answer or a decision: pure, table-driven, never raises.

The order is that of how much each place can be trusted: the status; in an error body `availability`,
then the limit that was hit, then OpenAI's billing codes, then the status table. An HTTP 200 is not a
success until its body says so. Sources: openrouter.ai/docs/api-reference/errors,
platform.openai.com/docs/guides/error-codes.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import cast

from batchq.worker import Answer, Halt, Json, Reject, RetryLater, Steer, Throttled, Usage

__all__ = ["Steer", "classify"]

Object = dict[str, Json]
Verdict = Answer | Steer

CLASSES = {
    400: "bad_request",
    401: "bad_key",
    402: "no_credit",
    403: "forbidden",
    404: "not_found",
    408: "timeout",
    413: "too_large",
    422: "bad_request",
    429: "rate_limited",
    503: "overloaded",
    504: "timeout",
    524: "timeout",
    529: "overloaded",
}
_THROTTLES = {429, 503, 529}
_HALTS = {401, 402, 404}
_RETRIES = {408, 409, 425}
_BILLING = {
    "insufficient_quota",
    "credit_balance_exhausted",
    "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded",
    "organization_usage_limit_exceeded",
    "billing_hard_limit_reached",
}
_BUDGET_SOURCES = {
    "openrouter_credits",
    "openrouter_key_limit",
    "openrouter_guardrail_budget",
    "openrouter_workspace_budget",
}
_REQUEST_CODES = {"wrong_endpoint"}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def classify(status: int, headers: Mapping[str, str], body: bytes, url: str = "") -> Verdict:
    """Return the answer, or the decision to raise, for any response."""
    content = _parse(body)
    if status >= 400:
        return _classify_error(status, headers, content, body)
    if isinstance(content, dict) and isinstance(content.get("error"), dict):
        return _inner_error(cast("Object", content["error"]), headers, content)
    if not isinstance(content, dict):
        what = "nothing" if not body.strip() else "something that is not a JSON object"
        return RetryLater(f"HTTP {status} with {what}", error_class="broken_answer", status=status)
    if url.endswith("/embeddings"):
        return _embeddings(content, status)
    if url.endswith("/responses"):
        return _responses(content, status)
    return _choice(content, status, headers)


def _parse(body: bytes) -> Json:
    try:
        return cast("Json", json.loads(body))
    except (ValueError, RecursionError):
        return None


@dataclass(frozen=True, slots=True)
class _Error:
    """What an error body says, each part optional and of the right type."""

    message: str
    type: str
    code: str
    availability: Object
    metadata: Object


def _read_error(content: Json, body: bytes, status: int) -> _Error:
    outer = content if isinstance(content, dict) else {}
    inner = outer.get("error")
    error = inner if isinstance(inner, dict) else outer
    metadata = _object(error.get("metadata"))
    message = _raw_reason(metadata.get("raw")) or _text(error.get("message"))
    if not message and isinstance(inner, str):
        message = inner
    if not message:
        message = body[:300].decode("utf-8", "replace").strip() if content is None else ""
    return _Error(
        message or f"HTTP {status} without a reason",
        _text(error.get("type")),
        _text(error.get("code")),
        _object(error.get("availability")),
        metadata,
    )


def _classify_error(status: int, headers: Mapping[str, str], content: Json, body: bytes) -> Steer:
    error = _read_error(content, body, status)
    after = _retry_after(headers, error)
    kind = CLASSES.get(status, "server_error" if status >= 500 else "refused")
    retryable = error.availability.get("retryable")
    source = _text(error.metadata.get("limit_source"))
    reason = _text(error.metadata.get("reason"))
    if retryable is True:
        return Throttled(error.message, after=after, error_class=kind, status=status)
    if retryable is False:
        decide = Reject if _text(error.availability.get("code")) in _REQUEST_CODES else Halt
        return decide(error.message, error_class=_text(error.availability.get("code")) or kind, status=status)
    if source == "openrouter_in_flight_budget" or reason == "in_flight_budget_exhausted":
        if reason == "weight_exceeds_budget":
            return Reject(error.message, error_class="too_expensive", status=status)
        return Throttled(error.message, after=after, error_class="in_flight_budget", status=status)
    if source in _BUDGET_SOURCES:
        return Halt(error.message, error_class="no_credit", status=status)
    if error.type in _BILLING or error.code in _BILLING:
        return Halt(error.message, error_class="no_credit", status=status)
    if status == 403:
        return _forbidden(error)
    return _by_status(status, error.message, after, kind)


def _forbidden(error: _Error) -> Steer:
    """Moderation and guardrails judge one prompt; every other 403 would meet them all."""
    if any(name in error.metadata for name in ("reasons", "flagged_input", "patterns")):
        return Reject(error.message, error_class="moderation", status=403)
    return Halt(error.message, error_class="forbidden", status=403)


def _by_status(status: int, message: str, after: float | None, kind: str) -> Steer:
    if status in _THROTTLES:
        return Throttled(message, after=after, error_class=kind, status=status)
    if status in _HALTS:
        return Halt(message, error_class=kind, status=status)
    if status in _RETRIES or status >= 500:
        return RetryLater(message, after=after, error_class=kind, status=status)
    return Reject(message, error_class=kind, status=status)


def _inner_error(error: Object, headers: Mapping[str, str], content: Object) -> Steer:
    """Classify an error inside HTTP 200 by its own code, taken as the status."""
    code = error.get("code")
    if isinstance(code, str) and code.isdigit():
        code = int(code)
    if isinstance(code, int) and not isinstance(code, bool) and 400 <= code < 600:
        return _classify_error(code, headers, {**content, "error": error}, b"")
    message = _raw_reason(_object(error.get("metadata")).get("raw")) or _text(error.get("message"))
    return RetryLater(message or "an error inside HTTP 200", error_class="broken_answer", status=200)


def _choice(content: Object, status: int, headers: Mapping[str, str]) -> Verdict:
    choices = content.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(first, dict):
        return RetryLater("an answer without choices", error_class="broken_answer", status=status)
    finish = _text(first.get("finish_reason"))
    if isinstance(first.get("error"), dict):
        return _inner_error(cast("Object", first["error"]), headers, {})
    if finish == "error":
        return RetryLater("the provider broke off with an error", error_class="broken_answer", status=status)
    message = _object(first.get("message"))
    result: Json = message.get("content") if message else first.get("text")
    if message.get("tool_calls"):
        result = {"content": result, "tool_calls": message["tool_calls"]}
    answer = Answer(result, _usage(content), _cost(content), _meta(content), finish or None)
    if finish == "length":
        return Reject("cut off at the token limit", error_class="truncated", status=status, answer=answer)
    if finish == "content_filter" or _text(message.get("refusal")):
        reason = _text(message.get("refusal")) or "the answer was withheld by the content filter"
        return Reject(reason, error_class="content_filter", status=status, answer=answer)
    if result is None or result == "" or (isinstance(result, str) and not result.strip()):
        return RetryLater("an empty answer", error_class="empty_answer", status=status, answer=answer)
    return answer


def _embeddings(content: Object, status: int) -> Verdict:
    data = content.get("data")
    if not isinstance(data, list) or not data:
        return RetryLater("an answer without embeddings", error_class="broken_answer", status=status)
    vectors: list[Json] = [_object(item).get("embedding") for item in data]
    result: Json = vectors[0] if len(vectors) == 1 else vectors
    return Answer(result, _usage(content), _cost(content), _meta(content))


def _responses(content: Object, status: int) -> Verdict:
    output = content.get("output")
    parts = [part for item in _list(output) for part in _list(_object(item).get("content"))]
    text = "".join(_text(_object(part).get("text")) for part in parts)
    finish = _text(content.get("status")) or None
    answer = Answer(text, _usage(content), _cost(content), _meta(content), finish)
    if content.get("status") == "incomplete":
        return Reject("the answer was cut off", error_class="truncated", status=status, answer=answer)
    if not text.strip():
        return RetryLater("an empty answer", error_class="empty_answer", status=status, answer=answer)
    return answer


def _usage(content: Object) -> Usage:
    usage = _object(content.get("usage"))
    input_details = _object(usage.get("prompt_tokens_details")) or _object(usage.get("input_tokens_details"))
    output_details = _object(usage.get("completion_tokens_details")) or _object(usage.get("output_tokens_details"))
    return Usage(
        input_tokens=_count(usage.get("prompt_tokens", usage.get("input_tokens"))),
        output_tokens=_count(usage.get("completion_tokens", usage.get("output_tokens"))),
        cached_tokens=_count(input_details.get("cached_tokens")),
        reasoning_tokens=_count(output_details.get("reasoning_tokens")),
    )


def _cost(content: Object) -> Decimal | None:
    cost = _object(content.get("usage")).get("cost")
    if isinstance(cost, bool) or not isinstance(cost, int | float) or not 0 <= cost < 1e6:
        return None
    return Decimal(str(cost))


def _meta(content: Object) -> dict[str, Json]:
    return {name: value for name in ("id", "provider", "model") if isinstance(value := content.get(name), str)}


def _retry_after(headers: Mapping[str, str], error: _Error) -> float | None:
    """Return the seconds to wait, from the most precise place that names them."""
    after = _number(headers.get("retry-after-ms"))
    if after is not None:
        return after / 1000
    after = _seconds_or_date(headers.get("retry-after"))
    if after is None:
        after = _number(error.availability.get("retry_after"))
    if after is None:
        inner = _object(error.metadata.get("headers"))
        after = _reset(headers.get("x-ratelimit-reset") or _text(inner.get("X-RateLimit-Reset")))
    if after is None and (found := re.search(r"try again in ((?:\d+(?:\.\d+)?(?:ms|s|m|h))+)", error.message)):
        after = _duration(found.group(1))
    return after


def _seconds_or_date(value: str | None) -> float | None:
    if not value:
        return None
    if (seconds := _number(value)) is not None:
        return seconds
    if (seconds := _duration(value)) is not None:
        return seconds
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _reset(value: str | None) -> float | None:
    """Read a reset time: epoch in ms (OpenRouter) or s, plain seconds, or a duration like 6m0s (OpenAI)."""
    number = _number(value)
    if number is None:
        return _duration(value) if value else None
    if number > 1e12:
        return max(0.0, number / 1000 - time.time())
    return max(0.0, number - time.time()) if number > 1e9 else number


def _duration(value: str) -> float | None:
    parts = _DURATION.findall(value)
    return sum(float(number) * _UNITS[unit] for number, unit in parts) if parts else None


def _raw_reason(raw: Json) -> str:
    """Return the provider's own reason out of `metadata.raw`, which is often JSON text itself."""
    if not isinstance(raw, str):
        return ""
    inner = _parse(raw.encode("utf-8", "replace"))
    if isinstance(inner, dict):
        error = inner.get("error")
        return _text(_object(error).get("message")) or (error if isinstance(error, str) else "") or raw
    return raw


def _object(value: Json) -> Object:
    return value if isinstance(value, dict) else {}


def _list(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []


def _text(value: Json) -> str:
    if isinstance(value, bool) or value is None or isinstance(value, dict | list):
        return ""
    return str(value)


def _count(value: Json) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62 else None


def _number(value: Json) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if 0 <= number < 1e15 else None
