"""From what a Pydantic AI run raised to a decision.

An HTTP error is decided by its status and body, by the same rules as the openrouter worker's; what has
none, by the class that Pydantic AI gave it. What a user's own tool raises is tried again, by its name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx2
from pydantic_ai import exceptions

from batchq.worker import Halt, Reject, RetryLater, Steer, Throttled
from batchq_workers.error_decision import Decision, decide_error
from batchq_workers.json_values import Object, decode
from batchq_workers.unreached import unreached

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batchq.worker import Json

# How often in a row a job is asked whose answer Pydantic AI can make nothing of: each try is paid for.
BROKEN_AT_MOST = 3
_NEVER_FITTED = "Exceeded maximum output retries"
_SHOWN = 500

# The first that fits; the more particular classes stand before those that they derive from.
_BY_CLASS: tuple[tuple[type[Exception], Decision, str], ...] = (
    (exceptions.ModelRateLimitError, Throttled, "rate_limited"),
    (exceptions.ModelUnavailableError, Throttled, "overloaded"),
    (exceptions.ConcurrencyLimitExceeded, Throttled, "concurrency_limit"),
    (exceptions.ModelQuotaExceededError, Halt, "no_credit"),
    (exceptions.ModelAuthenticationError, Halt, "bad_key"),
    (exceptions.ModelNotFoundError, Halt, "not_found"),
    (exceptions.ModelContextWindowExceededError, Reject, "context_length"),
    (exceptions.ModelRequestRejectedError, Reject, "bad_request"),
    (exceptions.ModelTimeoutError, RetryLater, "timeout"),
    (exceptions.ModelRequestTimeout, RetryLater, "timeout"),
    (exceptions.ModelConnectionError, RetryLater, "connection"),
    (exceptions.ModelServerError, RetryLater, "server_error"),
    (exceptions.ModelAPIError, RetryLater, "broken_answer"),
    (exceptions.ContentFilterError, Reject, "content_filter"),
    (exceptions.OutputTokenLimitExceeded, Reject, "truncated"),
    (exceptions.UnexpectedModelBehavior, RetryLater, "broken_answer"),
    (exceptions.SuspendedResponseExpired, RetryLater, "broken_answer"),
    (exceptions.UsageLimitExceeded, Reject, "usage_limit"),
    (exceptions.RunTimedOut, RetryLater, "timeout"),
    (exceptions.RunCancelled, Reject, "cancelled_itself"),
    # A model that can't do what the agent asks of it, an agent without a model: every job would meet it.
    (exceptions.UserError, Halt, "agent_misconfigured"),
)

# Of several models that failed one after the other, the one that may soon do better decides.
_MILDEST_FIRST: tuple[Decision, ...] = (Throttled, RetryLater, Halt, Reject)


def decide(error: Exception) -> Steer | None:
    """Return the decision on what a run raised, or None if that is not Pydantic AI's own."""
    if isinstance(error, exceptions.FallbackExceptionGroup):
        return _of_several(error)
    if isinstance(error, exceptions.ModelHTTPError):
        return _by_answer(error)
    if isinstance(error, exceptions.UnexpectedModelBehavior) and error.message.startswith(_NEVER_FITTED):
        reason = f"the answer did not fit the output type: {_last_cause(error)}"
        return RetryLater(reason, at_most=BROKEN_AT_MOST, error_class="schema_mismatch")
    if isinstance(error, exceptions.ModelConnectionError):
        for cause in _causes(error):
            if isinstance(cause, httpx2.TransportError):
                return unreached(cause)
    return _by_class(error)


def undecided(error: Exception) -> RetryLater:
    """Return the decision on what is not Pydantic AI's own: what the queue would decide, but it can carry a cost."""
    name = type(error).__name__
    if isinstance(error, TimeoutError):
        return RetryLater(_words_of(error) or "the call timed out", error_class="timeout")
    return RetryLater(f"{name}: {_words_of(error)}".removesuffix(": "), error_class=name)


def _words_of(error: Exception) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a broken __str__ must not hide what the run has cost
        return ""


def _by_answer(error: exceptions.ModelHTTPError) -> Steer:
    """Decide by the response itself where the provider's SDK has kept it, else by what Pydantic AI kept."""
    response = getattr(error.__cause__, "response", None)
    body = getattr(response, "content", None)
    headers: Mapping[str, str] = error.headers or {}
    if isinstance(body, bytes):
        decision = decide_error(error.status_code, headers, decode(body), body)
    else:
        content = _body_of(error)
        decision = decide_error(error.status_code, headers, content, json.dumps(content).encode())
    if isinstance(decision, RetryLater | Throttled) and decision.after is None:
        decision.after = error.retry_after or None
    return decision


def _body_of(error: exceptions.ModelHTTPError) -> Json:
    """Return the error body in its envelope, from which OpenAI's SDK takes it."""
    body = decode(json.dumps(error.body, default=str))
    if isinstance(body, list) or (isinstance(body, dict) and "error" in body):
        return body
    inner: Object = body if isinstance(body, dict) else {"message": body if isinstance(body, str) else error.message}
    return {"error": inner}


def _of_several(group: exceptions.FallbackExceptionGroup) -> Steer | None:
    decisions = [decide(error) for error in group.exceptions]
    return next((one for kind in _MILDEST_FIRST for one in decisions if isinstance(one, kind)), None)


def _by_class(error: Exception) -> Steer | None:
    for kind, decision, error_class in _BY_CLASS:
        if isinstance(error, kind):
            # Not str(error): of an unexpected answer, that holds the whole of it.
            reason = getattr(error, "message", "") or str(error)
            after = getattr(error, "retry_after", None)
            if issubclass(decision, Throttled):
                return decision(reason, after=after, error_class=error_class)
            if issubclass(decision, RetryLater):
                at_most = BROKEN_AT_MOST if isinstance(error, exceptions.UnexpectedModelBehavior) else None
                return decision(reason, after=after, at_most=at_most, error_class=error_class)
            return decision(reason, error_class=error_class)
    return None


def _last_cause(error: Exception) -> str:
    causes = [str(cause) for cause in _causes(error)]
    return " ".join((causes[0] if causes else str(error)).split())[:_SHOWN]


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause = error.__cause__ or error.__context__
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
