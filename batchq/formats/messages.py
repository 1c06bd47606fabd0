"""What makes a list of messages one that can be sent."""

from __future__ import annotations

from collections.abc import Mapping

from batchq.formats.rows import RowError, kind_name
from batchq.jobs import Json

# What an assistant's message may hold where it has no content.
_INSTEAD_OF_CONTENT = ("tool_calls", "function_call", "refusal", "audio")


def checked_messages(value: Json) -> list[Json]:
    """Return messages that each have a role and a content, or raise RowError."""
    if not isinstance(value, list) or not value:
        problem = "an empty list" if value == [] else "missing" if value is None else kind_name(value)
        raise RowError(f"`messages` is {problem}, not a list of messages")
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict):
            raise RowError(f"message {number} is {kind_name(message)}, not an object")
        if not isinstance(message.get("role"), str):
            raise RowError(f"message {number} has no `role`")
        _check_content(number, message)
    return value


def _check_content(number: int, message: Mapping[str, Json]) -> None:
    content = message.get("content")
    if content is None:
        if not any(message.get(name) for name in _INSTEAD_OF_CONTENT):
            raise RowError(f"message {number} has no `content`")
    elif not isinstance(content, str | list):
        raise RowError(f"the `content` of message {number} is {kind_name(content)}, not a string or a list")
