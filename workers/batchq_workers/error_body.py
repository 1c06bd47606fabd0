"""What the body of an error says, in any of the shapes that providers give it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from batchq.worker import Json
from batchq_workers.json_values import Object, decode, list_of, object_of, text_of

_SNIPPET = 1_000
_TITLE = re.compile(r"<title[^<>]*>([^<]+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """The parts of an error, each possibly empty.

    `message` is the provider's own reason. `words` are what `error_type`, `code` and `type` say, the most
    trusted first. `status` is the HTTP status that the body itself names.
    """

    message: str
    words: tuple[str, ...]
    status: int | None
    availability: Object
    metadata: Object


def read_error(content: Json, body: bytes, status: int) -> ErrorBody:
    """Read an error out of the decoded body of a response with `status`.

    `body`, the bytes that it came as, is quoted where it holds no message that can be told apart.
    Knows OpenRouter's and OpenAI's `{"error": {...}}`, the same in a list (Gemini), `{"error": "text"}`
    (Ollama), a flat object (old vLLM) and `{"detail": ...}` (FastAPI).
    """
    error = _find_error(content)
    metadata = object_of(error.get("metadata"))
    spoken = (metadata.get("error_type"), error.get("error_type"), error.get("code"), error.get("type"))
    return ErrorBody(
        message=_upstream_reason(metadata.get("raw"))
        or _message(error)
        or quote(body)
        or f"HTTP {status} without a reason",
        words=tuple(word for word in spoken if isinstance(word, str)),
        status=_stated_status(error),
        availability=object_of(error.get("availability")),
        metadata=metadata,
    )


def quote(body: bytes | str) -> str:
    """Return the start of a text as a person can read it: of an HTML page its title."""
    text = (body if isinstance(body, str) else body.decode("utf-8", "replace")).strip()
    if not text.startswith("<"):
        return text[:_SNIPPET]
    title = _TITLE.search(text)
    return " ".join(title.group(1).split())[:_SNIPPET] if title else "a page of HTML"


def _find_error(content: Json) -> Object:
    if isinstance(content, list):
        content = content[0] if content else None
    outer = object_of(content)
    inner = outer.get("error")
    if isinstance(inner, str):
        return {**outer, "message": inner}
    return inner if isinstance(inner, dict) else outer


def _message(error: Object) -> str:
    message = text_of(error.get("message")) or text_of(error.get("detail"))
    complaints = (text_of(object_of(item).get("msg")) for item in list_of(error.get("detail")))
    return message.strip() or "; ".join(filter(None, complaints))


def _upstream_reason(raw: Json) -> str:
    """Return the reason that the provider behind a router gave, which is often JSON inside a string."""
    if isinstance(raw, str):
        return _message(_find_error(decode(raw))) or quote(raw)
    return _message(_find_error(raw))


def _stated_status(error: Object) -> int | None:
    for name in ("code", "http_status", "status"):
        text = text_of(error.get(name))
        # isdigit alone would let through digits that int() refuses.
        if len(text) == 3 and text.isascii() and text.isdigit() and "400" <= text <= "599":
            return int(text)
    return None
