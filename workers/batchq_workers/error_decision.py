"""What an error calls for: to wait, to try again, to give up this request, or to stop all of them.

Each place is asked in the order of how much it can be trusted: OpenRouter's `availability`, the limit that
was hit, OpenAI's billing codes, what is said of the prompt, the words of the error, the status.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from batchq.worker import Answer, Halt, Json, Reject, RetryLater, Steer, Throttled
from batchq_workers.error_body import ErrorBody, read_error
from batchq_workers.error_words import BILLING_WORDS, ERROR_WORDS
from batchq_workers.json_values import text_of
from batchq_workers.retry_after import seconds_to_wait

Decision = type[Halt] | type[Reject] | type[RetryLater] | type[Throttled]

_STATUSES: dict[int, tuple[Decision, str]] = {
    400: (Reject, "bad_request"),
    401: (Halt, "bad_key"),
    402: (Halt, "no_credit"),
    403: (Halt, "forbidden"),
    404: (Halt, "not_found"),
    408: (RetryLater, "timeout"),
    409: (RetryLater, "conflict"),
    413: (Reject, "too_large"),
    422: (Reject, "bad_request"),
    425: (RetryLater, "conflict"),
    429: (Throttled, "rate_limited"),
    503: (Throttled, "overloaded"),
    504: (RetryLater, "timeout"),
    522: (RetryLater, "timeout"),
    524: (RetryLater, "timeout"),
    529: (Throttled, "overloaded"),
}

# `availability.code` of what every request of this model and these settings meets.
_LANE_CODES = {
    "model_not_found": "unknown_model",
    "wrong_endpoint": "wrong_endpoint",
    "no_endpoints": "no_endpoints",
    "model_deprecated": "model_deprecated",
    "model_unavailable_upstream": "model_unavailable_upstream",
    "privacy_restricted": "privacy_restricted",
    "constraint_filtered": "constraint_filtered",
    "free_variant_ended": "free_variant_ended",
    "region_restricted": "region_restricted",
}

_BUDGETS = frozenset(
    {"openrouter_credits", "openrouter_guardrail_budget", "openrouter_key_limit", "openrouter_workspace_budget"}
)

# Moderation and guardrails say in `metadata` what they found in this one prompt.
_FINDINGS = ("flagged_input", "patterns", "reasons")

# Where only the sentence tells: OpenRouter's unknown model, Gemini's bad key, vLLM's and llama.cpp's long
# prompt, and a request larger than what OpenAI allows per minute, which no waiting lets through.
_SENTENCES: tuple[tuple[int, re.Pattern[str], Decision, str], ...] = (
    (400, re.compile(r"^\S+ is not a valid model ID"), Halt, "unknown_model"),
    (400, re.compile(r"^API key not valid"), Halt, "bad_key"),
    (400, re.compile(r"\bcontext (?:length|window|size)\b"), Reject, "context_length"),
    (429, re.compile(r"^Request too large for "), Reject, "too_large"),
)


def decide_error(status: int, headers: Mapping[str, str], content: Json, body: bytes) -> Steer:
    """Return the decision for a response with an error status.

    `content` is the decoded `body`, or None where that is no JSON.
    """
    error = read_error(content, body, status)
    return _decide(status, error, seconds_to_wait(status, headers, error))


def decide_inner_error(headers: Mapping[str, str], error: Json, body: bytes, answer: Answer | None) -> Steer:
    """Return the decision for an `error` inside an HTTP 200, with the part of an answer that came with it.

    Its status is what the error says, else what one of its words stands for.
    """
    inner = read_error({"error": error}, body, 200)
    meant = (ERROR_WORDS[word].status for word in inner.words if word in ERROR_WORDS)
    status = inner.status or next(meant, 200)
    decision = _decide(status, inner, seconds_to_wait(status, headers, inner))
    decision.answer = answer
    return decision


def _decide(status: int, error: ErrorBody, after: float | None) -> Steer:
    return (
        _by_availability(status, error, after)
        or _by_limit(status, error, after)
        or _by_finding(status, error)
        or _by_sentence(status, error, after)
        or _by_words(status, error, after)
        or _by_status(status, error, after)
    )


def _by_availability(status: int, error: ErrorBody, after: float | None) -> Steer | None:
    """Follow `retryable`, which is of the model, or of the request where no code says otherwise."""
    retryable = error.availability.get("retryable")
    code = text_of(error.availability.get("code"))
    decision, error_class = _of_status(status)
    if retryable is True:
        if decision is not Throttled:
            error_class = "rate_limited" if code == "capacity_exhausted" else "overloaded"
        return Throttled(error.message, after=after, error_class=error_class, status=status)
    if code in _LANE_CODES:
        return Halt(error.message, error_class=_LANE_CODES[code], status=status)
    if retryable is not False:
        return None
    told = _by_finding(status, error) or _by_sentence(status, error, after) or _by_words(status, error, after)
    if isinstance(told, Halt | Reject):
        return told
    if decision is Halt:
        return Halt(_with_reset(error), error_class=error_class, status=status)
    return Reject(error.message, error_class=error_class if decision is Reject else "refused", status=status)


def _by_limit(status: int, error: ErrorBody, after: float | None) -> Steer | None:
    source = text_of(error.metadata.get("limit_source"))
    reason = text_of(error.metadata.get("reason"))
    if reason == "weight_exceeds_budget":
        return Reject(error.message, error_class="too_expensive", status=status)
    if source == "openrouter_in_flight_budget" or reason == "in_flight_budget_exhausted":
        return Throttled(error.message, after=after, error_class="in_flight_budget", status=status)
    if source in _BUDGETS or not BILLING_WORDS.isdisjoint(error.words):
        return Halt(_with_reset(error), error_class="no_credit", status=status)
    return None


def _by_finding(status: int, error: ErrorBody) -> Steer | None:
    if status in {400, 403} and any(error.metadata.get(name) is not None for name in _FINDINGS):
        return Reject(error.message, error_class="moderation", status=status)
    return None


def _by_sentence(status: int, error: ErrorBody, after: float | None) -> Steer | None:
    for spoken_with, pattern, decision, error_class in _SENTENCES:
        if status == spoken_with and pattern.search(error.message):
            return _build(decision, error_class, status, error.message, after)
    return None


def _by_words(status: int, error: ErrorBody, after: float | None) -> Steer | None:
    """Let a word decide that says more than the status; a 413 is final: Groq calls it `rate_limit_exceeded`."""
    if status == 413:
        return None
    for word in error.words:
        meaning = ERROR_WORDS.get(word)
        if meaning is not None and meaning.error_class is not None:
            decision, _ = _of_status(meaning.status)
            return _build(decision, meaning.error_class, status, error.message, after)
    return None


def _by_status(status: int, error: ErrorBody, after: float | None) -> Steer:
    decision, error_class = _of_status(status)
    return _build(decision, error_class, status, _with_reset(error), after)


def _of_status(status: int) -> tuple[Decision, str]:
    if status in _STATUSES:
        return _STATUSES[status]
    if 400 <= status < 500:
        return Reject, "refused"
    return RetryLater, "server_error" if 500 <= status < 600 else "broken_answer"


def _build(decision: Decision, error_class: str, status: int, message: str, after: float | None) -> Steer:
    if issubclass(decision, RetryLater | Throttled):
        # A time of nothing, from a clock that is off, is none: several tries within a second help nobody.
        wait = after if decision is Throttled else after or None
        return decision(message, after=wait, error_class=error_class, status=status)
    return decision(message, error_class=error_class, status=status)


def _with_reset(error: ErrorBody) -> str:
    """Return the reason and, of a budget that fills up again, when it does."""
    resets_at = text_of(error.metadata.get("resets_at"))
    return f"{error.message} (resets at {resets_at})" if resets_at else error.message
