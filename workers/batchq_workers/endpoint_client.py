"""The SDK client of one endpoint, and what has to be in order before there can be one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from batchq.worker import ConfigurationError, Endpoint, is_loopback, is_openrouter, is_placeholder

if TYPE_CHECKING:
    import httpx2
    import openai

# Slots are the limit, not the pool: a call that waits for a connection would run into its deadline.
MAX_CONNECTIONS = 4096
_SHORTEST_KEY = 8  # what is shorter is a placeholder, and may be a word


def check_endpoint(endpoint: Endpoint) -> None:
    """Raise ConfigurationError if `endpoint` needs a key and has none; a loopback server needs none."""
    if endpoint.api_key is None and not is_loopback(endpoint.base_url):
        raise ConfigurationError(missing_key(endpoint))


def new_http_client(
    connect_seconds: float, on_response: Callable[[httpx2.Response], Awaitable[None]] | None = None
) -> httpx2.AsyncClient:
    """Return a client over aiohttp, which calls `on_response` with each response before anyone reads it."""
    import httpx2
    import openai

    return openai.DefaultAioHttpClient(
        limits=httpx2.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS),
        # The total deadline is the queue's; a socket timeout would only cut long answers short.
        timeout=httpx2.Timeout(None, connect=connect_seconds),
        follow_redirects=False,
        event_hooks={"response": [on_response] if on_response else []},
    )


def new_client(endpoint: Endpoint, http_client: httpx2.AsyncClient) -> openai.AsyncOpenAI:
    """Return the SDK's client for `endpoint`, which tries every call once."""
    import openai

    client = openai.AsyncOpenAI(
        # Given, so that no ambient OPENAI_BASE_URL or key leaks into calls to another server.
        api_key=endpoint.api_key or "none",
        base_url=endpoint.base_url,
        max_retries=0,
        http_client=http_client,
        default_headers=dict(endpoint.headers),
    )
    client.organization = client.project = None
    return client


def redacted(text: str, key: str | None) -> str:
    """Return a message without the key that the call was made with: some servers quote it."""
    return text.replace(key, "[redacted]") if key and len(key) >= _SHORTEST_KEY else text


def redacted_body(body: bytes, key: str | None) -> bytes:
    """Return what came without the key: before anything is read out of it, or cut short in the midst of the key.

    A placeholder stays: it may be a word of the answer, or the name of one of its fields.
    """
    if key is None or is_placeholder(key):
        return body
    found = body.replace(key.encode(), b"[redacted]")
    return found.replace(key.replace("/", "\\/").encode(), b"[redacted]") if "/" in key else found


def missing_key(endpoint: Endpoint) -> str:
    """Say which key is missing, and where to put it."""
    host = urlsplit(endpoint.base_url).hostname or endpoint.base_url
    if endpoint.name != "default":
        return f"{host} needs a key: give the endpoint {endpoint.name!r} an api_key_file in batchq.toml"
    variable = "OPENROUTER_API_KEY" if is_openrouter(endpoint.base_url) else "OPENAI_API_KEY"
    return f"{host} needs a key: set {variable} in the environment or in .env, or give --api-key-file"
