"""What a prompt becomes: the body of its API request, and the key that names that request.

A payload is what one input line asks, as JSON: a string (the prompt), `{"messages": [...]}`, or
`{"body": {...}}`. The batch holds the rest: model, system prompt, parameters, url.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import cast

from batchq.jobs import Json
from batchq.structured import response_format, text_format

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
DEFAULT_URL = CHAT
KNOWN_URLS = (CHAT, RESPONSES, COMPLETIONS, EMBEDDINGS)

_KEY_BYTES = 16
# One encoder each: json.dumps with options builds a new one per call.
_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
_canonical = json.JSONEncoder(allow_nan=False, separators=(",", ":"), sort_keys=True).encode
_PLACEHOLDER = "\x00prompt\x00"
# What the body holds already, or what makes no other request of it.
_IN_THE_BODY = frozenset({"params", "schema", "schema_tries", "samples", "system", "url"})


def encode(value: Json) -> str:
    """Return compact, ASCII-escaped JSON: NUL and lone surrogates survive any database.

    Raises ValueError for NaN and infinities, TypeError for what JSON can't hold.
    """
    return _encode(value)


def canonical(value: Json) -> str:
    """Return the one JSON text that equal values share."""
    return _canonical(value)


def url_of(settings: Mapping[str, Json]) -> str:
    """Return the path of the API that a batch asks. Raises ValueError for one that is none of an API.

    A row of the database says it, and a key goes along: nothing else may be appended to a base URL.
    """
    url = settings.get("url") or DEFAULT_URL
    if not isinstance(url, str) or url not in KNOWN_URLS:
        raise ValueError(f"its batch asks {url!r}, which is none of {', '.join(KNOWN_URLS)}")
    return url


def texts_in(value: Json) -> Iterator[str]:
    """Yield every text in a JSON value that is not the name of a field, however deep it is nested."""
    left = [value]
    while left:
        match left.pop():
            case str() as text:
                yield text
            case list() as items:
                left += items
            case dict() as fields:
                left += fields.values()


def merge_body(model: str, settings: Mapping[str, Json], payload: Json) -> dict[str, Json]:
    """Build the request body: the batch's parameters, then what the line says, which wins."""
    body: dict[str, Json] = {"model": model} if model else {}
    _merge_into(body, cast("dict[str, Json]", settings.get("params") or {}))
    schema = settings.get("schema")
    if isinstance(schema, dict):
        _add_schema(body, settings.get("url"), schema)
    system = settings.get("system")
    url = settings.get("url") or DEFAULT_URL
    if isinstance(payload, dict) and isinstance(payload.get("body"), dict):
        _merge_into(body, cast("dict[str, Json]", payload["body"]))
        if model:
            body["model"] = model
    elif isinstance(payload, dict):
        _merge_into(body, payload)
    elif url in (EMBEDDINGS, RESPONSES):
        body["input"] = payload
    elif url == COMPLETIONS:
        body["prompt"] = payload
    else:
        body["messages"] = [{"role": "user", "content": payload}]
    if isinstance(system, str):
        _add_system(body, url, system)
    return body


def prompt_of(payload: Json) -> str | dict[str, Json]:
    """Return what a plain worker function is given: the string, or the messages or body as a dict."""
    if isinstance(payload, str):
        return payload
    if isinstance(payload, dict):
        body = payload.get("body")
        return body if isinstance(body, dict) else payload
    raise ValueError(f"a payload is a string or an object, not {type(payload).__name__}")


def samples_of(settings: Mapping[str, Json]) -> int:
    """Return how often each prompt of a batch is asked."""
    samples = settings.get("samples")
    return samples if isinstance(samples, int) else 1


class RequestKeys:
    """Computes the key of each request of one batch: 32 hex digits, equal for equal requests."""

    def __init__(self, worker: str, endpoint: str, model: str, settings: Mapping[str, Json]) -> None:
        """Hash once what all rows share."""
        self._model = model
        self._settings = settings
        # A function of the user's is given what the line holds, and may answer "x" otherwise than a message "x".
        self._is_function = ":" in worker
        url = settings.get("url") or DEFAULT_URL
        identity: list[Json] = [worker, endpoint, url]
        others = {name: value for name, value in settings.items() if name not in _IN_THE_BODY}
        identity += [others] if others else []
        self._base = blake2b(canonical(identity).encode(), digest_size=_KEY_BYTES)
        # A string prompt changes one spot of an otherwise constant body, so most rows need no merge.
        template = canonical(merge_body(model, settings, _PLACEHOLDER))
        before, _, after = template.partition(encode(_PLACEHOLDER))
        self._before = self._base.copy()
        self._before.update(before.encode())
        self._after = after.encode()

    def key(self, payload: Json, payload_json: str, sample: int = 0) -> str:
        """Return the key of `payload`, whose compact JSON is `payload_json`, asked for the `sample`th time again."""
        if isinstance(payload, str):
            digest = self._before.copy()
            digest.update(payload_json.encode())
            digest.update(self._after)
        else:
            digest = self._base.copy()
            digest.update(canonical(merge_body(self._model, self._settings, payload)).encode())
            if self._is_function:
                digest.update(canonical(prompt_of(payload)).encode())
        if sample:
            digest.update(f"#{sample}".encode())
        return digest.hexdigest()


def _merge_into(target: dict[str, Json], source: Mapping[str, Json]) -> None:
    for name, value in source.items():
        present = target.get(name)
        if isinstance(present, dict) and isinstance(value, dict):
            merged = dict(present)
            _merge_into(merged, value)
            target[name] = merged
        else:
            target[name] = value


def _add_schema(body: dict[str, Json], url: Json, schema: dict[str, Json]) -> None:
    if url == RESPONSES:
        _merge_into(body, {"text": text_format(schema)})
    else:
        body["response_format"] = response_format(schema)


def _add_system(body: dict[str, Json], url: Json, system: str) -> None:
    if url == RESPONSES:
        body.setdefault("instructions", system)
        return
    messages = body.get("messages")
    if isinstance(messages, list) and not any(
        isinstance(message, dict) and message.get("role") in {"system", "developer"} for message in messages
    ):
        body["messages"] = [{"role": "system", "content": system}, *messages]
