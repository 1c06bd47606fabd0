"""From (status, headers, body) to an answer or a decision: pure, table-driven, never raises.

The order is that of how much each place can be trusted: the status; in an error body `availability`,
then the limit that was hit, then OpenAI's billing codes, then the words of the error, then the status
table (error_decision). An HTTP 200 is not a success until its body says so (answer_body, responses_body).
Sources: openrouter.ai/docs/api-reference/errors, platform.openai.com/docs/guides/error-codes.
"""

from __future__ import annotations

from collections.abc import Mapping

from batchq.worker import Answer, Json, RetryLater, Steer
from batchq_workers.accounting import account_for_failure
from batchq_workers.answer_body import read_choices, read_embeddings
from batchq_workers.error_body import quote, read_error
from batchq_workers.error_decision import decide_error, decide_inner_error
from batchq_workers.json_values import Object, decode, lower_names
from batchq_workers.responses_body import read_response

__all__ = ["Steer", "classify"]


def classify(status: int, headers: Mapping[str, str], body: bytes, url: str = "") -> Answer | Steer:
    """Return the answer, or the decision to raise, for any response.

    `url` is the path that was asked (`/v1/embeddings`); without it the shape of the body tells the API.
    """
    content = decode(body)
    if 400 <= status < 600:
        return decide_error(status, headers, content, body)
    if not 200 <= status < 300:
        return _unexpected(status, headers, content, body)
    if not isinstance(content, dict):
        what = quote(body) or "nothing"
        return RetryLater(f"HTTP {status} without a JSON object: {what}", error_class="broken_answer", status=status)
    error = content.get("error")
    if error and isinstance(error, dict | str):
        return decide_inner_error(headers, error, body, account_for_failure(content, headers))
    return _read_answer(content, headers, body, url)


def _read_answer(content: Object, headers: Mapping[str, str], body: bytes, url: str) -> Answer | Steer:
    if url.endswith("/embeddings") or (not url and "data" in content and "choices" not in content):
        return read_embeddings(content, headers)
    if url.endswith("/responses") or (not url and "output" in content and "choices" not in content):
        return read_response(content, headers)
    return read_choices(content, headers, body)


def _unexpected(status: int, headers: Mapping[str, str], content: Json, body: bytes) -> RetryLater:
    """Return the decision on a status that no API gives: a proxy's, or a redirection of a wrong base URL."""
    target = lower_names(headers).get("location")
    message = f"HTTP {status}: moved to {target}" if target else read_error(content, body, status).message
    return RetryLater(message, error_class="unexpected_status", status=status)
