"""The output and error files of OpenAI's Batch API, in ASCII, since its clients split lines also at U+2028."""

from __future__ import annotations

from hashlib import blake2b

from batchq.formats.rendering.layout import Entry, Layout
from batchq.formats.rendering.openai_body import answer_body
from batchq.formats.rendering.values import encode, spliced
from batchq.jobs import JobState, Json, Result

_CANCELLED = "batch_cancelled"
_FIRST_ERROR = 400
_FIRST_SERVER_ERROR = 500


class OpenAIRenderer:
    """Writes each job that ended as the Batch API does: its answer, or the HTTP error, or why there is neither."""

    def __init__(self, layout: Layout) -> None:
        """Know the batch, which names the lines and tells what API it calls."""
        self._batch = layout.batch

    def head(self) -> bytes:
        """Return nothing: the format has no header."""
        return b""

    def row(self, entry: Entry) -> bytes:
        """Return a line; nothing for a job that has not ended."""
        result = entry.result
        if result.state in {JobState.PENDING, JobState.INFLIGHT}:
            return b""
        name = self._name(result.position)
        custom_id = str(result.position) if result.custom_id is None else result.custom_id
        response, error = self._response(result, name), "null"
        if response is None:
            response, error = "null", _error(result)
        line = f'{{"id":"batch_req_{name}","custom_id":{encode(custom_id)},"response":{response},"error":{error}}}\n'
        return line.encode("ascii")

    def _name(self, position: int) -> str:
        identity = f"{self._batch.id} {self._batch.created_at} {position}"
        return blake2b(identity.encode(), digest_size=16).hexdigest()

    def _response(self, result: Result, name: str) -> str | None:
        if result.state is JobState.DONE:
            status, body = 200, self._answer(result, name)
        elif result.state is JobState.FAILED and result.status is not None and result.status >= _FIRST_ERROR:
            status, body = result.status, encode(_error_body(result, result.status))
        else:
            return None
        return f'{{"status_code":{status},"request_id":"{name}","body":{body}}}'

    def _answer(self, result: Result, name: str) -> str:
        if result.response is not None and result.response.startswith("{"):
            return spliced(result.response)
        return encode(answer_body(result, self._batch, name))


def _error_body(result: Result, status: int) -> Json:
    kind = "server_error" if status >= _FIRST_SERVER_ERROR else "invalid_request_error"
    return {"error": {"message": result.error or "", "type": kind, "param": None, "code": result.error_class}}


def _error(result: Result) -> str:
    if result.state is JobState.CANCELLED:
        return encode({"code": _CANCELLED, "message": "This request was not executed: its batch was cancelled."})
    return encode({"code": result.error_class or "unknown", "message": result.error or ""})
