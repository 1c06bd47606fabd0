"""From the messages of a chat request to what a Pydantic AI run takes: a history, and a prompt at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic_ai import ImageUrl
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, UserContent, UserPromptPart

from batchq.worker import Json, Reject
from batchq_workers.json_values import Object, list_of, object_of

_SYSTEM = ("system", "developer")


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a run is started with; `instructions` are the system messages at the beginning."""

    instructions: tuple[str, ...]
    history: tuple[ModelMessage, ...]
    prompt: str | Sequence[UserContent]


def conversation(messages: Json) -> Conversation:
    """Read the messages of a chat request.

    Raises Reject for what a run can't be started with, such as the results of tools: nothing is left out.
    """
    given = [object_of(message) for message in list_of(messages)]
    start = next((place for place, message in enumerate(given) if message.get("role") not in _SYSTEM), len(given))
    spoken = given[start:]
    if not spoken or spoken[-1].get("role") != "user":
        raise _unusable("its last message is not the user's")
    return Conversation(
        instructions=tuple(_text_of(message) for message in given[:start]),
        history=tuple(_past(message) for message in spoken[:-1]),
        prompt=_asked(spoken[-1]),
    )


def _past(message: Object) -> ModelMessage:
    role = message.get("role")
    if role == "user":
        return ModelRequest([UserPromptPart(_asked(message))])
    if role == "assistant":
        return ModelResponse([TextPart(_text_of(message))])
    if role in _SYSTEM:
        raise _unusable("a system message stands after the first others")
    raise _unusable(f"it has a message with the role {role!r}")


def _text_of(message: Object) -> str:
    content = _content(message)
    if isinstance(content, str):
        return content
    texts = [part for part in map(_part, list_of(content)) if isinstance(part, str)]
    if not texts or len(texts) < len(list_of(content)):
        raise _unusable(f"a message of the {message.get('role')} is not text")
    return "".join(texts)


def _asked(message: Object) -> str | list[UserContent]:
    content = _content(message)
    return content if isinstance(content, str) else [_part(part) for part in list_of(content)]


def _content(message: Object) -> str | list[Json]:
    content = message.get("content")
    others = sorted(name for name, value in message.items() if name not in {"role", "content"} and value is not None)
    if others:
        raise _unusable(f"a message has {', '.join(others)}")
    if isinstance(content, str | list) and content:
        return content
    raise _unusable(f"a message of the {message.get('role')} is empty")


def _part(part: Json) -> UserContent:
    """Read one part of a message's content."""
    match part:
        case {"type": "text", "text": str(text), **others} if not others:
            return text
        case {"type": "image_url", "image_url": {"url": str(url), **rest}, **others} if not others:
            if rest.keys() <= {"detail"}:
                return ImageUrl(url, vendor_metadata={str(name): value for name, value in rest.items()})
    kind = object_of(part).get("type")
    raise _unusable(f"it has a part that is neither text nor a plain image ({kind})")


def _unusable(why: str) -> Reject:
    reason = f"the messages can't be given to a Pydantic AI run: {why}; the openrouter worker sends them as they are"
    return Reject(reason, error_class="bad_request")
